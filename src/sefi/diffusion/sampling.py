"""Generate images with a stock diffusers pipeline: schedulers, decoding, and the loop over prompts and seeds."""
# diffusers annotates optional arguments and parts of its pipelines as required.
# pyright: reportArgumentType=false

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from sefi.backbone.bundle import Backbone, Pipeline, TextEncoding, join_batches
from sefi.backbone.folder import Spacing, parse_noise_settings
from sefi.core.config import GenerateSettings
from sefi.core.errors import ConfigError, GenerationError
from sefi.core.hints import SCHEDULER_ALIASES, suggest
from sefi.core.progress import Progress
from sefi.core.rng import create_generator
from sefi.diffusion.attention import AttentionRecorder, copy_with_key_value_attention
from sefi.diffusion.conditioning import Conditioner, pad_texts


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A generated image with its prompt and seed.

    Attributes:
        index: place among the images of a call.
    """

    pixels: Image
    prompt: str
    seed: int
    index: int


Device = str | torch.device | None
STAGES_COVERED = 10  # up to so many stages each get a step where steps suffice: ours are 5, ProSpect's 10; no maximum


class ExactTimesteps:
    """Makes a scheduler of diffusers take the timesteps of `compute_sampling_timesteps`; stands before it as a base."""

    lowest_left_out = False
    config: Any

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Prepare so many steps."""
        timesteps = compute_sampling_timesteps(
            num_inference_steps,
            self.config["num_train_timesteps"],
            self.config["timestep_spacing"],
            lowest_left_out=self.lowest_left_out,
        )
        scheduler: Any = super()
        scheduler.set_timesteps(device=device, timesteps=timesteps.tolist())


class DPMScheduler(ExactTimesteps, DPMSolverMultistepScheduler):  # pyright: ignore[reportIncompatibleMethodOverride]
    """DPM-Solver++ at the timesteps of `compute_sampling_timesteps`."""

    lowest_left_out = True


class EulerScheduler(ExactTimesteps, EulerDiscreteScheduler):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Euler's method at the timesteps of `compute_sampling_timesteps`."""


class UnevenDDIMScheduler(DPMScheduler):
    """DDIM whose steps differ in length.

    diffusers' DDIM takes every step to be `T // steps` long, whatever its timesteps are. DPM-Solver++ of first order is
    the same formula (Lu et al. 2022, section 4.1) and reads the length of each step from its timesteps.
    """

    lowest_left_out = False


DISTILLED_STEPS = 50  # of latent consistency models (Luo et al. 2023, section 4.3)


class ConsistencyScheduler(LCMScheduler):
    """The sampler of latent consistency models, whose few steps add new noise; more steps than 50 are trailing ones."""

    def set_timesteps(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, num_inference_steps: int, device: Device = None
    ) -> None:
        """Prepare so many steps: evenly spaced ones of those that the model was distilled at, from T - 1 on."""
        config: Any = self.config
        total = int(config["num_train_timesteps"])
        distilled = min(total, max(num_inference_steps, DISTILLED_STEPS))
        grid = compute_sampling_timesteps(distilled, total, "trailing")
        chosen = grid[np.arange(num_inference_steps) * distilled // num_inference_steps]
        # All timesteps are allowed: those of other T than 1000 are no multiples that diffusers knows.
        super().set_timesteps(device=device, timesteps=chosen.tolist(), original_inference_steps=total)


SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "dpm++": (DPMScheduler, {"algorithm_type": "dpmsolver++"}),
    "euler": (EulerScheduler, {}),
    "lcm": (ConsistencyScheduler, {}),
}
UNEVEN_DDIM: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 1, "final_sigmas_type": "sigma_min"}


def create_scheduler(backbone: Backbone, name: str, steps: int) -> Any:  # noqa: ANN401
    """Return a new scheduler of this name for this model; `set_timesteps(steps)` gives `compute_sampling_timesteps`.

    Those of `lcm` are among the timesteps that such models are distilled at. Of the model's own scheduler it takes the
    noise schedule, what the model predicts and whether it begins at T - 1 (trailing), and nothing else.

    Raises:
        ConfigError: there is no such scheduler, or the model has fewer timesteps than `steps`.
    """
    if name not in SCHEDULERS:
        raise ConfigError(f"There is no scheduler {name!r}.", suggest(name, SCHEDULERS, SCHEDULER_ALIASES, "Choose"))
    check_steps(backbone, steps)
    settings = parse_noise_settings(backbone.scheduler.config)
    kind, own = choose_scheduler_class(name, steps, backbone.num_train_timesteps, settings["timestep_spacing"])
    return kind(**settings, steps_offset=1, **own)


def choose_scheduler_class(name: str, steps: int, total: int, spacing: Spacing) -> tuple[Any, dict[str, Any]]:
    """Return the class of a sampler for so many steps of `total` timesteps, and its own settings."""
    if name == "ddim" and not _is_even(steps, total, spacing):
        return UnevenDDIMScheduler, UNEVEN_DDIM
    return SCHEDULERS[name]


