"""The fifth version's training: its parts in order, each resumable, and all of them in one call."""
# diffusers annotates its constructors and outputs too narrowly; torch its modules too widely.
# pyright: reportArgumentType=false, reportCallIssue=false

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTokenizer

from sefi.backbone.open import open_backbone
from sefi.core.errors import ConfigError
from sefi.core.files import write_text
from sefi.core.json_text import dump_json
from sefi.world.assemble import write_pipeline
from sefi.world.autoencoder_training import AutoencoderPlan, ImageSource, Stage, train_autoencoder
from sefi.world.captioned_series import CaptionedRange, caption_series, encode_series_texts, label_series
from sefi.world.clip_training import CLIP
from sefi.world.composer_training import ComposerRecipe, train_composer
from sefi.world.data import MODEL_SEED, draw_numbers
from sefi.world.diffusion_training import set_scaling
from sefi.world.drawn_series import DrawnSeries, StoredCrops, draw_series
from sefi.world.feature_training import FeatureNetwork, FeatureRecipe, train_features
from sefi.world.fifth_denoiser import (
    DenoiserRecipe,
    DenoiserShape,
    DenoiserTraining,
    FrozenParts,
    choose_average,
    load_denoiser,
    new_denoiser,
    score_averages,
)
from sefi.world.judges import JUDGES
from sefi.world.judging_data import HELD_OUT_SEED, face_crops
from sefi.world.latent_data import encode_drawn, encode_series
from sefi.world.latent_reader import (
    LatentReader,
    LatentReaderRecipe,
    read_latents,
    store_latents,
    train_latent_reader,
)
from sefi.world.lesson import Keeping, save_whole
from sefi.world.second_recogniser import SECOND_RECOGNISER, SECOND_SEED, SecondRecipe, train_second_recogniser
from sefi.world.telling import TellingRecipe, train_telling
from sefi.world.text_training import NameTokens, Worded, bake_names, new_text_encoder
from sefi.world.tokenizing import build_tokenizer, words
from sefi.world.train import Run
from sefi.world.training_times import TimedProgress
from sefi.world.versions import FIFTH, WorldVersion
from sefi.world.widening import Earlier, earlier_words, widened

FEATURES, READER = "features.safetensors", "latent-reader.safetensors"
LATENTS, HELD_OUT = "latents.npy", "held-out-latents.npy"
TEXT, SCORES, COMPOSER = "text.safetensors", "denoiser-averages.json", "composer.safetensors"
EVERY = 180.0  # seconds between two checkpoints


@dataclass(frozen=True)
class FifthPlan:
    """Sizes and recipes of all parts.

    Attributes:
        drawings, held_out: how many the denoiser learns from, and how many score its averages.
        stored: on a GPU, how many drawings the autoencoder learns from; a CPU draws new ones for every step.
        captions: on a GPU, how many captions every drawing has; a CPU says every drawing in new words each time.
        scaled: on how many drawings the scale of the latents is measured.
    """

    version: WorldVersion = FIFTH
    drawings: int = 48_000
    stored: int = 24_000
    captions: int = 3
    held_out: int = 512
    scaled: int = 512
    features: FeatureRecipe = field(default_factory=FeatureRecipe)
    autoencoder: AutoencoderPlan = field(default_factory=AutoencoderPlan)
    reader: LatentReaderRecipe = field(default_factory=LatentReaderRecipe)
    text: TellingRecipe = field(default_factory=partial(TellingRecipe, steps=1500, version=FIFTH))
    more_text: TellingRecipe = field(
        default_factory=partial(TellingRecipe, steps=800, learning_rate=7e-4, version=FIFTH)
    )
    shape: DenoiserShape = field(default_factory=DenoiserShape)
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)
    second: SecondRecipe = field(default_factory=SecondRecipe)
    composer: ComposerRecipe = field(default_factory=partial(ComposerRecipe, pictures=4000, version=FIFTH))


