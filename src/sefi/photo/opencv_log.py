"""OpenCV without notices that no user can act on."""

from collections.abc import Generator
from contextlib import contextmanager

import cv2

ERRORS_ONLY = 2


@contextmanager
def errors_only() -> Generator[None]:
    """Opening a network warns that its target cannot be chosen; within the block only errors are printed."""
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(ERRORS_ONLY)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)
