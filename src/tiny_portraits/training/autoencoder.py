"""Training of the autoencoder, f = 8: small crops, large crops, whole drawings, the decoder alone."""
# diffusers annotates its constructors and outputs too narrowly; torch its modules too widely.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from sefi.core.progress import Progress
from tiny_portraits.drawing.content import SHIPPED, ImageContent, WorldVersion
from tiny_portraits.drawing.image import UNITS, draw, locate_heads
from tiny_portraits.drawing.sampling import MODEL_SEED, get_content
from tiny_portraits.training.acceleration import SplitLoss, build_adam, choose_autocast, run_in_bfloat16
from tiny_portraits.training.drawings import convert_to_tensor
from tiny_portraits.training.loop import Checkpointing, OpenEndedSetup, TrainingSetup, run_training
from tiny_portraits.training.networks import Averages

# Features of an image, coarse to fine, for the perceptual loss.
Features = Callable[[Tensor], Sequence[Tensor]]
# Images of the model's series that belong to one stage: prolonging a stage changes no other.
SERIES = 1_000_000


@dataclass(frozen=True)
class AutoencoderShape:
    """Size of the network; every normalisation group has four channels or more."""

    widths: tuple[int, ...] = (32, 64, 128, 160)
    groups: int = 4
    layers: int = 1


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Attributes:
        name: also the name of its checkpoint.
        crop: side of the crops in pixels, a multiple of a latent cell; 0 takes whole drawings.
        falling: the learning rate falls to 2 % along a cosine; else it is constant and the stage can be prolonged.
        face_share: share of the crops that lie on a face.
        decoder_only: the encoder stays as it is, so latents that exist stay right.
        adversarial_weight: of the patch discriminator, which first learns alone for a tenth of the steps.
        average: decay of the averaged weights that the stage returns; 0 returns the last weights.
        drift_weight: of the squared distance of the scaled latents from those at the stage's start, so that a denoiser
            that was trained on them can go on.
    """

    name: str
    steps: int
    batch: int
    crop: int
    learning_rate: float
    falling: bool = True
    warm: int = 100
    face_share: float = 0.5
    edge_weight: float = 0.5
    kl_weight: float = 1e-6
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    decoder_only: bool = False
    average: float = 0.0
    drift_weight: float = 0.0

    @property
    def perceptual(self) -> bool:
        """Whether the stage needs the feature network."""
        return self.perceptual_weight > 0


STAGES = (
    Stage("small-crops", 2500, 12, 48, 1.5e-3, falling=False, warm=200),
    Stage("crops", 20_000, 12, 96, 1e-3, falling=False),
    Stage("whole", 3000, 4, 0, 6e-4, perceptual_weight=0.2, average=0.998),
    Stage(
        "sharpening", 4000, 12, 96, 4e-4, perceptual_weight=0.3, adversarial_weight=0.02, decoder_only=True,
        average=0.998,
    ),
    Stage("decoder", 800, 4, 0, 1e-4, perceptual_weight=0.3, decoder_only=True, average=0.99),
)  # fmt: skip


def build_autoencoder(shape: AutoencoderShape = AutoencoderShape(), version: WorldVersion = SHIPPED) -> AutoencoderKL:
    """Return an untrained autoencoder; its posterior starts narrow, with a log-variance of about -6."""
    levels = len(shape.widths)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=version.channels,
        sample_size=version.side,
        norm_num_groups=shape.groups,
        layers_per_block=shape.layers,
        block_out_channels=shape.widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        vae.quant_conv.bias[version.channels :] = -6.0
        vae.quant_conv.weight[version.channels :] *= 0.1
    return vae


class PatchDiscriminator(nn.Module):
    """Score patches of 22 px of images `[batch, 3, height, width]`: `[batch, 1, height / 8, width / 8]`."""

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 96)) -> None:
        super().__init__()
        first, second, third = widths
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(first, second, 4, 2, 1, bias=False),
            nn.GroupNorm(4, second),
            nn.LeakyReLU(0.2),
            nn.Conv2d(second, third, 4, 2, 1, bias=False),
            nn.GroupNorm(4, third),
            nn.LeakyReLU(0.2),
            nn.Conv2d(third, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores; higher means more like a drawing."""
        return self.layers(images)


