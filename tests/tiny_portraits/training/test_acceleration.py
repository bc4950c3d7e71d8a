"""Training on a GPU: what can be checked on a CPU, and captured steps where there is CUDA."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import nn

from sefi.core.progress import SilentProgress
from sefi.training.loop import compute_gradients, set_rate
from tiny_portraits.drawing.content import SHIPPED
from tiny_portraits.drawing.image import UNITS, locate_heads
from tiny_portraits.drawing.sampling import MODEL_SEED, draw_numbers, get_content
from tiny_portraits.text.tokenizing import build_tokenizer, list_caption_words
from tiny_portraits.training.acceleration import SplitLoss, build_adam, run_in_bfloat16
from tiny_portraits.training.autoencoder import AutoencoderShape, Reconstruction, build_autoencoder
from tiny_portraits.training.captioned_series import caption_range, join_labels, label_range, read_range, write_range
from tiny_portraits.training.denoiser import DenoiserRecipe, DenoiserShape, build_denoiser
from tiny_portraits.training.drawings import StoredCrops, draw_series
from tiny_portraits.training.latent_reader import LatentLabels, label_contents
from tiny_portraits.training.loop import NOWHERE, TrainingSetup, run_training
from tiny_portraits.training.networks import Averages
from tiny_portraits.training.runs import CUDA_PLAN, PLAN, choose_plan

CELL = SHIPPED.cell


@pytest.fixture(autouse=True)
def same_threads():
    """What runs in processes of its own computes with one thread; the other tests keep theirs."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def gradients(network):
    """All gradients as one vector; every one of them must be there, in float32."""
    found = [p.grad for p in network.parameters()]
    assert all(g is not None and g.dtype == torch.float32 for g in found)
    return torch.cat([g.flatten() for g in found])


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


# ------------------------------------------------------------------ half precision


def test_the_denoisers_gradients_in_half_precision_are_those_of_single_precision():
    torch.manual_seed(1)
    unet = build_denoiser(DenoiserShape((16, 16, 32)))
    noisy, states, t = torch.randn(2, SHIPPED.channels, 24, 24), torch.randn(2, 7, 192), torch.tensor([100, 700])
    wanted = torch.randn_like(noisy)
    (unet(noisy, t, states).sample - wanted).pow(2).mean().backward()
    whole = gradients(unet)
    unet.zero_grad()
    halved = run_in_bfloat16(unet, noisy.bfloat16(), t, states.bfloat16()).sample
    assert halved.dtype == torch.bfloat16
    (halved.float() - wanted).pow(2).mean().backward()
    assert cosine(gradients(unet), whole) > 0.99


@pytest.mark.parametrize("decoder_only", [False, True])
def test_the_autoencoders_gradients_in_half_precision_are_those_of_single_precision(decoder_only):
    torch.manual_seed(1)
    vae = build_autoencoder(AutoencoderShape((8, 8, 16, 16), 2))
    network = Reconstruction(vae, decoder_only=decoder_only)
    learning = nn.ModuleList([vae.decoder, vae.post_quant_conv] if decoder_only else [vae])
    x, noise = torch.rand(2, 3, 48, 48) * 2 - 1, torch.randn(2, SHIPPED.channels, 6, 6)
    found = {}
    for name in ("whole", "halved"):
        vae.zero_grad()
        if name == "whole":
            y, mean, logvar = network(x, noise)
        else:
            y, mean, logvar = run_in_bfloat16(network, x.bfloat16(), noise)
        assert y.dtype == mean.dtype == logvar.dtype == torch.float32
        (y - x).pow(2).mean().backward()
        found[name] = gradients(learning)
    assert cosine(found["whole"], found["halved"]) > 0.99
    if decoder_only:
        assert all(p.grad is None for p in vae.encoder.parameters())


# ------------------------------------------------------------------ drawings that are stored


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return draw_series(tmp_path_factory.mktemp("series"), MODEL_SEED, 7, SHIPPED, SilentProgress())


def make_crops(series, crop, face_share, batch=64):
    images, faces = (torch.from_numpy(np.array(values)) for values in (series.images, series.faces))
    return StoredCrops(images, faces, batch, crop, CELL, face_share)


