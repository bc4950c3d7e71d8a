"""The two calls that most people need: learn a subject, generate images."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Unpack, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sefi.backbone.bundle import Backbone
from sefi.backbone.kinds import EMBEDDED
from sefi.backbone.open import check_source, open_backbone
from sefi.core.config import (
    DEFAULT,
    AnyConfig,
    Config,
    GenerateSettings,
    check_guidance,
    choose_start,
    dump_config,
    explain_guidance,
    parse_config,
    require_config,
)
from sefi.core.errors import (
    REMARKS,
    BackboneError,
    ConfigError,
    FaceError,
    IdentityError,
    PhotoError,
    PromptError,
    check_type,
)
from sefi.core.progress import Progress, choose_progress
from sefi.core.prompts import (
    Box,
    check_crop_options,
    check_name,
    check_photo_count,
    check_prompts,
    find_placeholders,
    needs_face,
)
from sefi.core.rng import LARGEST_SEED, require_seed
from sefi.core.text import dump_json, parse_memory
from sefi.diffusion.conditioning import apply_text_settings, count_vectors, list_identity_remarks
from sefi.diffusion.sampling import (
    ConditionedModel,
    GeneratedImage,
    check_repair_steps,
    check_size,
    finish_image,
    get_image_size,
    list_repair_remarks,
    repair_faces,
    sample_images,
)
from sefi.diffusion.schedulers import check_steps
from sefi.diffusion.source_image import DEFAULT_STRENGTH, ImageArguments, check_image_arguments, read_source_images
from sefi.diffusion.text import check_class_word, describe_long_prompts, describe_unknown_words
from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS
from sefi.hosts.embedding_files import read_embedding
from sefi.identity.file import (
    Identity,
    add_record,
    check_together,
    compute_identity_digest,
    compute_tokens_digest,
    make_photo_salt,
)
from sefi.methods import get_method, get_preset, is_of_tokens
from sefi.methods.base import (
    Method,
    TrainingOptions,
    check_face_settings,
    check_method,
    check_method_settings,
    check_training_options,
    create_header,
    list_idle_settings,
)
from sefi.methods.name_encoder import can_read_tokens
from sefi.photo.augment import (
    CropFace,
    PhotoViews,
    SubjectCrop,
    compute_photo_digest,
    convert_to_bytes,
    crop_middle,
    find_face_square,
    find_subject_face,
    locate_box_in_square,
    locate_in_square,
)
from sefi.photo.detect import (
    PHOTOGRAPH_DETECTOR,
    YuNetDetector,
    check_box,
    crop_square,
    describe_small_face,
    find_square_around_box,
    find_square_in_middle,
)
from sefi.photo.read import CLASSIFIER_RESOLUTION, Photo, read_photo, refuse_drawing, refuse_photograph
from sefi.provenance.consent import Consent, check_consents
from sefi.provenance.run_record import (
    CropRecord,
    InitRecord,
    ModelRecord,
    RunRecord,
    hash_input_files,
    hash_with_salt,
    shorten_source,
)
from sefi.training.finetuning import ClassImages
from sefi.training.probe import ImageProbe, ProbeEvaluators

LOGGER = logging.getLogger(REMARKS)


PhotoInput = str | Path | Photo | SubjectCrop | Image.Image | NDArray[np.uint8]
"""A photo: a file, one already read, a Pillow image, an RGB array `[height, width, 3]`, or what `crop_photo` gave."""


def learn(  # noqa: PLR0913
    photo: PhotoInput | Sequence[PhotoInput],
    *,
    name: str,
    backbone: Backbone | str | None = None,
    config: Config = DEFAULT,
    seed: int = 0,
    face: int | None = None,
    box: Box | None = None,
    crop: bool = True,
    detector: str | Path | None = None,
    evaluators: str | Path | None = None,
    any_style: bool = False,
    init: Identity | None = None,
    consent: Consent | None = None,
    progress: Progress | bool | None = None,
    checkpoint: str | Path | None = None,
    memory: int | str | None = None,
    class_images: ClassImages | None = None,
) -> Identity:
    """Learn the subject of one photo, or of several photos of it.

    Args:
        photo: a photo, or a sequence of photos of the same subject. One is enough.
        name: the placeholder's word; letters, digits, - and _.
        backbone: the frozen model, or what `open_backbone` opens; None opens the embedded one.
        config: settings; `PRESETS` has some.
        seed: 0 to 2^62.
        face: which face, from the left, if a single photo shows several; refused where no face is looked for.
        box: what to cut out of a single photo instead: left, top, width and height in its pixels, upright and
            as large as it is stored.
        crop: cut the face out, where the class word means a person; False learns the photo's middle square.
        detector: a YuNet ONNX file; None takes the package's own, for drawings or photographs as the model is.
        evaluators: folder of the networks that score images, where `learn.probe_every` is set or a method reads faces:
            `face_detection.onnx`, `face_recognition.onnx`, `clip/`; None takes the model's own.
        any_style: learn a photograph on the embedded model, which knows drawings only, or a drawing on another model.
        init: an identity whose tokens are where learning starts, instead of the class word: to learn it for longer, or
            one that was imported. The tokens of a single stage start every stage. The optimiser's state does not go on.
        consent: who allows it, for what, until when; the identity holds it. None states nothing, which is remarked on
            any model but the embedded one.
        progress: True shows a bar; an object is called at every step.
        checkpoint: file that an unfinished training is saved to and resumed from.
        memory: what learning may take, in bytes or as `6GB`: samples are taken in parts, and activations computed again
            where that is not enough. An estimate from one sample; the same result but for rounding.
        class_images: `sefi.training.finetuning.ClassImages()`, given to each of several calls: methods that draw images
            of the class draw them once for the calls with the same model and settings. None draws them anew.

    Raises:
        SefiError: what was wrong with the photo, the name, the settings, the seed or the model.
    """
    check_name(name)
    seed = require_seed(seed)
    check_config_type(config)
    check_crop(config, crop=crop, face=face, box=box, detector=detector)
    memory = None if memory is None else parse_memory(memory)
    check_learning_settings(config, init, memory)
    method = get_method(config.method)
    check_learning_inputs(backbone, consent, evaluators, checkpoint)
    progress = choose_progress(progress)
    photos = read_photos(photo)
    check_photo_count(len(photos), face=face, box=box)
    if not any_style:
        check_photo_styles(photos, for_drawings=is_embedded_model(backbone))
    backbone = open_model(backbone)
    folder = Path(evaluators) if evaluators else find_evaluators(backbone)
    check_class_word(backbone, config.learn.class_word)
    check_method(method, backbone, config, folder)
    for remark in () if init is None else list_identity_remarks(backbone, [init]):
        LOGGER.warning(remark)
    if consent is None and not backbone.is_embedded:
        LOGGER.warning("no consent of the person is recorded: learn(..., consent=Consent(...)) records it")
    crops = [crop_photo(one, backbone, config, face, box, crop=crop, detector=detector) for one in photos]
    first, *others = [one.pixels for one in crops]
    plan = find_start(crops, backbone, config, detector, init)
    for remark in (*list_training_remarks(backbone, config), *plan.remarks):
        LOGGER.warning(remark)
    views = PhotoViews(first, plan.config.views, tuple(others), plan.faces, tuple(one.place for one in crops))
    probe = build_image_probe(method, backbone, crops[0], plan.config, folder)
    options = TrainingOptions(
        progress,
        None if checkpoint is None else Path(checkpoint),
        probe,
        folder,
        init,
        memory=memory,
        class_images=class_images,
    )
    learned = method.learn(name, views, backbone, plan.config, seed, options)
    recorded = add_record(learned, record_learning(backbone, crops, init, make_photo_salt(learned)))
    return add_consent(recorded, consent, init)


def record_learning(backbone: Backbone, crops: Sequence[SubjectCrop], init: Identity | None, salt: bytes) -> RunRecord:
    """Record what an identity's header does not state otherwise: the machine, the squares, and where it started.

    Args:
        salt: of the photos' hashes.
    """
    squares = [
        CropRecord(
            left=one.original_square.left,
            top=one.original_square.top,
            side=one.original_square.side,
            photo_hash=hash_with_salt(one.photo_digest, salt) if one.photo_digest else None,
        )
        for one in crops
    ]
    started = None if init is None else InitRecord(name=init.name, tokens=compute_tokens_digest(init))
    machine = RunRecord.describe_machine("learn", str(backbone.device), str(backbone.dtype))
    return machine.add(versions={}, crops=squares, init=started)


def record_run(identity: Identity, preset: str, source: str, init: Path | None) -> RunRecord:
    """Return the whole record of a learning: what the identity's header states, preset, model and the file of init.

    Args:
        source: the model as it was named.
    """
    header = identity.header
    assert header.record is not None
    signature = hashlib.sha256(dump_json(header.signature, sort_keys=True).encode()).hexdigest()[:16]
    name = header.record.init.name if header.record.init else ""
    return header.record.add(
        versions=header.library_versions,
        preset=preset,
        settings=header.settings,
        seed=header.seed,
        model=ModelRecord(
            source=shorten_source(source),
            fingerprint=header.base_model,
            signature=signature if header.signature else "",
        ),
        identities=hash_input_files({name: init}),
    )


def check_config_type(config: object) -> None:
    """Refuse settings that are no `Config`, with `ConfigError`."""
    check_type(config, Config, "The settings", ConfigError, "Give a preset, such as `sefi.PRESETS['default']`.")


def check_learning_settings(config: Config, init: Identity | None = None, memory: int | None = None) -> None:
    """Refuse settings, and options that contradict them, as far as that needs no model.

    Raises:
        ConfigError, IdentityError, MethodError: what is wrong, as of `check_method_settings` and `check_init`.
    """
    method = get_method(config.method)
    require_config(config, method.config_type)
    check_method_settings(method, config)
    if init is not None:
        check_init(init, method)
    check_training_options(config, has_init=init is not None, has_limit=memory is not None)


def check_crop(config: Config, *, crop: bool, face: int | None, box: Box | None, detector: str | Path | None) -> None:
    """Refuse what says where the subject is and is of another type, or contradicts itself.

    Raises:
        ConfigError: the face is no number, or options contradict each other.
        PhotoError: the box is not four whole numbers.
        FaceError: the detector is no path.
    """
    check_type(face, (int, type(None)), "The face", ConfigError, "Give its number, counted from the left from 1 on.")
    if box is not None:
        check_box(box)
    remedy = "Give the path of a YuNet ONNX file."
    check_type(detector, (str, Path, type(None)), "The face detector", FaceError, remedy)
    check_crop_options(
        config.learn.class_word, crop=crop, face=face, box=box, detector=detector, reads_face=config.reads_face
    )


def check_learning_inputs(
    backbone: Backbone | str | None, consent: object, evaluators: object, checkpoint: object
) -> None:
    """Refuse a model that is not there, a consent that is no `Consent`, and what is no path.

    Raises:
        BackboneError, ConfigError: what is wrong.
    """
    if not isinstance(backbone, Backbone):
        check_source(require_model_name(backbone))
    remedy = "Give consent=sefi.Consent(...), with who agrees, for whom and to what."
    check_type(consent, (Consent, type(None)), "The consent", ConfigError, remedy)
    for what, path in (("The folder of evaluators", evaluators), ("The checkpoint", checkpoint)):
        check_type(path, (str, Path, type(None)), what, ConfigError, "Give its path.")


def add_consent(identity: Identity, consent: Consent | None, init: Identity | None) -> Identity:
    """Return the identity with its consent in its header, or else that of the identity that it started from."""
    inherited = None if init is None else init.header.consent
    text = inherited if consent is None else consent.format()
    return Identity(identity.tensors, identity.header.model_copy(update={"consent": text}))


def check_init(init: Identity, method: Method) -> None:
    """Refuse an identity that a method cannot start from on any model.

    Raises:
        ConfigError: the method starts from nothing but the class word.
        IdentityError: the identity holds more than tokens.
    """
    check_type(init, Identity, "The identity to start from", IdentityError, "Read it with Identity.load(FILE).")
    check_consents({init.name: init.header.consent})
    if not method.info.starts_from_tokens:
        raise ConfigError(
            f"{method.info.title} does not go on from an identity.",
            "Leave out the identity to start from, or use the default method or textual-inversion.",
        )
    if set(init.tensors) != {"tokens"}:
        raise IdentityError(
            f"{init.name!r} holds more than tokens ({init.method}), which would be lost.",
            "Start from an identity of the default method, of textual-inversion, or from an import.",
        )


def import_embedding(
    file: str | Path, *, name: str, backbone: Backbone | str | None = None, class_word: str = "person"
) -> Identity:
    """Make an identity of a textual inversion that another program wrote: one stage, keys and values alike.

    It works in prompts as `<name>`, and as `init` of `learn`.

    Args:
        file: a safetensors file with one embedding: `emb_params`, a single tensor of any name, or SDXL's `clip_l` and
            `clip_g`, each `[vector, width]`.
        name: the placeholder's word; letters, digits, - and _.
        backbone: a model of the family that it was learned on, or its name; None opens the embedded one.
        class_word: what it is, in a word or a few that the model knows.

    Raises:
        IdentityError: the name cannot be used; the file is none of these, may run code when it is opened (.pt, .bin),
            or has another width.
        PromptError: the model does not know the class word.
    """
    check_name(name)
    check_type(file, (str, Path), "The embedding", IdentityError, "Give the path of its file.")
    check_type(class_word, str, "The class word", PromptError, 'Give a word, such as "person".')
    backbone = open_model(backbone)
    check_class_word(backbone, class_word)
    vectors = read_embedding(Path(file), backbone.token_widths)
    config = get_preset("textual-inversion", [f"learn.vectors={len(vectors)}", f"learn.class_word={class_word}"])
    return Identity(
        {"tokens": vectors.expand(1, 2, -1, -1).contiguous()}, create_header(name, backbone, config, seed=0)
    )


def is_embedded_model(backbone: Backbone | str | None) -> bool:
    """Return whether a model, or the one of a name, is the embedded one; it need not be open."""
    return backbone.is_embedded if isinstance(backbone, Backbone) else backbone in (None, EMBEDDED)


def open_model(backbone: Backbone | str | None) -> Backbone:
    """Return a model: the one that is given, the one of that name (nothing is downloaded), or the embedded one."""
    return backbone if isinstance(backbone, Backbone) else open_backbone(require_model_name(backbone))


def require_model_name(backbone: str | None) -> str:
    """Return what `open_backbone` opens, the embedded model for None; `BackboneError` for a value of another type."""
    remedy = "Give a model of `open_backbone`, or its name."
    check_type(backbone, (str, Path, type(None)), "The model", BackboneError, remedy)
    return EMBEDDED if backbone is None else str(backbone)


def read_photos(photo: PhotoInput | Sequence[PhotoInput]) -> list[Photo | SubjectCrop]:
    """Read one photo or several; what is read already stays as it is.

    Raises:
        PhotoError: one is missing, damaged or of another format, or there is none.
    """
    kinds = (str, Path, Photo, SubjectCrop, Image.Image, np.ndarray)
    check_type(
        photo, (*kinds, Iterable), "The photo", PhotoError, "Give a file, an image, an array, or a list of them."
    )
    listed = [photo] if isinstance(photo, kinds) else list(photo)
    if not listed:
        raise PhotoError("There is no photo to learn from.", "Name at least one.")
    return [one if isinstance(one, (Photo, SubjectCrop)) else read_photo(one) for one in listed]


def check_photo_styles(photos: Sequence[Photo | SubjectCrop], *, for_drawings: bool) -> None:
    """Refuse photographs where the model knows drawings only, and drawings where it is meant for photographs.

    Crops that were made before are not examined.

    Args:
        for_drawings: the model is the embedded one.

    Raises:
        PhotoError: one has the statistics of the other kind.
    """
    refuse = refuse_photograph if for_drawings else refuse_drawing
    for photo in photos:
        if isinstance(photo, Photo):
            # The whole image: in a photograph the detector of drawn faces may find none.
            refuse(crop_middle(photo, CLASSIFIER_RESOLUTION))


class CropModel(Protocol):
    """What cropping needs to know of a model; it need not be open."""

    @property
    def resolution(self) -> int:
        """Return the side of its images in pixels."""
        ...

    @property
    def is_embedded(self) -> bool:
        """Return whether it is the embedded model, whose faces are drawings."""
        ...


def crop_photo(
    photo: Photo | SubjectCrop,
    backbone: CropModel,
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
            is; refused where neither this nor a setting looks for a face.

    Raises:
        ConfigError: options contradict each other.
        FaceError: no such face is found, or the detector's file is none.
        PhotoError: the box is not in the photo.
    """
    if isinstance(photo, SubjectCrop):
        return photo
    class_word = config.learn.class_word
    check_crop(config, crop=crop, face=face, box=box, detector=detector)
    height, width = photo.pixels.shape[-2:]
    remark, chosen, given = None, None, None
    if box is not None:
        original = find_square_around_box(box, *photo.size)
        square, given = original.shrink(photo.reduction), locate_box_in_square(box, original)
    elif needs_face(class_word, crop=crop):
        finder = open_detector(backbone, detector)
        square, found = find_face_square(photo, finder, number=face, margin=config.views.crop_margin)
        remark, chosen = describe_small_face(found, photo.reduction), locate_in_square(found, square)
    else:
        square = find_square_in_middle(height, width)
    if remark is not None:
        LOGGER.warning(remark)
    pixels = crop_square(photo, square, backbone.resolution)
    remarks = () if remark is None else (remark,)
    return SubjectCrop(
        pixels, square, photo.source, remarks, compute_photo_digest(photo.pixels), chosen, given, photo.reduction
    )


