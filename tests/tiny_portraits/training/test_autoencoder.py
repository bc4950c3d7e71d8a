"""The autoencoder: its shape, its crops, its stages, each resumed bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.tiny_portraits.training.progresses import Killed, Losses
from torch import nn

from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from tiny_portraits.drawing.content import SHIPPED
from tiny_portraits.drawing.sampling import get_content
from tiny_portraits.training.acceleration import choose_autocast, supports_bfloat16
from tiny_portraits.training.autoencoder import (
    STAGES,
    AutoencoderPlan,
    AutoencoderShape,
    PatchDiscriminator,
    Stage,
    build_autoencoder,
    compute_adversarial_loss,
    compute_adversarial_share,
    compute_drift,
    compute_perceptual_loss,
    copy_frozen,
    crop_corner,
    draw_crops,
    train_autoencoder,
)
from tiny_portraits.training.features import FeatureRecipe, train_features
from tiny_portraits.training.loop import Checkpointing
from tiny_portraits.training.networks import Averages

TINY = AutoencoderShape(widths=(4, 4, 8, 8), groups=1)
# One stage of each kind: open-ended crops, whole drawings with averages, the decoder alone with everything on.
TINY_STAGES = (
    Stage("crops", 3, 2, 48, 1e-3, falling=False),
    Stage("whole", 3, 1, 0, 1e-3, perceptual_weight=0.1, average=0.5, drift_weight=0.1),
    Stage("sharp", 3, 1, 48, 1e-3, perceptual_weight=0.1, adversarial_weight=0.1, decoder_only=True, average=0.5),
)


class Features(nn.Module):
    """Two levels of fixed features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)

    def forward(self, images):
        first = self.first(images).relu()
        return [first, self.second(first)]


def make(folder, *, resume=False, progress=None, stages=TINY_STAGES, every=0.0):
    told = progress or SilentProgress()
    plan = AutoencoderPlan(stages, TINY)

    def keep(part):
        return Checkpointing(folder / f"{part}.training.safetensors", resume, every)

    return train_autoencoder(plan, keep, 5, told, features=Features).state_dict()


