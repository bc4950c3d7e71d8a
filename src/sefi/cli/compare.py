"""`sefi compare`: the first difference of two identities, runs, benchmark runs or images, and all others."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sefi.cli import options
from sefi.core.errors import ConfigError, OutputError, SefiError

if TYPE_CHECKING:
    from sefi.identity.file import IdentityHeader
    from sefi.provenance.compare import Comparable, ComparedFact, Facts, ImageOnRecord, ResultComparison
    from sefi.provenance.run_record import RunRecord

DIFFERENT = 1  # the exit code, as of `diff`
SHOWN = 12  # differences of one cause that the table has
LONGEST_VALUE = 34  # characters in a column of the table
NAMED = "Name two identity files, two folders of `sefi generate` or `sefi bench run`, or two images."
UNEXPLAINED = {
    "an identity": "nothing else on record differs: another photo, or a computation that is not deterministic",
    "an image": "the words in the files do not explain it",
}
OTHERWISE = "nothing else on record differs: a computation that is not deterministic, or a file that was changed"

GENERATION = "a run of images"
First = Annotated[Path, typer.Argument(metavar="A", help="An identity, an image, or the folder of a run.")]
Second = Annotated[Path, typer.Argument(metavar="B", help="Another of the same kind.")]
Runs = Annotated[
    str | None,
    typer.Option("--runs", metavar="N,M", help="Which runs of a records.json, counted from 1; else the last of each."),
]


def run_compare(first: First, second: Second, runs: Runs = None, as_json: options.AsJson = False) -> None:
    """Say what differs between A and B, causes before effects; exit code 0 if nothing does, 1 if something does."""
    from sefi.cli.output import print_answer
    from sefi.cli.progress import TerminalProgress
    from sefi.provenance.compare import compare_results

    numbers = parse_run_numbers(runs, is_same=os.path.realpath(first) == os.path.realpath(second))
    one, other = load_comparable(first, numbers[0]), load_comparable(second, numbers[1])
    if runs is not None and GENERATION not in (one.kind, other.kind):
        raise ConfigError(f"--runs has no effect on {one.kind}.", "Leave it out: it chooses runs of a records.json.")
    with TerminalProgress() as progress:
        comparison = compare_results(one, other, progress)
    record: dict[str, object] = {
        "equal": comparison.is_equal,
        "kind": one.kind if one.kind == other.kind else None,
        "first": describe_fact(comparison.differences[0]) if comparison.differences else None,
        "differences": [describe_fact(fact) for fact in comparison.differences],
        "unknown": [describe_fact(fact) for fact in comparison.unknown],
        "unexplained": comparison.is_unexplained,
        "compared": comparison.compared,
    }
    print_answer(record, format_comparison(comparison, one.kind), as_json=as_json, command="compare")
    if not comparison.is_equal:
        raise typer.Exit(DIFFERENT)


def parse_run_numbers(text: str | None, *, is_same: bool) -> tuple[int, int]:
    """Return which runs of two records are compared, from 1, or from the end if negative.

    Args:
        is_same: both are one file; then its last two runs are compared.

    Raises:
        ConfigError: it is not two numbers.
    """
    if text is None:
        return (-2, -1) if is_same else (-1, -1)
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 7 and int(part) for part in parts):
        raise ConfigError(f"{text!r} are no two runs.", "Count from 1: --runs 1,2.")
    return int(parts[0]), int(parts[1])


def load_comparable(path: Path, number: int) -> "Comparable":
    """Read what a path leads to: an identity, an image, or a run.

    Args:
        number: of the run in a `records.json`, from 1, or from the end if negative.

    Raises:
        SefiError: it is none of these, or cannot be read.
    """
    from sefi.core.files import FileKind, is_folder, is_regular_file, read_content
    from sefi.core.reading import RECORDS
    from sefi.provenance.compare import Comparable, ImageOnRecord, read_image_words

    if is_folder(path):
        if is_regular_file(path / "run.json"):
            return load_benchmark(path)
        if is_regular_file(path / RECORDS):
            return load_generation(path / RECORDS, number)
        raise ConfigError(f"There is no run in the folder '{path}'.", NAMED)
    if not is_regular_file(path):
        raise ConfigError(f"There is no file '{path}'.", NAMED)
    match read_content(path).kind:
        case FileKind.IDENTITY:
            return load_identity_facts(path)
        case FileKind.PNG | FileKind.IMAGE:
            pixels = {"pixels": ImageOnRecord(None, path)}
            return Comparable("an image", read_image_words(path)[1], images=pixels)
        case FileKind.JSON:
            return load_benchmark(path.parent) if path.name == "run.json" else load_generation(path, number)
        case kind:
            raise ConfigError(f"'{path}' is {kind}, which is not compared.", NAMED)


# ------------------------------------------------------------------ identities


def load_identity_facts(path: Path) -> "Comparable":
    """Read an identity as what is compared."""
    import torch

    from sefi.identity.file import Identity
    from sefi.provenance.compare import Comparable

    identity = Identity.load(path)
    header = identity.header
    facts: Facts = {
        "versions": dict(header.library_versions),
        "model": {"fingerprint": header.base_model, "signature": shorten_signature(header.signature)},
        "settings": read_settings(header),
        "seed": {"seed": header.seed},
        "name": {"name": header.name},
        "consent": {"consent": header.consent},
        "metrics": dict(header.metrics),
    }
    if header.record is not None:
        squares = [crop.model_dump(exclude={"photo_hash"}) for crop in header.record.crops]
        hashes = [crop.photo_hash for crop in header.record.crops]
        facts["machine"] = list_machine_facts(header.record)
        facts["photo"] = {"photos": len(squares), "crop": squares, "hash": hashes if all(hashes) else None}
        facts["init"] = header.record.init.model_dump() if header.record.init else {}
    tensors = {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in identity.tensors.items()
    }
    return Comparable("an identity", facts, tensors)


def shorten_signature(signature: Mapping[str, str]) -> dict[str, str]:
    """Return eight hex digits for the samples of each part of a model."""
    return {part: hashlib.sha256(text.encode()).hexdigest()[:8] for part, text in signature.items()}


def read_settings(header: "IdentityHeader") -> dict[str, object]:
    """Return the settings of an identity; those that an earlier version did not have by their defaults."""
    from sefi.core.config import dump_config
    from sefi.identity.file import read_saved_config
    from sefi.methods import get_method

    try:
        return dump_config(read_saved_config(header, get_method(header.method).config_type))
    except SefiError:  # of a method that is not installed, or another version's
        return {"method": header.method, **header.settings}


def list_machine_facts(record: "RunRecord") -> dict[str, object]:
    """Return where something was computed; what is not stated is left out."""
    names = ("platform", "device", "device_name", "dtype", "threads")
    return {name: value for name in names if (value := getattr(record, name))}


# ------------------------------------------------------------------ runs


def load_generation(path: Path, number: int) -> "Comparable":
    """Read one run of a `records.json`.

    Raises:
        ConfigError: it is no such file, or has no run of that number.
    """
    from sefi.cli.image_files import read_records
    from sefi.core.reading import translate_file_errors
    from sefi.provenance.run_record import RunRecord

    try:
        runs = read_records(path)
    except OutputError as error:
        raise ConfigError(error.problem, NAMED) from None
    if not (0 < number <= len(runs) or 0 < -number <= len(runs)):
        raise ConfigError(f"'{path}' has {len(runs)} run(s).", "Count from 1: --runs 1,2.")
    run = runs[number - 1 if number > 0 else number]
    with translate_file_errors(f"'{path}'", ConfigError, "is damaged", NAMED):
        stated = RunRecord.model_validate(run["run"]) if run.get("run") else None
        return collect_generation(run, stated, path.parent)


def collect_generation(run: Mapping[str, Any], stated: "RunRecord | None", folder: Path) -> "Comparable":
    """Return a run of `sefi generate` as what is compared.

    Args:
        stated: its run record; None in files of earlier versions.
    """
    from sefi.provenance.compare import Comparable

    facts: Facts = {
        "model": {"fingerprint": run.get("base_model")},
        "settings": dict(run.get("settings", {})),
        "prompts": {"prompts": list(dict.fromkeys(str(one["prompt"]) for one in run["images"]))},
        "identities": {"count": len(run.get("identities", []))},
        "inputs": list_inputs(run.get("inputs", {}), stated),
        "seed": {"seed": run.get("seed")},
    }
    if stated is not None:
        facts |= {"versions": dict(stated.versions), "machine": list_machine_facts(stated)}
        facts |= {"settings": stated.settings, "preset": {"preset": stated.preset}}
        facts["model"] |= {"signature": stated.model.signature, "source": stated.model.source}
        facts["identities"]["sha256"] = stated.identities
    return Comparable(GENERATION, facts, images=collect_images(run, stated, folder))


def list_inputs(inputs: Mapping[str, object], stated: "RunRecord | None") -> dict[str, object]:
    """Return the options of images that generation was given; a file by its hash, by its name where it has none."""
    hashes = dict(stated.inputs) if stated else {}
    given: dict[str, object] = {name: "given" for name, v in inputs.items() if isinstance(v, str)}
    files = {name: Path(v).name for name, v in inputs.items() if isinstance(v, str) and name not in hashes}
    return {**given, **{name: v for name, v in inputs.items() if name not in given}, "sha256": hashes, "file": files}


def collect_images(run: Mapping[str, Any], stated: "RunRecord | None", folder: Path) -> "dict[str, ImageOnRecord]":
    """Return the images of a run by prompt and seed: their files have other numbers in another run."""
    from sefi.provenance.compare import ImageOnRecord

    hashes = {one.file: one.pixels_sha256 for one in (stated.images if stated else ())}
    images: dict[str, ImageOnRecord] = {}
    seen: Counter[str] = Counter()
    for entry in run["images"]:
        file, name = Path(str(entry["file"])).name, f"{entry['prompt']}, seed {entry['seed']}"
        seen[name] += 1
        images[name if seen[name] == 1 else f"{name}, {seen[name]}"] = ImageOnRecord(
            hashes.get(file), locate_image(folder, file)
        )
    return images


def load_benchmark(folder: Path) -> "Comparable":
    """Read a benchmark run as what is compared; the seconds that it took are not."""
    from sefi.benchmark.run import RunFolder
    from sefi.provenance.compare import Comparable, ImageOnRecord
    from sefi.provenance.run_record import shorten_source

    run_folder = RunFolder(folder)
    info, samples = run_folder.read_info(), run_folder.read_samples()
    suite = info.suite.model_dump(mode="json", by_alias=True, exclude={"prompts", "seeds"})
    machine: dict[str, object] = {"device": info.device, "dtype": info.dtype}
    model: dict[str, object] = {"fingerprint": info.model.fingerprint}
    if info.record is not None:
        machine |= list_machine_facts(info.record)
        model["signature"] = info.record.model.signature
    model["source"] = shorten_source(info.model.name)
    names = {one.key: f"{one.subject}, {one.variant}, prompt {one.prompt}, seed {one.seed}" for one in samples}
    facts: Facts = {
        "versions": dict(info.versions),
        "machine": {name: value for name, value in machine.items() if value},
        "model": model,
        "settings": {
            "suite": suite,
            **info.settings,
            "evaluators": {name: one and dict(one) for name, one in info.evaluators.items()},
            "tau": info.tau,
            "far_threshold": info.far_threshold,
        },
        "prompts": {"prompts": [dict(one) for one in info.suite.prompts]},
        "seed": {"seeds": list(info.suite.seeds)},
        "photo": {"subjects": list(info.subjects), "hash": {name: list(one) for name, one in info.photos.items()}},
        "scores": {names[one.key]: one.model_dump(mode="json", include=SCORES) for one in samples},
    }
    if info.learning_files is not None:
        facts["inputs"] = dict(info.learning_files.list_files())  # both runs that have the key name all of them
    images = {names[one.key]: ImageOnRecord(one.sha256, locate_image(folder, one.image)) for one in samples}
    return Comparable("a benchmark run", facts, images=images)


def locate_image(folder: Path, name: str) -> Path | None:
    """Return the file of an image that a record names; None where it leads out of the run's folder."""
    from sefi.core.reading import is_inside

    return folder / name if is_inside(folder / name, folder) else None


