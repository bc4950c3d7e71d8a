"""What a rater chose: the files that the study's page saves, checked."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sefi.core.errors import ConfigError
from sefi.core.reading import file_errors, read_json

MOST_ANSWERS = 10_000
Label = Annotated[str, Field(max_length=300)]
REMEDY = "Name the answers.json files that the study's page saved."


class Strict(BaseModel):
    """A part of the file: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Answer(Strict):
    """One choice.

    Attributes:
        question: prompt, identity or quality.
        comparison: Its name in the study.
        order: Letters in the order of the screen.
        chosen: One of them.
        milliseconds: From the screen's showing to the choice.
    """

    question: Literal["prompt", "identity", "quality"]
    comparison: Label
    order: list[Label] = Field(min_length=2, max_length=26)
    chosen: Label
    milliseconds: int = Field(ge=0, le=10**10)

    @model_validator(mode="after")
    def check_chosen(self) -> Self:
        """What was chosen was shown."""
        if self.chosen not in self.order:
            raise ValueError(f"{self.comparison}: {self.chosen!r} was not shown")
        return self


class Key(Strict):
    """What the letters stand for, and the right letter of every attention check."""

    ways: dict[Label, Label] = Field(min_length=2, max_length=26)
    checks: dict[Label, Label] = Field(max_length=MOST_ANSWERS)


class Sheet(Strict):
    """One rater's answers to one study."""

    schema_number: Literal[1] = Field(alias="schema")
    study: Label
    rater: Label
    answers: list[Answer] = Field(max_length=MOST_ANSWERS)
    key: Key

    @model_validator(mode="after")
    def check_answers(self) -> Self:
        """Nothing is answered twice, and only checks show a letter that is no way's."""
        counts = Counter(one.comparison for one in self.answers)
        for one in self.answers:
            if counts[one.comparison] > 1:
                raise ValueError(f"{one.comparison} is answered twice")
            if one.comparison not in self.key.checks and not set(one.order) <= self.key.ways.keys():
                raise ValueError(f"{one.comparison} shows a letter that is no way's")
        return self


def read_sheets(paths: Sequence[Path]) -> list[Sheet]:
    """The answers of one study, one file a rater.

    Raises:
        ConfigError: A file is none of a study's page, they are of different studies, or a rater comes twice.
    """
    sheets = [read_sheet(path) for path in paths]
    raters: dict[str, Path] = {}
    for path, sheet in zip(paths, sheets, strict=True):
        if (sheet.study, sheet.key) != (sheets[0].study, sheets[0].key):
            raise ConfigError(f"{path} and {paths[0]} are of different studies.", "Analyse each study by itself.")
        if sheet.rater in raters:
            problem = f"{path} and {raters[sheet.rater]} are of the same rater."
            raise ConfigError(problem, "Name one file for every rater.")
        raters[sheet.rater] = path
    return sheets


def read_sheet(path: Path) -> Sheet:
    """One file.

    Raises:
        ConfigError: It cannot be read, or is not what the study's page saves.
    """
    with file_errors(path, ConfigError, "holds no answers", REMEDY):
        return Sheet.model_validate(read_json(path))
