"""`sefi learn`: one photo to one identity file."""

import hashlib
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sefi.cli.opening import Model
    from sefi.core.config import Config
    from sefi.core.nouns import Identity, Photo

PhotoFile = Annotated[Path, typer.Argument(metavar="PHOTO", help="A photo with one face to learn.")]
Name = Annotated[str, typer.Option("--name", help="The word for it in prompts: <ada>.")]
ClassWord = Annotated[
    str | None, typer.Option("--class-word", help="What it is, in one word: person, woman, dog, cat ...")
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")]
FaceIndex = Annotated[
    int | None, typer.Option("--face", min=1, metavar="N", help="Which face, from the left; for people only.")
]
NoCrop = Annotated[bool, typer.Option("--no-crop", help="Use the photo's middle square, face or not.")]
MethodName = Annotated[
    str | None, typer.Option("--method", metavar="NAME", help="Learn in another way: see `sefi methods`.")
]
MethodPreset = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="Settings to start from: default, fast, paper, or a method's."),
]
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Learn a photograph on the embedded model, which knows drawn people only.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: NAME.safetensors.")]


def learn(
    photo: PhotoFile,
    name: Name,
    model: options.Model = options.EMBEDDED,
    method: MethodName = None,
    preset: MethodPreset = None,
    class_word: ClassWord = None,
    steps: Steps = None,
    settings: options.Settings = None,
    face: FaceIndex = None,
    no_crop: NoCrop = False,
    detector: options.Detector = None,
    judges: options.Judges = None,
    anyway: Anyway = False,
    seed: options.Seed = 0,
    out: Out = None,
    overwrite: options.Overwrite = False,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Learn the person (or pet) in PHOTO; the result is a small file for `sefi generate -i`."""
    from sefi.cli.opening import Model, assigned, check_detector, check_judges, chosen_config, preset_of
    from sefi.cli.output import answer
    from sefi.core.files import Kind, check_output
    from sefi.core.names import check_name
    from sefi.core.people import check_face_options

    check_name(name)
    path = out or Path(f"{name}.safetensors")
    inputs = (photo, model, detector, judges, *(setting.partition("=")[2] for setting in settings or []))
    check_output(path, Kind.IDENTITY, inputs=inputs, overwrite=overwrite, name=name)
    given = [*(settings or []), *assigned(learn__steps=steps, learn__class_word=class_word)]
    chosen = preset_of(method, preset)
    config = chosen_config(chosen, given)
    check_face_options(config.learn.class_word, crop=not no_crop, face=face, detector=detector)
    check_detector(detector)
    check_judges(judges)
    asked = Asked(name, config, seed, face, no_crop, detector, judges, anyway, inputs, overwrite)
    opening = Model(model, download, device, dtype)
    identity, more = learn_and_save(photo, path, asked, opening)
    following = next_command(name, path, opening, chosen, given)
    text = f"learned in {more['seconds']:.0f} s: {path}\ntry: {following}"
    answer(record(identity, path) | more | {"next": following}, text, as_json=as_json, command="learn")


@dataclass(frozen=True)
class Asked:
    """What is to be learned, and how."""

    name: str
    config: "Config"
    seed: int
    face: int | None
    no_crop: bool
    detector: Path | None
    judges: Path | None
    anyway: bool
    inputs: "Sequence[Path | str | None]"
    overwrite: bool


def learn_and_save(
    photo: Path, path: Path, asked: Asked, opening: "Model"
) -> "tuple[Identity, dict[str, float | list[str]]]":
    """Learn the subject of a photo file and write its identity; say how long it took."""
    from sefi.api import learn as learn_identity, learned_sentences, remarks_on_learning
    from sefi.cli.opening import opened
    from sefi.cli.output import say
    from sefi.cli.progress import TerminalProgress
    from sefi.conditioning.known_words import find_unknown_words
    from sefi.core.files import Kind, check_output
    from sefi.identity.file import write_identity
    from sefi.photo.drawn import RESOLUTION, check_drawn
    from sefi.photo.read import read_photo
    from sefi.photo.views import whole_square

    picture = read_photo(photo)
    if opening.name == options.EMBEDDED and not asked.anyway:
        check_drawn(whole_square(picture, RESOLUTION))
    backbone = opened(opening.name, download=opening.download, device=opening.device, dtype=opening.dtype)
    for remark in remarks_on_learning(backbone, asked.config):
        say(f"note: {remark}")
    run = [asked.config.model_dump_json(), backbone.fingerprint, asked.seed, asked.face, asked.no_crop]
    unfinished = unfinished_run(path, picture, run)
    started = time.monotonic()
    with TerminalProgress() as progress:
        identity = learn_identity(
            picture,
            name=asked.name,
            backbone=backbone,
            config=asked.config,
            seed=asked.seed,
            face=asked.face,
            crop=not asked.no_crop,
            detector=asked.detector,
            judges=asked.judges,
            anyway=asked.anyway,
            progress=progress,
            checkpoint=unfinished,
        )
    # Somebody may have put a file there meanwhile.
    check_output(path, Kind.IDENTITY, inputs=asked.inputs, overwrite=asked.overwrite, name=asked.name)
    write_identity(identity, path, replace=asked.overwrite)
    unfinished.unlink(missing_ok=True)
    unknown = find_unknown_words(backbone, learned_sentences(asked.config))
    return identity, {"seconds": round(time.monotonic() - started, 1), "unknown_words": unknown}


def next_command(name: str, path: Path, opening: "Model", preset: str, settings: "Sequence[str]") -> str:
    """Return the command that draws what was learned: on the same model, with the same settings of drawing."""
    words = ["-i", str(path), *opening.options()]
    if preset != "default":
        words += ["--preset", preset]
    for setting in settings:
        if setting.startswith("generate."):
            words += ["--set", setting]
    return f'sefi generate "a photo of <{name}>" {shlex.join(words)}'


def record(identity: "Identity", path: Path) -> dict[str, object]:
    """What was learned, in short."""
    header = identity.header
    return {
        "identity": str(path),
        "name": header.name,
        "base_model": header.base_model,
        "bytes": path.stat().st_size,
        "seed": header.seed,
        "metrics": dict(header.metrics),
    }


def unfinished_run(path: Path, photo: "Photo", run: "Sequence[object]") -> Path:
    """Where a run is kept that was stopped: the same command finds it again, no other does."""
    content = hashlib.sha256(photo.pixels.numpy().data)
    content.update(repr(run).encode())
    from sefi.core.files import fit_stem

    rest = f".{content.hexdigest()[:12]}.unfinished"
    return path.with_name(f".{fit_stem(path, len(rest) + 1)}{rest}")
