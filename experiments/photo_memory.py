"""The most memory that reading a photo and cutting its face out holds, for the largest files that are read.

Run it as `python experiments/photo_memory.py`: it makes a file of each kind, and a fresh process reads it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from sefi.backbone.open import MODELS
from sefi.core.files import write_text
from sefi.core.text import dump_json
from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS

RECORD = Path(__file__).parent / "records" / "photo_memory.json"
PHOTOS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "camera.jpg, 6000 x 4000": ((6000, 4000), {"quality": 90}),
    "phone.jpg, 8160 x 6144": ((8160, 6144), {"quality": 90}),
    "progressive.jpg, 9216 x 6912": ((9216, 6912), {"quality": 90, "progressive": True, "subsampling": 0}),
    "phone.jpg, 12000 x 9000": ((12000, 9000), {"quality": 90}),
    "phone.jpg, 16320 x 12240": ((16320, 12240), {"quality": 90}),
    "rgba.png, 9216 x 6912": ((9216, 6912), {"compress_level": 1}),
    "rgba.webp, 9216 x 6912": ((9216, 6912), {"quality": 80, "method": 0}),
}
READ = """
import re, sys, time
from pathlib import Path
from sefi.photo.detect import YuNetDetector
from sefi.photo.read import read_photo
from sefi.photo.augment import crop_face
def peak():  # of this program alone: `getrusage` counts what its parent held
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
detector, before, start = YuNetDetector(sys.argv[2]), peak(), time.monotonic()
crop_face(read_photo(sys.argv[1]), detector, 512)
print(before, peak(), round(time.monotonic() - start, 1))
"""


def measure(path: Path) -> dict[str, float]:
    """Return megabytes before and at the peak, and the seconds (Linux)."""
    command = [sys.executable, "-c", READ, str(path), str(EMBEDDED_EVALUATORS / DETECTOR)]
    process = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    before, peak, seconds = process.stdout.split()
    return {"before_mb": int(before), "peak_mb": int(peak), "seconds": float(seconds)}


def main() -> None:
    """Measure, write the record, print it."""
    record: dict[str, dict[str, float]] = {}
    portrait = Image.open(MODELS / "demo" / "portrait.png").convert("RGB")
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, options) in PHOTOS.items():
            path = Path(folder) / name.split(",")[0]
            image = portrait.resize(size, Image.Resampling.BICUBIC)
            image.convert("RGBA" if name.startswith("rgba") else "RGB").save(path, **options)
            del image
            record[name] = measure(path)
            sys.stdout.write(f"{name}: {record[name]}\n")
    write_text(RECORD, dump_json(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
