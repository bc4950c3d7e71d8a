"""Every knob as one frozen tree; unknown names are refused with the nearest match."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sefi.core.errors import ConfigError, PromptError
from sefi.core.hints import SCHEDULER_ALIASES, find_nearest, suggest_setting
from sefi.core.people import normalise_class_word
from sefi.core.prompt_syntax import check_syntax
from sefi.core.templates import FACE_TEMPLATES
from sefi.core.utf8 import is_utf8

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

NOT_UTF8 = "not_utf8"  # pydantic's type of our own error
OPTIONAL = ("token_norm_limit", "gradient_clip", "names", "weights")  # settings whose value may be none


class Section(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def refuse_halves(cls, value: object) -> object:
        """Every text is saved with the result, after the work: what no file can hold is refused before it."""
        texts = cast(Iterable[object], value) if isinstance(value, (list, tuple)) else (value,)
        if not all(is_utf8(text) for text in texts if isinstance(text, str)):
            raise PydanticCustomError(NOT_UTF8, "it is not UTF-8 text")
        return value


class LearnConfig(Section):
    """How an identity is learned. Defaults are the paper's values (section 4.1)."""

    steps: int = Field(1000, ge=1, description="optimiser steps")
    batch: int = Field(1, ge=1, description="samples per step")
    learning_rate: float = Field(5e-3, gt=0, description="AdamW's")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's; 0 is Adam")
    gradient_clip: float | None = Field(None, gt=0, description="longest gradient of a step, all weights together")
    attention_weight: float = Field(0.003, ge=0, description="lambda of the attention loss")
    attention_option: Literal[1, 2, 3] = Field(
        3, description="words it compares: 1 the placeholder, 2 the sentence, 3 all"
    )
    attention_reduction: Literal["sum", "mean"] = Field(
        "sum", description="sum or mean: of the attention loss, over words and places"
    )
    expansion: Literal["module", "direct"] = Field(
        "module", description="what gives the tokens: module, a network, or direct, free numbers"
    )
    residual_init: bool = Field(default=False, description="learn the difference to the class word, 0 at first")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the expansion module")
    stages: int = Field(5, ge=1, le=100, description="of denoising, each with its own tokens")
    vectors: int = Field(1, ge=1, le=32, description="tokens that the placeholder stands for")
    split_key_value: bool = Field(default=True, description="False: key and value share one token")
    stage_sampling: Literal["uniform", "stratified"] = Field(
        "uniform", description="timesteps of a step: uniform, or stratified over the stages"
    )
    detach_query: bool = Field(default=False, description="no gradient of the attention loss through the queries")
    token_norm_limit: float | None = Field(None, gt=0, description="times the class word's norm")
    probe_every: int = Field(
        0, ge=0, description="steps between looks at pictures; the best are kept, and learning stops when settled"
    )
    patience: int = Field(3, ge=1, description="looks without a better one after which learning is settled")
    class_word: str = Field("person", description="what the subject is, in one word")
    templates: tuple[str, ...] = Field(
        FACE_TEMPLATES, min_length=1, description="sentences to learn with, {} for the subject; split at semicolons"
    )

    @field_validator("templates")
    @classmethod
    def name_the_subject(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        """Every sentence needs a place for the subject, and no other braces."""
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"the sentence {template!r} has no {{}} where the subject belongs")
            try:
                check_syntax(template.replace("{}", "<subject>"))
            except PromptError as error:
                raise ValueError(error.problem.rstrip(".")) from None
            if {"{", "}"} & set(template.replace("{}", "")):
                raise ValueError(f"the sentence {template!r} has braces that are no place for the subject")
        return templates

    @field_validator("class_word")
    @classmethod
    def unify_the_class_word(cls, word: str) -> str:
        """Case and spaces around a class word mean nothing."""
        return normalise_class_word(word)


class ViewConfig(Section):
    """How random views of the one photo are made (Celeb Basis' recipe, which the paper follows)."""

    brightness: float = Field(0.2, ge=0, lt=1, description="most change of a view, as the next three")
    contrast: float = Field(0.2, ge=0, lt=1)
    saturation: float = Field(0.2, ge=0, lt=1)
    hue: float = Field(0.01, ge=0, le=0.5)
    flip: float = Field(0.5, ge=0, le=1, description="share of mirrored views")
    min_scale: float = Field(0.1, gt=0, le=1, description="smallest view, of the canvas")
    max_scale: float = Field(1.0, gt=0, le=1, description="largest view")
    aspect: float = Field(0.1, ge=0, lt=1, description="most change of a view's proportions")
    canvas: Literal["black", "mean", "edge"] = Field(
        "black", description="what surrounds a small view: black, mean or edge"
    )
    crop_margin: float = Field(2.0, ge=1, description="side of the crop, times the face box's longer side")
    latent_pool: int = Field(
        0, ge=0, description="views encoded once and drawn from; 0 encodes a fresh view every step"
    )

    @model_validator(mode="after")
    def order_the_scales(self) -> Self:
        """The range of scales must not be upside down."""
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is above max_scale {self.max_scale}")
        return self


class GenerateConfig(Section):
    """How pictures are made."""

    steps: int = Field(50, ge=1, description="of denoising, at most the model's own number of timesteps")
    guidance_scale: float = Field(7.5, ge=0, le=100, description="how hard the prompt pulls")
    scheduler: Literal["ddim", "dpm++", "euler"] = Field("ddim", description="diffusers' DDIM, DPM-Solver++ or Euler")
    count: int = Field(1, ge=1, description="pictures per prompt")
    batch_size: int = Field(8, ge=1, description="pictures at once; may change a pixel by one grey level")
    identity_strength: float = Field(1.0, ge=0, le=2, description="0 is the class word, 1 what was learned")
    negative_prompt: str = Field("", description="what to avoid, in plain words")


