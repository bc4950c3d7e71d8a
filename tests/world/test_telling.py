"""The text encoder's first lesson: the state it is asked about, and that a few steps teach something."""

from dataclasses import replace

import numpy as np
import torch

from sefi.core.protocols import SilentProgress
from sefi.world.captions import FIRST, caption
from sefi.world.data import picture_at
from sefi.world.diffusion_training import DiffusionRecipe, DiffusionTraining, Trained, encoded
from sefi.world.drawing import draw
from sefi.world.sampling import PEOPLE_ONLY, Shares, random_picture
from sefi.world.telling import Teller, TellingRecipe, telling_loss, told, train_telling
from sefi.world.text_training import LENGTH, WIDTH, NamedText, encode_named, named_text
from sefi.world.tokenizing import build_tokenizer, words
from sefi.world.vae_training import new_vae
from sefi.world.widening import Earlier


class Losses:
    """Keeps what it is told."""

    def __init__(self):
        self.seen = []

    def start(self, total, label):
        pass

    def advance(self, **numbers):
        self.seen.append(numbers["loss"])

    def finish(self):
        pass


def test_the_state_asked_about_lies_behind_the_last_word():
    ids = torch.tensor([[1, 5, 6, 2, 2, 2, *[2] * (LENGTH - 6)], [1, 5, *[2] * (LENGTH - 2)]])
    states = torch.arange(LENGTH).float()[None, :, None].expand(2, -1, WIDTH)
    text = NamedText(ids, torch.zeros(0, 1), torch.zeros(0, 1))
    for seed in range(50):
        first, second = told(states, text, 2, np.random.default_rng(seed))[:, 0].tolist()
        assert 3 <= first < LENGTH
        assert 2 <= second < LENGTH


def test_a_few_steps_teach_something_and_reach_the_denoisers_training(tmp_path):
    torch.manual_seed(3)
    tokenizer = build_tokenizer(tmp_path, words())
    model, losses = Trained(tokenizer), Losses()
    train_telling(model.words(), TellingRecipe(steps=12, batch=7), 0, losses)
    assert np.mean(losses.seen[-3:]) < np.mean(losses.seen[:3])
    training = DiffusionTraining(tokenizer, np.zeros((1, 4, 24, 24), np.float16), DiffusionRecipe(), 1)
    training.start_from(model.worded())
    for name, value in model.worded().items():
        assert torch.equal(training.model.state_dict()[name], value)
        assert torch.equal(training.averaged[name], value)


def test_the_denoiser_learns_and_the_texts_stay(tmp_path):
    tokenizer = build_tokenizer(tmp_path, words())
    images = np.stack([draw(picture_at(1, i)) for i in range(3)])
    latents = encoded(tmp_path / "latents.npy", new_vae(), images, SilentProgress())
    training = DiffusionTraining(tokenizer, latents, DiffusionRecipe(batch=2), 1)
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    assert np.isfinite(training.advance())
    for name, value in training.model.worded().items():
        assert torch.equal(value, before[name])
    moved = [not torch.equal(v, before[f"unet.{k}"]) for k, v in training.model.unet.state_dict().items()]
    assert np.mean(moved) > 0.9
    training.save(tmp_path / "kept.safetensors")
    again = DiffusionTraining(tokenizer, latents, DiffusionRecipe(batch=2), 2)
    again.load(tmp_path / "kept.safetensors")
    assert again.step == 1
    again.seed = training.seed
    assert again.advance() == training.advance()
    # The second loss tells whether the optimiser's moments came back to their own weights.
    assert again.advance() == training.advance()


def company():
    """One person, two, a pet, and a person with a pet."""
    random = np.random.default_rng(5)
    shares = (PEOPLE_ONLY, replace(PEOPLE_ONLY, pair=1.0), Shares(pet=1.0), Shares(pet=0.0, companion=1.0))
    return [random_picture(random, shares=s) for s in shares for _ in range(3)]


def test_every_answer_is_asked_for(tmp_path):
    tokenizer, random = build_tokenizer(tmp_path, words()), np.random.default_rng(1)
    shown = company()
    text = named_text(tokenizer, [caption(p, random) for p in shown], random)
    model, teller = Trained(tokenizer), Teller()
    states = encode_named(model.words(), text, torch.zeros(len(shown), LENGTH, WIDTH)).detach()
    end, first_id = states[:, -1], tokenizer.convert_tokens_to_ids(f"{FIRST}</w>")
    loss = telling_loss(teller, states, text, shown, end, first_id)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in teller.parameters())


def test_an_earlier_model_holds_the_text_lesson_back(tmp_path):
    torch.manual_seed(3)
    tokenizer = build_tokenizer(tmp_path, words())
    pupil, teacher, losses = Trained(tokenizer).words(), Trained(tokenizer).words(), (Losses(), Losses())
    kept = Earlier(teacher, torch.arange(len(tokenizer)))
    start = {k: v.clone() for k, v in pupil.text.state_dict().items()}
    for seen, earlier in zip(losses, (None, kept), strict=True):
        pupil.text.load_state_dict(start)
        train_telling(pupil, TellingRecipe(steps=1, batch=7), 0, seen, earlier=earlier)
    assert losses[1].seen[0] > losses[0].seen[0] + 1
