"""Images that generation starts from or follows: read, fitted to the output's size, blended in and pasted back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from diffusers import ControlNetModel
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from sefi.backbone.bundle import Backbone
from sefi.backbone.folder import check_controlnet_fit, read_controlnet
from sefi.core.config import GenerateSettings
from sefi.core.errors import BackboneError, ConfigError, PhotoError, check_type, make_idle_option_error
from sefi.core.rng import create_generator
from sefi.photo.detect import Square
from sefi.photo.read import Photo, convert_to_pixels, read_photo

ImageInput = str | Path | Photo | Image.Image | NDArray[np.uint8]
"""An image: a file, one already read, a Pillow image, or an array `[height, width, 3]` or of grey `[height, width]`."""

GREY_DIMS = 2  # of an array without colours

DEFAULT_STRENGTH = 0.75  # of AUTOMATIC1111 and InvokeAI; diffusers' own is 0.8
LARGEST_CONTROL_SCALE = 2.0
SAME_SHAPE = 0.02  # by how much the proportions of a mask may differ from the image's: both are rounded to pixels


class ImageArguments(TypedDict, total=False):
    """What `generate` takes of images.

    Attributes:
        init_image: start from this image instead of noise; cut in its middle to the output's proportions.
        strength: share of the steps that change it, above 0 and up to 1; 0.75 where it is left out.
        mask: repaint only where this image is white; of the proportions of `init_image`. Grey is a soft edge.
        control: an image that a ControlNet follows (edges, depth, pose ...), as that ControlNet was trained.
        controlnet: its folder in the format of diffusers, or the network itself.
        control_scale: how much it counts, 0 to 2; 1 where it is left out.
        repair_faces: generate faces that are smaller than the model's images again, larger, and paste them back.
        detector: a YuNet ONNX file that finds them; otherwise the package's own.
    """

    init_image: ImageInput | None
    strength: float | None
    mask: ImageInput | None
    control: ImageInput | None
    controlnet: str | Path | ControlNetModel | None
    control_scale: float | None
    repair_faces: bool
    detector: str | Path | None


@dataclass(frozen=True)
class SourceImages:
    """Images that generation starts from or follows, each of the output's size.

    Attributes:
        start: one for all images, or one for each; none where generation starts from noise.
        strength: share of the steps that change it.
        mask: grey; white is repainted, black stays what it was.
        control: what the ControlNet reads.
        controlnet: frozen, on the model's device; has its own attention processors.
        control_scale: how much it counts.
    """

    start: tuple[Image.Image, ...] = ()
    strength: float = DEFAULT_STRENGTH
    mask: Image.Image | None = None
    control: Image.Image | None = None
    controlnet: ControlNetModel | None = None
    control_scale: float = 1.0

    def select(self, start: int, count: int) -> "SourceImages":
        """Return what belongs to `count` images from number `start` on, with an image to start from for each."""
        if len(self.start) == 1:
            return replace(self, start=self.start * count)
        return replace(self, start=self.start[start : start + count])


NO_SOURCE = SourceImages()


# ------------------------------------------------------------------ what a user gives


def check_image_arguments(arguments: ImageArguments, steps: int) -> None:
    """Refuse options that miss another one, or are out of range.

    Raises:
        ConfigError: names the option and what to do.
    """
    given = {name for name, value in arguments.items() if value is not None and value is not False}
    for name, needed in (
        ("strength", "init_image"),
        ("mask", "init_image"),
        ("control", "controlnet"),
        ("controlnet", "control"),
        ("control_scale", "control"),
        ("detector", "repair_faces"),
    ):
        if name in given and needed not in given:
            raise make_idle_option_error(format_option(name), format_option(needed))
    strength = arguments.get("strength")
    if "init_image" in given:
        check_image_strength(DEFAULT_STRENGTH if strength is None else strength, steps)
    scale = arguments.get("control_scale")
    check_type(scale, (Real, type(None)), "The control scale", ConfigError, "Give a number from 0 to 2.")
    if scale is not None and not 0 <= scale <= LARGEST_CONTROL_SCALE:
        raise ConfigError(f"A control scale of {scale:g} is out of range.", "Use 0 to 2; 1 is usual.")


def check_image_strength(strength: float, steps: int) -> None:
    """Refuse a strength that is no share, or leaves no step.

    Raises:
        ConfigError: names the least that works.
    """
    check_type(strength, Real, "The strength", ConfigError, "Give a number above 0 and up to 1.")
    if not 0 <= strength <= 1:
        raise ConfigError(f"A strength of {strength:g} is out of range.", "Use a number above 0 and up to 1.")
    if int(steps * strength) < 1:
        raise ConfigError(
            f"A strength of {strength:g} leaves no step of {steps}: the image would stay as it is.",
            f"Use a strength of at least {np.ceil(1000 / steps) / 1000:g}, or more steps.",
        )


def format_option(name: str) -> str:
    """Format an argument's name as an option of the command line.

    >>> format_option("init_image")
    '--init-image'
    """
    return f"--{name.replace('_', '-')}"


def read_source_images(
    backbone: Backbone, size: tuple[int, int], settings: GenerateSettings, arguments: ImageArguments
) -> SourceImages:
    """Read the images that a user gives and fit them to the output.

    Args:
        size: height and width of the output in pixels.

    Raises:
        ConfigError: options that miss another one or are out of range, or that this model does not support.
        PhotoError: an image cannot be read, or the mask has other proportions than the image or repaints nothing.
        BackboneError: the ControlNet is damaged or of another model.
    """
    check_image_arguments(arguments, settings.steps)
    init, mask, control = (
        None if given is None else read_upright_image(given)
        for given in (arguments.get("init_image"), arguments.get("mask"), arguments.get("control"))
    )
    strength, scale = arguments.get("strength"), arguments.get("control_scale")
    fitted = None
    if init is not None and mask is not None:
        check_mask(mask, init)
        fitted = crop_to_size(mask.convert("L"), size)
        check_repainted_cells(fitted, init, backbone.latent_factor)
    if init is not None and control is not None and backbone.embeds_guidance:
        raise ConfigError(
            "A ControlNet with an image to start from does not work on a model that takes the guidance scale as an "
            "input: diffusers' pipeline does not pass it on.",
            "Leave one of them out, or use the base model of this one.",
        )
    return SourceImages(
        () if init is None else (crop_to_size(init, size),),
        DEFAULT_STRENGTH if strength is None else strength,
        fitted,
        None if control is None else crop_to_size(control, size),
        load_controlnet(arguments.get("controlnet"), backbone),
        1.0 if scale is None else scale,
    )


def load_controlnet(given: str | Path | ControlNetModel | None, backbone: Backbone) -> ControlNetModel | None:
    """Load the ControlNet that is named, or take the one that is given; None where there is none.

    Raises:
        BackboneError: it is neither, is damaged, or was made for another model.
    """
    if given is None:
        return None
    remedy = "Give its folder in the format of diffusers, or a ControlNetModel."
    check_type(given, (str, Path, ControlNetModel), "The ControlNet", BackboneError, remedy)
    if isinstance(given, ControlNetModel):
        check_controlnet_fit(given.config, backbone, "This ControlNet")
        if (given.device, given.dtype) != (backbone.device, backbone.dtype):
            raise BackboneError(
                f"The ControlNet is {given.dtype} on {given.device}, the model {backbone.dtype} on {backbone.device}.",
                "Move it: controlnet.to(backbone.device, backbone.dtype).",
            )
        return given
    return read_controlnet(Path(given), backbone)


def read_upright_image(image: ImageInput) -> Image.Image:
    """Read an image as `read_photo` does: upright, RGB, transparency over white, bounded.

    Raises:
        PhotoError: it cannot be read.
    """
    if isinstance(image, np.ndarray) and image.ndim == GREY_DIMS:
        image = np.repeat(convert_to_grey(image)[..., None], 3, axis=-1)
    photo = image if isinstance(image, Photo) else read_photo(image)
    values = ((photo.pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def convert_to_grey(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert a grey array to bytes: true or false, whole numbers from 0 to 255, or fractions from 0 to 1.

    Raises:
        PhotoError: its values are of another range or kind; nobody says what they mean.
    """
    factor = {"b": 255, "u": 1, "i": 1, "f": 255}.get(array.dtype.kind)
    if factor is None or (array.size and not (array.min() >= 0 and array.max() <= 255 / factor)):  # NaN is neither
        values = "" if factor is None or not array.size else f" from {array.min():g} to {array.max():g}"
        raise PhotoError(
            f"An array of {array.dtype}{values} is no grey image.",
            "Give true and false, whole numbers from 0 to 255, or fractions from 0 to 1.",
        )
    return (array.astype(np.float64) * factor).round().astype(np.uint8)


