"""The main job in figures: unseen drawn people x prompts x seeds, three ways, scored by the judges.

Ways: ours (default preset), the plain class word, and one token for every stage, key and value, without attention
loss (textual inversion). Every picture is one line of the record file; a second run redoes none of them.

    python benchmarks/main_job.py --set generate.steps=25  # 8 people x 12 prompts x 2 seeds x 3 ways, as recorded
    python benchmarks/main_job.py --ways ours --people 2 --set learn.attention_weight=0.01 --record /tmp/trial.jsonl
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sefi.api import embedded_judges, generate, learn
from sefi.backbone.bundle import Backbone
from sefi.backbone.open import open_backbone
from sefi.cli.demo import ONE_TOKEN
from sefi.core.config import Config, override, to_dict
from sefi.core.nouns import Identity
from sefi.core.presets import PRESETS
from sefi.metrics.similarity import similarity
from sefi.photo.enlarge import LOOKING_SIDE
from sefi.world.drawing import draw
from sefi.world.looking import Judges
from sefi.world.subjects import portrait, subject

Wanted = tuple[tuple[str, str], ...]
PROMPTS: tuple[tuple[str, Wanted], ...] = (
    ("a photo of {} at the beach", (("scene", "beach"),)),
    ("a photo of {} in the snow", (("scene", "snow"),)),
    ("a photo of {} in the city at night", (("scene", "city"),)),
    ("a photo of {} holding a cup", (("action", "cup"),)),
    ("a photo of {} playing the guitar", (("action", "guitar"),)),
    ("a photo of {} reading a book", (("action", "book"),)),
    ("a photo of {} smiling", (("attribute", "smiling"),)),
    ("a photo of {} wearing sunglasses", (("attribute", "sunglasses"),)),
    ("a photo of {} with purple hair", (("attribute", "purple hair"),)),
    ("a painting of {}", (("style", "painting"),)),
    (
        "a photo of {} smiling, holding a balloon, in the forest",
        (("attribute", "smiling"), ("action", "balloon"), ("scene", "forest")),
    ),
    ("a drawing of {} wearing a hat, in the desert", (("style", "drawing"), ("attribute", "hat"), ("scene", "desert"))),
)
WAYS: dict[str, tuple[str, ...] | None] = {"ours": (), "person": None, "one token": ONE_TOKEN}
COMPARED = (("ours", "one token"),)
FIGURES = {
    "similarity": "similarity to the photo",
    "similarity_other": "to another picture",
    "agreement": "prompt agreement",
    "face": "face found",
    "alone": "exactly one face",
}
RECORD = Path(__file__).parent / "records" / "main_job.jsonl"


@dataclass(frozen=True)
class Trial:
    """Everything that does not change between people."""

    backbone: Backbone
    judges: Judges
    base: Config
    seeds: int


def learned(trial: Trial, number: int, settings: tuple[str, ...]) -> tuple[Identity, float]:
    """An identity learned from this person's portrait, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "portrait.png"
        Image.fromarray(draw(portrait(subject(number), number), 512)).save(photo)
        started = time.monotonic()
        made = learn(photo, name="p", backbone=trial.backbone, config=override(trial.base, settings), seed=number)
        return made, time.monotonic() - started


def cells(trial: Trial, number: int, way: str) -> Iterator[dict[str, Any]]:
    """All records of one person and one way."""
    settings = WAYS[way]
    identity, seconds = learned(trial, number, settings) if settings is not None else (None, 0.0)
    yield from scored(trial, number, way, identity, seconds)


