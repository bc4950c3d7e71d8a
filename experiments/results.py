"""Make records of benchmark runs, and the tables of the documents from the records.

    python experiments/results.py keep runs/table1 runs/lambda   # experiments/records/bench/table1.json, lambda.json
    python experiments/results.py write                       # fills in tables, writes docs/results/SUITE.csv
    python experiments/results.py check                       # names pages and CSV files that differ from the records
    python experiments/results.py best sweep-in-scenes        # of the variants of each preset, the best by ID(Prompt)
    python experiments/results.py sheet runs/slots --out slots.png --prompts 0 4   # images of it, not picked

A record has every figure of every variant, subject and kind of prompts, so that means, intervals and paired differences
follow from it; images and embeddings stay in the run. A table stands in a page between two comments:

    <!-- bench lambda: id_prompt, id, shown -->          <!-- bench lambda / attribute: shown -->
    <!-- bench table1; SeFi-IDE - ProSpect; SeFi-IDE - plain word: id_prompt, shown -->
    <!-- bench table1; SeFi-IDE; plain word: id_prompt -->   these rows only
    <!-- bench table1 + paper: id_prompt, prompt -->     the paper's beside each, from experiments/published.toml
    <!-- bench dreambooth [600-611]: id_prompt -->       these subjects only, by their numbers
    <!-- end -->

Comments name variants as the records do; tables and CSV files call the method of this package SeFi-IDE, not "ours".
"""

import argparse
import csv
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

