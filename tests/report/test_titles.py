"""Nothing that an attention figure says is cut off at its edge, however long its words and titles are."""

import numpy as np
import pytest
from PIL import Image

from sefi.report.figures import MapRow, attention_figure
from sefi.report.ink import INK, blank
from sefi.report.labels import SMALLEST, fit_text

SLACK = 1.5  # pixels: hinting
LONG = "the learned word with residual module, 500 steps, rate 1e-3 and the attention loss of all five stages"
ONE_WORD = "Donaudampfschifffahrtsgesellschaftskapitaensmuetzenfabrikantenverband"


def texts_of(axes):
    """What axes say: titles, labels, names, and the marks of the y axis that are in view."""
    texts = [axes.title, axes._left_title, axes._right_title, *axes.texts]
    if axes.axison:
        low, high = sorted(axes.get_ylim())
        texts += [axes.xaxis.label, axes.yaxis.label]
        texts += [t for t, at in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True) if low <= at <= high]
    return texts


def cut_off(figure):
    """Texts that leave the figure's edge."""
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in texts_of(axes)]
    texts += [panel._suptitle for panel in (figure, *figure.subfigs) if panel._suptitle is not None]
    edge, found = figure.bbox.padded(SLACK), []
    for text in texts:
        box = text.get_window_extent()
        if text.get_text().strip() and not (edge.contains(box.x0, box.y0) and edge.contains(box.x1, box.y1)):
            found.append((text.get_text(), box.bounds))
    return found


@pytest.mark.parametrize("words", [3])
def test_attention_figures_show_all_that_they_say(words):
    heat = np.full((words, 7, 7), 1 / words, np.float32)
    names = ["<start>", ONE_WORD, *(f"word{n}" for n in range(words - 2))]
    image = Image.new("RGB", (23, 23))
    row = MapRow(LONG, names, heat, image, [1], {}, {1: 0.53})
    figure = attention_figure([row, row], title=f"{LONG}; {LONG}")
    assert cut_off(figure) == []


def test_texts_break_between_words_first_then_shrink_then_are_cut():
    figure, (axis,) = blank(3, 2)
    figure.draw_without_rendering()

    def fitted(content, width):
        text = axis.text(0, 0, content, fontsize=10, color=INK)
        fit_text(text, width)
        assert text.get_window_extent().width <= width
        return text

    assert (fitted("a b", 100).get_text(), fitted("a b", 100).get_fontsize()) == ("a b", 10)
    assert fitted("one two three four", 60).get_text().split() == ["one", "two", "three", "four"]
    assert fitted("one two three four", 60).get_text().count("\n") >= 1
    assert fitted("max\n0.5", 100).get_text() == "max\n0.5"
    assert SMALLEST <= fitted("incomprehensibilities", 60).get_fontsize() < 10
    assert fitted("x" * 200, 60).get_text().endswith("\N{HORIZONTAL ELLIPSIS}")
