"""The two calls that most people need: learn a subject, generate images."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.backbone.open import open_backbone
from sefi.core.config import DEFAULT, Config, GenerateSettings, check_guidance, explain_guidance, require_config
from sefi.core.errors import REMARKS, ConfigError, PhotoError
from sefi.core.progress import Progress, SilentProgress
from sefi.core.prompts import Box, check_crop_options, check_name, check_photo_count, check_prompts, needs_face
from sefi.core.rng import require_seed
from sefi.diffusion.conditioning import check_identities, compare_model
from sefi.diffusion.sampling import GeneratedImage, check_steps, sample_images
from sefi.diffusion.text import check_class_word, describe_long_prompts, describe_unknown_words
from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS
from sefi.identity.file import Identity, check_together
from sefi.methods import get_method
from sefi.methods.base import Method, TrainingOptions
from sefi.photo.augment import PhotoViews, SubjectCrop, convert_to_bytes, crop_middle, find_face_square
from sefi.photo.detect import (
    PHOTOGRAPH_DETECTOR,
    YuNetDetector,
    crop_square,
    find_square_around_box,
    find_square_in_middle,
)
from sefi.photo.read import CLASSIFIER_RESOLUTION, Photo, read_photo, refuse_photograph
from sefi.training.probe import ImageProbe, ProbeEvaluators

LOGGER = logging.getLogger(REMARKS)


PhotoInput = str | Path | Photo | SubjectCrop | Image.Image | NDArray[np.uint8]
"""A photo: a file, one already read, a Pillow image, an RGB array `[height, width, 3]`, or what `crop_photo` gave."""


def learn(  # noqa: PLR0913
    photo: PhotoInput | Sequence[PhotoInput],
    *,
    name: str,
    backbone: Backbone | None = None,
    config: Config = DEFAULT,
    seed: int = 0,
    face: int | None = None,
    box: Box | None = None,
    crop: bool = True,
    detector: str | Path | None = None,
    evaluators: str | Path | None = None,
    allow_photograph: bool = False,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Identity:
    """Learn the subject of one photo, or of several photos of it.

    Args:
        photo: a photo, or a sequence of photos of the same subject. One is enough.
        name: the placeholder's word; letters, digits, - and _.
        backbone: the frozen model; None opens the embedded one.
        config: settings; `PRESETS` has some.
        seed: 0 to 2^62.
        face: which face, from the left, if a single photo shows several; refused where no face is looked for.
        box: what to cut out of a single photo instead: left, top, width and height in its pixels.
        crop: cut the face out, where the class word means a person; False learns the photo's middle square.
        detector: a YuNet ONNX file; None takes the package's own, for drawings or photographs as the model is.
        evaluators: folder of the networks that score images, where `learn.probe_every` is set or a method reads faces:
            `face_detection.onnx`, `face_recognition.onnx`, `clip/`; None takes the model's own.
        allow_photograph: learn a photograph on the embedded model, which was trained on drawings only.
        progress: called at every step.
        checkpoint: file that an unfinished training is saved to and resumed from.

    Raises:
        SefiError: what was wrong with the photo, the name, the settings, the seed or the model.
    """
    check_name(name)
    seed = require_seed(seed)
    check_crop_options(config.learn.class_word, crop=crop, face=face, box=box, detector=detector)
    method = get_method(config.method)
    require_config(config, method.config_type)
    photos = read_photos(photo)
    check_photo_count(len(photos), face=face, box=box)
    if not allow_photograph and (backbone is None or backbone.is_embedded):
        check_photos_are_drawings(photos)
    backbone = backbone or open_backbone()
    own_evaluators = EMBEDDED_EVALUATORS if backbone.is_embedded else None
    folder = Path(evaluators) if evaluators else own_evaluators
    check_class_word(backbone, config.learn.class_word)
    method.check(backbone, config, folder)
    for remark in list_training_remarks(backbone, config):
        LOGGER.warning(remark)
    crops = [crop_photo(one, backbone, config, face, box, crop=crop, detector=detector) for one in photos]
    first, *others = [one.pixels for one in crops]
    views = PhotoViews(first, config.views, tuple(others))
    probe = build_image_probe(method, backbone, first, config, folder) if config.learn.probe_every else None
    options = TrainingOptions(progress or SilentProgress(), checkpoint, probe, folder)
    return method.learn(name, views, backbone, config, seed, options)


def read_photos(photo: PhotoInput | Sequence[PhotoInput]) -> list[Photo | SubjectCrop]:
    """Read one photo or several; what is read already stays as it is.

    Raises:
        PhotoError: one is missing, damaged or of another format, or there is none.
    """
    listed = [photo] if isinstance(photo, (str, Path, Photo, SubjectCrop, Image.Image, np.ndarray)) else photo
    if not listed:
        raise PhotoError("There is no photo to learn from.", "Name at least one.")
    return [one if isinstance(one, (Photo, SubjectCrop)) else read_photo(one) for one in listed]


def check_photos_are_drawings(photos: Sequence[Photo | SubjectCrop]) -> None:
    """Refuse photographs, where the model knows drawings only; crops that were made before are not examined.

    Raises:
        PhotoError: one has the statistics of a photograph.
    """
    for photo in photos:
        if isinstance(photo, Photo):
            # The whole image: in a photograph the detector of drawn faces may find none.
            refuse_photograph(crop_middle(photo, CLASSIFIER_RESOLUTION))


def crop_photo(
    photo: Photo | SubjectCrop,
    backbone: Backbone,
    config: Config = DEFAULT,
    face: int | None = None,
    box: Box | None = None,
    *,
    crop: bool = True,
    detector: str | Path | None = None,
) -> SubjectCrop:
    """Crop the square that is learned out of a photo: the face of a person, otherwise the photo's middle.

    Args:
        photo: the photo, as read; a crop is returned as it is.
        backbone: gives the resolution, and says which detector is used.
        config: the class word says whether the subject has a face; `views.crop_margin` how much is around it.
        face: which face, from the left, if there are several; refused where no face is looked for.
        box: what to cut out instead, made a square; for subjects whose face no detector finds.
        crop: False takes the photo's middle square, face or not.
        detector: a YuNet ONNX file; None takes the one in the package, for drawings or for photographs, as the model
            is; refused as `face` is.

    Raises:
        ConfigError: options contradict each other.
        FaceError: no such face is found, or the detector's file is none.
        PhotoError: the box is not in the photo.
    """
    if isinstance(photo, SubjectCrop):
        return photo
    class_word = config.learn.class_word
    check_crop_options(class_word, crop=crop, face=face, box=box, detector=detector)
    height, width = photo.pixels.shape[-2:]
    remark = None
    if box is not None:
        square = find_square_around_box(box, height, width)
    elif needs_face(class_word, crop=crop):
        finder = open_detector(backbone, detector)
        square, remark = find_face_square(photo, finder, number=face, margin=config.views.crop_margin)
    else:
        square = find_square_in_middle(height, width)
    if remark is not None:
        LOGGER.warning(remark)
    pixels = crop_square(photo, square, backbone.resolution)
    return SubjectCrop(pixels, square, photo.source, () if remark is None else (remark,))


def open_detector(backbone: Backbone, detector: str | Path | None) -> YuNetDetector:
    """Open the face detector that is named, or the one in the package for drawings or photographs, as the model is.

    Raises:
        FaceError: the named file is missing or is none.
    """
    if detector is not None:
        return YuNetDetector(detector)
    return YuNetDetector(EMBEDDED_EVALUATORS / DETECTOR if backbone.is_embedded else PHOTOGRAPH_DETECTOR)


def list_training_remarks(backbone: Backbone, config: Config) -> list[str]:
    """Return what a user should know of the class word and the sentences that are learned with."""
    # A full stop between sentences: words of two of them must not look like one phrase.
    return describe_unknown_words(backbone, [" . ".join(list_training_sentences(config))])


def list_training_sentences(config: Config) -> list[str]:
    """Return the sentences that are learned with, the class word in place of the subject."""
    return [template.replace("{}", f" {config.learn.class_word} ") for template in config.learn.templates]


def list_prompt_remarks(
    backbone: Backbone, prompts: Sequence[str], settings: GenerateSettings, identities: Sequence[Identity] = ()
) -> list[str]:
    """Return what a user should know before generating: unknown words, long prompts, settings without their effect."""
    guidance = explain_guidance(settings)
    remarks = describe_unknown_words(backbone, prompts, settings.negative_prompt)
    class_words = {one.name: one.header.class_word for one in identities}
    vectors = {one.name: one.stage_tokens.shape[2] for one in identities if "tokens" in one.tensors}
    remarks += describe_long_prompts(backbone, [*prompts, settings.negative_prompt], class_words, vectors)
    if identities and (settings.clip_skip or 1) > 1:
        remarks.append(
            f"subjects are learned at clip_skip 1; at {settings.clip_skip} they may be less like their photo"
        )
    if guidance is not None:
        remarks.append(guidance)
    if backbone.embeds_guidance and settings.scheduler != "lcm":
        remarks.append("this is a latent consistency model, made for the sampler lcm and 4 to 8 steps")
    return remarks


def list_identity_remarks(backbone: Backbone, identities: Sequence[Identity]) -> list[str]:
    """Return what a user should know of identities that were learned on another checkpoint than this one.

    Raises:
        IdentityError: one cannot be used on this model, or two have one name.
    """
    check_identities(backbone, identities)
    remarks = [compare_model(backbone, identity) for identity in identities]
    return [remark for remark in remarks if remark is not None]


def build_image_probe(
    method: Method, backbone: Backbone, crop: Tensor, config: Config, folder: Path | None
) -> ImageProbe:
    """Build what scores an identity while it is learned.

    Raises:
        ConfigError: the model has no evaluators and none are named.
    """
    if folder is None:
        raise ConfigError(
            "This model has no evaluators to stop at the best step.",
            "Name a folder of them with --evaluators, or set learn.probe_every=0.",
        )
    apply = partial(method.apply, backbone=backbone.skip_layers(config.generate.clip_skip))
    return ImageProbe(apply, convert_to_bytes(crop), config, ProbeEvaluators.open(folder))


def generate(
    prompts: str | Sequence[str],
    identities: Sequence[Identity] = (),
    *,
    backbone: Backbone | None = None,
    config: Config = DEFAULT,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[GeneratedImage]:
    """Generate `config.generate.count` images of every prompt; image k of a prompt has seed `seed + k`.

    Args:
        prompts: plain words and `<name>` for every identity.
        identities: who the names are.
        backbone: the model that the identities were learned on; None opens the embedded one.
        config: settings; `PRESETS` has some.
        seed: 0 to 2^62.
        progress: called at every step.

    Returns:
        The images in the order of the prompts, each with its `pixels`, prompt, seed and index.

    Raises:
        SefiError: a placeholder without identity or the other way round, an identity of another model, or no seed.
    """
    return list(generate_each(prompts, identities, backbone=backbone, config=config, seed=seed, progress=progress))


def generate_each(
    prompts: str | Sequence[str],
    identities: Sequence[Identity] = (),
    *,
    backbone: Backbone | None = None,
    config: Config = DEFAULT,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[GeneratedImage]:
    """Yield the images of `generate` one at a time, so that they can be saved as they come."""
    seed = require_seed(seed)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    class_words = {i.name: i.header.class_word for i in identities}
    check_prompts(prompts, class_words, config.generate.negative_prompt)
    check_guidance(config.generate)
    check_together(identities)
    # Of one method, which was checked; without identities the settings' own, as it changes the model for plain words.
    method = identities[0].method if identities else config.method
    backbone = backbone or open_backbone()
    check_steps(backbone, config.generate.steps)
    for remark in [
        *list_identity_remarks(backbone, identities),
        *list_prompt_remarks(backbone, prompts, config.generate, identities),
    ]:
        LOGGER.warning(remark)
    count = config.generate.count
    repeated = [p for p in prompts for _ in range(count)]
    seeds = [seed + k for _ in prompts for k in range(count)]
    reading = backbone.skip_layers(config.generate.clip_skip)
    model = get_method(method).apply(identities, reading, config.generate.identity_strength)
    progress = progress or SilentProgress()
    yield from sample_images(model.backbone, model.conditioner, repeated, seeds, config.generate, progress)
