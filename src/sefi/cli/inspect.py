"""`sefi inspect`: what an identity file holds, without opening any model."""

from pathlib import Path
from typing import Annotated

import typer

from sefi.cli import options

File = Annotated[Path, typer.Argument(metavar="FILE", help="An identity file.")]


def inspect(file: File, as_json: options.AsJson = False) -> None:
    """Show who an identity file holds, how it was learned and for which model."""
    from sefi.cli.output import answer
    from sefi.core.nouns import Identity

    identity = Identity.load(file)
    record: dict[str, object] = identity.header.model_dump(mode="json")
    record["tensors"] = {name: list(tensor.shape) for name, tensor in identity.tensors.items()}
    record["bytes"] = file.stat().st_size
    if "tokens" in identity.tensors:
        norms = identity.tokens.float().norm(dim=-1)
        record["token_norms"] = [[round(float(norm), 4) for norm in stage] for stage in norms]
    shown = {name: value for name, value in record.items() if name != "signature"}  # long and for machines
    answer(record, told(shown), as_json=as_json, command="inspect")


def told(record: dict[str, object]) -> str:
    """One line for each entry; nested settings one line each, under their own names."""
    lines: list[str] = []
    for name, value in flattened("", record):
        lines.append(f"{name:<34} {value}")
    return "\n".join(lines)


def flattened(prefix: str, value: object) -> list[tuple[str, object]]:
    """Nested values as dotted names.

    >>> flattened("", {"a": {"b": 1}, "c": 2})
    [('a.b', 1), ('c', 2)]
    """
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    entries: list[tuple[str, object]] = []
    for name, inner in value.items():
        entries += flattened(f"{prefix}.{name}" if prefix else str(name), inner)
    return entries
