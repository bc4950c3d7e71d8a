"""COMPOSER: a run's records, pictures and tables to one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined

from sefi.bench.curves import tau_curves
from sefi.bench.figures import FIGURES, Part
from sefi.bench.plan import completeness
from sefi.bench.records import RunInfo, Sample
from sefi.bench.table_files import ARROWS
from sefi.bench.tables import Table, by_kind, differences_to_all, table
from sefi.report import bench_facts, bench_pictures
from sefi.report.bench_numbers import View, difference_view, view
from sefi.report.ink import svg_uri, way_styles
from sefi.report.page import template
from sefi.report.plots import kind_bars, tau_plot, trade_off

SHEET_SEED = 0
BARS = ("id_prompt", "id", "shown")  # what is drawn for each kind of prompt
OTHER_DIFFERENCES: tuple[Part, ...] = ("person", "prompt", "picture", "cost")
PARTS: dict[Part, str] = {
    "main": "All prompts",
    "person": "The person",
    "prompt": "The prompt",
    "picture": "The picture",
}


@dataclass(frozen=True)
class Plot:
    """A plot as a `data:` address, and one sentence on it."""

    uri: str
    about: str


def bench_page(run: RunInfo, samples: Sequence[Sample], folder: Path) -> str:
    """Render a benchmark run.

    Args:
        run: What was asked, as in `run.json`.
        samples: One for each picture, as in `cells.jsonl`.
        folder: The run's folder: pictures, `photos/SUBJECT.png`, and `attention/*.png` if there are any. A picture
            that is gone leaves a hole.

    Returns:
        HTML that needs no other file, runs no script and asks no server for anything; light or dark as the reader's
        system is. Equal runs give equal pages.

    Raises:
        ConfigError: There is no picture, or one of a way that the run does not have.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(template))
    return environment.get_template("bench.html.j2").render(story(run, samples, folder))


def story(run: RunInfo, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
    """Everything that the page tells, by the names of the template."""
    found, kinds = table(samples, run), by_kind(samples, run)
    first, others = differences_to_all(samples, run)
    best, worst = bench_pictures.picked(samples, run, folder, first)
    return {
        "run": run,
        "arrows": ARROWS,
        "counts": counts(run, samples),
        "banner": completeness(run, samples).banner,
        "first": first,
        "views": [each for part, title in PARTS.items() if (each := view(found, title, part)).figures],
        "costs": view(found, "Cost", "cost", anchors=False),
        "figures": [figure for figure in FIGURES if figure in found.figures],
        "differences": difference_view(found, "Main figures", others, ("main",)),
        "other_differences": difference_view(found, "All other figures", others, OTHER_DIFFERENCES),
        "plots": plots(found, samples, run),
        "bars": bars(found, kinds),
        "kinds": kind_views(kinds),
        "sheets": bench_pictures.drawn_sheets(samples, run, folder, np.random.default_rng(SHEET_SEED)),
        "sheet_seed": SHEET_SEED,
        "best": best,
        "worst": worst,
        "attention": bench_pictures.attention_figures(folder),
        **facts(found, samples, run),
    }


def counts(run: RunInfo, samples: Sequence[Sample]) -> dict[str, int]:
    """How many there are of what was compared."""
    suite = run.suite
    return {
        "subjects": len({sample.subject for sample in samples}),
        "prompts": len(suite.prompts),
        "seeds": len(suite.seeds),
        "ways": len({sample.variant for sample in samples}),
        "pictures": len(samples),
    }


def facts(found: Table, samples: Sequence[Sample], run: RunInfo) -> dict[str, Any]:
    """What is said in words."""
    labels, apart = bench_facts.settings_apart(run)
    return {
        "failures": bench_facts.failures(samples, run),
        "not_computed": bench_facts.not_computed(found),
        "conventions": bench_facts.conventions(run),
        "anchors": bench_facts.anchors(run),
        "settings_labels": labels,
        "settings_apart": apart,
        "settings_shared": bench_facts.settings_shared(run),
        "digest": bench_facts.pictures_digest(samples),
        "limits": bench_facts.limits(samples),
    }


def plots(found: Table, samples: Sequence[Sample], run: RunInfo) -> list[Plot]:
    """The trade-off and the curve over tau, where the run has what they need."""
    styles, curves = way_styles(found.ways), tau_curves(samples, run)
    drawn: list[Plot] = []
    if any(all(found.values[w.label, name].computed for name in ("prompt", "id")) for w in found.ways):
        about = "Likeness against obedience, bars are 95 % intervals. Whatever lies in the shade is beaten in both."
        drawn.append(Plot(svg_uri(trade_off(found, styles)), about))
    if curves:
        about = "ID(Prompt) for every threshold: the ways under test with their 95 % bands, anchors dashed."
        drawn.append(Plot(svg_uri(tau_plot(curves, styles, run.tau)), about))
    return drawn


def bars(found: Table, kinds: Mapping[str, Table]) -> list[tuple[str, str]]:
    """Label and plot of each figure that is drawn for each kind of prompt; anchors that are photos are left out."""
    compared = [way.label for way in found.ways if way.control in (None, "class word")]
    styles = {label: style for label, style in way_styles(found.ways).items() if label in compared}
    known = {
        name for t in kinds.values() for (label, name), value in t.values.items() if label in styles and value.computed
    }
    chosen = [figure for figure in FIGURES if figure.name in BARS and figure.name in known]
    return [(figure.label, svg_uri(kind_bars(kinds, figure, styles))) for figure in chosen]


def kind_views(kinds: Mapping[str, Table]) -> list[View]:
    """The main figures for each kind of prompt."""
    views = [view(found, kind, "main") for kind, found in kinds.items()]
    return [each for each in views if each.figures]