@pytest.mark.slow
def test_a_drawn_series_holds_the_drawings_and_their_faces(series):
    assert (series.images == draw_numbers(range(7), MODEL_SEED, SHIPPED)).all()
    x, y, _, landmarks = locate_heads(get_content(MODEL_SEED, 5, SHIPPED))[0]
    assert np.allclose(series.faces[5], np.stack([[x, y], *landmarks]) * SHIPPED.side / UNITS, atol=1e-3)


def test_a_drawn_series_is_read_again(tmp_path, monkeypatch):
    first = draw_series(tmp_path, 5, 3, SHIPPED, SilentProgress())
    monkeypatch.setattr("tiny_portraits.training.drawings.run_in_processes", None)
    again = draw_series(tmp_path, 5, 3, SHIPPED, SilentProgress())
    assert (first.images == again.images).all()
    assert (first.faces == again.faces).all()


@pytest.mark.parametrize(("crop", "face_share"), [(48, 0.0), (48, 0.5), (48, 1.0), (96, 0.5), (96, 1.0), (0, 0.5)])
def test_crops_are_parts_of_the_stored_drawings_on_the_borders_of_cells(series, crop, face_share):
    torch.manual_seed(2)
    source, side = make_crops(series, crop, face_share), crop or SHIPPED.side
    numbers = torch.randint(7, (64,))
    corners = source.draw_corners(numbers)
    assert (corners % CELL == 0).all()
    assert corners.min() >= 0
    assert corners.max() <= SHIPPED.side - side
    # The same stream again: the crops that lie at these corners.
    torch.manual_seed(2)
    found = source(0)
    assert found.shape == (64, 3, side, side)
    for image, number, (top, left) in zip(found, numbers.tolist(), corners.tolist(), strict=True):
        wanted = series.images[number, top : top + side, left : left + side]
        assert np.allclose(image.permute(1, 2, 0), wanted / 127.5 - 1, atol=1e-6)


def test_small_crops_on_faces_contain_a_landmark_and_others_lie_anywhere(series):
    torch.manual_seed(3)
    numbers = torch.arange(7).repeat(200)
    shares = {}
    for face_share in (0.0, 1.0):
        source = make_crops(series, 48, face_share)
        corners = source.draw_corners(numbers).flip(1)[:, None]
        landmarks = source.faces[numbers, 1:]
        inside = ((landmarks >= corners) & (landmarks < corners + 48)).all(2).any(1)
        # A face at the border of the drawing may have landmarks outside of it.
        visible = ((landmarks >= 0) & (landmarks < SHIPPED.side)).all(2).all(1)
        assert visible.sum() > 500
        shares[face_share] = float(inside[visible].float().mean())
    assert shares[1.0] == 1.0
    assert shares[0.0] < 0.6


# ------------------------------------------------------------------ captions and labels


def assert_same_labels(found, wanted):
    assert found.get_tensors().keys() == wanted.get_tensors().keys()
    for name, value in wanted.get_tensors().items():
        assert torch.equal(found.get_tensors()[name], value), name


def test_a_captioned_range_is_read_as_it_was_written(tmp_path):
    build_tokenizer(tmp_path / "tokenizer", list_caption_words())
    part = read_range(caption_range(tmp_path / "tokenizer", MODEL_SEED, 2, DenoiserRecipe(), SHIPPED, range(3, 8)))
    assert part.weights.shape == (5, 1, 24, 24)
    assert len(part.text.ids) == 10
    assert_same_labels(part.labels, label_contents([get_content(MODEL_SEED, n, SHIPPED) for n in range(3, 8)], SHIPPED))
    again = read_range(write_range(part))
    assert_same_labels(again.labels, part.labels)
    for found, wanted in zip(
        (again.weights, again.text.ids, again.text.firsts, again.text.lasts),
        (part.weights, part.text.ids, part.text.firsts, part.text.lasts),
        strict=True,
    ):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


def test_labels_of_ranges_are_joined_in_order():
    whole = label_contents([get_content(MODEL_SEED, n, SHIPPED) for n in range(7)], SHIPPED)
    parts = [
        LatentLabels.select_from(load(label_range(MODEL_SEED, SHIPPED, numbers))) for numbers in (range(3), range(3, 7))
    ]
    assert_same_labels(join_labels(parts), whole)
    assert_same_labels(join_labels(parts).take(torch.tensor([6, 2])), whole.take(torch.tensor([6, 2])))


# ------------------------------------------------------------------ steps


