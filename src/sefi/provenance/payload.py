"""The 32 bits of the invisible mark: the installation's number, and a check of the words in the image's file."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from sefi.core.errors import ConfigError
from sefi.core.files import make_folder, write_file
from sefi.core.reading import InvalidFileError, read_bytes, translate_file_errors

KEY_BYTES = 32
KEY_VARIABLE = "SEFI_KEY_FILE"
HALF_BITS = 16


def find_key_file() -> Path:
    """Return where this installation's key is, or would be: SEFI_KEY_FILE, or a file in the user's settings."""
    if named := os.environ.get(KEY_VARIABLE):
        return Path(named)
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(settings) / "sefi" / "installation.key"


def read_installation_key() -> bytes | None:
    """Read the installation's key; None if none was made, and images are then marked as everybody's.

    Raises:
        ConfigError: the file is no key.
    """
    path = find_key_file()
    if not os.path.lexists(path):
        return None
    remedy = f"Move it away, or name another with {KEY_VARIABLE}."
    with translate_file_errors(path, ConfigError, "is no key of an installation", remedy):
        key = read_bytes(path, KEY_BYTES)
        if len(key) != KEY_BYTES:
            raise InvalidFileError(f"it has {len(key)} bytes instead of {KEY_BYTES}")
    return key


def create_installation_key() -> Path:
    """Make a random key that only its owner may read; return its file.

    Raises:
        FileExistsError: there is one; images that were marked with it would no longer be known.
        OutputError: it cannot be written.
    """
    path = find_key_file()
    make_folder(path.parent)
    write_file(path, lambda partial: partial.write_bytes(secrets.token_bytes(KEY_BYTES)), replace=False, mode=0o600)
    return path


def compute_installation_number(key: bytes | None) -> int:
    """Compute the number, from 1 to 65,535, that stands for an installation; 0 without a key."""
    if key is None:
        return 0
    return 1 + int.from_bytes(hashlib.sha256(b"sefi installation" + key).digest()[:4]) % (2**HALF_BITS - 1)


def compute_payload(words: str, key: bytes | None) -> int:
    """Compute the payload of an image: the installation's number, then 16 bits that fit the words of its file.

    Whoever has the key can tell whether an image is theirs and its words are those it was saved with; without a key
    everybody can. By chance another image's words fit once in 65,536 times.

    Args:
        words: the parameters that the file says, as `format_parameters` writes them; empty where it says none.
    """
    check = hmac.digest(key or b"sefi", words.encode("utf-8", "surrogatepass"), "sha256")[:2]
    return compute_installation_number(key) << HALF_BITS | int.from_bytes(check)


def split_payload(payload: int) -> tuple[int, int]:
    """Return the installation's number and the check of the words."""
    return payload >> HALF_BITS, payload & (2**HALF_BITS - 1)
