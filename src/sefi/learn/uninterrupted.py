"""Ctrl-C waits while an update is under way, so that a stopped run never keeps half of one."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def delay_interrupts() -> Generator[None]:
    """An interrupt that arrives within the block is raised once on leaving it.

    Python delivers signals to the main thread only, so other threads need no guard and get none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: arrived.append(number))
    try:
        yield
    finally:
        # None: a handler that was not set from Python; it cannot be put back, the default is the closest.
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
        if arrived:
            signal.raise_signal(signal.SIGINT)
