"""Python as a user of diffusers guesses it: options, inputs, generators, bars, and what a notebook shows."""

import hashlib
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import sefi
from sefi.core.config import override
from sefi.core.errors import ConfigError, IdentityError, OutputError, SefiError
from sefi.core.progress import BarProgress, SilentProgress, choose_progress
from sefi.diffusion.attention_maps import record_attention
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.methods import PRESETS

QUICK = override(PRESETS["default"], ["generate.steps=3", "generate.guidance_scale=2", "learn.steps=1", "learn.batch=1",
                                      "views.latent_pool=0"])  # fmt: skip
PROMPT = "a photo of <ada> at the beach"


@pytest.fixture(scope="module")
def ada(backbone):
    photo = Image.effect_noise((61, 53), 90).convert("RGB")
    return sefi.learn(photo, name="ada", backbone=backbone, config=QUICK, crop=False)


@pytest.fixture(scope="module")
def draw(backbone):
    """Generate on the tiny model; returns the images' bytes."""

    def run(*arguments, **options):
        made = sefi.generate(*arguments, backbone=backbone, config=QUICK, **options)
        return [one.pixels.tobytes() for one in made]

    return run


def test_options_are_settings(draw, backbone, ada):
    settings = ["generate.steps=5", "generate.guidance_scale=4", "generate.count=2", "generate.negative_prompt=beach",
                "generate.scheduler=euler_a"]  # fmt: skip
    expected = sefi.generate(PROMPT, [ada], backbone=backbone, config=override(QUICK, settings), seed=7)
    found = draw(PROMPT, ada, seed=7, steps=5, guidance_scale=4.0, num_images=2, negative_prompt="beach",
                 scheduler="euler_a")  # fmt: skip
    assert found == [one.pixels.tobytes() for one in expected]
    assert len(set(found)) == 2


@pytest.mark.slow
def test_the_same_images_and_maps_within_inference_mode(draw, backbone, ada):
    def record():
        conditioner = IdentityConditioner(backbone, [ada])
        return record_attention(backbone, conditioner, PROMPT, 7, QUICK.generate, SilentProgress()).maps

    start = Image.radial_gradient("L").convert("RGB")
    calls = [
        lambda: draw([PROMPT, "a dog"], ada, seed=7, num_images=2),
        lambda: draw(PROMPT, ada, scheduler="euler_a", init_image=start, mask=start),
    ]
    plain, maps = [call() for call in calls], record()
    with torch.inference_mode():
        assert [call() for call in calls] == plain
        assert torch.equal(record(), maps)
    assert calls[0]() == plain[0]  # nothing is left of it


def test_a_size(backbone, ada):
    (made,) = sefi.generate(PROMPT, ada, backbone=backbone, config=QUICK, width=64, height=40)
    assert made.pixels.size == (64, 40)


@pytest.mark.parametrize("option", [{"stpes": 3}, {"steps": 0}, {"scheduler": "eular"}, {"count": "two"}])
def test_options_that_do_not_fit_are_refused(draw, ada, option):
    with pytest.raises(ConfigError) as error:
        draw(PROMPT, ada, **option)
    assert error.value.remedy


@pytest.mark.slow
def test_identities_alone_in_lists_and_as_files(draw, ada, tmp_path):
    ada.save(tmp_path / "ada.safetensors")
    expected = draw(PROMPT, [ada])
    for given in (ada, (ada,), str(tmp_path / "ada.safetensors"), [tmp_path / "ada.safetensors"]):
        assert draw(PROMPT, given) == expected
    with pytest.raises(IdentityError):
        draw(PROMPT, tmp_path / "bea.safetensors")