def check_steps(backbone: Backbone, steps: int) -> None:
    """Refuse more denoising steps than the model has timesteps.

    Raises:
        ConfigError: there are more.
    """
    total = backbone.num_train_timesteps
    if steps > total:
        raise ConfigError(
            f"{steps} denoising steps are more than the {total} timesteps of this model.",
            f"Use --steps {total} or fewer.",
        )


def compute_sampling_timesteps(
    steps: int, total: int, spacing: Spacing = "leading", *, lowest_left_out: bool = False
) -> NDArray[np.int64]:
    """Return the timesteps of a sampling run, `[steps]`, falling, each in [0, total).

    The first is at least `total - 1 - total / steps`, and every stage is visited where there are as many steps. Leading
    spacing is Stable Diffusion's: 50 steps of 1000 are 981, 961, ..., 1. diffusers rounds the distance between two
    steps down, which leaves the noisiest timesteps out where `steps` does not divide `total`; there the exact distance
    is taken. One step is at `total - 1`.

    Args:
        steps: from 1 to `total`.
        total: the number of training timesteps T.
        spacing: trailing begins at T - 1, as models with zero terminal SNR need it (Lin et al. 2024).
        lowest_left_out: with leading spacing, divide T into one more interval and leave the cleanest to the last
            step, as diffusers' DPM-Solver++ does.
    """
    if steps == 1:
        return np.array([total - 1])
    if spacing == "trailing":
        ends = np.arange(steps, 0, -1) * total
        return (2 * ends + steps) // (2 * steps) - 1  # rounded to the nearest
    intervals = steps + lowest_left_out
    places = np.arange(intervals - 1, intervals - 1 - steps, -1)
    exact = places * total // intervals
    candidates = (places * (total // intervals) + 1, exact + 1, exact)
    return next((found for found in candidates if _covers(found, total)), exact)


def _covers(timesteps: NDArray[np.int64], total: int) -> bool:
    """Return whether timesteps fall from near T - 1, none twice, through each of up to `STAGES_COVERED` stages."""
    steps, first = len(timesteps), int(timesteps[0])
    near_the_end = (total - 1) * steps - total <= first * steps < total * steps
    stage_counts = range(1, min(steps, STAGES_COVERED) + 1)
    every_stage = all(len(np.unique(count * timesteps // total)) == count for count in stage_counts)
    return near_the_end and every_stage and bool((np.diff(timesteps) < 0).all())


def _is_even(steps: int, total: int, spacing: Spacing) -> bool:
    """Return whether diffusers' DDIM gives these timesteps and takes each step to the next of them."""
    timesteps = compute_sampling_timesteps(steps, total, spacing)
    offset = 1 if spacing == "leading" else total // steps - 1
    return np.array_equal(timesteps[::-1], np.arange(steps) * (total // steps) + offset)


STRONG_GUIDANCE = 20.0


def decode_images(
    pipeline: Pipeline, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings
) -> list[Image]:
    """Return the images of a batch's scaled latents `[image, channel, h, w]`, as the pipeline itself decodes them.

    Raises:
        GenerationError: a latent or a pixel is not a finite number; names the image, its seed and the likely cause.
    """
    vae: Any = pipeline.vae
    with torch.no_grad():
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    # One transfer from the device for the whole batch.
    sampled, decoded = torch.stack([_find_finite(latents), _find_finite(pixels)]).cpu().tolist()
    for number, fine in enumerate(decoded):
        if not (fine and sampled[number]):
            remedy = _suggest_remedy(settings, latents.dtype, decoding=sampled[number])
            raise GenerationError(
                f"The image of {prompts[number]!r} with seed {seeds[number]} is not made of finite numbers"
                f"{': the latent is, but the VAE cannot decode it' if sampled[number] else ''}; it is not saved.",
                remedy,
            )
    return cast(list[Image], pipeline.image_processor.postprocess(pixels, output_type="pil"))


def _find_finite(values: Tensor) -> Tensor:
    """Find the images `[image, ...]` that consist of finite numbers, boolean `[image]`."""
    return torch.isfinite(values).flatten(1).all(dim=1)


def _suggest_remedy(settings: GenerateSettings, dtype: torch.dtype, *, decoding: bool) -> str:
    """Suggest what most likely helps: another dtype, less guidance, other tokens or another VAE."""
    if dtype == torch.float16:
        return "float16 overflows easily, in the VAE above all: use --dtype float32 or bfloat16."
    if decoding:
        return "Use a model whose VAE is whole, such as another copy of this one."
    if settings.guidance_scale > STRONG_GUIDANCE:
        return f"Lower the guidance scale of {settings.guidance_scale:g}; 5 to 10 is usual."
    return "Check the identity's tokens (`sefi inspect` shows their norms): learn it again with a lower learning rate."


@dataclass(frozen=True)
class ConditionedModel:
    """A model and what its cross-attention reads.

    Attributes:
        backbone: the user's own, or a copy that shares its weights and has a method's changes in it.
        conditioner: turns prompts into contexts for it.
    """

    backbone: Backbone
    conditioner: Conditioner


def build_pipeline(
    backbone: Backbone, settings: GenerateSettings, recorder: AttentionRecorder | None = None
) -> Pipeline:
    """Build a stock pipeline around the frozen parts; key texts and value texts come as `prompt_embeds`.

    The UNet is a copy that shares the weights: the model itself never has our attention processors, whoever else uses
    it meanwhile.

    Args:
        settings: its sampler and its number of steps.
        recorder: where the attention maps go.

    Raises:
        ConfigError: more steps than the model has timesteps.
    """
    return backbone.build_pipeline(
        create_scheduler(backbone, settings.scheduler, settings.steps),
        copy_with_key_value_attention(backbone.unet, recorder),
    )


def draw_initial_noise(backbone: Backbone, seeds: Sequence[int]) -> Tensor:
    """Draw each image's noise from its own generator: the batch size changes no noise (rounding: one grey level)."""
    shape = (backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    noise = torch.stack(
        [torch.randn(shape, generator=create_generator(s, "picture"), dtype=torch.float32) for s in seeds]
    )
    return noise.to(backbone.device, backbone.dtype)


def sample_images(
    backbone: Backbone,
    conditioner: Conditioner,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: GenerateSettings,
    progress: Progress,
) -> Iterator[GeneratedImage]:
    """Yield an image for every prompt and its seed, in order; `settings.batch_size` are generated at once."""
    pipeline = build_pipeline(backbone, settings)
    total = -(-len(prompts) // settings.batch_size)
    progress.start(total * settings.steps, "generating")
    for start in range(0, len(prompts), settings.batch_size):
        chosen = slice(start, start + settings.batch_size)
        images = sample_batch(
            backbone, pipeline, conditioner, list(prompts[chosen]), seeds[chosen], settings, progress.advance
        )
        for i, image in enumerate(images):
            yield GeneratedImage(image, prompts[start + i], seeds[start + i], start + i)
    progress.finish()


def sample_batch(
    backbone: Backbone,
    pipeline: Pipeline,
    conditioner: Conditioner,
    prompts: list[str],
    seeds: Sequence[int],
    settings: GenerateSettings,
    after_step: Callable[[], None],
) -> list[Any]:
    """Generate one batch with the pipeline; the context is swapped where the next step's stage differs.

    Args:
        after_step: called after every denoising step, before the context is swapped.

    Raises:
        GenerationError: an image is not made of finite numbers.
    """
    # A UNet that takes the guidance scale as an input is called once a step, without the negative text.
    guided = settings.guidance_scale > 1 and not backbone.embeds_guidance
    null = conditioner.encode_negative(len(prompts), settings.negative_prompt).to(backbone.dtype)
    pipeline.scheduler.set_timesteps(settings.steps)
    first = int(pipeline.scheduler.timesteps[0])
    # A new one for each batch: multistep samplers remember the batch before.
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)

    def swap(pipe: Pipeline, step: int, t: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        after_step()
        upcoming = pipe.scheduler.timesteps[step + 1 :]
        if len(upcoming) and conditioner.get_context_key(int(upcoming[0])) != conditioner.get_context_key(int(t)):
            context = conditioner.encode_prompts(prompts, int(upcoming[0])).to(backbone.dtype)
            context, _ = pad_texts(conditioner, [context, null])
            state |= list_swapped_inputs(join_batches([null, context]) if guided else context)
        return state

    # Deterministic samplers draw nothing; of the others each image has its own noise, whatever the batch is.
    generators = [create_generator(seed, "sampler") for seed in seeds]
    random = {"generator": generators} if isinstance(pipeline.scheduler, LCMScheduler) else {}
    with torch.no_grad():
        context = conditioner.encode_prompts(prompts, first).to(backbone.dtype)
        context, null = pad_texts(conditioner, [context, null])
        call: Any = pipeline
        result = call(
            **random,
            **list_text_arguments(context),
            **{f"negative_{name}": value for name, value in list_text_arguments(null).items()},
            latents=draw_initial_noise(backbone, seeds),
            height=backbone.resolution,
            width=backbone.resolution,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            callback_on_step_end=swap,
            callback_on_step_end_tensor_inputs=list(list_swapped_inputs(context)),
            output_type="latent",
        )
    return decode_images(pipeline, result.images, prompts, seeds, settings)


def list_text_arguments(encoding: TextEncoding) -> dict[str, Tensor]:
    """Return a text encoding as the pipelines take it; what else the family needs they work out themselves."""
    pooled = {} if encoding.pooled is None else {"pooled_prompt_embeds": encoding.pooled}
    return {"prompt_embeds": encoding.states} | pooled


def list_swapped_inputs(encoding: TextEncoding) -> dict[str, Tensor]:
    """Return a text encoding as the pipelines hold it between two steps."""
    pooled = {} if encoding.pooled is None else {"add_text_embeds": encoding.pooled}
    return {"prompt_embeds": encoding.states} | pooled
