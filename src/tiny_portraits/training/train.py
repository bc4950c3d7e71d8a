"""The embedded model's training: its parts in order, each resumable, and all of them in one call."""
# diffusers annotates its constructors and outputs too narrowly; torch its modules too widely.
# pyright: reportArgumentType=false, reportCallIssue=false

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from sefi.backbone.open import open_backbone
from sefi.core.errors import ConfigError, OutputError
from sefi.core.files import write_text
from sefi.core.text import dump_json
from sefi.evaluation.second_recogniser import SECOND_RECOGNISER
from tiny_portraits.drawing.sampling import MODEL_SEED, draw_numbers
from tiny_portraits.text.text_encoder import (
    EarlierWords,
    TextParts,
    build_text_parts,
    load_earlier_words,
    take_over_words,
    write_names,
)
from tiny_portraits.text.tokenizing import build_tokenizer, list_caption_words
from tiny_portraits.training.autoencoder import ImageSource, Stage, train_autoencoder
from tiny_portraits.training.captioned_series import CaptionedRange, caption_series, encode_series_texts, label_series
from tiny_portraits.training.clip import CLIP
from tiny_portraits.training.composer import build_composer, train_composer
from tiny_portraits.training.denoiser import (
    DenoiserRecipe,
    DenoiserTraining,
    FrozenParts,
    build_denoiser,
    choose_average,
    load_denoiser,
    score_averages,
)
from tiny_portraits.training.drawings import HELD_OUT_SEED, DrawingSeries, StoredCrops, draw_face_crops, draw_series
from tiny_portraits.training.evaluators import EVALUATORS
from tiny_portraits.training.features import FeatureNetwork, train_features
from tiny_portraits.training.latent_reader import LatentReader, read_latents, store_latents, train_latent_reader
from tiny_portraits.training.latents import build_schedule, encode_series, encode_stored, set_scaling
from tiny_portraits.training.networks import clean_configs, save_tensors
from tiny_portraits.training.recognisers import SECOND_SEED, export_second_recogniser, train_second_recogniser
from tiny_portraits.training.runs import Run, TimedProgress, TrainingPlan, choose_plan, get_checkpointing, is_gpu
from tiny_portraits.training.text import train_text

FEATURES, READER = "features.safetensors", "latent-reader.safetensors"
LATENTS, HELD_OUT = "latents.npy", "held-out-latents.npy"
TEXT, SCORES, COMPOSER = "text.safetensors", "denoiser-averages.json", "composer.safetensors"
ALL = "all"
# These can go on from a finished model.
STARTED = ("text", "denoiser", "composer", ALL)
# Patterns of what a part writes beside its checkpoint.
RESULTS = {
    "tokenizer": ("tokenizer",),
    "features": ("features.safetensors",),
    "autoencoder": ("autoencoder-*.training.safetensors", "vae"),
    "latents": ("latents.npy", "held-out-latents.npy"),
    "latent-reader": ("latent-reader.safetensors",),
    "text": ("text.safetensors",),
    "denoiser": ("unet",),
    "assembly": ("tiny-portraits",),
    "composer": ("composer.safetensors",),
}
CHECKPOINT = "{}.training.safetensors"


def make_tokenizer(run: Run, _plan: TrainingPlan) -> None:
    """Write the tokenizer: every word of captions and every name is one token.

    A resumed run keeps its own: another version of the library may number the words otherwise.
    """
    folder, partial_folder = run.folder / "tokenizer", run.folder / "tokenizer.partial"
    if folder.exists() and run.resume:
        return
    build_tokenizer(partial_folder, list_caption_words())
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.replace(folder)


def make_features(run: Run, plan: TrainingPlan) -> None:
    """Train the feature network of the perceptual loss."""
    network = train_features(
        plan.features, run.seed, run.progress, get_checkpointing(run, "features"), device=run.device
    )
    save_tensors(network.state_dict(), run.folder / FEATURES)


def load_features(run: Run) -> FeatureNetwork:
    """Return the trained feature network."""
    network = FeatureNetwork()
    network.load_state_dict(load_file(run.require(FEATURES, "features")))
    return network


def make_autoencoder(run: Run, plan: TrainingPlan) -> None:
    """Train the autoencoder through all its stages."""
    load, source = partial(load_features, run), None
    if is_gpu(run.device):
        series = draw_series(run.folder, MODEL_SEED, plan.stored, plan.version, run.progress)
        source = store_images(series, plan.version.cell, run.device)
    vae = train_autoencoder(
        plan.autoencoder,
        partial(get_checkpointing, run),
        run.seed,
        run.progress,
        features=load,
        device=run.device,
        source=source,
    )
    set_scaling(vae, draw_numbers(range(plan.scaled), MODEL_SEED, plan.version))
    vae.save_pretrained(run.folder / "vae")


def store_images(series: DrawingSeries, cell: int, device: str) -> ImageSource:
    """Return a source of crops from drawings that it keeps on a GPU."""
    images, faces = (torch.from_numpy(np.array(values)).to(device) for values in (series.images, series.faces))

    def make_crops(stage: Stage, _first: int) -> StoredCrops:
        return StoredCrops(images, faces, stage.batch, stage.crop, cell, stage.face_share)

    return make_crops


