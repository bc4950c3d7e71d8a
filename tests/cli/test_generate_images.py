"""`sefi generate` with a size, an image to start from, a mask, a ControlNet and repaired faces, and its record."""

import hashlib
import json
import shutil
import signal
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from tests.diffusion.test_source_image import make_controlnet, make_image, make_mask

from sefi.cli.attend import make_figure_writer
from sefi.cli.image_files import GridImage, make_grid_image, save_grid, shorten_names
from sefi.diffusion.sampling import GeneratedImage
from sefi.report.attention_figure import MapRow
from sefi.report.contact_sheet import SheetRow, draw_contact_sheet

PROMPT = "a photo of <ada> in snow"


@pytest.fixture
def files(backbone, tmp_path):
    """An image, its mask and a ControlNet, in a folder that nothing may be written to."""
    folder = tmp_path / "given"
    make_controlnet(backbone).save_pretrained(folder / "controlnet")
    make_image(56, 40).save(folder / "start.png")
    make_mask(56, 40).save(folder / "mask.png")
    return folder


@pytest.fixture
def generate(sefi, ada, model_folder, tmp_path):
    def run(*words, prompt=PROMPT):
        fixed = ("-i", ada, "--model", model_folder, "--device", "cpu", "--out", tmp_path / "out")
        return sefi("generate", prompt, *fixed, "--steps", 3, *words, "--json")

    return run


