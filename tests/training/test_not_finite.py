"""A loss or gradient that is not finite: back to the last good state, at half the rate, at most three times."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.training.test_interrupt import views
from tests.training.token_training import make_trainer

from sefi.core.config import override
from sefi.core.errors import ConfigError, GenerationError, IdentityError, Interrupted
from sefi.core.progress import SilentProgress
from sefi.methods import PRESETS
from sefi.training import loop
from sefi.training.checkpoint import KEY
from sefi.training.loop import list_recovery_remarks, summarise_step

STEPS, GOOD = 13, 7
CONFIG = override(
    PRESETS["default"], [f"learn.steps={STEPS}", "learn.batch=2", "learn.learning_rate=0.01", "views.latent_pool=3"]
)


@pytest.fixture(autouse=True)
def copy_often(monkeypatch):
    monkeypatch.setattr(loop, "GOOD_EVERY", GOOD)


@pytest.fixture(params=["loss", "gradient"])
def spoil(request):
    """Make loss or gradient of a trainer NaN at some steps, by a hook on the module that is trained."""

    def add(trainer, steps):
        def hook(module, _inputs, tokens):
            if not module.training or trainer.done not in steps:
                return tokens
            if request.param == "loss":
                return tokens * math.nan
            tokens.register_hook(lambda gradient: gradient * math.nan)
            return tokens

        trainer.task.weights.register_forward_hook(hook)
        return trainer

    return add


def finish(trainer, checkpoint=None):
    numbers = trainer.run(SilentProgress(), checkpoint)
    return trainer.get_result()["tokens"], numbers | trainer.describe_recovery()


def train_plainly(backbone, plan, config=CONFIG):
    """Train step by step as the plan says, without the loop: `(step, share of the rate)`; return the tokens."""
    task = make_trainer(backbone, views(backbone, config), config, 1).task
    optimiser = torch.optim.AdamW(task.weights.parameters(), weight_decay=config.learn.weight_decay)
    for step, share in plan:
        (group,) = optimiser.param_groups
        group["lr"] = config.learn.learning_rate * share
        optimiser.zero_grad()
        task.compute_loss(step)[0].backward()
        if config.learn.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(task.weights.parameters(), config.learn.gradient_clip)
        optimiser.step()
        task.after_step()
    return task.get_identity_tensors()["tokens"]


@pytest.fixture
def make(backbone):
    return lambda config=CONFIG: make_trainer(backbone, views(backbone, config), config, 1)


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["null", "1"])
def test_learning_goes_back_to_the_last_good_state_at_half_the_rate(backbone, make, spoil, clip):
    config = override(CONFIG, [f"learn.gradient_clip={clip}"])
    found, numbers = finish(spoil(make(config), {9}))
    assert numbers["strikes"] == 1
    assert "ended_at" not in numbers
    assert "at 1 steps, and each halved the learning rate" in list_recovery_remarks(numbers)[0]
    plan = [*((step, 1.0) for step in range(GOOD)), *((step, 0.5) for step in range(10, STEPS))]
    assert torch.equal(found, train_plainly(backbone, plan, config))


@pytest.mark.slow
def test_a_training_without_strikes_is_the_plain_one(backbone, make):
    found, numbers = finish(make())
    assert torch.equal(found, train_plainly(backbone, [(step, 1.0) for step in range(STEPS)]))
    assert not {"strikes", "ended_at"} & numbers.keys()
    assert list_recovery_remarks(numbers) == []


@pytest.mark.slow
def test_three_strikes_end_with_the_last_good_state(backbone, make, spoil):
    found, numbers = finish(spoil(make(), {2, 9, 11}))
    assert (numbers["strikes"], numbers["ended_at"]) == (3, GOOD)
    assert all(map(math.isfinite, numbers.values()))
    assert "learning ended early, with the state of step 7" in list_recovery_remarks(numbers)[0]
    # Step 2 went back to the beginning, steps 9 and 11 to the copy that was made before step 7.
    assert torch.equal(found, train_plainly(backbone, [(step, 0.5) for step in range(3, GOOD)]))


def test_the_best_before_they_led_back_to_the_beginning_is_the_result(backbone, make, spoil):
    """The state that is left has learned nothing; what a probe chose before has."""
    trainer = spoil(make(), {2, 3, 4})
    trainer.probe, trainer.probe_every = lambda _: {1: 0.1, 2: 0.5}.get(trainer.done, 0.0), 1
    found, numbers = finish(trainer)
    assert (numbers["strikes"], numbers["ended_at"], trainer.best.step) == (3, 0, 2)
    assert torch.equal(found, train_plainly(backbone, [(0, 1.0), (1, 1.0)]))


@pytest.mark.parametrize("strikes", [0, 1, 2])
def test_a_rate_that_falls_by_itself_is_halved_too(make, strikes):
    trainer = make(override(CONFIG, ["learn.rate_schedule=cosine"]))
    trainer.recovery.strikes = list(range(strikes))
    trainer.set_step_rate(5)
    wanted = 0.01 * (1 + math.cos(math.pi * 5 / STEPS)) / 2 / 2**strikes
    assert trainer.optimiser.param_groups[0]["lr"] == pytest.approx(wanted)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_is_finite_where_the_norm_and_every_loss_are(value):
    """A loss may be infinite though its gradient is not."""
    parts = [(0.25, torch.tensor(2.0), {"a": 4.0, "b": 1.0}), (0.75, torch.tensor(3.0), {"a": 8.0})]
    read = [0.5, 2.0, 3.0, 4.0, 1.0, 8.0]
    assert summarise_step(parts, read) == {"a": 0.25 * 4 + 0.75 * 8, "b": 0.25}
    for place in range(3):
        assert summarise_step(parts, [value if n == place else one for n, one in enumerate(read)]) is None


@pytest.mark.parametrize("patience", [1, 3])
def test_a_probe_of_what_is_not_finite_is_no_end(make, patience):
    """An update leaves infinite tokens, and a score is due before the next step."""
    trainer, scored = make(override(CONFIG, [f"learn.patience={patience}"])), []
    update = trainer.task.after_step

    def update_and_spoil():
        update()
        if trainer.done == 9 and not trainer.recovery.strikes:
            for weight in trainer.task.weights.parameters():
                weight.data.fill_(math.inf)

    def probe(tensors):
        scored.append(trainer.done)
        assert tensors["tokens"].isfinite().all()
        return float(trainer.done)

    trainer.task.after_step, trainer.probe, trainer.probe_every = update_and_spoil, probe, 1
    numbers = finish(trainer)[1]
    assert numbers["strikes"] == 1
    assert scored == [step for step in range(1, STEPS + 1) if step != 10]
    assert (trainer.best.step, trainer.best.worse) == (STEPS, 0)


@pytest.mark.parametrize("kind", [IdentityError, GenerationError])
def test_an_error_of_the_probe_is_an_error(make, kind):
    def probe(_):
        raise kind("No image came of it.", "Open the model in float32.")

    trainer = make()
    trainer.probe, trainer.probe_every = probe, 1
    with pytest.raises(kind, match="No image came of it"):
        finish(trainer)


def test_where_nothing_was_learned_it_is_an_error(make, spoil):
    with pytest.raises(ConfigError, match=r"not finite at steps 0, 3, 4\. Lower learn\.learning_rate"):
        finish(spoil(make(), {0, 3, 4}))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [8, 10, 12])
def test_a_resumed_training_has_the_same_bits(make, spoil, tmp_path, stop):
    """Stopped before the first strike, after it, and after the second."""
    steps, checkpoint = {9, 11}, tmp_path / "run"
    whole, numbers = finish(spoil(make(), steps))
    stopped = spoil(make(), steps)
    take_step = stopped.take_step

    def stop_there(step):
        if step == stop:
            raise KeyboardInterrupt
        return take_step(step)

    stopped.take_step = stop_there
    with pytest.raises(Interrupted, match=f"step {stop} of"):
        stopped.run(SilentProgress(), checkpoint)
    resumed = spoil(make(), steps)
    assert resumed.resume(checkpoint) == stop
    found, found_numbers = finish(resumed)
    assert torch.equal(found, whole)
    assert found_numbers == numbers
    assert numbers["strikes"] == 2


@pytest.mark.slow_after(1)
def test_large_weights_are_not_copied(make, spoil, monkeypatch):
    monkeypatch.setattr(loop, "LARGEST_COPY", 1)
    trainer = spoil(make(), {5})
    found, numbers = finish(trainer)
    assert not trainer.recovery.good
    assert numbers["strikes"] == 1
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("strikes", [5]), ("strikes", [0, 0, 0, 0]), ("strikes", "1"), ("parts", 0), ("parts", True), ("good_step", 3)],
)
def test_damaged_counts_of_a_checkpoint_are_refused(make, tmp_path, name, value):
    checkpoint = tmp_path / "run"
    trainer = make()
    for step in range(2):
        trainer.take_step(step)
    trainer.save(checkpoint)
    with safe_open(checkpoint, "pt") as file:
        about = json.loads(file.metadata()[KEY])
    assert about[name] in ([], 1, 0)
    save_file(load_file(checkpoint), checkpoint, metadata={KEY: json.dumps(about | {name: value})})
    with pytest.raises(ConfigError, match="strikes"):
        make().resume(checkpoint)


def test_damaged_copies_of_a_checkpoint_are_refused(make, tmp_path):
    checkpoint = tmp_path / "run"
    trainer = make()
    trainer.take_step(0)
    trainer.save(checkpoint)
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(checkpoint)
    name = next(name for name in tensors if name.startswith("good.weights."))
    for spoilt in (tensors[name] * math.nan, tensors[name][:1]):
        save_file(tensors | {name: spoilt.contiguous()}, checkpoint, metadata=metadata)
        with pytest.raises(ConfigError, match=r"good|weights"):
            make().resume(checkpoint)