def scored(trial: Trial, number: int, way: str, identity: Identity | None, seconds: float) -> Iterator[dict[str, Any]]:
    """The pictures of one person, seen by the judges: a record each."""
    prompts = [text.format("<p>" if identity else "person") for text, _ in PROMPTS]
    config = override(trial.base, [f"generate.count={trial.seeds}"])
    pictures = generate(prompts, [identity] if identity else [], backbone=trial.backbone, config=config, seed=100)
    photo, other = (
        trial.judges(draw(portrait(subject(number), number, view), LOOKING_SIDE)).embedding for view in (0, 1)
    )
    for index, picture in enumerate(pictures):
        text, wanted = PROMPTS[index // trial.seeds]
        rgb = np.asarray(picture.pixels)
        sight = trial.judges(rgb)
        face, shown = sight.embedding, [sight.reading.shows(kind, label) for kind, label in wanted]
        yield {
            "person": number, "way": way, "prompt": text, "seed": picture.seed, "learn_seconds": round(seconds, 2),
            "face": face is not None, "alone": len(sight.faces) == 1,
            "similarity": 0.0 if face is None or photo is None else similarity(photo, face),
            "similarity_other": 0.0 if face is None or other is None else similarity(other, face),
            "agreement": float(np.mean(shown)),
            "wanted": [list(w) for w in wanted], "shown": shown,
            "sha256": hashlib.sha256(rgb.tobytes()).hexdigest()[:16],
        }  # fmt: skip


def interval(values: dict[int, float], draws: int = 2000) -> tuple[float, float, float]:
    """Mean over people and its 95 % interval by resampling people."""
    numbers = np.array(list(values.values()))
    means = numbers[np.random.default_rng(0).integers(len(numbers), size=(draws, len(numbers)))].mean(1)
    return float(numbers.mean()), *(float(q) for q in np.quantile(means, (0.025, 0.975)))


def by_person(records: list[dict[str, Any]], way: str, key: str) -> dict[int, float]:
    """Every person's mean of one figure."""
    mine = [r for r in records if r["way"] == way]
    return {n: float(np.mean([r[key] for r in mine if r["person"] == n])) for n in {r["person"] for r in mine}}


def spoken(values: dict[int, float], sign: str = "") -> str:
    """Mean and interval as a table's cell."""
    return "{:{sign}.3f} [{:{sign}.3f}, {:{sign}.3f}]".format(*interval(values), sign=sign)


def recorded(records: list[dict[str, Any]]) -> list[str]:
    """The figures that every record has: earlier records know fewer."""
    return [key for key in FIGURES if all(key in r for r in records)]


def summary(records: list[dict[str, Any]]) -> str:
    """A Markdown table: a row per way, a column per figure that every record has."""
    keys = recorded(records)
    head = ["way", *(FIGURES[key] for key in keys), "s to learn"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for way in dict.fromkeys(r["way"] for r in records):
        row = [spoken(by_person(records, way, key)) for key in keys]
        seconds = np.mean([r["learn_seconds"] for r in records if r["way"] == way])
        lines.append("| " + " | ".join([way, *row, f"{seconds:.0f}"]) + " |")
    return "\n".join(lines)


def difference(records: list[dict[str, Any]], way: str, other: str) -> str:
    """A Markdown row: one way minus another, paired by person, over the people that both have."""
    row: list[str] = []
    for key in recorded(records):
        mine, theirs = by_person(records, way, key), by_person(records, other, key)
        row.append(spoken({n: mine[n] - theirs[n] for n in mine.keys() & theirs.keys()}, "+"))
    return "| " + " | ".join([f"{way} - {other}", *row, ""]) + " |"


def report(records: list[dict[str, Any]], compared: tuple[tuple[str, str], ...]) -> None:
    """Print the table, and under it the differences of those pairs of ways that were both run."""
    print(summary(records))
    there = {r["way"] for r in records}
    for way, other in compared:
        if {way, other} <= there:
            print(difference(records, way, other))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--model", default="tiny-portraits")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="number of the first person")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--judges", type=Path, default=embedded_judges())
    parser.add_argument("--set", nargs="*", default=[], dest="settings")
    return parser.parse_args()


def earlier(record: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The records so far; stops if they tell of another model or other settings."""
    record.parent.mkdir(parents=True, exist_ok=True)
    about_file = record.with_suffix(".json")
    if about_file.is_file() and json.loads(about_file.read_text()) != about:
        raise SystemExit(f"{about_file} tells of another model or other settings: name another --record.")
    about_file.write_text(json.dumps(about, indent=1) + "\n")
    return [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []


def keep(record: Path, new: list[dict[str, Any]]) -> None:
    """Append records in one write: two runs may share the file."""
    with record.open("ab", buffering=0) as file:
        file.write("".join(json.dumps(r) + "\n" for r in new).encode())


def main() -> None:
    """Run what is missing, then print the table."""
    given = arguments()
    base = override(PRESETS[given.preset], given.settings)
    trial = Trial(open_backbone(given.model), Judges(given.judges), base, given.seeds)
    records = earlier(given.record, {"model": trial.backbone.fingerprint, "config": to_dict(base)})
    done = {(r["person"], r["way"]) for r in records}
    numbers = range(given.first, given.first + given.people)
    for number, way in ((n, w) for n in numbers for w in given.ways if (n, w) not in done):
        new = list(cells(trial, number, way))
        records += new
        keep(given.record, new)
        means = (np.mean([r[key] for r in new]) for key in ("similarity", "agreement"))
        print(f"person {number}, {way}:", *(f"{m:.3f}" for m in means), flush=True)
    report(records, COMPARED)
    print("The same, only pictures with exactly one face:")
    report([r for r in records if r["alone"]], COMPARED)


if __name__ == "__main__":
    main()
