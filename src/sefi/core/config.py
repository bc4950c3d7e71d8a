"""Settings that every method has, and how a method adds its own; unknown names are refused with the nearest match."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sefi.core.errors import ConfigError, PromptError
from sefi.core.hints import SCHEDULER_ALIASES, find_nearest, suggest_setting
from sefi.core.prompts import FACE_TEMPLATES, SHORT_TEMPLATES, check_template, is_person, normalise_class_word
from sefi.core.text import is_utf8

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails


# Every number of steps, samples or images has a bound: above it memory would run out before anything is said, and a
# file that holds the settings could not be read again.
NOT_UTF8 = "not_utf8"  # pydantic's type of our own error


class Section(BaseModel, frozen=True):
    """A frozen group of settings."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def refuse_other_encodings(cls, value: object) -> object:
        """Refuse text that is not UTF-8: settings are saved with the result, which would fail after the work."""
        texts = cast(Iterable[object], value) if isinstance(value, (list, tuple)) else (value,)
        if not all(is_utf8(text) for text in texts if isinstance(text, str)):
            raise PydanticCustomError(NOT_UTF8, "it is not UTF-8 text")
        return value


def make_option(default: object, description: str, **limits: Any) -> Any:  # noqa: ANN401
    """Make a setting that is not saved at its default: older files keep their bytes.

    Args:
        limits: as of pydantic's `Field`.
    """
    return Field(default, exclude_if=lambda value: value == default, description=description, **limits)


# In a setting's `json_schema_extra`: its value names a file, which belongs to what explains a result.
NAMES_FILE: dict[str, JsonValue] = {"names": "file"}
FILE_SETTINGS = ("basis.names", "compose.weights", "learn.encoder")  # of all methods of this package