def crop_to_size(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut the middle of an image to these proportions and resize it (Lanczos) to height and width."""
    height, width = size
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def check_mask(mask: Image.Image, image: Image.Image) -> None:
    """Refuse a mask that does not lie on the image, or that repaints nothing.

    Raises:
        PhotoError: says which.
    """
    proportions = (mask.width / mask.height) / (image.width / image.height)
    if abs(proportions - 1) > SAME_SHAPE:
        raise PhotoError(
            f"The mask has {mask.width} x {mask.height} pixels, and the image {image.width} x {image.height}: they "
            "have other proportions.",
            "Draw the mask on the image itself.",
        )
    if np.asarray(mask.convert("L")).max() < 128:
        raise PhotoError(
            "The mask is black everywhere: nothing would be repainted.",
            "Paint white what shall change; in an array of whole numbers white is 255.",
        )


def check_repainted_cells(mask: Image.Image, image: Image.Image, factor: int) -> None:
    """Refuse a mask that repaints nothing of the output, because its white part is cut away or too small.

    Args:
        mask: of the output's size.
        image: what is repainted, as it was given.
        factor: pixels a latent cell, on each side.

    Raises:
        PhotoError: names the proportions that show all of the image.
    """
    if not make_latent_mask(mask, factor).any():
        raise PhotoError(
            f"In an image of {mask.width} x {mask.height} the mask leaves nothing to repaint: its white part is cut "
            "away, or is too small.",
            f"Name --width and --height in the proportions of the image, {image.width} x {image.height}, or paint at "
            f"least {factor} x {factor} pixels white.",
        )


# ------------------------------------------------------------------ what a mask leaves as it was


def make_mask_blender(
    backbone: Backbone, source: SourceImages, seeds: Sequence[int]
) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """Return what puts the image's latents back outside the mask after a step, as diffusers' inpainting does.

    diffusers' inpainting pipelines are made for four latent channels, and the one of SDXL with a ControlNet keeps the
    pooled text that it began with; the pipelines that start from an image have neither limit. They draw from each
    image's generator in this order: the VAE's posterior, then the noise.

    Args:
        source: has a mask, and an image for each seed.

    Returns:
        A function of the scheduler, the latents `[image, channel, h, w]` and the timesteps that are still to come.
    """
    generators = [create_generator(seed, "sampler") for seed in seeds]
    start = torch.cat(
        [
            backbone.encode_image(convert_to_pixels(image)[None], generator)
            for image, generator in zip(source.start, generators, strict=True)
        ]
    )
    noise = randn_tensor(start.shape, generator=generators, device=backbone.device, dtype=backbone.dtype)
    assert source.mask is not None
    mask = make_latent_mask(source.mask, backbone.latent_factor).to(start)

    def blend(scheduler: Any, latents: Tensor, upcoming: Tensor) -> Tensor:  # noqa: ANN401
        as_noisy = scheduler.add_noise(start, noise, upcoming[:1]) if len(upcoming) else start
        return (1 - mask) * as_noisy + mask * latents

    return blend


def make_latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """Return 1 for each latent cell to repaint and 0 for the others, `[1, 1, h, w]`; light grey is white."""
    white = torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255 >= 0.5).float()[None, None]
    return F.interpolate(white, size=(mask.height // factor, mask.width // factor))


def restore_outside_mask(images: Sequence[Image.Image], source: SourceImages) -> list[Image.Image]:
    """Return images with the pixels of the one they started from where the mask is black, and a mixture where grey.

    The VAE alone changes pixels, so blending the latents does not keep them.
    """
    if source.mask is None:
        return list(images)
    return [Image.composite(image, start, source.mask) for image, start in zip(images, source.start, strict=True)]


def is_repainted(mask: Image.Image | None, square: Square) -> bool:
    """Return whether a mask, where there is one, lets a pixel of a square change."""
    if mask is None:
        return True
    box = (square.left, square.top, square.left + square.side, square.top + square.side)
    return bool(np.asarray(mask.crop(box)).any())


# ------------------------------------------------------------------ a square cut out and pasted back


FEATHER = 0.12  # share of a square's side over which its border fades


def cut_and_enlarge(image: Image.Image, square: Square, side: int) -> Image.Image:
    """Cut a square out of an image and resize it (Lanczos) to so many pixels a side."""
    box = (square.left, square.top, square.left + square.side, square.top + square.side)
    return image.crop(box).resize((side, side), Image.Resampling.LANCZOS)


def paste_feathered(
    image: Image.Image, crop: Image.Image, square: Square, share: NDArray[np.float64] | float = 1.0
) -> Image.Image:
    """Return an image with a crop pasted into a square of it; the crop's border fades into the image.

    Pixels outside the square stay what they were.

    Args:
        share: how much of each pixel may change, `[side, side]` in [0, 1].
    """
    from_border = np.minimum(np.arange(square.side), np.arange(square.side)[::-1])
    ramp = np.clip(from_border / max(1, round(FEATHER * square.side)), 0, 1)
    opacity = Image.fromarray((255 * np.outer(ramp, ramp) * share).round().astype(np.uint8))
    pasted = image.copy()
    resized = crop.resize((square.side, square.side), Image.Resampling.LANCZOS)
    pasted.paste(resized, (square.left, square.top), opacity)
    return pasted
