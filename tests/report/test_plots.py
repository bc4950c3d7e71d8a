"""Plots show every variant in its own colour, in words that can be read, and the same each time."""

import base64
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sefi.benchmark.statistics import Interval
from sefi.benchmark.table_metrics import METRICS
from sefi.benchmark.tables import VariantRow, compute_tau_curves, make_table, make_tables_by_kind
from sefi.report.plot_style import (
    PALETTE,
    REFERENCE,
    SOFT,
    TEXT,
    THEME,
    choose_styles,
    encode_svg_uri,
    label_points,
    make_axes,
    spread,
)
from sefi.report.plots import (
    compute_limits,
    find_distant,
    find_pareto_front,
    make_error_bars,
    plot_kind_bars,
    plot_tau_curves,
    plot_trade_off,
)

METRIC = {metric.name: metric for metric in METRICS}
CARD = "#ffffff", "#212127"  # the paper under the plots, light and dark
numbers = st.integers(0, 6)


@pytest.fixture
def told(synthetic):
    """Run, samples, table and styles."""
    run, samples = synthetic.make_run(), synthetic.make_samples()
    found = make_table(samples, run)
    return run, samples, found, choose_styles(found.variants)


def drawings(told):
    run, samples, found, styles = told
    return {
        "trade-off": plot_trade_off(found, styles),
        "tau": plot_tau_curves(compute_tau_curves(samples, run), styles, run.tau),
        "bars": plot_kind_bars(make_tables_by_kind(samples, run), METRIC["id_prompt"], styles),
    }


def texts(svg):
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.slow
def test_equal_runs_give_equal_plots_without_a_time_stamp(told):
    first, second = drawings(told), drawings(told)
    assert first == second
    assert len(set(first.values())) == 3
    assert not any("date" in svg for svg in first.values())


@pytest.mark.slow
def test_text_stays_text_and_names_every_variant(told):
    labels = {variant.label for variant in told[2].variants}
    for svg in drawings(told).values():
        assert labels <= set(texts(svg))
        assert "system-ui" in svg
        assert "DejaVuSans-" not in svg  # no letters drawn as outlines


@pytest.mark.slow
def test_a_variant_has_one_colour_in_all_plots(told):
    styles = told[3]
    for svg in drawings(told).values():
        for label in ("ours", "one token"):
            name = next(line for line in svg.splitlines() if f">{label}<" in line)
            assert styles[label].colour in name
    assert styles["ours"].colour != styles["one token"].colour


def test_styles_differ_and_reference_rows_are_grey():
    variants = [VariantRow(f"w{n}", "", None) for n in range(13)] + [VariantRow("class word", "", "class word")]
    styles = choose_styles(variants)
    looks = {(style.colour, style.marker) for style in styles.values()}
    assert len(looks) == 14
    assert len({styles[f"w{n}"].colour for n in range(len(PALETTE))}) == len(PALETTE)
    assert (styles["class word"].colour, styles["class word"].fill) == (REFERENCE, "none")


def test_a_reference_row_between_variants_shifts_no_colour():
    variants = [VariantRow("a", "", None), VariantRow("x", "", "photo"), VariantRow("b", "", None)]
    plain = choose_styles([variants[0], variants[2]])
    assert {label: style for label, style in choose_styles(variants).items() if label != "x"} == plain


def luminance(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first, second):
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [*PALETTE, TEXT, SOFT, REFERENCE])
def test_names_can_be_read_on_light_and_dark(colour):
    assert contrast(colour, CARD[0]) >= 3.8  # bold names and marks need 3 (WCAG 2.2, 1.4.3 and 1.4.11)
    assert contrast(THEME[colour], CARD[1]) >= 4.5


@pytest.mark.slow
def test_plots_follow_the_readers_light(told):
    for svg in drawings(told).values():
        assert "prefers-color-scheme: dark" in svg
        assert f"fill: {TEXT}" not in svg  # every colour comes through the theme
        assert "var(--c" in svg


