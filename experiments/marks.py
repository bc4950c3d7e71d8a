"""Measure the invisible mark: what it survives, how often it is seen where none is, what it costs.

    python experiments/marks.py --state FILE    # every figure, about an hour on one core
    python experiments/marks.py --trial         # a few images of each kind, printed and not recorded

Images that are done are kept in FILE, so that it can be stopped and started again.
"""

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sefi  # before torch, so that OpenMP threads sleep while they wait

# isort: split

import cv2
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from sefi.backbone.bundle import Backbone
from sefi.core.files import write_text
from sefi.core.text import dump_json
from sefi.provenance.mark import FALSE_ALARMS, embed_mark, find_mark
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import get_content

Pixels = NDArray[np.uint8]

RECORD = Path(__file__).parent / "records" / "marks.json"
SEED = 20_331
GENERATED, NATURAL, EMBEDDED, UNMARKED = 200, 100, 200, 10_000
SIDE, STEPS = 512, 10
PHOTOGRAPHS = ("astronaut", "camera", "cat", "coffee", "brick", "coins", "grass", "gravel", "moon", "rocket")
PROMPTS = (
    "a photo of a person", "a person at the beach", "an oil painting of a person in the forest",
    "a photo of a person with sunglasses in the city", "a pencil drawing of a person in space",
    "a person smiling in the kitchen", "a person with a beard on a mountain", "an angry person in the snow",
)  # fmt: skip
SPEED_SIDES = (192, 512, 1024, 4000)


# ------------------------------------------------------------------ what happens to images


def encode(pixels: Pixels, kind: str, quality: int = 0) -> Pixels:
    """Return an image as a file of a kind leaves it."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **({"quality": quality} if quality else {}))
    return np.asarray(Image.open(content).convert("RGB"))


def resize(pixels: Pixels, scale: float) -> Pixels:
    """Return an image in another size."""
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def crop(pixels: Pixels, share: float, random: np.random.Generator) -> Pixels:
    """Return an image without a share of its height and of its width, at random places."""
    height, width = (round(length * (1 - share)) for length in pixels.shape[:2])
    top = int(random.integers(0, pixels.shape[0] - height + 1))
    left = int(random.integers(0, pixels.shape[1] - width + 1))
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def add_noise(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Return an image with normal noise of five grey levels."""
    return np.clip(np.rint(pixels + random.normal(0, 5, pixels.shape)), 0, 255).astype(np.uint8)


def change_brightness(pixels: Pixels, _random: np.random.Generator) -> Pixels:
    """Return an image that is a fifth brighter."""
    return np.clip(np.rint(pixels * 1.2), 0, 255).astype(np.uint8)


Attack = Callable[[Pixels, np.random.Generator], Pixels]
ATTACKS: dict[str, Attack] = {
    "PNG": lambda pixels, _: encode(pixels, "PNG"),
    "JPEG 90": lambda pixels, _: encode(pixels, "JPEG", 90),
    "JPEG 75": lambda pixels, _: encode(pixels, "JPEG", 75),
    "JPEG 50": lambda pixels, _: encode(pixels, "JPEG", 50),
    "WebP 80": lambda pixels, _: encode(pixels, "WEBP", 80),
    "half": lambda pixels, _: resize(pixels, 0.5),
    "double": lambda pixels, _: resize(pixels, 2),
    "half, JPEG 75": lambda pixels, _: encode(resize(pixels, 0.5), "JPEG", 75),
    "40 % off, JPEG 75": lambda pixels, random: encode(crop(pixels, 0.4, random), "JPEG", 75),
    "noise 5": add_noise,
    "brighter by 20 %": change_brightness,
    "unknown scale 0.5 to 2.2": lambda pixels, random: resize(pixels, random.uniform(0.5, 2.2)),
    "unknown scale 0.4 to 0.5": lambda pixels, random: resize(pixels, random.uniform(0.4, 0.5)),
}
SMALL_ATTACKS = ("PNG", "JPEG 90", "JPEG 75")


# ------------------------------------------------------------------ images


