"""`sefi learn`: one photo to one identity file."""

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sefi.core.nouns import Identity, Photo

PhotoFile = Annotated[Path, typer.Argument(metavar="PHOTO", help="A photo with one face to learn.")]
Name = Annotated[str, typer.Option("--name", help="The word for it in prompts: <ada>.")]
ClassWord = Annotated[str | None, typer.Option("--class-word", help="What it is, in one word: person, dog, cat ...")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")]
FaceIndex = Annotated[int | None, typer.Option("--face", min=1, metavar="N", help="Which face, from the left.")]
NoCrop = Annotated[bool, typer.Option("--no-crop", help="Use the whole photo, face or not.")]
MethodName = Annotated[
    str | None, typer.Option("--method", metavar="NAME", help="Learn in another way: see `sefi methods`.")
]
MethodPreset = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="Settings to start from: default, fast, paper, or a method's."),
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
    seed: options.Seed = 0,
    out: Out = None,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Learn the person (or pet) in PHOTO; the result is a small file for `sefi generate -i`."""
    from sefi.cli.opening import assigned, chosen_config, opened, preset_of, warn_of_photographs
    from sefi.cli.output import answer, checked_file
    from sefi.core.names import check_name

    check_name(name)
    path = checked_file(out or Path(f"{name}.safetensors"))
    given = assigned(learn__steps=steps, learn__class_word=class_word)
    config = chosen_config(preset_of(method, preset), [*(settings or []), *given])
    warn_of_photographs(model)
    from sefi.api import learn as learn_identity
    from sefi.cli.progress import TerminalProgress
    from sefi.photo.read import read_photo

    picture = read_photo(photo)
    backbone = opened(model, download=download, device=device, dtype=dtype)
    run = [config.model_dump_json(), backbone.fingerprint, seed, face, no_crop]
    unfinished = unfinished_run(path, picture, run)
    started = time.monotonic()
    with TerminalProgress() as progress:
        identity = learn_identity(
            picture,
            name=name,
            backbone=backbone,
            config=config,
            seed=seed,
            face=face,
            crop=not no_crop,
            detector=detector,
            judges=judges,
            progress=progress,
            checkpoint=unfinished,
        )
    identity.save(path)
    unfinished.unlink(missing_ok=True)
    seconds = round(time.monotonic() - started, 1)
    text = f'learned in {seconds:.0f} s: {path}\ntry: sefi generate "a photo of <{name}>" -i {path}'
    answer(record(identity, path) | {"seconds": seconds}, text, as_json=as_json)


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
    content = photo.pixels.numpy().tobytes() + repr(run).encode()
    return path.with_name(f".{path.stem}.{hashlib.sha256(content).hexdigest()[:12]}.unfinished")
