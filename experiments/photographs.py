"""Fit and measure what tells photographs from the drawings of the embedded model's world.

    python experiments/photographs.py            # the record: error rates, of each source by a fit that has not seen it
    python experiments/photographs.py --write    # also src/sefi/models/photographs.json, fitted on all of them

Drawings are random images of the world in every style; photographs are those that come with scikit-image and
matplotlib, and random crops of them, some in other colours. Both are also resized, blurred and compressed.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import sefi  # noqa: F401  before torch, so that OpenMP threads sleep while they wait

# isort: split

import matplotlib as mpl
import numpy as np
import skimage.data
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from sefi.core.errors import FaceError
from sefi.core.files import write_text
from sefi.core.text import dump_json
from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS
from sefi.photo.augment import crop_face, crop_middle
from sefi.photo.detect import YuNetDetector
from sefi.photo.read import (
    CLASSIFIER_FILE,
    CLASSIFIER_RESOLUTION,
    DRAWING_SCORE,
    Classifier,
    Photo,
    convert_to_pixels,
    measure_statistics,
)
from tiny_portraits.drawing.content import SHIPPED
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import get_content

RECORD = Path(__file__).parent / "records" / "photographs.json"
DRAWINGS, SERIES, SIDE = 300, 71, 512
CROPS, RECOLOURED, SMALLEST = 20, 60, 0.25  # random crops of a photograph, and the smallest's share of its side
FOLDS = 5
FALSE_ALARMS = 0.01  # share of drawings that may be taken for photographs
PENALTY = 1e-3
FILES = ("motorcycle_left.png", "hubble_deep_field.jpg", "retina.jpg", "clock_motion.png")
NAMES = ("astronaut", "camera", "cat", "coffee", "brick", "coins", "grass", "gravel", "moon", "rocket")
HEADS = {"astronaut": (120, 0, 340, 220), "grace_hopper": (130, 20, 430, 320)}  # faces with their surroundings

Sample = tuple[str, bool, str, Tensor]  # source, whether a photograph, what was done to it, square


def read_photographs() -> dict[str, Image.Image]:
    """Return the photographs that come with the development tools, by name."""
    folder = Path(skimage.data.__file__).parent
    found = {name: Image.fromarray(getattr(skimage.data, name)()) for name in NAMES}
    found |= {Path(name).stem: Image.open(folder / name) for name in FILES}
    found["grace_hopper"] = Image.open(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    return {name: image.convert("RGB") for name, image in found.items()}


def compress_image(image: Image.Image, quality: int) -> Image.Image:
    """Return an image as JPEG leaves it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def resize_image(image: Image.Image, side: int) -> Image.Image:
    """Return an image with this shorter side."""
    factor = side / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def make_variants(image: Image.Image) -> dict[str, Image.Image]:
    """Return an image as people pass it on."""
    small = resize_image(image, 128)
    return {
        "as it is": image,
        "JPEG 75": compress_image(image, 75),
        "JPEG 30": compress_image(image, 30),
        "small": small,
        "small, JPEG 50": compress_image(small, 50),
        "200 pixels, JPEG 75": compress_image(resize_image(image, 200), 75),
        "enlarged": resize_image(image, 1024),
        "blurred": image.filter(ImageFilter.GaussianBlur(2)),
    }


def crop_model_square(image: Image.Image) -> Tensor:
    """Return the middle square as the model gets it."""
    return crop_middle(Photo(convert_to_pixels(image), "photo"), CLASSIFIER_RESOLUTION)