SCORES = {
    "faces", "id", "id_other_photo", "id_leaked", "id_second", "id_second_other", "clip_image", "background",
    "background_others", "clip_image_others", "prompt_score", "margin", "shown", "focus", "on_objects", "focus_plain",
    "on_objects_plain",
}  # fmt: skip


# ------------------------------------------------------------------ output


def describe_fact(fact: "ComparedFact") -> dict[str, object]:
    """Return a difference as plain values."""
    return {"cause": fact.cause, "name": fact.name, "a": fact.first, "b": fact.second, "detail": fact.detail}


def format_comparison(comparison: "ResultComparison", kind: str) -> str:
    """Return the outcome for people: the first difference in a sentence, then a table of all."""
    lines: list[str] = []
    if comparison.is_equal:
        lines.append(f"equal: {comparison.compared} facts, tensors and images agree")
    else:
        first = comparison.differences[0]
        lines.append(f"first difference: {first.cause}: {first.name}: {format_sides(first)}")
        if comparison.is_unexplained:
            lines.append(f"  {UNEXPLAINED.get(kind, OTHERWISE)}")
        lines += ["", *format_fact_table(comparison.differences)]
    if comparison.unknown:
        names = ", ".join(dict.fromkeys(fact.cause for fact in comparison.unknown))
        reason = f"not compared, as only one side has it or as it is a salted hash ({names}):"
        lines += ["", reason, *format_fact_table(comparison.unknown)]
    return "\n".join(lines)


