"""Fit and measure what tells photographs from the drawings of the embedded model's world.

    python benchmarks/photographs.py            # error rates, each source judged by a fit that has not seen it
    python benchmarks/photographs.py --write    # also src/sefi/models/photographs.json, fitted on all of them

Drawings are random pictures of the world in every style; photographs are those that come with scikit-image and
matplotlib, and random crops of them. Both are also resized, blurred and compressed.
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
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from sefi.api import embedded_judges
from sefi.core.errors import FaceError
from sefi.core.files import write_text
from sefi.core.json_text import dump_json
from sefi.core.nouns import Photo
from sefi.metrics.faces import DETECTOR
from sefi.photo.detect import YuNetDetector
from sefi.photo.drawn import RESOLUTION, WEIGHTS, Classifier, measure_statistics
from sefi.photo.read import pixels_of
from sefi.photo.views import face_square, whole_square
from sefi.world.data import picture_at
from sefi.world.drawing import draw

DRAWINGS, SERIES, SIDE = 300, 71, 512
CROPS, SMALLEST = 20, 0.25  # random crops of a photograph, and the smallest's share of its side
FOLDS = 5
FALSE_ALARMS = 0.003  # share of drawings that may be taken for photographs
PENALTY = 1e-3
FILES = ("motorcycle_left.png", "hubble_deep_field.jpg", "retina.jpg", "clock_motion.png")
NAMES = ("astronaut", "camera", "cat", "coffee", "brick", "coins", "grass", "gravel", "moon", "rocket")
HEADS = {"astronaut": (120, 0, 340, 220), "grace_hopper": (130, 20, 430, 320)}  # faces with their surroundings

Sample = tuple[str, bool, str, Tensor]  # source, whether a photograph, what was done to it, square


def photographs() -> dict[str, Image.Image]:
    """Return the photographs that come with the development tools, by name."""
    folder = Path(skimage.data.__file__).parent
    found = {name: Image.fromarray(getattr(skimage.data, name)()) for name in NAMES}
    found |= {Path(name).stem: Image.open(folder / name) for name in FILES}
    found["grace_hopper"] = Image.open(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    return {name: image.convert("RGB") for name, image in found.items()}


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """Return an image as JPEG leaves it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def resized(image: Image.Image, side: int) -> Image.Image:
    """Return an image with this shorter side."""
    factor = side / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def variants(image: Image.Image) -> dict[str, Image.Image]:
    """Return an image as people pass it on."""
    small = resized(image, 128)
    return {
        "as it is": image,
        "JPEG 75": compressed(image, 75),
        "JPEG 30": compressed(image, 30),
        "small": small,
        "small, JPEG 50": compressed(small, 50),
        "200 pixels, JPEG 75": compressed(resized(image, 200), 75),
        "enlarged": resized(image, 1024),
        "blurred": image.filter(ImageFilter.GaussianBlur(2)),
    }


def square_of(image: Image.Image) -> Tensor:
    """Return the middle square as the model gets it."""
    return whole_square(Photo(pixels_of(image), "photo"), RESOLUTION)


def samples_of_photographs() -> Iterator[Sample]:
    """Yield every photograph, random crops of it, and heads."""
    random = np.random.default_rng(0)
    for name, image in photographs().items():
        for what, made in variants(image).items():
            yield name, True, what, square_of(made)
        for _ in range(CROPS):
            side = int(min(image.size) * random.uniform(SMALLEST, 1))
            left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
            yield name, True, "crop", square_of(image.crop((left, top, left + side, top + side)))
        if name in HEADS:
            head = image.crop(HEADS[name])
            for what, made in variants(head).items():
                yield name, True, f"head, {what}", square_of(made)


def samples_of_drawings(count: int = DRAWINGS) -> Iterator[Sample]:
    """Yield every drawing, and the face cut out of it where the detector finds one."""
    detector = YuNetDetector(embedded_judges() / DETECTOR)
    for index in range(count):
        picture = picture_at(SERIES, index)
        image = Image.fromarray(draw(picture, SIDE))
        for what, made in variants(image).items():
            yield f"drawing {index}", False, f"{picture.style}, {what}", square_of(made)
        for what, made in (("face", image), ("face, JPEG 75", compressed(image, 75))):
            try:
                square = face_square(Photo(pixels_of(made), "photo"), detector, RESOLUTION, number=1)
            except FaceError:
                continue
            yield f"drawing {index}", False, f"{picture.style}, {what}", square


def fit(statistics: Tensor, labels: Tensor) -> Classifier:
    """Return a logistic regression in which photographs and drawings weigh the same."""
    mean, scale = statistics.mean(0), statistics.std(0) + 1e-6
    inputs, targets = ((statistics - mean) / scale).double(), labels.double()
    weights = torch.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum()).double()
    values = torch.zeros(inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([values], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = inputs @ values[:-1] + values[-1]
        wrong = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        total = (weights * wrong).sum() + PENALTY * values[:-1].square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    return Classifier(mean, scale, values[:-1].detach().float(), float(values[-1].detach()))


def score_unseen(sources: list[str], labels: Tensor, statistics: Tensor) -> Tensor:
    """Return the score of every sample by a fit that has seen no picture of its source."""
    scores = torch.zeros(len(sources))
    for kind in (True, False):
        names = sorted({source for source, label in zip(sources, labels.tolist(), strict=True) if label == kind})
        for fold in range(FOLDS):
            chosen = set(names[fold::FOLDS])
            tested = torch.tensor([source in chosen for source in sources])
            scores[tested] = fit(statistics[~tested], labels[~tested]).score(statistics[tested])
    return scores


def report(scores: Tensor, samples: list[Sample], threshold: float) -> None:
    """Print both error rates, and what went wrong."""
    labels = torch.tensor([label for _, label, _, _ in samples])
    sizes = {False: f"{DRAWINGS} drawings", True: f"{len(photographs())} photographs"}
    for kind, name in sizes.items():
        wrong = ((scores > threshold) != labels) & (labels == kind)
        cases = [f"{samples[i][0]} ({samples[i][2]})" for i in wrong.nonzero().flatten().tolist()]
        share = len(cases) / int((labels == kind).sum())
        print(f"{name}, {int((labels == kind).sum())} samples: {len(cases)} taken for the other ({share:.2%})")
        print("  " + ", ".join(cases[:40]))


def main() -> None:
    """Measure, and write the weights if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the weights into the package")
    arguments = parser.parse_args()
    samples = [*samples_of_drawings(), *samples_of_photographs()]
    statistics = torch.cat([measure_statistics(square[None]) for *_, square in samples])
    labels = torch.tensor([label for _, label, _, _ in samples])
    scores = score_unseen([source for source, *_ in samples], labels, statistics)
    threshold = float(scores[~labels].quantile(1 - FALSE_ALARMS))
    print(f"threshold {threshold:.2f}")
    report(scores, samples, threshold)
    if arguments.write:
        made = fit(statistics, labels)
        rows = {name: [round(float(v), 6) for v in getattr(made, name)] for name in ("mean", "scale", "weights")}
        write_text(WEIGHTS, dump_json(rows | {"bias": round(made.bias - threshold, 6)}) + "\n")


if __name__ == "__main__":
    main()
