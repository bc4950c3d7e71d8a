"""`sefi generate` with a size, an image to start from, a mask, a ControlNet and repaired faces, and its record."""

import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image
from tests.diffusion.test_source_image import make_controlnet, make_image, make_mask

from sefi.cli.image_files import shorten_names

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
    (("--repair-faces", "--set", "generate.steps=2", "--steps", 2), "no step of 2"),
    (("--scheduler", "heun"), "generate.scheduler"),
]


@pytest.mark.parametrize(("words", "named"), REFUSED, ids=[" ".join(map(str, words)) for words, _ in REFUSED])
def test_what_cannot_be_is_refused_before_any_writing(refused, ada, model_folder, files, tmp_path, words, named):
    paths = [files / word if str(word).endswith((".png", ".onnx", ".")) else word for word in words]
    fixed = ("-i", ada, "--model", model_folder, "--device", "cpu", "--out", tmp_path / "out", "--steps", 3)
    assert named in refused("generate", PROMPT, *fixed, *paths)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


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