@dataclass(frozen=True)
class LearningStart:
    """Where learning starts.

    Attributes:
        config: the settings, of which `learn.start` is no longer auto.
        faces: those of the crops, where a setting asks for them.
        remarks: what a user should know: no face was found, or a setting has no effect.
    """

    config: Config
    faces: tuple[CropFace, ...]
    remarks: tuple[str, ...]


def find_start(
    crops: Sequence[SubjectCrop],
    backbone: Backbone,
    config: Config,
    detector: str | Path | None,
    init: Identity | None,
) -> LearningStart:
    """Find where learning starts, where `learn.start` is auto, and the faces that the settings ask for.

    A name encoder reads people whose face is found, on a model that has an encoder; everything else starts at the class
    word, or at `init`.

    Raises:
        ConfigError, FaceError: as `find_faces_in`, where the settings leave no choice.
    """
    reads = can_read_tokens(backbone, config) and init is None
    chosen, remarks = choose_start(config, encoder=reads), list[str]()
    try:
        faces = find_faces_in(crops, backbone, chosen, detector)
    except FaceError as error:
        if config.learn.start != "auto" or chosen.learn.start == "class":
            raise
        remarks.append(f"{error.problem} Learning starts at the class word.")
        chosen = choose_start(config, encoder=False)
        faces = find_faces_in(crops, backbone, chosen, detector)
    remarks += list_idle_settings(get_method(config.method), config, chosen)
    return LearningStart(chosen, faces, tuple(remarks))


