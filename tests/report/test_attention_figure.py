"""The attention figure draws one map for each word and says what the face gets."""

import numpy as np
import pytest
from PIL import Image

from sefi.report.attention_figure import COLUMNS, MapRow, draw_attention_figure, encode_figure

WORDS = ["<start>", "a", "photo", "of", "<ada>", "smiling", "in", "the", "snow", "<end>"]


def row(**changes):
    maps = np.random.default_rng(0).random((len(WORDS), 5, 5), dtype=np.float32)
    values = {"label": "<ada>", "words": WORDS, "maps": maps, "placeholders": (4,)}
    return MapRow(image=Image.new("RGB", (24, 24)), **(values | changes))


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def test_every_word_gets_a_map_start_and_end_too():
    found = titles(draw_attention_figure([row(), row(label="person")]))
    for word in WORDS:
        assert sum(title.startswith(f"{word}\n") for title in found) == 2


def test_words_beyond_one_line_go_on_below():
    figure = draw_attention_figure([row()])
    assert len(WORDS) + 1 > COLUMNS
    assert len(figure.axes) == 12  # two lines of six hold the image and ten words


def test_the_share_and_the_box_of_the_face_are_shown():
    figure = draw_attention_figure([row(faces={4: (0.25, 0.5, 0.75, 1.0)}, shares={4: 0.625})])
    panel = figure.subfigs[0]
    assert "62%" in panel.get_suptitle()
    boxes = [axis for axis in figure.axes if axis.patches]
    assert [axis.get_title().split("\n")[0] for axis in boxes] == ["<ada>"]
    box = boxes[0].patches[0].get_bbox()
    assert (box.x0, box.y0, box.width, box.height) == (6, 12, 12, 12)


def test_a_missing_face_is_said():
    assert "no face" in draw_attention_figure([row()]).subfigs[0].get_suptitle()


def test_maps_and_words_must_agree():
    with pytest.raises(ValueError, match="one map per word"):
        draw_attention_figure([row(words=WORDS[:-1])])


@pytest.mark.slow
def test_equal_figures_are_equal_files(tmp_path):
    for name in ("one.png", "two.png"):
        encode_figure(draw_attention_figure([row()])).write(tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
