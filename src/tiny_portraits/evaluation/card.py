"""The embedded model's card, written from its figures and from what its files say."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from sefi.core.errors import ConfigError, SefiError
from sefi.core.reading import FLOATS, Limits, read_json, read_layout, translate_file_errors
from tiny_portraits.drawing.content import INTERACTIONS, SHIPPED
from tiny_portraits.drawing.sampling import HELD_OUT
from tiny_portraits.drawing.traits import ANIMALS
from tiny_portraits.text.words import CHARACTERS, FAMILIES

CARD, DOCS_CARD = "README.md", "model-card.md"
# From the folder of the embedded model to that of the documents.
DOCS = "../../../../docs"
TRAINING = "training.json"
PARTS = ("unet", "text_encoder", "vae")
WEIGHTS = Limits(dtypes=FLOATS | {"I64", "I32", "U8", "BOOL"})
SPECIAL_TOKENS = 2  # start and end of every sentence
Schema = TypeVar("Schema", bound=BaseModel)

TEMPLATE = """\
# tiny-portraits

A complete Stable Diffusion folder (tokenizer, text encoder, VAE, UNet, scheduler) that draws the small drawn people of
`tiny_portraits`: {resolution} x {resolution} pixels, prompts of at most {words} words, target `{prediction}`.
License: Apache-2.0, as the package.

![Images of random prompts]({docs}/pictures/everything.png)

Prompts drawn at random from the caption grammar, nothing picked:
`sefi world grid --kind everything --seed 0 --out docs/pictures/everything.png`.

- **For** demonstrations, tests, and the comparison of methods where the truth is known.
- **Not for** photographs or real people.

## Data

The package draws every training image by itself and writes its caption; no photograph and no other model's weights
went in. How: [docs/world.md]({docs}/world.md).

{data}

## Size

{sizes}

## Training

{training}

## Figures

`sefi world check --json` recomputes them; the evaluators look at images that are made from prompts alone. {summary}

{figures}

## Limits

{limits}

## People

The drawn people do not exist: faces and names are invented, so nobody had to be asked. Learn a real person's face only
with that person's consent.

---
Written by `sefi world card` from the record of the figures, the model's files and `{training_file}`; edit those, not
this page.
"""
LIMITS = (
    "It knows drawn people and a closed list of words; other words are cut into pieces that mean nothing to it.",
    "The evaluators are small networks too and err now and then; `sefi world check --part evaluators` tells how often.",
)


class CardError(SefiError):
    """The written card is not what its sources give."""

    exit_code = 1


class Strict(BaseModel):
    """A part of a file; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FigureRecord(Strict):
    """One figure, as `Figure.record` writes it."""

    name: str = Field(min_length=1)
    value: float
    target: float | None
    met: bool | None
    n: int = Field(ge=0)


class Record(Strict):
    """What `sefi world check --json` printed."""

    figures: tuple[FigureRecord, ...] = Field(min_length=1)


class TrainedPart(Strict):
    """How one part was trained; 0 steps where nothing was learned step by step."""

    part: str = Field(min_length=1)
    what: str = Field(min_length=1)
    steps: int = Field(ge=0)
    time: str = Field(min_length=1)
    hardware: str = Field(min_length=1)


class Training(Strict):
    """History of the weights, and what this version of them was seen to do badly."""

    parts: tuple[TrainedPart, ...] = Field(min_length=1)
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Size:
    """How large one part is."""

    part: str
    weights: int
    bytes: int


@dataclass(frozen=True)
class Facts:
    """What the card tells beside the figures.

    Attributes:
        resolution: side of an image in pixels.
        words: most words of a prompt.
        prediction: what the UNet predicts, in diffusers' words.
    """

    resolution: int
    words: int
    prediction: str
    sizes: tuple[Size, ...]
    training: Training


def parse_file(path: Path, schema: type[Schema], remedy: str) -> Schema:
    """Return a JSON file's content, checked.

    Raises:
        ConfigError: it is missing, no JSON, or has other fields; the remedy is the caller's.
    """
    with translate_file_errors(f"'{path}'", ConfigError, "does not fit", remedy):
        return schema.model_validate(read_json(path))


def read_record(path: Path) -> Record:
    """Return the model's figures."""
    return parse_file(path, Record, "Write it with `sefi world check --json > FILE`.")


def read_training(path: Path) -> Training:
    """Return the history of the weights."""
    return parse_file(path, Training, 'Write {"parts": [{"part", "what", "steps", "time", "hardware"}, ...]}.')


def measure_size(folder: Path) -> Size:
    """Return the size of one part from the headers of its safetensors files; no weight is loaded.

    Raises:
        ConfigError: there is no such file, or one is damaged.
    """
    files, weights = sorted(folder.glob("*.safetensors")), 0
    if not files:
        raise ConfigError(f"'{folder}' holds no weights.", "Assemble the model with `sefi world train assembly`.")
    for file in files:
        with translate_file_errors(f"'{file}'", ConfigError, "is damaged", "Copy it again."):
            weights += sum(map(math.prod, read_layout(file, WEIGHTS).shapes.values()))
    return Size(folder.name, weights, sum(file.stat().st_size for file in files))