class LearnSettings(Section, frozen=True):
    """How an identity is learned.

    The defaults of this class are the paper's values (section 4.1); `sefi.learn` starts from the preset `default`
    (`DEFAULT`), which is tuned on the embedded model.
    """

    steps: int = Field(
        1000,
        ge=0,
        le=10_000_000,
        description="optimiser steps; 0 with start=encoder: the encoder's tokens as they are, with auto: chosen by the "
        "start",
    )
    batch: int = Field(1, ge=1, le=1024, description="samples per step")
    learning_rate: float = Field(5e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW; 0 is Adam")
    gradient_clip: float | None = Field(
        None, gt=0, description="maximum norm of a step's gradient, all weights together"
    )
    attention_weight: float = Field(0.003, ge=0, description="lambda of the attention loss")
    attention_option: Literal[1, 2, 3] = Field(
        3, description="words the attention loss compares: 1 the placeholder, 2 the sentence, 3 all"
    )
    attention_reduction: Literal["sum", "mean"] = Field(
        "sum", description="sum or mean of the attention loss over words and positions"
    )
    expansion: Literal["module", "direct"] = Field(
        "module", description="where tokens come from: module (a network) or direct (free numbers)"
    )
    residual_init: bool = Field(default=False, description="learn the difference to the class word, 0 at first")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of the expansion module")
    stages: int = Field(5, ge=1, le=100, description="number of denoising stages, each with its own tokens")
    vectors: int = Field(1, ge=1, le=32, description="tokens that the placeholder stands for")
    split_key_value: bool = Field(
        default=True, description="separate tokens for keys and values; false: they share one"
    )
    stage_sampling: Literal["uniform", "stratified"] = Field(
        "uniform", description="timesteps of a step: uniform, or stratified over the stages"
    )
    detach_query: bool = Field(default=False, description="no gradient of the attention loss through the queries")
    token_norm_limit: float | None = Field(
        None, gt=0, description="maximum norm of a token, as a multiple of the class word's"
    )
    probe_every: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="steps between probes; the best tokens are kept, and learning stops when none are better",
    )
    patience: int = Field(3, ge=1, le=10_000, description="probes without improvement after which learning stops")
    class_word: str = Field("person", description="what the subject is, in a word or two")
    templates: tuple[str, ...] = Field(
        FACE_TEMPLATES, min_length=1, description="sentences to learn with, {} for the subject; split at semicolons"
    )
    # Options of the recipe (docs/recipe.md).
    rate_schedule: Literal["constant", "cosine"] = make_option(
        "constant", "learning rate over the steps: constant, or cosine, which falls to 0"
    )
    hold_norm: bool = make_option(
        default=False,
        description="steps only turn the tokens; their norm stays token_norm_limit (or 1) times the class word's",
    )
    token_average: float = make_option(
        0.0, "decay of the running mean of the tokens, which is the result; 0 takes the last", ge=0, lt=1
    )
    change_limit: float | None = make_option(
        None, "maximum distance of a token from its start at the least noise, in norms of the class word", gt=0
    )
    noise_freedom: float = make_option(1.0, "share of change_limit at the most noise", ge=0, le=1)
    attention_loss: Literal["difference", "hinge"] = make_option(
        "difference", "hinge: only the subject's words, what exceeds the class word's, outside the face"
    )
    attention_share: float | None = make_option(
        None, "in place of attention_weight: gradient on the keys as a share of the denoising loss's", gt=0
    )
    context_weight: float = make_option(
        0.0, "weight of a loss on how the name changes the other words of sentences with a context", ge=0
    )
    photo_words: str = make_option(
        "", "what else the photo shows, such as at the beach: ends every sentence to learn with"
    )
    outside_weight: float = make_option(1.0, "weight of the denoising error outside the face", ge=0, le=1)
    start: Literal["class", "encoder", "auto"] = make_option(
        "class",
        "where tokens start: the class word, or what a name encoder reads from the photo; auto: the latter if it can",
    )
    encoder: str | None = make_option(
        None,
        "file of the name encoder (`sefi encoder train`); none: the package's own, if it has one",
        json_schema_extra=NAMES_FILE,
    )
    person_steps: int = make_option(
        0, "further steps that make drawn faces more like the photo's, by a face recogniser", ge=0, le=10_000
    )
    compile: bool = make_option(
        default=False,
        description="compile the denoiser with torch.compile, used if its gradients match; takes minutes",
    )

    @model_validator(mode="after")
    def check_start(self) -> Self:
        """Check that there is something to learn, or an encoder that gives the tokens; refuse what has no effect."""
        if self.steps == 0 and self.start == "class":
            raise ValueError("steps of 0 learn nothing; they need start=encoder or start=auto")
        if self.encoder is not None and self.start == "class":
            raise ValueError("encoder has no effect without start=encoder or start=auto")
        if self.noise_freedom != 1 and self.change_limit is None and self.start != "auto":
            raise ValueError("noise_freedom has no effect without change_limit")
        if self.compile and self.attention_share is not None:
            raise ValueError("compile has no effect with attention_share, which needs each loss's gradient")
        return self

    @field_validator("templates")
    @classmethod
    def name_the_subject(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        """Check that every sentence has a place for the subject, and no other braces."""
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"the sentence {template!r} has no {{}} where the subject belongs")
            try:
                check_template(template.replace("{}", "<subject>"))
            except PromptError as error:
                raise ValueError(error.problem.rstrip(".")) from None
            if {"{", "}"} & set(template.replace("{}", "")):
                raise ValueError(f"the sentence {template!r} has braces that are no place for the subject")
        return templates

    @field_validator("photo_words")
    @classmethod
    def check_photo_words(cls, words: str) -> str:
        """Check that what the photo shows is said in plain words."""
        try:
            check_template(words)
        except PromptError as error:
            raise ValueError(error.problem.rstrip(".")) from None
        if {"<", ">", "{", "}"} & set(words):
            raise ValueError("it has brackets; write plain words")
        return words.strip()

    def list_sentences(self) -> list[str]:
        """List the sentences to learn with, {} for the subject, each with what else the photo shows."""
        return [f"{template} {self.photo_words}".strip() for template in self.templates]

    @field_validator("class_word")
    @classmethod
    def normalise_the_class_word(cls, word: str) -> str:
        """Return a class word in small letters and without spaces around it."""
        return normalise_class_word(word)


