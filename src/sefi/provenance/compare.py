"""Compare two results in order of cause: what explains a difference stands before what follows from it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sefi.core.errors import PhotoError
from sefi.core.files import is_regular_file
from sefi.core.progress import Progress, SilentProgress
from sefi.core.reading import measure_file, translate_file_errors
from sefi.provenance.metadata import PARAMETERS_KEY, read_source_type

# What may be the cause of what stands after it.
CAUSES = (
    "kind", "versions", "machine", "model", "preset", "settings", "prompts", "identities", "inputs", "seed", "photo",
    "init", "name", "consent", "tensors", "metrics", "images", "words", "scores",
)  # fmt: skip
EFFECTS = frozenset({"tensors", "metrics", "images", "words", "scores"})
# Facts that earlier versions did not state: where one side has none, nobody knows whether they differ.
PARTLY_STATED = frozenset({"versions", "machine", "model", "photo"})
# Such facts of other causes, by the first part of their names.
PARTLY_NAMED = frozenset({("inputs", "sha256"), ("inputs", "file"), ("identities", "sha256"), ("settings", "method")})
SALTED = frozenset({("photo", "hash")})  # two identities of one photo have two: where they differ, nobody knows
MEASURED = frozenset({"learn_seconds", "class_seconds", "peak_mb"})  # of a training: never the same twice
NOT_COMPARED = "not compared: a file is missing"
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS, LARGEST_IMAGE = 64_000_000, 256 << 20  # bytes
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
LONGEST_LINE = 20_000  # characters of an image's settings that are looked at
SETTING = re.compile(r'([\w .\-/]{1,80}):\s?("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')  # as AUTOMATIC1111 reads its own line
# Under which cause a word of an image's file stands, if not under the settings.
WORD_CAUSES = {"Version": "versions", "Model": "model", "Identities": "identities", "Seed": "seed"}

Array = NDArray[np.generic]
Pixels = NDArray[np.uint8]
Facts = dict[str, dict[str, object]]  # by cause and name


@dataclass(frozen=True)
class ImageOnRecord:
    """An image of a run.

    Attributes:
        pixels_sha256: of its pixels; None where no record says it.
        path: where it would be; the file may be gone. None where the record names none of its run.
    """

    pixels_sha256: str | None
    path: Path | None


@dataclass(frozen=True)
class Comparable:
    """What is compared of one side.

    Attributes:
        kind: what it is, as people say it.
        facts: what is stated, by cause and name; a cause that is not there is unknown, a name that is not there is
            none.
        tensors: the numbers of an identity, by name.
        images: images by name.
    """

    kind: str
    facts: Facts = field(default_factory=dict[str, dict[str, object]])
    tensors: Mapping[str, Array] = field(default_factory=dict[str, Array])
    images: Mapping[str, ImageOnRecord] = field(default_factory=dict[str, ImageOnRecord])


@dataclass(frozen=True)
class ComparedFact:
    """One thing in which two sides differ, or may.

    Attributes:
        cause: one of `CAUSES`.
        name: what it is, such as `learn.steps`.
        first, second: what each side says; None where it says nothing.
        detail: how tensors or pixels differ, and where.
        is_unknown: only one side states it, or the hashes are salted, so nobody knows.
    """

    cause: str
    name: str
    first: object
    second: object
    detail: str = ""
    is_unknown: bool = False


@dataclass(frozen=True)
class ResultComparison:
    """The outcome.

    Attributes:
        differences: in order of cause; the first one comes first.
        unknown: facts that only one side states.
        compared: how many facts, tensors and images both have.
    """

    differences: tuple[ComparedFact, ...]
    unknown: tuple[ComparedFact, ...]
    compared: int

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs that both sides state."""
        return not self.differences

    @property
    def is_unexplained(self) -> bool:
        """Whether results differ although nothing that is stated does."""
        return bool(self.differences) and self.differences[0].cause in EFFECTS


def compare_results(first: Comparable, second: Comparable, progress: Progress | None = None) -> ResultComparison:
    """Compare two results.

    Results of two kinds have nothing else in common that could be compared.

    Args:
        progress: is advanced after every image.
    """
    if first.kind != second.kind:
        return ResultComparison((ComparedFact("kind", "kind", first.kind, second.kind),), (), 1)
    progress = progress or SilentProgress()
    differences: list[ComparedFact] = []
    unknown: list[ComparedFact] = []
    for cause in CAUSES:
        found = _compare_facts(cause, first.facts.get(cause), second.facts.get(cause))
        if cause == "tensors":
            found = _compare_tensors(first.tensors, second.tensors)
        elif cause == "images":
            found = _compare_images(first.images, second.images, progress)
        for fact in found:
            (unknown if fact.is_unknown else differences).append(fact)
    differences = [fact for fact in differences if not _is_mere_name(fact, first, differences)]
    both = (first.tensors.keys() & second.tensors.keys(), first.images.keys() & second.images.keys())
    return ResultComparison(tuple(differences), tuple(unknown), _count_facts(first, second) + sum(map(len, both)))


