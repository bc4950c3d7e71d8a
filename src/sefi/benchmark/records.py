"""The records of a benchmark run as types: `RunInfo` is `run.json`, a `Sample` is one line of `cells.jsonl`.

Runs of earlier versions are read too. Keys that changed, or whose fields have another name here:

| key | before schema 3 | field |
|---|---|---|
| `schema` | | `RunInfo.schema_number` |
| `evaluators` | `judges` | `RunInfo.evaluators` |
| `variants` | `ways` | `SuiteInfo.variants` |
| `class_word` | `kind` | `SuiteInfo.class_word` |
| `variant` | `way` | `Sample.variant` |
| `image` | `picture` | `Sample.image` |
| `id_other` | | `Sample.id_other_photo` |
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from sefi.core.config import drop_other_names
from sefi.core.errors import ConfigError
from sefi.core.reading import InvalidFileError, describe_fault, parse_object
from sefi.core.text import dump_json
from sefi.methods.registry import find_setting_owners
from sefi.provenance.run_record import RunRecord, shorten_source

RUN_SCHEMA = 4  # 1 had no `record`, 2 had other keys, 3 had no `learning_files`
MACHINE = ("schema", "versions", "record")  # fields of a run that may change while it is under way
PHOTOS_FOLDER = "photos"  # in the run's folder
LARGEST_SCORE = 4.0  # twice what two cosines can differ by
LARGEST_AMOUNT = 10**15  # seconds, megabytes and weights: far more than there are, and their squares are finite
LARGEST_ENTRY = 1e6  # of an embedding
MOST_IMAGES = 1_000_000  # that a suite may ask for; with CLIP's vectors their record would have 6 GB or more
MOST_LISTED = 50_000  # of a folder that another program filled; `run.json` names each, in some 200 bytes

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # what XML, and so a plot, cannot hold


def refuse_controls(text: str) -> str:
    """Return a text that a page and a plot can hold.

    Raises:
        ValueError: It has a control character other than a tab or a line break.
    """
    if CONTROLS.search(text):
        raise ValueError("a text has a control character")
    return text


def set_file_key(name: str) -> Any:  # noqa: ANN401  what `Field` returns is private to pydantic
    """Return the annotation of a field that has another name in the files."""
    return Field(validation_alias=name, serialization_alias=name)


def read_earlier_key(name: str, earlier: str) -> Any:  # noqa: ANN401  as above
    """Return the annotation of a field that had another name in the files of earlier versions."""
    return Field(validation_alias=AliasChoices(name, earlier))


def list_file_keys(name: str, field: FieldInfo) -> list[str]:
    """Return the keys by which files have a field, those of earlier versions too."""
    alias = field.validation_alias
    return [str(key) for key in alias.choices] if isinstance(alias, AliasChoices) else [str(alias or name)]


Clean = AfterValidator(refuse_controls)
Lax = Field(strict=False)  # of tuples: JSON has lists only
Text = Annotated[str, Field(max_length=10_000), Clean]
Label = Annotated[str, Field(min_length=1, max_length=200), Clean]  # part of the names of files
FileName = Annotated[str, Field(min_length=1, max_length=300), Clean]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[int, Field(ge=0, lt=2**63)]  # of a prompt
Score = Annotated[float, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE)] | None
Amount = Annotated[float, Field(ge=0, le=LARGEST_AMOUNT)] | None
Count = Annotated[int, Field(ge=0, le=LARGEST_AMOUNT)] | None
Entry = Annotated[float, Field(ge=-LARGEST_ENTRY, le=LARGEST_ENTRY)]
Pair = Annotated[tuple[Text, Text], Lax]

Key = tuple[str, str, int, int]  # subject, variant, prompt, seed


def make_group_key(keys: Iterable[str]) -> str:
    """Return the key of subjects that share an image, from the key of each.

    >>> make_group_key(["ada", "bob"]), split_group("ada+bob")
    ('ada+bob', ['ada', 'bob'])
    """
    return "+".join(keys)


def split_group(key: str) -> list[str]:
    """Return the key of each of the subjects that share an image."""
    return key.split("+")


def name_photo(subject: str) -> str:
    """Return the file of a subject's photo, as records name files: from the run's folder."""
    return f"{PHOTOS_FOLDER}/{subject}.png"


class RecordModel(BaseModel):
    """A part of a record: unknown keys are refused, nothing is converted, every number is finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
    )

    @classmethod
    def parse(cls, content: str | bytes) -> Self:
        """Return the record in a JSON text, by the keys of the files only.

        Raises:
            ValidationError: it is none.
        """
        return cls.model_validate_json(content, by_alias=True, by_name=False)

    def dump(self, *, indent: int | None = None) -> str:
        """Return the record as JSON with the keys of the files."""
        return dump_json(self.model_dump(mode="json", by_alias=True), indent=indent)