def find_faces_in(
    crops: Sequence[SubjectCrop], backbone: Backbone, config: Config, detector: str | Path | None
) -> tuple[CropFace, ...]:
    """Find where the face is in each crop, where a setting asks for it; nothing otherwise.

    Raises:
        ConfigError: the setting needs a face, and the subject is no person.
        FaceError: a crop shows no face, or the detector's file is none.
    """
    check_face_settings(config)
    if not config.reads_face:
        return ()
    finder = open_detector(backbone, detector)
    return tuple(find_subject_face(crop, finder) for crop in crops)


def open_detector(backbone: CropModel, detector: str | Path | None) -> YuNetDetector:
    """Open the face detector that is named, or the one in the package for drawings or photographs, as the model is.

    Raises:
        FaceError: the named file is missing or is none.
    """
    if detector is not None:
        return YuNetDetector(detector)
    return YuNetDetector(EMBEDDED_EVALUATORS / DETECTOR if backbone.is_embedded else PHOTOGRAPH_DETECTOR)


def find_evaluators(backbone: Backbone) -> Path | None:
    """Return the folder of the evaluators that come with a model; None for any but the embedded one."""
    return EMBEDDED_EVALUATORS if backbone.is_embedded else None


def list_training_remarks(backbone: Backbone, config: Config) -> list[str]:
    """Return what a user should know before learning: unknown words in its sentences, and a long wait."""
    # A full stop between sentences: words of two of them must not look like one phrase.
    remarks = describe_unknown_words(backbone, [" . ".join(list_training_sentences(config))])
    return [*remarks, "the denoiser is compiled first, which may take minutes"] if config.learn.compile else remarks