LEARN_WRONGLY = {
    "consent": ["by=Jane Doe; for=self; scope=tests", {"by": "Jane Doe"}],
    "evaluators": [3],
    "checkpoint": [3],
    "progress": ["yes", 3],
    "config": [{"learn": {}}, "default"],
    "seed": ["3", 1.5],
    "init": ["ada.safetensors"],
    "box": [(1, 2, 3), "abc", "abcd", (0, 0, "a", 3), (0, 0, 20.5, 20), 5, (0, 0, None, 3), [], {}],
    "face": ["1", 1.5],
    "detector": [5, ["a.onnx"]],
}
IMAGE = Image.effect_noise((40, 40), 90).convert("RGB")
IMAGES_WRONGLY = [
    ({"repair_faces": True, "detector": 5, "steps": 9}, "face detector is of the type int"),
    ({"init_image": IMAGE, "strength": "0.5"}, "strength is of the type str"),
    ({"init_image": IMAGE, "strength": [0.5]}, "strength is of the type list"),
    ({"init_image": IMAGE, "strength": float("nan")}, "strength of nan"),
    ({"init_image": IMAGE, "mask": 5}, "type int"),
    ({"control": IMAGE, "controlnet": "nowhere", "control_scale": "1"}, "control scale is of the type str"),
    ({"control": IMAGE, "controlnet": "nowhere", "control_scale": float("nan")}, "control scale of nan"),
    ({"control": IMAGE, "controlnet": 5}, "ControlNet is of the type int"),
    ({"control": IMAGE, "controlnet": ["nowhere"]}, "ControlNet is of the type list"),
]
GENERATE_WRONGLY = {
    "generator": [3, np.random.default_rng(3)],
    "progress": ["yes", 3],
    "config": [{}, "default"],
    "seed": ["3"],
    "init_image": [3],
    "strength": ["0.5"],
    "backbone": [3],
}


