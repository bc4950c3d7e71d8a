"""`sefi forget`: remove an identity and what is known to hold its likeness, or what interrupted commands left."""

from pathlib import Path
from typing import Annotated

import typer

from sefi.cli import options

Target = Annotated[
    str | None, typer.Argument(metavar="NAME|FILE", help="An identity file, or ada for ada.safetensors.")
]
Folders = Annotated[
    list[Path] | None,
    typer.Option(
        "--in", metavar="DIR", help="Search here too, with all folders below; repeatable. The file's own always."
    ),
]
Leftovers = Annotated[
    bool, typer.Option("--leftovers", help="Remove .unfinished and .partial files that are older than an hour.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
NOT_REMOVED = 1


def run_forget(
    target: Target = None,
    folders: Folders = None,
    leftovers: Leftovers = False,
    yes: Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove an identity, its copies, unfinished trainings, images and records; exit code 1 if anything is left."""
    from sefi.cli.output import print_answer, print_remark
    from sefi.core.errors import ConfigError
    from sefi.provenance.forget import Trace, list_leftovers, list_traces, remove_leftovers, remove_traces

    if (target is None) == (not leftovers):
        raise ConfigError("Nothing is named to forget, or two things.", "Name an identity, or give --leftovers.")
    places = [Path.cwd(), *(folders or [])]
    missing = [folder for folder in places if not folder.is_dir()]
    if missing:
        raise ConfigError(f"There is no folder '{missing[0]}'.", "Change --in.")
    file = Path(target or ".")
    if target is not None and not file.is_file():
        file = Path(f"{target}.safetensors")
    traces = [Trace(one, "a leftover") for one in list_leftovers(places)] if leftovers else list_traces(file, places)
    for trace in traces:
        print_remark(f"{trace.path}: {trace.reason}")
    if traces and not yes and (as_json or not typer.confirm(f"Remove these {len(traces)}?", err=True)):
        raise ConfigError("Nothing was removed.", "Add --yes to remove what is listed.")
    gone, left = remove_leftovers([one.path for one in traces]) if leftovers else remove_traces(traces, file)
    record: dict[str, object] = {
        "removed": [str(path) for path in gone],
        "left": [{"file": str(trace.path), "reason": trace.reason} for trace in left],
    }
    lines = [f"removed {len(gone)} file(s)", *(f"left: {trace.path}: {trace.reason}" for trace in left)]
    print_answer(record, "\n".join(lines), as_json=as_json, command="forget")
    if left:
        raise typer.Exit(NOT_REMOVED)
