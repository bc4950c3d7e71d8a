"""A list of names to the token rows of their first and second words: what a model knows of named people."""

from pathlib import Path

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.conditioning.encode import get_token_row
from sefi.conditioning.prompt import tokenize_plain
from sefi.core.errors import ConfigError
from sefi.core.reading import LimitError, file_errors, read_text

COLUMNS = 2  # words of a name that count
LARGEST_LIST = 4 * 2**20  # bytes
MOST_NAMES, LONGEST_NAME = 50_000, 200
CHARACTERS = Path(__file__).parent.parent / "models" / "characters.txt"


def read_name_list(backbone: Backbone, listed: str | None) -> list[str]:
    """The names in a file, a line each, every one once; without a file those that the embedded model knows.

    Raises:
        ConfigError: the file cannot be read, or there is none for a model that is not the embedded one.
    """
    if listed is None and backbone.judges is None:
        raise ConfigError(
            "This model needs a list of the names that it knows.",
            "Write one name a line into a file and give it with --set basis.names=FILE.",
        )
    path = CHARACTERS if listed is None else Path(listed)
    with file_errors(path, ConfigError, "is no list of names", "Give a text file with a name a line."):
        lines = read_text(path, LARGEST_LIST).splitlines()
        if len(lines) > MOST_NAMES:
            raise LimitError(f"it has {len(lines):,} lines; at most {MOST_NAMES:,} are read")
        for number, line in enumerate(lines, 1):
            if len(line) > LONGEST_NAME:
                raise LimitError(f"line {number} has more than {LONGEST_NAME} letters")
        found = sorted({line.strip() for line in lines if line.strip()})
        if not found:
            raise LimitError("it has no name")
        return found


def look_up_name_rows(backbone: Backbone, names: list[str]) -> list[Tensor]:
    """Token-table rows of the names' first words and of their second, each `[name, width]`.

    Source: Celeb Basis, `_get_celeb_embeddings`: later tokens of a name do not count.

    Raises:
        ConfigError: fewer than two names have a first or a second token.
    """
    ids = [tokenize_plain(backbone.tokenizer, name) for name in names]
    columns = [[one[column] for one in ids if len(one) > column] for column in range(COLUMNS)]
    if min(map(len, columns)) < COLUMNS:
        raise ConfigError("The list has too few names of two words.", "Give a longer list with basis.names.")
    return [torch.stack([get_token_row(backbone, token) for token in column]) for column in columns]