def read_tree(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_size_and_images_are_recorded(generate, files, tmp_path):
    before = read_tree(files)
    words = ["--width", 56, "--height", 40, "--scheduler", "dpm++_karras", "--init-image", files / "start.png"]
    words += ["--mask", files / "mask.png", "--control", files / "start.png", "--controlnet", files / "controlnet"]
    found = generate(*words, "--strength", 0.8, "--count", 2)
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer.pop("schema") == "generate/1"
    assert [shorten_names(answer)] == json.loads((tmp_path / "out" / "records.json").read_text())["runs"]
    assert answer["size"] == [56, 40]
    assert (answer["settings"]["width"], answer["settings"]["height"]) == (56, 40)
    assert answer["inputs"] == {
        "strength": 0.8, "control_scale": 1.0, "init_image": str(files / "start.png"), "mask": str(files / "mask.png"),
        "control": str(files / "start.png"), "controlnet": str(files / "controlnet"),
    }  # fmt: skip
    start = np.asarray(Image.open(files / "start.png"))
    for entry in answer["images"]:
        assert set(entry) == {"file", "prompt", "seed", "invisible_mark"}
        with Image.open(entry["file"]) as image:
            pixels = np.asarray(image)
        assert pixels.shape == (40, 56, 3)
        assert np.array_equal(pixels[:, :28], start[:, :28])
        assert not np.array_equal(pixels, start)
    assert read_tree(files) == before


def test_a_run_without_images_records_the_trained_size(generate):
    answer = json.loads(generate().stdout)
    assert answer["size"] == [24, 24]
    assert not {"width", "height"} & set(answer["settings"])
    assert answer["inputs"] == {}


def test_repaired_faces_are_recorded(generate):
    found = generate("--repair-faces")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["inputs"] == {"repair_faces": True}
    assert all(isinstance(entry["repaired_faces"], list) for entry in answer["images"])


def test_the_folder_of_images_may_hold_the_image_to_start_from(generate, files, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(files / "start.png", out / "a-photo-of-ada-in-snow-0.png")
    before = (out / "a-photo-of-ada-in-snow-0.png").read_bytes()
    found = generate("--init-image", out / "a-photo-of-ada-in-snow-0.png")
    assert found.exit_code == 0, found.output
    assert (out / "a-photo-of-ada-in-snow-0.png").read_bytes() == before
    assert json.loads(found.stdout)["images"][0]["file"].endswith("snow-0-2.png")


REFUSED = [
    (("--width", 20), "multiples of 8 pixels, and the width is 20"),
    (("--height", 5000), "generate.height"),
    (("--mask", "mask.png"), "--mask has no effect without --init-image"),
    (("--strength", 0.5), "--strength has no effect without --init-image"),
    (("--init-image", "none.png"), "There is no file"),
    (("--init-image", "start.png", "--strength", 0.3), "leaves no step of 3"),
    (("--control", "start.png", "--controlnet", "."), "not a ControlNet's folder"),
    (("--detector", "start.png"), "--detector has no effect without --repair-faces"),
    (("--repair-faces", "--detector", "none.onnx"), "no face detector"),
    (("--repair-faces", "--set", "generate.steps=2", "--steps", 2), "less than one of 2"),
    (("--scheduler", "heun"), "generate.scheduler"),
]


@pytest.mark.parametrize(("words", "named"), REFUSED, ids=[" ".join(map(str, words)) for words, _ in REFUSED])
def test_what_cannot_be_is_refused_before_any_writing(refused, ada, model_folder, files, tmp_path, words, named):
    paths = [files / word if str(word).endswith((".png", ".onnx", ".")) else word for word in words]
    fixed = ("-i", ada, "--model", model_folder, "--device", "cpu", "--out", tmp_path / "out", "--steps", 3)
    assert named in refused("generate", PROMPT, *fixed, *paths)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def draw_attention_of(name, path, **options):
    words = ["<start>", "photo", "of", f"<{name}>", "<end>"]
    heat = np.random.default_rng(0).random((len(words), 5, 5), dtype=np.float32)
    image = Image.new("RGB", (24, 24))
    rows = [MapRow("with the identity", words, heat, image, (3,), {}, {3: 0.5}), MapRow("b", words, heat, image, (3,))]
    make_figure_writer(rows, f"photo of <{name}>", mark=False, **options)(path)
    return path.read_bytes()


@pytest.mark.slow
def test_more_images_than_a_record_has_room_for_are_refused_before_a_model_is_opened(refused, tmp_path):
    words = ("a dog", "--count", 50_000, "--model", tmp_path / "none", "--out", tmp_path / "out")
    assert "no room for these images" in refused("generate", *words)
    assert not (tmp_path / "out").exists()


def test_a_figure_of_attention_names_nobody_unless_it_is_asked_to(tmp_path):
    path = tmp_path / "maps.png"
    hidden = draw_attention_of("subject", path, names=True)
    assert draw_attention_of("ada", path) == hidden
    assert draw_attention_of("ada", path, names=True) != hidden


@pytest.mark.slow
def test_maps_of_an_image_that_is_not_square(sefi, ada, model_folder, tmp_path):
    found = sefi("attend", PROMPT, "-i", ada, "--model", model_folder, "--device", "cpu", "--steps", 2, "--width", 56,
                 "--height", 24, "--out", tmp_path / "maps.png", "--json")  # fmt: skip
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["words"][5] == "in"
    with Image.open(tmp_path / "maps.png") as figure:
        assert figure.width > 100


@pytest.mark.parametrize("at_saving", [True, False])
def test_sigterm_keeps_the_images_so_far_and_their_record(generate, tmp_path, monkeypatch, at_saving):
    """It arrives while the second image is written, or while the third is generated."""
    import sefi.cli.image_files
    from sefi.cli.progress import TerminalProgress

    where, name = (sefi.cli.image_files, "save_numbered_image") if at_saving else (TerminalProgress, "advance")
    whole, calls, most = getattr(where, name), [], 2 if at_saving else 7

    def stop(*words, **options):
        calls.append(1)
        if len(calls) == most:
            signal.raise_signal(signal.SIGTERM)
        return whole(*words, **options)

    monkeypatch.setattr(where, name, stop)
    before = signal.getsignal(signal.SIGTERM)
    found = generate("--count", 4, "--batch-size", 1)
    assert found.exit_code == 143
    out = tmp_path / "out"
    assert json.loads(found.stdout)["error"] == f"Interrupted: 2 of 4 images are in '{out}'."
    images = sorted(path.name for path in out.glob("*.png"))
    [run] = json.loads((out / "records.json").read_text())["runs"]
    assert sorted(entry["file"] for entry in run["images"]) == images
    assert len(images) == 2
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def saving(monkeypatch):
    """Let a function see every image, and the file that it is written to, right after it was saved."""
    import sefi.cli.image_files

    whole, watch = sefi.cli.image_files.save_numbered_image, []

    def save(image, *words, **options):
        found = whole(image, *words, **options)
        for see in watch:
            see(image, found[0])
        return found

    monkeypatch.setattr(sefi.cli.image_files, "save_numbered_image", save)
    return watch.append


def test_an_image_that_is_deleted_meanwhile_takes_no_record_away(generate, saving, tmp_path):
    contents = {}

    def delete_the_first(_, path):
        contents[path.name] = path.read_bytes()
        if len(contents) == 2:
            Path(path.parent, next(iter(contents))).unlink()

    saving(delete_the_first)
    found = generate("--count", 3, "--batch-size", 1)
    assert found.exit_code == 0, found.output
    out = tmp_path / "out"
    assert len(list(out.glob("*.png"))) == 3  # two images and the grid
    [run] = json.loads((out / "records.json").read_text())["runs"]
    assert [entry["file"] for entry in run["images"]] == list(contents)
    hashes = {one["file"]: one["sha256"] for one in run["run"]["images"]}
    contents["grid.png"] = (out / "grid.png").read_bytes()
    assert hashes == {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def test_no_image_of_a_run_stays_in_memory_until_the_grid(generate, saving):
    seen, alive = [], []

    def count_images(image, _):
        seen.append(weakref.ref(image.pixels))
        alive.append(sum(one() is not None for one in seen))

    saving(count_images)
    found = generate("--count", 3, "--batch-size", 1)
    assert found.exit_code == 0, found.output
    assert len(seen) == 3
    assert max(alive) <= 2  # the image, and the one before it that the loop still names


def test_images_without_memory_for_their_grid_are_a_result(sefi, ada, model_folder, tmp_path, monkeypatch):
    def draw_nothing(*_, **__):
        raise MemoryError

    monkeypatch.setattr("sefi.report.contact_sheet.draw_contact_sheet", draw_nothing)
    out = tmp_path / "out"
    words = ("generate", PROMPT, "-i", ada, "--model", model_folder, "--device", "cpu", "--steps", 1, "--count", 2)
    found = sefi(*words, "--out", out)
    assert found.exit_code == 0, found.output
    images = [out / f"a-photo-of-ada-in-snow-{seed}.png" for seed in (0, 1)]
    assert found.stdout == f"{images[0]}\n{images[1]}\n"
    assert (
        f"not enough memory for a grid of these 2 images, so there is none; the images are in '{out}'" in found.stderr
    )
    assert sorted(out.glob("*.png")) == images
    [run] = json.loads((out / "records.json").read_text())["runs"]
    assert run["grid"] is None
    assert [one["file"] for one in run["images"]] == [path.name for path in images]
    assert [one["file"] for one in run["run"]["images"]] == [path.name for path in images]


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.tuples(st.integers(16, 400), st.integers(16, 400)), seed=st.integers(0, 99))
def test_the_grid_has_the_pixels_of_one_drawn_of_the_whole_images(tmp_path, size, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (2, size[1], size[0], 3), np.uint8)
    images = [GeneratedImage(Image.fromarray(pixels), "a cat", seed, index) for index, pixels in enumerate(noise)]
    path, encoded = save_grid([make_grid_image(image) for image in images], tmp_path, mark=False)
    assert path.read_bytes() == encoded.content
    wanted = draw_contact_sheet([SheetRow("a cat", [image.pixels for image in images])])
    with Image.open(path) as grid:
        assert np.array_equal(np.asarray(grid), np.asarray(wanted))


@pytest.mark.parametrize(("prompts", "count"), [(30, 3), (1, 80), (90, 1)])
def test_a_grid_of_many_images_has_smaller_ones(tmp_path, monkeypatch, prompts, count):
    """Pillow opens no image of 180 million pixels, so that of a run of thousands could not be read back."""
    monkeypatch.setattr("sefi.cli.image_files.LARGEST_GRID", 500_000)
    shown = [GridImage(f"cat {n}", Image.new("RGB", (160, 160))) for n in range(prompts) for _ in range(count)]
    path, _ = save_grid(shown, tmp_path, mark=False)
    with Image.open(path) as grid:
        assert 250_000 <= grid.width * grid.height <= 500_000


@pytest.mark.parametrize("names", [False, True])
def test_the_grid_names_nobody_unless_it_is_asked_to(generate, saving, tmp_path, names):
    paths = []
    saving(lambda _, path: paths.append(path))
    found = generate("--no-mark", *["--names"] * names)
    assert found.exit_code == 0, found.output
    label = PROMPT if names else "a photo of <subject> in snow"
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        wanted = draw_contact_sheet([SheetRow(label, [Image.open(paths[0])])])
        assert np.array_equal(np.asarray(grid), np.asarray(wanted))
