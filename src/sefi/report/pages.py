"""The pages of a demo and of a user study: one file each that loads nothing."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from sefi.provenance.save import encode_image, encode_shown, is_marked
from sefi.user_study.study import Study


@dataclass(frozen=True)
class DemoVariant:
    """One variant to make every image: a short label, one sentence on it, one image per prompt."""

    label: str
    about: str
    images: Sequence[Image.Image]


@dataclass(frozen=True)
class DemoPrompt:
    """One prompt, with its placeholder, and what kind of change it asks for (scene, style, ...)."""

    kind: str
    prompt: str


@dataclass(frozen=True)
class DemoContent:
    """All that the demo page shows.

    Attributes:
        name: Name of the identity.
        photo: The one image it was learned from.
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
    examples: Sequence[DemoPrompt]
    variants: Sequence[DemoVariant]
    attention: Image.Image
    attention_note: str
    facts: dict[str, str]
    commands: Sequence[str]


def render_demo_page(content: DemoContent) -> str:
    """Render the demo's content.

    Returns:
        HTML that needs no other file and asks no server for anything; light or dark as the reader's
        system is.

    Raises:
        ValueError: A variant has another number of images than there are prompts.
    """
    short = [v.label for v in content.variants if len(v.images) != len(content.examples)]
    if short:
        raise ValueError(f"not one image per prompt: {', '.join(short)}")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["data_uri"] = encode_data_uri
    environment.filters["generated_data_uri"] = encode_generated_data_uri
    return environment.from_string(read_template("demo.html.j2")).render(content=content)


def read_template(name: str) -> str:
    """Return the text of a template of this package."""
    return files("sefi.report").joinpath("templates", name).read_text(encoding="utf-8")


def encode_data_uri(image: Image.Image) -> str:
    """Return an image as a `data:` address holding a PNG, so that the page needs no other file.

    What bears the invisible mark of a generated image says so in words, too.
    """
    content = encode_shown(image, "PNG", is_marked=is_marked(np.asarray(image.convert("RGB"))))
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def encode_generated_data_uri(image: Image.Image) -> str:
    """Return a generated image as a `data:` address holding a PNG with its marks."""
    return "data:image/png;base64," + base64.b64encode(encode_image(image).content).decode("ascii")


def render_study_page(study: Study, images: Mapping[str, Image.Image]) -> str:
    """Render a study.

    The letters' meaning is in the page's JSON block and comes back in the answers file; no visible text reveals it.

    Args:
        study: What is asked.
        images: Every file that the study names, opened.
            They are embedded without their metadata; generated ones have words of their origin.

    Returns:
        HTML that needs no other file, sends nothing and asks no server for anything. Its policy allows the one script
        in it by hash and data images, and nothing else. As large as its images.

    Raises:
        KeyError: An image is missing.
    """
    script = read_template("study.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(read_template("study.html.j2")).render(
        data=collect_page_data(study, images),
        total=len(study.comparisons),
        minutes=max(1, round(len(study.comparisons) / 6)),  # ten seconds each
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def collect_page_data(study: Study, images: Mapping[str, Image.Image]) -> dict[str, Any]:
    """Return what the page's script works on; images are numbered, so that no file name reveals a variant."""
    needed = sorted({file for one in study.comparisons for file in one.files})
    numbers = {file: number for number, file in enumerate(needed)}
    return {
        "schema": 1,
        "study": study.name,
        "questions": dict(study.questions),
        "comparisons": [
            {
                "name": one.name,
                "question": one.question,
                "prompt": one.prompt,
                "photos": [numbers[file] for file in one.photos],
                "shown": [{"code": shown.code, "picture": numbers[shown.file]} for shown in one.shown],
            }
            for one in study.comparisons
        ],
        "key": {"ways": dict(study.variants), "checks": study.checks},
        "pictures": [encode_data_uri(images[file]) for file in needed],
    }
