"""OpenCV without notices that no user can act on."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

import cv2

ERRORS_ONLY = 2
LEVEL = threading.RLock()  # the level belongs to the process: who changes it puts it back before another does


@contextmanager
def errors_only() -> Generator[None]:
    """Opening a network warns that its target cannot be chosen; within the block only errors are printed."""
    with LEVEL:
        before = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(ERRORS_ONLY)
        try:
            yield
        finally:
            cv2.utils.logging.setLogLevel(before)
