"""Which tokens place the face and which make it look like the person: the paper's Figure 5 as numbers.

    python experiments/layout.py runs/slots     # experiments/records/layout.json, and a table

In a run of the suite `slots` the ten tokens are put in one by one, from the noisiest stage. For each token put in:
how far it moves and resizes the face (in face widths), how much of the coarse image changes (8 x 8 cells, mean
absolute difference of 0 to 1 grey), and how much likeness it brings. Means over people, with intervals over people.
"""

import argparse
import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sefi.benchmark.run import RunFolder
from sefi.benchmark.statistics import estimate_interval
from sefi.core.files import write_text
from sefi.core.reading import read_json
from sefi.core.text import dump_json
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS
from sefi.photo.detect import Face, YuNetDetector, enlarge_image

RECORD = Path(__file__).parent / "records" / "layout.json"
STEPS = ("0 of 10 tokens", *(f"{k} of 10 tokens" for k in range(1, 10)), "ours")
CELLS = 8
FIGURES = {"moved": "face moved, in its widths", "coarse": "coarse image changed", "id": "likeness gained"}


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder of a run of `slots`; without one the record is printed"
    )
    given = parser.parse_args()
    if given.run is not None:
        write_text(RECORD, dump_json(measure_changes(given.run), separators=(",", ":")) + "\n")
    print(format_layout(read_json(RECORD)))


def measure_changes(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return by figure, tokens put in and subject the mean over prompts of what the last token put in changed."""
    detect = YuNetDetector(EMBEDDED_EVALUATORS / "face_detection.onnx")
    samples = {(c.subject, c.prompt, c.variant): c for c in RunFolder(folder).read_samples()}
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for subject, prompt in sorted({key[:2] for key in samples}):
        if (subject, prompt, STEPS[-1]) not in samples:
            continue
        shown = [samples[subject, prompt, variant] for variant in STEPS]
        images = [np.asarray(Image.open(folder / c.image).convert("RGB"), np.uint8) for c in shown]
        faces = [(detect(enlarge_image(image)) or [None])[0] for image in images]
        for k in range(1, len(STEPS)):
            changes = {
                "moved": measure_shift(faces[k - 1], faces[k]),
                "coarse": measure_coarse_change(images[k - 1], images[k]),
                "id": subtract_likeness(shown[k - 1].id, shown[k].id),
            }
            for name, value in changes.items():
                if not math.isnan(value):
                    found.setdefault(name, {}).setdefault(str(k), {}).setdefault(subject, []).append(value)
    return {
        name: {k: {s: round(float(np.mean(v)), 6) for s, v in own.items()} for k, own in steps.items()}
        for name, steps in found.items()
    }


def subtract_likeness(before: float | None, after: float | None) -> float:
    """Return how much more likeness there is; nan where it was not computed."""
    return math.nan if before is None or after is None else after - before


def measure_shift(before: Face | None, after: Face | None) -> float:
    """Return shift of the centre and change of the width, in widths of the face before; nan without a face."""
    if before is None or after is None:
        return math.nan
    across = (after.left + after.width / 2) - (before.left + before.width / 2)
    down = (after.top + after.height / 2) - (before.top + before.height / 2)
    return (math.hypot(across, down) + abs(after.width - before.width)) / before.width


def measure_coarse_change(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    """Return the mean absolute difference of both images as 8 x 8 cells of grey in [0, 1]."""
    small = [
        cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (CELLS, CELLS), interpolation=cv2.INTER_AREA) / 255
        for image in (before, after)
    ]
    return float(np.abs(small[1] - small[0]).mean())


def format_layout(record: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return a row for each token put in: the stage and slot, and what it changed."""
    lines = [f"| token put in | {' | '.join(FIGURES.values())} |", "| --- | --- | --- | --- |"]
    for k in range(1, len(STEPS)):
        stage, slot = 4 - (k - 1) // 2, "key" if k % 2 else "value"
        intervals = [estimate_interval(record[name][str(k)]) for name in FIGURES]
        cells = " | ".join(f"{c.mean:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in intervals)
        lines.append(f"| {k}: stage {stage}, {slot} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