from sefi.benchmark.plan import Completeness, list_planned_keys, measure_completeness
from sefi.benchmark.records import RecordModel, RunInfo, name_photo, set_file_key, split_group
from sefi.benchmark.run import RunFolder
from sefi.benchmark.statistics import Interval, estimate_difference, estimate_interval
from sefi.benchmark.table_files import format_heading, format_range, format_value
from sefi.benchmark.table_metrics import METRICS, Metric, find_conditions
from sefi.benchmark.tables import compute_by_subject, list_kinds, list_variants
from sefi.core.errors import ConfigError
from sefi.core.files import write_text
from sefi.core.reading import LARGEST_JSON, read_text, translate_file_errors
from sefi.core.text import dump_json, escape_formula
from sefi.provenance.run_record import compute_file_digest
from sefi.provenance.save import encode_image
from sefi.report.contact_sheet import SheetRow, draw_contact_sheet

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "experiments" / "records" / "bench"
# Of runs on an earlier version of the embedded model, on which a preset was chosen.
EARLIER = ROOT / "experiments" / "records" / "earlier"
PUBLISHED = ROOT / "experiments" / "published.toml"
SUITES = ROOT / "docs" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", *sorted(SUITES.glob("*.md")))
CSV_HEAD = ("variant", "reference", "figure", "unit", "subjects", "mean", "low", "high")
BLOCK = re.compile(r"(<!-- bench (?P<asked>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
ALL = "all"
BY_NAME = {metric.name: metric for metric in METRICS}
DIGITS = 6


VariantFigures = dict[str, dict[str, dict[str, float]]]  # by variant, figure and subject


class RunRecord(RecordModel):
    """What is kept of a run: what was asked, and every figure by kind of prompts, variant and subject."""

    info: Annotated[RunInfo, set_file_key("about")]
    images: Annotated[int, set_file_key("pictures")]
    samples_sha256: Annotated[str, set_file_key("cells_sha256")]
    figures: dict[str, VariantFigures]


def main() -> None:
    """Run one of the five commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("keep", "write", "check", "best", "sheet"))
    parser.add_argument(
        "runs", nargs="*", type=Path, help="folders of runs, for keep and sheet; names of records, for best"
    )
    parser.add_argument("--out", type=Path, help="the sheet's file")
    parser.add_argument("--prompts", nargs="*", type=int, default=[0], help="numbers of the sheet's prompts")
    parser.add_argument(
        "--variants", "--ways", nargs="*", help="labels of the sheet's variants; all that are drawn if left out"
    )
    parser.add_argument("--across", action="store_true", help="variants side by side, prompts one below the other")
    parser.add_argument("--subject", help="the sheet's subject; the run's first one if left out")
    parser.add_argument("--photo", action="store_true", help="the photo that was learned at the head of each row")
    given = parser.parse_args()
    if given.command == "sheet":
        choice = {"across": given.across, "of": given.subject, "photo": given.photo}
        sheet = draw_run_sheet(given.runs[0], given.prompts, given.variants, **choice)
        encode_image(sheet, kind="PNG" if given.out.suffix == ".png" else "JPEG").write(given.out)
        return
    if given.command == "best":
        for preset, found in find_best(*map(str, given.runs)).items():
            print(f"{preset}: {found.label}, ID(Prompt) {found.id_prompt:.3f}")
        return
    if given.command == "keep":
        RECORDS.mkdir(parents=True, exist_ok=True)
        for run in given.runs:
            keep(run)
        return
    differing = {file: text for file, text in render_files().items() if not is_current(file, text)}
    for file, text in differing.items():
        if given.command == "write":
            write_text(file, text)
        print(f"{file.relative_to(ROOT)}: {'written' if given.command == 'write' else 'is not what the records give'}")
    sys.exit(given.command == "check" and bool(differing))


def render_files() -> dict[Path, str]:
    """Return every page and CSV file with the text that the records give."""
    pages = {page: fill_tables(page.read_text(encoding="utf-8")) for page in PAGES}
    names = {file.stem for folder in (RECORDS, EARLIER) for file in folder.glob("*.json")}
    return pages | {SUITES / f"{name}.csv": render_csv(name) for name in sorted(names)}


def is_current(file: Path, text: str) -> bool:
    """Return whether a file exists and holds this text."""
    return file.is_file() and file.read_text(encoding="utf-8") == text


def render_csv(name: str) -> str:
    """Return every figure of every variant over all prompts; the record also has each subject and kind of prompt."""
    record, text = read_record(name), io.StringIO()
    references = {variant.label: variant.control for variant in record.info.suite.variants}
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for label, own in record.figures[ALL].items():
        for figure, values in own.items():
            found, unit = estimate_interval(values), BY_NAME[figure].unit
            numbers = ["" if math.isnan(x) else f"{x:.{DIGITS}g}" for x in (found.mean, found.low, found.high)]
            shown = escape_formula(make_display_label(label))
            writer.writerow([shown, references[label], figure, unit, found.n, *numbers])
    return text.getvalue()


def make_display_label(label: str) -> str:
    """Return a variant's label for readers: the records call the method of this package "ours".

    >>> make_display_label("ours, module - DreamBooth")
    'SeFi-IDE, module - DreamBooth'
    """
    return re.sub(r"\bours\b", "SeFi-IDE", label)


def keep(folder: Path) -> None:
    """Write the record of a run.

    Raises:
        ConfigError: images of it are missing.
    """
    run = RunFolder(folder)
    info, samples = run.read_info(), run.read_samples()
    check_finished(str(folder), measure_completeness(info, samples))
    file = RECORDS / f"{info.suite.name}.json"
    labels = [variant.label for variant in list_variants(samples, info)]
    fixed = find_conditions(samples, info)
    figures = {
        kind or ALL: {
            label: {
                metric.name: values
                for metric in METRICS
                if (values := drop_unknown(compute_by_subject(chosen, fixed, label, metric)))
            }
            for label in labels
        }
        for kind in ("", *list_kinds(samples, info))
        if (chosen := [sample for sample in samples if kind in ("", sample.kind)])
    }
    digest = compute_file_digest(run.samples_file)
    record = RunRecord(info=info, images=len(samples), samples_sha256=digest, figures=figures)
    write_text(file, dump_json(record.model_dump(mode="json", by_alias=True), separators=(",", ":")) + "\n")
    print(f"{file.relative_to(ROOT)}: {len(samples)} images, {file.stat().st_size // 1024} KB")


def check_finished(name: str, completeness: Completeness) -> None:
    """Refuse a run with missing images: its variants have different subjects and prompts so far.

    Raises:
        ConfigError: it is not finished.
    """
    missing = completeness.planned - completeness.made
    if missing > 0:
        problem = f"{name} is not finished: {missing:,} of {completeness.planned:,} images are missing."
        raise ConfigError(problem, "Make them with `sefi bench run`, and write the record again.")


def drop_unknown(values: dict[str, float]) -> dict[str, float]:
    """Return what was computed, with as many digits as a table could show and some more."""
    return {subject: round(value, DIGITS) for subject, value in values.items() if not math.isnan(value)}


def draw_run_sheet(
    folder: Path,
    prompts: Sequence[int],
    variants: Sequence[str] | None,
    *,
    across: bool,
    of: str | None = None,
    photo: bool = False,
) -> Image.Image:
    """Draw a run's images of its first seed: a row for each variant, a column for each prompt.

    Args:
        of: the subject; the run's first one if left out.
        photo: also show what was learned, at the head of each row.
    """
    run = RunFolder(folder)
    info, samples = run.read_info(), run.read_samples()
    first = info.subjects[0] if of is None else of
    subject = next(c.subject for c in samples if first in (c.subject, split_group(c.subject)[0]))
    seed = info.suite.seeds[0]
    labels = variants or [variant.label for variant in info.suite.variants if variant.is_generated]
    files = {(c.variant, c.prompt): c.image for c in samples if (c.subject, c.seed) == (subject, seed)}
    names = [f"<{name}>" for name in split_group(subject)]
    said = {prompt: info.suite.prompts[prompt].text.format(*names) for prompt in prompts}
    places = [[(variant, prompt) for prompt in prompts] for variant in labels]
    titles, columns = list(labels), list(said.values())
    if across:
        places, titles, columns = [list(row) for row in zip(*places, strict=True)], columns, titles
    rows = [SheetRow(t, [Image.open(folder / files[p]) for p in row]) for t, row in zip(titles, places, strict=True)]
    if photo:
        learned = Image.open(folder / name_photo(split_group(subject)[0]))
        rows, columns = [SheetRow(row.label, [learned, *row.images]) for row in rows], ["the photo", *columns]
    return draw_contact_sheet(rows, columns, cell=128)


@dataclass(frozen=True)
class Best:
    """The best of the variants that start from one preset: label, settings, mean ID(Prompt)."""

    label: str
    settings: tuple[str, ...]
    id_prompt: float


def find_best(*names: str) -> dict[str, Best]:
    """Return the best by mean ID(Prompt) of the variants in these records that start from the same preset.

    Raises:
        ConfigError: images of one were missing when it was written.
    """
    found: dict[str, Best] = {}
    for name in names:
        record = read_record(name)
        check_finished(name, measure_record(record))
        for variant in record.info.suite.variants:
            if variant.control is None:
                mean = estimate_interval(record.figures[ALL][variant.label]["id_prompt"]).mean
                if variant.preset not in found or mean > found[variant.preset].id_prompt:
                    found[variant.preset] = Best(variant.label, variant.settings, mean)
    return found


def measure_record(record: RunRecord) -> Completeness:
    """Return how much of its run there was when a record was written."""
    info = record.info
    planned = list_planned_keys(info.suite, info.subjects, info.photos, info.folders)
    return Completeness(record.images, len(planned))


def read_record(name: str) -> RunRecord:
    """Return what `keep` wrote of a run.

    Raises:
        ConfigError: it is damaged.
    """
    file = RECORDS / f"{name}.json"
    file = file if file.is_file() else EARLIER / file.name
    with translate_file_errors(file, ConfigError, "is no record of a run", "Write it again with `keep`."):
        return RunRecord.parse(read_text(file, LARGEST_JSON))


def fill_tables(text: str) -> str:
    """Return a page with its tables made from the records."""
    return BLOCK.sub(lambda found: f"{found[1]}{render_block(found['asked'])}{found[3]}", text)


def render_block(asked: str) -> str:
    """Return a table: `SUITE [/ KIND] [[N-N]] [+ paper] [; VARIANT - VARIANT]... [; VARIANT]...: FIGURE, ...`."""
    what, _, columns = asked.rpartition(":")
    suite, *chosen = (part.strip() for part in what.split(";"))
    pairs, rows = [part for part in chosen if " - " in part], [part for part in chosen if " - " not in part]
    suite, with_paper, _ = (part.strip() for part in suite.partition("+ paper"))
    suite, _, subjects = (part.strip() for part in suite.partition("["))
    name, _, kind = (part.strip() for part in suite.partition("/"))
    record = read_record(name)
    metrics = [BY_NAME[column.strip()] for column in columns.split(",")]
    values = record.figures[kind or ALL]
    if subjects:
        values = select_subjects(values, subjects.removesuffix("]"))
    if rows:
        values = {label: values[label] for label in rows}
    if pairs:
        return render_differences(values, pairs, metrics)
    if with_paper:
        published = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))[name]
        return render_with_published(values, record.info, metrics, published)
    return render_means(values, record.info, metrics)


def select_subjects(values: VariantFigures, numbers: str) -> VariantFigures:
    """Return the figures of the drawn subjects from FIRST to LAST, by a text such as `600-611`."""
    first, last = (int(part) for part in numbers.split("-"))
    return {
        label: {
            figure: {subject: value for subject, value in of_figure.items() if first <= int(subject[1:]) <= last}
            for figure, of_figure in own.items()
        }
        for label, own in values.items()
    }


def render_means(values: VariantFigures, info: RunInfo, metrics: Sequence[Metric]) -> str:
    """Return a row for each variant: means over subjects with their intervals."""
    titles = make_row_titles(values, info)
    found = {label: [estimate_interval(own.get(f.name, {})) for f in metrics] for label, own in values.items()}
    rows = [[titles[label], *make_cells(row, metrics)] for label, row in found.items()]
    return render_markdown(["variant", *(format_heading(f) for f in metrics)], rows)


def make_row_titles(values: VariantFigures, info: RunInfo) -> dict[str, str]:
    """Return what a row of each variant is called; reference rows in italics."""
    references = {variant.label for variant in info.suite.variants if variant.control}
    return {label: f"*{label}*" if label in references else make_display_label(label) for label in values}


def render_with_published(
    values: VariantFigures, info: RunInfo, metrics: Sequence[Metric], published: dict[str, dict[str, float]]
) -> str:
    """Return `render_means` with the published figures; last how far the orders agree, by Kendall's tau."""
    titles = make_row_titles(values, info)
    rows: list[list[str]] = []
    for label, own in values.items():
        cells = [titles[label]]
        for metric in metrics:
            there = published.get(label, {}).get(metric.name, math.nan)
            mean = estimate_interval(own.get(metric.name, {}))
            cells += [*make_cells([mean], [metric]), format_value(there, metric.unit)]
        rows.append(cells)
    head = ["variant", *(text for metric in metrics for text in (format_heading(metric), "paper"))]
    orders = [measure_order(values, published, metric) for metric in metrics]
    agreement = [text for order in orders for text in ("-" if math.isnan(order) else f"{order:.2f}", "")]
    return render_markdown(head, [*rows, ["*agreement of the orders*", *agreement]])


def measure_order(values: VariantFigures, published: dict[str, dict[str, float]], metric: Metric) -> float:
    """Return Kendall's tau of measured means and published figures, over variants with both; nan if all are equal."""
    shared = [label for label in published if metric.name in published[label] and metric.name in values.get(label, {})]
    measured = [estimate_interval(values[label][metric.name]).mean for label in shared]
    return float(kendalltau(measured, [published[label][metric.name] for label in shared]).statistic)


def render_differences(values: VariantFigures, pairs: Sequence[str], metrics: Sequence[Metric]) -> str:
    """Return a row for each pair of variants: what the first has more, paired by subject."""
    rows: list[list[str]] = []
    for pair in pairs:
        mine, theirs = (values[label.strip()] for label in pair.split(" - "))
        found = [estimate_difference(mine.get(f.name, {}), theirs.get(f.name, {})) for f in metrics]
        rows.append([make_display_label(pair), *make_cells(found, metrics, sign=True)])
    return render_markdown(["difference", *(format_heading(f) for f in metrics)], rows)


def make_cells(row: Sequence[Interval], metrics: Sequence[Metric], *, sign: bool = False) -> list[str]:
    """Return means with intervals as a table's cells; a difference that tells a direction is bold."""
    texts: list[str] = []
    for found, metric in zip(row, metrics, strict=True):
        mean = format_value(found.mean, metric.unit, sign=sign)
        shown = f"**{mean}**" if sign and found.tells_direction else mean
        texts.append(f"{shown} {format_range(found, metric.unit, sign=sign)}".strip())
    return texts


def render_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    main()