def crop_randomly(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return a random square of an image."""
    side = int(min(image.size) * random.uniform(SMALLEST, 1))
    left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def recolour_image(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return an image in other colours, light and contrast; there are fewer photographs here than ways to take one."""
    for enhance, low, high in (
        (ImageEnhance.Color, 0.0, 1.6),
        (ImageEnhance.Brightness, 0.6, 1.5),
        (ImageEnhance.Contrast, 0.6, 1.5),
    ):
        image = enhance(image).enhance(random.uniform(low, high))
    return Image.merge("RGB", [image.split()[channel] for channel in random.permutation(3)])


def yield_photograph_images() -> Iterator[tuple[str, str, Image.Image]]:
    """Yield every photograph, random crops of it, and heads: name, what was done to it, image."""
    random = np.random.default_rng(0)
    for name, image in read_photographs().items():
        for what, made in make_variants(image).items():
            yield name, what, made
        for _ in range(CROPS):
            yield name, "crop", crop_randomly(image, random)
        for _ in range(RECOLOURED):
            part = image.crop(HEADS[name]) if name in HEADS and random.random() < 0.5 else image
            yield name, "crop in other colours", recolour_image(crop_randomly(part, random), random)
        if name in HEADS:
            for what, made in make_variants(image.crop(HEADS[name])).items():
                yield name, f"head, {what}", made


def yield_photographs() -> Iterator[Sample]:
    """Yield the square of every image of a photograph."""
    for name, what, image in yield_photograph_images():
        yield name, True, what, crop_model_square(image)


def yield_drawings(count: int = DRAWINGS) -> Iterator[Sample]:
    """Yield every drawing, and the face cut out of it where the detector finds one."""
    detector = YuNetDetector(EMBEDDED_EVALUATORS / DETECTOR)
    for index in range(count):
        drawing = get_content(SERIES, index, SHIPPED)
        image = Image.fromarray(draw(drawing, SIDE))
        for what, made in make_variants(image).items():
            yield f"drawing {index}", False, f"{drawing.style}, {what}", crop_model_square(made)
        for what, made in (("face", image), ("face, JPEG 75", compress_image(image, 75))):
            try:
                square = crop_face(Photo(convert_to_pixels(made), "photo"), detector, CLASSIFIER_RESOLUTION, number=1)
            except FaceError:
                continue
            yield f"drawing {index}", False, f"{drawing.style}, {what}", square


def fit_classifier(statistics: Tensor, labels: Tensor) -> Classifier:
    """Return a logistic regression in which photographs and drawings weigh the same."""
    mean, scale = statistics.mean(0), statistics.std(0) + 1e-6
    inputs, targets = ((statistics - mean) / scale).double(), labels.double()
    weights = torch.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum()).double()
    values = torch.zeros(inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([values], max_iter=300, line_search_fn="strong_wolfe")

    def compute_loss() -> Tensor:
        optimiser.zero_grad()
        logits = inputs @ values[:-1] + values[-1]
        wrong = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        total = (weights * wrong).sum() + PENALTY * values[:-1].square().sum()
        total.backward()
        return total

    optimiser.step(compute_loss)
    return Classifier(mean, scale, values[:-1].detach().float(), float(values[-1].detach()))


def score_unseen(sources: list[str], labels: Tensor, statistics: Tensor) -> Tensor:
    """Return the score of every sample by a fit that has seen no image of its source."""
    scores = torch.zeros(len(sources))
    for kind in (True, False):
        names = sorted({source for source, label in zip(sources, labels.tolist(), strict=True) if label == kind})
        for fold in range(FOLDS):
            chosen = set(names[fold::FOLDS])
            tested = torch.tensor([source in chosen for source in sources])
            scores[tested] = fit_classifier(statistics[~tested], labels[~tested]).score(statistics[tested])
    return scores


def count_errors(scores: Tensor, samples: list[Sample], threshold: float, *, photographs: bool) -> dict[str, object]:
    """Count the samples of drawings, or of photographs, that are taken for the other, and name each."""
    labels = torch.tensor([label for _, label, _, _ in samples])
    of_kind = labels == photographs
    wrong = ((scores > threshold) != labels) & of_kind
    cases = [f"{samples[i][0]} ({samples[i][2]})" for i in wrong.nonzero().flatten().tolist()]
    return {
        "sources": len({name for name, label, _, _ in samples if label == photographs}),
        "samples": int(of_kind.sum()),
        "taken_for_the_other": len(cases),
        "share": round(len(cases) / int(of_kind.sum()), 4),
        "surely_drawn_share": round(float((scores[of_kind] - threshold < DRAWING_SCORE).float().mean()), 4),
        "cases": cases,
    }


def count_found_faces(refused: list[bool]) -> int:
    """Count the photographs taken for drawings in which the detector of drawn faces finds a face."""
    detector = YuNetDetector(EMBEDDED_EVALUATORS / DETECTOR)
    passed = [image for (*_, image), gone in zip(yield_photograph_images(), refused, strict=True) if not gone]
    return sum(bool(detector(np.asarray(image))) for image in passed)


def main() -> None:
    """Measure and write the record, and write the weights if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the weights into the package")
    arguments = parser.parse_args()
    samples = [*yield_drawings(), *yield_photographs()]
    statistics = torch.cat([measure_statistics(square[None]) for *_, square in samples])
    labels = torch.tensor([label for _, label, _, _ in samples])
    scores = score_unseen([source for source, *_ in samples], labels, statistics)
    threshold = float(scores[~labels].quantile(1 - FALSE_ALARMS))
    record = {
        "threshold": round(threshold, 4),
        "drawings": count_errors(scores, samples, threshold, photographs=False),
        "photographs": count_errors(scores, samples, threshold, photographs=True)
        | {"taken_with_a_drawn_face": count_found_faces((scores[labels] > threshold).tolist())},
    }
    write_text(RECORD, dump_json(record, indent=1) + "\n")
    print(dump_json(record, indent=1))
    if arguments.write:
        made = fit_classifier(statistics, labels)
        rows = {name: [round(float(v), 6) for v in getattr(made, name)] for name in ("mean", "scale", "weights")}
        write_text(CLASSIFIER_FILE, dump_json(rows | {"bias": round(made.bias - threshold, 6)}) + "\n")


if __name__ == "__main__":
    main()