class Reconstruction(nn.Module):
    """Encode, add noise and decode in one call, so that both halves can be given other weights for it."""

    def __init__(self, vae: AutoencoderKL, *, decoder_only: bool) -> None:
        super().__init__()
        self.vae, self.decoder_only = vae, decoder_only

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction, and mean and logarithm of the variance of the latents, in float32."""
        with torch.set_grad_enabled(not self.decoder_only):
            posterior = self.vae.encode(x).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        y = self.vae.decode((mean + deviation * noise).to(x.dtype)).sample.float()
        return y, mean, posterior.logvar.float()


def run_reconstruction(
    vae: AutoencoderKL, x: Tensor, noise: Tensor, *, decoder_only: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `Reconstruction` does; on a GPU all of it is computed in bfloat16."""
    network = Reconstruction(vae, decoder_only=decoder_only)
    if x.device.type == "cuda":
        return run_in_bfloat16(network, x.bfloat16(), noise)
    return network(x, noise)


def compute_reconstruction_loss(
    vae: AutoencoderKL, x: Tensor, stage: Stage, noise: Tensor, begun: AutoencoderKL | None = None
) -> tuple[Tensor, Tensor]:
    """Return the absolute error of colours and edges with a weak KL term, and the reconstruction.

    Args:
        begun: the network at the stage's start, whose latents the stage's stay near; None lets them drift.
    """
    y, mean, logvar = run_reconstruction(vae, x, noise, decoder_only=stage.decoder_only)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
    loss = (y - x).abs().mean() + stage.edge_weight * (compute_edges(y) - compute_edges(x)).abs().mean()
    if begun is not None:
        loss = loss + stage.drift_weight * compute_drift(begun, x, mean)
    return loss + stage.kl_weight * kl, y


def compute_drift(begun: AutoencoderKL, x: Tensor, mean: Tensor) -> Tensor:
    """Return the mean squared distance of latents from those of another network, both scaled by its factor."""
    with torch.no_grad():
        wanted = begun.encode(x.to(begun.dtype)).latent_dist.mean.float()
    return ((mean - wanted) * begun.config.scaling_factor).pow(2).mean()


def compute_edges(x: Tensor) -> Tensor:
    """Return horizontal and vertical differences, for a loss that keeps eyes and mouths sharp."""
    return torch.cat([(x[..., 1:, :-1] - x[..., :-1, :-1]), (x[..., :-1, 1:] - x[..., :-1, :-1])], dim=1)


