"""Strength on the sphere, and a strength of its own for each prompt."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

import sefi
from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, dump_config, override
from sefi.core.errors import ConfigError
from sefi.core.rng import create_generator
from sefi.diffusion.conditioning import IdentityConditioner, WordsConditioner, apply_text_settings, count_vectors
from sefi.identity.file import Identity
from sefi.methods import PRESETS
from sefi.methods.base import create_header, get_class_row

PROMPT = "a photo of <ada> smiling"
STAGES = 3


def identity(backbone: Backbone, name: str = "ada", size: float = 0.8, stages: int = STAGES) -> Identity:
    config = override(PRESETS["default"], [f"learn.stages={stages}"])
    row = get_class_row(backbone, config)
    noise = torch.randn(stages, 2, len(row), generator=create_generator(len(name), name))
    tokens = row + size * row.norm() * noise / noise.norm(dim=-1, keepdim=True)
    return Identity({"tokens": tokens}, create_header(name, backbone, config, 1))


def states(conditioner: IdentityConditioner, timestep: int = 500) -> torch.Tensor:
    return conditioner.encode_prompts([PROMPT], timestep).states


@pytest.mark.parametrize("on_sphere", [False, True])
def test_both_strength_paths_lead_from_the_class_word_to_the_tokens(backbone: Backbone, on_sphere: bool) -> None:
    ada = identity(backbone)
    ends = [IdentityConditioner(backbone, [ada], s, on_sphere=on_sphere) for s in (0, 1)]
    plain = [IdentityConditioner(backbone, [ada], s) for s in (0, 1)]
    for found, wanted in zip(ends, plain, strict=True):
        assert torch.equal(states(found), states(wanted))
    near = [IdentityConditioner(backbone, [ada], s, on_sphere=on_sphere) for s in (1e-4, 1 - 1e-4)]
    for found, wanted in zip(near, plain, strict=True):
        torch.testing.assert_close(states(found), states(wanted), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("strength", [0, 0.5, 1, 2])
def test_a_name_stands_for_as_many_tokens_as_are_counted(backbone: Backbone, strength: float) -> None:
    ada = identity(backbone)
    seven = Identity({"tokens": ada.tokens.unsqueeze(2).repeat(1, 1, 7, 1)}, ada.header)
    counted = {"ada": count_vectors(backbone, seven, strength)}
    assert counted == IdentityConditioner(backbone, [seven], strength).vector_counts
    assert counted["ada"] == (7 if strength else 1)


@pytest.mark.parametrize("strength", [0.3, 1.5, 2])
def test_on_the_line_the_way_is_as_long_as_the_strength(backbone: Backbone, strength: float) -> None:
    ada, row = identity(backbone), get_class_row(backbone, PRESETS["default"])
    found = IdentityConditioner(backbone, [ada], strength).stage_tokens["ada"][:, :, 0]
    torch.testing.assert_close(found, (1 - strength) * row + strength * ada.tokens)


@pytest.mark.parametrize("strength", [0, 0.5])
def test_slots_of_the_class_word_are_so_at_any_strength(backbone: Backbone, strength: float) -> None:
    ada, row = identity(backbone), get_class_row(backbone, PRESETS["default"])
    free = IdentityConditioner(backbone, [ada], strength).stage_tokens["ada"]
    held = IdentityConditioner(backbone, [ada], strength, [(1, "V")])
    wanted = free.clone()
    wanted[1, 1] = row
    torch.testing.assert_close(held.stage_tokens["ada"], wanted)
    if strength:
        torch.testing.assert_close(held.mix_all(strength)["ada"], wanted)
    for stage in (-1, STAGES):
        with pytest.raises(ConfigError, match=f"no stage {stage}"):
            IdentityConditioner(backbone, [ada], strength, [(stage, "K")])


@given(st.floats(0.01, 1.99), st.sampled_from([0.2, 1.7]))
@settings(max_examples=20, deadline=None)
def test_on_the_sphere_the_norm_changes_evenly_and_the_angle_in_proportion(strength: float, size: float) -> None:
    row = torch.randn(7, generator=create_generator(1, "row"), dtype=torch.float64)
    token = size * torch.randn(3, 2, 7, generator=create_generator(2, "row"), dtype=torch.float64)
    conditioner = IdentityConditioner.__new__(IdentityConditioner)
    conditioner.on_sphere = True
    got = conditioner.mix_with_class(row, token, strength)
    wanted = row.norm() + strength * (token.norm(dim=-1) - row.norm())
    torch.testing.assert_close(got.norm(dim=-1), wanted.clamp(min=0))

    def angle(first: torch.Tensor) -> torch.Tensor:
        return torch.acos((first @ row / first.norm(dim=-1) / row.norm()).clamp(-1, 1))

    whole = strength * angle(token)
    folded = torch.where(whole > torch.pi, 2 * torch.pi - whole, whole)
    kept = wanted > 1e-6
    torch.testing.assert_close(angle(got)[kept], folded[kept], rtol=1e-3, atol=1e-3)


def test_each_prompt_has_the_highest_strength_that_its_limit_allows(backbone: Backbone) -> None:
    free = IdentityConditioner(backbone, [identity(backbone)])
    whole = free.measure_change(PROMPT, free.stage_tokens)
    assert whole > 0
    roomy, tight = (IdentityConditioner(backbone, [identity(backbone)], context_limit=f * whole) for f in (1.1, 0.3))
    assert torch.equal(states(roomy), states(free))
    assert roomy.chosen_strengths == {PROMPT: 1.0}
    states(tight)
    chosen = tight.chosen_strengths[PROMPT]
    assert 0 < chosen < 1
    assert tight.measure_change(PROMPT, tight.mix_all(chosen)) <= 0.3 * whole
    assert tight.measure_change(PROMPT, tight.mix_all(chosen + 1 / 32)) > 0.3 * whole
    assert torch.equal(states(tight), states(IdentityConditioner(backbone, [identity(backbone)], chosen)))
    tightest = IdentityConditioner(backbone, [identity(backbone)], context_limit=1e-9)
    states(tightest)
    assert tightest.chosen_strengths == {PROMPT: 1 / 32}, "the last half, where even that is too much"


@pytest.mark.parametrize("strength", [0.5, 2])
def test_the_highest_strength_is_the_one_that_is_given(backbone: Backbone, strength: float) -> None:
    two = [identity(backbone), identity(backbone, "bob")]
    prompt = "a photo of <ada> and <bob> smiling"
    free = IdentityConditioner(backbone, two, strength, separate_names=False)
    whole = free.measure_change(prompt, free.stage_tokens)
    limited = IdentityConditioner(backbone, two, strength, context_limit=0.5 * whole, separate_names=False)
    limited.encode_prompts([prompt], 500)
    chosen = limited.chosen_strengths[prompt]
    assert 0 < chosen < strength
    assert free.measure_change(prompt, free.mix_all(chosen)) <= 0.5 * whole
    assert free.measure_change(prompt, free.mix_all(chosen + strength / 32)) > 0.5 * whole


def test_a_prompts_strength_does_not_depend_on_who_else_is_there(backbone: Backbone) -> None:
    ada, others = identity(backbone), [identity(backbone, "bob", stages=7), identity(backbone, "cy", stages=1)]
    alone = IdentityConditioner(backbone, [ada])
    change = alone.measure_change(PROMPT, alone.stage_tokens)
    together = IdentityConditioner(backbone, [ada, *others])
    assert together.measure_change(PROMPT, together.stage_tokens) == change
    limited = [IdentityConditioner(backbone, who, context_limit=0.4 * change) for who in ([ada], [ada, *others])]
    assert torch.equal(states(limited[0]), states(limited[1]))
    assert limited[0].chosen_strengths == limited[1].chosen_strengths


@pytest.mark.parametrize("prompt", [PROMPT, "a photo of <ada> at the beach and <bob> smiling"])
def test_the_change_equals_a_loop(backbone: Backbone, prompt: str) -> None:
    row = get_class_row(backbone, PRESETS["default"])
    people = [identity(backbone), identity(backbone, "bob", stages=5)]
    plain = [Identity({"tokens": row.repeat(len(one.tokens), 2, 1)}, one.header) for one in people]
    free, reference = (IdentityConditioner(backbone, some, separate_names=False) for some in (people, plain))
    places, terms = [place for some in free.parse(prompt).places.values() for place in some], []
    # The middle of each stage, of the name with the most stages.
    for timestep in (166, 500, 833) if len(places) == 1 else (100, 300, 500, 700, 900):
        encoded = [one.encode_prompts([prompt], timestep).states.chunk(2, -1) for one in (free, reference)]
        for first, second in zip(*encoded, strict=True):
            for word in range(min(places) + 1, first.shape[1]):
                if word not in places:
                    a, b = first[0, word], second[0, word]
                    terms.append(1 - float(a @ b / a.norm() / b.norm()))
    assert free.measure_change(prompt, free.stage_tokens) == pytest.approx(sum(terms) / len(terms), rel=1e-3)


def test_settings_bend_what_is_made_of_tokens_only(backbone: Backbone) -> None:
    conditioner = IdentityConditioner(backbone, [identity(backbone)], 0.5)
    assert apply_text_settings(conditioner, Config().generate) is conditioner
    bent = apply_text_settings(conditioner, override(Config(), ["generate.strength_path=sphere"]).generate)
    assert isinstance(bent, IdentityConditioner)
    assert bent.strength == 0.5
    assert not torch.equal(states(bent), states(conditioner))
    held = IdentityConditioner(backbone, [identity(backbone)], 0.5, [(1, "V")], separate_names=False)
    kept = apply_text_settings(held, override(Config(), ["generate.strength_path=sphere"]).generate)
    assert (kept.class_slots, kept.separate_names, kept.on_sphere) == (((1, "V"),), False, True)
    with pytest.raises(ConfigError, match="more than tokens"):
        apply_text_settings(WordsConditioner(backbone, {}), override(Config(), ["generate.context_limit=0.1"]).generate)
    assert not {"strength_path", "context_limit"} & set(dump_config(Config())["generate"])


def test_an_image_is_generated_with_them(backbone: Backbone) -> None:
    config = override(PRESETS["default"], ["generate.steps=2", "generate.identity_strength=0.6"])
    ada, plain = identity(backbone), "a person smiling"

    def draw(*settings: str) -> bytes:
        made = sefi.generate([PROMPT, plain], ada, backbone=backbone, config=override(config, list(settings)), seed=1)
        return b"".join(one.pixels.tobytes() for one in made)

    images = [draw(), draw("generate.strength_path=sphere"), draw("generate.context_limit=1e-6")]
    assert len(set(images)) == 3