PLAN = FifthPlan()
# A GPU gains little by small batches: more images in fewer steps.
CUDA_PLAN = FifthPlan(
    drawings=120_000,
    scaled=128,
    autoencoder=AutoencoderPlan(
        stages=(
            Stage("small-crops", 1500, 64, 48, 1.5e-3, falling=False, warm=200),
            Stage("crops", 9000, 32, 96, 1e-3, falling=False),
            Stage("whole", 3000, 12, 0, 6e-4, perceptual_weight=0.2, average=0.998),
            Stage(
                "sharpening", 4000, 32, 96, 4e-4, perceptual_weight=0.3, adversarial_weight=0.02, decoder_only=True,
                average=0.998,
            ),
            Stage("decoder", 800, 12, 0, 1e-4, perceptual_weight=0.3, decoder_only=True, average=0.99),
        )
    ),
    reader=LatentReaderRecipe(steps=4000, batch=256),
    denoiser=DenoiserRecipe(steps=8000, batch=128, learning_rate=1e-3, averages=(0.995, 0.998, 0.9995)),
)  # fmt: skip


def choose_plan(device: str) -> FifthPlan:
    """Return the sizes and recipes for a device."""
    return CUDA_PLAN if on_gpu(device) else PLAN


def on_gpu(device: str) -> bool:
    """Return whether a device is a GPU that can capture steps."""
    return torch.device(device).type == "cuda"


def keep(run: Run, part: str) -> Keeping:
    """Return where a part's checkpoint lies."""
    return Keeping(run.folder / f"{part}.training.safetensors", run.resume, EVERY)


def make_tokenizer(run: Run, plan: FifthPlan) -> None:
    """Write the tokenizer: every word of the version's captions and every name is one token.

    Ties are broken by chance, so ids differ from one tokenizer to the next; a resumed run keeps its own.
    """
    folder, partial_folder = run.folder / "tokenizer", run.folder / "tokenizer.partial"
    if folder.exists() and run.resume:
        return
    build_tokenizer(partial_folder, words(plan.version))
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.replace(folder)


def make_features(run: Run, plan: FifthPlan) -> None:
    """Train the feature network of the perceptual loss."""
    network = train_features(plan.features, run.seed, run.progress, keep(run, "features"), device=run.device)
    save_whole(network.state_dict(), run.folder / FEATURES)


def load_features(run: Run) -> FeatureNetwork:
    """Return the trained feature network."""
    network = FeatureNetwork()
    network.load_state_dict(load_file(run.need(FEATURES, "features")))
    return network


def make_autoencoder(run: Run, plan: FifthPlan) -> None:
    """Train the autoencoder through all its stages."""
    load, source = partial(load_features, run), None
    if on_gpu(run.device):
        series = draw_series(run.folder, MODEL_SEED, plan.stored, plan.version, run.progress)
        source = store_images(series, plan.version.cell, run.device)
    vae = train_autoencoder(
        plan.autoencoder, partial(keep, run), run.seed, run.progress, features=load, device=run.device, source=source
    )
    set_scaling(vae, draw_numbers(range(plan.scaled), MODEL_SEED, plan.version))
    vae.save_pretrained(run.folder / "vae")


def store_images(series: DrawnSeries, cell: int, device: str) -> ImageSource:
    """Return a source of crops from drawings that it keeps on a GPU."""
    images, faces = (torch.from_numpy(np.array(values)).to(device) for values in (series.images, series.faces))

    def source(stage: Stage, _first: int) -> StoredCrops:
        return StoredCrops(images, faces, stage.batch, stage.crop, cell, stage.face_share)

    return source


def load_vae(run: Run) -> AutoencoderKL:
    """Return the trained autoencoder, on the run's device."""
    folder = run.need("vae", "autoencoder")
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return vae.eval().requires_grad_(requires_grad=False).to(run.device)


def make_latents(run: Run, plan: FifthPlan) -> None:
    """Encode the denoiser's drawings, and those that score it."""
    vae = load_vae(run)
    for name, count, seed in ((LATENTS, plan.drawings, MODEL_SEED), (HELD_OUT, plan.held_out, HELD_OUT_SEED)):
        if not run.resume:
            # Latents of an earlier autoencoder would be read as this one's.
            for old in (name, name.replace(".npy", ".blocks")):
                (run.folder / old).unlink(missing_ok=True)
        if on_gpu(run.device):
            images = draw_series(run.folder, seed, count, plan.version, run.progress).images
            encode_drawn(run.folder / name, vae, images, run.progress)
        else:
            encode_series(run.folder / name, vae, count, seed, plan.version, run.progress)


