"""Pairs of drawings and names, which the name encoder of the embedded model is fitted on."""

import torch

import sefi
from sefi.api import open_detector
from sefi.core.progress import SilentProgress
from sefi.methods.sefi import find_name_tokens
from tiny_portraits.text.words import list_characters
from tiny_portraits.training.drawings import pair_drawings_with_names


def test_every_drawing_has_its_characters_first_name() -> None:
    embedded, people = sefi.open_backbone(), 3
    pairs = pair_drawings_with_names(embedded, open_detector(embedded, None), SilentProgress(), people)
    counts = pairs.person.bincount(minlength=people)
    assert counts.max() <= 2
    assert len(pairs.person) >= 2 * people - 1, "faces of drawn portraits and photos are found"
    assert pairs.features.shape[1] == embedded.unet.config["in_channels"] * 12**2
    assert pairs.features.isfinite().all()
    for number, rows in zip(pairs.person.tolist(), pairs.tokens, strict=True):
        first = list_characters()[number].first
        assert torch.equal(rows, find_name_tokens(embedded, [first], 1)[first])
