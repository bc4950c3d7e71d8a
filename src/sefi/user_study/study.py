"""Design a study: comparisons and attention checks, drawn from a run with a seed; read the answers of its raters."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sefi.benchmark.records import PromptInfo, RunInfo, Sample, name_photo, read_earlier_key, split_group
from sefi.core.errors import ConfigError
from sefi.core.reading import read_json, translate_file_errors
from sefi.core.text import dump_json

QUESTIONS = {  # the paper's three (section 4.1), in the order in which they are asked
    "prompt": "Which image matches the prompt best?",
    "identity": "Which image shows the {class_word} of the photo?",
    "quality": "Which image looks best?",
}
CODES = "ABCDEF"  # a variant's letter in the page and in the answers
# Prompts that differ in nothing else ask for the same.
WORDS_OF_ANY_PROMPT = {"a", "an", "the", "photo", "picture", "image", "portrait", "of", "in", "on", "at", "with", "and"}
PHOTO = "X"  # the letter of the photo itself, where a check puts it among the images

Case = tuple[str, int, int]  # subject, prompt, seed


@dataclass(frozen=True)
class StudyOptions:
    """How much is asked, and of what.

    Attributes:
        variants: Labels of two to six variants; empty takes every variant that is no reference row.
        count: Comparisons of every question; fewer where the run has fewer.
        checks: Attention checks within the prompt question, and as many within the identity question. Twelve in all
            separate a blind rater (of two images, half are passed by chance) from one who slips once in twenty.
        seed: Decides what is drawn, the letters and every order.
    """

    variants: tuple[str, ...] = ()
    count: int = 20
    checks: int = 6
    seed: int = 0


@dataclass(frozen=True)
class Choice:
    """One image to choose: the letter it is counted under, and its file from the run's folder."""

    code: str
    file: str


@dataclass(frozen=True)
class StudyComparison:
    """One screen: images of one subject, prompt and seed, one of each variant.

    Attributes:
        name: Names it in the answers; checks are named like all others.
        question: prompt, identity or quality.
        prompt: The prompt as it was sent; only the prompt question shows it.
        photos: Files of what was learned; only the identity question shows them.
        shown: In the order of the screen.
        right: The letter that an attentive rater chooses; None where there is no right and wrong.
    """

    name: str
    question: str
    prompt: str | None
    photos: tuple[str, ...]
    shown: tuple[Choice, ...]
    right: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every image that the screen needs."""
        return (*self.photos, *(one.file for one in self.shown))


@dataclass(frozen=True)
class SamplePool:
    """What comparisons are drawn from: samples by case and variant, the variants' letters, the suite's prompts."""

    cases: Mapping[Case, Mapping[str, Sample]]
    codes: Mapping[str, str]
    prompts: Sequence[PromptInfo]

    def is_unrelated(self, prompt: int, other: int) -> bool:
        """Return whether images of another prompt are surely wrong answers to this one.

        They are where readers look for something here, and for nothing of it in the other. "A photo of {}" wants
        nothing that its own images alone show. Where nothing says what readers look for, as with prompts of one's own
        and with sentences that readers do not understand, the words decide: the two share none.
        """
        here, there = self.prompts[prompt], self.prompts[other]
        if any(one.wanted for one in self.prompts):
            if not here.wanted or set(here.wanted) & set(there.wanted):
                return False
            if there.wanted:
                return True
        words = find_content_words(here.text)
        return bool(words) and not words & find_content_words(there.text)


@dataclass(frozen=True)
class Study:
    """Everything that one page asks.

    Attributes:
        name: Twelve hex digits that differ where anything asked differs.
        questions: The questions in words.
        variants: Letter to label.
        comparisons: In the order of asking.
    """

    name: str
    questions: Mapping[str, str]
    variants: Mapping[str, str]
    comparisons: tuple[StudyComparison, ...]

    @property
    def checks(self) -> dict[str, str]:
        """The right letter of every attention check."""
        return {one.name: one.right for one in self.comparisons if one.right is not None}


def design_study(run: RunInfo, samples: Sequence[Sample], study_options: StudyOptions) -> Study:
    """Draw a study from a run.

    Every question has its own draw of cases, subjects in turn, so that changing one changes no other.

    Args:
        run: What `run.json` says.
        samples: What `cells.jsonl` says.
        study_options: How much is asked.

    Raises:
        ConfigError: There are no images, a variant is unknown, fewer than two or more than six are compared, or no
            subject, prompt and seed has an image of every variant.
    """
    if not samples:
        raise ConfigError("The run has no images.", "Let `sefi bench run` finish first.")
    variants = choose_variants(run, study_options.variants)
    chance = np.random.default_rng([study_options.seed, len(QUESTIONS)])
    letters = {code: variants[int(n)] for code, n in zip(CODES, chance.permutation(len(variants)), strict=False)}
    codes = {variant: code for code, variant in letters.items()}
    pool = SamplePool(group_samples(samples, variants), codes, run.suite.prompts)
    blocks = [draw_comparisons(pool, study_options, question) for question in QUESTIONS]
    comparisons = tuple(comparison for part in blocks for comparison in part)
    return Study(hash_study(pool, comparisons), word_questions(run), letters, comparisons)


def find_content_words(text: str) -> set[str]:
    """Return the words of a prompt that say what an image shows.

    >>> sorted(find_content_words("A photo of {}, at the beach"))
    ['beach']
    """
    return set(re.findall(r"[^\W_]+", text.casefold())) - WORDS_OF_ANY_PROMPT


def choose_variants(run: RunInfo, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that were asked for, or every variant that is no reference row.

    Raises:
        ConfigError: A label is unknown or a reference row that is a photograph (its image follows no prompt, and it
            would answer the identity question), or there are fewer than two or more than six.
    """
    generated = {variant.label: variant.control for variant in run.suite.variants if variant.is_generated}
    choices = ", ".join(generated)
    unknown = [label for label in labels if label not in generated]
    if unknown:
        raise ConfigError(f"The run has no variant '{unknown[0]}' to compare.", f"It has {choices}.")
    variants = tuple(dict.fromkeys(labels)) or tuple(label for label, control in generated.items() if control is None)
    if not 2 <= len(variants) <= len(CODES):
        problem = f"A comparison shows two to {len(CODES)} variants, and here is {len(variants)}."
        raise ConfigError(problem, f"Name some with --variants LABEL, several times; the run has {choices}.")
    return variants


