"""Nothing that a plot or a sheet says is cut off at its edge, however long names, kinds, words and subjects are."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from matplotlib.text import Text
from PIL import Image

from sefi.benchmark.statistics import Interval
from sefi.benchmark.table_metrics import METRICS
from sefi.benchmark.tables import Curve, Table, VariantRow
from sefi.report import plots
from sefi.report.attention_figure import MapRow, draw_attention_figure
from sefi.report.contact_sheet import DOTS, SheetRow, draw_contact_sheet, wrap_text
from sefi.report.plot_style import choose_styles, keep_inside, measure_text

METRIC = {metric.name: metric for metric in METRICS}
SLACK = 1.5  # pixels: hinting
LONG = "the learned word with residual module, 500 steps, rate 1e-3 and the attention loss of all five stages"
ONE_WORD = "Donaudampfschifffahrtsgesellschaftskapitaensmuetzenfabrikantenverband"
LABELS = {"short": "way", "long": LONG, "endless": f"{ONE_WORD} {LONG} " * 20, "math": "$a$ $\\x$"}
CASES = [
    *(("short", 1), ("short", 2), ("short", 17), ("long", 1), ("long", 2), ("long", 17)),
    *(("endless", 1), ("endless", 17), ("math", 2)),
]


def visible_texts(figure):
    """Every text that is drawn; the marks of an axis only where they are in view."""
    hidden = set()
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            out = [tick for tick in ticks if not axes.axison or not low <= tick.get_loc() <= high]
            hidden |= {text for tick in out for text in (tick.label1, tick.label2)}
            hidden |= set() if axes.axison else {axis.label, axis.offsetText}
    texts = [text for text in figure.findobj(Text) if text not in hidden]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def cut_off(figure):
    """What leaves the figure's edge, with its place."""
    figure.draw_without_rendering()
    edge = figure.bbox.padded(SLACK)
    boxes = [(text.get_text(), text.get_window_extent()) for text in visible_texts(figure)]
    return [(text, box.bounds) for text, box in boxes if not (edge.contains(*box.min) and edge.contains(*box.max))]


