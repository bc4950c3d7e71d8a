"""Grids of the model's pictures from seeded prompts, none of them chosen by eye."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sefi.backbone.bundle import Backbone
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.conditioning.prompt import tokenize_plain
from sefi.core.config import GenerateConfig
from sefi.core.errors import ConfigError
from sefi.core.hints import suggest
from sefi.core.protocols import Progress
from sefi.generate.sampler import generate
from sefi.world.captions import EVERY_MEDIUM, EVERY_PLACE, FIRST, LAST, say
from sefi.world.names import characters
from sefi.world.sampling import random_picture
from sefi.world.versions import SHIPPED

BACKGROUND = "#faf9f5"
GAP = 2  # pixels between two tiles
COLOURS = 256
# Sides of the tiles by version: of the large grid and of the others.
TILES = {4: (96, 112), 5: (128, 144)}
GRID_STREAM = 31  # keeps these draws apart from those of the training pictures
EVERYTHING = 64
NAMED = re.compile(f"{FIRST}( {LAST})?")
Fits = Callable[[str], bool]  # whether a model reads the whole sentence

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
class Kind:
    """One kind of grid.

    Attributes:
        prompts: a generator, and what fits the model, to the prompts in the order of the grid.
        columns: pictures in a row.
        captioned: whether every picture has its prompt under it.
        side: of every picture, in pixels.
    """

    prompts: Callable[[np.random.Generator, Fits], list[str]]
    columns: int
    captioned: bool
    side: int


def named(text: str, random: np.random.Generator) -> str:
    """The sentence with names of drawn characters, all different."""
    places = len(NAMED.findall(text))
    drawn = iter(random.choice(len(characters()), places, replace=False).tolist())

    def name(found: re.Match[str]) -> str:
        character = characters()[next(drawn)]
        return character.name if found[1] else character.first

    return NAMED.sub(name, text)


def random_prompts(random: np.random.Generator, fits: Fits) -> list[str]:
    """As many sentences of the caption grammar as the large grid has places; too long ones are drawn again."""
    found: list[str] = []
    while len(found) < EVERYTHING:
        text = named(say(random_picture(random, version=SHIPPED), random, SHIPPED)[0].text, random)
        found += [text] if fits(text) else []
    return found


def filled(templates: Sequence[str], random: np.random.Generator, _fits: Fits) -> list[str]:
    """Templates to prompts."""
    words = {label: told[0] for table in (EVERY_MEDIUM, EVERY_PLACE) for label, told in table.items()}
    return [named(template.format_map(words), random) for template in templates]


KINDS: dict[str, Kind] = {
    "everything": Kind(random_prompts, columns=8, captioned=False, side=TILES[SHIPPED.number][0]),
    **{
        name: Kind(
            partial(filled, rows),
            columns=len(SHIPPED.styles) if name == "styles" else 4,
            captioned=True,
            side=TILES[SHIPPED.number][1],
        )
        for name, rows in TEMPLATES.items()
    },
}


def kind_named(name: str) -> Kind:
    """One of `KINDS`.

    Raises:
        ConfigError: there is no such kind.
    """
    if name not in KINDS:
        raise ConfigError(f"There is no kind of grid {name!r}.", suggest(name, KINDS, verb="Choose"))
    return KINDS[name]


def prompts_of(kind: Kind, seed: int, fits: Fits) -> list[str]:
    """The prompts of a grid; the same seed always gives the same ones.

    >>> prompts_of(KINDS["pets"], 0, bool)[4]
    'a photo of a brown dog'
    """
    return kind.prompts(np.random.default_rng([GRID_STREAM, seed]), fits)


def fits_in(backbone: Backbone) -> Fits:
    """Whether a sentence has room between the start and the end token of this model."""
    return lambda text: len(tokenize_plain(backbone.tokenizer, text)) + 2 <= backbone.text_length


def pictures(
    backbone: Backbone, prompts: Sequence[str], seed: int, config: GenerateConfig, progress: Progress
) -> list[Image.Image]:
    """One picture of every prompt; the n-th, from 0, has seed `seed + n`."""
    conditioner = IdentityConditioner(backbone, [])
    seeds = [seed + n for n in range(len(prompts))]
    return [image.pixels for image in generate(backbone, conditioner, prompts, seeds, config, progress)]


def resized(image: Image.Image, side: int) -> Image.Image:
    """A picture as an RGB square of this side."""
    return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def tiled(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Tiles of one size in rows from the top, with thin gaps between them."""
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    page = Image.new("RGB", size, BACKGROUND)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        page.paste(tile, (column * (width + GAP), row * (height + GAP)))
    return page


def save_small(page: Image.Image, path: Path) -> None:
    """Write a PNG with a palette, less than half the bytes; dots between two colours keep gradients smooth."""
    page.quantize(palette=page.quantize(COLOURS)).save(path, format="PNG", optimize=True)
