"""Training of the denoiser; a reader of latents adds the error of who and what is drawn."""
# diffusers annotates its constructors and outputs too narrowly; torch its modules too widely.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportOptionalCall=false

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.errors import ConfigError
from sefi.core.progress import Progress
from tiny_portraits.drawing.content import SHIPPED, ImageContent, WorldVersion
from tiny_portraits.drawing.sampling import MODEL_SEED, get_content
from tiny_portraits.text.captions import Caption, say
from tiny_portraits.text.text_encoder import WIDTH, TextParts, draw_name_changes, encode_named, tokenise_captions
from tiny_portraits.text.tokenizing import LENGTH
from tiny_portraits.training.acceleration import SplitLoss, build_adam, choose_autocast, run_in_bfloat16
from tiny_portraits.training.captioned_series import CaptionedSeries
from tiny_portraits.training.latent_reader import LatentLabels, LatentReader, compute_reading_errors, label_contents
from tiny_portraits.training.latents import EMPTY, DiffusionRecipe, build_schedule, compute_face_weights, compute_rate
from tiny_portraits.training.loop import Checkpointing, OpenEndedSetup, run_training
from tiny_portraits.training.networks import Averages

HELD_OUT_BATCH = 32
Scores = dict[str, float]


@dataclass(frozen=True)
class DenoiserShape:
    """Channels at 24 x 24, 12 x 12 and 6 x 6; text is read at the last two, where identity is drawn."""

    widths: tuple[int, int, int] = (64, 128, 208)
    layers: int = 1


@dataclass(frozen=True)
class DenoiserRecipe(DiffusionRecipe):
    """How the denoiser is trained; a run can be prolonged, as its checkpoint does not state the number of steps.

    Attributes:
        focus: weight of the timesteps around `focus_centre` above those of the others; shares of the schedule.
        reading_weight: of the auxiliary loss, the reader's errors on predicted clean latents.
        reading_below: share of the schedule, from its least noisy end, in which the auxiliary loss counts.
        alignment_weight: of the alignment of the middle block's features with the reader's.
        alignment_share: share of the steps with alignment, from the start.
        averages: decays of the averaged weights, `score_averages` says which is best; after N steps all decays above
            1 - 9 / N are alike.
        changed_names: share of the captions whose name tokens have another length and a direction of no name.
        scene_share: share of the captions without their scene whose names carry it.
    """

    steps: int = 12_000
    learning_rate: float = 8e-4
    focus: float = 1.0
    focus_centre: float = 0.6
    focus_width: float = 0.2
    reading_weight: float = 0.02
    reading_below: float = 0.65
    alignment_weight: float = 0.2
    alignment_share: float = 0.4
    averages: tuple[float, ...] = (0.995, 0.998, 0.9995)
    changed_names: float = 0.25
    scene_share: float = 0.75


