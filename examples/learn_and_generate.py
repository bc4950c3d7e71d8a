"""Learn a person from one image and draw that person from several prompts.

`--quick` takes two steps only, to see that it runs.
"""

import argparse
from pathlib import Path

import sefi
from sefi.core.config import override
from sefi.report.contact_sheet import SheetRow, draw_contact_sheet

PROMPTS = ["a photo of <ada> at the beach", "a photo of <ada> holding a cup", "a painting of <ada>"]
QUICK = ["learn.steps=2", "generate.steps=2", "views.latent_pool=0"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("learned"), help="folder of the results")
parser.add_argument("--quick", action="store_true", help="two steps only, to see that it runs")
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)

backbone = sefi.open_backbone("tiny-portraits")
config = override(sefi.PRESETS["default"], QUICK if given.quick else [])

ada = sefi.learn(Path(__file__).parent / "ada.png", name="ada", backbone=backbone, config=config)
ada.save(given.out / "ada.safetensors")

with_name = sefi.generate(PROMPTS, [ada], backbone=backbone, config=config, seed=0)
# The same seeds with the plain word show what the model draws without the learned vectors.
plain = [prompt.replace("<ada>", "person") for prompt in PROMPTS]
without = sefi.generate(plain, backbone=backbone, config=config, seed=0)

rows = [
    SheetRow("<ada>", [image.pixels for image in with_name]),
    SheetRow("person", [image.pixels for image in without]),
]
draw_contact_sheet(rows, PROMPTS).save(given.out / "sheet.png")
print(given.out / "sheet.png")
