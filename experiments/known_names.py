"""What background leakage says of people whom the model knows by name: nothing is learned from a photo of them.

    python experiments/known_names.py     # experiments/records/known_names.json, and a table

The embedded model was trained with the names of 2,000 characters. Here each prompt names one of them, and the images
are compared with a photo that was never shown to the model: a plain portrait, and one in a scene. What such images have
of the photo's background, more than those of the plain word, is no leakage of the photo; so this is how near a learned
person can come to the plain word on this model. The likeness is that of names it was trained with. `own background` is
the benchmark's: less the mean over the other characters' photos. Means over prompts and seeds for each character,
intervals over characters.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sefi.backbone.bundle import Backbone
from sefi.backbone.kinds import EMBEDDED
from sefi.backbone.open import open_backbone
from sefi.benchmark.evaluators import Evaluation, Evaluators, score_likeness
from sefi.benchmark.samples import PromptSeed, compare_embeddings, compare_with_each, generate_images, get_first_face
from sefi.benchmark.statistics import estimate_difference
from sefi.benchmark.suite import Suite, open_suite
from sefi.cli.bench_setup import BenchOptions, find_evaluator_files
from sefi.core.files import write_text
from sefi.core.reading import read_json
from sefi.core.text import dump_json
from sefi.provenance.save import encode_image
from tiny_portraits.drawing.content import SHIPPED, ImageContent
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import make_portrait, make_scene_photo
from tiny_portraits.drawing.traits import Person
from tiny_portraits.text.words import Character, list_characters

RECORD = Path(__file__).parent / "records" / "known_names.json"
SUITE = "dreambooth"  # its prompts, seeds and settings
FIRST_PHOTO = 900_000  # numbers of drawings that nothing else uses
PhotoMaker = Callable[[Person, int], ImageContent]
PHOTOS: dict[str, PhotoMaker] = {"portraits": make_portrait, "photos in scenes": make_scene_photo}
NAME, PLAIN_WORD = "a name that the model knows", "plain word"
FIGURES = ("background", "own background", "ID", "prompt score")
Means = dict[str, dict[str, dict[str, dict[str, float]]]]  # by kind of photo, figure, what is drawn and character


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=24, help="how many of the characters, spread over their list")
    parser.add_argument("--print", action="store_true", help="print the record, measure nothing")
    given = parser.parse_args()
    if not given.print:
        means = measure_characters(open_suite(SUITE), given.people)
        record = {"suite": SUITE, "people": given.people, "figures": means}
        write_text(RECORD, dump_json(record, separators=(",", ":")) + "\n")
    print(format_figures(read_json(RECORD)["figures"]))


def measure_characters(suite: Suite, count: int) -> Means:
    """Return means by character of what a name, and the plain word, gives."""
    evaluators, backbone = open_evaluators(suite), open_backbone()
    everybody = list_characters()
    characters = everybody[:: len(everybody) // count][:count]
    photos = {kind: draw_photos(evaluators, characters, make) for kind, make in PHOTOS.items()}
    plain = list(evaluate_images(backbone, evaluators, suite, suite.class_word))
    scores: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for place, character in enumerate(characters):
        named = evaluate_images(backbone, evaluators, suite, character.name)
        for what, images in ((NAME, named), (PLAIN_WORD, iter(plain))):
            for text, image in images:
                for kind, found in photos.items():
                    for figure, score in score_image(evaluators, image, text, found, place).items():
                        scores[kind, figure, what, character.name].append(score)
        print(character.name, flush=True)
    return arrange_means(scores)


def make_options(suite: Suite) -> BenchOptions:
    """Make the options of a benchmark of the suite on the embedded model's own drawings."""
    no_files = (None, None, None, None, None)
    return BenchOptions(suite, Path(), EMBEDDED, *no_files, download=False, device="cpu", dtype="float32")


def open_evaluators(suite: Suite) -> Evaluators:
    """Open the embedded model's evaluators, as a benchmark of the suite does."""
    return Evaluators(find_evaluator_files(make_options(suite)))


def draw_photos(evaluators: Evaluators, characters: Sequence[Character], make: PhotoMaker) -> list[Evaluation]:
    """Return what the evaluators find in a photo of each character, as the world draws them."""
    contents = [make(one.person, FIRST_PHOTO + number) for number, one in enumerate(characters)]
    return [evaluators.evaluate(draw(content, SHIPPED.side)) for content in contents]


def evaluate_images(
    backbone: Backbone, evaluators: Evaluators, suite: Suite, words: str, *, mark: bool = False
) -> Iterator[tuple[str, Evaluation]]:
    """Yield what the evaluators find in an image of each prompt and seed that shows `words`, and its plain sentence.

    Args:
        mark: give the images the invisible mark before, as those of a benchmark run have.
    """
    planned = [PromptSeed(*place) for place in itertools.product(range(len(suite.prompts)), suite.seeds)]
    texts = [suite.prompts[one.prompt].text.format(words) for one in planned]
    config = suite.make_config(suite.variants[0])
    for image in generate_images(backbone, [], texts, planned, config):
        rgb: NDArray[np.uint8] = image.rgb
        if mark:
            rgb = np.asarray(encode_image(Image.fromarray(rgb)).pixels, np.uint8)
        yield suite.prompts[image.prompt_seed.prompt].text.format(suite.class_word), evaluators.evaluate(rgb)


def score_image(
    evaluators: Evaluators, image: Evaluation, text: str, photos: Sequence[Evaluation], place: int
) -> dict[str, float]:
    """Return the figures of an image that are known, compared with the photo in its place and with the others."""
    own = compare_embeddings(image.background, photos[place].background)
    others = compare_with_each(image.background, [one.background for one in photos if one is not photos[place]])
    found = {
        "background": own,
        "own background": None if own is None or others is None else own - others,
        "ID": score_likeness(image, [get_first_face(photos[place])])[0],
        "prompt score": evaluators.score_prompt(image, text),
    }
    return {name: score for name, score in found.items() if score is not None}


def arrange_means(scores: Mapping[tuple[str, str, str, str], list[float]]) -> Means:
    """Return the means of lists of scores, nested by kind of photo, figure, what is drawn and character."""
    means: Means = {}
    for (kind, figure, what, name), values in scores.items():
        means.setdefault(kind, {}).setdefault(figure, {}).setdefault(what, {})[name] = round(float(np.mean(values)), 6)
    return means


def format_figures(means: Means) -> str:
    """Return rows for each kind of photo: what a known name has, what the plain word has, and the difference."""
    lines = ["| photo | drawn | " + " | ".join(FIGURES) + " |", "| --- " * (2 + len(FIGURES)) + "|"]
    for kind, figures in means.items():
        for what in (NAME, PLAIN_WORD):
            cells = " | ".join(f"{np.mean(list(figures[name][what].values())):.3f}" for name in FIGURES)
            lines.append(f"| {kind} | {what} | {cells} |")
        more = [estimate_difference(figures[name][NAME], figures[name][PLAIN_WORD]) for name in FIGURES]
        cells = " | ".join(f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" for one in more)
        lines.append(f"| {kind} | difference | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