def read_facts(model: Path) -> Facts:
    """Return the facts from a model's folder and from `training.json` beside it.

    Raises:
        ConfigError: a file is missing or does not fit.
    """

    def read_config(name: str) -> dict[str, Any]:
        with translate_file_errors(
            f"'{model / name}'", ConfigError, "cannot be read", "Name a Stable Diffusion folder."
        ):
            return read_json(model / name)

    with translate_file_errors(f"'{model}'", ConfigError, "has a damaged config", "Name a Stable Diffusion folder."):
        return read_part_facts(model, read_config)


def read_part_facts(model: Path, config: Callable[[str], dict[str, Any]]) -> Facts:
    """Return the facts from the configs of a model's parts; whoever calls answers for their faults."""
    scale = 2 ** (len(config("vae/config.json")["block_out_channels"]) - 1)
    return Facts(
        resolution=config("unet/config.json")["sample_size"] * scale,
        words=config("text_encoder/config.json")["max_position_embeddings"] - SPECIAL_TOKENS,
        prediction=config("scheduler/scheduler_config.json")["prediction_type"],
        sizes=tuple(measure_size(model / part) for part in PARTS),
        training=read_training(model.parent / TRAINING),
    )


def format_markdown_table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    r"""Return a Markdown table.

    >>> print(format_markdown_table(("a", "b"), [("1", "x|y")]))
    | a | b |
    |---|---|
    | 1 | x\|y |
    """
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (titles, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(titles), *lines[1:]])


def format_data_table() -> str:
    """Return a table of how many of everything the drawn world has."""
    counts = {
        f"named characters, in {FAMILIES} families": CHARACTERS,
        "attributes": len(SHIPPED.attributes),
        "actions": len(SHIPPED.actions),
        "things that two people do together": len(INTERACTIONS),
        "kinds of animals": len(ANIMALS),
        "scenes": len(SHIPPED.scenes),
        "styles": len(SHIPPED.styles),
        "combinations that training never saw": len(HELD_OUT),
    }
    return format_markdown_table(("what", "how many"), [(what, f"{count:,}") for what, count in counts.items()])


def format_size_table(sizes: tuple[Size, ...]) -> str:
    """Return a table of weights and bytes of every part and of all together."""
    whole = Size("together", sum(s.weights for s in sizes), sum(s.bytes for s in sizes))
    rows = [(s.part, f"{s.weights:,}", f"{s.bytes / 1e6:.1f} MB") for s in (*sizes, whole)]
    return format_markdown_table(("part", "weights", "on disk"), rows)


def format_training_table(training: Training) -> str:
    """Return a table of what was trained, for how long, on what."""
    rows = [(p.part, p.what, f"{p.steps:,}" if p.steps else "", p.time, p.hardware) for p in training.parts]
    return format_markdown_table(("part", "what", "steps", "time", "hardware"), rows)


def format_figure_table(record: Record) -> str:
    """Return a table of every figure with its target."""
    said = {True: "yes", False: "no", None: ""}
    rows = [
        (f.name, f"{f.value:.3f}", "" if f.target is None else f"{f.target:g}", said[f.met], f"{f.n:,}")
        for f in record.figures
    ]
    return format_markdown_table(("figure", "value", "target", "met", "n"), rows)


def summarise_targets(record: Record) -> str:
    """Return a sentence that says how many targets are met."""
    aimed = [figure for figure in record.figures if figure.met is not None]
    return f"{sum(bool(figure.met) for figure in aimed)} of {len(aimed)} targets are met."


def format_limits(record: Record, training: Training) -> str:
    """Return a list of missed targets, of what was seen to go wrong, and of what holds for every version."""
    missed = [f"{f.name} ({f.value:.3f})" for f in record.figures if f.met is False]
    lines = [f"It misses targets: {', '.join(missed)}."] if missed else []
    return "\n".join(f"- {line}" for line in (*lines, *training.limits, *LIMITS))


def format_card(record: Record, facts: Facts, docs: str = DOCS) -> str:
    """Return the card in Markdown; the same record and facts always give the same text.

    Args:
        docs: path to the documents, as the card's links need it.
    """
    return TEMPLATE.format(
        docs=docs,
        resolution=facts.resolution,
        words=facts.words,
        prediction=facts.prediction,
        data=format_data_table(),
        sizes=format_size_table(facts.sizes),
        training=format_training_table(facts.training),
        summary=summarise_targets(record),
        figures=format_figure_table(record),
        limits=format_limits(record, facts.training),
        training_file=TRAINING,
    )


def check_card(path: Path, text: str) -> None:
    """Check that the card on disk is this text.

    Raises:
        CardError: it is missing or differs.
    """
    if not path.is_file():
        raise CardError(f"There is no card '{path}'.", "Write it: the same command without --check.")
    if path.read_text(encoding="utf-8") != text:
        raise CardError(
            f"The card '{path}' is not what its record gives.", "Write it again: the same command without --check."
        )