def load_latents(run: Run, name: str) -> np.ndarray:
    """Return encoded drawings, memory-mapped."""
    return np.load(run.need(name, "latents"), mmap_mode="r")


def make_latent_reader(run: Run, plan: FifthPlan) -> None:
    """Train the reader of latents."""
    latents, keeping = load_latents(run, LATENTS), keep(run, "latent-reader")
    if on_gpu(run.device):
        labels = label_series(MODEL_SEED, len(latents), plan.version, run.progress)
        source = store_latents(latents, labels, plan.reader, run.device)
    else:
        source = read_latents(latents, plan.reader, plan.version, run.device)
    reader = train_latent_reader(
        source, plan.reader, run.seed, run.progress, keeping, version=plan.version, device=run.device
    )
    save_whole(reader.state_dict(), run.folder / READER)


def load_reader(run: Run, plan: FifthPlan) -> LatentReader:
    """Return the trained reader of latents."""
    reader = LatentReader(plan.version)
    reader.load_state_dict(load_file(run.need(READER, "latent-reader")))
    return reader


def new_words(run: Run) -> Worded:
    """Return an untrained text encoder and naming network with the run's tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(run.need("tokenizer", "tokenizer"), local_files_only=True)
    text = new_text_encoder(tokenizer)
    text.set_attn_implementation("eager")
    return Worded(text, NameTokens(), tokenizer)


def make_text(run: Run, plan: FifthPlan) -> None:
    """Train text encoder and naming network on sentences; with `--start` on from a finished model."""
    torch.manual_seed(run.seed)
    worded = new_words(run)
    earlier: Earlier | None = widened(worded, earlier_words(run.start)) if run.start else None
    recipe = plan.more_text if run.start else plan.text
    train_telling(worded, recipe, run.seed, run.progress, keep(run, "text"), earlier, run.device)
    parts: dict[str, nn.Module] = {"text": worded.text, "names": worded.names}
    tensors = {f"{part}.{k}": v.contiguous() for part, module in parts.items() for k, v in module.state_dict().items()}
    save_whole(tensors, run.folder / TEXT)


def load_words(run: Run) -> Worded:
    """Return the trained text encoder and naming network."""
    worded, tensors = new_words(run), load_file(run.need(TEXT, "text"))
    for name, module in (("text", worded.text), ("names", worded.names)):
        module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
    return worded


def start_denoiser(
    run: Run, plan: FifthPlan, recipe: DenoiserRecipe, parts: list[CaptionedRange] | None = None
) -> DenoiserTraining:
    """Return the denoiser's training at its first step.

    Args:
        parts: on a GPU, the series with its captions; None makes it.
    """
    worded, reader, latents = load_words(run), load_reader(run, plan), load_latents(run, LATENTS)
    torch.manual_seed(run.seed)
    unet = new_denoiser(plan.shape, plan.version)
    if run.start:
        load_denoiser(unet, run.start)
    series = None
    if on_gpu(run.device):
        parts = parts or caption_drawings(run, plan)
        for module in (worded.text, worded.names):
            module.to(run.device).eval()
        series = encode_series_texts(parts, worded, run.seed, torch.device(run.device), recipe.changed_names)
    unet = unet.to(run.device, memory_format=torch.channels_last)
    return DenoiserTraining(unet, FrozenParts(worded, reader), latents, recipe, run.seed, plan.version, series)


def caption_drawings(run: Run, plan: FifthPlan) -> list[CaptionedRange]:
    """Return the denoiser's pictures with captions, weights and labels, in parts."""
    folder = run.need("tokenizer", "tokenizer")
    return caption_series(folder, MODEL_SEED, plan.drawings, plan.captions, plan.denoiser, plan.version, run.progress)


def make_denoiser(run: Run, plan: FifthPlan) -> None:
    """Train the denoiser; write its best average by figures as a UNet folder, and the figures of all."""
    training = start_denoiser(run, plan, plan.denoiser)
    training.run(keep(run, "denoiser"), run.progress)
    save_best(run, training, plan.denoiser)


