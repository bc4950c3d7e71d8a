"""Let the n-th operation on the files of a folder fail, in a forked child that runs the program.

Opening (for reading and for writing), renaming, linking, removing, making and changing the permissions of files are
seen by an audit hook of Python, which no code goes round; writes and flushes are wrapped; what safetensors writes in
its own language is one write. A write that fails has written half, as on a disk that is full by then.
"""

import builtins
import errno
import io
import json
import os
import re
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
from safetensors import SafetensorError
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from sefi.cli.app import app

EVENTS = {
    "os.rename": "rename", "os.link": "link", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "rmdir",
    "os.chmod": "chmod", "os.truncate": "truncate",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR
ERRORS = {
    "full disk": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "broken disk": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "no memory": MemoryError,
}
TEMPORARY = re.compile(r"\.partial(\.\w+)?$")


@dataclass
class Injector:
    """Counts the operations on files below a folder, and lets one of them fail.

    Attributes:
        number: of the operation that fails, from 1; 0 lets none fail.
        error: makes what is raised.
        watch: called before each operation.
        seen: the kinds of the operations so far.
    """

    folder: Path
    number: int = 0
    error: Callable[[], BaseException] = ERRORS["broken disk"]
    watch: Callable[[], object] = lambda: None
    seen: list[str] = field(default_factory=list)
    busy: bool = False

    def is_ours(self, path: object) -> bool:
        """Return whether a path or the number of an open file leads below the folder."""
        with suppress(OSError, TypeError):
            if isinstance(path, int):
                return Path(f"/proc/self/fd/{path}").readlink().is_relative_to(self.folder)
            return Path(os.fsdecode(path)).absolute().is_relative_to(self.folder)
        return False

    def count(self, kind: str) -> BaseException | None:
        """Count an operation; return the error that it fails with."""
        if self.busy:
            return None
        self.busy = True
        self.watch()
        self.busy = False
        self.seen.append(kind)
        return self.error() if len(self.seen) == self.number else None

    def check(self, kind: str) -> None:
        """Count an operation; raise its error."""
        error = self.count(kind)
        if error is not None:
            raise error

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See what Python is about to do."""
        if self.busy or not arguments or not (event == "open" or event in EVENTS) or not self.is_ours(arguments[0]):
            return
        if event != "open":
            self.check(EVENTS[event])
        elif not isinstance(arguments[0], int):
            self.check("open to write" if arguments[2] & WRITING else "open to read")

    def install(self) -> None:
        """Stand between this process and its files, until it ends."""
        whole_open, whole_write, whole_flush = io.open, os.write, os.fsync

        def open_watched(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            opened = whole_open(file, mode, *arguments, **options)
            return WatchedFile(opened, self) if set(mode) & set("wax+") and self.is_ours(file) else opened

        def write(handle: int, data: bytes) -> int:
            if self.is_ours(handle) and (error := self.count("write")):
                whole_write(handle, data[: len(data) // 2])
                raise error
            return whole_write(handle, data)

        def flush(handle: int) -> None:
            if self.is_ours(handle):
                self.check("fsync")
            whole_flush(handle)

        io.open = builtins.open = open_watched
        os.write, os.fsync = write, flush
        for module in (safetensors.torch, safetensors.numpy):
            module.serialize_file = self.wrap_native(module.serialize_file)
        sys.addaudithook(self.audit)

    def wrap_native(self, serialize_file: Callable[..., None]) -> Callable[..., None]:
        """Return safetensors' own function with one write that may fail, in the way in which it says so."""

        def serialize(tensors: Any, filename: Any, metadata: Any = None) -> None:
            error = self.count("write") if self.is_ours(filename) else None
            serialize_file(tensors, filename, metadata)
            if error is not None:
                os.truncate(filename, Path(filename).stat().st_size // 2)
                raise error if isinstance(error, MemoryError) else SafetensorError(f"I/O error: {error}")

        return serialize


class WatchedFile:
    """An open file whose writes are counted."""

    def __init__(self, file: Any, injector: Injector) -> None:
        self.file, self.injector = file, injector

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __iter__(self) -> Any:
        return iter(self.file)

    def write(self, data: Any) -> int:
        """Write all, or half and fail."""
        error = self.injector.count("write")
        if error is not None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise error
        return self.file.write(data)


class Allocations(TorchDispatchMode):
    """Counts the operations that give tensors, and lets one of them have no memory.

    Attributes:
        number: of the operation that fails, from 1; 0 lets none fail.
        seen: one entry for each operation so far.
    """

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self.number, self.seen, self.busy = number, [], False

    def install(self) -> None:
        """Count from now on, until this process ends."""
        self.__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append("")
        if len(self.seen) == self.number:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return func(*args, **(kwargs or {}))


# ------------------------------------------------------------------ a run in a child


@dataclass(frozen=True)
class Ending:
    """How the program ended in a child.

    Attributes:
        code: exit code; negative is the signal that killed it.
        output: what it printed.
        seen: the kinds of the operations that were counted.
    """

    code: int
    output: str
    seen: tuple[str, ...] = ()


def run_program(words: Sequence[object]) -> tuple[int, str]:
    """Run the program in this process; return exit code and output."""
    found = CliRunner().invoke(app, [str(word) for word in words])
    return found.exit_code, found.output + (repr(found.exception) if found.exit_code == 1 else "")


def run_forked(
    words: Sequence[object], injector: Injector | Allocations | None = None, prepare: Callable[[], object] = int
) -> Ending:
    """Run the program in a child, where operations may fail, and return how it ended.

    Args:
        prepare: called in the child, before the program.
    """
    reading, writing = os.pipe()
    child = fork()
    if not child:
        code = 1
        try:
            os.close(reading)
            prepare()
            if injector is not None:
                injector.install()
            code, output = run_program(words)
            if injector is not None:
                injector.busy = True
            answer = json.dumps([output, injector.seen if injector is not None else []]).encode()
            while answer:
                answer = answer[os.write(writing, answer) :]
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output, seen = json.loads(answer) if answer else ("", [])
    return Ending(code, output, tuple(seen))


def fork() -> int:
    """Fork this process; warnings of threads are left out, since the parent's are idle."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond a size in bytes: writing fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
