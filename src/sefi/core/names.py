"""What an identity may be called: safe as a placeholder and as a file name."""

import re

from sefi.core.errors import IdentityError

NAME = r"[A-Za-z0-9_-]{1,64}"


def check_name(name: str) -> None:
    """Refuse names that could not be a placeholder or a file.

    Raises:
        IdentityError: it holds anything but letters a to z, digits, `-` and `_`, or is empty or too long.
    """
    if not re.fullmatch(NAME, name):
        raise IdentityError(
            f"{name!r} cannot be a name.",
            "Use 1 to 64 of a-z, A-Z, 0-9, - and _, no brackets, as in ada.",
        )
