"""`sefi serve`: images over HTTP, of the identities in a folder."""

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options
from sefi.core.errors import ConfigError

if TYPE_CHECKING:
    from sefi.serve.app import ImageService, ServeOptions

KEY_VARIABLE = "SEFI_API_KEY"
SHORTEST_KEY, LONGEST_KEY = 16, 1000  # characters
LOCAL = "127.0.0.1"
LOCAL_HOSTS = (LOCAL, "localhost", "::1")
BACKLOG = 2048  # connections, as uvicorn has it
GRACE = 5  # seconds beyond the time of a request, until a stop no longer waits for it

Folder = Annotated[Path, typer.Option("--identities", metavar="DIR", help="Identity files, each NAME.safetensors.")]
Host = Annotated[
    str,
    typer.Option(
        "--host", metavar="ADDRESS", help="Address to listen on; any other than this machine's own needs an API key."
    ),
]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")]
Devices = Annotated[
    str, typer.Option("--device", metavar="DEVICES", help="auto, cpu, cuda, mps; several as cuda:0,cuda:1.")
]
MaxBatch = Annotated[int, typer.Option("--max-batch", min=1, max=256, help="Maximum images generated at once.")]
MaxWait = Annotated[float, typer.Option("--max-wait", min=0, max=10, help="Seconds an image waits for others.")]
MaxQueue = Annotated[
    int,
    typer.Option("--max-queue", min=1, max=100_000, help="Maximum waiting images; never fewer than --max-count."),
]
MaxCount = Annotated[int, typer.Option("--max-count", min=1, max=1024, help="Maximum images of one request.")]
MaxSteps = Annotated[int, typer.Option("--max-steps", min=1, max=10_000, help="Maximum steps of one request.")]
MaxPixels = Annotated[int, typer.Option("--max-pixels", min=64, help="Maximum pixels of one image.")]
MaxPrompt = Annotated[int, typer.Option("--max-prompt", min=1, max=4000, help="Maximum characters of a prompt.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, max=86_400, help="Seconds until a request is given up.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", metavar="FILE", help=f"A file with the key of requests; or set {KEY_VARIABLE}."),
]


def run_serve(
    identities: Folder = Path("identities"),
    model: options.Model = options.EMBEDDED,
    host: Host = LOCAL,
    port: Port = 8000,
    preset: options.Preset = "default",
    settings: options.GenerationSettings = None,
    max_batch: MaxBatch = 8,
    max_wait: MaxWait = 0.02,
    max_queue: MaxQueue = 64,
    max_count: MaxCount = 8,
    max_steps: MaxSteps = 100,
    max_pixels: MaxPixels = 1024 * 1024,
    max_prompt: MaxPrompt = 1000,
    timeout: Timeout = 120.0,
    api_key_file: KeyFile = None,
    no_safety_checker: options.NoSafetyChecker = False,
    no_mark: options.NoMark = False,
    download: options.Download = False,
    device: Devices = "auto",
    dtype: options.Precision = options.AUTO,
    as_json: options.AsJson = False,
) -> None:
    """Generate images over HTTP; <name> in a prompt stands for the file NAME.safetensors of a folder."""
    import fastapi
    import prometheus_client
    import uvicorn

    del fastapi, prometheus_client, uvicorn  # what is missing is said before a model is opened
    from sefi.cli.loading import load_generation_config
    from sefi.serve.app import ServeOptions
    from sefi.serve.limits import RequestLimits

    limits = RequestLimits(
        max_prompt, max_count, max_steps, max_pixels, timeout, max(max_queue, max_count), max_batch, max_wait
    )
    config = load_generation_config(preset, settings or [])
    key = read_api_key(api_key_file)
    check_exposure(host, key)
    serve = ServeOptions(config, limits, key, host in LOCAL_HOSTS, not no_safety_checker, not no_mark)
    check_identity_folder(identities)
    listener = bind_socket(host, port)
    with listener:
        service = open_service(ServedModel(model, device, dtype, download), identities, serve)
        report_start(service, listener, identities, as_json=as_json)
        run_server(service, listener)


@dataclass(frozen=True)
class ServedModel:
    """The model that a command line names, on one device or several."""

    name: str
    devices: str
    dtype: str
    download: bool


def read_api_key(file: Path | None) -> str | None:
    """Return the API key of a file or of the environment; None where there is none.

    Raises:
        ConfigError: it cannot be read, is too short, or has other characters than printable ASCII.
    """
    from sefi.core.reading import read_user_text, translate_file_errors

    key = os.environ.get(KEY_VARIABLE) or None
    if file is not None:
        with translate_file_errors(file, ConfigError, "holds no API key", "Write the key into it, on one line."):
            key = read_user_text(file, 4 * LONGEST_KEY).strip()
    if key is None:
        return None
    if not (SHORTEST_KEY <= len(key) <= LONGEST_KEY and key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"The API key is not {SHORTEST_KEY} to {LONGEST_KEY} letters, digits and signs.",
            "Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    return key


def check_exposure(host: str, key: str | None) -> None:
    """Refuse to listen to other machines without a key: whoever asks would get anybody's likeness.

    Raises:
        ConfigError: the host is not this machine, and there is no key.
    """
    if host not in LOCAL_HOSTS and key is None:
        raise ConfigError(
            f"With --host {host} every machine that reaches this one could ask for images of everybody in the folder.",
            f"Give an API key with --api-key-file or {KEY_VARIABLE}, or leave --host out.",
        )


def check_identity_folder(folder: Path) -> None:
    """Refuse a folder of identities that is not there, with `ConfigError`, before a model is opened."""
    from sefi.core.files import describe_missing_folder, is_folder

    if not is_folder(folder):
        raise ConfigError(describe_missing_folder(folder), "Name the folder of identity files with --identities.")


def bind_socket(host: str, port: int) -> socket.socket:
    """Bind the address that is listened at, before a model is opened; `ConfigError` where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # who asks before the model is open waits
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Nothing can listen at {host}:{port}: {error.strerror or error}.", "Choose another --port, or --host."
        ) from None
    return listener


def open_service(model: ServedModel, folder: Path, serve: "ServeOptions") -> "ImageService":
    """Open the model on each device, and the folder; errors as of `load_backbone` and of `ImageService.check`."""
    from sefi.cli.loading import load_backbone
    from sefi.serve.app import ImageService, open_identities

    backbones = [
        load_backbone(model.name, download=model.download, device=one.strip(), dtype=model.dtype)
        for one in model.devices.split(",")
    ]
    service = ImageService(backbones, open_identities(folder, backbones[0]), serve)
    service.check()
    return service


def report_start(service: "ImageService", listener: socket.socket, folder: Path, *, as_json: bool) -> None:
    """Say where images are to be had, and who may have them."""
    from sefi.cli.output import print_answer, print_remark

    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    record: dict[str, object] = {
        "address": address,
        "identities": str(folder),
        "names": len(service.folder.list_names()),
        "base_model": service.backbone.fingerprint,
        "workers": len(service.workers),
        "key": service.options.key is not None,
        "mark": service.options.mark,
    }
    who = "this machine only" if service.options.local else "every machine that reaches this one"
    print_remark(f"note: it listens to {who}, {'with' if record['key'] else 'without'} an API key; Ctrl-C ends it")
    print_answer(record, f"{address}: {record['names']} identities of {folder}", as_json=as_json, command="serve")


def run_server(service: "ImageService", listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM; what was taken is finished, new requests are refused.

    A second Ctrl-C ends the process at once: nothing is on disk that could be left half done, and uvicorn's own way out
    leaves threads behind that are still drawing.
    """
    import uvicorn

    from sefi.cli.output import print_remark
    from sefi.core.errors import Interrupted
    from sefi.serve.app import create_app

    server = uvicorn.Server(
        uvicorn.Config(
            create_app(service),
            log_config=None,  # no line for each request: prompts and people are nobody's business
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(service.options.limits.seconds + GRACE),
        )
    )
    handle_exit = server.handle_exit

    def stop(number: int, frame: object) -> None:
        if server.should_exit and number == signal.SIGINT:
            print_remark("stopped at once: requests that were not finished have no answer")
            os._exit(Interrupted.exit_code)
        service.stop()
        handle_exit(number, frame)  # pyright: ignore[reportArgumentType]

    server.handle_exit = stop  # pyright: ignore[reportAttributeAccessIssue]
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when all is done
        server.run(sockets=[listener])
    print_remark("stopped: every request that was taken has its answer")