class RunPart(RecordModel):
    """A part of `run.json`, in which null counts as left out."""

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, values: object) -> object:
        """Return the values without the nulls of known fields, so that their defaults hold."""
        if not isinstance(values, dict):
            return values
        names = {key for name, field in cls.model_fields.items() for key in list_file_keys(name, field)}
        return {name: value for name, value in values.items() if value is not None or name not in names}


class PromptInfo(RunPart):
    """A prompt of the suite; `wanted` are pairs of kind and label."""

    text: Text
    kind: Label
    wanted: Annotated[tuple[Pair, ...], Lax, Field(max_length=100)] = ()


class VariantInfo(RunPart):
    """One of the variants that the suite compares.

    Attributes:
        preset: What its settings start from.
        settings: What differs from the preset, as `learn.steps=100`.
        learned_by: Label of the variant whose identity is used; None learns one.
        class_slots: Tokens that are the class word's instead.
        strength: How much of the identity is used; 0 is the class word.
        learning_seed: Of learning; that of images is the suite's.
        control: Kind of a reference row, which learns nothing; None for a variant under test.
        images: Folder of images that another program made; None for a variant of this one.
    """

    label: Label
    about: Text = ""
    preset: Text = "default"
    settings: Annotated[tuple[Text, ...], Lax, Field(max_length=1000)] = ()
    learned_by: Label | None = None
    class_slots: Annotated[tuple[Text, ...], Lax, Field(max_length=1000)] = ()
    strength: Annotated[float, Field(ge=0, le=100)] = 1.0
    learning_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    control: Label | None = None
    images: Text | None = None

    @property
    def is_generated(self) -> bool:
        """Whether the model generates its images; the other reference rows are photographs."""
        return self.control in (None, "class word")


class SuiteInfo(RunPart):
    """The suite of a run; `sefi.benchmark.suite.Suite` says what each field means."""

    name: Annotated[str, Field(min_length=1, max_length=300), Clean]
    about: Text = ""
    prompts: Annotated[tuple[PromptInfo, ...], Lax, Field(min_length=1, max_length=10_000)]
    variants: Annotated[
        tuple[VariantInfo, ...], Lax, Field(min_length=1, max_length=500), read_earlier_key("variants", "ways")
    ]
    settings: Annotated[tuple[Text, ...], Lax, Field(max_length=1000)] = ()
    seeds: Annotated[tuple[Seed, ...], Lax, Field(min_length=1, max_length=10_000)]
    subjects: int = Field(4, ge=1, le=100_000)
    first: int = Field(0, ge=0, lt=2**63)
    together: int = Field(1, ge=1, le=2)
    class_word: Annotated[Label, read_earlier_key("class_word", "kind")] = "person"
    photos: Label = "plain"
    attention: bool = False

    @property
    def generates(self) -> bool:
        """Whether a variant generates images: then every subject gets every prompt and seed."""
        return any(variant.is_generated and variant.images is None for variant in self.variants)

    @model_validator(mode="after")
    def check_prompts(self) -> Self:
        """Refuse braces that `str.format` would read as more than the place of a subject.

        A prompt of other programs' images need not have one.
        """
        counts = (self.together,) if self.generates else (0, self.together)
        for prompt in self.prompts:
            bare = prompt.text.replace("{}", "")
            if prompt.text.count("{}") not in counts or "{" in bare or "}" in bare:
                raise ValueError(f"the prompt {prompt.text[:80]!r} needs {{}} {self.together} times")
        return self

    @model_validator(mode="after")
    def check_repeats(self) -> Self:
        """Refuse labels and seeds that are given twice."""
        refuse_repeats("variants", [variant.label for variant in self.variants])
        refuse_repeats("seeds", self.seeds)
        return self