class ViewSettings(Section, frozen=True):
    """How random views of the one photo are made (Celeb Basis' recipe, which the paper follows)."""

    brightness: float = Field(0.2, ge=0, lt=1, description="largest change of a view's brightness")
    contrast: float = Field(0.2, ge=0, lt=1, description="largest change of its contrast")
    saturation: float = Field(0.2, ge=0, lt=1, description="largest change of its saturation")
    hue: float = Field(0.01, ge=0, le=0.5, description="largest change of its hue, in turns")
    flip: float = Field(0.5, ge=0, le=1, description="share of mirrored views")
    min_scale: float = Field(0.1, gt=0, le=1, description="smallest view, as a share of the canvas")
    max_scale: float = Field(1.0, gt=0, le=1, description="largest view, as a share of the canvas")
    aspect: float = Field(0.1, ge=0, lt=1, description="largest change of a view's proportions")
    canvas: Literal["black", "mean", "edge"] = Field(
        "black", description="what surrounds a small view: black, mean or edge"
    )
    crop_margin: float = Field(2.0, ge=1, description="side of the crop, times the face box's longer side")
    latent_pool: int = Field(
        0, ge=0, le=4096, description="views encoded once and drawn from; 0 encodes a fresh view every step"
    )
    pool_noise: Literal["fixed", "fresh"] = make_option(
        "fixed", "the autoencoder's noise on the latents of a pool: fixed, drawn with them, or fresh in every step"
    )

    @model_validator(mode="after")
    def check_scales(self) -> Self:
        """Check that the smallest scale is not above the largest."""
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is above max_scale {self.max_scale}")
        return self


LARGEST_STRENGTH = 2.0  # of an identity


class GenerateSettings(Section, frozen=True):
    """How images are generated: those of prompts, those that a probe scores, and class images."""

    steps: int = Field(50, ge=1, le=10_000, description="denoising steps, at most the model's own number of timesteps")
    guidance_scale: float = Field(7.5, ge=0, le=100, description="how strongly the prompt is followed")
    scheduler: Literal["ddim", "dpm++", "dpm++_karras", "dpm++_sde", "euler", "euler_a", "lcm"] = Field(
        "ddim",
        description="diffusers' DDIM, DPM-Solver++ 2M (plain, at Karras' noise levels, or SDE), Euler, Euler ancestral "
        "or the sampler of latent consistency models",
    )
    count: int = Field(1, ge=1, le=100_000, description="images per prompt")
    batch_size: int = Field(
        8, ge=1, le=1024, description="images generated at once; pixels may differ by one grey level"
    )
    identity_strength: float = Field(
        1.0, ge=0, le=LARGEST_STRENGTH, description="0 is the class word, 1 the learned person"
    )
    negative_prompt: str = Field("", description="what to avoid, in plain words")
    # Saved where they are given: settings of before there were these stay as they are, runs and trainings too.
    width: int | None = make_option(None, "width of an image in pixels; none is the trained size", ge=8, le=4096)
    height: int | None = make_option(None, "height of an image in pixels; none is the trained size", ge=8, le=4096)
    clip_skip: int | None = make_option(
        None, "layer of the text encoder: 1 or none is the usual one, 2 the one before it", ge=1, le=64
    )
    strength_path: Literal["line", "sphere"] = make_option(
        "line", "path from the class word to the learned tokens: line, or sphere, which keeps the norm"
    )
    separate_names: bool = make_option(
        default=True, description="encode each of several names with the class words of the others"
    )
    context_limit: float | None = make_option(
        None,
        "maximum change of the other words by a name (1 - cosine); lowers the strength for each prompt",
        gt=0,
        le=2,
    )


