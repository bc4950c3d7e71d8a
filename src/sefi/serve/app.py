"""The HTTP application: generate, list identities, health and metrics; errors as JSON."""

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException

from sefi.api import list_prompt_remarks
from sefi.backbone.bundle import Backbone
from sefi.core import __version__
from sefi.core.config import Config, check_guidance, dump_config, parse_config
from sefi.core.errors import ConfigError, SefiError
from sefi.core.hints import SETTING_ALIASES, suggest
from sefi.core.prompts import check_prompts, check_syntax, find_placeholders
from sefi.diffusion.conditioning import check_identities, check_norms, compute_norm_limit, count_vectors
from sefi.diffusion.sampling import GeneratedImage, check_size, get_image_size
from sefi.diffusion.schedulers import check_steps
from sefi.diffusion.text import count_chunks
from sefi.identity.file import Identity
from sefi.provenance.save import EncodedImage
from sefi.serve.batching import BatchWorker, ImageQueue, ImageTask, Ticket, make_closed_error
from sefi.serve.identities import IdentityFolder, ServedIdentity
from sefi.serve.limits import (
    GENERATE_PATH,
    ErrorAnswer,
    GenerateAnswer,
    GenerateRequest,
    ImageAnswer,
    RequestGuard,
    RequestLimits,
    ServeError,
    describe_error,
)

PNG, JSON = "image/png", "application/json"
# Faults of pydantic where a request is torn, a list, or sent as another type: curl's own is that of a form.
NO_OBJECT = frozenset({"json_invalid", "model_attributes_type"})
LONGEST_NAME = 80  # characters of a key of a request, in an answer
# Other programs' names of what a request may hold: the first setting of `generate` that each stands for.
REQUEST_ALIASES = {
    alias: named[0].removeprefix("generate.") for alias, named in SETTING_ALIASES.items() if "generate." in named[0]
}
FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "the request cannot be read"},
    401: {"model": ErrorAnswer, "description": "the API key is missing or wrong"},
    403: {"model": ErrorAnswer, "description": "the consent of an identity has expired"},
    404: {"model": ErrorAnswer, "description": "there is no such identity"},
    413: {"model": ErrorAnswer, "description": "more than 64 KiB were sent"},
    421: {"model": ErrorAnswer, "description": "a server of one machine was asked by another name"},
    422: {"model": ErrorAnswer, "description": "the prompt, the settings or an identity cannot be used"},
    429: {"model": ErrorAnswer, "description": "too many images wait; Retry-After says when to ask again"},
    500: {"model": ErrorAnswer, "description": "an image could not be generated"},
    503: {"model": ErrorAnswer, "description": "the server is being stopped, or its identities cannot be read"},
    504: {"model": ErrorAnswer, "description": "the image was not ready in time"},
}
IMAGES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": GenerateAnswer,
        "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
        "description": "one image as PNG; JSON for several, or where the request accepts JSON and no PNG",
    }
}
CLOSED_CONNECTION = 499  # nginx's number for a client that is gone; nobody reads the answer


