"""A finished model's words for a new training: rows word by word, what is held near, the naming network fitted."""

import numpy as np
import pytest
import torch

from sefi.backbone.open import EMBEDDED, MODELS
from tiny_portraits.text.captions import Caption
from tiny_portraits.text.text_encoder import (
    WIDTH,
    build_text_parts,
    encode_named,
    load_earlier_words,
    take_over_words,
    tokenise_captions,
)
from tiny_portraits.text.tokenizing import LENGTH, build_tokenizer, list_caption_words
from tiny_portraits.text.words import list_characters

NEW = {"shaking", "floppy", "round", "hippopotamus"}
OLD_SENTENCES = ["a photo of a person", "a drawing of firstname lastname at the beach", "a photo of firstname", ""]
NEW_SENTENCES = ["a photo of a person with a round face", "a photo of a hippopotamus"]


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """An earlier model of random weights, a newer with more words, and the earlier one as the newer sees it."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("words")
    everything = sorted({*list_caption_words(), *NEW})
    earlier = build_text_parts(build_tokenizer(folder / "old", [w for w in everything if w not in NEW]))
    newer = build_text_parts(build_tokenizer(folder / "new", everything))
    before = {k: v.clone() for k, v in newer.text.state_dict().items()}
    return earlier, newer, before, take_over_words(newer, earlier)


def read(newer, sentences):
    """States of sentences, what they are, and the noise of their names."""
    person = list_characters()[0].person
    said = [Caption(text, (person,) if "firstname" in text else ()) for text in sentences]
    text = tokenise_captions(newer.tokenizer, said, np.random.default_rng(2))
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal((len(said), LENGTH, WIDTH), np.float32))
    with torch.no_grad():
        return encode_named(newer, text, noise), text, noise


def test_old_words_keep_their_rows_and_new_ones_their_random_ones(grown):
    earlier, newer, before, found = grown
    old, new = earlier.tokenizer.get_vocab(), newer.tokenizer.get_vocab()
    assert {word for word in list_caption_words() if f"{word}</w>" not in old} == NEW & set(list_caption_words())
    assert {f"{word}</w>" for word in NEW} <= new.keys() - old.keys()
    rows, known = (w.text.get_input_embeddings().weight for w in (newer, earlier))
    unseen = next(v for k, v in before.items() if k.endswith("token_embedding.weight"))
    for word, number in new.items():
        assert found.ids[number] == old.get(word, -1)
        assert torch.equal(rows[number], known[old[word]] if word in old else unseen[number])


def test_everything_but_the_token_table_is_the_earlier_one(grown):
    earlier, newer, _, _ = grown
    for mine, its in ((newer.text, earlier.text), (newer.names, earlier.names)):
        known = its.state_dict()
        for name, value in mine.state_dict().items():
            assert name.endswith("token_embedding.weight") or torch.equal(value, known[name]), name


def test_a_model_that_learned_nothing_is_at_no_distance(grown):
    _, newer, _, found = grown
    states, text, noise = read(newer, OLD_SENTENCES + NEW_SENTENCES)
    assert found.measure_distance(states, text, noise) < 1e-10
    assert found.measure_distance(states + 2, text, noise) == pytest.approx(4, abs=1e-3)


def test_sentences_with_new_words_are_free(grown):
    _, newer, _, found = grown
    states, text, noise = read(newer, OLD_SENTENCES + NEW_SENTENCES)
    states[len(OLD_SENTENCES) :] += 7
    assert found.measure_distance(states, text, noise) < 1e-10
    states[0] += 1
    assert found.measure_distance(states, text, noise) > 0.1


def test_the_distance_moves_the_newer_and_not_the_earlier_model(grown):
    earlier, newer, _, found = grown
    states, text, noise = read(newer, OLD_SENTENCES)
    states.requires_grad_()
    found.measure_distance(states + 1, text, noise).backward()
    assert states.grad.abs().min() > 0
    assert all(p.grad is None for p in (*earlier.text.parameters(), *earlier.names.parameters()))


@pytest.fixture(scope="module")
def finished():
    return load_earlier_words(MODELS / EMBEDDED)


@pytest.mark.slow
def test_a_finished_models_words_are_taken_over_word_by_word(finished, tmp_path):
    tokenizer = build_tokenizer(tmp_path, [*list_caption_words(), "hippopotamus"])
    newer = build_text_parts(tokenizer)
    found = take_over_words(newer, finished)
    known, new = finished.tokenizer.get_vocab(), tokenizer.get_vocab()
    assert found.ids[new["hippopotamus</w>"]] == -1
    assert {"person</w>", "beach</w>", "<|endoftext|>"} <= known.keys()
    numbers = [(known[word], number) for word, number in new.items() if word in known]
    old, rows = (w.text.get_input_embeddings().weight for w in (finished, newer))
    mine, its = (torch.tensor(column) for column in zip(*numbers, strict=True))
    assert torch.equal(old[mine], rows[its])
    assert torch.equal(found.ids[its], mine)
    states, text, noise = read(newer, OLD_SENTENCES)
    assert found.measure_distance(states, text, noise) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
def test_the_naming_network_is_found_again_from_its_answers(last, finished):
    everyone = list_characters()
    names = [c.last if last else c.first for c in everyone]
    people = [c.parent if last else c.person for c in everyone]
    ids = finished.tokenizer.convert_tokens_to_ids([f"{name}</w>" for name in names])
    rows = finished.text.get_input_embeddings().weight[torch.tensor(ids)]
    found = finished.names(torch.from_numpy(np.stack([p.get_vector() for p in people])), last=last)
    assert (found - rows).std() < 0.15 * rows.std()
