"""Generate images with a stock diffusers pipeline: the loop over prompts and seeds, stages and decoding."""
# diffusers annotates optional arguments and parts of its pipelines as required.
# pyright: reportArgumentType=false

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image, new as new_image
from torch import Tensor

from sefi.backbone.bundle import Backbone, Pipeline, TextEncoding, join_batches
from sefi.core import __version__
from sefi.core.config import GenerateSettings
from sefi.core.errors import (
    REMARKS,
    ConfigError,
    GenerationError,
    OutputError,
    check_type,
    is_out_of_memory,
    make_memory_error,
    release_memory,
    shorten_reason,
)
from sefi.core.files import FileKind, write_output
from sefi.core.progress import Progress, SilentProgress
from sefi.core.prompts import Box, find_placeholders, refuse_names
from sefi.core.rng import create_generator
from sefi.diffusion.attention import AttentionRecorder, copy_with_key_value_attention, reuse_projections
from sefi.diffusion.conditioning import Conditioner, IdentityConditioner, pad_texts
from sefi.diffusion.schedulers import create_scheduler
from sefi.diffusion.source_image import (
    NO_SOURCE,
    SourceImages,
    cut_and_enlarge,
    is_repainted,
    make_mask_blender,
    paste_feathered,
    restore_outside_mask,
)
from sefi.photo.detect import Face, FaceDetector, Square, find_square_around
from sefi.provenance.metadata import ImageRecord
from sefi.provenance.save import EncodedImage, encode_image

LOGGER = logging.getLogger(REMARKS)


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A generated image with its prompt and seed.

    Attributes:
        index: place among the images of a call.
        pixels: as they were generated, without the invisible mark, which `save` embeds.
        repaired: squares that were generated again (left, top, width, height in pixels), with `repair_faces`.
        record: what its file says of how it was made.
        flagged: the model's safety checker found it not to be shown: it is black.
    """

    pixels: Image
    prompt: str
    seed: int
    index: int
    repaired: tuple[Box, ...] = ()
    record: ImageRecord | None = None
    flagged: bool = False

    def save(self, path: str | Path, *, overwrite: bool = False, mark: bool = True, names: bool = False) -> None:
        """Write a PNG with its marks, atomically, after they have been read back.

        Args:
            overwrite: replace a PNG that is there; anything else is never replaced.
            mark: False leaves the pixels as they are; the file's words say so.
            names: write the subjects' names in the prompt, where `<subject>` stands otherwise.

        Raises:
            OutputError: something is there, nothing can be written, or the mark cannot be read back.
        """
        check_type(path, (str, Path), "The file", OutputError, "Give its path.")
        write_output(Path(path), FileKind.PNG, self.encode(mark=mark, names=names).write, overwrite=overwrite)

    def encode(self, *, mark: bool = True, names: bool = False) -> EncodedImage:
        """Return the PNG that `save` writes."""
        record = None if self.record is None else replace(self.record, names=names)
        return encode_image(self.pixels, record, mark=mark)

    def _repr_png_(self) -> bytes:
        """Return the image as a notebook shows it, with its marks."""
        return self.encode().content

    def __repr__(self) -> str:
        """Return what it is in one line."""
        width, height = self.pixels.size
        return f"<GeneratedImage {self.prompt!r}: {width} x {height}, seed {self.seed}>"


def make_image_record(
    backbone: Backbone,
    prompt: str,
    seed: int,
    settings: GenerateSettings,
    identities: Sequence[str] = (),
    sources: Mapping[str, object] = MappingProxyType({}),
) -> ImageRecord:
    """Return what the file of an image says: prompt, seed, settings, the model's name and fingerprint, no path.

    Args:
        identities: the SHA-256 of each.
        sources: what is said of images that it was generated from.
    """
    height, width = get_image_size(backbone, settings)
    said: dict[str, object] = {
        "scheduler": settings.scheduler,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "Clip skip": settings.clip_skip,
        "Identity strength": settings.identity_strength if identities else None,
        **sources,
    }
    return ImageRecord(
        prompt,
        seed,
        (width, height),
        settings.negative_prompt,
        said,
        f"{Path(backbone.source).name} {backbone.fingerprint}",
        tuple(identities),
        __version__,
    )


def is_flagged(backbone: Backbone, pixels: Image) -> bool:
    """Return whether the model's own safety checker finds that an image is not to be shown; False where it has none.

    Raises:
        BackboneError: the checker cannot be read.
    """
    checker = backbone.safety_checker
    return checker is not None and checker.find_flagged([pixels], backbone.device)[0]


def blank_flagged_image(backbone: Backbone, image: GeneratedImage) -> GeneratedImage:
    """Return an image, black where the model's own safety checker finds that it is not to be shown.

    Raises:
        BackboneError: the checker cannot be read.
    """
    if not is_flagged(backbone, image.pixels):
        return image
    logging.getLogger(REMARKS).warning(FLAGGED.format(image.prompt, image.seed))
    return replace(image, pixels=new_image("RGB", image.pixels.size), flagged=True)


def describe_safety(backbone: Backbone, *, wanted: bool, flagged: bool = False) -> dict[str, object]:
    """Return what an image's file says of the safety checker: that it was off or flagged the image, else nothing."""
    if backbone.safety_checker is None or (wanted and not flagged):
        return {}
    return {"Safety checker": "flagged" if flagged else "off"}