def build_denoiser(shape: DenoiserShape = DenoiserShape(), version: WorldVersion = SHIPPED) -> UNet2DConditionModel:
    """Return an untrained UNet for the version's latents."""
    unet = UNet2DConditionModel(
        sample_size=version.latent_side,
        in_channels=version.channels,
        out_channels=version.channels,
        layers_per_block=shape.layers,
        block_out_channels=shape.widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    # With these few words plain products are faster than fused attention on a CPU.
    unet.set_attn_processor(AttnProcessor())
    return unet


def draw_timesteps(count: int, recipe: DenoiserRecipe, total: int, stream: torch.Generator) -> Tensor:
    """Return timesteps `[count]`, one from each equal share of the weighted schedule, in random order."""
    place = (torch.arange(total) + 0.5) / total
    density = 1 + recipe.focus * torch.exp(-(((place - recipe.focus_centre) / recipe.focus_width) ** 2) / 2)
    edges = density.cumsum(0) / density.sum()
    shares = (torch.randperm(count, generator=stream) + torch.rand(count, generator=stream)) / count
    return torch.searchsorted(edges, shares).clamp(max=total - 1)


@dataclass(frozen=True)
class DenoiserBatch:
    """Clean latents `[batch, channels, side, side]`, captions, how much each cell counts, and what there is to read."""

    latents: Tensor
    captions: list[Caption]
    weights: Tensor
    labels: LatentLabels


def make_batch(
    latents: np.ndarray, numbers: Sequence[int], seed: int, random: np.random.Generator, recipe: DenoiserRecipe,
    version: WorldVersion,
) -> DenoiserBatch:  # fmt: skip
    """Return numbered images of a seed with fresh captions.

    Args:
        latents: of these images, in this order.
    """
    shown: list[ImageContent] = [get_content(seed, int(i), version) for i in numbers]
    clean = torch.from_numpy(np.array(latents)).float()
    said = [say(content, random, version)[0] for content in shown]
    return DenoiserBatch(
        clean, said, compute_face_weights(shown, clean.shape[-1], recipe), label_contents(shown, version)
    )


class MiddleFeatures:
    """Keep the middle block's output of the last forward pass, inside a `with`."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet, self.features = unet, torch.zeros(0)

    def __enter__(self) -> "MiddleFeatures":
        self.handle = self.unet.mid_block.register_forward_hook(self.keep)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def keep(self, _module: nn.Module, _args: object, output: Tensor) -> None:
        """Keep an output."""
        self.features = output


@dataclass(frozen=True)
class FrozenParts:
    """What the denoiser learns with and does not change.

    Attributes:
        worded: text encoder, naming network and tokenizer.
        reader: reads latents; None trains without the auxiliary losses.
    """

    worded: TextParts
    reader: LatentReader | None


class DenoiserTraining:
    """A run: the UNet, its averages, the projection for the alignment; text encoder and reader stay as they are.

    Args:
        series: weights, labels and texts of all latents; None makes them for the step that needs them.
    """

    def __init__(
        self, unet: UNet2DConditionModel, frozen: FrozenParts, latents: np.ndarray, recipe: DenoiserRecipe, seed: int,
        version: WorldVersion = SHIPPED, series: CaptionedSeries | None = None,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.unet, self.worded, self.reader, self.latents = unet.train(), frozen.worded, frozen.reader, latents
        self.series, self.epoch, self.order = series, -1, np.zeros(0, np.int64)
        self.recipe, self.seed, self.version, self.schedule = recipe, seed, version, build_schedule()
        self.device = unet.device
        self.signal = self.schedule.alphas_cumprod.sqrt().to(self.device)
        self.stored = torch.from_numpy(np.array(latents)).to(self.device) if series is not None else None
        width = self.reader.width if self.reader is not None else 1
        self.projection = nn.Conv2d(unet.config["block_out_channels"][-1], width, 1).to(self.device)
        self.averages = Averages(unet, recipe.averages)
        for fixed in (self.worded.text, self.worded.names, *((self.reader,) if self.reader is not None else ())):
            fixed.to(self.device).eval().requires_grad_(requires_grad=False)
        parameters = [*unet.parameters(), *self.projection.parameters()]
        self.optimiser = build_adam(parameters, recipe.learning_rate)

    def choose(self, step: int) -> np.ndarray:
        """Return the numbers of a step's images; an epoch visits every image once."""
        count, size = len(self.latents), self.recipe.batch
        epoch, place = divmod(step * size, count - count % size)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, np.random.default_rng([self.seed, 7, epoch]).permutation(count)
        return self.order[place : place + size]

    def make_step_batch(self, step: int) -> DenoiserBatch:
        """Return a step's images with new captions."""
        order = self.choose(step)
        random = np.random.default_rng([self.seed, 8, step])
        return make_batch(self.latents[order], order.tolist(), MODEL_SEED, random, self.recipe, self.version)

    @torch.no_grad()
    def encode_captions(self, captions: list[Caption], random: np.random.Generator, stream: torch.Generator) -> Tensor:
        """Return text states `[batch, word, width]`; names get a little noise, so that neighbours look alike."""
        text = tokenise_captions(self.worded.tokenizer, captions, random).to(self.device)
        noise = torch.randn((len(captions), LENGTH, WIDTH), generator=stream).to(self.device)
        recipe = self.recipe
        changes = draw_name_changes(len(captions), recipe.changed_names, stream, recipe.scene_share).to(self.device)
        return encode_named(self.worded, text, noise, changes)

    def get_inputs(self, step: int) -> dict[str, Tensor]:
        """Return the latents, noise, timesteps, text states, weights and labels of a step, on the device."""
        if step:
            self.averages.update(self.unet, step)
        random = np.random.default_rng([self.seed, 9, step])
        stream = torch.Generator().manual_seed(int(random.integers(2**62)))
        t = draw_timesteps(self.recipe.batch, self.recipe, self.schedule.config.num_train_timesteps, stream)
        drops = random.random(self.recipe.batch) < self.recipe.drop_caption
        chosen = self.take_stored(step, random, drops) if self.series else self.make_inputs(step, random, stream, drops)
        aligned = self.reader is not None and step < self.recipe.alignment_share * self.recipe.steps
        weight = torch.tensor(self.recipe.alignment_weight if aligned else 0.0)
        return {**chosen, "t": t.to(self.device), "alignment": weight.to(self.device)}

    def make_inputs(
        self, step: int, random: np.random.Generator, stream: torch.Generator, drops: np.ndarray
    ) -> dict[str, Tensor]:
        """Return a step's images with what there is to learn of them, made for this step."""
        batch = self.make_step_batch(step)
        captions = [EMPTY if drop else c for c, drop in zip(batch.captions, drops, strict=True)]
        noise = torch.randn(batch.latents.shape, generator=stream)
        with choose_autocast(self.device):
            states = self.encode_captions(captions, random, stream)
        inputs = {"latents": batch.latents, "noise": noise, "states": states, "weights": batch.weights}
        return {name: value.to(self.device) for name, value in (inputs | batch.labels.get_tensors()).items()}

    def take_stored(self, step: int, random: np.random.Generator, drops: np.ndarray) -> dict[str, Tensor]:
        """Return a step's images with what there is to learn of them, from the series on the device."""
        series, order = self.series, torch.from_numpy(self.choose(step)).to(self.device)
        which = torch.from_numpy(random.integers(series.states.shape[1], size=len(order))).to(self.device)
        empty = torch.from_numpy(drops).to(self.device)[:, None, None]
        states = torch.where(empty, series.empty, series.states[order, which])
        latents = self.stored[order].float()
        taken = {"latents": latents, "noise": torch.randn_like(latents), "states": states.float()}
        return taken | {"weights": series.weights[order].float()} | series.labels.take(order).get_tensors()

    def compute(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the loss of a step's inputs."""
        with MiddleFeatures(self.unet) as middle:
            prediction = self.predict(inputs["latents"], inputs["noise"], inputs["t"], inputs["states"])
        total = (inputs["weights"] * prediction.errors).mean()
        if self.reader is None:
            return total
        with choose_autocast(self.device):
            total = total + self.recipe.reading_weight * self.read(
                prediction, LatentLabels.select_from(inputs), inputs["t"]
            )
            # A captured step is the same in all steps; on a CPU the alignment is computed while it counts only.
            if self.device.type == "cuda" or bool(inputs["alignment"]):
                total = total + inputs["alignment"] * self.align(middle.features, inputs["latents"])
        return total

    def predict(self, latents: Tensor, noise: Tensor, t: Tensor, states: Tensor) -> "Prediction":
        """Return the squared errors of the velocity and the predicted clean latents; everything is on the device."""
        signal = self.signal[t].reshape(-1, 1, 1, 1)
        rest = (1 - signal**2).sqrt()
        noisy, wanted = signal * latents + rest * noise, signal * noise - rest * latents
        predicted = self.denoise(noisy.contiguous(memory_format=torch.channels_last), t, states)
        return Prediction((predicted - wanted).pow(2), signal * noisy - rest * predicted, signal.flatten())

    def denoise(self, noisy: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """Return the UNet's output in float32; on a GPU all of it is computed in bfloat16."""
        if self.device.type == "cuda":
            return run_in_bfloat16(self.unet, noisy.bfloat16(), t, states.bfloat16()).sample.float()
        with choose_autocast(self.device):
            return self.unet(noisy, t, states).sample.float()

    def read(self, prediction: "Prediction", labels: LatentLabels, t: Tensor) -> Tensor:
        """Return the reader's error on predicted clean latents, weighted by their share of signal."""
        below = t < self.recipe.reading_below * self.schedule.config.num_train_timesteps
        errors = compute_reading_errors(self.reader(prediction.clean, labels.boxes), labels)
        return (errors * below * prediction.signal**2).mean()

    def align(self, middle: Tensor, latents: Tensor) -> Tensor:
        """Return how far the middle block's features point from the reader's, cell by cell: 1 - cosine."""
        with torch.no_grad():
            wanted = self.reader.compute_features(latents).float()
        return 1 - F.cosine_similarity(self.projection(middle).float(), wanted, dim=1).mean()

    def run(self, checkpointing: Checkpointing, progress: Progress) -> None:
        """Train to the recipe's end."""
        modules: dict[str, nn.Module] = {
            "unet": self.unet, "projection": self.projection, "averages": self.averages
        }  # fmt: skip
        recipe, steps = replace(self.recipe, steps=0), self.recipe.steps
        about = (recipe, tuple(self.unet.config["block_out_channels"]), self.reader is not None)
        setup = OpenEndedSetup(
            "denoiser",
            about,
            self.seed,
            steps,
            modules,
            self.optimiser,
            lambda step: compute_rate(step, self.recipe),
            1.0,
        )
        run_training(setup, SplitLoss(self.get_inputs, self.compute), checkpointing, progress)


@dataclass(frozen=True)
class Prediction:
    """Squared errors and clean latents `[batch, channels, side, side]`, and the signal's share `[batch]`."""

    errors: Tensor
    clean: Tensor
    signal: Tensor


def load_denoiser(unet: UNet2DConditionModel, folder: Path) -> None:
    """Take over the denoiser's weights of a finished model.

    Args:
        folder: of the whole model.

    Raises:
        ConfigError: there is no denoiser, or its latent channels or widths differ.
    """
    remedy = "Train without --start, or start from a model of the same version and shape."
    if not (folder / "unet").is_dir():
        raise ConfigError(f"There is no denoiser in '{folder}'.", remedy)
    finished = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True, use_safetensors=True)
    if finished.config["in_channels"] != unet.config["in_channels"]:
        counts = f"{finished.config['in_channels']}, not {unet.config['in_channels']}"
        raise ConfigError(f"The denoiser of '{folder}' has other latent channels: {counts}.", remedy)
    found, wanted = (tuple(one.config["block_out_channels"]) for one in (finished, unet))
    if found != wanted:
        raise ConfigError(f"The denoiser of '{folder}' has other widths: {found}, not {wanted}.", remedy)
    try:
        unet.load_state_dict(finished.float().state_dict())
    except RuntimeError as error:
        raise ConfigError(f"The denoiser of '{folder}' has other layers.", remedy) from error


@torch.no_grad()
def score_weights(training: DenoiserTraining, latents: np.ndarray, numbers: range, seed: int) -> Scores:
    """Return the mean error of the velocity and of the reader over held-out images, always the same noise.

    Args:
        latents: of the numbered images of this seed.
    """
    total = {"velocity": 0.0, "reading": 0.0}
    for start in range(0, len(numbers), HELD_OUT_BATCH):
        chosen = numbers[start : start + HELD_OUT_BATCH]
        random, stream = np.random.default_rng([seed, start]), torch.Generator().manual_seed(start)
        part = latents[start : start + HELD_OUT_BATCH]
        batch = make_batch(part, list(chosen), seed, random, training.recipe, training.version)
        t = draw_timesteps(len(chosen), training.recipe, training.schedule.config.num_train_timesteps, stream)
        with choose_autocast(training.device):
            states = training.encode_captions(batch.captions, random, stream)
            noise = torch.randn(batch.latents.shape, generator=stream).to(training.device)
            t, labels = t.to(training.device), batch.labels.to(training.device)
            prediction = training.predict(batch.latents.to(training.device), noise, t, states)
            total["velocity"] += float(prediction.errors.mean()) * len(chosen) / len(numbers)
            if training.reader is not None:
                total["reading"] += float(training.read(prediction, labels, t)) * len(chosen) / len(numbers)
    return total


def score_averages(training: DenoiserTraining, latents: np.ndarray, numbers: range, seed: int) -> list[Scores]:
    """Return the scores of every average and, last, of the weights themselves; the UNet is as before afterwards."""
    weights = {name: value.detach().clone() for name, value in training.unet.state_dict().items()}
    scores = list[Scores]()
    for number, decay in enumerate(training.recipe.averages):
        training.averages.copy_to(training.unet, number)
        scores.append({"average": decay, **score_weights(training, latents, numbers, seed)})
    training.unet.load_state_dict(weights)
    return [*scores, {"average": 0.0, **score_weights(training, latents, numbers, seed)}]


def choose_average(scores: Sequence[Scores], recipe: DenoiserRecipe) -> int:
    """Return the place of the best scores: the least velocity error plus the weighted error of the reader."""
    return int(np.argmin([s["velocity"] + recipe.reading_weight * s["reading"] for s in scores]))