class Config(Section, frozen=True):
    """Settings of a method, frozen: those that every method has.

    A method with settings of its own derives from this class and adds sections; `config_type` of the method names the
    class. `sefi settings --preset NAME` lists every one with its value and meaning.

    `Config()` is the published recipe of SeFi-IDE (the preset `paper`), with five stages, key apart from value, and the
    attention loss; it is not what `sefi.learn` starts from, which is `DEFAULT`. So a preset of another method that
    leaves a setting out has SeFi-IDE's published value: begin with `ONE_TOKEN`, `ONE_SLOT` or `TRAINED_WEIGHTS`, which
    turn off what only SeFi-IDE has.

    Attributes:
        method: name of the method.
        explicit: where `learn.start` is auto, the settings that `override` has set to the value they had: that value
            holds wherever tokens start. Every other change is seen by its value.
    """

    method: str = "sefi"
    learn: LearnSettings = LearnSettings()  # pyright: ignore[reportCallIssue]
    views: ViewSettings = ViewSettings()  # pyright: ignore[reportCallIssue]
    generate: GenerateSettings = GenerateSettings()  # pyright: ignore[reportCallIssue]
    explicit: tuple[str, ...] = make_option((), "settings that hold wherever tokens start")

    @property
    def reads_face(self) -> bool:
        """Whether learning looks for a person's face in the square that is learned, however that was cut out."""
        learn = self.learn
        options = (learn.start != "class", learn.outside_weight != 1, learn.person_steps > 0)
        return is_person(learn.class_word) and (any(options) or learn.attention_loss == "hinge")


AnyConfig = TypeVar("AnyConfig", bound=Config)


def list_sections(kind: type[Config]) -> dict[str, type[Section]]:
    """Return the sections of a method's settings, by name."""
    kinds = {name: field.annotation for name, field in kind.model_fields.items()}
    return {name: one for name, one in kinds.items() if isinstance(one, type) and issubclass(one, Section)}


def list_setting_fields(kind: type[Config]) -> dict[str, "FieldInfo"]:
    """Return the fields of every setting, by `section.name`."""
    return {
        f"{section}.{name}": field
        for section, fields in list_sections(kind).items()
        for name, field in fields.model_fields.items()
    }


def list_setting_names(kind: type[Config] = Config) -> list[str]:
    """List every setting of a method as `section.name`."""
    return list(list_setting_fields(kind))


def list_file_settings(kind: type[Config]) -> list[str]:
    """List the settings of a method whose value names a file, as `section.name`."""
    return [name for name, field in list_setting_fields(kind).items() if field.json_schema_extra == NAMES_FILE]


def find_named_files(config: Config) -> dict[str, str]:
    """Return the file that each setting names, by `section.name`; those that name none are left out."""
    tree = dump_config(config)
    values = {
        name: tree[name.partition(".")[0]].get(name.partition(".")[2]) for name in list_file_settings(type(config))
    }
    return {name: value for name, value in values.items() if value is not None}


def shorten_file_settings(tree: Mapping[str, Any], names: Iterable[str] = FILE_SETTINGS) -> dict[str, Any]:
    """Return saved settings that name files without their folders: where they lie is nobody else's business.

    >>> shorten_file_settings({"basis": {"names": "/home/ada/names.txt", "components": 64}})
    {'basis': {'names': 'names.txt', 'components': 64}}
    """
    shortened = dict(tree)
    for section, last in (name.split(".", 1) for name in names):
        values = shortened.get(section)
        if isinstance(values, dict) and isinstance(named := values.get(last), str):
            # A path of Windows is cut at both kinds of slashes, wherever this runs.
            shortened[section] = {**values, last: PureWindowsPath(named).name}
    return shortened


def read_setting(config: Config, name: str) -> object:
    """Return the value of a setting by `section.name`."""
    section, _, last = name.partition(".")
    return getattr(getattr(config, section), last)


def describe_settings(kind: type[Config] = Config) -> dict[str, str]:
    """Describe every setting of a method, by `section.name`."""
    return {name: field.description or "" for name, field in list_setting_fields(kind).items()}


def select_settings(kind: type[Config], assignments: Iterable[str]) -> list[str]:
    """Select the assignments `section.name=value` whose setting a method has."""
    names = list_setting_names(kind)
    return [assignment for assignment in assignments if split_assignment(assignment)[0] in names]


def split_assignment(assignment: str) -> tuple[str, str]:
    """Split `section.name=value` into name and value.

    Raises:
        ConfigError: it has no equals sign.
    """
    name, equals, value = assignment.partition("=")
    if not equals:
        raise ConfigError(f"{assignment!r} is no assignment.", "Write it as section.name=value.")
    return name, value


