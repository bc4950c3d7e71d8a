"""What a request may ask for, what it is answered where it asks for more, and the guard before every handler."""

import hmac
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sefi.core.config import LARGEST_STRENGTH
from sefi.core.errors import BackboneError, GenerationError, OutputError, SefiError
from sefi.core.rng import LARGEST_SEED
from sefi.core.text import dump_json

LARGEST_BODY = 64 << 10  # bytes; the longest prompts take 10 KB
LONGEST_TEXT = 4000  # characters of a prompt, whatever a server allows
GENERATE_PATH = "/v1/generate"
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})


class ServeError(SefiError):
    """A request that is not answered with images.

    Args:
        problem, remedy: as of every error.
        status: of HTTP.
        retry_after: seconds after which it is worth asking again, if it is.
    """

    def __init__(self, problem: str, remedy: str, status: HTTPStatus, retry_after: int | None = None) -> None:
        super().__init__(problem, remedy)
        self.status, self.retry_after = status, retry_after


class GenerateRequest(BaseModel):
    """A prompt, and how it is drawn; what is left out is as the server was started."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT, examples=["a photo of <ada> at the beach"])]
    negative_prompt: Annotated[str | None, Field(max_length=LONGEST_TEXT)] = None
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="image k has seed + k")] = 0
    count: Annotated[int, Field(ge=1, le=1024, description="images")] = 1
    steps: Annotated[int | None, Field(ge=1, le=10_000)] = None
    guidance_scale: Annotated[float | None, Field(ge=0, le=100)] = None
    scheduler: Annotated[str | None, Field(max_length=40, description="as generate.scheduler of `sefi settings`")] = (
        None
    )
    width: Annotated[int | None, Field(ge=8, le=4096, description="pixels; the trained size if left out")] = None
    height: Annotated[int | None, Field(ge=8, le=4096)] = None
    identity_strength: Annotated[float | None, Field(ge=0, le=LARGEST_STRENGTH)] = None


class ImageAnswer(BaseModel):
    """One image of a JSON answer."""

    png: Annotated[str, Field(description="the file, in base64")]
    prompt: str
    seed: int
    invisible_mark: bool
    flagged: Annotated[bool, Field(description="the model's safety checker made it black")]


class GenerateAnswer(BaseModel):
    """The JSON answer: every image, and what a user should know."""

    images: list[ImageAnswer]
    base_model: str
    notes: list[str]


class ErrorAnswer(BaseModel):
    """Why there is no image, as the program says it with --json."""

    model_config = ConfigDict(serialize_by_alias=True)

    schema_: Annotated[str, Field(alias="schema", serialization_alias="schema")] = "error/1"
    error: Annotated[str, Field(description="what is wrong")]
    try_: Annotated[str, Field(alias="try", serialization_alias="try", description="what to do")]


@dataclass(frozen=True)
class RequestLimits:
    """How much the requests of a server may ask for.

    Attributes:
        prompt: most characters of a prompt.
        count: most images of a request.
        steps: most denoising steps.
        pixels: most pixels of an image.
        seconds: until a request is given up.
        queue: most images that wait.
        batch: most images at once.
        wait: seconds that an image waits for others.
    """

    prompt: int = 1000
    count: int = 8
    steps: int = 100
    pixels: int = 1024 * 1024
    seconds: float = 120.0
    queue: int = 64
    batch: int = 8
    wait: float = 0.02

    def check(self, request: GenerateRequest, size: tuple[int, int], steps: int) -> None:
        """Refuse a request that asks for too much.

        Args:
            size: height and width of its images in pixels.
            steps: its denoising steps.

        Raises:
            ServeError: 422; names the limit.
        """
        asked = {
            "characters in a prompt": (max(len(request.prompt), len(request.negative_prompt or "")), self.prompt),
            "images in a request": (request.count, self.count),
            "steps": (steps, self.steps),
            "pixels": (size[0] * size[1], self.pixels),
        }
        for what, (number, most) in asked.items():
            if number > most:
                raise ServeError(
                    f"{number:,} {what} are asked for; this server allows {most:,}.",
                    "Ask for less, or in several requests.",
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                )


def choose_status(error: SefiError) -> HTTPStatus:
    """Return the status of an error: the client's fault unless the model, the disk or an image's numbers failed."""
    if isinstance(error, ServeError):
        return error.status
    if isinstance(error, GenerationError | BackboneError | OutputError):
        return HTTPStatus.INTERNAL_SERVER_ERROR
    return HTTPStatus.UNPROCESSABLE_ENTITY


def describe_error(error: SefiError) -> tuple[HTTPStatus, dict[str, str], dict[str, str]]:
    """Return status, JSON and headers of the answer to a request that failed."""
    retry_after = error.retry_after if isinstance(error, ServeError) else None
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return choose_status(error), {"schema": "error/1", "error": error.problem, "try": error.remedy}, headers


class RequestGuard:
    """Stands before an application: refuses other hosts' names, missing keys and large bodies, and counts the answers.

    A browser on this machine would send what any page asks it to: pages of other sites are told apart by the host's
    name, which they cannot choose freely, so a server of this machine answers to its own names only.

    Args:
        app: the application.
        report: called after every request to generate, whoever answered it, with its status and its seconds.
        key: what every request but /healthz and /readyz must bring; None: nothing.
        local: the server listens to this machine only, and answers to its names only.
    """

    def __init__(
        self, app: ASGIApp, report: Callable[[int, float], None], key: str | None = None, *, local: bool = True
    ) -> None:
        self.app, self.report, self.key, self.local = app, report, key, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is refused, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (scope["method"], scope["path"]) != ("POST", GENERATE_PATH):
            await self.answer(scope, receive, send)
            return
        started, status = time.monotonic(), int(HTTPStatus.INTERNAL_SERVER_ERROR)

        async def send_and_note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.answer(scope, receive, send_and_note)
        finally:
            self.report(status, time.monotonic() - started)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of HTTP."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.check_headers(scope["path"], headers)
            body = await read_body(receive)
        except ServeError as error:
            await send_error(send, error)
            return
        await self.app(scope, replay_body(body, receive), send)

    def check_headers(self, path: str, headers: Mapping[str, str]) -> None:
        """Refuse a request by its headers.

        Raises:
            ServeError: 421 for another host's name, 401 without the key, 413 for a large body.
        """
        if self.local and get_host_name(headers.get("host", "")) not in LOCAL_NAMES:
            raise ServeError(
                "This server answers to the names of this machine only.",
                "Ask 127.0.0.1, or start it with --host.",
                HTTPStatus.MISDIRECTED_REQUEST,
            )
        if self.key is not None and path not in OPEN_PATHS and not has_key(headers, self.key):
            raise ServeError(
                "The API key is missing or wrong.",
                "Send it in the header `Authorization: Bearer KEY`.",
                HTTPStatus.UNAUTHORIZED,
            )
        length = headers.get("content-length", "0")
        if not re.fullmatch(r"[0-9]{1,12}", length) or int(length) > LARGEST_BODY:
            raise make_body_error()


def get_host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets.

    >>> get_host_name("127.0.0.1:8000"), get_host_name("[::1]:80"), get_host_name("localhost")
    ('127.0.0.1', '::1', 'localhost')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def has_key(headers: Mapping[str, str], key: str) -> bool:
    """Return whether headers bring the key; as long for a wrong one as for a right one."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    return hmac.compare_digest(given.strip().encode(), key.encode()) and kind.lower() == "bearer"


def make_body_error() -> ServeError:
    """Return the error for a body that is too large."""
    return ServeError(
        f"A request has at most {LARGEST_BODY:,} bytes.", "Shorten it.", HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    )


async def read_body(receive: Receive) -> bytes:
    """Read a request's body; `ServeError` 413 as soon as it is too large."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client is gone
            return body
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            raise make_body_error()
        if not message.get("more_body", False):
            return body


def replay_body(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read already once more, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


async def send_error(send: Send, error: ServeError, extra: Mapping[str, str] = MappingProxyType({})) -> None:
    """Send the answer of a refused request."""
    status, record, headers = describe_error(error)
    content = dump_json(record).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **headers, **extra}
    encoded: list[Any] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": encoded})
    await send({"type": "http.response.body", "body": content})
