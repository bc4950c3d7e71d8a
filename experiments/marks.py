"""Measure the invisible mark: what it survives, how often it is seen where none is, what it costs.

    python experiments/marks.py --state FILE    # every figure, about an hour on one core
    python experiments/marks.py --state FILE --finish    # the record of those that are done
    python experiments/marks.py --trial         # a few images of each kind, printed and not recorded
    python experiments/marks.py --write         # the table in RELIABILITY.md, from the record

Images that are done are kept in FILE, so that it can be stopped and started again.
"""

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
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
PAGE, BEGIN, END = Path(__file__).parents[1] / "RELIABILITY.md", "<!-- marks -->", "<!-- end -->"
SEED = 20_331
GENERATED, NATURAL, EMBEDDED, UNMARKED = 200, 100, 200, 10_000
SIDE, STEPS = 512, 10
PHOTOGRAPHS = ("astronaut", "camera", "cat", "coffee", "brick", "coins", "grass", "gravel", "moon", "rocket")
PROMPTS = (
    "a photo of a person", "a person at the beach", "an oil painting of a person in the forest",
    "a photo of a person with sunglasses in the city", "a pencil drawing of a person in space",
    "a person smiling in the kitchen", "a person with a beard on a mountain", "an angry person in the snow",
)  # fmt: skip
TRIAL_SHARE = 0.03
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


def crop_natural(number: int) -> Pixels:
    """Return the photograph of a number."""
    return crop_photograph(np.random.default_rng([SEED, 1, number]), SIDE)


def generate_image(backbone: Backbone, side: int | None, number: int) -> Pixels:
    """Generate an image of the embedded model's class words; None: of the size it was trained with."""
    options = {"steps": STEPS, "seed": SEED + number, "width": side, "height": side}
    return np.asarray(sefi.generate(PROMPTS[number % len(PROMPTS)], [], backbone=backbone, **options)[0].pixels)


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


def measure_marked(make: Callable[[int], Pixels], attacks: tuple[str, ...], number: int) -> dict[str, Any]:
    """Mark the image of a number, let everything happen to it, and say what is found."""
    pixels = make(number)
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

    def add(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Make a row, unless it is there."""
        if name not in self.rows:
            self.rows[name] = make()
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(dump_json([name, self.rows[name]]) + "\n")


def measure_sets(state: State, share: float) -> None:
    """Measure the three sets of marked images and the unmarked ones, or a share of each."""
    backbone = sefi.open_backbone("tiny-portraits")
    sets: dict[str, tuple[int, Callable[[int], dict[str, Any]]]] = {
        "natural": (NATURAL, partial(measure_marked, crop_natural, tuple(ATTACKS))),
        "embedded": (EMBEDDED, partial(measure_marked, partial(generate_image, backbone, None), SMALL_ATTACKS)),
        "generated": (GENERATED, partial(measure_marked, partial(generate_image, backbone, SIDE), tuple(ATTACKS))),
        "unmarked": (UNMARKED, measure_unmarked),
    }
    for name, (whole, measure) in sets.items():
        count = max(2, round(share * whole))
        for number in range(count):
            state.add(f"{name} {number}", partial(measure, number))
            print_progress(name, number + 1, count)


def summarise_done(state: State) -> dict[str, Any]:
    """Return the figures of the rows that are done."""
    sets = {
        name: [row for key, row in state.rows.items() if key.split()[0] == name]
        for name in ("natural", "embedded", "generated", "unmarked")
    }
    unmarked = summarise_unmarked(sets.pop("unmarked"))
    return {"marked": {name: summarise_marked(rows) for name, rows in sets.items()}, "unmarked": unmarked}


def format_share(value: float) -> str:
    """Format a share in per cent, all of them as 100 %.

    >>> format_share(1.0), format_share(0.995)
    ('100 %', '99.5 %')
    """
    return f"{100 * value:.4g} %"


def format_attack(images: dict[str, Any], attack: str) -> str:
    """Format the share of a set's images whose mark is found, and of those with a payload the share that is right."""
    shares = images["attacks"].get(attack)
    if shares is None:
        return "not tried"
    bearing = images["carries_payload"]
    payload = f", {format_share(min(1.0, shares['payload_right'] / bearing))}" if bearing else ""
    return format_share(shares["found"]) + payload


def format_table(record: dict[str, Any]) -> str:
    """Format the record as the tables of RELIABILITY.md."""
    titles = {"generated": "generated, 512 px", "natural": "photographs, 512 px", "embedded": "generated, 192 px"}
    sets = record["marked"]
    lines = [
        "| what happened | " + " | ".join(f"{titles[name]} ({sets[name]['images']})" for name in titles) + " |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for attack in ATTACKS:
        shown = [format_attack(sets[name], attack) for name in titles]
        lines.append(f"| {attack} | " + " | ".join(shown) + " |")
    bearing = " | ".join(format_share(sets[name]["carries_payload"]) for name in titles)
    lowest = " | ".join(f"{sets[name]['psnr_lowest']:.1f} dB" for name in titles)
    unmarked, seconds = record["unmarked"], record["seconds"]["512"]
    return "\n".join(
        [
            *lines,
            f"| *images that carry a payload* | {bearing} |",
            f"| *lowest PSNR* | {lowest} |",
            "",
            f"Of {unmarked['images']:,} images without a mark {unmarked['false_alarms']} seemed to have one; by design "
            "at most one in 1,000,000,000 does. At 512 px embedding takes "
            f"{seconds['embed']:.2f} s of one core, finding {seconds['find']:.2f} s, and finding none "
            f"{seconds['find_none']:.2f} s.",
        ]
    )


def write_table(record: dict[str, Any]) -> None:
    """Write the table into RELIABILITY.md, between its marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    write_text(PAGE, f"{before}{BEGIN}\n{format_table(record)}\n{END}{rest.split(END)[1]}")


def print_progress(what: str, done: int, count: int) -> None:
    """Say how far it is, now and then."""
    if done % 50 == 0 or done == count:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what} {done} of {count}\n")


def main() -> None:
    """Measure, write the record, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--trial", action="store_true")
    parser.add_argument("--finish", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write:
        write_table(json.loads(RECORD.read_text(encoding="utf-8")))
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    state = State(options.state)
    if not options.finish:
        measure_sets(state, TRIAL_SHARE if options.trial else 1.0)
    record = {"seed": SEED, "seconds": measure_speed(), **summarise_done(state)}
    if not options.trial:
        write_text(RECORD, dump_json(record, indent=1) + "\n")
    sys.stdout.write(dump_json(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
