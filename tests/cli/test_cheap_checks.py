"""What can be refused without the model is refused before it is opened, and hints can be followed as they stand."""

import json
import shlex

import pytest
from PIL import Image
from tests.cli.processes import run_forked, run_fresh

from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS
from sefi.identity.file import Identity

NOWHERE = ("--model", "/nowhere/model")
PROMPT = "a photo of <ada> in snow"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--name", "a b"), "name"),
        (("--preset", "fancy"), "preset"),
        (("--method", "fancy"), "method"),
        (("--set", "learn.lr=3"), "learn.lr"),
        (("--set", "generate.scheduler=magic"), "scheduler"),
        (("--class-word", "dog", "--face", 2), "--face"),
        (("--no-crop", "--face", 9), "--no-crop"),
        (("--class-word", "Person ", "--preset", "scratch", "--no-crop", "--detector", "x.onnx"), "--detector"),
        (("--detector", "nowhere.onnx"), "nowhere.onnx"),
        (("--judges", "nowhere"), "nowhere"),
        (("--dtype", "fp16"), "fp16"),
        (("--device", "gpu"), "gpu"),
        (("--set", "learn.templates=({}:1.2)"), "no weights"),
        (("--out", "/nowhere/ada.safetensors"), "/nowhere"),
    ],
)
def test_learn_looks_at_cheap_things_first(refused, portrait, tmp_path, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    found = refused("learn", portrait, "--name", "ada", *NOWHERE, *words)
    assert reason in found
    assert "no model" not in found


@pytest.mark.parametrize(
    "words",
    [
        ("learn", "nowhere.png", "--name", "ada"),
        ("batch", "photos", "-o", "out", "--consent", "by=Ada; for=self; scope=tests"),
        ("bench", "run", "stages.toml", "--photos", "photos", "--out", "run"),
    ],
)
def test_settings_that_a_method_does_not_know_are_refused_first(refused, portrait, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()  # a model that is there, and cannot be opened
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "ada.png").write_bytes(portrait.read_bytes())
    (tmp_path / "stages.toml").write_text(
        'about = "x"\nprompt_lists = ["short"]\n[[variants]]\nlabel = "one"\npreset = "textual-inversion"\n'
        'settings = ["learn.stages=5"]\n'
    )
    settings = () if words[0] == "bench" else ("--method", "textual-inversion", "--set", "learn.stages=5")
    assert "knows only learn.stages=1" in refused(*words, *settings, "--model", "empty")


@pytest.mark.parametrize(("word", "said"), [("man", "no model"), ("", "'dog' is no word for a person")])
def test_a_batch_asks_whether_settings_fit_the_class_words_of_its_table(
    refused, portrait, tmp_path, monkeypatch, word, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()  # a model that is there, and cannot be opened
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "ada.png").write_bytes(portrait.read_bytes())
    (tmp_path / "people.csv").write_text(f"name,photo,class_word\nada,ada.png,{word}\n")
    words = ("--from", "people.csv", "--class-word", "dog", "--set", "learn.outside_weight=0.5", "--model", "empty")
    assert said in refused("batch", "photos", "-o", "out", "--consent", "by=Ada; for=self; scope=tests", *words)


def test_learn_reads_the_photo_before_it_opens_the_model(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()  # a model that is there, and cannot be opened
    assert "no file" in refused("learn", "nowhere.png", "--name", "ada", "--model", "empty")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A folder with a drawing, which no model for photographs learns, and an identity of another."""
    folder = tmp_path_factory.mktemp("drawings")
    portrait = Image.open(EMBEDDED_EVALUATORS.parent / "demo" / "portrait.png").convert("RGB")
    portrait.save(folder / "ada.png")
    (folder / "cats.toml").write_text(CATS)
    (folder / "torn.png").write_bytes(b"torn")
    return folder


CATS = 'about = "x"\nclass_word = "cat"\nprompt_lists = ["animals"]\n[[variants]]\nlabel = "ours"\n'
# What a command reads of a folder `drawings`, after which it would open a model.
READS = {
    "learn": ("{}/ada.png", "--name", "bob", "--consent", "by=Ada; for=self; scope=tests"),
    "batch": ("{}", "-o", "out", "--consent", "by=Ada; for=self; scope=tests"),
    "generate": ("a photo", "--init-image", "{}/nowhere.png"),
    "attend": ("a photo",),
    "bench run": ("{}/cats.toml", "--photos", "{}", "--out", "run"),
    "encoder train": ("--names", "{}/nowhere.txt"),
    "serve": ("--identities", "{}", "--port", "0"),
    "import": ("{}/ada.png", "--name", "bob"),
}


@pytest.mark.parametrize("model", ["/nowhere/model", "nowhere.safetensors", "models/nowhere"])
@pytest.mark.parametrize("command", READS)
def test_a_model_that_is_not_there_is_refused_before_photos_are_read(
    refused, drawings, tmp_path, monkeypatch, command, model
):
    monkeypatch.chdir(tmp_path)
    found = refused(*command.split(), *(word.format(drawings) for word in READS[command]), "--model", model)
    assert f"'{model}'" in found
    assert "no model" in found or "neither a local path" in found
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_may_be_downloaded_counts_as_there(drawings, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--name", "bob", "--model", "models/nowhere", "--download")
    assert "looks like a drawing" in refused("learn", drawings / "ada.png", *words)


def test_the_library_refuses_a_model_that_is_not_there_before_it_reads_photos(drawings):
    import sefi
    from sefi.core.errors import BackboneError

    with pytest.raises(BackboneError, match="no model at"):
        sefi.learn(drawings / "nowhere.png", name="ada", backbone="/nowhere/model")


@pytest.mark.parametrize(
    ("command", "words", "reason"),
    [
        (command, words, reason)
        for command in ("generate", "attend")
        for words, reason in (
            (("<ada>", "--preset", "fancy"), "preset"),
            (("<ada>", "--set", "generate.cfg=3"), "generate.cfg"),
            (("<ada>",), "no identity file"),
            (("<ada>", "-i", "nowhere.safetensors"), "nowhere.safetensors"),
            (("(<ada>)",), "without a number"),
            (("<zoë>",), "no placeholder"),
            (("a photo", "--set", "generate.negative_prompt=a <hat>"), "negative prompt"),
            (("a photo", "--set", "generate.negative_prompt=(hat:4)"), "0 to 3"),
            (("a photo", "--set", "generate.negative_prompt=hat", "--set", "generate.guidance_scale=1"), "no effect"),
            (("a photo", "--dtype", "float7"), "float7"),
            (("a photo", "--device", "abacus"), "abacus"),
        )
    ],
)
def test_generate_makes_cheap_checks_first(refused, tmp_path, monkeypatch, command, words, reason):
    monkeypatch.chdir(tmp_path)
    found = refused(command, *words, *NOWHERE)
    assert reason in found
    assert "no model" not in found


def test_identities_that_do_not_fit_are_refused_first(refused, ada, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "bob.safetensors"
    identity = Identity.load(ada)
    header = {"name": "bob", "method": "textual-inversion"}
    Identity(identity.tensors, identity.header.model_copy(update=header)).save(other)
    both = ("-i", ada, "-i", other, *NOWHERE)
    assert "several methods" in refused("generate", "<ada> and <bob>", *both)
    assert "called 'ada'" in refused("generate", PROMPT, "-i", ada, "-i", ada, *NOWHERE)
    assert "no prompt contains <bob>" in refused("generate", PROMPT, *both)
    before = set(tmp_path.iterdir())
    assert "no prompt contains <ada>" in refused("generate", "a photo", "-i", ada, "--out", tmp_path / "new" / "er")
    assert "no prompt contains <ada>" in refused("generate", "a photo", "-i", ada, "--out", "pictures")
    assert set(tmp_path.iterdir()) == before
    assert "is a folder" in refused("generate", PROMPT, "-i", tmp_path, *NOWHERE)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("quik",), "Did you mean 'quick'"),
        (("quick", "--set", "learn.lr=3"), "'learn.learning_rate'"),
        (("quick", "--set", "generate.negative_prompt=hat", "--set", "generate.guidance_scale=1"), "above 1"),
        (("quick", "--photos", "nowhere"), "nowhere"),
        (("quick", "--photos", "nowhere", "--detector", "nowhere.onnx"), "nowhere.onnx"),
    ],
)
def test_a_benchmark_looks_at_cheap_things_first(sefi, tmp_path, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    found = sefi("bench", "run", *words, "--out", tmp_path / "run", *NOWHERE)
    assert found.exit_code == 2
    assert reason in found.stderr
    assert "no model" not in found.stderr


@pytest.mark.world
def test_images_of_another_program_are_searched_before_the_model_is_opened(sefi, drawings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()  # a model that is there, and cannot be opened
    suite = tmp_path / "theirs.toml"
    suite.write_text('about = "x"\nprompt_lists = ["paper"]\n[[variants]]\nlabel = "theirs"\nimages = "nowhere"\n')
    photo = tmp_path / "photos" / "ada.png"
    photo.parent.mkdir()
    photo.write_bytes((drawings / "ada.png").read_bytes())
    found = sefi("bench", "run", suite, "--photos", photo.parent, "--out", "run", "--model", "empty")
    assert found.exit_code == 2
    assert "nowhere" in found.stderr
    assert "opening" not in found.stderr


def test_a_photograph_is_refused_before_the_embedded_model_is_opened(sefi, tmp_path, monkeypatch):
    import skimage.data

    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.astronaut()).save("me.png")
    found = sefi("learn", "me.png", "--name", "me")
    assert found.exit_code == 2
    assert "looks like a photograph" in found.stderr
    assert "opening" not in found.stderr


@pytest.mark.slow_after(1)
@pytest.mark.world
@pytest.mark.parametrize("option", ["--any-style", "--allow-photograph", "--anyway"])  # two are its names before
def test_a_photograph_is_learned_when_asked_for(sefi, tmp_path, monkeypatch, option):
    import skimage.data

    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.astronaut()).save("me.png")
    quick = ("--steps", 1, "--set", "learn.batch=1", "--set", "views.latent_pool=0")
    found = sefi("learn", "me.png", "--name", "me", "--no-crop", option, *quick)
    assert found.exit_code == 0, found.output
    assert Identity.load(tmp_path / "me.safetensors").name == "me"


@pytest.mark.slow_after(1)
def test_a_detector_is_of_use_without_a_crop_where_settings_look_for_a_face(sefi, drawings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--name", "ada", "--no-crop", "--detector", EMBEDDED_EVALUATORS / DETECTOR, "--steps", 1)
    found = sefi("learn", drawings / "ada.png", *words, "--set", "learn.batch=1")
    assert found.exit_code == 0, found.output
    assert Identity.load(tmp_path / "ada.safetensors").header.settings["learn"]["start"] == "encoder"


@pytest.mark.slow_after(1)
def test_why_learning_starts_at_the_class_word_and_what_has_no_effect_is_said(sefi, portrait, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--name", "ada", "--no-crop", "--any-style", "--steps", 1, "--set", "learn.batch=1")
    found = sefi("learn", portrait, *words, "--set", "learn.patience=7", "--set", "views.latent_pool=2")
    assert found.exit_code == 0, found.output
    assert "note: No face was found in what is learned" in found.stderr
    assert "Learning starts at the class word." in found.stderr
    assert "note: learn.patience has no effect: learn.probe_every is 0" in found.stderr
    assert found.stderr.count("note: ") == 2


@pytest.mark.world
def test_photographs_as_subjects_of_a_benchmark_are_refused_on_the_embedded_model(sefi, tmp_path, monkeypatch):
    import skimage.data

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(skimage.data.chelsea()).save("photos/tom.png")
    suite = tmp_path / "cats.toml"
    suite.write_text('about = "x"\nkind = "cat"\nprompt_lists = ["animals"]\n[[ways]]\nlabel = "ours"\n')
    found = sefi("bench", "run", suite, "--photos", "photos", "--out", "run")
    assert found.exit_code == 2
    assert "Subject 'tom'" in found.stderr.replace("\n", " ")
    assert "photograph" in found.stderr


# ------------------------------------------------------------------ remarks


@pytest.mark.parametrize("scale", [0, 0.5])
def test_guidance_below_one_is_said_to_be_none(sefi, model_folder, tmp_path, scale):
    words = ("generate", "a photo of person", "--model", model_folder, "--steps", 2, "--out", tmp_path)
    found = sefi(*words, "--guidance-scale", scale)
    assert found.exit_code == 0
    assert f"note: a guidance scale of {scale} generates without guidance, exactly as 1 does" in found.stderr
    assert "note:" not in sefi(*words, "--guidance-scale", 1, "--count", 2).stderr


@pytest.mark.parametrize("run", [run_forked, pytest.param(run_fresh, marks=pytest.mark.slow)])
def test_a_remark_of_the_library_is_printed_once(model_folder, tmp_path, run):
    # In a process of its own: pytest takes the records of loggers, which Python would print.
    words = ("generate", "a photo of person", "--steps", "2", "--guidance-scale", "0.5")
    found = run(tmp_path, *words, "--model", model_folder, "--out", "images")
    assert found.returncode == 0
    assert found.stderr.count(b"generates without guidance") == 1


# ------------------------------------------------------------------ the command that follows


def test_the_next_command_runs_as_it_stands(sefi, portrait, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--model", model_folder, "--no-crop", "--device", "cpu", "--preset", "fast")
    found = sefi("learn", portrait, "--name", "ada", *words, "--steps", 1, "--set", "generate.steps=2", "--json")
    assert found.exit_code == 0, found.output
    following = shlex.split(json.loads(found.stdout)["next"])
    assert following[:2] == ["sefi", "generate"]
    assert {"--model", "--preset", "fast", "--device", "cpu"} <= set(following)
    drawn = sefi(*following[1:], "--json")
    assert drawn.exit_code == 0, drawn.output
    assert json.loads(drawn.stdout)["settings"]["steps"] == 2


# ------------------------------------------------------------------ faces on the embedded model


@pytest.fixture(scope="module")
def two_faces(tmp_path_factory):
    """The package's portrait twice, side by side, the second one mirrored."""
    portrait = Image.open(EMBEDDED_EVALUATORS.parent / "demo" / "portrait.png").convert("RGB")
    page = Image.new("RGB", (2 * portrait.width, portrait.height))
    page.paste(portrait, (0, 0))
    page.paste(portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (portrait.width, 0))
    path = tmp_path_factory.mktemp("two") / "two.png"
    page.save(path)
    return path


@pytest.mark.slow_after(1)
@pytest.mark.world
@pytest.mark.parametrize("word", ["Person", "person ", "woman"])
def test_the_chosen_face_is_learned_whatever_the_person_is_called(two_faces, monkeypatch, word):
    import torch

    import sefi.api
    from sefi.core.config import override
    from sefi.methods import PRESETS

    squares = []

    class Enough(Exception):
        pass

    def stop(square, *_others):
        squares.append(square)
        raise Enough

    monkeypatch.setattr(sefi.api, "PhotoViews", stop)
    backbone = sefi.api.open_backbone()
    config = override(PRESETS["default"], [f"learn.class_word={word}"])
    for face in (1, 2):
        with pytest.raises(Enough):
            sefi.api.learn(two_faces, name="ada", backbone=backbone, config=config, face=face)
    left, right = squares
    assert not torch.equal(left, right)
    mirrored, plain = ((left - other).abs().mean() for other in (right.flip(-1), right))
    assert mirrored < plain / 2