class ServerMetrics:
    """What /metrics says; no name and no prompt is in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("sefi_requests", "Requests to generate, by status.", ["status"], registry=registry)
        self.seconds = Histogram("sefi_request_seconds", "From a request to its answer.", registry=registry)
        self.images = Counter("sefi_images", "Images generated that were still wanted.", registry=registry)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batches = Histogram("sefi_batch_images", "Images generated at once.", buckets=sizes, registry=registry)
        self.batch_seconds = Histogram("sefi_batch_seconds", "Time of a batch.", registry=registry)
        self.waiting = Gauge("sefi_waiting_images", "Images that wait.", registry=registry)
        self.identities = Gauge("sefi_identity_loads", "Identity files read since the start.", registry=registry)

    def count_batch(self, size: int, images: int, seconds: float) -> None:
        """Count a batch of a size, and those of its images that were still wanted."""
        self.images.inc(images)
        self.batches.observe(size)
        self.batch_seconds.observe(seconds)

    def count_request(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)


@dataclass(frozen=True)
class ServeOptions:
    """How a server answers.

    Attributes:
        config: settings of what requests leave out.
        key: the API key; None asks for none.
        local: it listens to this machine only.
        use_checker, mark: as `safety_checker` of `sefi.generate` and `mark` of `GeneratedImage.save`.
    """

    config: Config
    limits: RequestLimits = field(default_factory=RequestLimits)
    key: str | None = None
    local: bool = True
    use_checker: bool = True
    mark: bool = True


class ImageService:
    """Models, identities and the queue between requests and workers.

    Args:
        backbones: the same model on each device, a worker for each.
        folder: of the identity files.
    """

    def __init__(self, backbones: Sequence[Backbone], folder: IdentityFolder, options: ServeOptions) -> None:
        self.backbone, self.folder, self.options = backbones[0], folder, options
        self.metrics, self.queue = ServerMetrics(), ImageQueue(options.limits)
        self.workers = [
            BatchWorker(self.queue, one, self.metrics.count_batch, use_checker=options.use_checker) for one in backbones
        ]
        self.started = False

    def check(self) -> None:
        """Refuse to start with what could answer no request that leaves the settings as they are.

        Raises:
            ConfigError: the settings of the server do not fit the model or the limits.
            BackboneError: the model's safety checker cannot be read.
        """
        try:
            self.prepare(GenerateRequest(prompt="a"))
            self.backbone.skip_layers(self.options.config.generate.clip_skip)
        except SefiError as error:
            raise_limit = "Raise the limit (--max-steps, --max-pixels), or lower the setting."
            remedy = raise_limit if isinstance(error, ServeError) else error.remedy
            raise ConfigError(
                f"The settings of this server could not generate an image: {error.problem}",
                f"{remedy} Settings are given as --set generate.NAME=VALUE.",
            ) from error
        self.load_checkers()

    def load_checkers(self) -> None:
        """Read the safety checker of each model, if it brings one; `BackboneError` where that fails."""
        for worker in self.workers:
            if self.options.use_checker and worker.backbone.safety_checker is not None:
                worker.backbone.safety_checker.load()

    def start(self) -> None:
        """Start the workers; the safety checker is read before the first image."""
        self.load_checkers()
        for worker in self.workers:
            worker.thread.start()
        self.started = True

    def stop(self) -> None:
        """Take no more requests; images that wait are still drawn."""
        self.queue.close()

    def is_alive(self) -> bool:
        """Return whether every worker runs."""
        return self.started and all(worker.thread.is_alive() for worker in self.workers)

    def prepare(self, request: GenerateRequest) -> list[ImageTask]:
        """Return the tasks of a request, checked against the limits, the model and the identities.

        Raises:
            SefiError: why it cannot be drawn.
        """
        settings = self.parse_settings(request).generate
        self.options.limits.check(request, get_image_size(self.backbone, settings), settings.steps)
        check_guidance(settings, embeds_guidance=self.backbone.embeds_guidance)
        check_steps(self.backbone, settings.steps)
        check_size(self.backbone, settings)
        check_syntax(request.prompt)
        served = [self.folder.get(name) for name in find_placeholders(request.prompt)]
        class_words = {one.identity.name: one.identity.header.class_word for one in served}
        check_prompts([request.prompt], class_words, settings.negative_prompt)
        named: tuple[ServedIdentity, ...] = tuple(served)
        strength = settings.identity_strength
        vector_counts = {one.identity.name: count_vectors(self.backbone, one.identity, strength) for one in served}
        chunks = max(
            count_chunks(self.backbone, request.prompt, class_words, vector_counts),
            count_chunks(self.backbone, settings.negative_prompt, {}),
        )
        return [ImageTask(request.prompt, request.seed + k, settings, named, chunks) for k in range(request.count)]

    def parse_settings(self, request: GenerateRequest) -> Config:
        """Return the server's settings with those of a request; `ConfigError` for a value that does not fit."""
        given = request.model_dump(exclude={"prompt", "seed", "count"}, exclude_none=True)
        tree = dump_config(self.options.config)
        one = {"count": 1, "batch_size": 1}
        return parse_config({**tree, "generate": {**tree["generate"], **given, **one}}, type(self.options.config))

    def list_notes(self, task: ImageTask) -> list[str]:
        """List what a user should know of a task: unknown words, long prompts, settings without their effect."""
        identities = [one.identity for one in task.identities]
        return list_prompt_remarks(self.backbone, [task.prompt], task.settings, identities)

    def encode(self, image: GeneratedImage) -> EncodedImage:
        """Encode an image with its marks."""
        return image.encode(mark=self.options.mark)


