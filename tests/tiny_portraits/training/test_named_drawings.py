"""Pairs of drawings and tokens, which the name encoder of the embedded model is fitted on."""

import pytest
import torch

import sefi
from sefi.api import open_detector
from sefi.core.progress import SilentProgress
from sefi.methods.name_encoder import compute_explained_variance, find_name_tokens
from tiny_portraits.text.words import list_characters
from tiny_portraits.training.drawings import collect_vectors, fit_token_map, pair_drawings_with_names


@pytest.mark.slow
def test_tokens_of_names_left_out_are_found_by_the_person() -> None:
    embedded, characters = sefi.open_backbone(), list_characters()
    rows = find_name_tokens(embedded, [one.name for one in characters], 1)
    known = torch.cat([rows[one.name] for one in characters])
    vectors, out = collect_vectors([one.person for one in characters]), torch.arange(len(characters)) % 10 == 0
    token_map = fit_token_map(vectors[~out], known[~out], steps=150)
    assert compute_explained_variance(token_map(vectors[out]), known[out], known[~out].mean(0)) > 0.9


@pytest.mark.slow
def test_every_drawing_has_the_token_of_its_person() -> None:
    embedded, people = sefi.open_backbone(), 3
    pairs = pair_drawings_with_names(embedded, open_detector(embedded, None), SilentProgress(), people, map_steps=2)
    counts = pairs.person.bincount(minlength=people)
    assert counts.max() <= 2
    assert len(pairs.person) >= 2 * people - 1, "faces of drawn portraits and photos are found"
    assert pairs.heads.latents.shape[1:] == (embedded.latent_channels, 12, 12)
    assert pairs.heads.faces.shape[1] == 160 * 4**2
    assert pairs.heads.latents.isfinite().all()
    assert pairs.heads.faces.isfinite().all()
    same = [rows for person, rows in zip(pairs.person.tolist(), pairs.tokens, strict=True) if person == pairs.person[0]]
    assert all(torch.equal(rows, same[0]) for rows in same)
    assert len({tuple(rows.flatten().tolist()) for rows in pairs.tokens}) == people
