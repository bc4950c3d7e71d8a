"""Which comparisons a rater is asked to make: drawn from a run with a seed, with checks of attention among them."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice

import numpy as np

from sefi.bench.comparisons import CODES, Comparison, Place, Pool, checks, plain
from sefi.bench.records import RunInfo, Sample
from sefi.core.errors import ConfigError
from sefi.core.json_text import dump_json

QUESTIONS = {  # the paper's three (section 4.1), in the order in which they are asked
    "prompt": "Which picture matches the prompt best?",
    "identity": "Which picture shows the {kind} of the photo?",
    "quality": "Which picture looks best?",
}


@dataclass(frozen=True)
class Asking:
    """How much is asked, and of what.

    Attributes:
        ways: Labels of two to six ways; empty takes every way that is no anchor.
        count: Comparisons of every question; fewer where the run has fewer.
        checks: Attention checks within the prompt question, and as many within the identity question. Twelve in all
            tell a blind rater (of two images, half are passed by chance) from one who slips once in twenty.
        seed: Decides what is drawn, the letters and every order.
    """

    ways: tuple[str, ...] = ()
    count: int = 20
    checks: int = 6
    seed: int = 0


@dataclass(frozen=True)
class Study:
    """Everything that one page asks.

    Attributes:
        name: Twelve hex digits that differ where anything asked differs.
        questions: The questions in words.
        ways: Letter to label.
        comparisons: In the order of asking.
    """

    name: str
    questions: Mapping[str, str]
    ways: Mapping[str, str]
    comparisons: tuple[Comparison, ...]

    @property
    def checks(self) -> dict[str, str]:
        """The right letter of every attention check."""
        return {one.name: one.right for one in self.comparisons if one.right is not None}


def design(run: RunInfo, samples: Sequence[Sample], asking: Asking) -> Study:
    """Draw a study from a run.

    Every question has its own draw of places, subjects in turn, so that changing one changes no other.

    Args:
        run: What `run.json` says.
        samples: What `cells.jsonl` says.
        asking: How much is asked.

    Raises:
        ConfigError: There are no pictures, a way is unknown, fewer than two or more than six are compared, or no
            subject, prompt and seed has a picture of every way.
    """
    if not samples:
        raise ConfigError("The run has no pictures.", "Let `sefi bench run` finish first.")
    ways = compared(run, asking.ways)
    chance = np.random.default_rng([asking.seed, len(QUESTIONS)])
    letters = {code: ways[int(n)] for code, n in zip(CODES, chance.permutation(len(ways)), strict=False)}
    wanted = [frozenset(prompt.wanted) for prompt in run.suite.prompts]
    pool = Pool(complete(samples, ways), {way: code for code, way in letters.items()}, wanted)
    blocks = [block(pool, asking, question) for question in QUESTIONS]
    comparisons = tuple(comparison for part in blocks for comparison in part)
    return Study(digest(pool, comparisons), worded(run), letters, comparisons)


def compared(run: RunInfo, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that were asked for, or every way that is no anchor.

    Raises:
        ConfigError: A label is unknown or an anchor that is a photograph (its picture follows no prompt, and it would
            answer the identity question), or there are fewer than two or more than six.
    """
    controls = {way.label: way.control for way in run.suite.variants}
    drawn_ways = {label: control for label, control in controls.items() if control in {None, "class word"}}
    there = ", ".join(drawn_ways)
    unknown = [label for label in labels if label not in drawn_ways]
    if unknown:
        raise ConfigError(f"The run has no way '{unknown[0]}' to compare.", f"It has {there}.")
    ways = tuple(dict.fromkeys(labels)) or tuple(label for label, control in drawn_ways.items() if control is None)
    if not 2 <= len(ways) <= len(CODES):
        problem = f"A comparison shows two to {len(CODES)} ways, and here is {len(ways)}."
        raise ConfigError(problem, f"Name some with --ways LABEL, several times; the run has {there}.")
    return ways


def complete(samples: Sequence[Sample], ways: Sequence[str]) -> dict[Place, dict[str, Sample]]:
    """The samples by place and way, of places that have a picture of every way.

    Raises:
        ConfigError: There is no such place.
    """
    found: dict[Place, dict[str, Sample]] = {}
    for sample in samples:
        if sample.variant in ways:
            found.setdefault((sample.subject, sample.prompt, sample.seed), {})[sample.variant] = sample
    whole = {place: found[place] for place in sorted(found) if len(found[place]) == len(ways)}
    if not whole:
        problem = f"No subject, prompt and seed has a picture of each of {', '.join(ways)}."
        raise ConfigError(problem, "Let `sefi bench run` finish, or name fewer with --ways.")
    return whole


def worded(run: RunInfo) -> dict[str, str]:
    """The questions, with the word for what was learned (a person, a cat); a picture of two has two photos."""
    photo = "each photo" if run.suite.together > 1 else "the photo"
    kind = run.suite.kind
    return {name: text.format(kind=kind).replace("the photo", photo) for name, text in QUESTIONS.items()}


def block(pool: Pool, asking: Asking, question: str) -> list[Comparison]:
    """All comparisons of one question, its checks at random places among them but never first."""
    chance = np.random.default_rng([asking.seed, list(QUESTIONS).index(question)])
    places = drawn(sorted(pool.places), chance)
    chosen, spare = places[: asking.count], places[asking.count :]
    asked = [plain(pool, place, question, chance) for place in chosen]
    possible = chain.from_iterable(checks(pool, some, question, chance) for some in (spare, chosen))
    for check in islice(possible, asking.checks):
        asked.insert(int(chance.integers(1, len(asked) + 1)), check)
    return [replace(one, name=f"{question}-{number}") for number, one in enumerate(asked, start=1)]


def drawn(places: Sequence[Place], chance: np.random.Generator) -> list[Place]:
    """All places in random order, such that any beginning holds every subject equally often, give or take one."""
    turns: Counter[str] = Counter()
    ranked: list[tuple[int, Place]] = []
    for number in chance.permutation(len(places)):
        place = places[number]
        ranked.append((turns[place[0]], place))
        turns[place[0]] += 1
    return [place for _, place in sorted(ranked, key=lambda pair: pair[0])]


def digest(pool: Pool, comparisons: Sequence[Comparison]) -> str:
    """A name for exactly these questions about exactly these pictures."""
    pictures = [sample.sha256 for by_way in pool.places.values() for sample in by_way.values()]
    content = dump_json([dict(pool.codes), [asdict(one) for one in comparisons], sorted(pictures)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
