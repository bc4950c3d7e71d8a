"""Learn the items of a batch in several processes, each with its device and its model; an idle one takes what waits.

A process that is killed loses nothing that was finished: what it worked on waits again, and another takes its place.
Nothing heavy is imported before the parent is watched: loading torch takes seconds, in which the parent may die.
"""

import logging
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from sefi.benchmark.worker_process import FAILED, PipeProgress, ReadyForWork, WorkerGroup, end_workers_after
from sefi.core.errors import REMARKS
from sefi.core.process import import_quickly

if TYPE_CHECKING:
    from sefi.batch.plan import BatchItem, BatchSettings
    from sefi.batch.run import WorkQueue

LOGGER = logging.getLogger(REMARKS)


def make_worker_group(
    queue: "WorkQueue", devices: list[str], threads: int, on_remark: Callable[[str], None] = LOGGER.warning
) -> "WorkerGroup[BatchItem]":
    """Return processes that learn the items of a queue, one for each device; arguments as of `learn_in_processes`."""
    works = [partial(learn_received_items, queue.settings, device) for device in devices]
    return WorkerGroup(queue, works, threads, on_remark=on_remark)


def learn_in_processes(
    queue: "WorkQueue", devices: list[str], threads: int, on_remark: Callable[[str], None] = LOGGER.warning
) -> None:
    """Learn every item in processes, one for each device.

    Args:
        threads: that each process may use.
        on_remark: is called with what a person should know at once: there are fewer workers now.

    Raises:
        SefiError: a worker cannot open the model or write its records, or all are killed before they begin.
        KeyboardInterrupt: a worker was interrupted.
    """
    with end_workers_after(make_worker_group(queue, devices, threads, on_remark)) as group:
        group.run()


# ------------------------------------------------------------------ in the worker


def learn_received_items(settings: "BatchSettings", device: str, pipe: Connection, threads: int) -> None:
    """Open the model and learn the items that come through the pipe.

    After an error that nobody foresaw this process ends, so that the next item has a fresh one: a device that has
    failed once refuses everything after it.
    """
    # Late on purpose: see the head of this file.
    import_quickly("sefi.api")
    import torch  # noqa: PLC0415

    from sefi.batch.plan import ItemState  # noqa: PLC0415
    from sefi.batch.run import learn_item, load_model  # noqa: PLC0415
    from sefi.benchmark.identities import Stopwatch  # noqa: PLC0415
    from sefi.training.finetuning import ClassImages  # noqa: PLC0415

    torch.set_num_threads(threads)
    backbone, class_images = load_model(settings.model, device), ClassImages()
    while True:
        pipe.send(ReadyForWork())
        item: BatchItem = pipe.recv()
        steps = Stopwatch(PipeProgress(pipe), f"{item.name}: ")
        record = learn_item(item, settings, backbone, steps, class_images=class_images)
        if record.state is ItemState.FAILED and record.problem.startswith("Unexpected"):
            sys.exit(FAILED)
