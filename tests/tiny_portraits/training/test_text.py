"""The text encoder's training: the state it is asked about, and that a few steps teach something."""

from dataclasses import replace

import numpy as np
import torch
from tests.tiny_portraits.training.progresses import Losses

from tiny_portraits.drawing.sampling import PEOPLE_ONLY, Shares, sample_content
from tiny_portraits.text.captions import FIRST, write_caption
from tiny_portraits.text.text_encoder import (
    WIDTH,
    EarlierWords,
    NamedText,
    build_text_parts,
    encode_named,
    tokenise_captions,
)
from tiny_portraits.text.tokenizing import LENGTH, build_tokenizer, list_caption_words
from tiny_portraits.training.text import TextReader, TextRecipe, choose_states, compute_text_loss, train_text


def test_the_state_asked_about_lies_behind_the_last_word():
    ids = torch.tensor([[1, 5, 6, 2, 2, 2, *[2] * (LENGTH - 6)], [1, 5, *[2] * (LENGTH - 2)]])
    states = torch.arange(LENGTH).float()[None, :, None].expand(2, -1, WIDTH)
    text = NamedText(ids, torch.zeros(0, 1), torch.zeros(0, 1))
    for seed in range(50):
        first, second = choose_states(states, text, 2, np.random.default_rng(seed))[:, 0].tolist()
        assert 3 <= first < LENGTH
        assert 2 <= second < LENGTH


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
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in teller.parameters())


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
