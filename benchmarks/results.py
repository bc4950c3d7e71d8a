"""Benchmark runs to records, and records to the tables of the documents.

    python benchmarks/results.py keep runs/main runs/pilot   # benchmarks/records/bench/main.json, pilot.json
    python benchmarks/results.py write                       # fills in the pages' tables, writes docs/results/SUITE.csv
    python benchmarks/results.py check                       # says which pages and CSV files differ from the records
    python benchmarks/results.py best sweep                  # of the ways of each preset, the best by ID(Prompt)
    python benchmarks/results.py sheet runs/slots --out slots.png --prompts 0 4   # pictures of it, not picked

A record has every figure of every way, subject and kind of prompts, so that means, intervals and paired differences
follow from it; pictures and embeddings stay in the run. A table stands in a page between two comments:

    <!-- bench main: id_prompt, id, shown -->            <!-- bench main / attribute: shown -->
    <!-- bench main; ours - paper; ours - one token: id_prompt, shown -->
    <!-- bench table1; ours; plain word: id_prompt -->   these rows only
    <!-- bench table1 + paper: id_prompt, prompt -->     beside every figure the paper's, from benchmarks/published.toml
    <!-- end -->

Comments name variants as the records do; tables and CSV files call the method of this package SeFi-IDE, not "ours".
"""

import argparse
import csv
import hashlib
import io
import math
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image
from scipy.stats import kendalltau

