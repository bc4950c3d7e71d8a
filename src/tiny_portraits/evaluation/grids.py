"""Grids of the model's images from seeded prompts, none of them chosen by eye."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sefi.backbone.bundle import Backbone
from sefi.core import __version__
from sefi.core.config import GenerateSettings
from sefi.core.errors import ConfigError
from sefi.core.hints import suggest
from sefi.core.progress import Progress
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import sample_images
from sefi.provenance.metadata import make_png_text
from sefi.provenance.save import mark_pixels
from tiny_portraits.drawing.content import SHIPPED
from tiny_portraits.drawing.sampling import sample_content
from tiny_portraits.text.captions import FIRST, LAST, say
from tiny_portraits.text.tokenizing import Fits
from tiny_portraits.text.words import MEDIA, PLACES, list_characters

BACKGROUND = "#faf9f5"

GAP = 2  # pixels between two tiles

COLOURS = 256

# Sides of the tiles: of the large grid and of the others.
TILES = (128, 144)

GRID_STREAM = 31  # keeps these draws apart from those of the training images

EVERYTHING = 64

NAMED = re.compile(f"{FIRST}( {LAST})?")

# A style or scene in braces stands for its words in captions; every `firstname` becomes a drawn character's.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "two": (
        "{photo} a person and a person",
        "{photo} a person and a person {snow}",
        "{drawing} a person and a person",
        "{painting} a person and a person {beach}",
        f"{{photo}} {FIRST} and {FIRST}",
        f"{{photo}} {FIRST} and {FIRST} {{forest}}",
        f"{{photo}} {FIRST} and {FIRST} {{city}}",
        f"{{pixel art}} {FIRST} and {FIRST}",
        "{photo} a person and a dog",
        "{photo} a person and a dog {beach}",
        "{drawing} a person and a dog",
        f"{{photo}} {FIRST} and a dog {{room}}",
        "{photo} a person and a person shaking hands",
        "{photo} a person and a person shaking hands {desert}",
        "{painting} a person and a person shaking hands",
        f"{{photo}} {FIRST} and {FIRST} shaking hands",
    ),
    "pets": (
        "{photo} a cat",
        "{photo} a dog",
        "{photo} a bear",
        "{photo} a black cat",
        "{photo} a brown dog",
        "{photo} a white bear",
        "{photo} a cat {room}",
        "{photo} a dog {beach}",
        "{photo} a bear {forest}",
        "{photo} a white bear {snow}",
        "{photo} a black cat {city}",
        "{photo} a brown dog {space}",
        "{drawing} a cat",
        "{painting} a dog",
        "{pixel art} a bear",
        "{painting} a black cat {tower}",
    ),
    "styles": tuple(
        f"{{{style}}} {shown}"
        for shown in ("a person smiling", "a person {beach}", "a person holding a cup {forest}", "a dog {snow}")
        for style in SHIPPED.styles
    ),
}


@dataclass(frozen=True)
class GridKind:
    """One kind of grid.

    Attributes:
        prompts: a generator, and what fits the model, to the prompts in the order of the grid.
        columns: images in a row.
        captioned: whether every image has its prompt under it.
        side: of every image, in pixels.
    """

    prompts: Callable[[np.random.Generator, Fits], list[str]]
    columns: int
    captioned: bool
    side: int


def fill_names(text: str, random: np.random.Generator) -> str:
    """Return the sentence with names of characters, all different."""
    places = len(NAMED.findall(text))
    numbers = iter(random.choice(len(list_characters()), places, replace=False).tolist())

    def name(match: re.Match[str]) -> str:
        character = list_characters()[next(numbers)]
        return character.name if match[1] else character.first

    return NAMED.sub(name, text)


def sample_prompts(random: np.random.Generator, fits: Fits) -> list[str]:
    """Sample a sentence of the caption grammar for every place of the large grid; too long ones are sampled again."""
    prompts: list[str] = []
    while len(prompts) < EVERYTHING:
        text = fill_names(say(sample_content(random, version=SHIPPED), random, SHIPPED)[0].text, random)
        prompts += [text] if fits(text) else []
    return prompts


def fill_templates(templates: Sequence[str], random: np.random.Generator, _fits: Fits) -> list[str]:
    """Return the prompts of templates."""
    words = {label: phrases[0] for table in (MEDIA, PLACES) for label, phrases in table.items()}
    return [fill_names(template.format_map(words), random) for template in templates]


KINDS: dict[str, GridKind] = {
    "everything": GridKind(sample_prompts, columns=8, captioned=False, side=TILES[0]),
    **{
        name: GridKind(
            partial(fill_templates, rows),
            columns=len(SHIPPED.styles) if name == "styles" else 4,
            captioned=True,
            side=TILES[1],
        )
        for name, rows in TEMPLATES.items()
    },
}


def get_kind(name: str) -> GridKind:
    """Return one of `KINDS`.

    Raises:
        ConfigError: there is no such kind.
    """
    if name not in KINDS:
        raise ConfigError(f"There is no kind of grid {name!r}.", suggest(name, KINDS, verb="Choose"))
    return KINDS[name]


def make_prompts(kind: GridKind, seed: int, fits: Fits) -> list[str]:
    """Return the prompts of a grid; the same seed always gives the same ones.

    >>> make_prompts(KINDS["pets"], 0, bool)[4]
    'a photo of a brown dog'
    """
    return kind.prompts(np.random.default_rng([GRID_STREAM, seed]), fits)


def draw_prompts(
    backbone: Backbone, prompts: Sequence[str], seed: int, settings: GenerateSettings, progress: Progress
) -> list[Image.Image]:
    """Generate one image of every prompt; the n-th, from 0, has seed `seed + n`."""
    conditioner = IdentityConditioner(backbone, [])
    seeds = [seed + n for n in range(len(prompts))]
    return [image.pixels for image in sample_images(backbone, conditioner, prompts, seeds, settings, progress)]


def resize_tile(image: Image.Image, side: int) -> Image.Image:
    """Resize an image to an RGB square of this side."""
    return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def arrange_tiles(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange tiles of one size in rows from the top, with thin gaps between them."""
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    page = Image.new("RGB", size, BACKGROUND)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        page.paste(tile, (column * (width + GAP), row * (height + GAP)))
    return page


def save_small(page: Image.Image, path: Path) -> None:
    """Write a PNG with a palette, less than half the bytes; dots between two colours keep gradients smooth.

    It bears the marks of a generated image.
    """
    marked = Image.fromarray(mark_pixels(np.asarray(page.convert("RGB"))))
    text = make_png_text(None, __version__)
    marked.quantize(palette=marked.quantize(COLOURS)).save(path, format="PNG", optimize=True, pnginfo=text)