def save_best(run: Run, training: DenoiserTraining, recipe: DenoiserRecipe) -> None:
    """Write the best average of a finished training as a UNet folder, and the figures of all."""
    held_out = load_latents(run, HELD_OUT)
    scores = score_averages(training, held_out, range(len(held_out)), HELD_OUT_SEED)
    best = choose_average(scores, recipe)
    if best < len(recipe.averages):
        training.averages.copy_to(training.unet, best)
    record = {"scores": scores, "chosen": scores[best]["average"]}
    write_text(run.folder / SCORES, dump_json(record, indent=1) + "\n")
    training.unet.to("cpu", memory_format=torch.contiguous_format).save_pretrained(run.folder / "unet")


def make_assembly(run: Run, _plan: FifthPlan) -> None:
    """Write all parts as one Stable Diffusion folder, the names' tokens in the token table."""
    worded, vae = load_words(run), load_vae(run).to("cpu")
    bake_names(worded)
    folder = run.need("unet", "denoiser")
    unet = UNet2DConditionModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    write_pipeline(run.folder / "tiny-portraits", worded.tokenizer, vae, worded.text, unet)


def make_second_recogniser(run: Run, plan: FifthPlan) -> None:
    """Train the recogniser that methods may learn with."""
    crops = face_crops(plan.second.people, plan.second.pictures, SECOND_SEED, version=plan.version)
    model = train_second_recogniser(crops, plan.second, run.seed, run.progress, keep(run, "second-recogniser"))
    (run.folder / "judges").mkdir(exist_ok=True)
    save_whole(model.state_dict(), run.folder / "judges" / SECOND_RECOGNISER)


def make_evaluator(name: str, run: Run, plan: FifthPlan) -> None:
    """Train one evaluator on the version's drawings."""
    folder = run.folder / "judges"
    folder.mkdir(exist_ok=True)
    JUDGES[name](folder, run.seed, run.progress, keep(run, name), plan.version)


def make_composer(run: Run, plan: FifthPlan) -> None:
    """Train what FastComposer needs beside the model, whose CLIP it goes on from."""
    model, judges = run.need("tiny-portraits", "assembly"), run.need("judges/clip", CLIP).parent
    backbone = replace(open_backbone(str(model)), judges=judges)
    train_composer(backbone, plan.composer, run.seed, run.progress, run.folder / COMPOSER, keep(run, "composer"))


FIFTH_PARTS: dict[str, Callable[[Run, FifthPlan], None]] = {
    "tokenizer": make_tokenizer,
    "features": make_features,
    "autoencoder": make_autoencoder,
    "latents": make_latents,
    "latent-reader": make_latent_reader,
    "text": make_text,
    "denoiser": make_denoiser,
    "assembly": make_assembly,
    "second-recogniser": make_second_recogniser,
    **{name: partial(make_evaluator, name) for name in JUDGES},
    "composer": make_composer,
}
ALL = "all"
# These can go on from a finished model.
STARTED = ("text", "denoiser", ALL)


def train_part(part: str, run: Run, plan: FifthPlan | None = None) -> None:
    """Train one part of the fifth version, or all in order, into the run's folder; write the times down.

    With `resume`, parts that are finished are loaded from their checkpoints; only recognisers, readers, detector, CLIP
    and composer draw their pictures again first.

    Raises:
        ConfigError: there is no such part, an earlier part is missing, or the part takes no start.
    """
    if part not in (*FIFTH_PARTS, ALL):
        names = ", ".join((*FIFTH_PARTS, ALL))
        raise ConfigError(f"There is no part {part!r}.", f"Choose one of {names}; the first ones in this order.")
    if run.start is not None and part not in STARTED:
        raise ConfigError(f"The part {part!r} takes nothing from a finished model.", "Leave --start out.")
    sizes = plan or choose_plan(run.device)
    if run.start is not None and part == ALL:
        # The denoiser comes late: a model that cannot be its start is refused before hours of other parts.
        load_denoiser(new_denoiser(sizes.shape, sizes.version), run.start)
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in FIFTH_PARTS if part == ALL else (part,):
        timed = replace(run, progress=TimedProgress(run.progress, run.folder, name))
        FIFTH_PARTS[name](timed, sizes)
