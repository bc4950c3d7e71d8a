"""`sefi key`: the key of this installation, by which it knows its own images again."""

from typing import Annotated

import typer

from sefi.cli import options
from sefi.cli.output import print_answer

Create = Annotated[bool, typer.Option("--create", help="Make one; it stays on this machine.")]


def run_key(create: Create = False, as_json: options.AsJson = False) -> None:
    """Say whether this installation has a key, and its number; `sefi verify` then knows the images made here."""
    from sefi.core.errors import ConfigError
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
            raise ConfigError(
                f"'{path}' exists.", "Keep it: images that were marked with it would no longer be known."
            ) from None
    number = compute_installation_number(read_installation_key())
    text = f"installation {number}: {path}" if number else "no key: images bear no number. Make one with --create."
    print_answer({"file": str(path), "installation": number or None}, text, as_json=as_json, command="key")