def crop_photograph(random: np.random.Generator, side: int) -> Pixels:
    """Return a random square of a random photograph of scikit-image, in this size."""
    photo = getattr(skimage.data, PHOTOGRAPHS[random.integers(len(PHOTOGRAPHS))])()
    image = Image.fromarray(photo).convert("RGB")
    longest = min(image.size)
    length = int(random.integers(min(longest, max(128, side // 2)), longest + 1))
    left, top = (int(random.integers(0, whole - length + 1)) for whole in image.size)
    part = image.crop((left, top, left + length, top + length))
    return np.asarray(part.resize((side, side), Image.Resampling.LANCZOS))


def yield_generated(backbone: Backbone, count: int, side: int | None) -> Iterator[Pixels]:
    """Yield images that the embedded model generates of its class words; None: of the size it was trained with."""
    for number in range(count):
        prompt = PROMPTS[number % len(PROMPTS)]
        options = {"steps": STEPS, "seed": SEED + number, "width": side, "height": side}
        yield np.asarray(sefi.generate(prompt, [], backbone=backbone, **options)[0].pixels)


def make_texture(random: np.random.Generator, side: int) -> Pixels:
    """Return noise of a random spectrum in random colours: grounds, fabrics, grain."""
    rows, columns = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    fall = np.maximum(np.hypot(rows, columns), 1 / side) ** -random.uniform(0, 2.5)
    noise = np.fft.irfft2(fall * np.exp(2j * np.pi * random.random(fall.shape)), s=(side, side))
    noise = noise / max(float(np.abs(noise).max()), 1e-9)
    colour, spread = random.uniform(40, 215, 3), random.uniform(5, 120, 3)
    return np.clip(np.rint(colour + noise[..., None] * spread), 0, 255).astype(np.uint8)


def make_unmarked(number: int) -> tuple[str, Pixels]:
    """Return the image of a number, and its kind: a drawing, a photograph or a texture, turned, scaled, compressed."""
    random = np.random.default_rng([SEED, number])
    kind, side = ("drawing", "photograph", "texture")[number % 3], int(random.integers(128, 641))
    if kind == "drawing":
        pixels = draw(get_content(SEED, number), side)
    else:
        pixels = crop_photograph(random, side) if kind == "photograph" else make_texture(random, side)
    image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    if random.random() < 0.3:
        image = image.rotate(float(random.uniform(-45, 45)), Image.Resampling.BICUBIC, expand=True)
    pixels = np.asarray(image)
    return kind, encode(pixels, "JPEG", int(random.integers(30, 96))) if random.random() < 0.5 else pixels


# ------------------------------------------------------------------ measurements


def measure_marked(pixels: Pixels, number: int, attacks: tuple[str, ...]) -> dict[str, Any]:
    """Mark an image, let everything happen to it, and say what is found."""
    payload = int(np.random.default_rng([SEED, 7, number]).integers(0, 2**32))
    marked = embed_mark(pixels, payload)
    error = float(np.mean((pixels.astype(np.float64) - marked) ** 2))
    clean = find_mark(marked)
    row: dict[str, Any] = {
        "psnr": 10 * math.log10(255**2 / max(error, 1e-12)),
        "carries": clean is not None and clean.payload == payload,
        "attacks": {},
    }
    for place, name in enumerate(attacks):
        found = find_mark(ATTACKS[name](marked, np.random.default_rng([SEED, number, place])))
        read = None if found is None or found.payload is None else found.payload == payload
        row["attacks"][name] = {"strength": 0.0 if found is None else found.strength, "payload": read}
    return row


def measure_unmarked(number: int) -> dict[str, Any]:
    """Measure how strong a mark an image without one seems to bear."""
    kind, pixels = make_unmarked(number)
    found = find_mark(pixels)
    return {"kind": kind, "side": max(pixels.shape[:2]), "found": 0.0 if found is None else found.strength}


def summarise_marked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares of one set of images."""
    names = list(rows[0]["attacks"])
    carrying = [row for row in rows if row["carries"]]
    return {
        "images": len(rows),
        "psnr_lowest": round(min(row["psnr"] for row in rows), 2),
        "carries_payload": round(len(carrying) / len(rows), 4),
        "attacks": {
            name: {
                "found": round(sum(row["attacks"][name]["strength"] > 0 for row in rows) / len(rows), 4),
                "lowest_strength": round(min(row["attacks"][name]["strength"] for row in rows), 2),
                "payload_right": round(sum(row["attacks"][name]["payload"] is True for row in rows) / len(rows), 4),
                "payload_wrong": sum(row["attacks"][name]["payload"] is False for row in rows),
            }
            for name in names
        },
    }


def summarise_unmarked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many unmarked images seemed to have a mark."""
    kinds = sorted({row["kind"] for row in rows})
    return {
        "images": len(rows),
        "false_alarms": sum(row["found"] > 0 for row in rows),
        "bound_for_an_image": FALSE_ALARMS,
        "kinds": {kind: sum(row["kind"] == kind for row in rows) for kind in kinds},
    }


def measure_speed() -> dict[str, Any]:
    """Return CPU seconds of marking and of looking for a mark, by side: the median of seven photographs."""
    found: dict[str, Any] = {}
    for side in SPEED_SIDES:
        photo = crop_photograph(np.random.default_rng([SEED, side]), side)
        marked = embed_mark(photo, 1)
        found[str(side)] = {
            "embed": time_calls(lambda photo=photo: embed_mark(photo, 1)),
            "find": time_calls(lambda marked=marked: find_mark(marked)),
            "find_none": time_calls(lambda photo=photo: find_mark(photo)),
        }
    return found


def time_calls(call: Callable[[], object]) -> float:
    """Return the median of the CPU seconds of seven calls."""
    seconds: list[float] = []
    for _ in range(7):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return round(sorted(seconds)[3], 3)


# ------------------------------------------------------------------ the whole


class State:
    """Rows that are done, one a line of a file."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.rows = path, {}
        if path is not None and path.exists():
            self.rows = dict(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a row, made if it is new."""
        if name not in self.rows:
            self.rows[name] = make()
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(dump_json([name, self.rows[name]]) + "\n")
        return self.rows[name]


def measure_sets(state: State, share: float) -> dict[str, Any]:
    """Measure the three sets of marked images, or a share of each."""
    backbone = sefi.open_backbone("tiny-portraits")
    counts = [max(2, round(share * count)) for count in (GENERATED, NATURAL, EMBEDDED)]
    sets: dict[str, list[dict[str, Any]]] = {"natural": [], "embedded": [], "generated": []}
    for number in range(counts[1]):
        photo = crop_photograph(np.random.default_rng([SEED, 1, number]), SIDE)
        sets["natural"].append(
            state.get(f"natural {number}", lambda p=photo, n=number: measure_marked(p, n, tuple(ATTACKS)))
        )
    for name, count, side, attacks in (
        ("embedded", counts[2], None, SMALL_ATTACKS),
        ("generated", counts[0], SIDE, tuple(ATTACKS)),
    ):
        done = sum(f"{name} {number}" in state.rows for number in range(count))
        images = yield_generated(backbone, count, side) if done < count else iter([None] * count)
        for number, pixels in enumerate(images):
            row = state.get(f"{name} {number}", lambda p=pixels, n=number, a=attacks: measure_marked(p, n, a))
            sets[name].append(row)
            print_progress(name, number + 1, count)
    return {name: summarise_marked(rows) for name, rows in sets.items()}


def print_progress(what: str, done: int, count: int) -> None:
    """Say how far it is, now and then."""
    if done % 50 == 0 or done == count:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what} {done} of {count}\n")


def main() -> None:
    """Measure, write the record, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--trial", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    state, share = State(options.state), 0.05 if options.trial else 1.0
    record: dict[str, Any] = {"seed": SEED, "seconds": measure_speed()}
    record["marked"] = measure_sets(state, share)
    rows: list[dict[str, Any]] = []
    for number in range(round(UNMARKED * (share if not options.trial else 0.01))):
        rows.append(state.get(f"unmarked {number}", lambda n=number: measure_unmarked(n)))
        if number % 500 == 499:
            print_progress("unmarked", number + 1, UNMARKED)
    record["unmarked"] = summarise_unmarked(rows)
    if not options.trial:
        write_text(RECORD, dump_json(record, indent=1) + "\n")
    sys.stdout.write(dump_json(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