def compute_perceptual_loss(features: Features, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean distance of unit feature vectors, averaged over the levels (as LPIPS without its weights)."""
    with torch.no_grad():
        wanted = [F.normalize(level.float(), dim=1) for level in features(x)]
    reconstructed = [F.normalize(level.float(), dim=1) for level in features(y)]
    return torch.stack([(a - b).pow(2).sum(1).mean() for a, b in zip(reconstructed, wanted, strict=True)]).mean()


def compute_adversarial_loss(critic: PatchDiscriminator, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
    """Return the hinge loss of the discriminator plus the decoder's weighted loss; their gradients stay apart.

    One optimiser moves both, so that one checkpoint holds the state of both.
    """
    learns = F.relu(1 - critic(x)).mean() + F.relu(1 + critic(y.detach())).mean()
    fixed = {name: value.detach() for name, value in critic.named_parameters()}
    return learns - weight * functional_call(critic, fixed, (y,)).mean()


def compute_adversarial_share(stage: Stage, step: int) -> float:
    """Return the discriminator's weight at a step: 0 for a tenth of the steps, full after a fifth."""
    start = stage.steps / 10
    return stage.adversarial_weight * min(1.0, max(0.0, (step - start) / start))


def crop_corner(
    shown: ImageContent, stage: Stage, version: WorldVersion, random: np.random.Generator
) -> tuple[int, int]:
    """Return top and left of a crop, around the first face or anywhere, on the border of a latent cell.

    The blocks of pixel art lie on the cells, in whole drawings and so in crops.
    """
    cell, room = version.cell, (version.side - stage.crop) // version.cell
    if random.random() < stage.face_share:
        x, y, _, landmarks = locate_heads(shown)[0]
        middle = np.array([y, x]) if stage.crop * 2 >= version.side else landmarks[int(random.integers(5)), ::-1]
        near = middle * version.side / UNITS - stage.crop / 2 + random.uniform(-2 * cell, 2 * cell, 2)
        top, left = np.clip((near / cell).round(), 0, room).astype(int) * cell
        return int(top), int(left)
    top, left = random.integers(0, room + 1, size=2) * cell
    return int(top), int(left)


def draw_crops(stage: Stage, version: WorldVersion, first: int, random: np.random.Generator) -> Tensor:
    """Return the drawings of one step, `[batch, 3, crop, crop]` in [-1, 1]; no drawing is seen twice.

    Args:
        first: number of the step's first image in the model's series.
    """
    crops = list[np.ndarray]()
    for index in range(first, first + stage.batch):
        shown = get_content(MODEL_SEED, index, version)
        image = draw(shown, version.side)
        if stage.crop:
            top, left = crop_corner(shown, stage, version, random)
            image = image[top : top + stage.crop, left : left + stage.crop]
        crops.append(image)
    return convert_to_tensor(np.stack(crops))


# A stage and the number of its first image in the model's series to what returns the images of a step,
# `[batch, 3, side, side]` in [-1, 1].
ImageSource = Callable[[Stage, int], Callable[[int], Tensor]]


def draw_for_steps(seed: int, version: WorldVersion) -> ImageSource:
    """Return a source whose images are drawn for the step that needs them."""

    def make_stage_images(stage: Stage, first: int) -> Callable[[int], Tensor]:
        def draw_step(step: int) -> Tensor:
            random = np.random.default_rng([seed, 31, first, step])
            return draw_crops(stage, version, first + step * stage.batch, random)

        return draw_step

    return make_stage_images


class StageTraining:
    """One stage: the network in place, its optimiser and the loss of a step.

    Args:
        first: number of the stage's first image in the model's series.
        features: the feature network, where the stage has a perceptual term.
        source: the stage's images; None draws them.
    """

    def __init__(
        self, vae: AutoencoderKL, stage: Stage, first: int, seed: int, version: WorldVersion,
        features: Features | None, source: ImageSource | None = None,
    ) -> None:  # fmt: skip
        # The discriminator's first weights must not hang on whether the stage before was trained or loaded.
        torch.manual_seed(int(np.random.default_rng([seed, 33, first]).integers(2**62)))
        self.vae, self.stage, self.seed, self.version = vae.train(), stage, seed, version
        self.images = (source or draw_for_steps(seed, version))(stage, first)
        self.features = features if stage.perceptual else None
        self.critic = PatchDiscriminator().to(vae.device) if stage.adversarial_weight else None
        self.averages = Averages(vae, (stage.average,)) if stage.average else None
        self.begun = copy_frozen(vae) if stage.drift_weight else None
        learning = [vae.decoder, vae.post_quant_conv] if stage.decoder_only else [vae]
        learning += [self.critic] if self.critic is not None else []
        parameters = [p for module in learning for p in module.parameters()]
        self.optimiser = build_adam(parameters, stage.learning_rate, weight_decay=1e-4)

    def make_inputs(self, step: int) -> dict[str, Tensor]:
        """Return the images and the noise of a step, which hang on the step alone, and the discriminator's weight."""
        if self.averages is not None:
            self.averages.update(self.vae, step)
        device, cell = self.vae.device, self.version.cell
        x = self.images(step).to(device, memory_format=torch.channels_last)
        shape = (len(x), self.version.channels, x.shape[2] // cell, x.shape[3] // cell)
        noise = torch.randn(shape, device=device)
        return {"x": x, "noise": noise, "share": torch.tensor(compute_adversarial_share(self.stage, step)).to(device)}

    def compute(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the loss."""
        x = inputs["x"]
        with choose_autocast(x.device):
            loss, y = compute_reconstruction_loss(self.vae, x, self.stage, inputs["noise"], self.begun)
            if self.features is not None:
                loss = loss + self.stage.perceptual_weight * compute_perceptual_loss(self.compute_features, x, y)
            if self.critic is not None:
                loss = loss + compute_adversarial_loss(self.critic, x, y, inputs["share"])
        return loss

    def compute_features(self, images: Tensor) -> Sequence[Tensor]:
        """Return the feature network's features; on a GPU it computes in bfloat16."""
        assert self.features is not None
        if images.device.type == "cuda" and isinstance(self.features, nn.Module):
            return run_in_bfloat16(self.features, images.bfloat16())
        return self.features(images)

    def make_setup(self) -> TrainingSetup:
        """Return what the common training loop needs."""
        stage, label = self.stage, f"autoencoder, {self.stage.name}"
        parts = {"vae": self.vae, "critic": self.critic, "averages": self.averages, "begun": self.begun}
        modules: dict[str, nn.Module] = {name: module for name, module in parts.items() if module is not None}
        if stage.falling:
            rate = partial(compute_falling_rate, steps=stage.steps, top=stage.learning_rate, warm=stage.warm)
            return TrainingSetup(label, stage, self.seed, stage.steps, modules, self.optimiser, rate, clip=1.0)
        rate, recipe = partial(compute_constant_rate, stage), replace(stage, steps=0)
        return OpenEndedSetup(label, recipe, self.seed, stage.steps, modules, self.optimiser, rate, clip=1.0)

    def run(self, checkpointing: Checkpointing, progress: Progress) -> None:
        """Train to the stage's end; the averaged weights, if there are any, become the network's."""
        run_training(self.make_setup(), SplitLoss(self.make_inputs, self.compute), checkpointing, progress)
        if self.averages is not None:
            self.averages.copy_to(self.vae, 0)
        self.vae.eval()


def copy_frozen(vae: AutoencoderKL) -> AutoencoderKL:
    """Return a copy that does not learn; on a GPU in bfloat16, as the original computes there."""
    copied = copy.deepcopy(vae).eval().requires_grad_(requires_grad=False)
    return copied.bfloat16() if copied.device.type == "cuda" else copied


def compute_falling_rate(step: int, steps: int, top: float, warm: int = 100) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine to 2 % of the top."""
    if step < warm:
        return top * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return top * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def compute_constant_rate(stage: Stage, step: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then constant."""
    return stage.learning_rate * min(1.0, (step + 1) / stage.warm)


@dataclass(frozen=True)
class AutoencoderPlan:
    """What is trained, and in which stages."""

    stages: tuple[Stage, ...] = STAGES
    shape: AutoencoderShape = AutoencoderShape()
    version: WorldVersion = SHIPPED


def train_autoencoder(
    plan: AutoencoderPlan,
    keep: Callable[[str], Checkpointing],
    seed: int,
    progress: Progress,
    *,
    features: Callable[[], nn.Module],
    device: str = "cpu",
    source: ImageSource | None = None,
) -> AutoencoderKL:
    """Return the autoencoder after all stages; each has its checkpoint.

    Args:
        keep: returns where the checkpoint of a part with this name lies.
        features: returns the trained feature network; called before the first stage that needs it.
        source: the images; None draws them step by step.
    """
    torch.manual_seed(seed)
    vae = build_autoencoder(plan.shape, plan.version).to(device, memory_format=torch.channels_last)
    network = None
    for number, stage in enumerate(plan.stages):
        if stage.perceptual and network is None:
            network = features().to(device).eval().requires_grad_(requires_grad=False)
        checkpointing = keep(f"autoencoder-{stage.name}")
        StageTraining(vae, stage, number * SERIES, seed, plan.version, network, source).run(checkpointing, progress)
    return vae.eval().to("cpu")