def words_of(figure):
    return " ".join(text.get_text() for text in visible_texts(figure)).split()


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that becomes SVG."""
    figures, svg_text = [], plots.render_svg

    def remember(figure, name):
        figures.append(figure)
        return svg_text(figure, name)

    monkeypatch.setattr(plots, "render_svg", remember)
    return figures


def made_table(label, count, metrics):
    """So many variants, the last a reference row far from all others where there are several."""
    labels = [f"{label} {n}" for n in range(count)]
    controls = [None] * (count - 1) + ["photo" if count > 1 else None]
    variants = [VariantRow(label, "", control) for label, control in zip(labels, controls, strict=True)]
    levels = 0.2 + 0.5 * np.random.default_rng(count).random(count)
    levels[-1] = 5.0
    intervals = [Interval(level, level - 0.07, level + 0.07, 3) for level in levels]
    values = {
        (variant.label, metric.name): each
        for variant, each in zip(variants, intervals, strict=True)
        for metric in metrics
    }
    return Table("", tuple(variants), tuple(metrics), {}, values, finished=True)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("label", "count"), CASES)
def test_the_trade_off_shows_all_that_it_says(drawn, label, count):
    found = made_table(LABELS[label], count, [METRIC["prompt"], METRIC["id"]])
    plots.plot_trade_off(found, choose_styles(found.variants))
    assert cut_off(drawn[0]) == []
    assert ("far" in words_of(drawn[0])) == (count > 1)
    assert min(drawn[0].axes[0].get_window_extent().size) > 150


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("label", "count"), CASES)
def test_curves_over_tau_show_all_that_they_say(drawn, label, count):
    taus = np.linspace(0.1, 0.4, 5)
    names = [f"{n} {LABELS[label]}" for n in range(count)]
    starts = np.random.default_rng(count).random(count) ** 4  # most of them close together
    curves = {
        name: Curve(taus, tuple(Interval(start * left, 0.0, start, 3) for left in (1, 0.8, 0.5, 0.2, 0)))
        for name, start in zip(names, starts, strict=True)
    }
    plots.plot_tau_curves(curves, choose_styles([VariantRow(name, "", None) for name in names]), 0.4)
    assert cut_off(drawn[0]) == []
    boxes = [text.get_window_extent() for text in drawn[0].axes[0].texts if not text.get_text().startswith("tau")]
    assert len(boxes) == count
    assert all(box.padded(-1).count_overlaps([b for b in boxes if b is not box]) == 0 for box in boxes)
    frame = drawn[0].axes[0].get_window_extent().padded(SLACK)
    assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("label", "count", "kinds"),
    [("short", 1, 1), ("short", 2, 17), ("long", 1, 1), ("long", 17, 2), ("endless", 2, 3), ("math", 2, 1)],
)
def test_bars_show_all_that_they_say(drawn, label, count, kinds):
    found = made_table(LABELS[label], count, [METRIC["id"]])
    plots.plot_kind_bars(
        {f"{n} {LABELS[label]}": found for n in range(kinds)}, METRIC["id"], choose_styles(found.variants)
    )
    assert cut_off(drawn[0]) == []
    names = [text.get_window_extent() for text in drawn[0].axes[0].get_yticklabels()]
    titles = [axis._left_title.get_window_extent() for axis in drawn[0].axes]
    for boxes in (names, titles):
        assert all(box.count_overlaps([b for b in boxes if b is not box]) == 0 for box in boxes)
    assert min(axis.get_window_extent().width for axis in drawn[0].axes) > 60


@pytest.mark.slow
@pytest.mark.parametrize(("words", "label"), [(1, "short"), (2, "endless"), (3, "math"), (17, "long")])
def test_attention_figures_show_all_that_they_say(words, label):
    heat = np.full((words, 7, 7), 1 / words, np.float32)
    names = ["<start>", ONE_WORD, *(f"word{n}" for n in range(words))][:words]
    row = MapRow(LABELS[label], names, heat, Image.new("RGB", (23, 23)), [words - 1], {}, {words - 1: 0.53})
    figure = draw_attention_figure([row, row], title=f"{LABELS[label]}; {LABELS[label]}")
    assert cut_off(figure) == []
    assert len([axis for axis in figure.axes if axis.images]) == 2 * (words + 1)
    assert min(axis.get_window_extent().width for axis in figure.axes) > 60


def test_text_breaks_between_words_then_inside_a_word_and_ends_in_dots():
    assert wrap_text("one two  three", 7, len, 9) == "one two\nthree"
    assert wrap_text("a\nb", 3, len, 9) == "a b"
    assert wrap_text("one incredible word", 6, len, 9) == "one\nincred\nible\nword"
    assert wrap_text("one two three four", 7, len, 2) == "one two\nthre..."
    assert wrap_text("", 7, len, 2) == ""


@given(st.text("abc \n\u00e4", max_size=60), st.integers(4, 12), st.integers(1, 5))
def test_wrapped_text_fits_and_loses_no_letter_but_those_behind_dots(content, width, most):
    wrapped = wrap_text(content, width, len, most)
    lines = wrapped.split("\n")
    assert len(lines) <= most
    assert all(len(line) <= width for line in lines)
    letters, given_letters = "".join(wrapped.split()), "".join(content.split())
    assert letters == given_letters or given_letters.startswith(letters.removesuffix(DOTS))


def test_width_grows_with_the_text_the_size_and_the_weight():
    widths = [measure_text("word", 10), measure_text("word", 10, bold=True), measure_text("word", 20)]
    assert widths == sorted(set(widths))
    assert measure_text("word", 20) == pytest.approx(2 * measure_text("word", 10))
    assert measure_text("$a$", 10) > measure_text("a", 10)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 1))
def test_labels_moved_inside_stay_in_order_and_apart(values, fill):
    gap = fill / len(values)
    moved = np.array(keep_inside(values, gap, 0, 1))
    assert moved.min() >= gap / 2 - 1e-9
    assert moved.max() <= 1 - gap / 2 + 1e-9
    assert np.all(np.diff(moved[np.argsort(values, kind="stable")]) >= gap - 1e-9)


@pytest.mark.parametrize("label", LABELS)
def test_sheets_write_no_label_into_its_neighbour(label):
    """With and without one label the rest of the sheet is the same."""
    image = Image.new("RGB", (50, 50), (90, 120, 60))
    rows = [[SheetRow("a", [image, image]), SheetRow(text, [image, image])] for text in (LABELS[label], "b")]
    named, plain = (np.asarray(draw_contact_sheet([*pair, pair[0]], [pair[1].label, "c"], cell=96)) for pair in rows)
    high, wide = named.shape[0] - 3 * 102, named.shape[1] - 2 * 102
    grid = slice(plain.shape[0] - 3 * 102, None)
    assert (named[high:, wide:] == plain[grid, wide:]).all()
    assert (named[:high, wide + 102 :] == named[0, 0]).mean() > 0.9
    assert (named[high : high + 96, :wide] == plain[grid][:96, :wide]).all()
    assert (named[high + 2 * 102 :, :wide] == plain[grid][2 * 102 :, :wide]).all()
