"""The demo's pictures and facts to one self-contained HTML page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from PIL import Image


@dataclass(frozen=True)
class Variant:
    """One way to make every picture: a short label, one sentence on it, one image per prompt."""

    label: str
    about: str
    images: Sequence[Image.Image]


@dataclass(frozen=True)
class Example:
    """One prompt, with its placeholder, and what kind of change it asks for (scene, style, ...)."""

    kind: str
    prompt: str


@dataclass(frozen=True)
class DemoStory:
    """All that the demo page tells.

    Attributes:
        name: Name of the identity.
        photo: The one picture it was learned from.
        truth: What is known of the drawn person, label to value.
        examples: The prompts, in the order of the images of every variant.
        variants: Ours first, then the controls.
        attention: The attention figure.
        attention_note: One sentence on what the figure shows.
        facts: Settings, times and versions, label to value.
        commands: Command lines that make the same again.
    """

    name: str
    photo: Image.Image
    truth: dict[str, str]
    examples: Sequence[Example]
    variants: Sequence[Variant]
    attention: Image.Image
    attention_note: str
    facts: dict[str, str]
    commands: Sequence[str]


def demo_page(story: DemoStory) -> str:
    """Render the demo's story.

    Returns:
        HTML that needs no other file and asks no server for anything; light or dark as the reader's
        system is.

    Raises:
        ValueError: A variant has another number of images than there are prompts.
    """
    short = [v.label for v in story.variants if len(v.images) != len(story.examples)]
    if short:
        raise ValueError(f"not one image per prompt: {', '.join(short)}")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["data_uri"] = data_uri
    return environment.from_string(template("demo.html.j2")).render(story=story)


def template(name: str) -> str:
    """The text of one of this room's templates."""
    return files("sefi.report").joinpath("templates", name).read_text(encoding="utf-8")


def data_uri(image: Image.Image) -> str:
    """An image as a `data:` address holding a PNG, so that the page needs no other file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