def group_samples(samples: Sequence[Sample], variants: Sequence[str]) -> dict[Case, dict[str, Sample]]:
    """Return the samples by case and variant, of cases that have an image of every variant.

    Raises:
        ConfigError: There is no such case.
    """
    by_case: dict[Case, dict[str, Sample]] = {}
    for sample in samples:
        if sample.variant in variants:
            by_case.setdefault((sample.subject, sample.prompt, sample.seed), {})[sample.variant] = sample
    whole = {case: by_case[case] for case in sorted(by_case) if len(by_case[case]) == len(variants)}
    if not whole:
        problem = f"No subject, prompt and seed has an image of each of {', '.join(variants)}."
        raise ConfigError(problem, "Let `sefi bench run` finish, or name fewer with --variants.")
    return whole


def word_questions(run: RunInfo) -> dict[str, str]:
    """Return the questions with the word for what was learned (a person, a cat); an image of two has two photos."""
    photo = "each photo" if run.suite.together > 1 else "the photo"
    class_word = run.suite.class_word
    return {name: text.format(class_word=class_word).replace("the photo", photo) for name, text in QUESTIONS.items()}


def draw_comparisons(pool: SamplePool, study_options: StudyOptions, question: str) -> list[StudyComparison]:
    """Draw all comparisons of one question, its checks at random places among them but never first."""
    chance = np.random.default_rng([study_options.seed, list(QUESTIONS).index(question)])
    cases = shuffle_cases(sorted(pool.cases), chance)
    chosen, spare = cases[: study_options.count], cases[study_options.count :]
    comparisons = [make_comparison(pool, case, question, chance) for case in chosen]
    possible = chain.from_iterable(make_checks(pool, some, question, chance) for some in (spare, chosen))
    for check in islice(possible, study_options.checks):
        comparisons.insert(int(chance.integers(1, len(comparisons) + 1)), check)
    return [replace(one, name=f"{question}-{number}") for number, one in enumerate(comparisons, start=1)]


