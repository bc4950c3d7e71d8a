"""How much of a difference between two variants is the seeds' of the images, and how much the people's.

    python experiments/seed_noise.py runs/more-people [runs/more-seeds ...]

A benchmark's intervals resample people. All of them share the seeds, and the plain word's images are the same for all;
what another seed would have given is in no interval. Here, for each score, the differences are averaged over people for
each prompt and seed. What differs between the seeds of one prompt is noise of the seeds:

    standard error of seeds = sqrt(mean over prompts of the variance over seeds / (prompts x seeds))
    standard error of people = standard deviation over people / sqrt(people)

Prompts are taken as they are. Several runs of the same people and prompts with other seeds count as one. Writes
experiments/records/seed_noise.json.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sefi.benchmark.records import RunInfo, Sample
from sefi.benchmark.run import RunFolder
from sefi.core.errors import ConfigError
from sefi.core.files import write_text
from sefi.core.text import dump_json

RECORD = Path(__file__).parent / "records" / "seed_noise.json"
SCORES = {"background": "background leakage", "prompt_score": "prompt score", "id": "ID"}
ALL, PORTRAITS, SCENES = "all", "from portraits", "from photos in scenes"


def collect_scores(samples: list[Sample], score: str, variant: str) -> NDArray[np.float64]:
    """Return the scores of a variant, `[person, prompt, seed]`, people sorted by their keys.

    Raises:
        ConfigError: an image or its score is missing.
    """
    found = {(s.subject, s.prompt, s.seed): getattr(s, score) for s in samples if s.variant == variant}
    values = {place: float(value) for place, value in found.items() if value is not None}
    people, prompts, seeds = (sorted({getattr(s, key) for s in samples}) for key in ("subject", "prompt", "seed"))
    try:
        listed = [values[place] for place in product(people, prompts, seeds)]
    except KeyError:
        raise ConfigError(f"{score} is not there for all images.", "Finish the run.") from None
    return np.array(listed).reshape(len(people), len(prompts), len(seeds))


def split_people(info: RunInfo) -> dict[str, Sequence[str]]:
    """Return the subjects of a run: all, and by the kind of photo that they were learned from, where it has both."""
    if info.suite.photos != "both":
        return {ALL: info.subjects}
    half = len(info.subjects) // 2
    return {ALL: info.subjects, PORTRAITS: info.subjects[:half], SCENES: info.subjects[half:]}


def split_noise(differences: NDArray[np.float64]) -> dict[str, Any]:
    """Return mean, the mean of each seed, and both standard errors, of differences `[person, prompt, seed]`."""
    people, prompts, seeds = differences.shape
    by_place = differences.mean(0)
    of_seeds = np.sqrt(by_place.var(1, ddof=1).mean() / (prompts * seeds))
    of_people = differences.mean((1, 2)).std(ddof=1) / np.sqrt(people)
    return {
        "mean": round(float(by_place.mean()), 4),
        "mean_by_seed": [round(float(one), 4) for one in by_place.mean(0)],
        "standard_error_of_seeds": round(float(of_seeds), 4),
        "standard_error_of_people": round(float(of_people), 4),
    }


def format_noise(record: Mapping[str, Any]) -> str:
    """Return a row for each score and each part of the people."""
    seeds = " | ".join(f"seed {seed}" for seed in record["seeds"])
    lines = [f"| people | difference | mean | {seeds} | standard error, seeds | standard error, people |"]
    lines.append("| --- " * (5 + len(record["seeds"])) + "|")
    for part in (one for one in (ALL, PORTRAITS, SCENES) if one in record):
        for score, title in SCORES.items():
            found = record[part][score]
            means = " | ".join(f"{one:+.3f}" for one in (found["mean"], *found["mean_by_seed"]))
            errors = f"{found['standard_error_of_seeds']:.4f} | {found['standard_error_of_people']:.4f}"
            lines.append(f"| {part} | {title} | {means} | {errors} |")
    return "\n".join(lines)


def main() -> None:
    """Split a run's differences, write the record and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--variant", default="SeFi-IDE")
    parser.add_argument("--other", default="plain word")
    options = parser.parse_args()
    folders = [RunFolder(one) for one in options.runs]
    infos = [one.read_info() for one in folders]
    info = infos[0]
    samples = [sample for folder in folders for sample in folder.read_samples()]
    record: dict[str, Any] = {
        "suites": [one.suite.name for one in infos],
        "variant": options.variant,
        "other": options.other,
        "seeds": [seed for one in infos for seed in one.suite.seeds],
        "prompts": len(info.suite.prompts),
    }
    for name, subjects in split_people(info).items():
        chosen = [one for one in samples if one.subject in subjects]
        found = {
            score: collect_scores(chosen, score, options.variant) - collect_scores(chosen, score, options.other)
            for score in SCORES
        }
        record[name] = {"people": len(subjects)} | {score: split_noise(one) for score, one in found.items()}
    write_text(RECORD, dump_json(record, indent=1) + "\n")
    print(format_noise(record))


if __name__ == "__main__":
    main()