def _is_mere_name(fact: ComparedFact, first: Comparable, differences: list[ComparedFact]) -> bool:
    """Return whether a fact only names others that agree: a preset its settings, a model's folder its weights."""
    if fact.cause == "preset":
        return all(other.cause != "settings" for other in differences)
    models = [other.name for other in differences if other.cause == "model"]
    return fact.cause == "model" and models == ["source"] and bool(first.facts["model"].get("signature"))


def _count_facts(first: Comparable, second: Comparable) -> int:
    """Count the facts of causes that both sides state."""
    shared = [cause for cause in first.facts if cause in second.facts]
    return sum(len(list(_pair_facts(cause, first.facts[cause], second.facts[cause]))) for cause in shared)


def _compare_facts(
    cause: str, first: Mapping[str, object] | None, second: Mapping[str, object] | None
) -> Iterator[ComparedFact]:
    """Yield the facts that differ, or that only one side states."""
    for fact in _pair_facts(cause, first or {}, second or {}):
        named = (cause, fact.name.partition(".")[0]) in PARTLY_NAMED
        silent = None in (fact.first, fact.second) and (cause in PARTLY_STATED or named)
        if not _is_same(fact.first, fact.second):
            salted = (cause, fact.name) in SALTED
            yield replace(fact, is_unknown=first is None or second is None or silent or salted)