class ModelInfo(RunPart):
    """The text-to-image model of a run."""

    name: Text = "unknown"
    fingerprint: Text = "unknown"


class EvaluatorInfo(RunPart):
    """A network that scores images: its file and the SHA-256 of its weights."""

    file: Text = "unknown"
    sha256: Text = "unknown"


class ListedImage(RunPart):
    """An image that another program made: what it is of, its file from its folder, and the SHA-256 of its pixels."""

    subject: Label
    prompt: Number
    seed: Seed
    file: FileName
    sha256: FileName


class ListedFolder(RunPart):
    """The images of a folder, and the files in it that could not be read."""

    images: Annotated[tuple[ListedImage, ...], Lax, Field(max_length=MOST_LISTED)]
    unreadable: Annotated[tuple[FileName, ...], Lax, Field(max_length=MOST_LISTED)] = ()


class LearningFiles(RunPart):
    """The files that methods learn with, each by its SHA-256.

    Attributes:
        settings: Of each variant that learns, the files that its settings name, by setting.
        evaluators: The networks that methods are given, by their names in a folder of evaluators.
    """

    settings: dict[Text, dict[Text, Text]] = Field(default_factory=dict[str, dict[str, str]])
    evaluators: dict[Text, Text] = Field(default_factory=dict[str, str])

    def list_files(self) -> dict[str, str]:
        """Return every file's SHA-256 by what a message calls it: `evaluator clip`, `basis.names of VARIANT`."""
        named = {
            f"{setting} of {label}": digest
            for label, digests in self.settings.items()
            for setting, digest in digests.items()
        }
        return named | {f"evaluator {name}": digest for name, digest in self.evaluators.items()}