def require_config(config: Config, kind: type[AnyConfig]) -> AnyConfig:
    """Return settings as those of a method, so that a type checker knows the sections that only this method has.

    Raises:
        ConfigError: they were made for another method.
    """
    if not isinstance(config, kind) or type(config) is not kind:
        raise ConfigError(
            f"The method {config.method!r} needs settings of the type {kind.__name__}, not {type(config).__name__}.",
            "Start from a preset of this method (`sefi methods`).",
        )
    return config


def parse_config(tree: dict[str, Any], kind: type[AnyConfig]) -> AnyConfig:
    """Parse a tree of plain values as a method's settings; `ConfigError` names the first fault."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(str(p) for p in fault["loc"])
        if fault["type"] == "extra_forbidden":
            raise make_unknown_setting_error(name, list_setting_names(kind)) from None
        value = "" if isinstance(fault["input"], dict) else f" = {fault['input']!r}"
        raise ConfigError(
            f"{name}{value}: {fault['msg'].removeprefix('Value error, ')}.", suggest_value(fault)
        ) from None


def suggest_value(fault: "ErrorDetails") -> str:
    """Return what to do about a value that pydantic refused: the choice that was meant, if it is near one."""
    if fault["type"] == NOT_UTF8:
        return "Type it in UTF-8, and rename a file whose name is not."
    choices = re.findall(r"'([^']*)'", str(fault.get("ctx", {}).get("expected", "")))
    if fault["type"] == "literal_error" and choices:
        near = find_nearest(str(fault["input"]), choices, SCHEDULER_ALIASES)
        if near is not None:
            return f"Did you mean {near!r}?"
    return "Give a value of the right kind and range."


def parse_saved_config(tree: dict[str, Any], kind: type[AnyConfig]) -> AnyConfig:
    """Return the settings that a file of this or an earlier version holds; missing ones have their defaults.

    Names that the method does not have are left out: earlier versions saved the sections of all methods, and later ones
    may know more. What they meant is not lost, the file still has them.

    Raises:
        ConfigError: a value is of the wrong kind or outside its range.
    """
    sections = {name: section.model_fields for name, section in list_sections(kind).items()}
    return parse_config(drop_other_names(tree, {"method": str, **sections}), kind)


def drop_other_names(tree: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved settings without the sections and names that other settings, or their fields, do not have.

    >>> drop_other_names({"learn": {"steps": 3, "stops": 4}, "tune": {}}, {"learn": {"steps": 5}})
    {'learn': {'steps': 3}}
    """
    shared = {name: value for name, value in tree.items() if name in other}
    for name, section in shared.items():
        inside: object = other[name]
        if isinstance(section, dict) and isinstance(inside, dict):
            shared[name] = {key: value for key, value in section.items() if key in inside}
    return shared


def dump_config(config: Config) -> dict[str, Any]:
    """Return a config as plain values, ready for JSON."""
    return config.model_dump(mode="json")


def make_unknown_setting_error(name: str, names: Sequence[str]) -> ConfigError:
    """Return the error for a name that does not exist, with the nearest that does."""
    return ConfigError(f"There is no setting {name!r}.", suggest_setting(name, names))


def check_guidance(settings: GenerateSettings, *, embeds_guidance: bool = False) -> None:
    """Refuse a negative prompt that has no effect.

    Args:
        embeds_guidance: the model takes the guidance scale as an input and makes one pass, without a negative text.

    Raises:
        ConfigError: with guidance of 1 or less, or on such a model, nothing uses the negative prompt.
    """
    if embeds_guidance:
        refuse_negative_prompt(settings.negative_prompt)
    if settings.negative_prompt.strip() and settings.guidance_scale <= 1:
        raise ConfigError(
            f"A negative prompt has no effect at a guidance scale of {settings.guidance_scale:g}.",
            "Use a guidance scale above 1, or leave the negative prompt out.",
        )