def test_the_shape_is_stable_diffusions_with_room_in_every_group():
    vae = build_autoencoder()
    weights = sum(p.numel() for p in vae.parameters())
    assert 3e6 < weights < 6e6
    groups = [m for m in vae.modules() if isinstance(m, nn.GroupNorm)]
    assert groups
    assert min(m.num_channels // m.num_groups for m in groups) >= 4
    with torch.no_grad():
        posterior = vae.encode(torch.rand(1, 3, 192, 192) * 2 - 1).latent_dist
        assert posterior.mean.shape == (1, SHIPPED.channels, 24, 24)
        assert float((posterior.logvar + 6).abs().max()) < 1.5
        assert vae.decode(posterior.mean).sample.shape == (1, 3, 192, 192)


@pytest.mark.parametrize("crop", [48, 96])
def test_crops_lie_inside_and_on_the_cells(crop):
    stage, random = replace(STAGES[1], crop=crop), np.random.default_rng(1)
    corners = [crop_corner(get_content(1, i), stage, SHIPPED, random) for i in range(200)]
    assert all(0 <= edge <= 192 - crop and edge % 8 == 0 for corner in corners for edge in corner)
    assert len(set(corners)) > 50


def test_half_of_the_small_crops_show_a_feature_of_a_face():
    stage, random = replace(STAGES[0], face_share=1.0), np.random.default_rng(2)
    from tiny_portraits.drawing.image import UNITS, locate_heads

    for index in range(100):
        shown = get_content(1, index)
        top, left = crop_corner(shown, stage, SHIPPED, random)
        points = locate_heads(shown)[0][3] * 192 / UNITS
        inside = (points > [left - 8, top - 8]) & (points < [left + stage.crop + 8, top + stage.crop + 8])
        assert inside.all(1).any()


def test_batches_follow_from_their_numbers():
    stage = replace(STAGES[0], batch=3)
    first, again, other = (draw_crops(stage, SHIPPED, n, np.random.default_rng(4)) for n in (10, 10, 13))
    assert first.shape == (3, 3, 48, 48)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# 3: exactly between two stages; 8: inside the last one, with the discriminator.
@pytest.mark.slow
@pytest.mark.parametrize("last", [3, 8])
def test_a_killed_training_goes_on_bit_for_bit(last, tmp_path):
    whole = make(tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    with pytest.raises(Killed):
        make(tmp_path / "killed", progress=Losses(last))
    resumed = make(tmp_path / "killed", resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.fixture(autouse=True)
def folders(tmp_path):
    (tmp_path / "whole").mkdir()


@pytest.mark.slow
def test_a_constant_stage_can_be_prolonged_and_a_falling_one_not(tmp_path):
    crops, whole, _ = TINY_STAGES
    make(tmp_path, stages=(crops,))
    longer = make(tmp_path, stages=(replace(crops, steps=5),), resume=True)
    at_once = make(tmp_path / "whole", stages=(replace(crops, steps=5),))
    assert all(torch.equal(value, longer[name]) for name, value in at_once.items())
    make(tmp_path, stages=(whole,))
    with pytest.raises(ConfigError, match="another training"):
        make(tmp_path, stages=(replace(whole, steps=5),), resume=True)


@pytest.mark.slow
def test_the_decoders_stage_leaves_the_encoder_alone(tmp_path):
    before = make(tmp_path, stages=TINY_STAGES[:2])
    after = make(tmp_path, stages=TINY_STAGES, resume=True)
    fixed = [name for name in before if name.startswith(("encoder.", "quant_conv."))]
    assert fixed
    assert all(torch.equal(before[name], after[name]) for name in fixed)
    assert not torch.equal(before["decoder.conv_in.weight"], after["decoder.conv_in.weight"])


def test_latents_stay_near_those_of_the_stages_start():
    torch.manual_seed(1)
    vae = build_autoencoder(TINY)
    x = torch.rand(2, 3, 48, 48) * 2 - 1
    begun = copy_frozen(vae)
    mean = vae.encode(x).latent_dist.mean
    assert compute_drift(begun, x, mean) == 0
    with torch.no_grad():
        vae.quant_conv.bias += 0.5
    moved = vae.encode(x).latent_dist.mean
    factor = float(vae.config["scaling_factor"])
    torch.testing.assert_close(compute_drift(begun, x, moved), torch.tensor((0.5 * factor) ** 2))
    assert not any(p.requires_grad for p in begun.parameters())


def test_discriminator_and_decoder_do_not_share_gradients():
    torch.manual_seed(6)
    critic, x = PatchDiscriminator(), torch.rand(2, 3, 48, 48)
    y = torch.rand(2, 3, 48, 48, requires_grad=True)
    compute_adversarial_loss(critic, x, y, 0.0).backward()
    alone = {name: p.grad.clone() for name, p in critic.named_parameters()}
    assert float(y.grad.abs().max()) == 0
    critic.zero_grad()
    compute_adversarial_loss(critic, x, y, 0.5).backward()
    assert all(torch.equal(p.grad, alone[name]) for name, p in critic.named_parameters())
    wanted = torch.autograd.grad(-0.5 * critic(y).mean(), y)[0]
    torch.testing.assert_close(y.grad, wanted)


def test_the_discriminator_first_learns_alone():
    stage = Stage("sharp", 100, 1, 48, 1e-3, adversarial_weight=0.4)
    assert [compute_adversarial_share(stage, step) for step in (0, 10, 15, 20, 99)] == pytest.approx(
        [0, 0, 0.2, 0.4, 0.4]
    )


def test_the_perceptual_loss_is_zero_for_equals_and_moves_only_the_second():
    features, x = Features(), torch.rand(2, 3, 48, 48)
    y = (x + 0.1).requires_grad_()
    assert float(compute_perceptual_loss(features, x, x).detach()) == 0
    compute_perceptual_loss(features, x, y).backward()
    assert float(y.grad.abs().max()) > 0


def test_the_feature_network_goes_on_bit_for_bit_and_has_four_levels(tmp_path):
    recipe = FeatureRecipe(steps=3, batch=2)
    whole = train_features(recipe, 1, SilentProgress())
    checkpointing = Checkpointing(tmp_path / "f.safetensors", resume=True, every=0.0)
    with pytest.raises(Killed):
        train_features(recipe, 1, Losses(2), checkpointing)
    resumed = train_features(recipe, 1, SilentProgress(), checkpointing).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.state_dict().items())
    assert [level.shape[-1] for level in whole(torch.zeros(1, 3, 96, 96))] == [48, 24, 12, 6]
    groups = [m for m in whole.modules() if isinstance(m, nn.GroupNorm)]
    assert min(m.num_channels // m.num_groups for m in groups) >= 4


def test_averages_follow_the_weights_and_survive_a_state_dict():
    network = nn.Linear(2, 2)
    averages = Averages(network, (0.0, 0.9))
    start = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    averages.update(network, 1000)
    torch.testing.assert_close(averages.average(0)["weight"], start + 1)
    torch.testing.assert_close(averages.average(1)["weight"], start + 0.1)
    other = Averages(nn.Linear(2, 2), (0.0, 0.9))
    other.load_state_dict(averages.state_dict())
    target = nn.Linear(2, 2)
    other.copy_to(target, 1)
    torch.testing.assert_close(target.weight.detach(), start + 0.1)


def test_half_precision_only_where_the_hardware_has_it():
    wanted = supports_bfloat16("cpu")
    with choose_autocast("cpu"):
        found = torch.nn.functional.linear(torch.rand(2, 3), torch.rand(4, 3))
    assert (found.dtype == torch.bfloat16) == wanted
    assert supports_bfloat16("cuda")
