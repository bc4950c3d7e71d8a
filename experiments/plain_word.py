"""The same differences as `seed_noise.py`'s, with the plain word's images of many more seeds.

    python experiments/plain_word.py runs/more-people runs/more-seeds     # experiments/records/plain_word.json
    python experiments/plain_word.py runs/ninety-six-people --record experiments/records/plain_word_ninety_six.json
    python experiments/plain_word.py --together experiments/records/plain_word*.json

A run compares the images of many people with the same few images of the plain word, one for each prompt and seed. What
these few happen to show (a beach that no prompt asked for) is in the difference of everybody. Here the plain word gets
many other seeds, and is compared with the same photos. With o and p the scores of the variant and of the plain word for
one prompt and the seeds of the runs, averaged over people, and P the plain word's for the many seeds:

    difference = mean over prompts of (mean of o - b (mean of p - mean of P) - mean of P)

This is a control variate. b is the regression of o on p within the prompts, all prompts together; b = 1 is the
difference of the runs themselves, b = 0 ignores that they share seeds. With v a variance over seeds and n their number:

    standard error of seeds = sqrt(mean over prompts of (v(o - b p) / n + (1 - b)^2 v(P) / N) / prompts)
    standard error of people = standard deviation over people of the same difference / sqrt(people)

Records of different people are put together with weights 1 / (seeds^2 + people^2) of their standard errors.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from known_names import PLAIN_WORD, evaluate_images, open_evaluators
from numpy.typing import NDArray
from PIL import Image
from seed_noise import ALL, SCORES, collect_scores, split_people

from sefi.backbone.open import open_backbone
from sefi.benchmark.run import RunFolder
from sefi.benchmark.samples import compare_embeddings
from sefi.benchmark.suite import Suite, open_suite
from sefi.core.files import write_text
from sefi.core.reading import read_json
from sefi.core.text import dump_json

RECORD = Path(__file__).parent / "records" / "plain_word.json"
FIRST_SEED = 200  # the suites' are below it
COMPARED = ("background", "prompt_score")
Numbers = NDArray[np.float64]


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--variant", default="SeFi-IDE")
    parser.add_argument("--seeds", type=int, default=64, help="of the plain word's images")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--together", type=Path, nargs="+", help="records of different people")
    options = parser.parse_args()
    if options.together:
        print(format_averages([read_json(one) for one in options.together]))
        return
    if options.runs:
        record = compare_runs(options.runs, options.variant, options.seeds)
        write_text(options.record, dump_json(record, separators=(",", ":")) + "\n")
    record = read_json(options.record)
    print(format_differences(record), format_prompts(record), sep="\n\n")


def compare_runs(runs: Sequence[Path], variant: str, count: int) -> dict[str, Any]:
    """Return the differences between a variant of some runs and the plain word, for every part of the people."""
    folders = [RunFolder(one) for one in runs]
    infos = [one.read_info() for one in folders]
    samples = list(chain.from_iterable(one.read_samples() for one in folders))
    suite = open_suite(infos[0].suite.name).model_copy(update={"seeds": tuple(range(FIRST_SEED, FIRST_SEED + count))})
    everybody = sorted(infos[0].subjects)
    photos = [np.asarray(Image.open(folders[0].locate_photo(key)).convert("RGB")) for key in everybody]
    plain = measure_plain_word(suite, photos)
    record: dict[str, Any] = {
        "suites": [one.suite.name for one in infos],
        "variant": variant,
        "seeds": [seed for one in infos for seed in one.suite.seeds],
        "plain_word_seeds": [FIRST_SEED, FIRST_SEED + count - 1],
        "prompts": [prompt.text for prompt in suite.prompts],
    }
    for name, subjects in split_people(infos[0]).items():
        chosen = [one for one in samples if one.subject in subjects]
        places = [number for number, key in enumerate(everybody) if key in subjects]
        record[name] = {"people": len(subjects)} | {
            score: compare_scores(
                collect_scores(chosen, score, variant), collect_scores(chosen, score, PLAIN_WORD), plain[score][places]
            )
            for score in COMPARED
        }
    return record


def measure_plain_word(suite: Suite, photos: Sequence[NDArray[np.uint8]]) -> dict[str, Numbers]:
    """Return the plain word's scores `[person, prompt, seed]`; the prompt score is the same for everybody."""
    evaluators, backbone = open_evaluators(suite), open_backbone()
    backgrounds = [evaluators.evaluate(photo).background for photo in photos]
    found: dict[str, list[list[float | None]]] = {score: [] for score in COMPARED}
    images = evaluate_images(backbone, evaluators, suite, suite.class_word, mark=True)
    for number, (text, image) in enumerate(images, 1):
        found["background"].append([compare_embeddings(image.background, one) for one in backgrounds])
        found["prompt_score"].append([evaluators.score_prompt(image, text)] * len(photos))
        if number % len(suite.seeds) == 0:
            print(text, flush=True)
    shape = (len(suite.prompts), len(suite.seeds), len(photos))
    arrays = {score: np.array(values, dtype=np.float64).reshape(shape) for score, values in found.items()}
    return {score: values.transpose(2, 0, 1) for score, values in arrays.items()}