def load_vae(run: Run) -> AutoencoderKL:
    """Return the trained autoencoder, on the run's device."""
    folder = run.require("vae", "autoencoder")
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return vae.eval().requires_grad_(requires_grad=False).to(run.device)


def make_latents(run: Run, plan: TrainingPlan) -> None:
    """Encode the denoiser's drawings, and those that score it."""
    vae = load_vae(run)
    for name, count, seed in ((LATENTS, plan.drawings, MODEL_SEED), (HELD_OUT, plan.held_out, HELD_OUT_SEED)):
        if not run.resume:
            # Latents of an earlier autoencoder would be read as this one's.
            for old in (name, name.replace(".npy", ".blocks")):
                (run.folder / old).unlink(missing_ok=True)
        if is_gpu(run.device):
            images = draw_series(run.folder, seed, count, plan.version, run.progress).images
            encode_stored(run.folder / name, vae, images, run.progress)
        else:
            encode_series(run.folder / name, vae, count, seed, plan.version, run.progress)


def load_latents(run: Run, name: str) -> np.ndarray:
    """Return encoded drawings, memory-mapped."""
    return np.load(run.require(name, "latents"), mmap_mode="r")


def make_latent_reader(run: Run, plan: TrainingPlan) -> None:
    """Train the reader of latents."""
    latents, checkpointing = load_latents(run, LATENTS), get_checkpointing(run, "latent-reader")
    if is_gpu(run.device):
        labels = label_series(MODEL_SEED, len(latents), plan.version, run.progress)
        source = store_latents(latents, labels, plan.reader, run.device)
    else:
        source = read_latents(latents, plan.reader, plan.version, run.device)
    reader = train_latent_reader(
        source, plan.reader, run.seed, run.progress, checkpointing, version=plan.version, device=run.device
    )
    save_tensors(reader.state_dict(), run.folder / READER)


def load_reader(run: Run, plan: TrainingPlan) -> LatentReader:
    """Return the trained reader of latents."""
    reader = LatentReader(plan.version)
    reader.load_state_dict(load_file(run.require(READER, "latent-reader")))
    return reader


def build_run_text(run: Run) -> TextParts:
    """Return an untrained text encoder and naming network with the run's tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(run.require("tokenizer", "tokenizer"), local_files_only=True)
    return build_text_parts(tokenizer)


def make_text(run: Run, plan: TrainingPlan) -> None:
    """Train text encoder and naming network on sentences; with `--start` on from a finished model."""
    torch.manual_seed(run.seed)
    worded = build_run_text(run)
    earlier: EarlierWords | None = take_over_words(worded, load_earlier_words(run.start)) if run.start else None
    recipe = plan.more_text if run.start else plan.text
    train_text(worded, recipe, run.seed, run.progress, get_checkpointing(run, "text"), earlier, run.device)
    save_words(worded, run.folder)


def save_words(worded: TextParts, folder: Path) -> None:
    """Write a text encoder and its naming network as `load_words` reads them."""
    parts: dict[str, nn.Module] = {"text": worded.text, "names": worded.names}
    tensors = {f"{part}.{k}": v.contiguous() for part, module in parts.items() for k, v in module.state_dict().items()}
    save_tensors(tensors, folder / TEXT)


def load_words(run: Run) -> TextParts:
    """Return the trained text encoder and naming network."""
    worded, tensors = build_run_text(run), load_file(run.require(TEXT, "text"))
    for name, module in (("text", worded.text), ("names", worded.names)):
        module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
    return worded


def start_denoiser(
    run: Run, plan: TrainingPlan, recipe: DenoiserRecipe, parts: list[CaptionedRange] | None = None
) -> DenoiserTraining:
    """Return the denoiser's training at its first step.

    Args:
        parts: on a GPU, the series with its captions; None makes it.
    """
    worded, reader, latents = load_words(run), load_reader(run, plan), load_latents(run, LATENTS)
    torch.manual_seed(run.seed)
    unet = build_denoiser(plan.shape, plan.version)
    if run.start:
        load_denoiser(unet, run.start)
    series = None
    if is_gpu(run.device):
        parts = parts or caption_drawings(run, plan)
        for module in (worded.text, worded.names):
            module.to(run.device).eval()
        series = encode_series_texts(
            parts, worded, run.seed, torch.device(run.device), recipe.changed_names, recipe.scene_share
        )
    unet = unet.to(run.device, memory_format=torch.channels_last)
    return DenoiserTraining(unet, FrozenParts(worded, reader), latents, recipe, run.seed, plan.version, series)


def caption_drawings(run: Run, plan: TrainingPlan) -> list[CaptionedRange]:
    """Return the denoiser's images with captions, weights and labels, in parts."""
    folder = run.require("tokenizer", "tokenizer")
    return caption_series(folder, MODEL_SEED, plan.drawings, plan.captions, plan.denoiser, plan.version, run.progress)


