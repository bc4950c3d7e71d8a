"""Errors that say what is wrong in one sentence and what to do in another; and the signals that interrupt work."""

import errno
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from sefi.core.process import return_freed_memory

if TYPE_CHECKING:
    from pydantic import ValidationError

TRACE = "SEFI_DEBUG"  # set and not empty: an error that nobody foresaw prints its trace
LONGEST_MESSAGE = 300  # characters of an error's own words in a message
REMARKS = "sefi.remarks"  # the logger of what a user should know; the command line says it itself, and silences it


class SefiError(Exception):
    """An error that a user can fix.

    Args:
        problem: what is wrong, one sentence.
        remedy: what to do, one sentence.
    """

    exit_code = 2
    lacks_memory = False  # whether there was no memory, so that another try may succeed

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["SefiError"], tuple[str, str], dict[str, bool]]:
        """Return what another process rebuilds this error from: problem and remedy, not the joined message."""
        return type(self), (self.problem, self.remedy), {"lacks_memory": self.lacks_memory}


def make_memory_error(kind: type[SefiError], problem: str, remedy: str) -> SefiError:
    """Return an error that says that there was not enough memory."""
    error = kind(problem, remedy)
    error.lacks_memory = True
    return error


def check_type(value: object, kinds: type | tuple[type, ...], what: str, error: type[SefiError], remedy: str) -> None:
    """Refuse a value of another type than those that are used, before it fails somewhere deep inside.

    Args:
        what: what the value is given as, such as "The photo".

    Raises:
        SefiError: `error`, with the value's type.
    """
    if not isinstance(value, kinds):
        raise error(f"{what} is of the type {type(value).__name__}, which cannot be used.", remedy)


# In place of pydantic's words for Python's types: files and the command line have lists and tables of keys.
FILE_WORDS = {"tuple_type": "Input should be a valid list", "model_type": "Input should be a table of keys"}


def describe_first_fault(error: "ValidationError", place: Sequence[str] | None = None) -> str:
    """Describe what pydantic found wrong first: its place, or the one that is given, and its message."""
    fault = error.errors()[0]
    field = ".".join(map(str, fault["loc"] if place is None else place))
    words = FILE_WORDS.get(fault["type"], fault["msg"])
    message = words.removeprefix("Value error, ").replace("Tuple should", "List should")
    return f"{field}: {message}" if field else message


def suggest_install(extra: str) -> str:
    """Return what to do where an extra is missing.

    >>> suggest_install("lora")
    'In a clone of the repository run: pip install ".[lora]".'
    """
    return f'In a clone of the repository run: pip install ".[{extra}]".'


NO_PRIMITIVE = "could not create a primitive"  # oneDNN has no room for its scratch space or its code
UNLOADABLE = "failed to map segment"  # the loader of libraries: no address space, or a folder that allows no programs
# How torch and the libraries below it say that there is no memory, on processors and on accelerators.
NO_MEMORY = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "_STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
    NO_PRIMITIVE,
    "could not create a memory",
    "Insufficient memory",  # OpenCV
    UNLOADABLE,
)
# What a disk or a system answers that cannot do what was asked: no fault of the program.
DISK_FAULTS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)
LESS_MEMORY = "Close other programs, use --dtype bfloat16, or another --device: `sefi doctor` lists them."
LONGEST_REASON = 80  # characters of a library's words in a message


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no memory for what was computed.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory")), is_out_of_memory(ValueError("a"))
    (True, False)
    """
    if isinstance(error, SefiError):
        return error.lacks_memory
    if isinstance(error, MemoryError):
        return True
    # OpenCV's errors are of no type that Python has.
    if not isinstance(error, RuntimeError | ImportError) and type(error).__module__ != "cv2":
        return False
    # Libraries that import their parts late raise an error of their own from what went wrong.
    caused = error.__cause__ is not None and is_out_of_memory(error.__cause__)
    return caused or any(words in str(error) for words in NO_MEMORY)


def describe_machine_fault(error: BaseException) -> SefiError | None:
    """Return the error to report where the machine lacks memory or space, or its disk fails; None for other errors."""
    if UNLOADABLE in str(error):
        remedy = "Close other programs, or allow more memory (`ulimit -v`); the folder of Python must allow programs."
        return SefiError("There is not enough memory to load the libraries.", remedy)
    if is_out_of_memory(error):
        return SefiError("There is not enough memory.", "Close other programs, or run it with less: smaller images.")
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        place = f"'{error.filename}': " if error.filename else ""
        return SefiError(f"{place}{error.strerror}.", "Check the disk and its free space, and run the command again.")
    return None


def join_message(error: BaseException) -> str:
    """Return what an error says, in one line of at most 300 characters.

    >>> join_message(ValueError("two   words")), join_message(ValueError())
    ('two words', '')
    """
    return " ".join(str(error).split())[:LONGEST_MESSAGE]


def shorten_reason(error: BaseException) -> str:
    """Return a library's own words on a lack of memory, one sentence, for a message.

    >>> shorten_reason(RuntimeError("at alloc.cpp. CUDA out of memory. Tried 2 GiB")), shorten_reason(MemoryError())
    ('CUDA out of memory', 'MemoryError')
    """
    sentences = str(error).replace("\n", ". ").split(". ")
    chosen = [one for one in sentences if any(words in one for words in NO_MEMORY)]
    return chosen[0].strip()[:LONGEST_REASON] if chosen else type(error).__name__


def release_memory(reason: str = "") -> None:
    """Give back the memory that a failed computation held: circles of its frames, and what allocators hold back.

    Args:
        reason: how a library said that there is no memory. Once oneDNN had none for the code of a primitive, this
            thread gets no new primitive, however much is free: its assembler never clears the error. torch computes
            without oneDNN from then on.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and NO_PRIMITIVE in reason:
        torch.backends.mkldnn.set_flags(_enabled=False)
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return_freed_memory()


