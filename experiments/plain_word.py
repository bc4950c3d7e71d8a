"""The same differences as `seed_noise.py`'s, with the plain word's images of many more seeds.

    python experiments/plain_word.py runs/more-people [runs/more-seeds ...]     # experiments/records/plain_word.json

A run compares the images of many people with the same few images of the plain word, one for each prompt and seed. What
these few happen to show (a beach that no prompt asked for) is most of the noise of the difference, and pairing by seed
does not remove it: a seed that makes a beach of one text makes a wall of another. Here the plain word gets many other
seeds, and is compared with the same photos. Its mean over them takes the place of its mean in the runs.

    standard error of seeds = sqrt(mean over prompts of (variance over the variant's seeds / their number
                              + variance over the plain word's seeds / their number) / prompts)
    standard error of people = standard deviation over people / sqrt(people)
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from known_names import evaluate_images
from numpy.typing import NDArray
from PIL import Image
from seed_noise import SCORES, collect_scores, split_people

from sefi.backbone.kinds import EMBEDDED
from sefi.backbone.open import open_backbone
from sefi.benchmark.evaluators import Evaluators
from sefi.benchmark.run import RunFolder
from sefi.benchmark.samples import compare_embeddings
from sefi.benchmark.suite import Suite, open_suite
from sefi.cli.bench_setup import BenchOptions, find_evaluator_files
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
    options = parser.parse_args()
    if options.runs:
        record = compare_runs(options.runs, options.variant, options.seeds)
        write_text(RECORD, dump_json(record, indent=1) + "\n")
    print(format_record(read_json(RECORD)))


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
    }
    for name, subjects in split_people(infos[0]).items():
        chosen = [one for one in samples if one.subject in subjects]
        places = [number for number, key in enumerate(everybody) if key in subjects]
        record[name] = {"people": len(subjects)} | {
            score: compare_scores(collect_scores(chosen, score, variant), plain[score][places]) for score in COMPARED
        }
    return record


def measure_plain_word(suite: Suite, photos: Sequence[NDArray[np.uint8]]) -> dict[str, Numbers]:
    """Return the plain word's scores `[person, prompt, seed]`; the prompt score is the same for everybody."""
    no_files = (None, None, None, None, None)
    options = BenchOptions(suite, Path(), EMBEDDED, *no_files, download=False, device="cpu", dtype="float32")
    evaluators, backbone = Evaluators(find_evaluator_files(options)), open_backbone()
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


def compare_scores(scores: Numbers, plain: Numbers) -> dict[str, Any]:
    """Return the difference of two means, by prompt too, with its standard errors.

    Args:
        scores: a variant's, `[person, prompt, seed]`.
        plain: the plain word's, `[person, prompt, seed]` with other seeds; nan where no image could be compared.
    """
    ours, theirs = scores.mean(0), np.nanmean(plain, 0)  # by prompt and seed
    by_prompt = ours.mean(1) - np.nanmean(theirs, 1)
    variance = ours.var(1, ddof=1) / ours.shape[1] + np.nanvar(theirs, 1, ddof=1) / theirs.shape[1]
    by_person = scores.mean((1, 2)) - np.nanmean(plain, (1, 2))
    return {
        "mean": round(float(by_prompt.mean()), 4),
        "plain_word": round(float(np.nanmean(theirs)), 4),
        "standard_error_of_seeds": round(float(np.sqrt(variance.mean() / len(by_prompt))), 4),
        "standard_error_of_people": round(float(by_person.std(ddof=1) / np.sqrt(len(by_person))), 4),
        "mean_by_prompt": [round(float(one), 4) for one in by_prompt],
        "standard_error_by_prompt": [round(float(one), 4) for one in np.sqrt(variance)],
    }


def format_record(record: Mapping[str, Any]) -> str:
    """Return a row for each score and each part of the people."""
    first, last = record["plain_word_seeds"]
    title = f"difference to the plain word, seeds {first} to {last}"
    lines = [f"| people | score | {title} | standard error, seeds | standard error, people |", "| --- " * 5 + "|"]
    for part, found in ((name, one) for name, one in record.items() if isinstance(one, dict)):
        for score in COMPARED:
            one = found[score]
            errors = f"{one['standard_error_of_seeds']:.4f} | {one['standard_error_of_people']:.4f}"
            lines.append(f"| {part} | {SCORES[score]} | {one['mean']:+.4f} | {errors} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
