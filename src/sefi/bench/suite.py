"""A suite: which subjects, ways, prompts and seeds are compared, read from TOML and checked."""

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sefi.bench.slots import slots_named
from sefi.core.config import Config, Section, check_guidance, override
from sefi.core.errors import ConfigError, PromptError
from sefi.core.hints import suggest
from sefi.core.presets import preset_named
from sefi.core.prompt_syntax import check_syntax
from sefi.core.reading import LimitError, check_values, file_errors, read_text

BUNDLED = "sefi.bench"
Control = Literal["class word", "photo", "same", "other"]


Text = Annotated[str, Field(max_length=2000)]
Label = Annotated[str, Field(max_length=200)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
LONGEST_SLUG = 80  # letters: two subjects, prompt and seed stand beside it in the names of files
LARGEST_SUITE, LONGEST_LINE = 2**18, 2**13  # bytes, and letters: tomllib takes time by the square of a key's length


class Asked(Section):
    """One prompt.

    Attributes:
        text: the sentence, `{}` for every subject in it.
        kind: what it asks for: scene, action, attribute, style, combination, ...
        wanted: what a reader must see, as (kind, label); empty where no reader is asked.
    """

    text: Text
    kind: Label
    wanted: tuple[tuple[Label, Label], ...] = Field((), max_length=50)


class Way(Section):
    """One way to answer the prompts.

    Attributes:
        settings: what differs from the preset, as `learn.steps=100`.
        learned_by: label of the way whose identity is used; None learns one.
        class_slots: slots that hold the class word instead (the paper's Figure 5): `K` and `V` for every stage, `3` for
            both of a stage, `3K` for one.
        strength: 0 is the class word, once however many tokens were learned; 1 what was learned.
        control: an anchor that learns nothing: the plain class word, the photo pasted, another picture of the same
            subject, another subject's photo.
    """

    label: Label
    about: Text = ""
    preset: Label = "default"
    settings: tuple[Text, ...] = Field((), max_length=200)
    learned_by: Label | None = None
    class_slots: tuple[Label, ...] = Field((), max_length=400)
    strength: float = Field(1.0, ge=0, le=2)
    control: Control | None = None


class Suite(Section):
    """A whole comparison.

    Attributes:
        settings: what every way gets on top of its preset and below its own settings.
        seeds: of the pictures; each prompt is drawn once a seed.
        subjects: how many drawn ones, and the number of the first, where no photographs are given.
        together: how many subjects share a picture.
        kind: what the drawn subjects are: person, or cat, dog or bear; also their class word.
        photos: what the drawn people are learned from: a plain portrait, or a photo in a scene with something in the
            hand, compared with a second photo of the same person in another scene.
        attention: also measure where the placeholder looks; one picture at a time, so slower.
    """

    name: str = Field(max_length=300)
    about: Text
    prompts: tuple[Asked, ...] = Field(min_length=1, max_length=2000)
    ways: tuple[Way, ...] = Field(min_length=1, max_length=200)
    settings: tuple[Text, ...] = Field((), max_length=200)
    seeds: tuple[Seed, ...] = Field((100, 101), min_length=1, max_length=2000)
    subjects: int = Field(4, ge=1, le=10_000)
    first: int = Field(0, ge=0, le=10**9)
    together: int = Field(1, ge=1, le=2)
    kind: Label = "person"
    photos: Literal["plain", "scene"] = "plain"
    attention: bool = False

    @model_validator(mode="after")
    def check_ways(self) -> Self:
        """Labels differ, and an identity comes from a way that learns one."""
        names = [slug(way.label) for way in self.ways]
        for way, name in zip(self.ways, names, strict=True):
            if not name or names.count(name) > 1:
                raise ValueError(f"two ways are called {way.label!r}, or their files would be")
            if len(name) > LONGEST_SLUG:
                raise ValueError(f"the label {way.label!r} is too long for the names of files")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is given twice")
        learning = {w.label for w in self.ways if w.control is None and w.learned_by is None}
        for way in self.ways:
            if way.learned_by is not None and way.learned_by not in learning:
                raise ValueError(f"{way.label!r} uses the identity of {way.learned_by!r}, which no way learns")
            if way.learned_by is not None and any(not s.startswith("generate.") for s in way.settings):
                raise ValueError(f"{way.label!r} learns nothing, so its settings of learning would be of no use")
        return self

    @model_validator(mode="after")
    def check_photos(self) -> Self:
        """Refuse photos in scenes of animals: only people are drawn in them."""
        if self.photos == "scene" and self.kind != "person":
            raise ValueError(f"photos in scenes are drawn of people only, not of a {self.kind}")
        return self

    @model_validator(mode="after")
    def check_prompts(self) -> Self:
        """Every prompt has a place for each of the subjects that share a picture."""
        for asked in self.prompts:
            if asked.text.count("{}") != self.together:
                raise ValueError(f"the prompt {asked.text!r} needs {{}} {self.together} times")
            if {"{", "}"} & set(asked.text.replace("{}", "")):
                raise ValueError(f"the prompt {asked.text!r} has braces that are no place for a subject")
            try:
                check_syntax(asked.text.replace("{}", "<subject>"))
            except PromptError as error:
                raise ValueError(error.problem.rstrip(".")) from None
        return self

    def config(self, way: Way) -> Config:
        """The settings of one way."""
        return override(preset_named(way.preset), [f"learn.class_word={self.kind}", *self.settings, *way.settings])

    def with_settings(self, settings: Sequence[str]) -> "Suite":
        """This suite with more settings for every way: above those of the suite, below the way's own.

        Raises:
            ConfigError: as `check`.
        """
        more = self.model_copy(update={"settings": (*self.settings, *settings)})
        more.check()
        return more

    def check(self) -> None:
        """Refuse settings and slots that would only be refused after hours.

        Raises:
            ConfigError: a preset, setting or slot that does not exist, or what the way's method does not have.
        """
        from sefi.methods import get_method, is_of_tokens  # noqa: PLC0415  listing suites loads no torch

        for way in self.ways:
            method = self.config(self.learner(way)).method
            if not is_of_tokens(method) and (way.class_slots or way.strength != 1.0 or self.attention):
                raise ConfigError(
                    f"{way.label!r}: {method} has no tokens, so no slots, strength or attention of them.",
                    "Leave them out, or take another method.",
                )
            if self.together > 1 and get_method(method).info.alone:
                raise ConfigError(
                    f"{way.label!r}: {method} has one subject in a prompt, and {self.together} share a picture here.",
                    "Take another method.",
                )
            # The slots are those of the identity that is changed: its learner's.
            check_guidance(self.config(way).generate)
            slots_named(way.class_slots, self.config(self.learner(way)).learn.stages)

    def learner(self, way: Way) -> Way:
        """The way whose identity this one uses."""
        return next(w for w in self.ways if w.label == (way.learned_by or way.label))

    def learners(self) -> list[Way]:
        """The ways that learn something, each once."""
        return [way for way in self.ways if way.control is None and way.learned_by is None]


def bundled() -> dict[str, str]:
    """Every bundled suite and what it is about."""
    found = sorted(f.name for f in folder("suites").iterdir() if f.name.endswith(".toml"))
    return {name.removesuffix(".toml"): parsed(folder("suites") / name)["about"] for name in found}


def open_suite(name: str | Path) -> Suite:
    """A bundled suite by its name, or a TOML file.

    Raises:
        ConfigError: there is no such suite, or something in it is wrong.
    """
    path = folder("suites") / f"{name}.toml" if str(name) in bundled() else Path(name)
    with file_errors(path, ConfigError, "is no suite", "Mend the suite."):
        if not path.is_file():
            raise ConfigError(
                f"There is no suite {str(name)!r}.",
                suggest(str(name), bundled()).rstrip(".") + ", or name a TOML file.",
            )
        tree = parsed(path)
        lists = tree.pop("prompt_lists", [])
        own = [{"kind": "own", **p} if isinstance(p, dict) else p for p in tree.pop("prompts", [])]
        prompts = [prompt for listed in lists for prompt in prompt_list(str(listed))] + own
        suite = Suite.model_validate({"name": Path(path.name).stem, **tree, "prompts": prompts})
    suite.check()
    return suite


def prompt_list(name: str) -> list[dict[str, Any]]:
    """A bundled list of prompts.

    Raises:
        ConfigError: there is none of this name.
    """
    there = sorted(f.name.removesuffix(".toml") for f in folder("prompts").iterdir() if f.name.endswith(".toml"))
    if name not in there:
        raise ConfigError(f"There is no list of prompts {name!r}.", suggest(name, there))
    return parsed(folder("prompts") / f"{name}.toml")["prompts"]


def slug(label: str) -> str:
    """A label as part of a file name.

    >>> slug("one token, 500 steps")
    'one-token-500-steps'
    """
    return "-".join("".join(c if c.isascii() and (c.isalnum() or c == ".") else " " for c in label.lower()).split())


def folder(name: str) -> Traversable:
    """A folder of the package's data."""
    return files(BUNDLED).joinpath(name)


def parsed(path: Path | Traversable) -> dict[str, Any]:
    """A TOML file as plain values; `ConfigError` if it is none."""
    with file_errors(path, ConfigError, "is no TOML file", "Mend it."):
        text = read_text(path, LARGEST_SUITE) if isinstance(path, Path) else path.read_text(encoding="utf-8")
        if max(map(len, text.splitlines()), default=0) > LONGEST_LINE:
            raise LimitError(f"a line has more than {LONGEST_LINE} letters")
        tree = tomllib.loads(text)
        check_values(tree)
        return tree
