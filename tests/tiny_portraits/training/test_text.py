"""The text encoder's training: the state it is asked about, and that a few steps teach something."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.tiny_portraits.training.progresses import Losses

from tiny_portraits.drawing.sampling import PEOPLE_ONLY, Shares, sample_content
from tiny_portraits.text.captions import FIRST, Caption, write_caption
from tiny_portraits.text.text_encoder import (
    WIDTH,
    EarlierWords,
    NamedText,
    build_text_parts,
    encode_named,
    tokenise_captions,
)
from tiny_portraits.text.tokenizing import LENGTH, build_tokenizer, list_caption_words
from tiny_portraits.training.text import (
    BOUND_WORDS,
    BoundWord,
    TextReader,
    TextRecipe,
    choose_states,
    compute_binding_loss,
    compute_text_loss,
    find_bound_word,
    train_text,
)


def test_the_state_asked_about_lies_behind_the_last_word():
    ids = torch.tensor([[1, 5, 6, 2, 2, 2, *[2] * (LENGTH - 6)], [1, 5, *[2] * (LENGTH - 2)]])
    states = torch.arange(LENGTH).float()[None, :, None].expand(2, -1, WIDTH)
    text = NamedText(ids, torch.zeros(0, 1), torch.zeros(0, 1), torch.full((len(ids),), -1))
    for seed in range(50):
        first, second = choose_states(states, text, 2, np.random.default_rng(seed))[:, 0].tolist()
        assert 3 <= first < LENGTH
        assert 2 <= second < LENGTH


@pytest.mark.slow
def test_a_few_steps_teach_something(tmp_path):
    torch.manual_seed(3)
    worded, losses = build_text_parts(build_tokenizer(tmp_path, list_caption_words())), Losses()
    train_text(worded, TextRecipe(steps=12, batch=7), 0, losses)
    assert np.mean(losses.seen[-3:]) < np.mean(losses.seen[:3])


def company():
    """One person, two, a pet, and a person with a pet."""
    random = np.random.default_rng(5)
    shares = (PEOPLE_ONLY, replace(PEOPLE_ONLY, pair=1.0), Shares(pet=1.0), Shares(pet=0.0, companion=1.0))
    return [sample_content(random, shares=s) for s in shares for _ in range(3)]


def test_every_answer_is_asked_for(tmp_path):
    tokenizer, random = build_tokenizer(tmp_path, list_caption_words()), np.random.default_rng(1)
    shown = company()
    text = tokenise_captions(tokenizer, [write_caption(p, random) for p in shown], random)
    worded, teller = build_text_parts(tokenizer), TextReader()
    states = encode_named(worded, text, torch.zeros(len(shown), LENGTH, WIDTH)).detach()
    end, first_id = states[:, -1], tokenizer.convert_tokens_to_ids(f"{FIRST}</w>")
    loss = compute_text_loss(teller, states, text, shown, end, first_id)
    every_kind = "a person with short brown hair, pale skin and green eyes, in a red shirt"
    bound = compute_binding_loss(teller, states, end, [Caption(every_kind, ())] * len(shown))
    (loss + bound).backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in teller.parameters())


@pytest.mark.parametrize(
    ("kind", "sentence", "word", "noun"),
    [
        ("hair colour", "a photo of a person with purple hair", "purple", 7),
        ("hair colour", "a person, with short brown hair and blue eyes", "brown", 6),
        ("hair style", "a person, with short brown hair and blue eyes", "short", 6),
        ("eye colour", "a person with brown hair and blue eyes", "blue", 7),
        ("skin", "a person with dark skin in a red shirt", "dark", 4),
        ("clothes", "a person with dark skin in a red shirt", "red", 8),
        # Another thing's colour, a noun without one, and two people with different ones.
        ("hair colour", "a person in a purple hoodie", None, 0),
        ("eye colour", "a person with closed eyes", None, 0),
        ("hair colour", "a person with red hair and a person with black hair", None, 0),
        ("hair colour", "a person with red hair and a person with red hair", "red", 4),
    ],
)
def test_a_word_belongs_to_the_noun_behind_it(kind, sentence, word, noun):
    found = find_bound_word(kind, sentence)
    assert found == (None if word is None else BoundWord(BOUND_WORDS[kind][1].index(word), noun))


@pytest.mark.slow
def test_a_few_steps_tell_colours_of_hair_apart(tmp_path):
    torch.manual_seed(3)
    parts = build_text_parts(build_tokenizer(tmp_path, list_caption_words()))
    captions = [Caption(f"a person with {colour} hair", ()) for colour in BOUND_WORDS["hair colour"][1]]
    text = tokenise_captions(parts.tokenizer, captions, np.random.default_rng(0))
    reader, zeros = TextReader(), torch.zeros(len(captions), LENGTH, WIDTH)
    # The reader's heads stay as they are: only the encoder can make the words readable at their noun.
    optimiser = torch.optim.Adam(parts.text.parameters(), lr=1e-3)
    losses = list[float]()
    for _ in range(12):
        states = encode_named(parts, text, zeros)
        loss = compute_binding_loss(reader, states, states[:, -1], captions)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_an_earlier_model_holds_the_text_training_back(tmp_path):
    torch.manual_seed(3)
    tokenizer = build_tokenizer(tmp_path, list_caption_words())
    newer, teacher, losses = build_text_parts(tokenizer), build_text_parts(tokenizer), (Losses(), Losses())
    kept = EarlierWords(teacher, torch.arange(len(tokenizer)))
    start = {k: v.clone() for k, v in newer.text.state_dict().items()}
    for seen, earlier in zip(losses, (None, kept), strict=True):
        newer.text.load_state_dict(start)
        train_text(newer, TextRecipe(steps=1, batch=7), 0, seen, earlier=earlier)
    assert losses[1].seen[0] > losses[0].seen[0] + 1
