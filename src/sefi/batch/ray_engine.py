"""Learn the items of a batch on a Ray cluster: an actor per device keeps the model, tasks read and cut the photos.

Ray is an extra and imported here only. Photos and results lie on a file system that all machines see: an item's record
and its checkpoint are there, so that an actor that is killed loses and repeats nothing that was finished.
"""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sefi.batch.plan import BatchItem, BatchSettings
from sefi.batch.run import PreparedPhotos, WorkQueue, learn_item, load_model, prepare_photos
from sefi.core.errors import REMARKS, ConfigError, SefiError, suggest_install
from sefi.training.finetuning import ClassImages

if TYPE_CHECKING:
    from sefi.backbone.bundle import Backbone

POLL_SECONDS = 1.0
MOST_DEATHS = 3  # of actors that had nothing to do yet, one after the other
LOGGER = logging.getLogger(REMARKS)


@dataclass(frozen=True)
class ModelFacts:
    """What cutting a photo needs to know of a model that is open elsewhere."""

    resolution: int
    is_embedded: bool


class RayWorker:
    """An actor: one model, and the items that are learned on it."""

    def __init__(self, settings: BatchSettings, device: str) -> None:
        self.settings = settings
        self.backbone: Backbone = load_model(settings.model, device)
        self.class_images = ClassImages()

    def describe(self) -> ModelFacts:
        """Return what cutting photos needs to know; by then the model is open."""
        return ModelFacts(self.backbone.resolution, self.backbone.is_embedded)

    def learn(self, item: BatchItem, prepared: PreparedPhotos) -> None:
        """Learn an item; its record says how that ended."""
        learn_item(item, self.settings, self.backbone, prepared=prepared, class_images=self.class_images)


@dataclass
class ActorPlace:
    """One actor as the driver knows it.

    Attributes:
        item: what it works on; None while it opens its model.
    """

    actor: Any
    item: BatchItem | None = None


class RayGroup:
    """The actors of a batch.

    Args:
        ray: the library, connected to a cluster.
        jobs: how many actors.
        gpus: that each has for itself.
        on_remark: is called with what a person should know at once: there are fewer actors now.
    """

    def __init__(
        self,
        queue: WorkQueue,
        ray: Any,  # noqa: ANN401  an extra, not typed
        jobs: int,
        gpus: int,
        on_remark: Callable[[str], None] = LOGGER.warning,
    ) -> None:
        self.queue, self.ray, self.jobs, self.on_remark = queue, ray, jobs, on_remark
        device = "cuda" if gpus else queue.settings.model.device
        self.device = ray.remote(RayWorker).options(num_cpus=1, num_gpus=gpus), device
        self.prepare = ray.remote(prepare_photos).options(num_cpus=1)
        self.at_work: dict[Any, ActorPlace] = {}  # by what they will answer
        self.idle: list[Any] = []
        self.prepared: dict[str, Any] = {}
        self.facts: ModelFacts | None = None
        self.deaths = 0

    def start_actor(self) -> None:
        """Start an actor, which opens the model."""
        kind, device = self.device
        actor = kind.remote(self.queue.settings, device)
        self.at_work[actor.describe.remote()] = ActorPlace(actor)

    def run(self) -> None:
        """Give work until none is left, or raise what stops all."""
        for _ in range(min(self.jobs, len(self.queue.waiting))):
            self.start_actor()
        while self.at_work:
            ready, _ = self.ray.wait(list(self.at_work), num_returns=1, timeout=POLL_SECONDS)
            for answer in ready:
                self.take_answer(answer, self.at_work.pop(answer))
            while self.idle and self.queue.waiting:
                self.give_work(self.idle.pop())

    def take_answer(self, answer: object, place: ActorPlace) -> None:
        """Take what an actor answers, or note that it is gone."""
        try:
            value = self.ray.get(answer)
        except self.ray.exceptions.RayActorError:
            self.replace_actor(place)
            return
        except self.ray.exceptions.RayError as error:  # of the actor's work, or of the task that reads the photos
            self.take_error(getattr(error, "cause", None) or error, place)
        else:
            self.deaths = 0
            if isinstance(value, ModelFacts):
                self.facts = value
            elif place.item is not None:
                self.queue.finish(place.item)
        self.idle.append(place.actor)

    def take_error(self, error: Exception, place: ActorPlace) -> None:
        """Note that an item failed; raise what stops all: no model, or no place for records."""
        if isinstance(error, SefiError) or place.item is None:
            raise error
        self.queue.fail(place.item, error)

    def give_work(self, actor: Any) -> None:  # noqa: ANN401  Ray's own
        """Give an actor the next item; the photos of those after it are read meanwhile."""
        item = self.queue.take()
        assert item is not None
        photos = self.prepared.pop(item.name, None) or self.start_preparing(item)
        self.at_work[actor.learn.remote(item, photos)] = ActorPlace(actor, item)
        for following in list(self.queue.waiting)[: self.jobs]:
            if following.name not in self.prepared:
                self.prepared[following.name] = self.start_preparing(following)

    def start_preparing(self, item: BatchItem) -> Any:  # noqa: ANN401  Ray's own
        """Start to read and cut the photos of an item, and return where they will be."""
        return self.prepare.remote(item, self.queue.settings, self.facts)

    def replace_actor(self, place: ActorPlace) -> None:
        """Take the work of an actor that is gone, and start another while there is work.

        Raises:
            SefiError: one after the other is killed before it works, and no other has begun.
        """
        if place.item is not None:
            self.queue.take_back(place.item)
        else:
            self.deaths += 1
        if self.deaths >= MOST_DEATHS:
            killed = "actors are killed before they begin, perhaps for want of memory"
            if not self.idle and all(other.item is None for other in self.at_work.values()):
                remedy = "Fewer --jobs need less memory. The same command goes on where it stopped."
                raise SefiError(f"All {killed}.", remedy)
            self.deaths = 0
            self.on_remark(f"{killed}; {len(self.at_work) + len(self.idle)} of {self.jobs} go on")
        elif self.queue.waiting:
            self.start_actor()


@contextmanager
def open_ray(address: str | None, jobs: int) -> Generator[Any]:
    """Open a Ray cluster, or start one on this machine alone, which ends after the block.

    What Ray says meanwhile, as of a worker that died, goes to stderr: stdout is for the answer.

    Args:
        address: of a cluster, `auto` for the one of this machine; None starts one.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers of each cluster
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that is started here; else 15, behind everybody
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ConfigError("This needs Ray, which is not installed.", suggest_install("ray")) from None
    own: dict[str, object] = {"num_cpus": jobs + 1, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **({} if address else own))
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"There is no Ray cluster to work on: {reason}", "Correct --address, or leave it out."
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def learn_on_ray(
    queue: WorkQueue, address: str | None, jobs: int | None, on_remark: Callable[[str], None] = LOGGER.warning
) -> None:
    """Learn every item on a Ray cluster.

    Args:
        address: as of `open_ray`.
        jobs: actors at the same time; None takes one for each GPU of the cluster, or one.
        on_remark: as of `RayGroup`.

    Raises:
        ConfigError: as of `open_ray`.
        SefiError: an actor cannot open the model or write its records, or all are killed before they begin.
    """
    with open_ray(address, jobs or 1) as ray:
        gpus = 0 if queue.settings.model.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        RayGroup(queue, ray, jobs or gpus or 1, min(gpus, 1), on_remark).run()