def finish_image(
    backbone: Backbone,
    image: GeneratedImage,
    settings: GenerateSettings,
    identities: Sequence[str],
    sources: Mapping[str, object] = MappingProxyType({}),
    *,
    use_checker: bool = True,
) -> GeneratedImage:
    """Return an image with what its file says, black where the model's own safety checker flags it.

    Args:
        identities: the SHA-256 of each whom it shows.
        sources: what is said of images that it was generated from.
        use_checker: False leaves a flagged image as it is, and its file says so.

    Raises:
        BackboneError: the checker cannot be read.
    """
    made = blank_flagged_image(backbone, image) if use_checker else image
    said = {**sources, **describe_safety(backbone, wanted=use_checker, flagged=made.flagged)}
    return replace(made, record=make_image_record(backbone, made.prompt, made.seed, settings, identities, said))


FLAGGED = "{!r}, seed {}: the model's safety checker flagged the image, which is black"  # as diffusers does
STRONG_GUIDANCE = 20.0


def decode_images(
    pipeline: Pipeline, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings
) -> list[Image]:
    """Return the images of a batch's scaled latents `[image, channel, h, w]`, as the pipeline itself decodes them.

    Raises:
        GenerationError: a latent or a pixel is not a finite number; names the image, its seed and the likely cause.
    """
    vae: Any = pipeline.vae
    # A processor takes longer for many at once: their tensors are so large that the system clears new memory for each
    # (`python experiments/engine.py autoencoder`).
    at_once = 1 if latents.device.type == "cpu" else len(latents)
    unscaled = (latents.to(vae.dtype) / vae.config.scaling_factor).split(at_once)
    with torch.no_grad():
        pixels = torch.cat([vae.decode(some, return_dict=False)[0] for some in unscaled])
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
    backbone: Backbone,
    settings: GenerateSettings,
    recorder: AttentionRecorder | None = None,
    source: SourceImages = NO_SOURCE,
) -> Pipeline:
    """Build a stock pipeline around the frozen parts; key texts and value texts come as `prompt_embeds`.

    The UNet is a copy that shares the weights: the model itself never has our attention processors, whoever else uses
    it meanwhile. So is the ControlNet.

    Args:
        settings: its sampler and its number of steps.
        recorder: where the attention maps go.
        source: whether generation starts from an image, and which ControlNet takes part.

    Raises:
        ConfigError: more steps than the model has timesteps, or a size that it does not generate.
    """
    check_size(backbone, settings)
    controlnet = source.controlnet
    return backbone.build_pipeline(
        create_scheduler(backbone, settings.scheduler, settings.steps),
        copy_with_key_value_attention(backbone.unet, recorder),
        from_image=bool(source.start),
        controlnet=None if controlnet is None else copy_with_key_value_attention(controlnet),
    )


LARGEST_AREA = 2048 * 2048  # pixels; 4096 x 1024 are as many


def get_image_size(backbone: Backbone, settings: GenerateSettings) -> tuple[int, int]:
    """Return height and width of the images in pixels: the settings', or the trained size."""
    height, width = settings.height, settings.width
    return height or backbone.resolution, width or backbone.resolution