class RunInfo(RunPart):
    """What `run.json` says: everything that decides a run's figures.

    Attributes:
        subjects: Keys of the subjects; `ada+bob` where two share an image.
        photos: Of each subject the hashes of the photo and, where there is one, of another image.
        evaluators: By name; None for one that the run did not have.
        settings: Of each variant that learns, the whole tree of its settings.
        tau: Prompt score from which an image counts in ID(Prompt).
        far_threshold: Likeness from which two faces count as one person.
        folders: What is in the folder of each variant whose images another program made.
        mark: The generated images have the invisible mark; earlier versions wrote none.
        learning_files: What methods learn with besides the model; None in the runs of earlier versions.
        record: The machine that began the run; suite, settings and model are in the other fields.
    """

    schema_number: Annotated[int, set_file_key("schema")] = 0
    suite: SuiteInfo
    subjects: Annotated[tuple[Label, ...], Lax, Field(max_length=100_000)]
    photos: dict[Text, Annotated[tuple[Text, ...], Lax, Field(min_length=1)]] = Field(
        default_factory=dict[str, tuple[str, ...]]
    )
    model: ModelInfo
    device: Text = ""
    dtype: Text = ""
    evaluators: Annotated[dict[Text, EvaluatorInfo | None], read_earlier_key("evaluators", "judges")] = Field(
        default_factory=dict[str, EvaluatorInfo | None]
    )
    versions: dict[Text, Text] = Field(default_factory=dict[str, str])
    settings: dict[Text, dict[Text, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    tau: Score = None
    far_threshold: Score = None
    folders: dict[Text, ListedFolder] = Field(default_factory=dict[str, ListedFolder])
    mark: bool = False
    learning_files: LearningFiles | None = None
    record: Annotated[RunRecord | None, Lax] = None

    @field_serializer("record")
    def shorten_record(self, record: RunRecord | None) -> dict[str, Any] | None:
        """Return the record without what it does not state."""
        return None if record is None else record.dump()

    @model_validator(mode="after")
    def check_subjects(self) -> Self:
        """Refuse subjects that are given twice, that are not as many as share an image, or that have no photo."""
        refuse_repeats("subjects", self.subjects)
        for group in self.subjects:
            keys = split_group(group)
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
            level = [inner for value in level for inner in list_inside(value)]
        return settings

    @model_validator(mode="after")
    def check_size(self) -> Self:
        """Refuse a suite of more images than any run has."""
        suite = self.suite
        each = len(suite.prompts) * len(suite.seeds) if suite.generates else 0
        images = len(self.subjects) * len(suite.variants) * each
        images += sum(len(folder.images) for folder in self.folders.values())
        if images > MOST_IMAGES:
            raise ValueError(f"suite: it asks for {images:,} images; at most {MOST_IMAGES:,}")
        return self

    def list_differences(self, other: "RunInfo") -> list[str]:
        """Return the keys in which another run differs, in order; of the suite each key with its place.

        Versions of libraries, the machine, the version of the file and descriptions may differ, and this one may have
        settings of other methods: earlier versions saved those of all. Files that one of the runs does not know are not
        compared.
        """
        values, other_values = self.model_dump(by_alias=True), other.model_dump(by_alias=True)
        values["settings"] = {
            label: drop_others_settings(tree, other.settings.get(label, tree)) for label, tree in self.settings.items()
        }
        for one in (values, other_values):  # earlier versions recorded where the model's folder lies
            one["model"]["name"] = shorten_source(one["model"]["name"])
            one.pop("learning_files")
            for described in (one["suite"], *one["suite"]["variants"]):
                described.pop("about")
        for one in (values, other_values):
            one |= {f"suite.{name}": value for name, value in one.pop("suite").items()}
        keys = sorted(name for name in values if name not in MACHINE and values[name] != other_values[name])
        if self.learning_files is None or other.learning_files is None:
            return keys
        files = self.learning_files.list_files().items() ^ other.learning_files.list_files().items()
        return [*keys, *sorted({name for name, _ in files})]


def drop_others_settings(tree: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings of a method without those of other methods.

    A name that no method has by now, in a section that this one has, was its own: the identities were learned with it,
    and no more can be.

    Args:
        other: the settings that the method has by now.
    """
    owners, shared = find_setting_owners(), drop_other_names(tree, other)
    for name, section in shared.items():
        whole = tree[name]
        if isinstance(section, dict) and isinstance(whole, dict):
            gone = {key: value for key, value in whole.items() if f"{name}.{key}" not in owners}
            shared[name] = {**gone, **section}
    return shared


def list_inside(value: object) -> Iterable[Any]:
    """Return the keys and values of a mapping, the entries of a list, and nothing of anything else."""
    match value:
        case dict():
            return (*value, *value.values())
        case list() | tuple():
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


class Sample(RecordModel):
    """One image: what it shows, its files in the run's folder, and every score; None was not computed.

    Attributes:
        subject: Key of the subject; `ada+bob` where two share the image.
        variant: Label of the variant that made it.
        kind: What the prompt asks for.
        prompt: Number of the prompt in the suite.
        text: The prompt with the class word in the place of the subject.
        sha256: Of the pixels.
        faces: How many were found.
        id: Likeness to the photo that was learned; `id_other_photo` to another image of the subject,
            `id_leaked` of each face to the other of two subjects. `id_second` and `id_second_other` are `id` and
            `id_other_photo` by the second recogniser.
        clip_image: CLIP cosine of image and photo; `background` with the surest face of each blanked;
            `clip_image_others` and `background_others` their means over the photos of other subjects; `dino` DINOv2's.
        prompt_score: CLIP cosine of image and prompt; `margin` its lead over that of a plain photo.
        shown: For everything that the prompt wants, whether readers found it.
        embedding: CLIP's unit vector of the image.
        focus: Share of the placeholder's attention inside the face; `on_objects` of it where action and scene are
            drawn. With `_plain` that of the class word.
        maps: File of the attention maps.
        trained: Trained parameters; `added` weights in addition to the model's.
        peak_mb: The most memory that learning held.
    """

    subject: Label
    variant: Annotated[Label, read_earlier_key("variant", "way")]
    kind: Label
    prompt: Number
    text: Text
    class_word: Text = "person"
    seed: Seed
    sha256: FileName
    faces: int | None = Field(None, ge=0, le=100_000)
    id: Score = None
    id_other_photo: Annotated[Score, set_file_key("id_other")] = None
    id_leaked: Score = None
    id_second: Score = None
    id_second_other: Score = None
    clip_image: Score = None
    clip_image_others: Score = None
    background: Score = None
    background_others: Score = None
    dino: Score = None
    prompt_score: Score = None
    margin: Score = None
    shown: Annotated[tuple[bool, ...], Lax, Field(max_length=100)] | None = None
    embedding: Annotated[tuple[Entry, ...], Lax, Field(min_length=1, max_length=8192)] | None = None
    draw_seconds: Amount = None
    focus: Score = None
    on_objects: Score = None
    focus_plain: Score = None
    on_objects_plain: Score = None
    image: Annotated[FileName, read_earlier_key("image", "picture")]
    maps: FileName | None = None
    trained: Count = None
    added: Count = None
    learn_seconds: Amount = None
    class_seconds: Amount = None
    peak_mb: Amount = None

    @property
    def key(self) -> Key:
        """Subject, variant, prompt and seed: no other sample of the run has the same."""
        return self.subject, self.variant, self.prompt, self.seed


def parse_run_info(text: str, folder: object) -> RunInfo:
    """Return what the text of `run.json` says, with the default of every field that it leaves out.

    Args:
        text: JSON.
        folder: The run's folder, for the message.

    Raises:
        ConfigError: it is of a newer version.
        ValueError: it is no JSON, or a field is missing, unknown or of another type.
    """
    # A newer version may have any keys: its number is checked before they are.
    schema = parse_object(text).get("schema", 0)
    if isinstance(schema, int) and schema > RUN_SCHEMA:
        raise ConfigError(f"{folder} was written by a newer sefi.", "Update sefi.")
    return RunInfo.parse(text)


def parse_sample(line: bytes) -> Sample | None:
    """Return a line of `cells.jsonl` as a sample; None if it is no whole JSON value, as after a kill.

    Raises:
        InvalidFileError: it is whole and no sample.
    """
    try:
        return Sample.parse(line)
    except ValidationError as error:
        fault = error
    # Slow, and only for what is wrong: a cut line, or the reason in the words of every other file.
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return None
    try:
        parse_object(line.decode("utf-8"))
    except ValueError as error:
        raise InvalidFileError(describe_fault(error)) from error
    raise InvalidFileError(describe_fault(fault)) from fault


def check_samples(run: RunInfo, samples: Sequence[Sample]) -> None:
    """Check samples, each valid by itself, against their run and each other.

    Raises:
        InvalidFileError: one is of a subject, prompt or seed that the run does not have, says of more or fewer things
            whether they are shown than its prompt wants, or has an embedding of another length.
    """
    prompts, subjects, seeds = run.suite.prompts, set(run.subjects), set(run.suite.seeds)
    lengths = {len(sample.embedding) for sample in samples if sample.embedding is not None}
    if len(lengths) > 1:
        raise InvalidFileError(f"embeddings have {len(lengths)} different lengths")
    for sample in samples:
        if sample.subject not in subjects:
            raise InvalidFileError(f"there is no subject {sample.subject[:80]!r} in run.json")
        if sample.prompt >= len(prompts):
            raise InvalidFileError(f"there is no prompt {sample.prompt} in run.json")
        if sample.seed not in seeds:
            raise InvalidFileError(f"there is no seed {sample.seed} in run.json")
        wanted = prompts[sample.prompt].wanted
        if sample.shown is not None and len(sample.shown) != len(wanted):
            raise InvalidFileError(
                f"an image of prompt {sample.prompt} says {len(sample.shown)} things of {len(wanted)}"
            )