@pytest.mark.parametrize(("device", "plan"), [("cpu", PLAN), ("cuda", CUDA_PLAN), ("cuda:1", CUDA_PLAN)])
def test_a_gpu_has_sizes_of_its_own_for_the_same_model(device, plan):
    assert choose_plan(device) is plan
    assert (plan.version, plan.autoencoder.version, plan.shape) == (SHIPPED, SHIPPED, PLAN.shape)
    assert plan.scaled <= plan.stored


def take_steps(placed):
    """Weights after three steps at falling rates; the rate is a tensor if `placed`."""
    torch.manual_seed(5)
    network = nn.Linear(3, 2)
    optimiser = build_adam(network.parameters(), 0.5)
    if placed:
        # As on a GPU, where the captured step reads it.
        optimiser.param_groups[0]["lr"] = torch.tensor(0.5)
    rate = optimiser.param_groups[0]["lr"]
    for step in range(3):
        set_rate(optimiser, 0.1 / (step + 1))
        compute_gradients(network(torch.ones(4, 3)).pow(2).mean(), optimiser, 1.0)
        optimiser.step()
    assert (optimiser.param_groups[0]["lr"] is rate) is placed
    assert float(optimiser.param_groups[0]["lr"]) == pytest.approx(0.1 / 3)
    return network.weight.detach()


def test_a_rate_that_is_a_tensor_is_set_in_place_and_one_that_is_a_number_is_replaced():
    torch.testing.assert_close(take_steps(placed=True), take_steps(placed=False))


def test_adam_on_a_cpu_has_a_plain_rate_and_the_given_settings():
    group = build_adam(nn.Linear(2, 2).parameters(), 0.25, betas=(0.5, 0.75), weight_decay=0.125).param_groups[0]
    assert isinstance(group["lr"], float)
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.25, (0.5, 0.75), 0.125)
    assert not group["fused"]
    assert not group["capturable"]


def test_averages_follow_their_formula():
    torch.manual_seed(6)
    network, decays = nn.Sequential(nn.Linear(3, 2), nn.Conv2d(2, 3, 1)), (0.2, 0.99)
    averages = Averages(network, decays)
    wanted = [{name: value.detach().clone() for name, value in network.named_parameters()} for _ in decays]
    for step in range(5):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        averages.update(network, step)
        for number, decay in enumerate(decays):
            kept = min(decay, (step + 1) / (step + 10))
            for name, value in network.named_parameters():
                wanted[number][name] = kept * wanted[number][name] + (1 - kept) * value.detach()
                torch.testing.assert_close(averages.average(number)[name], wanted[number][name])


def test_a_split_loss_is_the_loss_of_its_inputs():
    split = SplitLoss(lambda step: {"x": torch.tensor(float(step))}, lambda inputs: inputs["x"] ** 2)
    assert [float(split(step)) for step in range(4)] == [0, 1, 4, 9]


class Weights(SilentProgress):
    """Keeps a network's weights after every step."""

    def __init__(self, network):
        self.network, self.seen = network, []

    def advance(self, **numbers):
        self.seen.append({k: v.detach().clone() for k, v in self.network.state_dict().items()})


def train_small(*, captured):
    """Weights after each of nine steps of a small network on a GPU."""
    torch.manual_seed(7)
    # No normalisation: biases before one have gradients of rounding alone, which Adam makes as large as any other.
    network = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4)).cuda()
    adam, progress = build_adam(network.parameters(), 0.01), Weights(network)

    def draw_inputs(step):
        return {"x": torch.randn(32, 8, device="cuda"), "shift": torch.tensor(0.1 * step).cuda()}

    def compute(inputs):
        return (network(inputs["x"]) - inputs["x"][:, :4].cos() - inputs["shift"]).pow(2).mean()

    split = SplitLoss(draw_inputs, compute)
    setup = TrainingSetup("small", None, 8, 9, {"network": network}, adam, lambda step: 0.01 / (step + 1), 1.0)
    run_training(setup, split if captured else lambda step: compute(draw_inputs(step)), NOWHERE, progress)
    return progress.seen


@pytest.mark.gpu
def test_captured_steps_move_the_weights_as_eager_ones_do():
    eager, captured = train_small(captured=False), train_small(captured=True)
    assert len(captured) == 9
    for wanted, found in zip(eager, captured, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    assert all(not torch.equal(a["0.weight"], b["0.weight"]) for a, b in pairwise(captured))
