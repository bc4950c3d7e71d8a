"""Fill the tables of docs/methods.md from what the methods say of themselves.

Run it as `python experiments/methods_page.py`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from sefi.core.config import describe_settings, list_setting_names
from sefi.core.files import write_text
from sefi.methods import BUILT_IN, METHODS, is_of_tokens

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
TABLE = re.compile(r"(<!-- methods -->\n).*?(<!-- end -->)", re.DOTALL)
SETTINGS = re.compile(r"(<!-- settings -->\n).*?(<!-- end settings -->)", re.DOTALL)
HEAD = (
    "method",
    "what is stored of a subject",
    "several in one prompt",
    "file, embedded model",
    "needs in addition to the photo",
)


def format_table() -> str:
    """Return the rows of the methods of this package, those whose identities are tokens first."""
    names = sorted(BUILT_IN, key=lambda name: not is_of_tokens(name))
    return join_rows([HEAD, *map(list_cells, names)])


def format_settings_table() -> str:
    """Return a row for every setting that not all methods have, with the methods that have it."""
    common = list_setting_names()
    meanings = {
        (name, about): [one for one in BUILT_IN if describe_settings(METHODS[one].config_type).get(name) == about]
        for method in BUILT_IN
        for name, about in describe_settings(METHODS[method].config_type).items()
        if name not in common
    }
    rows = [
        (f"`{name}`", about, ", ".join(f"`{method}`" for method in owners))
        for (name, about), owners in meanings.items()
    ]
    return join_rows([("setting", "meaning", "methods"), *sorted(rows)])


def join_rows(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a Markdown table; the first is its head."""
    head, *rest = (f"| {' | '.join(cells)} |\n" for cells in rows)
    return "".join([head, "|---" * len(rows[0]), "|\n", *rest])


def list_cells(name: str) -> tuple[str, ...]:
    """Return the cells of a method's row."""
    info = METHODS[name].info
    return (
        f"`{name}` ({info.title})",
        info.keeps,
        "no" if info.alone else "yes",
        format_size(info.kilobytes),
        info.needs,
    )


def format_size(kilobytes: float) -> str:
    """Return a file's size in KB, or in MB from 300 KB on."""
    return f"{kilobytes:g} KB" if kilobytes < 300 else f"{kilobytes / 1000:g} MB"


def fill_page(text: str) -> str:
    """Return the page with the tables as they should be."""
    for place, table in ((TABLE, format_table()), (SETTINGS, format_settings_table())):
        text = place.sub(lambda found, table=table: f"{found[1]}{table}{found[2]}", text)
    return text


def main() -> None:
    """Write the page."""
    write_text(PAGE, fill_page(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
