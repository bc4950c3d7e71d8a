"""Images that wait, taken in batches of any people; one worker thread for each device."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus

from sefi.backbone.bundle import Backbone
from sefi.core.config import GenerateSettings
from sefi.core.errors import SefiError
from sefi.core.progress import SilentProgress
from sefi.diffusion.conditioning import IdentityConditioner, apply_text_settings
from sefi.diffusion.sampling import GeneratedImage, finish_image, sample_images
from sefi.identity.file import Identity
from sefi.serve.identities import ServedIdentity
from sefi.serve.limits import RequestLimits, ServeError

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageTask:
    """One image to draw.

    Attributes:
        settings: of one image; tasks with equal ones share a batch.
        identities: those that the prompt names, in the order of their names.
        chunks: of the prompt, or of a longer negative prompt; tasks with equally many share a batch.
    """

    prompt: str
    seed: int
    settings: GenerateSettings
    identities: tuple[ServedIdentity, ...]
    chunks: int = 1


@dataclass(eq=False)
class Ticket:
    """A task that waits or runs, and where its image goes.

    Attributes:
        abandoned: nobody wants the image any more.
    """

    task: ImageTask
    created: float = field(default_factory=time.monotonic)
    result: Future[GeneratedImage] = field(default_factory=Future[GeneratedImage])
    abandoned: bool = False

    def abandon(self) -> None:
        """Give the image up: what waits is not begun, and what runs for nobody ends at its next step."""
        self.abandoned = True
        self.result.cancel()


class BatchAbandoned(Exception):
    """Nobody wants any image of the batch that runs."""


class StepWatch(SilentProgress):
    """Ends a batch at its next step where nobody wants its images any more."""

    def __init__(self, tickets: Sequence[Ticket]) -> None:
        self.tickets = tickets

    def advance(self, **numbers: float) -> None:
        """Raise `BatchAbandoned` if every image was given up."""
        if all(ticket.abandoned for ticket in self.tickets):
            raise BatchAbandoned


class ImageQueue:
    """Holds tasks until a worker takes some of them as a batch.

    Args:
        limits: its `queue`, `batch` and `wait`.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self.limits, self.closed = limits, False
        self.seconds_per_image = 1.0  # a running mean, for `Retry-After`
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Return how many images wait."""
        return len(self._waiting)

    def add(self, tasks: Sequence[ImageTask]) -> list[Ticket]:
        """Add the images of a request, all or none.

        Raises:
            ServeError: 429 where there is no room, with the seconds after which there may be; 503 where it is closed.
        """
        with self._changed:
            if self.closed:
                raise make_closed_error()
            self._drop_abandoned()
            if len(self._waiting) + len(tasks) > self.limits.queue:
                seconds = max(1, round(len(self._waiting) * self.seconds_per_image))
                raise ServeError(
                    f"{len(self._waiting)} images wait already; at most {self.limits.queue} may.",
                    f"Ask again in {seconds} s.",
                    HTTPStatus.TOO_MANY_REQUESTS,
                    seconds,
                )
            tickets = [Ticket(task) for task in tasks]
            self._waiting.extend(tickets)
            self._changed.notify_all()
        return tickets

    def take(self) -> list[Ticket] | None:
        """Wait for images that can share a batch, the oldest first; None where the queue is closed and empty."""
        with self._changed:
            while True:
                self._drop_abandoned()
                if self._waiting:
                    batch = select_batch(self._waiting, self.limits.batch)
                    left = self._waiting[0].created + self.limits.wait - time.monotonic()
                    if len(batch) == self.limits.batch or left <= 0 or self.closed:
                        return self._remove(batch)
                    self._changed.wait(left)
                elif self.closed:
                    return None
                else:
                    self._changed.wait()

    def close(self) -> None:
        """Take no more; what waits is still drawn."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def note_speed(self, images: int, seconds: float) -> None:
        """Take the time of a batch into the mean; one of no image says nothing."""
        if images:
            self.seconds_per_image += 0.2 * (seconds / images - self.seconds_per_image)

    def _remove(self, batch: Sequence[Ticket]) -> list[Ticket]:
        """Remove a batch from those that wait; return what of it is still wanted, as running."""
        for ticket in batch:
            self._waiting.remove(ticket)
        return [ticket for ticket in batch if ticket.result.set_running_or_notify_cancel()]

    def _drop_abandoned(self) -> None:
        """Drop the images that nobody wants any more."""
        if any(ticket.abandoned for ticket in self._waiting):
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.abandoned)


