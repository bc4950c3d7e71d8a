"""Texts that are no UTF-8: Python reads such bytes of a command line as halves of characters."""

import re

HALF = re.compile("[\ud800-\udfff]")


def is_utf8(text: str) -> bool:
    r"""Return whether a text can be written in UTF-8.

    >>> is_utf8("zoë"), is_utf8("zo\udceb")
    (True, False)
    """
    return text.isascii() or not HALF.search(text)


def escape_halves(text: str) -> str:
    r"""Return a text that can be written in UTF-8, halves of characters as escapes; names of files may have them.

    >>> escape_halves("zo\udceb")
    'zo\\udceb'
    """
    return text if is_utf8(text) else text.encode("utf-8", "backslashreplace").decode("utf-8")