def open_identities(folder: Any, backbone: Backbone) -> IdentityFolder:  # noqa: ANN401  a path, as `Path` takes it
    """Open a folder of identities for a model; `ConfigError` where there is none."""
    # Of each class word and model that identities were learned on: it fits this one, and so long may a token be.
    limits: dict[tuple[object, ...], float] = {}

    def check(identity: Identity) -> None:
        header = identity.header
        learned = (header.class_word, header.base_model, header.width, *sorted(header.signature.items()))
        if learned in limits:
            check_norms(backbone, identity, limits[learned])
            return
        check_identities(backbone, [identity])
        limits[learned] = compute_norm_limit(backbone, header.class_word)

    return IdentityFolder(folder, check)


def create_app(service: ImageService) -> FastAPI:
    """Create the application of a service; its workers run while it does."""

    @asynccontextmanager
    async def run_workers(_app: FastAPI) -> AsyncGenerator[None]:
        service.start()
        yield
        service.stop()

    # No pages of documentation: they would load their scripts from another server.
    app = FastAPI(title="sefi", version=__version__, docs_url=None, redoc_url=None, lifespan=run_workers)
    app.add_middleware(
        RequestGuard, report=service.metrics.count_request, key=service.options.key, local=service.options.local
    )
    add_routes(app, service)
    app.add_exception_handler(SefiError, answer_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(Exception, answer_crash)
    return app


def add_routes(app: FastAPI, service: ImageService) -> None:
    """Add what the application answers."""
    simple: dict[str, tuple[str, Callable[[ImageService], Response], str]] = {
        "/healthz": ("health", answer_health, "Whether every worker runs"),
        "/readyz": ("readiness", answer_readiness, "Whether requests are taken"),
        "/metrics": ("metrics", answer_metrics, "Figures in Prometheus' text format"),
        "/v1/identities": ("identities", answer_identities, "The names that the folder has files for"),
    }
    for path, (name, answer, summary) in simple.items():
        app.get(path, operation_id=name, summary=summary, response_class=Response)(partial(answer, service))

    async def generate(body: GenerateRequest, request: Request) -> Response:
        return await answer_generate(service, body, request)

    app.post(
        GENERATE_PATH,
        operation_id="generate",
        summary="Generate images of a prompt",
        response_class=Response,
        responses={**IMAGES, **FAILURES},
    )(generate)


def answer_health(service: ImageService) -> Response:
    """Return 200 while every worker runs, else 503."""
    alive = service.is_alive()
    return JSONResponse({"status": "ok" if alive else "a worker has ended"}, 200 if alive else 503)


def answer_readiness(service: ImageService) -> Response:
    """Return 200 while requests are taken, else 503."""
    ready = service.is_alive() and not service.queue.closed
    return JSONResponse({"status": "ok" if ready else "not ready"}, 200 if ready else 503)


def answer_metrics(service: ImageService) -> Response:
    """Return the figures."""
    service.metrics.waiting.set(len(service.queue))
    service.metrics.identities.set(service.folder.loaded)
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def answer_identities(service: ImageService) -> Response:
    """Return the names of the folder."""
    return JSONResponse({"identities": service.folder.list_names()})


async def answer_generate(service: ImageService, body: GenerateRequest, request: Request) -> Response:
    """Draw the images of a request and return its answer, or an empty one where the client is gone.

    Raises:
        SefiError: why there are no images.
    """
    if service.queue.closed:
        raise make_closed_error()
    tasks = await asyncio.to_thread(service.prepare, body)
    tickets = service.queue.add(tasks)
    try:
        images = await wait_for_images(tickets, request, service.options.limits.seconds)
    finally:
        for ticket in tickets:  # of those that are drawn nothing is left to give up
            ticket.abandon()
    if images is None:
        return Response(status_code=CLOSED_CONNECTION)
    encoded = [await asyncio.to_thread(service.encode, image) for image in images]
    if len(images) == 1 and not wants_json(request.headers.get("accept", "")):
        return make_png_response(images[0], encoded[0])
    answers = [
        ImageAnswer(
            png=base64.b64encode(file.content).decode(),
            prompt=image.prompt,
            seed=image.seed,
            invisible_mark=file.invisible_mark,
            flagged=image.flagged,
        )
        for image, file in zip(images, encoded, strict=True)
    ]
    notes = await asyncio.to_thread(service.list_notes, tasks[0])
    answer = GenerateAnswer(images=answers, base_model=service.backbone.fingerprint, notes=notes)
    return JSONResponse(answer.model_dump())


def wants_json(accepted: str) -> bool:
    """Return whether a request accepts JSON and does not name PNG.

    >>> wants_json("application/json"), wants_json("*/*"), wants_json("image/png, application/json")
    (True, False, False)
    """
    kinds = [kind.partition(";")[0].strip() for kind in accepted.lower().split(",")]
    return JSON in kinds and PNG not in kinds


def make_png_response(image: GeneratedImage, file: EncodedImage) -> Response:
    """Return one image, with what its file does not say in the headers."""
    said = {
        "X-Sefi-Seed": str(image.seed),
        "X-Sefi-Invisible-Mark": str(file.invisible_mark).lower(),
        "X-Sefi-Flagged": str(image.flagged).lower(),
    }
    return Response(file.content, media_type=PNG, headers=said)


async def wait_for_images(tickets: Sequence[Ticket], request: Request, seconds: float) -> list[GeneratedImage] | None:
    """Wait for the images of a request; None where its client is gone.

    Raises:
        ServeError: 504 where the time is over.
        SefiError: why an image cannot be drawn.
    """
    generation = asyncio.gather(*(asyncio.wrap_future(ticket.result) for ticket in tickets))
    generation.add_done_callback(read_failure)
    leaving = asyncio.create_task(wait_until_gone(request))
    try:
        done, _ = await asyncio.wait({generation, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if generation in done:
            return generation.result()
        if leaving in done:
            return None
        raise ServeError(
            f"The image was not ready within {seconds:g} s.",
            "Ask for fewer steps or a smaller image, or when the server has less to do.",
            HTTPStatus.GATEWAY_TIMEOUT,
        )
    finally:
        leaving.cancel()
        generation.cancel()


def read_failure(generation: asyncio.Future[list[GeneratedImage]]) -> None:
    """Read why images failed or were given up: asyncio writes a failure that nobody read to stderr."""
    if not generation.cancelled():
        generation.exception()


async def wait_until_gone(request: Request) -> None:
    """Wait until the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ------------------------------------------------------------------ errors


async def answer_error(_request: Request, error: Exception) -> Response:
    """Answer an error that a user can fix."""
    assert isinstance(error, SefiError)
    status, record, headers = describe_error(error)
    return JSONResponse(record, int(status), headers)


async def answer_invalid(_request: Request, error: Exception) -> Response:
    """Answer a request whose JSON is not one of ours."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"][1:])
    said = re.sub(r"\s+", " ", str(fault["msg"]))[:200]
    problem = f"{place[:LONGEST_NAME]}: {said}." if place else f"{said}."
    remedy = "GET /openapi.json has what a request may hold."
    if fault["type"] == "extra_forbidden":
        unknown = str(fault["loc"][-1])[:LONGEST_NAME]
        problem = f"A request has no {unknown!r}."
        remedy = suggest(unknown, GenerateRequest.model_fields, REQUEST_ALIASES)
    if fault["type"] in NO_OBJECT:
        problem, remedy = "The request is no JSON object.", f"Send one, with content-type: {JSON}."
    return await answer_error(_request, ServeError(problem, remedy, HTTPStatus.UNPROCESSABLE_ENTITY))


async def answer_http_error(_request: Request, error: Exception) -> Response:
    """Answer a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    return await answer_error(
        _request, ServeError(f"{status.phrase}.", "GET /openapi.json lists what there is.", status)
    )


async def answer_crash(_request: Request, _error: Exception) -> Response:
    """Answer an unexpected error without a word of what it says; the server's log has it."""
    return await answer_error(
        _request,
        ServeError(
            "The server failed.", "Look into its log, and report what it says.", HTTPStatus.INTERNAL_SERVER_ERROR
        ),
    )
