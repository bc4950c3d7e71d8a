"""Show where each word of a prompt looks, for a learned person and for the plain word in the same image.

`--quick` takes two steps only, to see that it runs.

`sefi attend` does the same at the command line and also says how much of the attention lies in the face.
"""

import argparse
from pathlib import Path

import sefi
from sefi.core.config import override
from sefi.core.progress import SilentProgress
from sefi.diffusion.attention_maps import record_attention
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.report.attention_figure import MapRow, draw_attention_figure, encode_figure

PROMPT = "a photo of <ada> holding a cup"
QUICK = ["learn.steps=2", "generate.steps=2", "views.latent_pool=0"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("maps.png"), help="the figure's file")
parser.add_argument("--quick", action="store_true", help="two steps only, to see that it runs")
given = parser.parse_args()

backbone = sefi.open_backbone("tiny-portraits")
config = override(sefi.PRESETS["default"], QUICK if given.quick else [])
ada = sefi.learn(Path(__file__).parent / "ada.png", name="ada", backbone=backbone, config=config)

found = record_attention(backbone, IdentityConditioner(backbone, [ada]), PROMPT, 0, config.generate, SilentProgress())
plain_words = [word.replace("<ada>", "person") for word in found.words]
rows = [
    MapRow("<ada>", found.words, found.maps.numpy(), found.image, found.placeholders),
    MapRow("person", plain_words, found.reference_maps.numpy(), found.image, found.placeholders),
]
encode_figure(draw_attention_figure(rows, title=PROMPT)).write(given.out)
print(given.out)
