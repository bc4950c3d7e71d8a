"""The two verbs of the package: learn a subject, generate pictures."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.backbone.open import open_backbone
from sefi.conditioning.conditioner import check_identities, describe_other_model
from sefi.conditioning.known_words import check_class_word, describe_unknown_words
from sefi.core.config import Config, GenerateConfig, check_guidance, explain_guidance
from sefi.core.errors import ConfigError, FaceError
from sefi.core.names import check_name
from sefi.core.nouns import GeneratedImage, Identity, Photo
from sefi.core.people import check_face_options, needs_face
from sefi.core.presets import PRESETS
from sefi.core.prompt_syntax import check_prompts
from sefi.core.protocols import Progress, SilentProgress
from sefi.core.seeds import check_seed
from sefi.generate.sampler import generate as sample
from sefi.generate.schedulers import check_steps
from sefi.identity.together import check_together
from sefi.learn.probe import ImageProbe, ProbeEvaluators
from sefi.methods import get_method
from sefi.methods.base import Method, RunOptions
from sefi.metrics.faces import DETECTOR
from sefi.photo.detect import YuNetDetector
from sefi.photo.drawn import RESOLUTION, check_drawn
from sefi.photo.read import read_photo
from sefi.photo.views import PhotoViews, face_square, rgb_bytes, whole_square

LOGGER = logging.getLogger("sefi.remarks")  # the command line says the same itself, and silences it
DEFAULT = PRESETS["default"]


def learn(  # noqa: PLR0913
    photo: Photo | str | Path,
    *,
    name: str,
    backbone: Backbone | None = None,
    config: Config = DEFAULT,
    seed: int = 0,
    face: int | None = None,
    crop: bool = True,
    detector: str | Path | None = None,
    judges: str | Path | None = None,
    anyway: bool = False,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Identity:
    """Learn the subject of one photo.

    Args:
        photo: a file, or a photo already read.
        name: the placeholder's word; letters, digits, - and _.
        backbone: the frozen model; None opens the embedded one.
        config: settings; `PRESETS` has some.
        seed: 0 to 2^62.
        face: which face, from the left, if there are several; refused where no face is looked for.
        crop: cut the face out, where the class word means a person; False learns the photo's middle square.
        detector: a YuNet ONNX file; None takes the model's own, which only the embedded one has; refused as `face` is.
        judges: folder of the networks that look at pictures, where `learn.probe_every` is set or a method reads faces:
            `face_detection.onnx`, `face_recognition.onnx`, `clip/`; None takes the model's own.
        anyway: learn a photograph on the embedded model, which knows drawings only.
        progress: told of every step.
        checkpoint: where to keep and find an unfinished run.

    Raises:
        SefiError: what was wrong with the photo, the name, the settings, the seed or the model.
    """
    check_name(name)
    seed = check_seed(seed)
    check_face_options(config.learn.class_word, crop=crop, face=face, detector=detector)
    method = get_method(config.method)
    read = photo if isinstance(photo, Photo) else read_photo(photo)
    if not anyway and (backbone is None or backbone.judges is not None):
        # As a whole: in a photograph the detector of drawn faces may find none.
        check_drawn(whole_square(read, RESOLUTION))
    backbone = backbone or open_backbone()
    folder = Path(judges) if judges else backbone.judges
    check_class_word(backbone, config.learn.class_word)
    method.check(backbone, config, folder)
    for remark in remarks_on_learning(backbone, config):
        LOGGER.warning(remark)
    square = (
        cropped(read, backbone, config, face, detector)
        if needs_face(config.learn.class_word, crop=crop)
        else whole_square(read, backbone.resolution)
    )
    views = PhotoViews(square, config.views)
    probe = picture_probe(method, backbone, square, config, folder) if config.learn.probe_every else None
    options = RunOptions(progress or SilentProgress(), checkpoint, probe, folder)
    return method.learn(name, views, backbone, config, seed, options)


def remarks_on_learning(backbone: Backbone, config: Config) -> list[str]:
    """Return what a user should know of the class word and the sentences that are learned with."""
    return describe_unknown_words(backbone, [" . ".join(learned_sentences(config))])


def learned_sentences(config: Config) -> list[str]:
    """Return the sentences that are learned with, the class word in place of the subject."""
    return [template.replace("{}", f" {config.learn.class_word} ") for template in config.learn.templates]


def remarks_on_prompts(backbone: Backbone, prompts: Sequence[str], config: GenerateConfig) -> list[str]:
    """Return what a user should know before these prompts are drawn: unknown words, guidance without effect."""
    guidance = explain_guidance(config)
    words = describe_unknown_words(backbone, prompts, config.negative_prompt)
    return words if guidance is None else [*words, guidance]


def remarks_on_identities(backbone: Backbone, identities: Sequence[Identity]) -> list[str]:
    """Return what a user should know of identities that were learned on another checkpoint than this one.

    Raises:
        IdentityError: one cannot be used on this model, or two have one name.
    """
    check_identities(backbone, identities)
    found = [describe_other_model(backbone, identity) for identity in identities]
    return [remark for remark in found if remark is not None]


def picture_probe(
    method: Method, backbone: Backbone, square: Tensor, config: Config, folder: Path | None
) -> ImageProbe:
    """What scores an identity while it is learned.

    Raises:
        ConfigError: the model brings no judges and none are named.
    """
    if folder is None:
        raise ConfigError(
            "This model brings no judges to stop at the best step.",
            "Name a folder of them with --judges, or set learn.probe_every=0.",
        )
    apply = partial(method.apply, backbone=backbone)
    return ImageProbe(apply, rgb_bytes(square), config, ProbeEvaluators.open(folder))


def cropped(photo: Photo, backbone: Backbone, config: Config, face: int | None, detector: str | Path | None) -> Tensor:
    """The face's square `[3, resolution, resolution]`.

    Raises:
        FaceError: the model brings no detector and none is named, or it finds no face to take.
    """
    if detector is None:
        if backbone.judges is None:
            raise FaceError(
                "This model brings no face detector, and the one in the package knows drawn faces only.",
                "Name a YuNet ONNX file (OpenCV's face_detection_yunet) with --detector, or use --no-crop.",
            )
        detector = backbone.judges / DETECTOR
    return face_square(
        photo,
        YuNetDetector(detector),
        backbone.resolution,
        number=face,
        margin=config.views.crop_margin,
    )


def embedded_judges() -> Path:
    """Folder of the judges that ship with the package."""
    return Path(__file__).parent / "models" / "judges"


def generate(
    prompts: str | Sequence[str],
    identities: Sequence[Identity] = (),
    *,
    backbone: Backbone | None = None,
    config: Config = DEFAULT,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[GeneratedImage]:
    """Draw `config.generate.count` images of every prompt; image k of a prompt has seed `seed + k`.

    Args:
        prompts: plain words and `<name>` for every identity.
        identities: who the names are.
        backbone: the model that the identities were learned on; None opens the embedded one.
        config: settings; `PRESETS` has some.
        seed: 0 to 2^62.
        progress: told of every step.

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
    """As `generate`, one picture at a time, so that whoever stops in between keeps what there is."""
    seed = check_seed(seed)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    class_words = {i.name: i.header.class_word for i in identities}
    check_prompts(prompts, class_words, config.generate.negative_prompt)
    check_guidance(config.generate)
    check_together(identities)
    methods = {i.method for i in identities} or {config.method}
    backbone = backbone or open_backbone()
    check_steps(backbone, config.generate.steps)
    for remark in [
        *remarks_on_identities(backbone, identities),
        *remarks_on_prompts(backbone, prompts, config.generate),
    ]:
        LOGGER.warning(remark)
    count = config.generate.count
    repeated = [p for p in prompts for _ in range(count)]
    seeds = [seed + k for _ in prompts for k in range(count)]
    model = get_method(methods.pop()).apply(identities, backbone, config.generate.identity_strength)
    progress = progress or SilentProgress()
    yield from sample(model.backbone, model.conditioner, repeated, seeds, config.generate, progress)