def list_training_sentences(config: Config) -> list[str]:
    """Return the sentences that are learned with, the class word in place of the subject."""
    return [sentence.replace("{}", f" {config.learn.class_word} ") for sentence in config.learn.list_sentences()]


def list_prompt_remarks(
    backbone: Backbone, prompts: Sequence[str], settings: GenerateSettings, identities: Sequence[Identity] = ()
) -> list[str]:
    """Return what a user should know before generating: unknown words, long prompts, settings without their effect."""
    guidance = explain_guidance(settings, embeds_guidance=backbone.embeds_guidance)
    remarks = describe_unknown_words(backbone, prompts, settings.negative_prompt)
    class_words = {one.name: one.header.class_word for one in identities}
    vectors = {
        one.name: count_vectors(backbone, one, settings.identity_strength)
        for one in identities
        if "tokens" in one.tensors
    }
    if not all(prompt.strip() for prompt in prompts):
        remarks.append("a prompt is empty: nothing says what its images show")
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


def build_image_probe(
    method: Method, backbone: Backbone, crop: SubjectCrop, config: Config, folder: Path | None
) -> ImageProbe | None:
    """Build what scores an identity while it is learned; None where `learn.probe_every` is 0.

    Raises:
        ConfigError: the model has no evaluators and none are named.
    """
    if config.learn.probe_every == 0:
        return None
    if folder is None:
        raise ConfigError(
            "This model has no evaluators to stop at the best step.",
            "Name a folder of them with --evaluators, or set learn.probe_every=0.",
        )
    apply = partial(method.apply, backbone=backbone.skip_layers(config.generate.clip_skip))
    return ImageProbe(apply, convert_to_bytes(crop.pixels), config, ProbeEvaluators.open(folder), crop.place)


