"""Make a run in one process, or in several that take its units of work in turn."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from sefi.benchmark.plan import TimeLeft, UnitFailure, list_work_units
from sefi.benchmark.run import OpenRun
from sefi.benchmark.samples import make_samples
from sefi.benchmark.worker_process import UnitTry, WorkerGroup, end_workers_after, make_received_units
from sefi.core.errors import REMARKS, SefiError

LOGGER = logging.getLogger(REMARKS)
LEAST_FAILURES = 3  # after so many without an image a run may end
MOST_KILLS = 2  # of workers at the same unit of work
LESS_MEMORY = "Fewer --jobs need less memory, --jobs 1 the least."


@dataclass(frozen=True)
class RunOutcome:
    """How far a call came: how many images it made, and why others are missing."""

    made: int
    failures: tuple[UnitFailure, ...] = ()


class Failures:
    """The units that failed in this call.

    Args:
        run: whose record says what was made meanwhile.
    """

    def __init__(self, run: OpenRun) -> None:
        self.folder, self.offset, self.works = run.folder, run.folder.measure_size(), False
        self.listed: list[UnitFailure] = []
        tested = [variant for variant in run.suite.variants if variant.control is None]
        self.labels = {variant.label for variant in tested}
        learned = {run.suite.find_learning_variant(variant).label for variant in tested}
        self.most = max(LEAST_FAILURES, len(learned) + 1)  # of two subjects: what is wrong is not the one

    def add(self, failure: UnitFailure) -> None:
        """Add a unit that failed.

        Raises:
            SefiError: nothing was made of any variant under test, and more units failed than one subject has: what is
                wrong is the model or the settings, and every unit would fail.
        """
        self.listed.append(failure)
        made, self.offset = self.folder.read_samples_after(self.offset)
        self.works = self.works or any(sample.variant in self.labels for sample in made)
        alike = [one for one in self.listed if one.variant in self.labels and not one.of_photo]
        if not self.works and len(alike) >= self.most:
            raise make_fruitless_error(alike)

    def finish(self, made: int) -> RunOutcome:
        """Return the outcome of a call that made so many images.

        Raises:
            SefiError: units failed, and the run has no image at all.
        """
        if self.listed and not self.folder.read_samples():
            raise make_fruitless_error(self.listed)
        return RunOutcome(made, tuple(self.listed))


def make_fruitless_error(failures: Sequence[UnitFailure]) -> SefiError:
    """Return the error for a run in which all that was tried failed: the first says what is wrong."""
    first = failures[0]
    problem = f"Nothing could be made in {len(failures)} tries; {format_place(first)}: {first.problem}"
    return SefiError(problem, first.remedy)


def format_place(failure: UnitFailure) -> str:
    """Return where a unit failed, as a person reads it."""
    return f"{failure.subject}, {failure.variant}"


def run_shared(
    open_run: Callable[[], OpenRun],
    run: OpenRun,
    jobs: int,
    lock: int | None = None,
    on_remark: Callable[[str], None] = LOGGER.warning,
) -> RunOutcome:
    """Make what is missing in `jobs` processes; what one unit of work fails of, or is killed by, stops no other.

    Args:
        open_run: opens the run again in another process; must be importable from there.
        run: open here already; used as it is when there is only one job.
        jobs: how many processes share the work; each takes the next unit when it is done with one.
        lock: the file descriptor of `RunFolder.lock`, which the workers hold too.
        on_remark: is called with what a person should know at once: a worker was killed, or there are fewer now.

    Raises:
        SefiError: what must end the run (`describe_unit_failure`), or what all units fail of, or all workers are
            killed before they begin; no worker is left.
        KeyboardInterrupt: a worker was interrupted.
    """
    failures = Failures(run)
    units = len(list_work_units(run.suite, len(run.list_groups())))
    jobs = min(jobs, units)
    if jobs <= 1:
        return failures.finish(make_samples(run, on_failure=failures.add))
    before = run.folder.read_samples()
    left, recorded = TimeLeft(run.suite, run.plan_keys(), before), len(before)
    del before  # as in `make_samples`
    threads = max(1, torch.get_num_threads() // jobs)  # processes share the cores
    queue = UnitQueue(run, left, failures, on_remark)
    run.progress.start(left.missing, "images")
    works = [partial(make_received_units, open_run)] * jobs
    with end_workers_after(WorkerGroup(queue, works, threads, lock, on_remark)) as group:
        group.run(queue.show_new_images)
    run.progress.finish()
    return failures.finish(len(run.folder.read_samples()) - recorded)


class UnitQueue:
    """Hands out the units of work of a run; one whose worker was killed is made by another, and given up in the end.

    Args:
        run: its folder is read, its progress advanced.
        left: the time that the run still takes.
        failures: gets the units that fail.
        on_remark: is called with what a person should know at once.
    """

    def __init__(
        self, run: OpenRun, left: TimeLeft, failures: Failures, on_remark: Callable[[str], None] = LOGGER.warning
    ) -> None:
        self.run, self.progress, self.left, self.failures, self.on_remark = run, run.progress, left, failures, on_remark
        self.units, self.names = list_work_units(run.suite, len(run.list_groups())), run.list_group_keys()
        self.waiting, self.offset = deque(map(UnitTry, range(len(self.units)))), run.folder.measure_size()

    def take(self) -> UnitTry | None:
        """Return the next unit; None if none waits."""
        return self.waiting.popleft() if self.waiting else None

    def finish(self, work: UnitTry, result: object) -> None:
        """Take back a unit that was made, or failed in a way that stops no other."""
        if isinstance(result, UnitFailure):
            self.give_up(result)

    def take_back(self, work: UnitTry, exit_code: int | None) -> None:
        """Take back a unit whose worker was killed, unless all its images are on record by then."""
        self.show_new_images()
        places = [(self.names[number], label) for number, label in self.units[work.number]]
        missing = {key[:2] for key in self.left.images}
        place = next((place for place in places if place in missing), None)
        if place is None:
            return
        killed = f"worker was killed (exit code {exit_code}), perhaps for want of memory"
        if work.kills + 1 < MOST_KILLS:
            self.on_remark(f"a {killed}; another makes {', '.join(place)}. {LESS_MEMORY}")
            self.waiting.append(UnitTry(work.number, work.kills + 1))
        else:
            self.give_up(UnitFailure(*place, f"Its {killed}, {MOST_KILLS} times.", LESS_MEMORY, tuple(places)))

    def give_up(self, failure: UnitFailure) -> None:
        """Add a unit that failed to the list; errors as of `Failures.add`."""
        self.left.give_up(failure.places)
        self.failures.add(failure)

    def show_new_images(self) -> None:
        """Show every image that was recorded since the last call."""
        made, self.offset = self.run.folder.read_samples_after(self.offset)
        for sample in made:
            self.left.record(sample)
            if self.left.costs_differ:
                self.progress.estimate(self.left.estimate_seconds())
            self.progress.advance()
