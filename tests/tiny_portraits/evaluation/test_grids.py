"""Grids: seeded prompts of the world's words, tiles in their places, small files, wrong kinds refused."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sefi.cli.app import app
from sefi.cli.world import add_captions
from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from tiny_portraits.drawing.content import SHIPPED
from tiny_portraits.evaluation.grids import (
    GAP,
    KINDS,
    TEMPLATES,
    arrange_tiles,
    convert_to_palette,
    draw_prompts,
    fill_names,
    fill_templates,
    get_kind,
    make_prompts,
)
from tiny_portraits.text.captions import FIRST, LAST
from tiny_portraits.text.tokenizing import fits_in
from tiny_portraits.text.words import MEDIA, list_characters

COUNTS = {"everything": 64, "two": 16, "pets": 16, "styles": 4 * len(SHIPPED.styles)}


def short(text):
    return len(text) < 80


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_fill_the_grid_and_follow_the_seed(kind):
    made = make_prompts(KINDS[kind], 3, short)
    assert len(made) == COUNTS[kind]
    assert len(made) % KINDS[kind].columns == 0
    assert made == make_prompts(KINDS[kind], 3, short)
    assert not any(mark in text for text in made for mark in (FIRST, LAST, "{", "<"))


def test_random_prompts_fit_and_change_with_the_seed():
    made = make_prompts(KINDS["everything"], 0, short)
    assert all(map(short, made))
    assert made != make_prompts(KINDS["everything"], 1, short)


def test_names_are_of_different_real_characters():
    text = fill_names(f"a photo of {FIRST} {LAST} and {FIRST}", np.random.default_rng(0))
    first, last, other = text.removeprefix("a photo of ").replace(" and ", " ").split()
    known = {c.first: c.last for c in list_characters()}
    assert known[first] == last
    assert other in known
    assert other != first


def test_styles_stand_in_columns():
    made = make_prompts(KINDS["styles"], 0, short)
    columns = [{text.rsplit(words[0], 1)[-1] for text in made if text.startswith(words[0])} for words in MEDIA.values()]
    assert all(len(shown) == 4 for shown in columns)
    assert all(shown == columns[0] for shown in columns)


def test_a_sentence_fits_with_its_start_and_end(backbone):
    room = backbone.text_length - 2
    assert fits_in(backbone)(" ".join(["dog"] * room))
    assert not fits_in(backbone)(" ".join(["dog"] * (room + 1)))


def test_the_nth_image_has_the_nth_seed(backbone):
    from sefi.core.config import GenerateSettings

    config, progress = GenerateSettings(steps=2), SilentProgress()
    first, second = draw_prompts(backbone, ["a dog", "a dog"], 4, config, progress)
    (again,) = draw_prompts(backbone, ["a dog"], 5, config, progress)
    assert np.abs(np.asarray(second, int) - np.asarray(again, int)).max() <= 1
    assert np.abs(np.asarray(first, int) - np.asarray(again, int)).max() > 1


def test_tiles_go_row_by_row():
    tiles = [Image.new("RGB", (5, 7), (n, 0, 0)) for n in range(5)]
    page = arrange_tiles(tiles, 3)
    assert page.size == (3 * 5 + 2 * GAP, 2 * 7 + GAP)
    assert page.getpixel((5 + GAP, 7 + GAP)) == (4, 0, 0)
    assert page.getpixel((page.width - 1, page.height - 1)) == page.getpixel((5, 0)) == (250, 249, 245)


def test_captions_lie_under_images_and_have_one_size():
    images = [Image.new("RGB", (112, 112), "red")] * 2
    tiles = add_captions(images, ["a dog", "a photo of a person with a long description in the snow"])
    assert len({tile.size for tile in tiles}) == 1
    assert all(tile.crop((0, 0, 112, 112)).getcolors() == [(112 * 112, (255, 0, 0))] for tile in tiles)
    dark = [(np.asarray(tile.convert("L"))[112:] < 128).sum() for tile in tiles]
    assert 0 < dark[0] < dark[1]


def test_saved_files_are_small_and_true(tmp_path):
    noise = np.random.default_rng(0).integers(0, 30, (200, 200, 3)) + np.arange(200)[:, None, None]
    page = Image.fromarray(noise.astype(np.uint8))
    convert_to_palette(page).save(tmp_path / "small.png", optimize=True)
    page.save(tmp_path / "large.png", optimize=True)
    assert (tmp_path / "small.png").stat().st_size < (tmp_path / "large.png").stat().st_size / 2
    with Image.open(tmp_path / "small.png") as kept:
        assert np.abs(np.asarray(kept.convert("RGB"), int) - noise).mean() < 12


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(ConfigError, match="everything, two, pets, styles"):
        get_kind("beauty")


@pytest.mark.slow
def test_the_command_writes_one_image(tmp_path, monkeypatch):
    # One row of the four is enough.
    monkeypatch.setitem(KINDS, "pets", replace(KINDS["pets"], prompts=partial(fill_templates, TEMPLATES["pets"][:4])))
    out = tmp_path / "pets.png"
    words = ["world", "grid", "--kind", "pets", "--set", "generate.steps=1", "--seed", "2", "--out", str(out), "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert list(tmp_path.iterdir()) == [out]
    answer = json.loads(found.stdout)
    assert (answer["out"], answer["kind"], answer["seed"], len(answer["prompts"])) == (str(out), "pets", 2, 4)
    with Image.open(out) as grid:
        assert grid.mode == "P"
        assert grid.width == 4 * KINDS["pets"].side + 3 * GAP


def test_the_command_refuses_an_unknown_kind_before_it_opens_a_model(tmp_path):
    words = ["world", "grid", "--kind", "beauty", "--model", "nowhere", "--out", str(tmp_path / "x.png"), "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert "beauty" in json.loads(found.stdout)["error"]
    assert "everything" in json.loads(found.stdout)["try"]
