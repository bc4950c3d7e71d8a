"""Act as a user whom permissions bind: root reads what nobody may read, unless it gives up two of its capabilities."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VERSION = 0x20080522  # of the system's structure, with two words for each set
READING = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextmanager
def obey_permissions() -> Iterator[None]:
    """Give up root's right to pass by permissions, for a block; a test is skipped where that cannot be done."""
    if os.name != "posix":
        pytest.skip("permissions of folders are of POSIX systems")
    if os.geteuid() != 0:
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("root gives up capabilities on Linux only")
    library = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    if library.capget(header, sets) != 0:
        pytest.skip("the system does not say which capabilities there are")
    before = sets[0]
    sets[0] = before & ~READING  # those in effect; it may take them again
    if library.capset(header, sets) != 0:
        pytest.skip("capabilities cannot be given up here")
    try:
        yield
    finally:
        sets[0] = before
        assert library.capset(header, sets) == 0