from sefi.bench.figures import FIGURES, Figure
from sefi.bench.formulas import conditions
from sefi.bench.records import Record, RunInfo, old_key
from sefi.bench.run_folder import RunFolder
from sefi.bench.statistics import Interval, clustered_interval, paired_difference
from sefi.bench.table_files import heading, told, told_range
from sefi.bench.tables import by_subject, compared, kinds
from sefi.core.errors import ConfigError
from sefi.core.files import write_text
from sefi.core.json_text import dump_json
from sefi.core.reading import LARGEST_JSON, file_errors, read_text
from sefi.report.sheet import Row, contact_sheet

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "records" / "bench"
PUBLISHED = ROOT / "benchmarks" / "published.toml"
SUITES = ROOT / "docs" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", *sorted(SUITES.glob("*.md")))
CSV_HEAD = ("variant", "reference", "figure", "unit", "subjects", "mean", "low", "high")
BLOCK = re.compile(r"(<!-- bench (?P<asked>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
ALL = "all"
BY_NAME = {figure.name: figure for figure in FIGURES}
DIGITS = 6


VariantFigures = dict[str, dict[str, dict[str, float]]]  # by variant, figure and subject


class RunRecord(Record):
    """What is kept of a run: what was asked, and every figure by kind of prompts, variant and subject."""

    info: Annotated[RunInfo, old_key("about")]
    images: Annotated[int, old_key("pictures")]
    samples_sha256: Annotated[str, old_key("cells_sha256")]
    figures: dict[str, VariantFigures]


def main() -> None:
    """One of the five commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("keep", "write", "check", "best", "sheet"))
    parser.add_argument(
        "runs", nargs="*", type=Path, help="folders of runs, for keep and sheet; names of records, for best"
    )
    parser.add_argument("--out", type=Path, help="the sheet's file")
    parser.add_argument("--prompts", nargs="*", type=int, default=[0], help="numbers of the sheet's prompts")
    parser.add_argument("--ways", nargs="*", help="labels of the sheet's ways; all that are drawn if left out")
    parser.add_argument("--across", action="store_true", help="ways side by side, prompts one below the other")
    given = parser.parse_args()
    if given.command == "sheet":
        sheet(given.runs[0], given.prompts, given.ways, across=given.across).save(given.out, quality=88)
        return
    if given.command == "best":
        for preset, found in best(*map(str, given.runs)).items():
            print(f"{preset}: {found.label}, ID(Prompt) {found.id_prompt:.3f}")
        return
    if given.command == "keep":
        RECORDS.mkdir(parents=True, exist_ok=True)
        for run in given.runs:
            keep(run)
        return
    differing = {file: text for file, text in render_files().items() if not holds(file, text)}
    for file, text in differing.items():
        if given.command == "write":
            write_text(file, text)
        print(f"{file.relative_to(ROOT)}: {'written' if given.command == 'write' else 'is not what the records give'}")
    sys.exit(given.command == "check" and bool(differing))


def render_files() -> dict[Path, str]:
    """Return every page and CSV file with the text that the records give."""
    pages = {page: filled(page.read_text(encoding="utf-8")) for page in PAGES}
    return pages | {SUITES / f"{file.stem}.csv": render_csv(file.stem) for file in sorted(RECORDS.glob("*.json"))}


def holds(file: Path, text: str) -> bool:
    """Return whether a file exists and holds this text."""
    return file.is_file() and file.read_text(encoding="utf-8") == text


def render_csv(name: str) -> str:
    """Return every figure of every variant over all prompts; the record also has each subject and kind of prompt."""
    record, text = record_of(name), io.StringIO()
    references = {way.label: way.control for way in record.info.suite.variants}
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for label, own in record.figures[ALL].items():
        for figure, values in own.items():
            found, unit = clustered_interval(values), BY_NAME[figure].unit
            numbers = ["" if math.isnan(x) else f"{x:.{DIGITS}g}" for x in (found.mean, found.low, found.high)]
            writer.writerow([display_label(label), references[label], figure, unit, found.n, *numbers])
    return text.getvalue()


def display_label(label: str) -> str:
    """Return a variant's label for readers: the records call the method of this package "ours".

    >>> display_label("ours, module - DreamBooth")
    'SeFi-IDE, module - DreamBooth'
    """
    return re.sub(r"\bours\b", "SeFi-IDE", label)


def keep(folder: Path) -> None:
    """Write the record of a run."""
    run = RunFolder(folder)
    info, samples = run.read_info(), run.read_samples()
    file = RECORDS / f"{info.suite.name}.json"
    labels = [way.label for way in compared(samples, info)]
    fixed = conditions(samples, info)
    figures = {
        kind or ALL: {
            label: {
                figure.name: values for figure in FIGURES if (values := known(by_subject(chosen, fixed, label, figure)))
            }
            for label in labels
        }
        for kind in ("", *kinds(samples, info))
        if (chosen := [sample for sample in samples if kind in ("", sample.kind)])
    }
    digest = hashlib.sha256(run.samples_file.read_bytes()).hexdigest()
    record = RunRecord(info=info, images=len(samples), samples_sha256=digest, figures=figures)
    write_text(file, dump_json(record.model_dump(mode="json", by_alias=True), separators=(",", ":")) + "\n")
    print(f"{file.relative_to(ROOT)}: {len(samples)} pictures, {file.stat().st_size // 1024} KB")


def known(values: dict[str, float]) -> dict[str, float]:
    """What was computed, with as many digits as a table could show and some more."""
    return {subject: round(value, DIGITS) for subject, value in values.items() if not math.isnan(value)}


def sheet(folder: Path, prompts: Sequence[int], ways: Sequence[str] | None, *, across: bool) -> Image.Image:
    """The pictures of a run's first subject and first seed: a row for each way, a column for each prompt, or turned."""
    run = RunFolder(folder)
    info, samples = run.read_info(), run.read_samples()
    first = info.subjects[0]
    subject = next(c.subject for c in samples if first in (c.subject, c.subject.split("+")[0]))
    seed = info.suite.seeds[0]
    labels = ways or [way.label for way in info.suite.variants if way.is_generated]
    files = {(c.variant, c.prompt): c.image for c in samples if (c.subject, c.seed) == (subject, seed)}
    names = [f"<{name}>" for name in subject.split("+")]
    said = {prompt: info.suite.prompts[prompt].text.format(*names) for prompt in prompts}
    places = [[(way, prompt) for prompt in prompts] for way in labels]
    titles, columns = list(labels), list(said.values())
    if across:
        places, titles, columns = [list(row) for row in zip(*places, strict=True)], columns, titles
    rows = [Row(t, [Image.open(folder / files[p]) for p in row]) for t, row in zip(titles, places, strict=True)]
    return contact_sheet(rows, columns, cell=128)


@dataclass(frozen=True)
class Best:
    """The best of the ways that start from one preset: label, settings, mean ID(Prompt)."""

    label: str
    settings: tuple[str, ...]
    id_prompt: float


def best(*names: str) -> dict[str, Best]:
    """Of the ways in these records that start from the same preset, the best by mean ID(Prompt)."""
    found: dict[str, Best] = {}
    for name in names:
        record = record_of(name)
        for way in record.info.suite.variants:
            if way.control is None:
                mean = clustered_interval(record.figures[ALL][way.label]["id_prompt"]).mean
                if way.preset not in found or mean > found[way.preset].id_prompt:
                    found[way.preset] = Best(way.label, way.settings, mean)
    return found


def record_of(name: str) -> RunRecord:
    """Return what `keep` wrote of a run.

    Raises:
        ConfigError: it is damaged.
    """
    file = RECORDS / f"{name}.json"
    with file_errors(file, ConfigError, "is no record of a run", "Write it again with `keep`."):
        return RunRecord.parse(read_text(file, LARGEST_JSON))


def filled(text: str) -> str:
    """A page with its tables made from the records."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found['asked'])}{found[3]}", text)


def block(asked: str) -> str:
    """A table as its comment asks for it: `SUITE [/ KIND] [+ paper] [; WAY - WAY]... [; WAY]...: FIGURE, ...`."""
    what, _, columns = asked.rpartition(":")
    suite, *chosen = (part.strip() for part in what.split(";"))
    pairs, rows = [part for part in chosen if " - " in part], [part for part in chosen if " - " not in part]
    suite, beside, _ = (part.strip() for part in suite.partition("+ paper"))
    name, _, kind = (part.strip() for part in suite.partition("/"))
    record = record_of(name)
    figures = [BY_NAME[column.strip()] for column in columns.split(",")]
    values = record.figures[kind or ALL]
    if rows:
        values = {label: values[label] for label in rows}
    if pairs:
        return differences(values, pairs, figures)
    if beside:
        published = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))[name]
        return beside_published(values, record.info, figures, published)
    return means(values, record.info, figures)


def means(values: VariantFigures, info: RunInfo, figures: Sequence[Figure]) -> str:
    """A row for each way: means over subjects with their intervals."""
    titles = row_titles(values, info)
    found = {label: [clustered_interval(own.get(f.name, {})) for f in figures] for label, own in values.items()}
    rows = [[titles[label], *cells_of(row, figures)] for label, row in found.items()]
    return markdown(["variant", *(heading(f) for f in figures)], rows)


def row_titles(values: VariantFigures, info: RunInfo) -> dict[str, str]:
    """What a row of each way is called; reference rows in italics."""
    references = {way.label for way in info.suite.variants if way.control}
    return {label: f"*{label}*" if label in references else display_label(label) for label in values}


def beside_published(
    values: VariantFigures, info: RunInfo, figures: Sequence[Figure], published: dict[str, dict[str, float]]
) -> str:
    """As `means`, beside every figure the published one; last how far the two orders agree, by Kendall's tau."""
    titles = row_titles(values, info)
    rows: list[list[str]] = []
    for label, own in values.items():
        cells = [titles[label]]
        for figure in figures:
            there = published.get(label, {}).get(figure.name, math.nan)
            cells += [*cells_of([clustered_interval(own.get(figure.name, {}))], [figure]), told(there, figure.unit)]
        rows.append(cells)
    head = ["variant", *(text for figure in figures for text in (heading(figure), "paper"))]
    agreement = [text for figure in figures for text in (f"{order(values, published, figure):.2f}", "")]
    return markdown(head, [*rows, ["*agreement of the orders*", *agreement]])


def order(values: VariantFigures, published: dict[str, dict[str, float]], figure: Figure) -> float:
    """Kendall's tau of our means and the published figures, over the ways that have both; nan where all are equal."""
    shared = [label for label in published if figure.name in published[label] and figure.name in values.get(label, {})]
    ours = [clustered_interval(values[label][figure.name]).mean for label in shared]
    return float(kendalltau(ours, [published[label][figure.name] for label in shared]).statistic)


def differences(values: VariantFigures, pairs: Sequence[str], figures: Sequence[Figure]) -> str:
    """A row for each pair of ways: what the first has more, paired by subject."""
    rows: list[list[str]] = []
    for pair in pairs:
        mine, theirs = (values[label.strip()] for label in pair.split(" - "))
        found = [paired_difference(mine.get(f.name, {}), theirs.get(f.name, {})) for f in figures]
        rows.append([display_label(pair), *cells_of(found, figures, sign=True)])
    return markdown(["difference", *(heading(f) for f in figures)], rows)


def cells_of(row: Sequence[Interval], figures: Sequence[Figure], *, sign: bool = False) -> list[str]:
    """Means with intervals as a table's cells; a difference whose interval leaves out 0 is bold."""
    texts: list[str] = []
    for found, figure in zip(row, figures, strict=True):
        mean = told(found.mean, figure.unit, sign=sign)
        shown = f"**{mean}**" if sign and found.excludes_zero else mean
        texts.append(f"{shown} {told_range(found, figure.unit, sign=sign)}".strip())
    return texts


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    main()
