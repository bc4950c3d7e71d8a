"""What `run.json` and a line of `cells.jsonl` must hold; fields of other versions are passed over."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from sefi.core.reading import LimitError

LARGEST_SCORE = 4.0  # twice what two cosines can differ by
LARGEST_AMOUNT = 1e15  # seconds, megabytes and weights: far more than there are, and their squares are finite
LARGEST_ENTRY = 1e6  # of an embedding
MOST_IMAGES = 1_000_000  # that a suite may ask for; their record would be some 2 GB

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # what XML, and so a plot, cannot hold


def refuse_controls(text: str) -> str:
    """Return a text that a page and a plot can hold.

    Raises:
        ValueError: It has a control character other than a tab or a line break.
    """
    if CONTROLS.search(text):
        raise ValueError("a text has a control character")
    return text


Clean = AfterValidator(refuse_controls)
Text = Annotated[str, Field(max_length=10_000), Clean]
Label = Annotated[str, Field(min_length=1, max_length=200), Clean]  # part of the names of files
FileName = Annotated[str, Field(min_length=1, max_length=300), Clean]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Score = Annotated[float, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE)] | None
Amount = Annotated[float, Field(ge=0, le=LARGEST_AMOUNT)] | None
Entry = Annotated[float, Field(ge=-LARGEST_ENTRY, le=LARGEST_ENTRY)]


class Record(BaseModel):
    """A part of a record: nothing converted, no number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


class RunPart(Record):
    """A part of `run.json`, in which null counts as left out."""

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, values: object) -> object:
        """Return the values without the nulls of known fields, so that their defaults hold."""
        if not isinstance(values, dict):
            return values
        names = {field.alias or name for name, field in cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None or name not in names}


class PromptRecord(RunPart):
    """A prompt of the suite; `wanted` are pairs of kind and label."""

    text: Text
    kind: Label
    wanted: list[Annotated[list[Text], Field(min_length=2, max_length=2)]] = Field(
        default_factory=list[list[str]], max_length=100
    )


class VariantRecord(RunPart):
    """What the suite compares; `control` is the kind of a reference row, None for what is learned."""

    label: Label
    about: Text = ""
    control: Label | None = None


class SuiteRecord(RunPart):
    """The suite of a run."""

    name: Annotated[str, Field(min_length=1, max_length=300), Clean]
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

    @model_validator(mode="after")
    def check_repeats(self) -> Self:
        """Refuse labels and seeds that are given twice."""
        refuse_repeats("ways", [way.label for way in self.ways])
        refuse_repeats("seeds", self.seeds)
        return self


class ModelRecord(RunPart):
    """The text-to-image model of a run."""

    name: Text = "unknown"
    fingerprint: Text = "unknown"


class JudgeRecord(RunPart):
    """A network that scores images: its file and the SHA-256 of its weights."""

    file: Text = "unknown"
    sha256: Text = "unknown"


class RunRecord(RunPart):
    """What `run.json` says."""

    schema_number: int = Field(0, alias="schema")
    suite: SuiteRecord
    subjects: list[Label] = Field(max_length=100_000)
    photos: dict[Text, Annotated[list[Text], Field(min_length=1)]] = Field(default_factory=dict[str, list[str]])
    model: ModelRecord
    device: Text = ""
    dtype: Text = ""
    judges: dict[Text, JudgeRecord | None] = Field(default_factory=dict[str, JudgeRecord | None])
    versions: dict[Text, Text] = Field(default_factory=dict[str, str])
    settings: dict[Text, dict[Text, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    tau: Score = None
    far_threshold: Score = None

    @model_validator(mode="after")
    def check_subjects(self) -> Self:
        """Refuse subjects that are given twice, that are not as many as share an image, or that have no photo."""
        refuse_repeats("subjects", self.subjects)
        for group in self.subjects:
            keys = group.split("+")
            if len(keys) != self.suite.together or not all(keys):
                raise ValueError(
                    f"subjects: {group[:80]!r} does not name {self.suite.together}, as suite.together says"
                )
            missing = [key for key in keys if self.photos and key not in self.photos]
            if missing:
                raise ValueError(f"photos: there is none of the subject {missing[0][:80]!r}")
        return self

    @field_validator("settings")
    @classmethod
    def check_settings(cls, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Refuse control characters at any depth; nothing else is known of the settings of other versions."""
        level: list[Any] = [settings]
        while level:
            for text in level:
                if isinstance(text, str):
                    refuse_controls(text)
            level = [inner for value in level for inner in inside(value)]
        return settings

    @model_validator(mode="after")
    def check_size(self) -> Self:
        """Refuse a suite of more images than any run has."""
        suite = self.suite
        images = len(self.subjects) * len(suite.ways) * len(suite.prompts) * len(suite.seeds)
        if images > MOST_IMAGES:
            raise ValueError(f"suite: it asks for {images:,} images; at most {MOST_IMAGES:,}")
        return self


def inside(value: object) -> Iterable[Any]:
    """Return the keys and values of a mapping, the entries of a list, and nothing of anything else."""
    match value:
        case dict():
            return (*value, *value.values())
        case list():
            return value
        case _:
            return ()


def refuse_repeats(field: str, values: Sequence[str | int]) -> None:
    """Refuse a list that has an entry twice.

    Raises:
        ValueError: it has.
    """
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{field}: {str(twice[0])[:80]!r} is given twice")


def fill_run(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a valid `run.json` says, with the default of every field that it leaves out."""
    return RunRecord.model_validate(about).model_dump(by_alias=True)


class CellRecord(Record):
    """One picture: what it shows, its files in the run's folder, and every score; None was not computed."""

    subject: Label
    way: Label
    prompt: int = Field(ge=0)
    seed: Seed
    kind: Label
    text: Text
    picture: FileName
    sha256: FileName
    class_word: Text = "person"
    maps: FileName | None = None
    faces: int | None = Field(None, ge=0, le=100_000)
    shown: list[bool] | None = Field(None, max_length=100)
    embedding: list[Entry] | None = Field(None, min_length=1, max_length=8192)
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