def format_sides(fact: "ComparedFact") -> str:
    """Return how two sides differ, in a few words."""
    return fact.detail or f"{shorten_text(fact.first)} in A, {shorten_text(fact.second)} in B"


def format_fact_table(facts: "tuple[ComparedFact, ...]") -> list[str]:
    """Return facts as lines of a table, at most twelve of each cause."""
    rows = [("cause", "what", "A", "B")]
    left_out: Counter[str] = Counter()
    for cause, some in group_by_cause(facts).items():
        rows += [(cause, fact.name, *list_columns(fact)) for fact in some[:SHOWN]]
        left_out[cause] = max(0, len(some) - SHOWN)
    widths = [max(len(row[column]) for row in rows if row[3] or column < 2) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    return [*lines, *(f"... and {count:,} more: {cause}; --json has all" for cause, count in left_out.items() if count)]


def group_by_cause(facts: "tuple[ComparedFact, ...]") -> "dict[str, list[ComparedFact]]":
    """Return facts by cause, in order."""
    groups: dict[str, list[ComparedFact]] = {}
    for fact in facts:
        groups.setdefault(fact.cause, []).append(fact)
    return groups


def list_columns(fact: "ComparedFact") -> tuple[str, str]:
    """Return the last two columns of a row: both values, or the detail over both."""
    return (fact.detail, "") if fact.detail else (shorten_text(fact.first), shorten_text(fact.second))


def shorten_text(value: object) -> str:
    """Return a value as a short text.

    >>> shorten_text(None), shorten_text(0.5), shorten_text(["a"])
    ('none', '0.5', "['a']")
    """
    number = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(("none" if value is None else number).split())
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
