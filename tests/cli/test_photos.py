"""Photographs go through `sefi learn` with nothing but a model; what is learned is said and can be looked at."""

import json

import numpy as np
import pillow_heif
import pytest
from matplotlib import cbook
from PIL import Image
from skimage import data

from sefi.identity.file import Identity


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs as files, by name."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "camera", "cat", "coffee"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    pillow_heif.from_pillow(Image.open(folder / "astronaut.png")).save(folder / "phone.heic")
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        (folder / "hopper.jpg").write_bytes(file.read())
    return folder


@pytest.fixture
def learn(sefi, model_folder, photos, tmp_path):
    """Run `sefi learn --json` for a step, on a model that is not the embedded one."""

    def run(*words):
        files = [photos / word if str(word).endswith((".png", ".jpg", ".heic")) else word for word in words]
        few = ("--steps", 1, "--out", tmp_path / "me.safetensors", "--overwrite", "--json")
        return sefi("learn", *files, "--name", "me", "--model", model_folder, *few)

    return run


@pytest.mark.parametrize(
    ("name", "left", "top", "side"),
    [
        ("astronaut.png", 120, 10, 215),
        ("phone.heic", 120, 10, 215),
        ("hopper.jpg", 52, 7, 423),
        ("camera.png", 150, 80, 150),
    ],
)
def test_faces_are_found_without_a_file_from_the_user(learn, name, left, top, side):
    answer = learn(name)
    assert answer.exit_code == 0, answer.output
    (photo,) = json.loads(answer.stdout)["photos"]
    assert photo["photo"] == name
    assert np.allclose([photo["left"], photo["top"], photo["side"]], [left, top, side], atol=30)


def test_a_small_face_is_learned_with_a_note(learn):
    answer = learn("camera.png")
    (photo,) = json.loads(answer.stdout)["photos"]
    assert "the face is only" in photo["notes"][0]
    assert f"note: camera.png: {photo['notes'][0]}" in answer.stderr


def test_a_pet_in_a_box(learn):
    answer = learn("cat.png", "--class-word", "dog", "--box", "60,10,250,270")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["photos"] == [
        {"photo": "cat.png", "left": 50, "top": 10, "side": 270, "notes": []}
    ]


def test_several_photos_are_learned_together(learn, tmp_path):
    learn("astronaut.png")
    one = Identity.load(tmp_path / "me.safetensors")
    answer = learn("astronaut.png", "phone.heic")
    assert [photo["photo"] for photo in json.loads(answer.stdout)["photos"]] == ["astronaut.png", "phone.heic"]
    both = Identity.load(tmp_path / "me.safetensors")
    assert not all(bool((both.tensors[name] == values).all()) for name, values in one.tensors.items())


@pytest.mark.slow
def test_the_crop_is_shown(learn, tmp_path):
    picture = tmp_path / "crop.png"
    answer = learn("astronaut.png", "camera.png", "--show-crop", picture)
    assert answer.exit_code == 0, answer.output
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width > 2 * 384
        assert image.height > 2 * 384
    assert f"crop: {picture}" in answer.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("coffee.png",), "No face was found"),
        (("astronaut.png", "--box", "1,2,3"), "is no box"),
        (("astronaut.png", "--box", "1,2,3,-4"), "is no box"),
        (("astronaut.png", "--box", "500,0,99,99"), "not inside the photo (512 x 512)"),
        (("astronaut.png", "--box", "1,2,30,40", "--face", 1), "--box and --face contradict each other"),
        (("astronaut.png", "camera.png", "--face", 1), "--face belongs to one photo, and there are 2"),
    ],
)
def test_what_cannot_be_learned_is_refused(learn, tmp_path, words, problem):
    answer = learn(*words)
    assert answer.exit_code == 2
    assert problem in json.loads(answer.stdout)["error"]
    assert not (tmp_path / "me.safetensors").exists()


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        ("astronaut.png", "is an input of this command"),
        ("nowhere/crop.txt", "There is no folder"),
        ("", "is a folder"),
    ],
)
def test_errors_on_the_picture_of_the_crop_name_its_option(learn, tmp_path, monkeypatch, picture, problem):
    monkeypatch.chdir(tmp_path)
    answer = json.loads(learn("astronaut.png", "--show-crop", picture or tmp_path).stdout)
    assert problem in answer["error"]
    assert "--show-crop" in answer["try"]
    assert "--out" not in answer["try"]
