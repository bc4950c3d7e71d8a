"""What `run.json` and a line of `cells.jsonl` must hold; fields of other versions are passed over."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sefi.core.reading import LimitError

Text = Annotated[str, Field(max_length=10_000)]
Label = Annotated[str, Field(min_length=1, max_length=300)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Record(BaseModel):
    """A part of a record: nothing converted, no number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


class PromptRecord(Record):
    """A prompt of the suite; `wanted` are pairs of kind and label."""

    text: Text
    kind: Label
    wanted: list[Annotated[list[Text], Field(min_length=2, max_length=2)]] | None = Field(None, max_length=100)


class VariantRecord(Record):
    """What the suite compares."""

    label: Label
    about: Text | None = None
    control: Text | None = None


class SuiteRecord(Record):
    """The suite of a run."""

    name: Label
    about: Text = ""
    prompts: list[PromptRecord] = Field(min_length=1, max_length=10_000)
    ways: list[VariantRecord] = Field(min_length=1, max_length=500)
    seeds: list[Seed] = Field(min_length=1, max_length=10_000)
    together: int = Field(1, ge=1, le=2)
    kind: Label = "person"

    @model_validator(mode="after")
    def check_prompts(self) -> Self:
        """Refuse braces that `str.format` would read as more than the place of a subject."""
        for prompt in self.prompts:
            bare = prompt.text.replace("{}", "")
            if prompt.text.count("{}") != self.together or "{" in bare or "}" in bare:
                raise ValueError(f"the prompt {prompt.text[:80]!r} needs {{}} {self.together} times")
        return self


class RunRecord(Record):
    """What `run.json` says."""

    schema_number: int = Field(0, alias="schema")
    suite: SuiteRecord
    subjects: list[Label] = Field(max_length=100_000)
    photos: dict[str, list[Text]] = Field(default_factory=dict)
    model: dict[str, Text]
    device: Text = ""
    dtype: Text = ""
    judges: dict[str, dict[str, Text] | None] | None = None
    versions: dict[str, Text] | None = None
    settings: dict[str, dict[str, Any]] | None = None
    tau: float | None = None
    far_threshold: float | None = None


Score = float | None
Amount = Annotated[float, Field(ge=0)] | None


class CellRecord(Record):
    """One picture: what it shows, its files in the run's folder, and every score; None was not computed."""

    subject: Label
    way: Label
    prompt: int = Field(ge=0)
    seed: Seed
    kind: Label
    text: Text
    picture: Label
    sha256: Label
    class_word: Text = "person"
    maps: Label | None = None
    faces: int | None = Field(None, ge=0)
    shown: list[bool] | None = Field(None, max_length=100)
    embedding: list[float] | None = Field(None, min_length=1, max_length=8192)
    id: Score = None
    id_other: Score = None
    id_leaked: Score = None
    clip_image: Score = None
    background: Score = None
    prompt_score: Score = None
    margin: Score = None
    focus: Score = None
    focus_plain: Score = None
    on_objects: Score = None
    on_objects_plain: Score = None
    draw_seconds: Amount = None
    learn_seconds: Amount = None
    class_seconds: Amount = None
    peak_mb: Amount = None
    trained: Amount = None
    added: Amount = None


def check_cells(about: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> None:
    """Check pictures, each valid by itself, against their run and each other.

    Raises:
        LimitError: one is of a subject or prompt that the run does not have, says of more or fewer things whether
            they are shown than its prompt wants, or has an embedding of another length.
    """
    prompts, subjects = about["suite"]["prompts"], set(about["subjects"])
    lengths = {len(cell["embedding"]) for cell in cells if cell.get("embedding") is not None}
    if len(lengths) > 1:
        raise LimitError(f"embeddings have {len(lengths)} different lengths")
    for cell in cells:
        if cell["subject"] not in subjects:
            raise LimitError(f"there is no subject {cell['subject'][:80]!r} in run.json")
        if cell["prompt"] >= len(prompts):
            raise LimitError(f"there is no prompt {cell['prompt']} in run.json")
        shown, wanted = cell.get("shown"), prompts[cell["prompt"]].get("wanted") or ()
        if shown is not None and len(shown) != len(wanted):
            raise LimitError(f"a picture of prompt {cell['prompt']} says {len(shown)} things of {len(wanted)}")
