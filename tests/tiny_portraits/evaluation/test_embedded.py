"""The model in the package: stock diffusers opens it, its judges see, and the whole way from photo to picture works."""

import json

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

import sefi
from sefi.backbone.open import MODELS
from sefi.core.config import override
from sefi.evaluation.metrics import measure_similarity
from sefi.methods import PRESETS
from sefi.photo.detect import LOOKING_SIDE
from tiny_portraits.drawing.content import SHIPPED
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import make_portrait, make_test_person
from tiny_portraits.evaluation.figures import ImageEvaluators
from tiny_portraits.text.words import list_characters

PORTRAIT = MODELS / "demo" / "portrait.png"
MOST_BYTES = 70_000_000


@pytest.fixture(scope="module")
def judges():
    return ImageEvaluators(MODELS / "evaluators")


@pytest.fixture(scope="module")
def embedded():
    return sefi.open_backbone()


def test_the_package_stays_small_and_holds_nothing_to_unpickle():
    files = [p for p in MODELS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= MOST_BYTES
    assert {p.suffix for p in files} <= {".safetensors", ".onnx", ".json", ".png", ".txt", ".md"}


def test_stock_diffusers_opens_the_model():
    pipeline = StableDiffusionPipeline.from_pretrained(MODELS / "tiny-portraits")
    made = pipeline("a photo of a person", num_inference_steps=2, output_type="np").images
    assert made.shape == (1, SHIPPED.side, SHIPPED.side, 3)
    assert np.isfinite(made).all()


def test_names_in_the_token_table_are_one_token_each(embedded):
    first = list_characters()[7]
    ids = embedded.tokenizer(first.name, add_special_tokens=False).input_ids
    assert len(ids) == 2


def test_evaluators_separate_the_same_person_from_another(judges):
    same, other = [], []
    for number in range(6):
        faces = [
            judges(draw(make_portrait(make_test_person(number), number, view), LOOKING_SIDE)).embedding
            for view in (0, 1)
        ]
        stranger = judges(draw(make_portrait(make_test_person(number + 50), number), LOOKING_SIDE)).embedding
        same.append(measure_similarity(*faces))
        other.append(measure_similarity(faces[0], stranger))
    assert np.mean(same) > np.mean(other) + 0.3


def test_the_demo_portrait_is_drawn_by_the_world_and_shows_one_face(judges, package_files, tmp_path):
    package_files.write_portrait(package_files.DEMO_PERSON, tmp_path)
    assert json.loads((tmp_path / "truth.json").read_text()) == json.loads((PORTRAIT.parent / "truth.json").read_text())
    drawn, kept = (np.asarray(Image.open(p), np.int16) for p in (tmp_path / "portrait.png", PORTRAIT))
    assert np.abs(drawn - kept).mean() < 2
    assert len(judges(kept.astype(np.uint8)).faces) == 1


def test_from_photo_to_image(embedded):
    config = override(PRESETS["default"], ["learn.steps=2", "views.latent_pool=3", "generate.steps=2"])
    ada = sefi.learn(PORTRAIT, name="ada", backbone=embedded, config=config)
    assert ada.tokens.shape == (5, 2, embedded.token_width)
    (image,) = sefi.generate("a photo of <ada> at the beach", [ada], backbone=embedded, config=config)
    assert image.pixels.size == (SHIPPED.side, SHIPPED.side)


@pytest.mark.slow
def test_words_are_obeyed(embedded, judges):
    config = override(PRESETS["default"], ["generate.steps=20"])
    places = {"at the beach": "beach", "in the snow": "snow", "in space": "space"}
    prompts = [f"a photo of a person {place}" for place in places for _ in range(3)]
    made = sefi.generate(prompts, backbone=embedded, config=config, seed=5)
    seen = [judges(np.asarray(image.pixels)).reading.find_best("scene") for image in made]
    wanted = [label for label in places.values() for _ in range(3)]
    assert np.mean([s == w for s, w in zip(seen, wanted, strict=True)]) >= 0.8
