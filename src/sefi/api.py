"""The two verbs of the package: learn a subject, generate pictures."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.backbone.open import open_backbone
from sefi.conditioning.prompt import check_used, class_token_id, placeholders, unknown_placeholder
from sefi.core.config import Config
from sefi.core.errors import ConfigError, FaceError, IdentityError
from sefi.core.names import check_name
from sefi.core.nouns import GeneratedImage, Identity, Photo
from sefi.core.presets import PRESETS
from sefi.core.protocols import Progress, SilentProgress
from sefi.generate.sampler import generate as sample
from sefi.learn.probe import PictureProbe, ProbeJudges
from sefi.methods import method_named
from sefi.methods.base import Method, Watched
from sefi.metrics.faces import DETECTOR
from sefi.photo.detect import YuNetDetector
from sefi.photo.read import read_photo
from sefi.photo.views import PhotoViews, face_square, rgb_bytes, whole_square

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
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Identity:
    """Learn the subject of one photo.

    Args:
        photo: a file, or a photo already read.
        name: the placeholder's word; letters, digits, - and _.
        backbone: the frozen model; None opens the embedded one.
        face: which face, from the left, if there are several.
        crop: cut the face out; False learns the photo's middle square, face or not.
        detector: a YuNet ONNX file; None takes the model's own, which only the embedded one has.
        judges: folder of the networks that look at pictures, where `learn.probe_every` is set or a method reads faces:
            `face_detection.onnx`, `face_recognition.onnx`, `clip/`; None takes the model's own.
        checkpoint: where to keep and find an unfinished run.

    Raises:
        SefiError: what was wrong with the photo, the name, the settings or the model.
    """
    check_name(name)
    method = method_named(config.method)
    backbone = backbone or open_backbone()
    folder = Path(judges) if judges else backbone.judges
    class_token_id(backbone.tokenizer, config.learn.class_word)
    method.check(backbone, config, folder)
    read = photo if isinstance(photo, Photo) else read_photo(photo)
    square = (
        cropped(read, backbone, config, face, detector)
        if needs_face(config, crop=crop)
        else whole_square(read, backbone.resolution)
    )
    views = PhotoViews(square, config.views)
    probe = picture_probe(method, backbone, square, config, folder) if config.learn.probe_every else None
    watched = Watched(progress or SilentProgress(), checkpoint, probe, folder)
    return method.learn(name, views, backbone, config, seed, watched)


def picture_probe(
    method: Method, backbone: Backbone, square: Tensor, config: Config, folder: Path | None
) -> PictureProbe:
    """What scores an identity while it is learned.

    Raises:
        ConfigError: the model brings no judges and none are named.
    """
    if folder is None:
        raise ConfigError(
            "This model brings no judges to stop at the best step.",
            "Name a folder of them with --judges, or set learn.probe_every=0.",
        )
    applied = partial(method.applied, backbone=backbone)
    return PictureProbe(applied, backbone, rgb_bytes(square), config, ProbeJudges.of(folder))


def needs_face(config: Config, *, crop: bool) -> bool:
    """Only people are cut out by their face."""
    return crop and config.learn.class_word == "person"


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
    """`config.generate.count` pictures of every prompt; picture k of a prompt has seed `seed + k`.

    Raises:
        SefiError: a placeholder without identity or the other way round, or an identity of another model.
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
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    known = {i.name: i.header.class_word for i in identities}
    for name in (n for p in prompts for n in placeholders(p)):
        if name not in known:
            raise unknown_placeholder(name, known)
    check_used(prompts, list(known))
    methods = {i.method for i in identities} or {config.method}
    if len(methods) > 1:
        raise IdentityError(
            f"Identities of several methods cannot share a prompt: {' and '.join(sorted(methods))} change the model or "
            "its texts in ways that do not fit together.",
            "Learn all of them with one method.",
        )
    backbone = backbone or open_backbone()
    count = config.generate.count
    repeated = [p for p in prompts for _ in range(count)]
    seeds = [seed + k for _ in prompts for k in range(count)]
    with method_named(methods.pop()).applied(identities, backbone, config.generate.identity_strength) as conditioner:
        yield from sample(backbone, conditioner, repeated, seeds, config.generate, progress or SilentProgress())