def _pair_facts(cause: str, first: Mapping[str, object], second: Mapping[str, object]) -> Iterator[ComparedFact]:
    """Yield every fact of a cause, nested ones by dotted names, with what each side says."""
    one, other = dict(_flatten("", first)), dict(_flatten("", second))
    for name in dict.fromkeys([*one, *other]):
        if not (cause == "metrics" and name in MEASURED):
            yield ComparedFact(cause, name, one.get(name), other.get(name))


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield nested values by dotted names; lists by their numbers where they hold objects."""
    match value:
        case dict() if value or not prefix:
            for name, inner in value.items():
                yield from _flatten(f"{prefix}.{name}" if prefix else str(name), inner)
        case list() | tuple() if any(isinstance(inner, dict) for inner in value):
            for number, inner in enumerate(value, 1):
                yield from _flatten(f"{prefix} {number}", inner)
        case _:
            yield prefix, list(value) if isinstance(value, tuple) else value


def _is_same(first: object, second: object) -> bool:
    """Return whether two facts agree: 1 and 1.0 do, 1 and true do not."""
    return first == second and isinstance(first, bool) == isinstance(second, bool)


# ------------------------------------------------------------------ tensors


def _compare_tensors(first: Mapping[str, Array], second: Mapping[str, Array]) -> Iterator[ComparedFact]:
    """Yield the tensors that differ, the one with the largest difference first."""
    found: list[tuple[float, ComparedFact]] = []
    for name in dict.fromkeys([*first, *second]):
        one, other = first.get(name), second.get(name)
        if one is None or other is None:
            fact = ComparedFact("tensors", name, one is not None, other is not None, "only one side has it")
            found.append((np.inf, fact))
        elif one.shape != other.shape or one.dtype != other.dtype:
            found.append((np.inf, ComparedFact("tensors", name, _describe_tensor(one), _describe_tensor(other))))
        elif one.tobytes() != other.tobytes():
            found.append(_compare_numbers(name, one, other))
    yield from (fact for _, fact in sorted(found, key=lambda pair: -pair[0]))


def _describe_tensor(tensor: Array) -> str:
    """Return shape and dtype as text."""
    return f"{' x '.join(map(str, tensor.shape))}, {tensor.dtype}"


def _compare_numbers(name: str, first: Array, second: Array) -> tuple[float, ComparedFact]:
    """Return the largest difference of two tensors of one shape, and how many numbers differ and where most."""
    gap = np.abs(first.astype(np.float64) - second.astype(np.float64))
    place = np.unravel_index(int(gap.argmax()), gap.shape)
    largest = float(gap[place])
    count = int(np.count_nonzero(gap))
    where = describe_place(name, [int(number) for number in place])
    detail = f"{count:,} of {gap.size:,} numbers differ, most by {largest:.3g}: {where}"
    if not count:
        detail = "the bits of zeros differ, no number does"
    return largest, ComparedFact("tensors", name, float(first[place]), float(second[place]), detail)


def describe_place(name: str, place: list[int]) -> str:
    """Return where in a tensor a number is: of tokens by stage, key or value, vector and number.

    >>> describe_place("tokens", [3, 1, 17]), describe_place("tokens", [0, 0, 2, 5]), describe_place("unet.a", [4, 2])
    ('stage 3, value, number 17', 'stage 0, key, vector 2, number 5', 'at [4, 2]')
    """
    if not name.startswith("tokens") or len(place) not in (3, 4):
        return f"at {place}"
    vector = f"vector {place[2]}, " if len(place) == 4 else ""
    return f"stage {place[0]}, {'value' if place[1] else 'key'}, {vector}number {place[-1]}"


# ------------------------------------------------------------------ images


def _compare_images(
    first: Mapping[str, ImageOnRecord], second: Mapping[str, ImageOnRecord], progress: Progress
) -> Iterator[ComparedFact]:
    """Yield the images that differ, in the order of the first side."""
    names = dict.fromkeys([*first, *second])
    if len(names) > 1:
        progress.start(len(names), "comparing images")
    for name in names:
        one, other = first.get(name), second.get(name)
        if one is None or other is None:
            yield ComparedFact("images", name, one is not None, other is not None, "only one side has it")
        elif one.pixels_sha256 is None or one.pixels_sha256 != other.pixels_sha256:
            yield from _compare_pixels(name, one, other)
        if len(names) > 1:
            progress.advance()
    if len(names) > 1:
        progress.finish()


def _compare_pixels(name: str, first: ImageOnRecord, second: ImageOnRecord) -> Iterator[ComparedFact]:
    """Yield how two images differ, if they do: from their files where those are there, else by their hashes."""
    stated = first.pixels_sha256 != second.pixels_sha256 and None not in (first.pixels_sha256, second.pixels_sha256)

    def describe(detail: str) -> ComparedFact:
        return ComparedFact("images", name, first.pixels_sha256, second.pixels_sha256, detail)

    files = [image.path for image in (first, second) if image.path is not None and is_regular_file(image.path)]
    if len(files) < 2:
        fact = describe("hashes of pixels differ; a file is missing" if stated else NOT_COMPARED)
        yield replace(fact, is_unknown=not stated)
        return
    one, other = (read_image_words(file)[0] for file in files)
    if one.shape != other.shape:
        sides = [f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (one, other)]
        yield describe(f"{sides[0]} pixels in A, {sides[1]} in B")
    elif (gap := np.abs(one.astype(np.int16) - other)).any():
        yield describe(describe_pixels(gap))
    elif stated:
        yield describe("hashes on record differ; the files that are there now are equal")


def describe_pixels(gap: NDArray[np.int16]) -> str:
    """Return how many pixels differ, by how much, and in which part of the image.

    Args:
        gap: absolute differences `[height, width, 3]` in grey levels; one at least is not 0.
    """
    changed = gap.max(axis=2) > 0
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return (
        f"{np.count_nonzero(changed):,} of {changed.size:,} pixels differ, most by {int(gap.max())} of 255; "
        f"all in {width} x {height} pixels from left {columns[0]}, top {rows[0]}"
    )


def read_image_words(path: Path) -> tuple[Pixels, Facts]:
    """Read the pixels of an image `[height, width, 3]`, RGB, and what the words in its file state.

    Raises:
        PhotoError: it is no PNG, JPEG or WebP, damaged, or has more than 64 megapixels.
    """
    problem, remedy = "is no image that can be read", "Name a PNG, JPEG or WebP."
    with translate_file_errors(f"'{path}'", PhotoError, problem, remedy, also=BOMBS):
        measure_file(path, LARGEST_IMAGE)
        image = Image.open(path, formats=IMAGE_FORMATS)
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise PhotoError(f"'{path}' has more than 64 megapixels.", "Name a smaller image.")
            pixels = np.asarray(image.convert("RGB"))
            words = image.info.get(PARAMETERS_KEY)
            facts = parse_parameters(words) if isinstance(words, str) else Facts()
            stated: Facts = {"words": {"digital source type": read_source_type(image), "parameters": bool(facts)}}
    return pixels, facts | stated


def parse_parameters(text: str) -> Facts:
    """Return what `format_parameters` wrote as facts by cause."""
    body, _, line = text.rpartition("\n")
    prompt, _, negative = body.partition("\nNegative prompt: ")
    facts: Facts = {"prompts": {"prompt": prompt, "negative prompt": negative}}
    for label, value in SETTING.findall(line[:LONGEST_LINE]):
        name = label.strip()
        plain = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value.strip()
        facts.setdefault(WORD_CAUSES.get(name, "settings"), {})[name] = plain
    return facts