def refuse_negative_prompt(negative_prompt: str) -> None:
    """Refuse a negative prompt on a model that takes the guidance scale as an input, with `ConfigError`."""
    if negative_prompt.strip():
        raise ConfigError(
            "A negative prompt has no effect on this model, which takes the guidance scale as an input.",
            "Leave the negative prompt out, or use the base model of this one.",
        )


def explain_guidance(settings: GenerateSettings, *, embeds_guidance: bool = False) -> str | None:
    """Return a remark on a guidance scale that does not do what its number says, or None.

    Args:
        embeds_guidance: the model takes the guidance scale as an input, whatever it is.
    """
    if settings.guidance_scale >= 1 or embeds_guidance:
        return None
    return f"a guidance scale of {settings.guidance_scale:g} generates without guidance, exactly as 1 does"


def override(config: AnyConfig, assignments: Iterable[str]) -> AnyConfig:
    """Override settings of a config by `section.name=value` assignments, in order.

    Raises:
        ConfigError: there is no such setting, a value does not fit, or a setting has no effect with another one.
    """
    tree, fields = dump_config(config), list_setting_fields(type(config))
    names: list[str] = []
    for assignment in assignments:
        name, value = split_assignment(assignment)
        if name not in fields:
            raise make_unknown_setting_error(name, list(fields))
        section, _, last = name.partition(".")
        tree[section][last] = parse_assigned_value(fields[name].annotation, value)
        names.append(name)
    chosen = note_explicit_settings(parse_config(tree, type(config)), names)
    # Without `explicit`, the recipe from an encoder has a limit of its own.
    if "learn.change_limit" in chosen.explicit and chosen.learn.noise_freedom != 1:
        raise ConfigError(
            "learn.noise_freedom has no effect without learn.change_limit, which is none.", "Leave one of them out."
        )
    return chosen


def note_explicit_settings(config: AnyConfig, names: Iterable[str]) -> AnyConfig:
    """Return settings that tell which of some were set, as far as `choose_start` cannot see it by their values."""
    automatic = config.learn.start == "auto"
    set_ones = {*config.explicit, *(name for name in names if name in RECIPE_FROM_ENCODER)} if automatic else set()
    explicit = tuple(sorted(one for one in set_ones if read_setting(config, one) == read_setting(DEFAULT, one)))
    return config if explicit == config.explicit else config.model_copy(update={"explicit": explicit})


def parse_assigned_value(kind: object, value: str) -> object:
    """Parse a value as typed on a command line: lists split at semicolons, none to nothing, numbers among choices."""
    inside = get_args(kind)
    if get_origin(kind) in (tuple, list):
        return value.split(";")
    if get_origin(kind) is Literal and value.isdecimal() and any(isinstance(one, int) for one in inside):
        return int(value)
    return None if type(None) in inside and value.lower() in ("none", "null") else value


SettingsTree = dict[str, Any]
"""Settings by section, as in a TOML file; what is missing has the value of `Config()`: SeFi-IDE's published one."""

# Views that suit one photo on the embedded model: many samples a step from a pool that is encoded once.
EMBEDDED_VIEWS: SettingsTree = {"min_scale": 0.7, "aspect": 0.0, "canvas": "edge", "latent_pool": 64}
# No change of colour, size or proportions: the whole crop, and its mirror image.
PLAIN_VIEWS: SettingsTree = {
    "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "min_scale": 1.0, "aspect": 0.0,
}  # fmt: skip
# At the usual 7.5 the embedded model oversaturates; likeness and prompt fidelity are both better here.
EMBEDDED_GENERATION: SettingsTree = {"guidance_scale": 4.0}
# One token that is key and value; also turns off the stages and the attention loss.
ONE_SLOT: SettingsTree = {"stages": 1, "split_key_value": False, "attention_weight": 0.0}
# Tokens are free numbers that start at the class word, without the expansion module.
DIRECT: SettingsTree = {"expansion": "direct", "residual_init": True, "dropout": 0.0}
# Both: one token of free numbers for all stages. What presets of other methods than SeFi-IDE begin with.
ONE_TOKEN = ONE_SLOT | DIRECT
# For methods that train weights of the model: nothing of the tokens by stage, and sentences for a rare word.
TRAINED_WEIGHTS = ONE_TOKEN | {"templates": SHORT_TEMPLATES}


