"""The options of the recipe: each does what its formula says, and at its default it changes nothing."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests.training.token_training import learn_tokens, make_task

from sefi.backbone.bundle import Backbone
from sefi.core.config import (
    RECIPE_FROM_ENCODER,
    Config,
    LearnSettings,
    choose_start,
    dump_config,
    list_setting_names,
    override,
    parse_config,
    parse_saved_config,
    read_setting,
)
from sefi.core.errors import ConfigError, Interrupted
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.identity.tokens import IdentityTokens, compute_change_limits, interpolate_on_sphere
from sefi.methods import METHODS, PRESETS
from sefi.methods.base import TrainingOptions, check_method, get_class_row
from sefi.photo.augment import PhotoViews
from sefi.training.checkpoint import describe_differences
from sefi.training.loop import IdentityTrainer

WIDTH = 7
SHORT = ["learn.steps=7", "learn.batch=3", "views.latent_pool=5"]


def learn_settings(*assignments: str) -> LearnSettings:
    return override(PRESETS["default"], [f"learn.{one}" for one in assignments]).learn


def word(seed: int = 0) -> torch.Tensor:
    return torch.randn(WIDTH, generator=create_generator(seed, "word"))


def views(backbone: Backbone, config: Config) -> PhotoViews:
    square = torch.rand((3, backbone.resolution, backbone.resolution), generator=create_generator(4, "photo")) * 2 - 1
    return PhotoViews(square, config.views)


class Recorder(SilentProgress):
    """Keeps the numbers of every step, and stops after some."""

    def __init__(self, stop: int | None = None) -> None:
        self.steps, self.stop = [], stop

    def advance(self, **numbers: float) -> None:
        self.steps.append(numbers)
        if len(self.steps) == self.stop:
            raise KeyboardInterrupt


OPTIONS = [name for name, field in LearnSettings.model_fields.items() if field.exclude_if is not None]


def test_at_their_defaults_options_are_not_saved() -> None:
    saved = dump_config(PRESETS["scratch"])["learn"]
    assert len(OPTIONS) == 14
    assert not set(OPTIONS) & set(saved)
    assert all(getattr(PRESETS["paper"].learn, name) == LearnSettings.model_fields[name].default for name in OPTIONS)


def test_a_checkpoint_of_another_option_is_another_training() -> None:
    plain, falling = (
        {"config": dump_config(config), "seed": 1, "signature": ""}
        for config in (PRESETS["default"], override(PRESETS["default"], ["learn.rate_schedule=cosine"]))
    )
    assert describe_differences(plain, plain) == []
    assert describe_differences(falling, falling) == []
    assert describe_differences(falling, plain) == ["learn.rate_schedule is nothing and was cosine"]
    assert describe_differences(plain, falling) == ["learn.rate_schedule is cosine and was nothing"]


@pytest.mark.parametrize("expansion", ["direct", "module"])
@given(limit=st.sampled_from([None, 0.5, 1.3]), residual=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_held_tokens_have_one_norm_and_no_gradient_along_themselves(expansion, limit, residual, seed) -> None:
    options = [f"expansion={expansion}", f"residual_init={residual}", "hold_norm=true", f"token_norm_limit={limit}"]
    tokens = IdentityTokens(word(), learn_settings(*options), seed)
    got = tokens()
    aim = torch.randn(got.shape, generator=create_generator(seed, "aim"))
    wanted = ((limit or 1.0) * word().norm()).expand(got.shape[:-1])
    torch.testing.assert_close(got.norm(dim=-1), wanted)
    if expansion == "direct":
        (got * aim).sum().backward()
        assert tokens.table is not None
        along = (tokens.table.grad * got.detach()).sum(-1) / got.detach().norm(dim=-1)
        assert along.abs().max() <= 1e-5 * tokens.table.grad.norm(dim=-1).max()
        # Independent: the gradient of r u / |u| by hand.
        free = tokens.table.detach() + (tokens.class_token if residual else 0)
        unit = free / free.norm(dim=-1, keepdim=True)
        by_hand = (
            wanted[..., None] / free.norm(dim=-1, keepdim=True) * (aim - unit * (unit * aim).sum(-1, keepdim=True))
        )
        torch.testing.assert_close(tokens.table.grad, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("residual", [True, False])
def test_after_a_step_the_table_is_on_the_sphere_again(residual: bool) -> None:
    tokens = IdentityTokens(word(), learn_settings("hold_norm=true", f"residual_init={residual}"), 1)
    assert tokens.table is not None
    tokens.table.data += torch.randn(tokens.table.shape, generator=create_generator(1, "t"))
    before = tokens().detach().clone()
    tokens.after_step()
    torch.testing.assert_close(tokens.table + (tokens.class_token if residual else 0), before)


@given(
    st.integers(1, 13),
    st.floats(0, 1),
    st.floats(0.05, 1.5),
    st.sampled_from([None, 1.0, 0.4, 1.3]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_no_token_is_farther_from_its_start_than_its_stage_allows(stages, freedom, limit, norm, residual, seed) -> None:
    """Free tokens, and those that are held at a norm: on a small sphere no way may be as long as the limit."""
    options = [f"stages={stages}", f"change_limit={limit}", f"noise_freedom={freedom}", f"residual_init={residual}"]
    chosen = learn_settings(*options, *([f"token_norm_limit={norm}", "hold_norm=true"] if norm else []))
    tokens = IdentityTokens(word(), chosen, 1)
    assert tokens.table is not None
    start = tokens().detach().clone()
    moves = 0.7 * torch.randn(tokens.table.shape, generator=create_generator(seed, "t"))
    tokens.table.data += moves
    before = tokens().detach().clone()
    tokens.after_step()
    change = (tokens().detach() - start).norm(dim=-1) / word().norm()
    limits = torch.tensor([limit * (1 - (1 - freedom) * (s / max(1, stages - 1))) for s in range(stages)])
    assert (change <= limits[:, None] + 1e-4).all()
    free_way = (before - start).norm(dim=-1) / word().norm()
    kept = free_way < limits[:, None] - 1e-4
    torch.testing.assert_close(tokens()[kept], before[kept], rtol=1e-4, atol=1e-5)
    far = free_way > limits[:, None] + 1e-4
    torch.testing.assert_close(change[far], limits[:, None].expand_as(change)[far], rtol=1e-3, atol=1e-3)


@given(
    st.lists(st.sampled_from([0.0, 1e-30, 1e-3, 0.3, 40.0, 1e25]), min_size=6, max_size=6),
    st.sampled_from([0.0, 0.4]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_a_limit_of_nothing_gives_numbers(sizes, freedom, held, seed) -> None:
    """Without freedom in the noise, tokens that have not moved have no change to divide by."""
    chosen = learn_settings("stages=3", "change_limit=0.5", f"noise_freedom={freedom}", f"hold_norm={held}")
    tokens = IdentityTokens(word(), chosen, 1)
    assert tokens.table is not None
    moves = torch.randn(tokens.table.shape, generator=create_generator(seed, "t"))
    tokens.table.data += moves * torch.tensor(sizes).view(3, 2, 1)
    tokens.after_step()
    change = (tokens().detach() - word()).norm(dim=-1) / word().norm()
    limits = torch.tensor([0.5, 0.25 * (1 + freedom), 0.5 * freedom])
    assert tokens().isfinite().all()
    assert (change <= limits[:, None] + 1e-5).all()


def test_limits_fall_with_the_noise() -> None:
    limits = compute_change_limits(learn_settings("change_limit=0.8", "noise_freedom=0.25"))
    assert limits is not None
    torch.testing.assert_close(limits, torch.tensor([0.8, 0.65, 0.5, 0.35, 0.2]))
    assert compute_change_limits(learn_settings()) is None


@given(st.floats(-0.5, 1.5), st.integers(0, 99))
@settings(max_examples=30)
def test_slerp_is_a_rotation_in_the_plane_of_both(share: float, seed: int) -> None:
    first, second = word(seed).double(), word(seed + 1000).double()
    got = interpolate_on_sphere(first, second, share)
    unit = first / first.norm()
    across = second - unit * (unit @ second)
    across, angle = across / across.norm(), torch.acos(unit @ second / second.norm())
    torch.testing.assert_close(got, torch.cos(share * angle) * unit + torch.sin(share * angle) * across)


def test_the_average_follows_its_formula(backbone: Backbone) -> None:
    config = override(PRESETS["default"], [*SHORT, "learn.token_average=0.6"])
    task = make_task(backbone, views(backbone, config), config, 1)
    trainer, seen = IdentityTrainer(task, config), task.tokens().detach().clone()
    for step in range(4):
        trainer.take_step(step)
        task.weights.train()
        decay = min(0.6, (2 + step) / (11 + step))
        seen = decay * seen + (1 - decay) * task.tokens().detach()
    torch.testing.assert_close(task.get_identity_tensors()["tokens"], seen)
    task.weights.train()
    assert not torch.equal(task.tokens(), seen)


ALL_TOGETHER = [
    "learn.rate_schedule=cosine",
    "learn.hold_norm=true",
    "learn.token_average=0.9",
    "learn.change_limit=0.9",
    "learn.noise_freedom=0.3",
]


@pytest.mark.slow
def test_a_stopped_run_with_every_option_resumes_with_the_same_bits(backbone: Backbone, tmp_path) -> None:
    config = override(PRESETS["default"], [*SHORT, *ALL_TOGETHER])
    whole, _ = learn_tokens(backbone, views(backbone, config), config, 5, SilentProgress())
    checkpoint = tmp_path / "run.safetensors"
    with pytest.raises(Interrupted):
        learn_tokens(backbone, views(backbone, config), config, 5, Recorder(stop=3), checkpoint)
    resumed, _ = learn_tokens(backbone, views(backbone, config), config, 5, SilentProgress(), checkpoint)
    assert torch.equal(whole, resumed)


def test_the_rate_falls_by_a_cosine(backbone: Backbone) -> None:
    config = override(PRESETS["default"], [*SHORT, "learn.rate_schedule=cosine"])
    trainer = IdentityTrainer(make_task(backbone, views(backbone, config), config, 1), config)
    rates = []
    for step in range(7):
        trainer.take_step(step)
        rates.append(trainer.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([5e-3 * (0.5 + 0.5 * math.cos(math.pi * step / 7)) for step in range(7)])
    constant = override(PRESETS["default"], SHORT)
    assert IdentityTrainer(make_task(backbone, views(backbone, constant), constant, 1), constant).options.rate is None


@pytest.mark.parametrize("option", ["hold_norm=true", "token_average=0.5", "change_limit=1", "start=encoder"])
@pytest.mark.parametrize("method", ["textual-inversion", "dreambooth", "custom-diffusion", "celeb-basis"])
def test_methods_refuse_options_that_they_would_pass_over(backbone: Backbone, method: str, option: str) -> None:
    config = override(PRESETS[method], [f"learn.{option}"])
    with pytest.raises(ConfigError, match=option.partition("=")[0]):
        check_method(METHODS[method], backbone, config, None)


def test_steps_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="start=encoder"):
        override(PRESETS["scratch"], ["learn.steps=0"])
    assert override(PRESETS["default"], ["learn.start=encoder", "learn.steps=0"]).learn.steps == 0
    with pytest.raises(ConfigError, match="noise_freedom has no effect"):
        override(PRESETS["scratch"], ["learn.noise_freedom=0.5"])
    # From the encoder there is a limit.
    freer = choose_start(override(PRESETS["default"], ["learn.noise_freedom=0.5"]), encoder=True).learn
    assert (freer.noise_freedom, freer.change_limit) == (0.5, 0.5)


SET_TO_THE_PRESETS = {
    "learn.hold_norm": False, "learn.rate_schedule": "constant", "learn.change_limit": None, "learn.noise_freedom": 1.0,
    "learn.attention_weight": 0.003, "learn.attention_loss": "difference", "views.latent_pool": 64, "views.flip": 0.5,
}  # fmt: skip


def test_every_setting_of_the_recipe_can_be_set_to_the_presets_value() -> None:
    assert set(SET_TO_THE_PRESETS) == RECIPE_FROM_ENCODER
    for name, value in SET_TO_THE_PRESETS.items():
        assert read_setting(PRESETS["default"], name) == value


@pytest.mark.parametrize("setting", SET_TO_THE_PRESETS)
def test_a_setting_that_is_set_to_the_presets_value_holds(setting: str) -> None:
    """It counted as not set, and the recipe's value was taken."""
    preset, value = PRESETS["default"], SET_TO_THE_PRESETS[setting]
    recipe = choose_start(preset, encoder=True)
    assert read_setting(recipe, setting) != value
    given = override(preset, [f"{setting}={value}"])
    assert given != preset, "a folder of a batch has other identities then"
    assert override(given, ["generate.steps=3"]).explicit == given.explicit
    assert parse_config(dump_config(given), Config) == given
    chosen = choose_start(given, encoder=True)
    assert read_setting(chosen, setting) == value
    assert chosen.explicit == ()
    others = {name for name in list_setting_names() if read_setting(chosen, name) != read_setting(recipe, name)}
    assert others - {"learn.noise_freedom"} <= {setting}
    assert parse_saved_config(dump_config(chosen), Config) == chosen
    assert choose_start(given, encoder=False) == choose_start(preset, encoder=False)
    assert override(given, [f"{setting}={read_setting(recipe, setting)}"]).explicit == ()
    assert override(given, ["learn.start=encoder"]).explicit == ()


