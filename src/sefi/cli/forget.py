"""`sefi forget`: remove an identity and what is known to hold its likeness, or what interrupted commands left."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sefi.provenance.leftovers import Trace

Target = Annotated[
    str | None, typer.Argument(metavar="NAME|FILE", help="An identity file, or ada for ada.safetensors.")
]
Folders = Annotated[
    list[Path] | None,
    typer.Option(
        "--in",
        metavar="DIR",
        help="Also search this folder and all below it; repeatable. The identity's own folder is always searched.",
    ),
]
Leftovers = Annotated[
    bool, typer.Option("--leftovers", help="Remove .unfinished and .partial files that no process holds.")
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
    """Remove an identity, its copies, exports, images, pages and records; exit code 1 if anything is left."""
    from sefi.cli.output import print_answer, print_remark
    from sefi.core.errors import ConfigError
    from sefi.core.files import describe_missing_folder, get_current_folder, is_folder
    from sefi.provenance.leftovers import Trace, find_all_leftovers

    if (target is None) == (not leftovers):
        raise ConfigError(
            "Give either an identity to forget or --leftovers.", "Name an identity, or give --leftovers alone."
        )
    places = [get_current_folder(), *(folders or [])]
    missing = [folder for folder in places if not is_folder(folder)]
    if missing:
        raise ConfigError(describe_missing_folder(missing[0]), "Change --in.")
    file, unproven, unsearched = find_target(target or "."), list[Trace](), list[Trace]()
    if leftovers:
        found = find_all_leftovers(places)
        traces, unsearched = [Trace(one, "a leftover") for one in found.paths], found.unsearched
    else:
        traces, unproven = find_traces(file, places)
    for trace in traces:
        print_remark(f"{trace.path}: {trace.reason}")
    if traces and not yes and (as_json or not typer.confirm(f"Remove these {len(traces)}?", err=True)):
        raise ConfigError("Nothing was removed.", "Add --yes to remove what is listed.")
    gone, left = remove_all(traces, None if leftovers else file, places)
    left += unsearched
    record: dict[str, object] = {
        "removed": [str(path) for path in gone],
        "left": [{"file": str(trace.path), "reason": trace.reason} for trace in left],
        "unproven": [{"file": str(trace.path), "reason": trace.reason} for trace in unproven],
    }
    print_answer(record, format_removal(gone, left, unproven), as_json=as_json, command="forget")
    if left:
        raise typer.Exit(NOT_REMOVED)


def remove_all(
    traces: "Sequence[Trace]", file: Path | None, places: "Sequence[Path]"
) -> "tuple[list[Path], list[Trace]]":
    """Remove leftovers, or what is of an identity while no process can learn it; return what is gone, and what not."""
    from sefi.core.own_files import hold_output_lock
    from sefi.provenance.forget import remove_traces
    from sefi.provenance.leftovers import remove_leftovers

    if file is None:
        return remove_leftovers([one.path for one in traces])
    with hold_output_lock(file):
        return remove_traces(traces, file, places)


def find_target(target: str) -> Path:
    """Return the identity's file of a name or a path."""
    from sefi.core.files import is_regular_file

    file = Path(target)
    return file if is_regular_file(file) or file.suffix == ".safetensors" else Path(f"{target}.safetensors")


def refuse_link(file: Path) -> None:
    """Refuse a link to an identity: whose name is typed and whose file would go may be two people's.

    Raises:
        IdentityError: it is one; the remedy names what it leads to.
    """
    from sefi.core.errors import IdentityError

    if file.is_symlink():
        raise IdentityError(f"'{file}' is a link to '{file.resolve()}'.", "Name that file, and remove the link.")


def find_traces(file: Path, places: "Sequence[Path]") -> "tuple[list[Trace], list[Trace]]":
    """Return what is known to be of an identity, and what may be; also of one that a killed training left no file of.

    Raises:
        IdentityError: there is neither an identity nor an unfinished training of it.
    """
    from sefi.cli.progress import TerminalProgress
    from sefi.core.errors import IdentityError, SefiError
    from sefi.core.files import is_folder, is_regular_file
    from sefi.core.own_files import remove_stale_lock
    from sefi.provenance.forget import list_traces, read_sought_identity
    from sefi.provenance.leftovers import list_own_caches

    digests, shards = list[str](), set[str]()
    if is_folder(file.parent):
        from sefi.identity.file import list_shard_files

        shards = list_shard_files(file)
    if is_regular_file(file):
        from sefi.identity.file import Identity, list_identity_digests

        refuse_link(file)
        with suppress(SefiError):  # a damaged one is forgotten too, as far as it can be recognised
            digests += list_identity_digests(Identity.load(file))
    sought = read_sought_identity(file, digests, shards, is_sound=bool(digests))
    with TerminalProgress() as progress:
        traces, unproven = list_traces(sought, [*places, *list_own_caches()], progress, knows_tokens_only)
    if not traces and not is_regular_file(file):
        remove_stale_lock(file)  # all that a killed training may leave where the identity was removed by hand
        raise IdentityError(f"There is no identity '{file}'.", "Name the file that `sefi learn` wrote.")
    return traces, unproven


def knows_tokens_only(method: str) -> bool:
    """Return whether a method is known whose identities are applied by their tokens alone."""
    from sefi.core.errors import SefiError
    from sefi.methods.registry import is_of_tokens

    with suppress(SefiError):
        return is_of_tokens(method)
    return False  # it is another package's, which is not installed


def format_removal(gone: "Sequence[Path]", left: "Sequence[Trace]", unproven: "Sequence[Trace]") -> str:
    """Return what was removed, what was not, and what the user has to look at."""
    lines = [f"removed or cleared {len(gone)} file(s); photos of yours, and folders that were not named, stay"]
    lines += [f"left: {trace.path}: {trace.reason}" for trace in left]
    return "\n".join([*lines, *(f"look at it yourself: {trace.path}: {trace.reason}" for trace in unproven)])
