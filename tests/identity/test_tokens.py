"""The tokens of an identity: what they start as, what the expansion module computes, and what limits leave of them."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from sefi.core.config import LearnSettings
from sefi.core.errors import MethodError
from sefi.core.rng import create_generator
from sefi.identity.tokens import (
    ExpansionModule,
    FreeVectors,
    IdentityTokens,
    count_module_weights,
    get_stage,
    get_stages,
)

WIDTH, STAGES = 7, 3


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=create_generator(seed, "numbers"))


def learn(**changes) -> LearnSettings:
    return LearnSettings(**{"stages": STAGES, "expansion": "direct", "residual_init": True, "dropout": 0.0, **changes})


def expand_by_hand(module: ExpansionModule, word: torch.Tensor, share: float) -> torch.Tensor:
    """The block, written out for its one input word: attention over a single word reads that word's value."""

    def normalise(x, norm):
        return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * norm.weight + norm.bias

    def drop(x):
        return torch.nn.functional.dropout(x, share, training=True)

    def attend(attention, context):
        return drop(attention.to_out[0](attention.to_value(context)))

    x = attend(module.attend_self, normalise(word, module.norm_self)) + word
    x = attend(module.attend_cross, word) + x
    value, gate = module.gate.project(normalise(x, module.norm_feed)).chunk(2)
    inner = value * gate * (1 + torch.erf(gate / math.sqrt(2))) / 2
    return module.last(drop(inner)).reshape(module.stages, module.slots, -1)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_module_is_its_block_written_out_with_the_dropout_of_torch(share: float) -> None:
    module, word = ExpansionModule(WIDTH, STAGES, heads=2, head_width=5, dropout=share), draw(WIDTH)
    for number, weight in enumerate(module.parameters()):
        weight.data = 0.4 * draw(*weight.shape, seed=number)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        wanted = expand_by_hand(module, word, share)
    torch.testing.assert_close(module(word, torch.Generator().manual_seed(3)), wanted)
    torch.testing.assert_close(module(word), expand_by_hand(module, word, 0.0))


def test_the_modules_first_weights_are_those_that_torch_gives() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        wanted = ExpansionModule(WIDTH, STAGES).state_dict()
    module = ExpansionModule(WIDTH, STAGES)
    for weight in module.parameters():
        weight.data.fill_(math.nan)
    module.draw_first(torch.Generator().manual_seed(3))
    assert all(torch.equal(one, wanted[name]) for name, one in module.state_dict().items())


@pytest.mark.parametrize("expansion", ["direct", "module"])
def test_the_seed_decides_where_tokens_start(expansion: str) -> None:
    settings = learn(expansion=expansion, residual_init=False)
    first, again, other = (IdentityTokens(draw(WIDTH), settings, seed)() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()


def test_without_the_residual_tokens_start_near_the_class_word_and_apart() -> None:
    word = draw(500)
    away = IdentityTokens(word, learn(residual_init=False), 1)() - word
    torch.testing.assert_close(away.std(dim=-1), (word.std() / 10).expand(STAGES, 2), rtol=0.15, atol=0)
    assert torch.corrcoef(away.flatten(0, 1).detach()).fill_diagonal_(0).abs().max() < 0.2


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_tokens_start_and_stay_where_they_are_told_to(residual: bool, held: bool) -> None:
    word, first = draw(WIDTH), draw(STAGES, 2, WIDTH, seed=1)
    if held:
        first = torch.nn.functional.normalize(first, dim=-1) * word.norm()
    settings = learn(residual_init=residual, hold_norm=held, change_limit=0.1)
    tokens = IdentityTokens(word, settings, 1, first)
    torch.testing.assert_close(tokens(), first)
    tokens.after_step()
    torch.testing.assert_close(tokens(), first)


def test_dropout_is_as_strong_as_the_settings_say() -> None:
    shares = {share: learn(expansion="module", residual_init=False, dropout=share) for share in (0.0, 0.6)}
    for share, settings in shares.items():
        tokens = IdentityTokens(draw(WIDTH), settings, 1)
        assert torch.equal(tokens(), tokens(create_generator(1, "dropout"))) == (share == 0)


@pytest.mark.parametrize("residual", [True, False])
def test_after_a_step_tokens_are_no_longer_than_the_limit_and_short_ones_stay(residual: bool) -> None:
    word, moves = draw(WIDTH), draw(STAGES, 2, WIDTH, seed=1)
    tokens = IdentityTokens(word, learn(residual_init=residual, token_norm_limit=1.5), 1)
    assert tokens.table is not None
    tokens.table.data += moves * torch.tensor([10.0, 0.05])[:, None]
    before = tokens().detach().clone()
    tokens.after_step()
    share = (1.5 * word.norm() / before.norm(dim=-1)).clamp(max=1)
    assert (share < 1).any()
    assert (share == 1).any()
    torch.testing.assert_close(tokens(), share[..., None] * before)


def test_the_mean_of_held_tokens_has_their_norm_too() -> None:
    word, seen = draw(WIDTH), []
    tokens = IdentityTokens(word, learn(hold_norm=True, token_average=0.5), 1)
    assert tokens.table is not None
    for step in range(4):
        tokens.table.data += draw(*tokens.table.shape, seed=step)
        tokens.after_step()
        seen.append(tokens().detach())
    found = tokens.eval()()
    torch.testing.assert_close(found.norm(dim=-1), word.norm().expand(STAGES, 2))
    assert not torch.isclose(found, seen[-1], rtol=1e-2).all()


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, set()),
        ({"hold_norm": True, "token_norm_limit": 1.2}, set()),
        ({"change_limit": 0.5}, {"origin"}),
        ({"token_average": 0.9}, {"average", "averaged"}),
    ],
)
def test_a_checkpoint_has_no_more_than_its_options_need(changes: dict[str, float], more: set[str]) -> None:
    """Trainings that earlier versions began go on: they have these names."""
    assert set(IdentityTokens(draw(WIDTH), learn(**changes), 1).state_dict()) == {"class_token", "table"} | more


@given(st.integers(1, 13), st.sampled_from([7, 1000]))
def test_stages_of_a_batch_are_those_of_each_and_the_last_is_of_pure_noise_too(stages: int, total: int) -> None:
    times = torch.arange(total + 1)
    found = get_stages(times, stages, total)
    assert found.tolist() == [get_stage(int(one), stages, total) for one in times]
    # By shares of the time, without whole numbers in between.
    assert [min(math.floor(stages * (n / total) + 1e-9), stages - 1) for n in range(total + 1)] == found.tolist()


@pytest.mark.parametrize("split", [True, False])
def test_the_count_of_the_modules_weights_is_that_of_the_module(split: bool) -> None:
    settings = learn(expansion="module", split_key_value=split)
    module = IdentityTokens(draw(WIDTH), settings, 1).module
    assert module is not None
    assert count_module_weights(WIDTH, settings) == sum(one.numel() for one in module.parameters())


def test_free_vectors_come_before_the_class_word() -> None:
    word, first = draw(WIDTH), draw(2, WIDTH, seed=1)
    torch.testing.assert_close(FreeVectors(word, first)(), first.expand(1, 2, -1, -1))
    torch.testing.assert_close(FreeVectors(word, first, then_class=True)()[0, 1], torch.stack([*first, word]))


@pytest.mark.parametrize("first", [(WIDTH,), (2, WIDTH + 1), (1, 2, WIDTH)])
def test_free_vectors_of_another_shape_are_refused(first: tuple[int, ...]) -> None:
    with pytest.raises(MethodError, match=rf"\[vector, {WIDTH}\]"):
        FreeVectors(draw(WIDTH), draw(*first))