def make_closed_error() -> ServeError:
    """Return the error for requests to a server that is being stopped."""
    return ServeError(
        "The server is being stopped.", "Ask again when it is back.", HTTPStatus.SERVICE_UNAVAILABLE, retry_after=5
    )


def select_batch(waiting: Sequence[Ticket] | deque[Ticket], most: int) -> list[Ticket]:
    """Select the oldest image, and the oldest others that can be drawn with it.

    Equal settings, texts of one length, which would otherwise be generated one length after the other, and no name that
    stands for two identities: a file may have changed between two requests.
    """
    batch: list[Ticket] = []
    named: dict[str, ServedIdentity] = {}
    for ticket in waiting:
        task = ticket.task
        if batch and (task.settings, task.chunks) != (batch[0].task.settings, batch[0].task.chunks):
            continue
        if any(named.get(one.identity.name, one) is not one for one in task.identities):
            continue
        batch.append(ticket)
        named |= {one.identity.name: one for one in task.identities}
        if len(batch) == most:
            break
    return batch


class BatchWorker:
    """Draws batches of a queue on one model, in a thread of its own.

    Args:
        backbone: of one device; no other worker has it.
        use_checker: make black what the model's own safety checker flags.
        report: called after every batch with its number of images, how many of them were drawn and still wanted, and
            its seconds.
    """

    def __init__(
        self,
        queue: ImageQueue,
        backbone: Backbone,
        report: Callable[[int, int, float], None],
        *,
        use_checker: bool = True,
    ) -> None:
        self.queue, self.backbone, self.report, self.use_checker = queue, backbone, report, use_checker
        self.thread = threading.Thread(target=self.run, name=f"sefi-serve-{backbone.device}", daemon=True)

    def run(self) -> None:
        """Draw until the queue is closed and empty."""
        while (batch := self.queue.take()) is not None:
            if batch:
                started = time.monotonic()
                wanted = self.answer(batch)
                seconds = time.monotonic() - started
                # What was given up meanwhile took its time too.
                generated = sum(one.result.done() and one.result.exception() is None for one in batch)
                self.queue.note_speed(generated, seconds)
                self.report(len(batch), wanted, seconds)

    def answer(self, batch: Sequence[Ticket]) -> int:
        """Draw a batch and hand out its images; where it fails, each alone, so that one request fails no other.

        Returns:
            How many drawn images somebody wants: neither those that failed nor those that were given up.
        """
        try:
            images = self.draw(batch)
        except BatchAbandoned:
            return 0
        except Exception as error:
            if len(batch) > 1:
                return sum(self.answer([ticket]) for ticket in batch)
            if not isinstance(error, SefiError):
                LOGGER.exception("an image could not be drawn")
            batch[0].result.set_exception(error)
            return 0
        wanted = sum(not ticket.abandoned for ticket in batch)  # who has their image gives the ticket up
        for ticket, image in zip(batch, images, strict=True):
            ticket.result.set_result(image)
        return wanted

    def draw(self, batch: Sequence[Ticket]) -> list[GeneratedImage]:
        """Draw the images of tasks with equal settings, each with the record that `sefi generate` writes.

        Raises:
            SefiError: one of them cannot be drawn.
            BatchAbandoned: nobody wants them any more.
        """
        tasks = [ticket.task for ticket in batch]
        settings = tasks[0].settings.model_copy(update={"batch_size": len(tasks)})
        conditioner = self.build_conditioner(tasks, settings)
        images = sample_images(
            conditioner.backbone,
            conditioner,
            [task.prompt for task in tasks],
            [task.seed for task in tasks],
            settings,
            StepWatch(batch),
        )
        digests = [[one.digest for one in task.identities] for task in tasks]
        return [
            finish_image(self.backbone, image, task.settings, shown, use_checker=self.use_checker)
            for image, task, shown in zip(images, tasks, digests, strict=True)
        ]

    def build_conditioner(self, tasks: Sequence[ImageTask], settings: GenerateSettings) -> IdentityConditioner:
        """Build what writes the people of all tasks into their prompts; the model itself is not changed."""
        named: dict[str, Identity] = {one.identity.name: one.identity for task in tasks for one in task.identities}
        backbone = self.backbone.skip_layers(settings.clip_skip)
        conditioner = IdentityConditioner(backbone, list(named.values()), settings.identity_strength)
        return apply_text_settings(conditioner, settings)