def compare_scores(scores: Numbers, shared: Numbers, plain: Numbers) -> dict[str, Any]:
    """Return the difference of a variant and the plain word, by prompt too, with its standard errors.

    Args:
        scores: the variant's, `[person, prompt, seed]`.
        shared: the plain word's with the same seeds, of that shape.
        plain: the plain word's, `[person, prompt, seed]` with many other seeds.
    """
    ours, paired, many = scores.mean(0), shared.mean(0), plain.mean(0)  # by prompt and seed
    slope = fit_slope(ours, paired)
    by_place = ours - slope * paired
    by_prompt = by_place.mean(1) - (1 - slope) * many.mean(1)
    variance = by_place.var(1, ddof=1) / ours.shape[1] + (1 - slope) ** 2 * many.var(1, ddof=1) / many.shape[1]
    by_person = (scores - slope * shared).mean((1, 2)) - (1 - slope) * plain.mean((1, 2))
    return {
        "mean": round(float(by_prompt.mean()), 4),
        "slope": round(slope, 4),
        "standard_error_of_seeds": round(float(np.sqrt(variance.mean() / len(by_prompt))), 4),
        "standard_error_of_people": round(float(by_person.std(ddof=1) / np.sqrt(len(by_person))), 4),
        "mean_by_prompt": [round(float(one), 4) for one in by_prompt],
        "standard_error_by_prompt": [round(float(one), 4) for one in np.sqrt(variance)],
        "plain_word": [[round(float(one), 4) for one in row] for row in many],
    }


def fit_slope(ours: Numbers, paired: Numbers) -> float:
    """Return the slope of the regression of `ours` on `paired`, both `[prompt, seed]`, within prompts."""
    x, y = (one - one.mean(1, keepdims=True) for one in (paired, ours))
    return float((x * y).sum() / (x * x).sum())


def list_parts(record: Mapping[str, Any]) -> list[str]:
    """Return the parts of the people that a record has figures of."""
    return [name for name, one in record.items() if isinstance(one, dict)]


def format_differences(record: Mapping[str, Any]) -> str:
    """Return a row for each score and each part of the people."""
    first, last = record["plain_word_seeds"]
    title = f"difference to the plain word, seeds {first} to {last}"
    lines = [f"| people | score | {title} | standard error, seeds | standard error, people |", "| --- " * 5 + "|"]
    for part in list_parts(record):
        for score in COMPARED:
            one = record[part][score]
            errors = f"{one['standard_error_of_seeds']:.4f} | {one['standard_error_of_people']:.4f}"
            lines.append(f"| {part} | {SCORES[score]} | {one['mean']:+.4f} | {errors} |")
    return "\n".join(lines)


def average_differences(found: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the mean of the same difference over different people, and its standard error.

    The plain word's many images are the same for all; the part of the errors that they share is not counted.
    """
    errors = np.array([[one["standard_error_of_seeds"], one["standard_error_of_people"]] for one in found])
    weights = 1 / (errors**2).sum(1)
    mean = np.average([one["mean"] for one in found], weights=weights)
    return float(mean), float(weights.sum() ** -0.5)


def format_averages(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each score and each part of the people of all records."""
    title = "difference to the plain word"
    lines = [f"| people | number | score | {title} | standard error |", "| --- " * 5 + "|"]
    for part in list_parts(records[0]):
        people = sum(one[part]["people"] for one in records)
        for score in COMPARED:
            mean, error = average_differences([one[part][score] for one in records])
            lines.append(f"| {part} | {people} | {SCORES[score]} | {mean:+.4f} | {error:.4f} |")
    return "\n".join(lines)


def format_prompts(record: Mapping[str, Any]) -> str:
    """Return a row for each prompt: the differences over everybody, with the standard error of seeds."""
    lines = ["| prompt | " + " | ".join(SCORES[score] for score in COMPARED) + " |", "| --- " * 3 + "|"]
    for number, text in enumerate(record["prompts"]):
        found = [record[ALL][score] for score in COMPARED]
        cells = [f"{f['mean_by_prompt'][number]:+.3f} ± {f['standard_error_by_prompt'][number]:.3f}" for f in found]
        lines.append(f"| {text.format('person')} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
