"""The pages of a demo, of a batch and of a user study: one file each that loads nothing."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image

from sefi.provenance.metadata import shorten_digests
from sefi.provenance.save import encode_copy
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
        mark: Generated images get the invisible mark.
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
    mark: bool = True


def render_demo_page(content: DemoContent, identities: Sequence[str] = ()) -> str:
    """Render the demo's content.

    Args:
        identities: SHA-256 of those that the page shows.

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
    environment.filters["photo_uri"] = encode_photo_uri
    environment.filters["data_uri"] = partial(encode_generated_uri, mark=content.mark)
    return environment.from_string(read_template("demo.html.j2")).render(
        content=content, identities=shorten_digests(identities)
    )


def read_template(name: str) -> str:
    """Return the text of a template of this package."""
    return files("sefi.report").joinpath("templates", name).read_text(encoding="utf-8")


def encode_photo_uri(image: Image.Image) -> str:
    """Return a photo as a `data:` address holding a PNG, so that the page needs no other file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return make_data_uri(buffer.getvalue(), "png")


def encode_generated_uri(image: Image.Image, *, mark: bool = True) -> str:
    """Return a generated image as a `data:` address holding a PNG with its marks."""
    return make_data_uri(encode_copy(image, mark=mark, optimize=True).content, "png")


def make_data_uri(content: bytes, kind: str) -> str:
    """Return an image's file as a `data:` address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class BatchEntry:
    """One learned subject on the page of a batch.

    Attributes:
        preview: What was learned, and an image of it; None where there is none, or there are too many.
        facts: Label to value.
        remarks: What a user should know of it.
        identity: SHA-256 of the identity.
    """

    name: str
    preview: Image.Image | None
    facts: dict[str, str]
    remarks: Sequence[str]
    identity: str


@dataclass(frozen=True)
class BatchContent:
    """All that the page of a batch shows.

    Attributes:
        entries: The learned subjects, by name.
        failures: Name, photos, problem and what to do of each that was not learned.
        facts: Model and settings, label to value.
        mark: Previews get the invisible mark.
    """

    entries: Sequence[BatchEntry]
    failures: Sequence[tuple[str, str, str, str]]
    facts: dict[str, str]
    mark: bool = True


def render_batch_page(content: BatchContent) -> str:
    """Render what a batch learned and what it could not; HTML as of `render_demo_page`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(read_template))
    environment.filters["sheet_uri"] = partial(encode_sheet_uri, mark=content.mark)
    digests = [one.identity for one in content.entries]
    return environment.get_template("batch.html.j2").render(content=content, identities=shorten_digests(digests))


def encode_sheet_uri(image: Image.Image, *, mark: bool = True) -> str:
    """Return a sheet with a generated image as a `data:` address holding a JPEG: a page has hundreds."""
    return make_data_uri(encode_copy(image, mark=mark, kind="JPEG").content, "jpeg")


def render_study_page(
    study: Study,
    images: Mapping[str, Image.Image],
    generated: Mapping[str, bool] = MappingProxyType({}),
    identities: Sequence[str] = (),
) -> str:
    """Render a study.

    The letters' meaning is in the page's JSON block and comes back in the answers file; no visible text reveals it.

    Args:
        study: What is asked.
        images: Every file that the study names, opened. They are embedded without their metadata.
        generated: Of the files that a model generated, whether they get the invisible mark; the others are photos.
        identities: SHA-256 of those that the page shows.

    Returns:
        HTML that needs no other file, sends nothing and asks no server for anything. Its policy allows the one script
        in it by hash and data images, and nothing else. As large as its images.

    Raises:
        KeyError: An image is missing.
    """
    script = read_template("study.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(read_template("study.html.j2")).render(
        data=collect_page_data(study, images, generated),
        total=len(study.comparisons),
        minutes=max(1, round(len(study.comparisons) / 6)),  # ten seconds each
        script=script,
        identities=shorten_digests(sorted(identities)),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def collect_page_data(study: Study, images: Mapping[str, Image.Image], generated: Mapping[str, bool]) -> dict[str, Any]:
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
        "key": {
            "variants": dict(study.variants),
            "checks": study.checks,
            "comparisons": [one.name for one in study.comparisons],
        },
        "pictures": [
            encode_generated_uri(images[file], mark=generated[file])
            if file in generated
            else encode_photo_uri(images[file])
            for file in needed
        ],
    }