def shuffle_cases(cases: Sequence[Case], chance: np.random.Generator) -> list[Case]:
    """Return the cases in random order, such that any beginning has every subject equally often, give or take one."""
    turns: Counter[str] = Counter()
    ranked: list[tuple[int, Case]] = []
    for number in chance.permutation(len(cases)):
        case = cases[number]
        ranked.append((turns[case[0]], case))
        turns[case[0]] += 1
    return [case for _, case in sorted(ranked, key=lambda pair: pair[0])]


def make_comparison(pool: SamplePool, case: Case, question: str, chance: np.random.Generator) -> StudyComparison:
    """Return one image of each variant, without a right answer."""
    files = {pool.codes[variant]: sample.image for variant, sample in pool.cases[case].items()}
    return arrange_images(pool, case, question, files, chance)


def arrange_images(
    pool: SamplePool, case: Case, question: str, files: Mapping[str, str], chance: np.random.Generator
) -> StudyComparison:
    """Return images in random order, with what the question shows next to them."""
    letters = sorted(files)
    shown = tuple(Choice(letters[n], files[letters[n]]) for n in chance.permutation(len(letters)))
    text = next(iter(pool.cases[case].values())).text if question == "prompt" else None
    photos = list_photos(case[0]) if question == "identity" else ()
    return StudyComparison("", question, text, photos, shown)


def list_photos(group: str) -> tuple[str, ...]:
    """Return the files of what was learned: one photo, or one of each where two (`ada+bob`) share the images."""
    return tuple(name_photo(subject) for subject in split_group(group))


def make_checks(
    pool: SamplePool, cases: Sequence[Case], question: str, chance: np.random.Generator
) -> Iterator[StudyComparison]:
    """Yield the checks that a question can have in these cases, the clearest prompts first; quality has none."""
    if question not in CHECK_MAKERS:
        return
    clear = sorted(cases, key=lambda case: rate_case(pool, case), reverse=True) if question == "prompt" else cases
    for case in clear:
        check = CHECK_MAKERS[question](pool, case, chance)
        if check is not None:
            yield check


def make_prompt_check(pool: SamplePool, case: Case, chance: np.random.Generator) -> StudyComparison | None:
    """Return the prompt's image of the clearest variant among the others' images of a prompt that wants something else.

    Differs: a check with a single wrong image would be passed by nearly every careless rater; here one answer of all
    is right.
    """
    samples = pool.cases[case]
    subject, prompt, _ = case
    others = [other for other in pool.cases if other[0] == subject and other[1] != prompt]
    unrelated_cases = [other for other in others if pool.is_unrelated(prompt, other[1])]
    if not unrelated_cases:
        return None
    other_samples = pool.cases[unrelated_cases[int(chance.integers(len(unrelated_cases)))]]
    clearest = max(samples, key=lambda variant: rate_sample(samples[variant]))
    files = {
        pool.codes[variant]: (samples if variant == clearest else other_samples)[variant].image for variant in samples
    }
    return replace(arrange_images(pool, case, "prompt", files, chance), right=pool.codes[clearest])


def make_identity_check(pool: SamplePool, case: Case, chance: np.random.Generator) -> StudyComparison | None:
    """Return the photo itself among the images, in place of one; None where an image shows two subjects."""
    if len(list_photos(case[0])) > 1:
        return None
    files = {pool.codes[variant]: sample.image for variant, sample in pool.cases[case].items()}
    del files[sorted(files)[int(chance.integers(len(files)))]]
    files[PHOTO] = list_photos(case[0])[0]
    return replace(arrange_images(pool, case, "identity", files, chance), right=PHOTO)


CHECK_MAKERS: dict[str, Callable[[SamplePool, Case, np.random.Generator], StudyComparison | None]] = {
    "prompt": make_prompt_check,
    "identity": make_identity_check,
}


def rate_sample(sample: Sample) -> tuple[bool, float]:
    """Return how surely an image shows what its prompt wants: what readers say first, then the prompt score."""
    shown, score = sample.shown, sample.prompt_score
    return bool(shown) and all(shown), -1.0 if score is None else float(score)


def rate_case(pool: SamplePool, case: Case) -> tuple[bool, float]:
    """Return how surely the best image of a case shows what its prompt wants."""
    return max(rate_sample(sample) for sample in pool.cases[case].values())