def make_embedded_preset(learn: SettingsTree, **sections: SettingsTree) -> SettingsTree:
    """Make a preset for the embedded model: these settings, with the views and the guidance that suit it.

    Rate and steps of the methods that learn tokens are from docs/results/sweep-in-scenes.md, of the others, with alpha,
    from docs/results/sweep-weights.md, its edges, and sweep-custom-diffusion.md.
    """
    views = EMBEDDED_VIEWS | sections.pop("views", {})
    generate = EMBEDDED_GENERATION | sections.pop("generate", {})
    return {"learn": learn, "views": views, "generate": generate, **sections}


PAPER = Config()
# How many steps there are from the class word, where `learn.start=auto` finds no encoder and steps are 0.
CLASS_STEPS = 200
# How learning goes on from what a name encoder reads: the suite `starts` takes it apart. Where noise is most, and the
# place of things is decided, the tokens stay what was read; nothing of the photo's background comes in there.
FROM_ENCODER: SettingsTree = {
    "learn": {
        "steps": 15,
        "hold_norm": True,
        "rate_schedule": "cosine",
        "change_limit": 0.5,
        "noise_freedom": 0.0,
        "attention_weight": 0.0,
        "attention_loss": "hinge",
    },
    # Two sides of a face differ: a mirrored one is somebody else.
    "views": {"latent_pool": 12, "flip": 0.0},
}
# Those of them that can be set to the default's own value; 0 steps mean that the start chooses them.
RECIPE_FROM_ENCODER = {f"{section}.{name}" for section, tree in FROM_ENCODER.items() for name in tree} - {"learn.steps"}
SCRATCH = parse_config(
    make_embedded_preset(
        {**DIRECT, "steps": CLASS_STEPS, "batch": 5, "stage_sampling": "stratified", "learning_rate": 5e-3}
    ),
    Config,
)
FAST = override(SCRATCH, ["learn.steps=100"])
DEFAULT = override(SCRATCH, ["learn.start=auto", "learn.steps=0"])
STARTING_PRESETS: dict[str, Config] = {"default": DEFAULT, "scratch": SCRATCH, "fast": FAST, "paper": PAPER}
"""The presets that are not named after a method; all are of the method that `Config` names, SeFi-IDE."""


def choose_start(config: AnyConfig, *, encoder: bool) -> AnyConfig:
    """Return settings in which `learn.start` says where tokens start, instead of auto.

    From an encoder learning goes on by a recipe of its own, but for the settings that somebody has set.

    >>> [choose_start(DEFAULT, encoder=found).learn.steps for found in (True, False)]
    [15, 200]

    Args:
        encoder: whether tokens can start at what a name encoder reads.

    Raises:
        ConfigError: a setting has no effect with those of the recipe.
    """
    learn = config.learn
    if learn.start != "auto":
        return config
    if not encoder:
        at_class: dict[str, Any] = {"start": "class", "steps": learn.steps or CLASS_STEPS, "encoder": None}
        if learn.change_limit is None:  # there is nothing to take a share of, and a saved share could not be read again
            at_class["noise_freedom"] = 1.0
        return config.model_copy(update={"learn": learn.model_copy(update=at_class), "explicit": ()})
    sections = {
        "learn": learn.model_copy(update={"start": "encoder", **choose_from_encoder(config, "learn")}),
        "views": config.views.model_copy(update=choose_from_encoder(config, "views")),
    }
    chosen = config.model_copy(update={**sections, "explicit": ()})
    return parse_config(dump_config(chosen), type(config))


def choose_from_encoder(config: Config, section: str) -> dict[str, Any]:
    """Choose of a section the settings that the recipe from an encoder has and that nobody has set."""
    unset = {
        name: value
        for name, value in FROM_ENCODER[section].items()
        if f"{section}.{name}" not in config.explicit
        and read_setting(config, f"{section}.{name}") == read_setting(DEFAULT, f"{section}.{name}")
    }
    if "learn.change_limit" in config.explicit:  # none: there is nothing to take a share of
        unset.pop("noise_freedom", None)
    return unset
