"""The fifth version's figures: what they count, on the embedded model and on comparisons with known answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sefi.backbone.open import EMBEDDED, MODELS, open_backbone
from sefi.conditioning.encode import get_token_row
from sefi.conditioning.prompt import get_class_token_id
from sefi.core.config import override
from sefi.core.errors import ConfigError
from sefi.core.protocols import SilentProgress
from sefi.core.streams import stream
from sefi.world import fifth_scores
from sefi.world.check import CHECKED, FIFTH_PARTS, PARTS, check
from sefi.world.data import picture_at
from sefi.world.drawing import draw
from sefi.world.fifth_scores import (
    Comparison,
    autoencoder_figures,
    compare,
    invert,
    list_prompts,
    list_truths,
    measure_edges,
    open_autoencoder,
    random_tokens,
    reconstruct,
    score_backgrounds,
    score_identity,
    score_tokens,
)
from sefi.world.judges import drawn
from sefi.world.looking import Judges
from sefi.world.model_scores import targets_of, wishes
from sefi.world.picture import Picture
from sefi.world.reader_training import head_labels, reading_accuracy, scene_labels, scene_options
from sefi.world.subjects import portrait, subject
from sefi.world.vae_training import to_tensor
from sefi.world.versions import FIFTH, FOURTH, version_of_side

QUICK = override(CHECKED, ["generate.steps=2"]).generate


@pytest.fixture(scope="module")
def backbone():
    return open_backbone(EMBEDDED)


@pytest.fixture(scope="module")
def judges():
    return Judges(MODELS / "judges")


def test_the_autoencoders_figures_follow_from_the_comparisons():
    found = [
        Comparison(0.9, [("scene", True, True), ("attribute", True, False)], (2.0, 1.0)),
        Comparison(1.0, [("scene", False, True)], (2.0, 2.6)),
        Comparison(None, [("scene", True, True)], (1.0, 1.0)),
    ]
    values = {figure.name.removeprefix("autoencoder: "): figure for figure in autoencoder_figures(found)}
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

    shown = [portrait(subject(n), n) for n in range(3)]
    assert (reconstruct(Perfect(), draw(shown[0], 192)) == draw(shown[0], 192)).all()
    good, bad = (autoencoder_figures([compare(one(), judges, p, 192) for p in shown]) for one in (Perfect, Blurred))
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
    shown = [picture_at(3, i, FIFTH) for i in range(40)]
    for picture in shown:
        found = list_truths(picture)
        assert ("scene", picture.scene) in found
        assert ("style", picture.style) in found
    alone = next(p for p in shown if len(p.subjects) == 1 and p.subjects[0].attributes)
    assert ("attribute", alone.subjects[0].attributes[0]) in list_truths(alone)


def test_labels_that_the_readers_do_not_know_do_not_count(judges):
    person = replace(portrait(subject(1), 1).subjects[0], attributes=("crown",))
    shown: Picture = replace(portrait(subject(1), 1), subjects=(person,), scene="garden")
    vae, version = open_autoencoder(MODELS / EMBEDDED)
    assert version == FOURTH
    kinds = [kind for kind, _, _ in compare(vae, judges, shown, 96).readings]
    assert "attribute" not in kinds
    assert "scene" not in kinds
    assert "style" in kinds


def test_the_gate_needs_no_denoiser(tmp_path, monkeypatch):
    monkeypatch.setattr("sefi.world.check.GATE_DRAWINGS", 5)
    (tmp_path / "vae").symlink_to(MODELS / EMBEDDED / "vae")
    figures = check(str(tmp_path), parts=("autoencoder",), progress=SilentProgress())
    assert figures[0].name.startswith("autoencoder: recogniser similarity")
    assert 0.5 < figures[0].value < 1
    with pytest.raises(ConfigError, match="no autoencoder"):
        check(str(tmp_path / "nowhere"), parts=("autoencoder",), progress=SilentProgress())


def test_the_shipped_cards_parts_are_as_they_were():
    assert PARTS == ("expressiveness", "traits", "words", "names", "pairs", "pets", "clip", "judges")
    assert not set(PARTS) & set(FIFTH_PARTS)


def test_random_tokens_are_as_long_as_asked_and_differ(backbone):
    word = float(get_token_row(backbone, get_class_token_id(backbone.tokenizer, "person")).norm())
    found = [random_tokens(backbone, n) for n in range(40)]
    shares = [float(tokens[0, 0].norm()) / word for tokens in found]
    assert found[0].shape == (5, 2, backbone.width)
    assert all(torch.equal(tokens[0, 0], tokens[4, 1]) for tokens in found)
    assert 0.69 < min(shares) < 0.85
    assert 1.55 < max(shares) < 1.71
    assert torch.equal(found[3], random_tokens(backbone, 3))
    assert not torch.allclose(found[0], found[1])


def test_names_and_random_tokens_are_scored(backbone, judges, monkeypatch):
    assert len(list_prompts()) == 19
    assert all(prompt.count("{}") == 1 for prompt in list_prompts())
    monkeypatch.setattr(fifth_scores, "list_prompts", lambda: ["a photo of {}"])
    near, one = score_identity(backbone, judges, 2, QUICK, SilentProgress())
    assert (near.n, one.n) == (2, 2)
    assert -1 <= near.value <= 1
    (faces,) = score_tokens(backbone, judges, 2, QUICK, SilentProgress())
    assert faces.n == 2
    assert faces.value in (0.0, 0.5, 1.0)


def test_inversion_moves_one_token_for_all_stages(backbone):
    clean = backbone.encode_image(to_tensor(drawn([portrait(subject(5), 5)])), stream(1, "test"))
    tokens = invert(backbone, clean, 2, 7, SilentProgress())
    word = get_token_row(backbone, get_class_token_id(backbone.tokenizer, "person"))
    assert tokens.shape == (5, 2, backbone.width)
    assert all(torch.equal(tokens[0, 0], tokens[stage, part]) for stage in range(5) for part in range(2))
    assert float((tokens[0, 0] - word.flatten()).abs().max()) > 1e-3


@pytest.mark.slow
def test_backgrounds_are_compared_with_the_plain_words(backbone, monkeypatch):
    monkeypatch.setattr(fifth_scores, "LEAK_PICTURES", 1)
    (figure,) = score_backgrounds(backbone, MODELS / "judges", 1, 2, QUICK, SilentProgress())
    assert figure.n == 1
    assert -1 < figure.value < 1


def test_the_fifth_versions_wishes_have_its_own_words():
    alone = [w.wanted[0] for w in wishes(FIFTH) if len(w.wanted) == 1]
    labels = (*FIFTH.attributes, *FIFTH.actions, *FIFTH.scenes, *FIFTH.styles)
    assert sorted(label for _, label in alone) == sorted(labels)
    assert (targets_of(FIFTH)["attribute"], targets_of(FOURTH)["attribute"]) == (0.95, 0.90)
    assert [version_of_side(side).number for side in (96, 192, 512)] == [4, 5, 4]


def test_a_fifth_versions_reader_is_scored_by_its_own_labels():
    shown = [p for p in (picture_at(3, i, FIFTH) for i in range(400)) if len(p.subjects) == 1]
    labels = head_labels(shown, FIFTH)
    flags = np.nan_to_num(labels["attributes"].numpy())
    assert reading_accuracy({"attributes": flags}, labels, FIFTH.attributes)["crown"] == 1.0
    scene = scene_labels(shown, FIFTH)
    assert {"garment", "light", "camera"} <= scene.keys()
    options = {name: np.eye(len(scene_options(FIFTH)[name]))[values.numpy()] for name, values in scene.items()}
    assert set(reading_accuracy(options, scene).values()) == {1.0}
