"""Bad input ends with exit code 2, what is wrong, what to do, and no half-written file."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from sefi.identity.file import Identity

PROMPT = "a photo of <ada> in snow"


@pytest.fixture
def learn_refused(refused, model_folder, portrait, tmp_path):
    """Refusal of `sefi learn`; nothing may be left in its folder."""

    def run(*words, photo=portrait, name="ada"):
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        out = folder / "ada.safetensors"
        base = ["learn", photo, "--name", name, "--model", model_folder, "--steps", 2, "--out", out]
        error = refused(*base, *words)
        assert not list(folder.iterdir())
        return error

    return run


@pytest.fixture
def generate_refused(refused, model_folder, tmp_path):
    """Refusal of `sefi generate`; no picture may be left."""

    def run(*words):
        folder = tmp_path / "pictures"
        error = refused("generate", *words, "--model", model_folder, "--steps", 2, "--out", folder)
        assert not folder.exists() or not list(folder.iterdir())
        return error

    return run


# ------------------------------------------------------------------ photos


def test_missing_photo(learn_refused, tmp_path):
    learn_refused("--no-crop", photo=tmp_path / "nowhere.png")


def test_a_folder_as_photo(learn_refused, tmp_path):
    assert f"{tmp_path} is a folder." in learn_refused("--no-crop", photo=tmp_path)


def test_a_photo_as_a_folder_of_photos(refused, portrait):
    assert f"'{portrait}' is a file, not a folder." in refused("batch", portrait)


def test_corrupt_photo(learn_refused, portrait, tmp_path):
    half = tmp_path / "half.png"
    half.write_bytes(portrait.read_bytes()[:300])
    learn_refused("--no-crop", photo=half)


def test_a_text_as_photo(learn_refused, tmp_path):
    text = tmp_path / "photo.jpg"
    text.write_text("no picture")
    learn_refused("--no-crop", photo=text)


def test_huge_photo(learn_refused, tmp_path):
    huge = tmp_path / "huge.png"
    Image.new("1", (10_000, 6_401)).save(huge)
    assert "megapixels" in learn_refused("--no-crop", photo=huge)


def test_animated_photo(learn_refused, tmp_path):
    film = tmp_path / "film.gif"
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (0, 99, 200)]
    frames[0].save(film, save_all=True, append_images=frames[1:])
    learn_refused("--no-crop", photo=film)


@pytest.mark.parametrize("kind", ["cmyk", "rotated"])
def test_cmyk_and_rotated_photos_are_taken(sefi, model_folder, portrait, tmp_path, kind):
    photo, out = tmp_path / "photo.jpg", tmp_path / "ada.safetensors"
    image = Image.open(portrait)
    if kind == "cmyk":
        image.convert("CMYK").save(photo)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        image.save(photo, exif=exif)
    found = sefi(
        "learn",
        photo,
        "--name",
        "ada",
        "--model",
        model_folder,
        "--steps",
        1,
        "--no-crop",
        "--out",
        out,
    )
    assert found.exit_code == 0, found.output
    assert out.is_file()


# ------------------------------------------------------------------ faces


class Found:
    """A detector that finds what it is told."""

    def __init__(self, *lefts, side=80.0):
        self.lefts, self.side = lefts, side

    def __call__(self, _path):
        return self

    def faces(self, _rgb):
        from sefi.photo.detect import Face

        return [Face(x, 0.0, self.side, self.side, ((x, 0.0),) * 5, 0.9) for x in self.lefts]


@pytest.fixture
def faces(monkeypatch, tmp_path):
    """Make the detector find faces at these places; the real one is tested with the photo room."""

    def found(*lefts, side=80.0):
        detector = Found(*lefts, side=side)
        monkeypatch.setattr("sefi.api.YuNetDetector", lambda _path: detector.faces)
        path = tmp_path / "detector.onnx"
        path.touch()
        return ("--detector", path)

    return found


def test_no_face(learn_refused, faces):
    assert "No face" in learn_refused(*faces())


def test_three_faces_need_a_choice(learn_refused, faces):
    assert "3 faces" in learn_refused(*faces(0.0, 100.0, 200.0))


@pytest.mark.slow
def test_the_named_detector_finds_every_face(sefi, model_folder, photo_file, faces, monkeypatch, tmp_path):
    """Also the face that settings ask for, in the square that is learned."""
    words, opened = faces(0.0), []
    finder = Found(0.0, side=8.0)
    monkeypatch.setattr("sefi.api.YuNetDetector", lambda path: opened.append(Path(path)) or finder.faces)
    recipe = ("--steps", 1, "--set", "learn.outside_weight=0.5", "--any-style", "--out", tmp_path / "ada.safetensors")
    found = sefi("learn", photo_file, "--name", "ada", "--model", model_folder, *words, *recipe)
    assert found.exit_code == 0, found.output
    assert len(opened) == 3  # the crop, the key of the checkpoint, and what is learned
    assert set(opened) == {words[1]}


def test_a_choice_that_does_not_exist(learn_refused, faces):
    assert "no face 4" in learn_refused(*faces(0.0, 100.0, 200.0), "--face", 4)


def test_a_detector_that_is_none(learn_refused, portrait):
    learn_refused("--detector", portrait)
    learn_refused("--detector", "nowhere.onnx")


# ------------------------------------------------------------------ names, words, settings


@pytest.mark.parametrize("name", ["../ada", "a b", "", "x" * 65])
def test_an_unsafe_name(learn_refused, name):
    learn_refused("--no-crop", name=name)


def test_a_class_word_of_many_tokens(learn_refused):
    assert "1 to 8 tokens" in learn_refused("--no-crop", "--class-word", "dog " * 9)


def test_an_unknown_setting_names_the_nearest(refused, portrait):
    found = refused("learn", portrait, "--name", "ada", "--set", "learn.step=3")
    assert "learn.step" in found


def test_the_nearest_setting_is_the_remedy(sefi, portrait):
    found = sefi("learn", portrait, "--name", "ada", "--set", "learn.step=3")
    assert "learn.steps" in found.stderr.split("try:")[1]


@pytest.mark.parametrize("setting", ["learn.batch=many", "learn.batch", "learn.batch=0"])
def test_a_wrong_value(learn_refused, setting):
    learn_refused("--no-crop", "--set", setting)


def test_an_unknown_preset(learn_refused):
    assert "preset" in learn_refused("--no-crop", "--preset", "fancy")


# ------------------------------------------------------------------ models


def test_a_model_that_is_nowhere(refused, portrait, tmp_path):
    refused("learn", portrait, "--name", "ada", "--model", tmp_path / "nowhere")


def test_a_hub_id_is_not_downloaded_unasked(refused, portrait, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("learn", portrait, "--name", "ada", "--model", "nobody/nothing")


def test_a_device_or_number_type_that_does_not_exist(learn_refused):
    learn_refused("--no-crop", "--device", "abacus")
    learn_refused("--no-crop", "--dtype", "float7")


# ------------------------------------------------------------------ prompts and identity files


def test_a_placeholder_without_identity(generate_refused):
    assert "<ada>" in generate_refused(PROMPT)


def test_an_identity_without_placeholder(generate_refused, ada):
    assert "ada" in generate_refused("a photo of person", "-i", ada)


def test_an_overlong_prompt(generate_refused, ada):
    assert "at most 8 times" in generate_refused(PROMPT + " and snow" * 60, "-i", ada)


def test_more_skipped_layers_than_the_text_encoder_has(generate_refused, ada):
    assert "clip_skip 40" in generate_refused(PROMPT, "-i", ada, "--clip-skip", 40)


def test_the_same_identity_twice(generate_refused, ada):
    generate_refused(PROMPT, "-i", ada, "-i", ada)


def test_a_missing_identity_file(generate_refused, tmp_path):
    generate_refused(PROMPT, "-i", tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("length", [0, 7, 200, -1])
def test_a_truncated_identity_file(generate_refused, refused, ada, tmp_path, length):
    half = tmp_path / "half.safetensors"
    half.write_bytes(ada.read_bytes()[:length])
    generate_refused(PROMPT, "-i", half)
    refused("inspect", half)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_photo_as_an_identity(refused, sefi, tmp_path, kind):
    photo = tmp_path / "ada.image"
    Image.new("RGB", (40, 30)).save(photo, kind)
    for command in (("generate", PROMPT, "-i"), ("attend", PROMPT, "-i"), ("inspect",)):
        assert f"{photo} is an image, not an identity." in refused(*command, photo)
    assert f"sefi learn {photo} --name NAME" in " ".join(sefi("inspect", photo).stderr.split())


def test_a_foreign_safetensors_file(generate_refused, model_folder):
    generate_refused(PROMPT, "-i", next((model_folder / "vae").glob("*.safetensors")))


def changed(ada, path, **header):
    """The same identity with another header."""
    identity = Identity.load(ada)
    other = identity.header.model_copy(update=header)
    Identity(identity.tensors, other).save(path)
    return path


def test_an_identity_of_another_model_family(generate_refused, ada, tmp_path):
    other = changed(ada, tmp_path / "other.safetensors", base_model="sd1:24:0123456789abcdef")
    assert "learned on" in generate_refused(PROMPT, "-i", other)


def test_an_identity_of_another_width(generate_refused, ada, tmp_path):
    import torch

    identity = Identity.load(ada)
    tensors = {"tokens": torch.zeros(5, 2, 29)}
    path = tmp_path / "wide.safetensors"
    Identity(tensors, identity.header.model_copy(update={"width": 29})).save(path)
    assert "29" in generate_refused(PROMPT, "-i", path)


def test_a_scheduler_that_does_not_exist(generate_refused, ada):
    generate_refused(PROMPT, "-i", ada, "--scheduler", "magic")


@pytest.mark.parametrize("command", ["generate", "attend"])
def test_settings_of_learning_are_refused_by_generate(refused, command):
    assert "'compose.alpha' is settled" in refused(command, PROMPT, "--set", "compose.alpha=0.5")


@pytest.mark.parametrize("name", ["steps", "generat.steps", "generation.step"])
def test_a_setting_of_generation_that_is_misspelt_is_not_called_one_of_learning(sefi, name):
    found = sefi("generate", PROMPT, "--set", f"{name}=3")
    assert found.exit_code == 2
    assert found.stderr == f"error: There is no setting {name!r}.\n  try: Did you mean 'generate.steps'?\n"


def test_attend_refuses_like_generate(refused, ada, model_folder, tmp_path):
    out = tmp_path / "maps.png"
    base = ("--model", model_folder, "--steps", 2, "--out", out)
    assert "<ada>" in refused("attend", PROMPT, *base)
    assert "ada" in refused("attend", "a photo of person", "-i", ada, *base)
    assert not out.exists()


def test_attend_refuses_what_is_more_than_tokens_before_the_model_is_opened(refused, ada, tmp_path):
    header, file = Identity.load(ada).header.model_copy(update={"method": "dreambooth"}), tmp_path / "ada.safetensors"
    Identity({"unet.weight": torch.zeros(3)}, header).save(file)
    assert "more than tokens" in refused("attend", PROMPT, "-i", file, "--model", "/nowhere")


# ------------------------------------------------------------------ outputs and Ctrl-C


@pytest.mark.parametrize("out", ["/proc/ada.safetensors", "/nowhere/ada.safetensors", "/tmp"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(sefi, portrait, out):
    # The model does not exist: an answer about the output shows that it was looked at first.
    found = sefi("learn", portrait, "--name", "ada", "--model", "/nowhere", "--out", out, "--json")
    assert found.exit_code == 2
    assert out.split("/")[1] in json.loads(found.stdout)["error"]
    found = sefi("attend", PROMPT, "--model", "/nowhere", "--out", out, "--json")
    assert out.split("/")[1] in json.loads(found.stdout)["error"]


def test_a_folder_that_cannot_be_written(refused):
    assert "/proc" in refused("generate", PROMPT, "--model", "/nowhere", "--out", "/proc/pictures")


def interrupted(monkeypatch, after):
    """Ctrl-C after so many steps."""
    from sefi.cli.progress import TerminalProgress

    advance, seen = TerminalProgress.advance, []

    def stop(self, **numbers):
        advance(self, **numbers)
        seen.append(1)
        if len(seen) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(TerminalProgress, "advance", stop)


def test_ctrl_c_while_learning_keeps_the_run_and_goes_on(sefi, ada, portrait, model_folder, tmp_path):
    out = tmp_path / "ada.safetensors"
    words = (
        "learn",
        portrait,
        "--name",
        "ada",
        "--model",
        model_folder,
        "--no-crop",
        "--steps",
        2,
        "--out",
        out,
    )
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, after=1)
        found = sefi(*words)
    assert found.exit_code == 130
    kept = list(tmp_path.iterdir())
    assert len(kept) == 1
    assert str(kept[0]) in found.stderr
    assert not out.exists()
    assert sefi(*words).exit_code == 0
    assert list(tmp_path.iterdir()) == [out]
    assert (Identity.load(out).tokens == Identity.load(ada).tokens).all()


def test_ctrl_c_while_generating_leaves_whole_images(sefi, ada, model_folder, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, after=3)
        found = sefi(
            "generate",
            PROMPT,
            "-i",
            ada,
            "--model",
            model_folder,
            "--steps",
            2,
            "--count",
            3,
            "--batch-size",
            1,
            "--out",
            tmp_path,
        )
    assert found.exit_code == 130
    assert "1 of 3" in found.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a-photo-of-ada-in-snow-0.png", "records.json"}
