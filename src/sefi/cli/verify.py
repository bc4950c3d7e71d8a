"""`sefi verify`: which images say, by their words, an invisible mark or a signature, that a machine made them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sefi.cli import options
from sefi.cli.output import print_answer

if TYPE_CHECKING:
    from sefi.core.errors import SefiError
    from sefi.provenance.verify import Verification

UNREADABLE = 1

Images = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="PNG, JPEG and WebP images, and folders.")]


def run_verify(images: Images, as_json: options.AsJson = False) -> None:
    """Say which marks IMAGES bear: words of origin, the invisible mark, content credentials; exit 1 if any is unread.

    PNG, JPEG and WebP are read; images of other formats in a folder are listed as unread.

    An image without a mark may still be generated: marks can be removed, and other programs have others.
    """
    from sefi.cli.progress import TerminalProgress
    from sefi.core.errors import SefiError
    from sefi.provenance.mark import FALSE_ALARMS
    from sefi.provenance.payload import read_installation_key
    from sefi.provenance.verify import list_images, verify_image

    closed: list[Path] = []
    key, paths = read_installation_key(), list_images(images, closed)
    checked: list[Verification] = []
    unread = [(folder, make_unread_error(folder)) for folder in dict.fromkeys(closed)]
    with TerminalProgress() as progress:
        progress.start(len(paths), "looking for marks")
        for path in paths:
            try:
                checked.append(verify_image(path, key))
            except SefiError as error:
                unread.append((path, error))
            progress.advance()
        progress.finish()
    record: dict[str, object] = {
        "images": [describe_verification(one) for one in checked],
        "marked": sum(one.is_marked for one in checked),
        "unreadable": [{"file": str(path), "error": error.problem} for path, error in unread],
        "false_alarm_bound": FALSE_ALARMS,
    }
    print_answer(record, format_verifications(checked, unread), as_json=as_json, command="verify")
    if unread:
        raise typer.Exit(UNREADABLE)


def make_unread_error(folder: Path) -> "SefiError":
    """Return the error of a folder that cannot be read: nobody knows whether it has images."""
    from sefi.core.errors import PhotoError

    return PhotoError(f"The folder '{folder}' cannot be read.", "Make it readable, or name other folders.")


def describe_verification(found: "Verification") -> dict[str, Any]:
    """Return what an image bears as plain values."""
    mark, signed = found.mark, found.credentials
    return {
        "file": str(found.path),
        "size": list(found.size),
        "source_type": found.source_type,
        "parameters": found.parameters,
        "invisible_mark": None
        if mark is None
        else {
            "strength": round(mark.strength, 2),
            "false_alarm": mark.false_alarm,
            "scale": round(mark.scale, 4),
            "angle": round(mark.angle, 2),
            "payload": None if mark.payload is None else f"{mark.payload:08x}",
        },
        "installation": found.installation,
        "this_installation": found.is_ours,
        "words_fit": found.words_fit,
        "content_credentials": None if signed is None else vars(signed),
    }


def format_verifications(checked: "list[Verification]", unread: "list[tuple[Path, SefiError]]") -> str:
    """Format a line for each image, and what the columns mean."""
    from sefi.core.text import escape_controls
    from sefi.provenance.mark import FALSE_ALARMS

    names = [escape_controls(str(one.path)) for one in checked]
    width = min(48, max([len(name) for name in names], default=5))
    lines = (
        [f"{'image':{width}}  {'words':10} {'invisible mark':22} {'payload':28} content credentials"] if checked else []
    )
    for name, one in zip(names, checked, strict=True):
        words = "generated" if one.is_declared else "other" if one.source_type else "none"
        lines.append(
            f"{name:{width}}  {words:10} {format_mark(one):22} {format_payload(one):28} {format_signature(one)}"
        )
    marked = sum(one.is_marked for one in checked)
    lines += [escape_controls(error.problem) for _, error in unread]
    lines.append(
        f"{marked} of {len(checked)} images say that a trained model made them. An unmarked image seems to bear the "
        f"invisible mark at most once in {1 / FALSE_ALARMS:,.0f}. One without marks may be generated all the same: "
        "marks can be removed."
    )
    return "\n".join(lines)


def format_mark(found: "Verification") -> str:
    """Format how strong the invisible mark is."""
    if found.mark is None:
        return "none"
    pose = "" if (found.mark.scale, found.mark.angle) == (1, 0) else f", at {found.mark.scale:.2f}"
    return f"yes, strength {found.mark.strength:.0f}{pose}"


def format_payload(found: "Verification") -> str:
    """Format who made an image, and whether its words are those it was saved with."""
    if found.installation is None:
        return "-"
    number = f"installation {found.installation}" if found.installation else "no number"
    maker = "this installation" if found.is_ours else number
    fit = {True: ", words fit", False: ", OTHER WORDS", None: ""}[found.words_fit]
    return maker + fit


def format_signature(found: "Verification") -> str:
    """Format what the content credentials say."""
    signed = found.credentials
    if signed is None:
        return "not checked (pip install 'sefi[provenance]')"
    if not signed.present:
        return "none"
    if signed.remote:
        return "elsewhere, not fetched"
    if not signed.valid:
        return "DAMAGED"
    return f"{'trusted' if signed.trusted else 'valid, untrusted'}: {signed.signer}"
