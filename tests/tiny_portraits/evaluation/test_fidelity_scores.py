"""Figures of autoencoder, names, tokens and backgrounds: with known answers, and on the embedded model."""

import numpy as np
import pytest
import torch

from sefi.backbone.open import EMBEDDED, MODELS, open_backbone
from sefi.core.config import override
from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.diffusion.text import get_class_token_ids
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import get_content, make_portrait, make_test_person
from tiny_portraits.evaluation import fidelity_scores
from tiny_portraits.evaluation.check import CHECKED, PARTS, check
from tiny_portraits.evaluation.fidelity_scores import (
    Comparison,
    compare,
    draw_person_views,
    encode_person_views,
    invert_latent,
    knows,
    list_prompts,
    list_truths,
    make_autoencoder_figures,
    measure_edges,
    reconstruct_drawing,
    sample_tokens,
    score_backgrounds,
    score_identity,
    score_tokens,
)
from tiny_portraits.evaluation.figures import ImageEvaluators
from tiny_portraits.training.drawings import convert_to_tensor
from tiny_portraits.training.evaluators import draw_all
from tiny_portraits.training.readers import SCENE_LABELS, label_heads, label_scenes, measure_accuracy

QUICK = override(CHECKED, ["generate.steps=2"]).generate


@pytest.fixture(scope="module")
def backbone():
    return open_backbone(EMBEDDED)


@pytest.fixture(scope="module")
def judges():
    return ImageEvaluators(MODELS / "evaluators")


def test_the_autoencoders_figures_follow_from_the_comparisons():
    found = [
        Comparison(0.9, [("scene", True, True), ("attribute", True, False)], (2.0, 1.0)),
        Comparison(1.0, [("scene", False, True)], (2.0, 2.6)),
        Comparison(None, [("scene", True, True)], (1.0, 1.0)),
    ]
    values = {figure.name.removeprefix("autoencoder: "): figure for figure in make_autoencoder_figures(found)}
    assert values["recogniser similarity of reconstructions"].value == pytest.approx(0.95)
    assert values["recogniser similarity of reconstructions"].n == 2
    assert values["recogniser similarity of reconstructions"].met is False
    assert values["scene read, against drawings"].value == pytest.approx(1 / 3)
    assert values["attribute read, against drawings"].value == -1.0
    assert values["edge energy, share of the drawings'"].value == pytest.approx(4.6 / 5)
    assert values["edge energy, share of the drawings'"].met is True
    assert values["edge energy below 1.05"].value == pytest.approx(0.13)


def test_a_perfect_autoencoder_passes_the_gate_and_a_blurred_one_does_not(judges):
    class Perfect(torch.nn.Module):
        def encode(self, x):
            posterior = type("Posterior", (), {"mean": x})
            return type("Encoded", (), {"latent_dist": posterior})

        def decode(self, x):
            return type("Decoded", (), {"sample": x})

    class Blurred(Perfect):
        def decode(self, x):
            return type("Decoded", (), {"sample": torch.nn.functional.avg_pool2d(x, 5, 1, 2)})

    shown = [make_portrait(make_test_person(n), n) for n in range(3)]
    assert (reconstruct_drawing(Perfect(), draw(shown[0], 192)) == draw(shown[0], 192)).all()
    good, bad = (
        make_autoencoder_figures([compare(one(), judges, p, 192) for p in shown]) for one in (Perfect, Blurred)
    )
    assert all(figure.met in (True, None) for figure in good)
    assert good[0].value == pytest.approx(1)
    assert bad[0].value < good[0].value
    edges = next(figure for figure in bad if "share of" in figure.name)
    assert edges.value < 0.7
    assert edges.met is False


def test_edges_are_zero_for_one_colour_and_grow_with_contrast():
    flat = np.full((8, 8, 3), 90, np.uint8)
    half = flat.copy()
    half[:, 4:] = 100
    assert measure_edges(flat) == 0
    assert measure_edges(half) == pytest.approx(100 / 7)


def test_truths_name_what_a_reader_can_see():
    shown = [get_content(3, i) for i in range(40)]
    for picture in shown:
        found = list_truths(picture)
        assert ("scene", picture.scene) in found
        assert ("style", picture.style) in found
    alone = next(p for p in shown if len(p.subjects) == 1 and p.subjects[0].attributes)
    assert ("attribute", alone.subjects[0].attributes[0]) in list_truths(alone)