class TuneConfig(Section):
    """How a method changes the model's own weights: DreamBooth, its LoRA form, Custom Diffusion."""

    parts: Literal["unet", "unet+text", "key_value", "cross_attention"] = Field(
        "unet+text", description="what is trained: unet, unet+text, key_value or cross_attention"
    )
    identifier: str = Field(
        "sks", pattern=r"^[^<>{}]*[^<>{}\s][^<>{}]*$", description="rare word that is tied to the subject"
    )
    rank: int = Field(4, ge=1, le=256, description="of LoRA's matrices")
    prior_images: int = Field(200, ge=0, description="pictures of the plain class word that keep the class as it is")
    prior_weight: float = Field(1.0, ge=0, description="of those pictures in the loss")


class BasisConfig(Section):
    """The space of names that Celeb Basis learns in, and where Cross Initialization starts."""

    names: str | None = Field(None, description="text file, a name a line; none: the embedded model's characters")
    components: int = Field(512, ge=1, description="most principal components; fewer where the names span fewer")


class ComposeConfig(Section):
    """FastComposer: what it learned once for all subjects, and when the subject comes in."""

    weights: str | None = Field(None, description="its trained weights; none: the embedded model's")
    alpha: float = Field(0.7, ge=0, le=1, description="share of the steps, the last ones, that know the subject")


class Config(Section):
    """All settings, frozen; `sefi settings` lists every one with its value and meaning."""

    method: str = "sefi"
    learn: LearnConfig = LearnConfig()  # pyright: ignore[reportCallIssue]
    views: ViewConfig = ViewConfig()  # pyright: ignore[reportCallIssue]
    tune: TuneConfig = TuneConfig()  # pyright: ignore[reportCallIssue]
    basis: BasisConfig = BasisConfig()  # pyright: ignore[reportCallIssue]
    compose: ComposeConfig = ComposeConfig()  # pyright: ignore[reportCallIssue]
    generate: GenerateConfig = GenerateConfig()  # pyright: ignore[reportCallIssue]


SECTIONS: dict[str, type[Section]] = {
    "learn": LearnConfig,
    "views": ViewConfig,
    "tune": TuneConfig,
    "basis": BasisConfig,
    "compose": ComposeConfig,
    "generate": GenerateConfig,
}


def from_dict(tree: dict[str, Any]) -> Config:
    """A tree of plain values checked into a `Config`; `ConfigError` names the first fault."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(p) for p in fault["loc"])
        if fault["type"] == "extra_forbidden":
            raise unknown(place) from None
        given = "" if isinstance(fault["input"], dict) else f" = {fault['input']!r}"
        raise ConfigError(
            f"{place}{given}: {fault['msg'].removeprefix('Value error, ')}.", suggest_value(fault)
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


def from_saved(tree: dict[str, Any]) -> Config:
    """Return the settings that a file of this or an earlier version holds; missing ones have their defaults.

    Names that this version does not know are left out: what they meant is not lost, the file still has them.

    Raises:
        ConfigError: a value is of the wrong kind or outside its range.
    """
    known: dict[str, Any] = {}
    for name in Config.model_fields.keys() & tree.keys():
        branch, section = tree[name], SECTIONS.get(name)
        if section is not None and isinstance(branch, dict):
            branch = {key: value for key, value in branch.items() if key in section.model_fields}
        known[name] = branch
    return from_dict(known)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, ready for JSON."""
    return config.model_dump(mode="json")


def names() -> list[str]:
    """Every setting as `section.name`."""
    return ["method", *described()]


def described() -> dict[str, str]:
    """Every setting of a section, `section.name`, to what it means."""
    return {
        f"{section}.{name}": field.description or ""
        for section, kind in SECTIONS.items()
        for name, field in kind.model_fields.items()
    }


def unknown(name: str) -> ConfigError:
    """The error for a name that does not exist, with the nearest that does."""
    return ConfigError(f"There is no setting {name!r}.", suggest_setting(name, names()))


def check_guidance(config: GenerateConfig) -> None:
    """Refuse a negative prompt that no step would look at.

    Raises:
        ConfigError: guidance of 1 or less draws without the negative prompt.
    """
    if config.negative_prompt.strip() and config.guidance_scale <= 1:
        raise ConfigError(
            f"A negative prompt has no effect at a guidance scale of {config.guidance_scale:g}.",
            "Use a guidance scale above 1, or leave the negative prompt out.",
        )


def explain_guidance(config: GenerateConfig) -> str | None:
    """Return a remark on a guidance scale that does not do what its number says, or None."""
    if config.guidance_scale >= 1:
        return None
    return f"a guidance scale of {config.guidance_scale:g} draws without guidance, exactly as 1 does"


def override(config: Config, assignments: Iterable[str]) -> Config:
    """The config with `section.name=value` assignments applied, in order."""
    tree = to_dict(config)
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r} is no assignment.", "Write it as section.name=value.")
        if name not in names():
            raise unknown(name)
        *path, last = name.split(".")
        branch = tree
        for part in path:
            branch = cast(dict[str, Any], branch[part])
        branch[last] = plain(last, value)
    return from_dict(tree)


def plain(name: str, value: str) -> object:
    """Text as typed on a command line to what validation expects: lists split at semicolons, none to nothing."""
    if name == "templates":
        return value.split(";")
    if name == "attention_option" and value.isdigit():
        return int(value)
    return None if name in OPTIONAL and value.lower() in ("none", "null") else value