class PhotoError(SefiError):
    """The photo cannot be read."""


class FaceError(SefiError):
    """The photo has no face, several, or one that is too small."""


class PromptError(SefiError):
    """The prompt and the identities do not fit, or a word is not one token."""


class IdentityError(SefiError):
    """The identity file is damaged, foreign, or was learned on another model."""


class BackboneError(SefiError):
    """The text-to-image model cannot be opened or used."""


class ConfigError(SefiError):
    """A setting is unknown or out of range."""


def make_idle_option_error(option: str, needed: str) -> ConfigError:
    """Return the error for an option that has no effect without another one.

    >>> make_idle_option_error("--mask", "--init-image").problem
    '--mask has no effect without --init-image.'
    """
    return ConfigError(f"{option} has no effect without {needed}.", f"Give {needed} too, or leave {option} out.")


class MethodError(SefiError):
    """A method that another package brings cannot be used, fails, or gives what cannot be learned."""


class GenerationError(SefiError):
    """An image came out as something else than finite numbers."""


class OutputError(SefiError):
    """A result cannot be written."""


class Interrupted(SefiError):
    """The user stopped the work; the remedy says what was kept."""

    exit_code = 130


class Terminated(Interrupted):
    """The system stopped the work by SIGTERM; the remedy says what was kept."""

    exit_code = 143


class TerminationSignal(KeyboardInterrupt):
    """SIGTERM where it is answered as Ctrl-C is: what is done is saved before the end."""


def make_interrupted(stop: KeyboardInterrupt, problem: str, remedy: str) -> Interrupted:
    """Return the error for work that was stopped by Ctrl-C or by SIGTERM."""
    return (Terminated if isinstance(stop, TerminationSignal) else Interrupted)(problem, remedy)


def find_interrupt(error: BaseException) -> KeyboardInterrupt | None:
    """Return the Ctrl-C or SIGTERM that a library answered with an ImportError, as it arrived while it was loaded."""
    seen: list[BaseException] = []
    following: BaseException | None = error if isinstance(error, ImportError) else None
    while following is not None and following not in seen:  # causes may go in a circle
        if isinstance(following, KeyboardInterrupt):
            return following
        seen.append(following)
        following = following.__context__ if following.__cause__ is None else following.__cause__
    return None


def is_external(error: BaseException) -> bool:
    """Return whether an error is no fault of the code that raised it: an interrupt, or what the machine lacks.

    >>> is_external(OSError(errno.ENOSPC, "No space left on device")), is_external(KeyError("tokens"))
    (True, False)
    """
    return find_interrupt(error) is not None or describe_machine_fault(error) is not None


def print_trace(error: BaseException) -> None:
    """Print the trace of an error that only a change of code mends, where `--debug` asks for it."""
    if os.environ.get(TRACE) and (isinstance(error, MethodError) or not isinstance(error, SefiError)):
        traceback.print_exception(error, file=sys.stderr)


@contextmanager
def answer_termination() -> Generator[None]:
    """Let SIGTERM raise `TerminationSignal` in the block; where it is ignored, or in other threads, all stays as it is.

    Python delivers signals to the main thread only.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, raise_termination)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def raise_termination(_number: int, _frame: object) -> NoReturn:
    """Raise `TerminationSignal`; a handler of signals."""
    raise TerminationSignal


@contextmanager
def delay_interrupts(*, second_stops: bool = False) -> Generator[list[int]]:
    """Delay SIGINT and SIGTERM that arrive within the block, and raise them on leaving.

    Python delivers signals to the main thread only, so other threads need no guard and get none. A signal that is
    ignored, or that ends the process without Python, stays as it is.

    Args:
        second_stops: a second one ends the block at once.

    Yields:
        The numbers of those that have arrived.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if callable(handler)}

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if second_stops and len(arrived) > 1:
            before[signal.Signals(number)](number, frame)

    for number in before:
        signal.signal(number, note)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if not second_stops or len(arrived) == 1:
            for number in arrived:
                signal.raise_signal(number)
