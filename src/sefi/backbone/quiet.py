"""The model libraries while they load: one load at a time, silent where their messages would only confuse."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

# While a library loads a model, it changes the whole process: how much is logged, torch's default number type, and what
# a new module gets for its parameters (nothing, on the meta device). Whoever loads or makes modules holds this lock.
LOADING = threading.RLock()


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Hide diffusers' and transformers' progress bars and warnings; both are put back after. Others who load wait.

    What matters in them (missing weights, foreign classes) is checked and raised by the readers.
    """
    with LOADING:
        libraries = (diffusers_logging, transformers_logging)
        before = [(lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in libraries]
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, (verbosity, bars) in zip(libraries, before, strict=True):
                library.set_verbosity(verbosity)
                if bars:
                    library.enable_progress_bar()