IdentityInput = Identity | str | Path
"""An identity, or the file of one."""


class GenerateOptions(ImageArguments, total=False):
    """What `generate` takes besides its arguments: settings that differ from `config`, and images.

    Attributes:
        steps: of denoising.
        guidance_scale: how strongly the prompt is followed; 1 and below is without guidance.
        negative_prompt: what to avoid, in plain words.
        num_images: images of every prompt.
        scheduler: the sampler: ddim, dpm++, dpm++_karras, dpm++_sde, euler, euler_a or lcm.
        width, height: of the images, in pixels; the model's trained size where they are left out.
        identity_strength: 0 is the class word, 1 what was learned.
        clip_skip: the text encoder's layer: 1 the usual, 2 the one before.
        batch_size: images at once.
    """

    steps: int
    guidance_scale: float
    negative_prompt: str
    num_images: int
    scheduler: str
    width: int
    height: int
    identity_strength: float
    clip_skip: int
    batch_size: int


def generate(  # noqa: PLR0913
    prompts: str | Sequence[str],
    identities: IdentityInput | Sequence[IdentityInput] = (),
    *,
    backbone: Backbone | str | None = None,
    config: Config = DEFAULT,
    seed: int = 0,
    generator: torch.Generator | None = None,
    progress: Progress | bool | None = None,
    expired_consent: bool = False,
    safety_checker: bool = True,
    **options: Unpack[GenerateOptions],
) -> list[GeneratedImage]:
    """Generate images of every prompt; image k of a prompt has seed `seed + k`.

    Args:
        prompts: plain words and `<name>` for every identity.
        identities: who the names are: one or several, each an identity or its file.
        backbone: the model that the identities were learned on, or its name; None opens the embedded one.
        config: settings; `PRESETS` has some.
        seed: 0 to 2^62.
        generator: draws the seed instead, as of diffusers' pipelines.
        progress: True shows a bar; an object is called at every step.
        expired_consent: generate although the consent that an identity states has expired.
        safety_checker: make images black that the model's own safety checker flags, where it brings one; False leaves
            them, and their files say so.
        options: settings that differ from `config`: `steps`, `guidance_scale`, `negative_prompt`, `num_images`,
            `scheduler`, `width`, `height`, `identity_strength`, `clip_skip`, `batch_size`. And images that generation
            starts from or follows, each a file, a Pillow image or an RGB array: `init_image` with `strength` (share of
            the steps that change it, 0.75); `mask`, white where it is repainted; `control` with `controlnet` (a folder)
            and `control_scale` (1.0). `repair_faces=True` generates small faces again, larger, and pastes them back;
            `detector` is a YuNet ONNX file that finds them.

    Returns:
        The images in the order of the prompts, each with its `pixels`, prompt, seed, index and repaired squares.

    Raises:
        SefiError: a placeholder without identity or the other way round, an identity of another model, no seed, a
            setting that does not exist, a size that the model does not generate, or an image that cannot be used.
    """
    if generator is not None:
        remedy = "Give torch.Generator().manual_seed(3), or seed=3."
        check_type(generator, torch.Generator, "The generator", ConfigError, remedy)
        seed = int(torch.randint(LARGEST_SEED, (), generator=generator, device=generator.device))
    each = generate_each(
        prompts,
        identities,
        backbone=backbone,
        config=config,
        seed=seed,
        progress=progress,
        expired_consent=expired_consent,
        safety_checker=safety_checker,
        **options,
    )
    return list(each)


