"""A limit of memory: in how many parts a step's samples are taken, and when activations are computed again."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings, strategies
from tests.training.test_interrupt import views
from tests.training.token_training import make_task, make_trainer

from sefi.core.config import override
from sefi.core.errors import ConfigError
from sefi.core.text import parse_memory
from sefi.methods import METHODS, PRESETS
from sefi.methods.base import TrainingOptions
from sefi.training.memory import BLOCK, GRADIENTS, OPERATION, collect_storages, create_plan, measure_sample, plan_memory

BATCH = 5
FREE = override(
    PRESETS["scratch"],
    [f"learn.batch={BATCH}", "learn.steps=3", "learn.attention_weight=0", "views.latent_pool=3"],
)
STEERED = override(FREE, ["learn.attention_weight=0.003"])


@pytest.fixture
def make(backbone):
    return lambda config=FREE: make_task(backbone, views(backbone, config), config, 1)


def measure(task, backbone):
    parts = backbone.networks.values()
    return measure_sample(task, collect_storages(weight for part in parts for weight in part.parameters()))


def find_fixed_size(task, backbone):
    """Return the limit at which not a byte is left for samples."""
    plan = plan_memory(task, backbone.networks.values(), 10**15)
    return plan.bytes_needed - round(BATCH * GRADIENTS * measure(task, backbone))


def collect_gradient(trainer):
    trainer.compute_step(2)
    return torch.cat([p.grad.flatten() for p in trainer.task.weights.parameters()])


class LinearTask:
    """One large frozen matrix, whose transpose the graph holds, between two vectors."""

    def __init__(self):
        self.weights = torch.nn.ParameterList([torch.ones(1, 1000)])
        self.model = torch.nn.Linear(1000, 1000, bias=False).requires_grad_(False)

    def count_samples(self):
        return 1

    def compute_loss_parts(self, step, parts):
        yield 1.0, self.model(self.weights[0] * 2).square().sum(), {}

    def compute_loss(self, step):
        raise NotImplementedError

    def after_step(self):
        raise NotImplementedError

    training_key: ClassVar = {}


def test_weights_are_not_counted_with_what_a_sample_holds():
    task = LinearTask()
    assert measure_sample(task, collect_storages(task.model.parameters())) == 4000  # the vector that is squared
    assert plan_memory(task, [task.model], 10**9).bytes_needed == 4_000_000 + (4 + OPERATION + GRADIENTS) * 4000


def test_a_sample_holds_a_share_of_what_all_hold(make, backbone):
    one, task = measure(make(), backbone), make()
    task.count_samples = lambda: 1  # one part of all samples
    assert 4 < measure(task, backbone) / one < 5.5


@pytest.mark.parametrize(("samples", "parts"), [(5.1, 1), (4.9, 2), (3.1, 2), (2.9, 3), (2.1, 3), (1.9, 5), (1.1, 5)])
def test_as_many_samples_are_taken_at_once_as_fit(make, backbone, samples, parts):
    task = make()
    limit = find_fixed_size(task, backbone) + round(samples * GRADIENTS * measure(task, backbone)) + 4
    plan = plan_memory(task, backbone.networks.values(), limit)
    assert (plan.parts, plan.recompute) == (parts, False)
    assert plan.bytes_needed <= limit


def test_what_one_sample_is_too_much_for_is_computed_again(make, backbone):
    task = make()
    whole = measure(task, backbone)
    limit = find_fixed_size(task, backbone) + round(0.98 * GRADIENTS * whole)
    plan = plan_memory(task, backbone.networks.values(), limit)
    assert plan.recompute
    assert measure(task, backbone) < (1 - BLOCK) * whole


def test_gradients_are_the_same_with_activations_computed_again(backbone):
    gradients = []
    for enabled in (False, True):
        trainer = make_trainer(backbone, views(backbone, FREE), FREE, 1)
        assert trainer.task.set_recomputing(enabled=enabled)
        gradients.append(collect_gradient(trainer))
    assert torch.equal(*gradients)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in backbone.unet.modules())


def test_an_attention_loss_is_never_recorded_twice(make, backbone):
    task = make(STEERED)
    assert not task.set_recomputing(enabled=True)
    limit = find_fixed_size(task, backbone) + round(0.98 * GRADIENTS * measure(task, backbone))
    with pytest.raises(ConfigError, match=r"Learning needs \d+\.\d GB with one sample at a time"):
        plan_memory(task, backbone.networks.values(), limit)


def test_too_little_leaves_the_task_as_it_was(make, backbone):
    task = make()
    before = measure(task, backbone)
    with pytest.raises(ConfigError, match=r"and 0\.0 GB are allowed"):
        plan_memory(task, backbone.networks.values(), 1000)
    assert measure(task, backbone) == pytest.approx(before, rel=1e-3)


@given(
    strategies.integers(1, 13), strategies.integers(0, 10**6), strategies.integers(1, 10**6), strategies.integers(0, 99)
)
@settings(deadline=None)
def test_a_plan_stays_within_its_limit_with_the_fewest_parts(samples, fixed, sample, times):
    limit = fixed + sample * (1 + times)
    plan = create_plan(fixed, samples, sample, limit, recompute=False)
    assert 1 <= plan.parts <= samples
    assert plan.bytes_needed <= limit
    fewer = plan.parts - 1
    assert fewer == 0 or fixed + sample * -(-samples // fewer) > limit


@pytest.mark.slow
def test_learning_within_a_limit_gives_the_same_identity(make, backbone):
    task = make()
    some = find_fixed_size(task, backbone) + round(2.5 * GRADIENTS * measure(task, backbone))
    whole, same, parts = (
        METHODS["sefi"].learn("ada", views(backbone, FREE), backbone, FREE, 1, TrainingOptions(memory=memory))
        for memory in (None, 10**12, some)
    )
    # Views are encoded one at a time, which changes last bits.
    assert (same.tokens - whole.tokens).norm() <= 1e-4 * whole.tokens.norm()
    assert "parts" not in same.header.metrics
    assert parts.header.metrics["parts"] == 3
    assert (parts.tokens - whole.tokens).norm() <= 1e-4 * whole.tokens.norm()


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "6", 6, "0.5KB", "6 XB", "1e400"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="is no size of memory"):
        parse_memory(text)
