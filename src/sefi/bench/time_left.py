"""How long a run still takes: learning a subject and drawing an image cost what they cost the same way before."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from sefi.bench.records import Key, Sample
from sefi.bench.suite import Suite

SECONDS_OF_EVIDENCE = 20.0  # of work since the start, before its pace is believed

Kind = tuple[str, str]  # "learn" or "draw", and the way


class TimeLeft:
    """Estimates the time that a run still takes.

    A way that learns for minutes and a row that copies a photo both count as images, so images per second say little.
    Instead every way has two costs, from the records of the run: seconds to learn a subject and to draw an image. The
    clock since the start over the cost of what was made since then is the pace, which includes the scoring and the
    number of processes.

    Args:
        suite: What is compared.
        planned: Every image of the run.
        samples: What is on record at the start.
    """

    def __init__(self, suite: Suite, planned: Sequence[Key], samples: Iterable[Sample]) -> None:
        self.learners = {way.label: suite.learner(way).label for way in suite.ways if way.control is None}
        self.shared = {way.label for way in suite.ways if way.control == "class word"}
        self.images = set(planned)
        self.remaining = {job for key in planned for job in self.jobs_of(key)}
        self.costs, self.done = dict[Kind, list[float]](), Counter[Kind]()
        for sample in samples:
            self.count(sample)
        self.done.clear()
        self.started = time.monotonic()

    @property
    def missing(self) -> int:
        """How many images are not on record."""
        return len(self.images)

    def jobs_of(self, key: Key) -> list[tuple[Kind, Key]]:
        """Return what must have been done for an image, each job under the key of the images that share it."""
        subject, way, prompt, seed = key
        # The plain word's images know no subject: they are drawn once for the whole run.
        jobs: list[tuple[Kind, Key]] = [(("draw", way), ("" if way in self.shared else subject, way, prompt, seed))]
        if way in self.learners:
            learner = self.learners[way]
            jobs.append((("learn", learner), (subject, learner, 0, 0)))
        return jobs

    def count(self, sample: Sample) -> None:
        """Take a recorded image and what was done for it off the list, and note what that cost."""
        key = sample.key
        self.images.discard(key)
        for kind, shared in self.jobs_of(key):
            if (kind, shared) not in self.remaining:
                continue
            self.remaining.discard((kind, shared))
            self.done[kind] += 1
            seconds = sample.draw_seconds if kind[0] == "draw" else sample.learn_seconds
            if kind[0] == "draw" or seconds is not None:  # learned in pieces: not timed
                self.costs.setdefault(kind, []).append(seconds or 0.0)

    def seconds(self) -> float | None:
        """Return the seconds left; None while a kind of work has never been timed, or too little was done."""
        costs = {kind: fmean(seconds) for kind, seconds in self.costs.items()}
        remaining = Counter(kind for kind, _ in self.remaining)
        if not remaining.keys() <= costs.keys():
            return None
        elapsed = time.monotonic() - self.started
        spent = sum(costs.get(kind, 0.0) * number for kind, number in self.done.items())
        if min(elapsed, spent) < SECONDS_OF_EVIDENCE:
            return None
        return elapsed / spent * sum(costs[kind] * number for kind, number in remaining.items())