def test_no_limit_of_the_change_leaves_nothing_to_take_a_share_of() -> None:
    free = choose_start(override(PRESETS["default"], ["learn.change_limit=none"]), encoder=True).learn
    assert (free.change_limit, free.noise_freedom) == (None, 1.0)
    both = ["learn.change_limit=none", "learn.noise_freedom=0.5"]
    for assignments in (both, both[::-1]):
        with pytest.raises(ConfigError, match="noise_freedom has no effect"):
            override(PRESETS["default"], assignments)


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("setting", [*SET_TO_THE_PRESETS, "learn.noise_freedom=0.5", "learn.encoder=names.safetensors"])
def test_what_is_learned_with_can_be_read_back_wherever_tokens_start(setting: str, encoder: bool) -> None:
    """A share of no limit was saved from the class word, and the identity could not be opened."""
    assignment = setting if "=" in setting else f"{setting}={SET_TO_THE_PRESETS[setting]}"
    chosen = choose_start(override(PRESETS["default"], [assignment]), encoder=encoder)
    assert parse_saved_config(dump_config(chosen), Config) == chosen


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("held", [False, True])
def test_two_vectors_of_keys_and_values_of_every_stage(backbone: Backbone, held: bool) -> None:
    options = ["learn.vectors=2", f"learn.hold_norm={held}", "learn.change_limit=0.5", "learn.noise_freedom=0.5"]
    config = override(PRESETS["default"], [*SHORT, *options, "generate.steps=2"])
    sefi_method = METHODS["sefi"]
    sefi_method.check(backbone, config, None)
    identity = sefi_method.learn("ada", views(backbone, config), backbone, config, 3, TrainingOptions())
    assert identity.tokens.shape == (5, 2, 2, backbone.token_width)
    row = get_class_row(backbone, config)
    changed = (identity.tokens - row).norm(dim=-1)
    assert (changed > 0).all(), "every stage's key and value vectors learn"
    assert sefi_method.count_weights(backbone, config).trained == identity.tokens.numel()
    again = sefi_method.learn("ada", views(backbone, config), backbone, config, 3, TrainingOptions(init=identity))
    assert again.tokens.shape == identity.tokens.shape


def test_a_share_beside_a_weight_is_the_users_and_not_the_recipes() -> None:
    both = override(PRESETS["default"], ["learn.attention_weight=0.1", "learn.attention_share=2"])
    assert choose_start(both, encoder=True).learn.attention_share == 2
    weighted = override(PRESETS["default"], ["learn.attention_weight=0.1"])
    assert choose_start(weighted, encoder=True).learn.attention_share is None
    assert choose_start(weighted, encoder=True).learn.attention_weight == 0.1
    assert choose_start(PRESETS["default"], encoder=True).learn.attention_weight == 0
