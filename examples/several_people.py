"""Learn two people, each alone from one image, and draw them together.

`--quick` takes two steps only, to see that it runs.
"""

import argparse
from pathlib import Path

import sefi
from sefi.core.config import override

FOLDER = Path(__file__).parent
PROMPTS = ["a photo of <ada> and <bea> at the beach", "a painting of <ada> and <bea>"]
QUICK = ["learn.steps=2", "generate.steps=2", "views.latent_pool=0"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("together"), help="folder of the results")
parser.add_argument("--quick", action="store_true", help="two steps only, to see that it runs")
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)

backbone = sefi.open_backbone("tiny-portraits")
config = override(sefi.PRESETS["default"], QUICK if given.quick else [])

# Neither is told of the other: identities are combined when an image is drawn.
people = [sefi.learn(FOLDER / f"{name}.png", name=name, backbone=backbone, config=config) for name in ("ada", "bea")]

for image in sefi.generate(PROMPTS, people, backbone=backbone, config=config, seed=0):
    file = given.out / f"{image.index}.png"
    image.save(file, overwrite=True)
    print(file, image.prompt)