def generate_each(  # noqa: PLR0913
    prompts: str | Sequence[str],
    identities: IdentityInput | Sequence[IdentityInput] = (),
    *,
    backbone: Backbone | str | None = None,
    config: Config = DEFAULT,
    seed: int = 0,
    progress: Progress | bool | None = None,
    expired_consent: bool = False,
    safety_checker: bool = True,
    **options: Unpack[GenerateOptions],
) -> Iterator[GeneratedImage]:
    """Yield the images of `generate` one at a time, so that they can be saved as they come."""
    seed = require_seed(seed)
    check_config_type(config)
    check_type(prompts, Iterable, "The prompt", PromptError, "Give a text, or a list of texts.")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    identities = collect_identities(identities)
    if not expired_consent:
        check_consents({one.name: one.header.consent for one in identities})
    config, images = split_options(config, options)
    settings = config.generate
    check_prompts(prompts, {i.name: i.header.class_word for i in identities}, settings.negative_prompt)
    check_guidance(settings)
    check_together(identities)
    # Of one method, which was checked; without identities the settings' own, as it changes the model for plain words.
    method = identities[0].method if identities else config.method
    backbone = open_model(backbone)
    check_guidance(settings, embeds_guidance=backbone.embeds_guidance)
    check_steps(backbone, settings.steps)
    check_size(backbone, settings)
    source = read_source_images(backbone, get_image_size(backbone, settings), settings, images)
    detector = open_detector(backbone, images.get("detector")) if images.get("repair_faces") else None
    for remark in [
        *list_identity_remarks(backbone, identities),
        *list_prompt_remarks(backbone, prompts, settings, identities),
        *(list_repair_remarks(prompts) if detector else ()),
    ]:
        LOGGER.warning(remark)
    repeated = [p for p in prompts for _ in range(settings.count)]
    seeds = [seed + k for _ in prompts for k in range(settings.count)]
    shown = choose_progress(progress)
    model = apply_identities(method, identities, backbone, settings)
    check_safety_checker(backbone, wanted=safety_checker)
    digests, sources = {one.name: compute_identity_digest(one) for one in identities}, describe_sources(images)
    for image in sample_images(model.backbone, model.conditioner, repeated, seeds, settings, shown, source):
        made = repair_faces(model, image, detector, settings, source) if detector else image
        shown_digests = list_shown_digests(method, digests, made.prompt)
        yield finish_image(backbone, made, settings, shown_digests, sources, use_checker=safety_checker)