def make_denoiser(run: Run, plan: TrainingPlan) -> None:
    """Train the denoiser; write its best average by figures as a UNet folder, and the figures of all."""
    training = start_denoiser(run, plan, plan.denoiser)
    training.run(get_checkpointing(run, "denoiser"), run.progress)
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


def make_assembly(run: Run, _plan: TrainingPlan) -> None:
    """Write all parts as one Stable Diffusion folder, the names' tokens in the token table."""
    worded, vae = load_words(run), load_vae(run).to("cpu")
    write_names(worded)
    folder = run.require("unet", "denoiser")
    unet = UNet2DConditionModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    write_pipeline(run.folder / "tiny-portraits", worded.tokenizer, vae, worded.text, unet)


def write_pipeline(
    folder: Path, tokenizer: CLIPTokenizer, vae: AutoencoderKL, text: CLIPTextModel, unet: UNet2DConditionModel
) -> None:
    """Write a Stable Diffusion folder in half precision, as stock diffusers opens it."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet.to(memory_format=torch.contiguous_format),
        scheduler=build_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    clean_configs(folder)


def make_second_recogniser(run: Run, plan: TrainingPlan) -> None:
    """Train the recogniser that methods may learn with."""
    crops = draw_face_crops(plan.second.people, plan.second.drawings, SECOND_SEED, version=plan.version)
    model = train_second_recogniser(
        crops, plan.second, run.seed, run.progress, get_checkpointing(run, "second-recogniser")
    )
    (run.folder / "evaluators").mkdir(exist_ok=True)
    export_second_recogniser(model, run.folder / "evaluators" / SECOND_RECOGNISER)


def make_evaluator(name: str, run: Run, plan: TrainingPlan) -> None:
    """Train one evaluator on the version's drawings."""
    folder = run.folder / "evaluators"
    folder.mkdir(exist_ok=True)
    EVALUATORS[name](folder, run.seed, run.progress, get_checkpointing(run, name), plan.version)


def make_composer(run: Run, plan: TrainingPlan) -> None:
    """Train what FastComposer needs beside the model, whose CLIP it goes on from.

    With `--start` it goes on from the weights that lie beside that model, if there are any.
    """
    model, clip = run.require("tiny-portraits", "assembly"), run.require("evaluators/clip", CLIP)
    backbone, checkpointing = open_backbone(str(model)), get_checkpointing(run, "composer")
    finished = run.start and run.start.parent / COMPOSER
    start = finished if finished and finished.is_file() else None
    recipe = plan.more_composer if start else plan.composer
    composer = build_composer(backbone.token_width, run.seed, clip, start)
    train_composer(backbone, composer, recipe, run.seed, run.progress, run.folder / COMPOSER, checkpointing)


PARTS: dict[str, Callable[[Run, TrainingPlan], None]] = {
    "tokenizer": make_tokenizer,
    "features": make_features,
    "autoencoder": make_autoencoder,
    "latents": make_latents,
    "latent-reader": make_latent_reader,
    "text": make_text,
    "denoiser": make_denoiser,
    "assembly": make_assembly,
    "second-recogniser": make_second_recogniser,
    **{name: partial(make_evaluator, name) for name in EVALUATORS},
    "composer": make_composer,
}


def check_untrained(folder: Path, part: str) -> None:
    """Refuse to begin a part again that was trained, or begun, in this folder.

    Args:
        part: its name, or "all".

    Raises:
        OutputError: a checkpoint or a result of the part is there.
    """
    for name in PARTS if part == ALL else (part,):
        existing = next(find_part_files(folder, name), None)
        if existing is not None:
            raise OutputError(
                f"'{existing}' exists: the part {name!r} was trained or begun there.",
                "Go on with --resume, replace it with --overwrite, or choose another --out.",
            )


def find_part_files(folder: Path, part: str) -> Iterator[Path]:
    """Yield the files and folders that are there of a part."""
    for pattern in (CHECKPOINT.format(part), *RESULTS.get(part, ())):
        yield from sorted(folder.glob(pattern))


def train_part(part: str, run: Run, plan: TrainingPlan | None = None) -> None:
    """Train one part of the embedded model, or all in order, into the run's folder; write the times down.

    With `resume`, parts that are finished are loaded from their checkpoints; only recognisers, readers, detector, CLIP
    and composer draw their images again first.

    Raises:
        ConfigError: there is no such part, an earlier part is missing, or the part takes no start.
    """
    if part not in (*PARTS, ALL):
        names = ", ".join((*PARTS, ALL))
        raise ConfigError(f"There is no part {part!r}.", f"Choose one of {names}; the first ones in this order.")
    if run.start is not None and part not in STARTED:
        raise ConfigError(f"The part {part!r} takes nothing from a finished model.", "Leave --start out.")
    sizes = plan or choose_plan(run.device)
    if run.start is not None and part == ALL:
        # The denoiser comes late: a model that cannot be its start is refused before hours of other parts.
        load_denoiser(build_denoiser(sizes.shape, sizes.version), run.start)
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in PARTS if part == ALL else (part,):
        timed = replace(run, progress=TimedProgress(run.progress, run.folder, name))
        PARTS[name](timed, sizes)
