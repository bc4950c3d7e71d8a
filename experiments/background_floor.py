"""What background leakage says of perfect images: those that the world itself draws of the person.

    python experiments/background_floor.py     # experiments/records/background_floor.json, and a table

The measure compares an image with the photo, both with the face blanked; hair, neck and hands stay, so some of it may
be the person, not the background. Here every prompt of a suite is drawn, not generated, so that nothing of the photo
can leak: once with the person and once with a stranger in the same pose, clothes and scene. The difference is what the
measure gives to an image for being of the right person. Strangers who have the person's hair or skin show where it
comes from. `own` is the benchmark's own background: less the mean over other subjects' photos. Means over prompts and
drawings for each person, intervals over people.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from known_names import make_options, open_evaluators

from sefi.benchmark.samples import compare_embeddings
from sefi.benchmark.statistics import estimate_difference
from sefi.benchmark.suite import Suite, SuitePrompt, open_suite
from sefi.cli.bench_setup import load_subjects
from sefi.core.files import write_text
from sefi.core.reading import read_json
from sefi.core.text import dump_json
from tiny_portraits.drawing.content import SHIPPED, ImageContent, Subject
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import PLAIN, make_test_person, sample_subject
from tiny_portraits.drawing.traits import Person, sample_person

RECORD = Path(__file__).parent / "records" / "background_floor.json"
SUITES = ("portraits", "portraits-in-scenes")
SEED = 20261127
STRANGER = "a stranger"
PERSON = "the person"
HAIR = ("hair_style", "hair_colour", "hair_shade", "fringe")
SKIN = ("skin", "skin_warmth")
# Which traits of the person a stranger gets, by who is drawn.
GIVEN = {STRANGER: (), "a stranger with the person's hair": HAIR, "a stranger with hair and skin": HAIR + SKIN}
Means = dict[str, dict[str, dict[str, float]]]  # by figure, who is drawn and subject
FIGURES = ("background", "own")


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawings", type=int, default=4, help="of each person and prompt")
    parser.add_argument("--print", action="store_true", help="print the record, measure nothing")
    given = parser.parse_args()
    if not given.print:
        found = {name: measure_suite(open_suite(name), given.drawings) for name in SUITES}
        record = {"drawings": given.drawings, "seed": SEED, "suites": found}
        write_text(RECORD, dump_json(record, separators=(",", ":")) + "\n")
    print(format_floor(read_json(RECORD)))


def measure_suite(suite: Suite, drawings: int) -> Means:
    """Return the mean likeness of the background to that of the subject's photo, and less that of others' photos."""
    evaluators = open_evaluators(suite)
    subjects = load_subjects(make_options(suite), evaluators.detector)
    photos = [evaluators.evaluate(subject.photo).background for subject in subjects]
    means: Means = {figure: {} for figure in FIGURES}
    for place, subject in enumerate(subjects):
        found: dict[tuple[str, str], list[float]] = {}
        for who, content in draw_contents(suite, suite.first + place, drawings):
            background = evaluators.evaluate(draw(content, SHIPPED.side)).background
            cosines = [one for photo in photos if (one := compare_embeddings(background, photo)) is not None]
            if len(cosines) < len(photos):
                continue
            own = cosines.pop(place)
            found.setdefault(("background", who), []).append(own)
            found.setdefault(("own", who), []).append(own - float(np.mean(cosines)))
        for (figure, who), scores in found.items():
            means[figure].setdefault(who, {})[subject.key] = round(float(np.mean(scores)), 6)
        print(f"{suite.name} {subject.key}")
    return means


def draw_contents(suite: Suite, number: int, drawings: int) -> Iterator[tuple[str, ImageContent]]:
    """Yield who is drawn and what is drawn, for every prompt and drawing of a person."""
    person = make_test_person(number)
    for index, prompt in enumerate(suite.prompts):
        for k in range(drawings):
            yield from list_contents(person, prompt, np.random.default_rng([SEED, number, index, k])).items()


def list_contents(person: Person, prompt: SuitePrompt, random: np.random.Generator) -> Mapping[str, ImageContent]:
    """Return what a prompt asks for, by who is in it; but for who it is, all are the same."""
    wanted = dict(prompt.wanted)
    stranger = sample_person(random)
    subject = sample_subject(random, stranger, wanted.get("action", ""), version=PLAIN)
    shown = replace(subject, attributes=(wanted["attribute"],) if "attribute" in wanted else ())
    scene, style = wanted.get("scene", ""), wanted.get("style", "photo")
    light_side, scene_seed = float(random.choice((-1.0, 1.0))), int(random.integers(2**31))
    people = {PERSON: person} | {who: give_traits(stranger, person, names) for who, names in GIVEN.items()}

    def show(one: Person) -> ImageContent:
        seen: Subject = replace(shown, person=one)
        return ImageContent((seen,), scene, style, "", light_side, scene_seed)

    return {who: show(one) for who, one in people.items()}


def give_traits(stranger: Person, person: Person, names: tuple[str, ...]) -> Person:
    """Return the stranger with these traits of the person."""
    pairs = zip(Person.names, stranger.coordinates, person.coordinates, strict=True)
    return Person(tuple(theirs if name in names else own for name, own, theirs in pairs))


def format_floor(record: Mapping[str, Mapping[str, Means]]) -> str:
    """Return a row for each suite and who is drawn: what the measure gives them more than a stranger."""
    lines = ["| photos | drawn | background leakage | own background |", "| --- | --- | --- | --- |"]
    for suite, means in record["suites"].items():
        for who in means["own"]:
            if who != STRANGER:
                more = [estimate_difference(means[name][who], means[name][STRANGER]) for name in FIGURES]
                cells = " | ".join(f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" for one in more)
                lines.append(f"| {suite} | {who} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