def test_labels_that_the_readers_do_not_know_do_not_count(judges):
    sight = judges(draw(make_portrait(make_test_person(1), 1), 192))
    for kind, label in (("attribute", "crown"), ("scene", "garden"), ("style", "comic")):
        assert knows(sight, kind, label)
        assert not knows(sight, kind, "something else")
    assert not knows(sight, "weather", "rain")


@pytest.mark.slow
def test_the_gate_needs_no_denoiser(tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_portraits.evaluation.check.GATE_DRAWINGS", 5)
    (tmp_path / "vae").symlink_to(MODELS / EMBEDDED / "vae")
    figures = check(str(tmp_path), parts=("autoencoder",), progress=SilentProgress())
    assert figures[0].name.startswith("autoencoder: recogniser similarity")
    assert 0.5 < figures[0].value < 1
    with pytest.raises(ConfigError, match="no autoencoder"):
        check(str(tmp_path / "nowhere"), parts=("autoencoder",), progress=SilentProgress())


def test_every_figure_is_a_part():
    old = {"expressiveness", "traits", "words", "names", "pairs", "pets", "clip", "evaluators"}
    assert set(PARTS) == old | {"autoencoder", "identity", "tokens", "backgrounds", "second-recogniser"}


@pytest.mark.slow
def test_free_tokens_learn_from_drawings_of_the_models_own_side(backbone):
    side, cells = backbone.resolution, backbone.unet.config.sample_size
    drawings = draw_person_views(200, side)
    latents = encode_person_views(backbone, drawings[:2], 7)
    assert drawings.shape[1:] == (side, side, 3)
    assert latents.shape == (2, backbone.unet.config.in_channels, cells, cells)


def test_random_tokens_are_as_long_as_asked_and_differ(backbone):
    word = float(backbone.get_token_row(get_class_token_ids(backbone, "person")).norm())
    found = [sample_tokens(backbone, n) for n in range(40)]
    shares = [float(tokens[0, 0].norm()) / word for tokens in found]
    assert found[0].shape == (5, 2, backbone.token_width)
    assert all(torch.equal(tokens[0, 0], tokens[4, 1]) for tokens in found)
    assert 0.69 < min(shares) < 0.85
    assert 1.55 < max(shares) < 1.71
    assert torch.equal(found[3], sample_tokens(backbone, 3))
    assert not torch.allclose(found[0], found[1])


@pytest.mark.slow
def test_names_and_random_tokens_are_scored(backbone, judges, monkeypatch):
    assert len(list_prompts()) == 19
    assert all(prompt.count("{}") == 1 for prompt in list_prompts())
    monkeypatch.setattr(fidelity_scores, "list_prompts", lambda: ["a photo of {}"])
    near, one = score_identity(backbone, judges, 2, QUICK, SilentProgress())
    assert (near.n, one.n) == (2, 2)
    assert -1 <= near.value <= 1
    (faces,) = score_tokens(backbone, judges, 2, QUICK, SilentProgress())
    assert faces.n == 2
    assert faces.value in (0.0, 0.5, 1.0)


def test_inversion_moves_one_token_for_all_stages(backbone):
    clean = backbone.encode_image(
        convert_to_tensor(draw_all([make_portrait(make_test_person(5), 5)])), create_generator(1, "test")
    )
    tokens = invert_latent(backbone, clean, 2, 7, SilentProgress())
    word = backbone.get_token_row(get_class_token_ids(backbone, "person"))
    assert tokens.shape == (5, 2, backbone.token_width)
    assert all(torch.equal(tokens[0, 0], tokens[stage, part]) for stage in range(5) for part in range(2))
    assert float((tokens[0, 0] - word.flatten()).abs().max()) > 1e-3


@pytest.mark.slow
def test_backgrounds_are_compared_with_the_plain_words(backbone, monkeypatch):
    monkeypatch.setattr(fidelity_scores, "LEAK_IMAGES", 1)
    (figure,) = score_backgrounds(backbone, MODELS / "evaluators", 1, 2, QUICK, SilentProgress())
    assert figure.n == 1
    assert -1 < figure.value < 1


def test_a_perfect_reader_is_right_everywhere():
    shown = [p for p in (get_content(3, i) for i in range(400)) if len(p.subjects) == 1]
    labels = label_heads(shown)
    flags = np.nan_to_num(labels["attributes"].numpy())
    assert measure_accuracy({"attributes": flags}, labels)["crown"] == 1.0
    scene = label_scenes(shown)
    assert {"garment", "light", "camera"} <= scene.keys()
    options = {name: np.eye(len(SCENE_LABELS[name]))[values.numpy()] for name, values in scene.items()}
    assert set(measure_accuracy(options, scene).values()) == {1.0}
