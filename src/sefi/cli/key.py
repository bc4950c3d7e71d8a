"""`sefi key`: whether this installation has a key, and its number in the invisible mark."""

from typing import Annotated

import typer

from sefi.cli import options

Create = Annotated[
    bool,
    typer.Option("--create", help="Make a key; the invisible mark of images saved from then on carries its number."),
]


def run_key(create: Create = False, as_json: options.AsJson = False) -> None:
    """Show the number that this installation's images carry in their invisible mark, or make its key."""
    from sefi.cli.output import print_answer
    from sefi.core.errors import OutputError
    from sefi.provenance.payload import (
        compute_installation_number,
        create_installation_key,
        find_key_file,
        read_installation_key,
    )

    path = find_key_file()
    if create:
        try:
            create_installation_key()
        except FileExistsError:
            remedy = "Move it away first; images that were marked with it are then no longer known."
            raise OutputError(f"There is a key already, '{path}'.", remedy) from None
    key = read_installation_key()
    number = compute_installation_number(key)
    record: dict[str, object] = {"file": str(path), "exists": key is not None, "number": number}
    text = f"installation {number}, by the key in '{path}'"
    if key is None:
        text = "no key: images carry the number 0, as everybody's\nnext: sefi key --create"
    print_answer(record, text, as_json=as_json, command="key")