def apply_identities(
    method: str, identities: Sequence[Identity], backbone: Backbone, settings: GenerateSettings
) -> ConditionedModel:
    """Return the model with the identities of a method, as strongly and on the way that the settings ask for."""
    skipping = backbone.skip_layers(settings.clip_skip)
    model = get_method(method).apply(identities, skipping, settings.identity_strength)
    return replace(model, conditioner=apply_text_settings(model.conditioner, settings))


def list_shown_digests(method: str, digests: Mapping[str, str], prompt: str) -> list[str]:
    """List the SHA-256 of those whom an image shows, so that forgetting somebody removes nobody else's images.

    Args:
        method: of all identities. One that changes the model has something of all of them in every image.
        digests: SHA-256 of each identity, by its name.
    """
    return [digests[name] for name in find_placeholders(prompt)] if is_of_tokens(method) else list(digests.values())


def check_safety_checker(backbone: Backbone, *, wanted: bool) -> None:
    """Read the model's safety checker before the work, if it brings one; `BackboneError` where that fails."""
    if wanted and backbone.safety_checker is not None:
        backbone.safety_checker.load()


def describe_sources(images: ImageArguments) -> dict[str, object]:
    """Return what an image's file says of the images that it was generated from; never their names."""
    given = {name for name, value in images.items() if value is not None and value is not False}
    strength = images.get("strength")
    said: dict[str, object] = {}
    if "init_image" in given:
        said["Denoising strength"] = DEFAULT_STRENGTH if strength is None else strength
    names = {"mask": "Inpainting", "control": "ControlNet", "repair_faces": "Face repair"}
    return said | {title: "yes" for name, title in names.items() if name in given}


def collect_identities(identities: IdentityInput | Sequence[IdentityInput]) -> list[Identity]:
    """Return one identity or several as a list; files are read.

    Raises:
        IdentityError: a file is none.
    """
    check_type(identities, (Identity, str, Path, Iterable), "The identity", IdentityError, "Give it, or its file.")
    listed = [identities] if isinstance(identities, (Identity, str, Path)) else identities
    return [one if isinstance(one, Identity) else Identity.load(one) for one in listed]


def split_options(config: AnyConfig, options: GenerateOptions) -> tuple[AnyConfig, ImageArguments]:
    """Return the settings with those of the options, and the options that are images.

    Raises:
        ConfigError: there is no such option, its value does not fit, or it misses another one.
    """
    given: dict[str, Any] = dict(options)
    images = {name: given.pop(name) for name in ImageArguments.__annotations__ if name in given}
    if "num_images" in given:
        given["count"] = given.pop("num_images")
    if given:
        tree = dump_config(config)
        config = parse_config({**tree, "generate": {**tree["generate"], **given}}, type(config))
    check_image_arguments(cast(ImageArguments, images), config.generate.steps)
    if images.get("repair_faces"):
        check_repair_steps(config.generate)
    return config, cast(ImageArguments, images)