@pytest.mark.slow
def test_the_address_holds_the_plot(told):
    svg = drawings(told)["tau"]
    kind, content = encode_svg_uri(svg).split(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(content).decode() == svg


@given(st.lists(st.tuples(numbers, numbers), max_size=9))
def test_the_frontier_is_what_nothing_beats(points):
    def beaten(point):
        return any(o != point and o[0] >= point[0] and o[1] >= point[1] for o in points)

    assert find_pareto_front(points) == sorted({point for point in points if not beaten(point)})


def test_distant_reference_rows_are_named_and_not_plotted():
    means = {"ours": (0.25, 0.5), "theirs": (0.28, 0.6), "photo": (0.26, 2.0), "same": (0.26, 0.8)}
    assert find_distant(means, ["ours", "theirs"]) == {"photo": (0.26, 2.0)}
    assert find_distant(means, ["nobody"]) == {}


@pytest.mark.slow
def test_the_edge_names_distant_reference_rows(synthetic):
    samples = [
        c.model_copy(update={"id": c.id / 20}) if c.variant in ("ours", "one token") else c
        for c in synthetic.make_samples()
    ]
    found = make_table(samples, synthetic.make_run())
    words = texts(plot_trade_off(found, choose_styles(found.variants)))
    assert "photo" not in words
    assert any(word.startswith("not drawn, far away:") and "photo (0.17, 0.9" in word for word in words)


def test_a_point_without_an_interval_has_no_bar():
    nan = float("nan")
    whole, single = Interval(0.5, 0.4, 0.6, 3), Interval(0.3, nan, nan, 1)
    assert make_error_bars(whole, single) == [((0.4, 0.3), (0.6, 0.3))]
    assert make_error_bars(single, single) == []


def test_the_runs_tau_is_marked_and_left_out_without_one(told):
    run, samples, _, styles = told
    curves = compute_tau_curves(samples, run)
    assert "tau 0.230" in texts(plot_tau_curves(curves, styles, 0.23))
    assert not any(word.startswith("tau 0") for word in texts(plot_tau_curves(curves, styles, None)))


@pytest.mark.slow
def test_bars_show_their_numbers_and_kinds(told):
    run, samples, _, styles = told
    kinds = make_tables_by_kind(samples, run)
    words = texts(plot_kind_bars(kinds, METRIC["shown"], styles))
    assert {"scene", "action", "combination"} <= set(words)
    assert f"{kinds['scene'].values['ours', 'shown'].mean:.1%}" in words
    assert "100%" in words


def test_all_kinds_share_one_scale_from_zero():
    shown = [Interval(0.2, 0.1, 0.4, 3), Interval(-0.1, -0.2, 0.0, 3), Interval(0.3, float("nan"), float("nan"), 1)]
    assert compute_limits(shown, METRIC["id"]) == (-0.2, pytest.approx(0.4 * 1.45))
    assert compute_limits(shown[:1], METRIC["shown"]) == (0.0, 1.45)  # a share could be 1
    assert compute_limits([Interval(0.0, 0.0, 0.0, 3)], METRIC["id"]) == (0.0, 1.0)


@pytest.mark.slow
def test_what_was_not_computed_has_no_bar(synthetic):
    samples = [c.model_copy(update={"shown": None}) if c.variant == "ours" else c for c in synthetic.make_samples()]
    kinds = make_tables_by_kind(samples, synthetic.make_run())
    words = texts(plot_kind_bars(kinds, METRIC["shown"], choose_styles(kinds["scene"].variants)))
    assert "ours" not in words
    assert "one token" in words


def test_plots_without_figures_are_refused(synthetic):
    run = synthetic.make_run()
    samples = [c.model_copy(update={"id": None, "prompt_score": None}) for c in synthetic.make_samples()]
    found = make_table(samples, run)
    styles = choose_styles(found.variants)
    with pytest.raises(ValueError, match="prompt score and an ID"):
        plot_trade_off(found, styles)
    with pytest.raises(ValueError, match="no curve"):
        plot_tau_curves(compute_tau_curves(samples, run), styles, 0.2)
    with pytest.raises(ValueError, match="no kind of prompt has ID"):
        plot_kind_bars(make_tables_by_kind(samples, run), METRIC["id"], styles)


def test_names_do_not_cover_each_other():
    figure, (axis,) = make_axes(5, 4)
    points = {f"variant {n}": (0.5 + 0.01 * n, 0.5 + 0.01 * (n % 2)) for n in range(5)}
    axis.set(xlim=(0, 1), ylim=(0, 1))
    label_points(axis, points, dict.fromkeys(points, TEXT))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == list(points)
    for index, box in enumerate(boxes):
        assert box.count_overlaps([other for other in boxes if other is not boxes[index]]) == 0
        assert axis.get_window_extent().contains(box.x0, box.y0)


def test_names_stay_inside_at_the_right_edge():
    figure, (axis,) = make_axes(5, 4)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    label_points(axis, {"a long name": (0.99, 0.5)}, {"a long name": TEXT})
    figure.draw_without_rendering()
    assert axis.texts[0].get_window_extent().x1 <= axis.get_window_extent().x1


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8), st.floats(0.01, 1))
def test_spread_names_keep_their_distance_order_and_mean(values, gap):
    moved = spread(values, gap)
    assert np.mean(moved) == pytest.approx(np.mean(values), abs=1e-9)
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(np.array(moved)[order]) >= gap - 1e-9)
