"""One screen of a study: a picture of each way for one subject, prompt and seed; some screens have a right answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sefi.bench.records import Sample

CODES = "ABCDEF"  # a way's letter in the page and in the answers
PHOTO = "X"  # the letter of the photo itself, where a check puts it among the pictures

Place = tuple[str, int, int]  # subject, prompt, seed


@dataclass(frozen=True)
class Shown:
    """One picture to choose: the letter it is counted under, and its file from the run's folder."""

    code: str
    file: str


@dataclass(frozen=True)
class Comparison:
    """One screen: pictures of one subject, prompt and seed, one of each way.

    Attributes:
        name: Names it in the answers; checks are named like all others.
        question: prompt, identity or quality.
        prompt: The prompt as it was sent; only the prompt question shows it.
        photos: Files of what was learned; only the identity question shows them.
        shown: In the order of the screen.
        right: The letter that an attentive rater chooses; None where there is no right and wrong.
    """

    name: str
    question: str
    prompt: str | None
    photos: tuple[str, ...]
    shown: tuple[Shown, ...]
    right: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every picture that the screen needs."""
        return (*self.photos, *(one.file for one in self.shown))


@dataclass(frozen=True)
class Pool:
    """What comparisons are drawn from: the samples of every place by way, the ways' letters, what each prompt wants."""

    places: Mapping[Place, Mapping[str, Sample]]
    codes: Mapping[str, str]
    wanted: Sequence[frozenset[tuple[str, str]]]


def plain(pool: Pool, place: Place, question: str, chance: np.random.Generator) -> Comparison:
    """One picture of each way, without a right answer."""
    files = {pool.codes[way]: sample.image for way, sample in pool.places[place].items()}
    return arranged(pool, place, question, files, chance)


def arranged(
    pool: Pool, place: Place, question: str, files: Mapping[str, str], chance: np.random.Generator
) -> Comparison:
    """Pictures in random order, with what the question shows beside them."""
    letters = sorted(files)
    shown = tuple(Shown(letters[n], files[letters[n]]) for n in chance.permutation(len(letters)))
    text = next(iter(pool.places[place].values())).text if question == "prompt" else None
    photos = photos_of(place[0]) if question == "identity" else ()
    return Comparison("", question, text, photos, shown)


def photos_of(subject: str) -> tuple[str, ...]:
    """Files of what was learned: one photo, or one of each where two subjects (`ada+bob`) share the pictures."""
    return tuple(f"photos/{name}.png" for name in subject.split("+"))


def checks(pool: Pool, places: Sequence[Place], question: str, chance: np.random.Generator) -> Iterator[Comparison]:
    """The checks that a question can have at these places, the clearest prompts first; quality has none."""
    if question not in CHECKS:
        return
    clear = sorted(places, key=lambda place: clarity(pool, place), reverse=True) if question == "prompt" else places
    for place in clear:
        check = CHECKS[question](pool, place, chance)
        if check is not None:
            yield check


def prompt_check(pool: Pool, place: Place, chance: np.random.Generator) -> Comparison | None:
    """The prompt's picture of the clearest way, among the other ways' pictures of a prompt that wants something else.

    Differs: a check with a single wrong picture would be passed by nearly every careless rater; here one answer of all
    is right.
    """
    here = pool.places[place]
    others = [p for p in pool.places if p[0] == place[0] and p[1] != place[1]]
    foreign = [p for p in others if not pool.wanted[p[1]] & pool.wanted[place[1]]]
    if not foreign:
        return None
    there = pool.places[foreign[int(chance.integers(len(foreign)))]]
    clearest = max(here, key=lambda way: obeying(here[way]))
    files = {pool.codes[way]: (here if way == clearest else there)[way].image for way in here}
    return replace(arranged(pool, place, "prompt", files, chance), right=pool.codes[clearest])


def identity_check(pool: Pool, place: Place, chance: np.random.Generator) -> Comparison | None:
    """The photo itself among the pictures, in place of one; none where a picture shows two subjects."""
    if len(photos_of(place[0])) > 1:
        return None
    files = {pool.codes[way]: sample.image for way, sample in pool.places[place].items()}
    del files[sorted(files)[int(chance.integers(len(files)))]]
    files[PHOTO] = photos_of(place[0])[0]
    return replace(arranged(pool, place, "identity", files, chance), right=PHOTO)


CHECKS: dict[str, Callable[[Pool, Place, np.random.Generator], Comparison | None]] = {
    "prompt": prompt_check,
    "identity": identity_check,
}


def obeying(sample: Sample) -> tuple[bool, float]:
    """How surely a picture shows what its prompt wants: the readers' word first, then the prompt score."""
    shown, score = sample.shown, sample.prompt_score
    return bool(shown) and all(shown), -1.0 if score is None else float(score)


def clarity(pool: Pool, place: Place) -> tuple[bool, float]:
    """How surely the best picture of a place obeys its prompt."""
    return max(obeying(sample) for sample in pool.places[place].values())
