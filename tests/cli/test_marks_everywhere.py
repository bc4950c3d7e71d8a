"""Whatever a command writes that a model generated has both marks; what has none is listed here with its reason."""

import base64
import io
import json
import re
from fnmatch import fnmatch

import numpy as np
import pytest
from PIL import Image

from sefi.cli import demo
from sefi.cli.loading import load_config
from sefi.core.progress import SilentProgress
from sefi.provenance.mark import find_mark
from sefi.provenance.metadata import PARAMETERS_KEY, SOURCE_TYPE, read_source_type
from sefi.provenance.verify import verify_image

EMBEDDED = "tiny-portraits"
NOT_GENERATED = {
    "demo/portrait.png": "the portrait that was given",
    "run/photos/*.png": "photos of the subjects",
    "run/pictures/*--photo--*.png": "a reference row: the photo itself",
}
DATA_URI = re.compile(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)")  # plots are SVG
SUITE = """
about = "One subject."
kind = "person"
subjects = 1
seeds = [5]
settings = ["learn.steps=2", "learn.batch=1", "generate.steps=2"]

[[prompts]]
text = "a photo of {} at the beach"
kind = "scene"

[[prompts]]
text = "a photo of {} in the snow"
kind = "scene"

[[variants]]
label = "ours"

[[variants]]
label = "one stage"
settings = ["learn.stages=1"]

[[variants]]
label = "word"
control = "class word"

[[variants]]
label = "photo"
control = "photo"
"""


def is_marked(image):
    return find_mark(np.asarray(image.convert("RGB"))) is not None and read_source_type(image) == SOURCE_TYPE


def list_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def list_unmarked(folder):
    """Return the image files without marks, and every image in a page without them, opened, by its page."""
    files, in_pages, seen = [], [], 0
    for path in list_files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".png", ".jpg", ".jpeg"):
            seen += 1
            with Image.open(path) as image:
                files += [] if is_marked(image) else [name]
        if path.suffix == ".html":
            for content in DATA_URI.findall(path.read_text(encoding="utf-8")):
                seen += 1
                image = Image.open(io.BytesIO(base64.b64decode(content)))
                in_pages += [] if is_marked(image) else [(name, image)]
    assert seen
    return files, in_pages


def is_photo(image, photos):
    """Return whether an image of a page is one of these photos, resized and compressed at the most."""
    pixels = np.asarray(image.convert("RGB"), float)
    return any(np.abs(np.asarray(one.convert("RGB").resize(image.size), float) - pixels).mean() < 6 for one in photos)


def check_folder_of_marks(folder, photos):
    files, in_pages = list_unmarked(folder)
    assert [name for name in files if not any(fnmatch(name, pattern) for pattern in NOT_GENERATED)] == []
    assert [name for name, image in in_pages if not is_photo(image, photos)] == []
    return files, in_pages


def run_sefi(sefi, *words):
    found = sefi(*words)
    assert found.exit_code == 0, found.output
    return found


@pytest.mark.slow
def test_generate_and_attend_mark_every_file(sefi, tmp_path):
    words = ("--steps", 2, "--count", 2, "--out", tmp_path / "out", "--json")
    answer = json.loads(run_sefi(sefi, "generate", "a photo of a person at the beach", *words).stdout)
    run_sefi(sefi, "attend", "a photo of a person", "--steps", 2, "--out", tmp_path / "maps.png")
    assert len([path for path in list_files(tmp_path) if path.suffix == ".png"]) == 4
    assert check_folder_of_marks(tmp_path, []) == ([], [])
    assert answer["mark"] is True
    assert [entry["invisible_mark"] for entry in answer["images"]] == [True, True]
    with Image.open(answer["images"][1]["file"]) as image:
        words = image.info[PARAMETERS_KEY]
    assert "Seed: 1," in words
    assert f'Model: "{EMBEDDED} {answer["base_model"]}"' in words


def test_no_mark_leaves_out_the_mark_and_is_on_record(sefi, tmp_path):
    words = ("--steps", 2, "--out", tmp_path / "out", "--no-mark", "--json")
    answer = json.loads(run_sefi(sefi, "generate", "a photo of a person", *words).stdout)
    assert answer["mark"] is False
    assert json.loads((tmp_path / "out" / "records.json").read_text())["runs"][0]["mark"] is False
    assert [entry["invisible_mark"] for entry in answer["images"]] == [False]
    with Image.open(answer["images"][0]["file"]) as image, Image.open(answer["grid"]) as grid:
        assert "Invisible mark: off" in image.info[PARAMETERS_KEY]
        assert all(read_source_type(one) == SOURCE_TYPE for one in (image, grid))
        assert all(find_mark(np.asarray(one)) is None for one in (image, grid))


@pytest.mark.slow
def test_the_demo_marks_every_file_and_every_image_of_its_page(tmp_path):
    from sefi.backbone.open import open_backbone

    prompts = (("scene", "a photo of <ada> at the beach"), ("style", "a painting of <ada>"))
    config = load_config("fast", list(demo.QUICK))
    run = demo.DemoRun(open_backbone(), config, config, 0, SilentProgress(), prompts)
    portrait = demo.load_portrait()
    demo.make_demo(portrait, run, demo.prepare_demo_files(tmp_path / "demo"))
    files, in_pages = check_folder_of_marks(tmp_path, [Image.open(portrait.path)])
    assert files == ["demo/portrait.png"]
    assert len(in_pages) == 1


@pytest.mark.slow
def test_a_benchmark_its_report_and_its_study_mark_what_was_generated(sefi, tmp_path):
    suite, run = tmp_path / "suite.toml", tmp_path / "run"
    suite.write_text(SUITE)
    run_sefi(sefi, "bench", "run", suite, "--out", run)
    run_sefi(sefi, "bench", "report", run)
    run_sefi(sefi, "study", "build", run, "--out", tmp_path / "study.html", "--variants", "ours", "--variants", "word")
    photos = [Image.open(path) for path in (run / "photos").glob("*.png")]
    files, in_pages = check_folder_of_marks(tmp_path, photos)
    assert photos
    assert files
    assert {name for name, _ in in_pages} == {"run/report/index.html", "study.html"}
    assert json.loads((run / "run.json").read_text())["mark"] is True


@pytest.mark.slow
def test_a_grid_of_the_embedded_model_is_marked_in_a_palette_too(sefi, tmp_path):
    run_sefi(sefi, "world", "grid", "--kind", "pets", "--set", "generate.steps=1", "--out", tmp_path / "pets.png")
    assert check_folder_of_marks(tmp_path, []) == ([], [])


@pytest.mark.slow
def test_generate_signs_where_that_is_asked_for(sefi, tmp_path, monkeypatch):
    pytest.importorskip("c2pa")
    monkeypatch.setenv("SEFI_KEY_FILE", str(tmp_path / "settings" / "installation.key"))
    found = sefi("generate", "a photo of a person", "--steps", 2, "--sign", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    files = sorted((tmp_path / "out").glob("*.png"))
    assert len(files) == 2
    for file in files:
        bears = verify_image(file)
        assert bears.credentials.valid
        assert bears.credentials.is_generated
        assert bears.mark is not None