def hash_study(pool: SamplePool, comparisons: Sequence[StudyComparison]) -> str:
    """Return a name for exactly these questions about exactly these images."""
    images = [sample.sha256 for by_variant in pool.cases.values() for sample in by_variant.values()]
    content = dump_json([dict(pool.codes), [asdict(one) for one in comparisons], sorted(images)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


MOST_ANSWERS = 10_000
Label = Annotated[str, Field(max_length=300)]
REMEDY = "Name the answers.json files that the study's page saved."


class AnswerPart(BaseModel):
    """A part of the file: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Answer(AnswerPart):
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
        """Check that what was chosen was shown, and that nothing was shown twice: each place is a win over it."""
        if self.chosen not in self.order:
            raise ValueError(f"{self.comparison}: {self.chosen!r} was not shown")
        if len(set(self.order)) < len(self.order):
            raise ValueError(f"{self.comparison} shows a letter twice")
        return self


class AnswerKey(AnswerPart):
    """What the letters stand for, the right letter of every attention check, and what is asked.

    Attributes:
        comparisons: Names of all, checks included; None in files of earlier versions.
    """

    variants: Annotated[dict[Label, Label], read_earlier_key("variants", "ways")] = Field(min_length=2, max_length=26)
    checks: dict[Label, Label] = Field(max_length=MOST_ANSWERS)
    comparisons: list[Label] | None = Field(None, max_length=MOST_ANSWERS)


class AnswerFile(AnswerPart):
    """One rater's answers to one study."""

    schema_number: Literal[1] = Field(alias="schema")
    study: Label
    rater: Label
    answers: list[Answer] = Field(max_length=MOST_ANSWERS)
    key: AnswerKey

    @model_validator(mode="after")
    def check_answers(self) -> Self:
        """Check that nothing is answered twice, and that all but checks show every variant and nothing else."""
        counts = Counter(one.comparison for one in self.answers)
        for one in self.answers:
            if counts[one.comparison] > 1:
                raise ValueError(f"{one.comparison} is answered twice")
            if one.comparison in self.key.checks:
                continue
            if not set(one.order) <= self.key.variants.keys():
                raise ValueError(f"{one.comparison} shows a letter that is no variant's")
            if len(one.order) < len(self.key.variants):
                raise ValueError(f"{one.comparison} does not show every variant")
        return self


def read_answer_files(paths: Sequence[Path]) -> list[AnswerFile]:
    """Return the answers of one study, one file a rater.

    Raises:
        ConfigError: A file is none of a study's page, they are of different studies, a rater comes twice, or an answer
            is to nothing that the study asks.
    """
    sheets = [read_answer_file(path) for path in paths]
    # Pages of earlier versions named no comparisons; their raters were asked the same as those of a page that does.
    asked = next((sheet.key.comparisons for sheet in sheets if sheet.key.comparisons is not None), None)
    raters: dict[str, Path] = {}
    for path, sheet in zip(paths, sheets, strict=True):
        if not is_same_study(sheet, sheets[0]) or sheet.key.comparisons not in (None, asked):
            raise ConfigError(f"{path} and {paths[0]} are of different studies.", "Analyse each study by itself.")
        check_comparisons(path, sheet, asked)
        if sheet.rater in raters:
            problem = f"{path} and {raters[sheet.rater]} are of the same rater."
            raise ConfigError(problem, "Name one file for every rater.")
        raters[sheet.rater] = path
    return sheets


def is_same_study(sheet: AnswerFile, other: AnswerFile) -> bool:
    """Return whether two files are of one study, by its name, its letters and its checks."""
    facts, others = ((one.study, one.key.variants, one.key.checks) for one in (sheet, other))
    return facts == others


def check_comparisons(path: Path, sheet: AnswerFile, asked: Sequence[str] | None) -> None:
    """Refuse answers to what the study does not ask, where that is known; `ConfigError`."""
    if asked is None:
        return
    strange = {one.comparison for one in sheet.answers} - set(asked)
    if strange:
        raise ConfigError(f"{path} answers {min(strange)!r}, which the study does not ask.", REMEDY)


def read_answer_file(path: Path) -> AnswerFile:
    """Return the answers in one file.

    Raises:
        ConfigError: It cannot be read, or is not what the study's page saves.
    """
    with translate_file_errors(path, ConfigError, "holds no answers", REMEDY):
        return AnswerFile.model_validate(read_json(path))