def name_given(given: dict[str, object]) -> str:
    """Name a case the same in every process: addresses of objects differ."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", str(given))


def list_wrong(table):
    return [{name: value} for name, values in table.items() for value in values]


@pytest.mark.parametrize("given", list_wrong(LEARN_WRONGLY), ids=name_given)
def test_learning_refuses_other_types(backbone, given):
    photo = Image.effect_noise((61, 53), 90).convert("RGB")
    crop = {} if given.keys() & {"box", "face", "detector"} else {"crop": False}
    with pytest.raises(SefiError) as error:
        sefi.learn(photo, **{"name": "ada", "backbone": backbone, "config": QUICK, **crop, **given})
    assert error.value.remedy


@pytest.mark.parametrize("given", list_wrong(GENERATE_WRONGLY), ids=name_given)
def test_generating_refuses_other_types(backbone, ada, given):
    with pytest.raises(SefiError) as error:
        sefi.generate(PROMPT, ada, **{"backbone": backbone, "config": QUICK, **given})
    assert error.value.remedy


@pytest.mark.parametrize(("given", "words"), IMAGES_WRONGLY, ids=[words for _, words in IMAGES_WRONGLY])
def test_generating_from_images_refuses_other_types(backbone, ada, given, words):
    with pytest.raises(SefiError, match=words) as error:
        sefi.generate(PROMPT, ada, **{"backbone": backbone, "config": QUICK, **given})
    assert error.value.remedy


@pytest.mark.slow
def test_numbers_of_numpy_are_taken(draw, backbone, ada):
    photo = Image.effect_noise((61, 53), 90).convert("RGB")
    box = np.array([3, 5, 40, 41])
    squares = [sefi.learn(photo, name="ada", backbone=backbone, config=QUICK, box=one).header.record.crops for one in (
        box, tuple(box), [3, 5, 40, 41])]  # fmt: skip
    assert squares[0] == squares[1] == squares[2]
    assert draw(PROMPT, ada, init_image=IMAGE, strength=np.float32(0.5)) == draw(
        PROMPT, ada, init_image=IMAGE, strength=0.5
    )


@pytest.mark.parametrize("given", [{"file": 3}, {"class_word": 3}, {"name": 3}], ids=name_given)
def test_importing_refuses_other_types(backbone, given):
    with pytest.raises(SefiError) as error:
        sefi.import_embedding(**{"file": "x.safetensors", "name": "ada", "backbone": backbone, **given})
    assert error.value.remedy


def test_files_are_paths(backbone, ada):
    (made,) = sefi.generate(PROMPT, ada, backbone=backbone, config=QUICK)
    for save in (made.save, ada.save, lambda path: sefi.save_image(made.pixels, path)):
        with pytest.raises(OutputError, match="type int"):
            save(3)
    with pytest.raises(OutputError, match="type int"):
        sefi.save_image(3, "x.png")


@pytest.mark.parametrize(
    ("identities", "options"),
    [(["ada.safetensors"], {}), ([[]], {}), ([], {"strength": "1"}), ([], {"clip_skip": "2"})],
    ids=name_given,
)
def test_attaching_refuses_other_types(identities, options):
    with pytest.raises(SefiError, match="which cannot be used") as error:
        sefi.attach(None, *identities, **options)
    assert error.value.remedy


def test_a_checkpoint_may_be_named_by_a_text(backbone, tmp_path):
    photo = Image.effect_noise((61, 53), 90).convert("RGB")
    options = {"name": "ada", "backbone": backbone, "config": QUICK, "crop": False}
    made = sefi.learn(photo, checkpoint=str(tmp_path / "run"), **options)
    assert torch.equal(made.tokens, sefi.learn(photo, **options).tokens)


@pytest.mark.slow
@pytest.mark.world
def test_a_model_by_its_name():
    (named,) = sefi.generate("a photo of a person", backbone="tiny-portraits", steps=2, seed=3)
    (given,) = sefi.generate("a photo of a person", backbone=sefi.open_backbone(), steps=2, seed=3)
    assert named.pixels.tobytes() == given.pixels.tobytes()


@pytest.mark.slow
def test_masks_as_people_have_them(backbone, ada):
    start = Image.effect_noise((48, 48), 90).convert("RGB")
    half = np.zeros((48, 48), bool)
    half[:, 24:] = True
    rgb = np.repeat((half * np.uint8(255))[..., None], 3, axis=-1)
    made = [
        sefi.generate(PROMPT, ada, backbone=backbone, config=QUICK, init_image=start, mask=mask, steps=4)[0]
        for mask in (half, half.astype(np.float32), rgb[..., 0], rgb, Image.fromarray(rgb))
    ]
    assert len({one.pixels.tobytes() for one in made}) == 1


def test_a_generator_gives_the_seed_and_goes_on(draw, ada):
    generator = torch.Generator().manual_seed(3)
    first, second = draw(PROMPT, ada, generator=generator), draw(PROMPT, ada, generator=generator)
    assert first != second
    assert draw(PROMPT, ada, generator=torch.Generator().manual_seed(3)) == first


def test_progress_is_a_bar_or_nothing(draw, ada, capsys):
    draw(PROMPT, ada, progress=True)
    assert "generating: 100%" in capsys.readouterr().err
    draw(PROMPT, ada, progress=False)
    assert capsys.readouterr().err == ""
    assert isinstance(choose_progress(None), SilentProgress)
    mine = BarProgress()
    assert choose_progress(mine) is mine


def test_what_a_notebook_shows(backbone, ada):
    (made,) = sefi.generate(PROMPT, ada, backbone=backbone, config=QUICK, seed=5)
    with Image.open(io.BytesIO(made._repr_png_())) as shown:
        assert shown.tobytes() == made.pixels.tobytes()
    width, height = made.pixels.size
    assert repr(made) == f"<GeneratedImage {PROMPT!r}: {width} x {height}, seed 5>"


def test_an_image_is_saved_once_unless_asked(backbone, ada, tmp_path):
    (made,) = sefi.generate(PROMPT, ada, backbone=backbone, config=QUICK)
    made.save(tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as read:
        assert read.tobytes() == made.pixels.tobytes()
    with pytest.raises(OutputError):
        made.save(tmp_path / "one.png")
    made.save(tmp_path / "one.png", overwrite=True)
    (tmp_path / "two.png").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError):
        made.save(tmp_path / "two.png", overwrite=True)


def read_words(path):
    with Image.open(path) as image:
        return image.info["parameters"]


def test_a_saved_image_says_how_it_was_made_and_whose_it_is_only_if_asked(backbone, ada, tmp_path):
    start = Image.effect_noise((48, 48), 90).convert("RGB")
    ada.save(tmp_path / "ada.safetensors")
    (made,) = sefi.generate(PROMPT, ada, backbone=backbone, config=QUICK, seed=5, init_image=start, steps=4)
    made.save(tmp_path / "one.png")
    made.save(tmp_path / "two.png", names=True)
    words, named = (read_words(tmp_path / name) for name in ("one.png", "two.png"))
    digest = hashlib.sha256((tmp_path / "ada.safetensors").read_bytes()).hexdigest()
    assert words.splitlines()[0] == "a photo of <subject> at the beach"
    for said in ("Steps: 4,", "CFG scale: 2.0,", "Seed: 5,", "Denoising strength: 0.75,", digest[:16]):
        assert said in words
    assert backbone.fingerprint in words
    assert "ada" not in re.sub(r"\b[0-9a-f]{16,64}\b", "", words), "but in hexadecimal numbers, by chance"
    assert named == words.replace("<subject>", "<ada>")
    (plain,) = sefi.generate("a photo of a person", backbone=backbone, config=QUICK)
    plain.save(tmp_path / "plain.png")
    assert not {"Identities", "Denoising"} & set(read_words(tmp_path / "plain.png").replace(":", " ").split())