def get_latent_size(backbone: Backbone, settings: GenerateSettings) -> tuple[int, int]:
    """Return height and width of the images' latents in cells."""
    height, width = get_image_size(backbone, settings)
    return height // backbone.latent_factor, width // backbone.latent_factor


def check_size(backbone: Backbone, settings: GenerateSettings) -> None:
    """Refuse a size that the model does not generate.

    Raises:
        ConfigError: a side is no multiple of what the model needs, which names the nearest that is, or the image has
            too many pixels.
    """
    step = backbone.size_step
    for name, side in (("width", settings.width), ("height", settings.height)):
        if side is not None and side % step:
            nearest = max(step, side // step * step)
            near = sorted({nearest, (side // step + 1) * step})
            raise ConfigError(
                f"This model's images have sides of multiples of {step} pixels, and the {name} is {side}.",
                f"Use a {name} of {' or '.join(map(str, near))}.",
            )
    height, width = get_image_size(backbone, settings)
    largest = max(LARGEST_AREA, backbone.resolution**2)
    if height * width > largest:
        raise ConfigError(
            f"{width} x {height} are {height * width / 1e6:.1f} megapixels; at most {largest / 1e6:.1f} are generated.",
            "Make the image smaller, and enlarge it with another program.",
        )


def draw_initial_noise(backbone: Backbone, seeds: Sequence[int], size: tuple[int, int] | None = None) -> Tensor:
    """Draw each image's noise from its own generator: the batch size changes no noise (rounding: one grey level).

    Args:
        size: height and width of a latent; None is the trained size.
    """
    height, width = size or (backbone.latent_size, backbone.latent_size)
    shape = (backbone.latent_channels, height, width)
    noise = torch.stack(
        [torch.randn(shape, generator=create_generator(s, "picture"), dtype=torch.float32) for s in seeds]
    )
    return noise.to(backbone.device, backbone.dtype)


def sample_plain_images(
    backbone: Backbone, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings, progress: Progress
) -> Iterator[GeneratedImage]:
    """Yield the model's own images of prompts without identities, to learn from.

    They are of the trained size, as photos are learned in, whatever size images shall have later; errors and order are
    as of `sample_images`.
    """
    conditioner = IdentityConditioner(backbone.skip_layers(settings.clip_skip), [])
    settings = settings.model_copy(update={"width": None, "height": None})
    return sample_images(backbone, conditioner, prompts, seeds, settings, progress)


def sample_images(
    backbone: Backbone,
    conditioner: Conditioner,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: GenerateSettings,
    progress: Progress,
    source: SourceImages = NO_SOURCE,
) -> Iterator[GeneratedImage]:
    """Yield an image for every prompt and its seed, in order; up to `settings.batch_size` are generated at once.

    A batch ends where a prompt has more or fewer chunks than the one before it: no prompt is lengthened because another
    one is long. Where there is no memory for so many, half as many are from then on. Each has its own noise all the
    same.

    Args:
        source: images to start from or to follow: one for all, or one to start from for each prompt.

    Raises:
        GenerationError: an image is not made of finite numbers, or there is no memory for a single one.
    """
    pipeline = build_pipeline(backbone, settings, source=source)
    model, size = ConditionedModel(backbone, conditioner), settings.batch_size
    chunks = count_read_chunks(conditioner, prompts, get_read_negative(backbone, settings))
    steps, start = len(list_run_timesteps(pipeline, settings, source)), 0
    progress.start(sum(1 for _ in list_batch_ends(chunks, start, size)) * steps, "generating")
    while start < len(prompts):
        end = next(list_batch_ends(chunks, start, size))
        chosen, chosen_seeds = list(prompts[start:end]), seeds[start:end]
        images, reason = list[Image](), ""
        try:
            part = source.select(start, len(chosen))
            images = sample_batch(model, pipeline, chosen, chosen_seeds, settings, progress.advance, part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = shorten_reason(error)
        # Outside of the handler: what the failed try held is free by now.
        if not images:
            size = shrink_batch(backbone, len(chosen), settings, reason)
            progress.start(sum(1 for _ in list_batch_ends(chunks, start, size)) * steps, "generating")
        for i, image in enumerate(images):
            yield GeneratedImage(image, prompts[start + i], seeds[start + i], start + i)
        start += len(images)
    progress.finish()


def get_read_negative(backbone: Backbone, settings: GenerateSettings) -> str:
    """Return the negative prompt as far as the model reads it: one that embeds the guidance scale reads none."""
    return "" if backbone.embeds_guidance else settings.negative_prompt


def count_read_chunks(conditioner: Conditioner, prompts: Sequence[str], negative_prompt: str) -> list[int]:
    """Return for each prompt how many chunks are read with it: its own, or those of a longer negative prompt.

    Raises:
        PromptError: one is too long, or names somebody who is unknown; the negative one names anybody.
    """
    refuse_names(negative_prompt)
    counts = {prompt: conditioner.count_chunks(prompt) for prompt in dict.fromkeys(prompts)}
    avoided = conditioner.count_chunks(negative_prompt)
    return [max(counts[prompt], avoided) for prompt in prompts]


def list_batch_ends(chunks: Sequence[int], start: int, size: int) -> Iterator[int]:
    """Yield where each batch from `start` on ends: of at most `size` prompts, all of equally many chunks.

    >>> list(list_batch_ends([1, 1, 1, 2, 2, 1], 0, 2))
    [2, 3, 5, 6]
    """
    while start < len(chunks):
        most = min(start + size, len(chunks))
        start = next((place for place in range(start + 1, most) if chunks[place] != chunks[start]), most)
        yield start


def shrink_batch(backbone: Backbone, count: int, settings: GenerateSettings, reason: str) -> int:
    """Return how many images are generated at once where there was no memory for `count`.

    Args:
        reason: how a library said so.

    Raises:
        GenerationError: there was none for a single one.
    """
    release_memory(reason)
    if count == 1:
        height, width = get_image_size(backbone, settings)
        problem = f"There is not enough memory for one image of {width} x {height} ({reason})."
        remedy = "Make it smaller with --width and --height, use --dtype bfloat16, or close other programs."
        raise make_memory_error(GenerationError, problem, remedy)
    LOGGER.warning("there is not enough memory for %d images at once: now %d are generated at once", count, count // 2)
    return count // 2


def list_run_timesteps(pipeline: Pipeline, settings: GenerateSettings, source: SourceImages) -> Tensor:
    """List the timesteps that the pipeline will go through; from an image only the last of them, by the strength."""
    pipeline.scheduler.set_timesteps(settings.steps)
    if not source.start:
        return pipeline.scheduler.timesteps
    given: Any = pipeline
    return given.get_timesteps(settings.steps, source.strength, "cpu")[0]


def sample_batch(
    model: ConditionedModel,
    pipeline: Pipeline,
    prompts: list[str],
    seeds: Sequence[int],
    settings: GenerateSettings,
    after_step: Callable[[], None],
    source: SourceImages = NO_SOURCE,
) -> list[Image]:
    """Generate one batch with the pipeline; the context is swapped where the next step's stage differs.

    Args:
        after_step: called after every denoising step, before the context is swapped.
        source: with an image for each prompt, where there are any.

    Raises:
        GenerationError: an image is not made of finite numbers.
    """
    backbone, conditioner = model.backbone, model.conditioner
    # A UNet that takes the guidance scale as an input is called once a step, without the negative text.
    guided = settings.guidance_scale > 1 and not backbone.embeds_guidance
    null = conditioner.encode_negative(len(prompts), get_read_negative(backbone, settings)).to(backbone.dtype)
    first = int(list_run_timesteps(pipeline, settings, source)[0])
    # A new one for each batch: multistep samplers remember the batch before.
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    blend = None if source.mask is None else make_mask_blender(backbone, source, seeds)

    def swap(pipe: Pipeline, step: int, t: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        after_step()
        # Those that are gone through, which are not all of the scheduler's where an image is started from.
        upcoming = pipe.scheduler.timesteps[-pipe.num_timesteps :][step + 1 :]
        if blend is not None:
            state["latents"] = blend(pipe.scheduler, state["latents"], upcoming)
        if len(upcoming) and conditioner.get_context_key(int(upcoming[0])) != conditioner.get_context_key(int(t)):
            context = conditioner.encode_prompts(prompts, int(upcoming[0])).to(backbone.dtype)
            context, _ = pad_texts(conditioner, [context, null])
            state |= list_swapped_inputs(join_batches([null, context]) if guided else context)
        return state

    with torch.no_grad(), reuse_projections(*list_prompt_readers(pipeline)):
        context = conditioner.encode_prompts(prompts, first).to(backbone.dtype)
        context, null = pad_texts(conditioner, [context, null])
        call: Any = pipeline
        result = call(
            **list_image_arguments(backbone, settings, seeds, source),
            **list_text_arguments(context),
            **{f"negative_{name}": value for name, value in list_text_arguments(null).items()},
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            callback_on_step_end=swap,
            callback_on_step_end_tensor_inputs=["latents", *list_swapped_inputs(context)],
            output_type="latent",
        )
    return restore_outside_mask(decode_images(pipeline, result.images, prompts, seeds, settings), source)


def list_prompt_readers(pipeline: Pipeline) -> list[Any]:
    """Return what of a pipeline reads the prompts in every step: the UNet, and the ControlNet if there is one."""
    controlnet = getattr(pipeline, "controlnet", None)
    return [pipeline.unet] if controlnet is None else [pipeline.unet, controlnet]


def list_image_arguments(
    backbone: Backbone, settings: GenerateSettings, seeds: Sequence[int], source: SourceImages
) -> dict[str, Any]:
    """Return noise, size and images as the pipelines take them.

    Deterministic samplers draw nothing from the generators; of the others each image has its own noise, whatever the
    batch is, as it has where an image is encoded and made noisy.
    """
    height, width = get_image_size(backbone, settings)
    arguments: dict[str, Any] = {"generator": [create_generator(seed, "sampler") for seed in seeds]}
    if source.controlnet is not None:
        arguments |= {"controlnet_conditioning_scale": source.control_scale}
        arguments |= {"control_image" if source.start else "image": source.control}
    if source.start:
        arguments |= {"image": list(source.start), "strength": source.strength}
    else:
        arguments["latents"] = draw_initial_noise(backbone, seeds, get_latent_size(backbone, settings))
    if source.controlnet is not None or not source.start:
        arguments |= {"height": height, "width": width}
    return arguments


def list_text_arguments(encoding: TextEncoding) -> dict[str, Tensor]:
    """Return a text encoding as the pipelines take it; what else the family needs they work out themselves."""
    pooled = {} if encoding.pooled is None else {"pooled_prompt_embeds": encoding.pooled}
    return {"prompt_embeds": encoding.states} | pooled


def list_swapped_inputs(encoding: TextEncoding) -> dict[str, Tensor]:
    """Return a text encoding as the pipelines hold it between two steps."""
    pooled = {} if encoding.pooled is None else {"add_text_embeds": encoding.pooled}
    return {"prompt_embeds": encoding.states} | pooled


# ------------------------------------------------------------------ faces

REPAIR_STRENGTH = 0.4
FACE_BORDER = 0.25  # in half the size of a face: over how much two faces' repairs fade into each other
REPAIR_MARGIN = 2.0  # side of what is generated again, times the face's longer side; as the photos that are learned


def repair_faces(
    model: ConditionedModel,
    image: GeneratedImage,
    detector: FaceDetector,
    settings: GenerateSettings,
    given: SourceImages = NO_SOURCE,
) -> GeneratedImage:
    """Generate the faces of an image again, each as an image of the trained size, and paste them back.

    A face whose surroundings are as large as the model's images is left alone: the model has drawn it with all it has.
    The prompt is the image's own, which keeps its style. Where it names an identity only the largest face is generated
    again, as the others would become the identity's too.

    Where squares overlap, one follows the other, the largest face first, each cut out of what the one before left; what
    is nearer to a face that is finished, or that is left alone, is not changed again.

    Args:
        given: what the image was generated from; outside its mask nothing is repaired.

    Returns:
        The image, and in `repaired` the squares that were generated again.
    """
    names = find_placeholders(image.prompt)
    if len(names) > 1:
        return image
    rgb = np.asarray(image.pixels.convert("RGB"))
    faces = sorted(detector(rgb), key=lambda face: -face.width * face.height)
    side = model.backbone.resolution
    height, width = rgb.shape[:2]
    squares = {face: find_square_around(face, height, width, REPAIR_MARGIN) for face in faces}
    chosen = [
        face
        for face in (faces[:1] if len(names) == 1 else faces)
        if squares[face].side < side and squares[face].side <= min(height, width)
        if is_repainted(given.mask, squares[face])
    ]
    if not chosen:
        return image
    pixels, finished = image.pixels, [face for face in faces if face not in chosen]
    for group in group_apart([squares[face] for face in chosen]):
        together = [chosen[number] for number in group]
        made = generate_again(model, replace(image, pixels=pixels), [squares[face] for face in together], settings)
        for face, repaired in zip(together, made, strict=True):
            share = compute_share_of_face(face, squares[face], finished)
            pixels = paste_feathered(pixels, repaired, squares[face], share)
        finished += together
    (pixels,) = restore_outside_mask([pixels], given.select(image.index, 1))
    boxes = tuple((square.left, square.top, square.side, square.side) for square in map(squares.__getitem__, chosen))
    return replace(image, pixels=pixels, repaired=boxes)


def generate_again(
    model: ConditionedModel, image: GeneratedImage, squares: Sequence[Square], settings: GenerateSettings
) -> list[Image]:
    """Generate squares of an image again, each as an image of the trained size."""
    side, count = model.backbone.resolution, len(squares)
    source = SourceImages(
        tuple(cut_and_enlarge(image.pixels, square, side) for square in squares), strength=REPAIR_STRENGTH
    )
    made = sample_images(
        model.backbone,
        model.conditioner,
        [image.prompt] * count,
        [image.seed] * count,
        settings.model_copy(update={"width": None, "height": None}),
        SilentProgress(),
        source,
    )
    return [one.pixels for one in made]


def group_apart(squares: Sequence[Square]) -> list[list[int]]:
    """Group the numbers of squares so that none overlaps another of its group, or one before it in a later group.

    >>> group_apart([Square(0, 0, 4), Square(9, 0, 4), Square(2, 0, 4), Square(4, 1, 4)])
    [[0, 1], [2], [3]]
    """
    rounds: list[int] = []
    for number, square in enumerate(squares):
        rounds.append(max((rounds[k] + 1 for k in range(number) if squares[k].shows_part_of(square)), default=0))
    return [[k for k, of in enumerate(rounds) if of == one] for one in range(max(rounds, default=-1) + 1)]


def compute_share_of_face(face: Face, square: Square, others: Sequence[Face]) -> NDArray[np.float64]:
    """Compute how much of each pixel of a face's square is the face's, `[side, side]`: 0 where another is nearer.

    What is nearer is measured in the size of each face, so that a face's box is its own where no other overlaps it.
    """
    own = measure_distance(face, square)
    others_own = [measure_distance(other, square) for other in others]
    # A face whose own surroundings do not reach this square has no part of it.
    near = [distance for distance in others_own if (distance < REPAIR_MARGIN).any()]
    shares = [np.clip((distance - own) / FACE_BORDER, 0, 1) for distance in near]
    return np.minimum.reduce([np.ones_like(own), *shares])


def measure_distance(face: Face, square: Square) -> NDArray[np.float64]:
    """Measure how far each pixel of a square is from a face's middle, `[side, side]`; 1 at the edges of its box."""
    across = square.left + np.arange(square.side) + 0.5 - (face.left + face.width / 2)
    down = square.top + np.arange(square.side) + 0.5 - (face.top + face.height / 2)
    return np.maximum(abs(across)[None] / (max(face.width, 1.0) / 2), abs(down)[:, None] / (max(face.height, 1.0) / 2))


def check_repair_steps(settings: GenerateSettings) -> None:
    """Refuse so few steps that a repair would change nothing.

    Raises:
        ConfigError: names the fewest that do.
    """
    if int(REPAIR_STRENGTH * settings.steps) < 1:
        raise ConfigError(
            f"Faces are repaired with {REPAIR_STRENGTH:.0%} of the steps, which is less than one of {settings.steps}.",
            f"Use --steps {int(np.ceil(1 / REPAIR_STRENGTH))} or more, or leave --repair-faces out.",
        )


def list_repair_remarks(prompts: Sequence[str]) -> list[str]:
    """List the prompts whose faces are not repaired: which face is whose is not known where there are several names."""
    several = [prompt for prompt in dict.fromkeys(prompts) if len(find_placeholders(prompt)) > 1]
    return [f"faces of {prompt!r} are not repaired: it names several identities" for prompt in several]
