"""`sefi inspect`, `sefi methods` and `sefi settings`: identities, methods and settings as lists."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sefi.cli import options
from sefi.core.text import escape_controls

if TYPE_CHECKING:
    from sefi.identity.file import Identity

File = Annotated[Path, typer.Argument(metavar="FILE", help="An identity file.")]
PhotoFile = Annotated[
    Path | None, typer.Option("--photo", metavar="FILE", help="Say whether it was learned from this photo.")
]


def run_inspect(file: File, photo: PhotoFile = None, as_json: options.AsJson = False) -> None:
    """Show who an identity file holds, how it was learned, who agreed, and for which model."""
    from sefi.cli.output import print_answer
    from sefi.identity.file import Identity, compute_tokens_digest

    identity = Identity.load(file)
    record: dict[str, object] = identity.header.model_dump(mode="json")
    # One text encoder; of before, or imported; said by the model's family.
    for name in ("widths", "record", "prediction_type"):
        if not record[name]:
            del record[name]
    record["tensors"] = {name: list(tensor.shape) for name, tensor in identity.tensors.items()}
    record["bytes"] = file.stat().st_size
    if "tokens" in identity.tensors:
        # One number a token: several in a list where a name stands for several.
        record["tokens_sha256"] = compute_tokens_digest(identity)
        record["token_norms"] = identity.tokens.float().norm(dim=-1).double().round(decimals=4).tolist()
    if photo is not None:
        record["of_photo"] = is_of_photo(identity, photo)
    shown = {name: value for name, value in record.items() if name != "signature"}  # long and for machines
    print_answer(record, format_record(shown), as_json=as_json, command="inspect")


def is_of_photo(identity: "Identity", photo: Path) -> bool | None:
    """Return whether an identity was learned from a photo's pixels; None where its file does not say.

    Raises:
        PhotoError: the photo cannot be read.
    """
    from sefi.identity.file import make_photo_salt
    from sefi.photo.augment import compute_photo_digest
    from sefi.photo.read import read_photo
    from sefi.provenance.run_record import hash_with_salt

    record = identity.header.record
    hashes = [] if record is None else [crop.photo_hash for crop in record.crops if crop.photo_hash]
    digest = compute_photo_digest(read_photo(photo).pixels)
    return hash_with_salt(digest, make_photo_salt(identity)) in hashes if hashes else None


def format_record(record: dict[str, object]) -> str:
    """Return one line for each entry; nested settings one line each, under their own names."""
    lines: list[str] = []
    for name, value in flatten_record("", record):
        lines.append(f"{escape_controls(name):<34} {escape_controls(format_entry(value))}")
    return "\n".join(lines)


def format_entry(value: object) -> str:
    """Return a value as people write it, not as Python does.

    >>> [format_entry(one) for one in (None, [], ["a", "b"], [[0.5, 1.0], [2.0, 3.0]], True)]
    ['none', 'none', 'a, b', '0.5 1.0, 2.0 3.0', 'True']
    """
    if isinstance(value, list | tuple) and value:
        return ", ".join(" ".join(map(str, one)) if isinstance(one, list | tuple) else str(one) for one in value)
    return "none" if value is None or value in ([], (), {}) else str(value)


def flatten_record(prefix: str, value: object) -> list[tuple[str, object]]:
    """Return nested values as dotted names; objects of a list are counted from 1.

    >>> flatten_record("", {"a": {"b": 1}, "c": [{"d": 2}], "e": [3]})
    [('a.b', 1), ('c.1.d', 2), ('e', [3])]
    """
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        value = {str(place): one for place, one in enumerate(value, start=1)}
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    entries: list[tuple[str, object]] = []
    for name, inner in value.items():
        entries += flatten_record(f"{prefix}.{name}" if prefix else str(name), inner)
    return entries


def list_methods(as_json: options.AsJson = False) -> None:
    """List the methods with what they learn and add at the size of Stable Diffusion 1.4."""
    from sefi.backbone.open import create_empty_stable_diffusion
    from sefi.cli.output import print_answer, print_remark
    from sefi.core.errors import MethodError
    from sefi.methods import METHODS, PRESETS, get_preset, name_published_preset

    model = create_empty_stable_diffusion()
    record: dict[str, dict[str, Any]] = {}
    for name in METHODS:
        try:
            method = METHODS[name]
            counts = method.count_weights(model, get_preset(name_published_preset(name)))
        except MethodError as error:
            print_remark(f"note: {error}")
            continue
        record[name] = {
            **asdict(method.info),
            **asdict(counts),
            "presets": [preset for preset, config in PRESETS.items() if config.method == name],
        }
    lines = [f"{'method':19} {'numbers learned':>15} {'weights added':>14}  presets"]
    lines += [
        f"{name:19} {one['trained']:>15,} {one['added']:>14,}  {', '.join(one['presets'])}\n"
        f"{'':19} {one['title']}, {one['paper']}; {one['licence']}"
        for name, one in record.items()
    ]
    print_answer(
        {"model": "Stable Diffusion 1.4", "methods": record}, "\n".join(lines), as_json=as_json, command="methods"
    )


def list_settings(preset: options.Preset = "default", as_json: options.AsJson = False) -> None:
    """List every setting that the method of a preset has and `--set` changes, with its value in the preset."""
    from pydantic_core import to_jsonable_python

    from sefi.cli.output import print_answer
    from sefi.core.config import choose_start, describe_settings, read_setting
    from sefi.methods import get_preset

    config = get_preset(preset)
    starts = [choose_start(config, encoder=True), choose_start(config, encoder=False)]
    record = {
        name: {"value": to_jsonable_python(read_setting(config, name)), "about": about}
        for name, about in describe_settings(type(config)).items()
    }
    for name, one in record.items():
        by_start = [to_jsonable_python(read_setting(found, name)) for found in starts]
        if name != "learn.start" and by_start[0] != by_start[1]:
            one["by_start"] = dict(zip(("encoder", "class"), by_start, strict=True))
    lines = [f"{name:32} {format_by_start(one):24} {one['about']}".rstrip() for name, one in record.items()]
    print_answer(
        {"preset": preset, "method": config.method, "settings": record},
        "\n".join([*lines, *(BY_START if starts[0] != starts[1] else ())]),
        as_json=as_json,
        command="settings",
    )


BY_START = (
    "",
    "* The first where tokens start at what a name encoder reads: people, on a model that has one, as the embedded one",
    "  does. The second where they start at the class word.",
)


def format_by_start(setting: Mapping[str, Any]) -> str:
    """Return a setting's value as `--set` takes it; both, with a star, where it depends on the start."""
    if "by_start" not in setting:
        return shorten_value(setting["value"])
    return f"{' or '.join(map(shorten_value, setting['by_start'].values()))} *"


def shorten_value(value: object) -> str:
    """Return a value as `--set` takes it, long lists by their first entry."""
    if isinstance(value, list) and value:
        return f"{value[0]}; ... ({len(value)})" if len(value) > 1 else str(value[0])
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value in (None, []) else str(value)
