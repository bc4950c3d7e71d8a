"""Several identities in one pass: each as alone, within rounding; each with its own steps, limits and failures."""

from dataclasses import replace

import pytest
import torch
from tests.training.token_training import make_task

from sefi.core.config import Config, override
from sefi.core.errors import NO_PRIMITIVE, ConfigError, Interrupted, OutputError, SefiError
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.photo.augment import CropFace, PhotoViews
from sefi.training import together, token_inversion
from sefi.training.loop import IdentityTrainer, PeriodicSaver, train
from sefi.training.together import (
    JointTraining,
    compute_gradients_together,
    compute_losses_together,
    train_together,
)
from sefi.training.token_inversion import compute_losses

# As far as a different number of samples in a batch changes the last bits: of the change from the start.
TOLERANCE = 1e-3
BASE = override(
    Config(),
    ["learn.expansion=direct", "learn.residual_init=true", "learn.dropout=0", "learn.batch=2", "views.latent_pool=3"],
)


def views(backbone, config, number, faces=()):
    crop = torch.rand(3, backbone.resolution, backbone.resolution, generator=create_generator(number, "crop")) * 2 - 1
    return PhotoViews(crop, config.views, faces=faces)


def make(backbone, *settings, number=1, faces=(), **more):
    config = override(BASE, settings)
    return JointTraining(make_task(backbone, views(backbone, config, number, faces), config, number), config, **more)


def learn_alone(backbone, *settings, number=1):
    config = override(BASE, settings)
    return train(make_task(backbone, views(backbone, config, number), config, number), config, SilentProgress())


def assert_near(found, alone, start):
    assert (found - alone).norm() <= TOLERANCE * (alone - start).norm()


DIFFERENT = {
    2: ("learn.steps=3",),
    3: ("learn.steps=5", "learn.class_word=dog", "learn.learning_rate=0.01", "learn.rate_schedule=cosine"),
    5: ("learn.steps=4", "learn.gradient_clip=0.001", "learn.batch=1", "learn.attention_weight=0.01"),
    7: ("learn.steps=2", "learn.stages=3", "learn.token_norm_limit=1.01", "views.pool_noise=fresh"),
    11: ("learn.steps=3", "learn.attention_share=0.5", "learn.context_weight=0.1"),
}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("at_once", [2, 5])
def test_each_is_what_it_is_alone(backbone, at_once):
    """Fewer at once than there are: the finished ones make room for the others."""
    learners = [make(backbone, *settings, number=number) for number, settings in DIFFERENT.items()]
    outcomes = train_together(learners, SilentProgress(), at_once)
    for (number, settings), learner, (tensors, numbers) in zip(DIFFERENT.items(), learners, outcomes, strict=True):
        alone, alone_numbers = learn_alone(backbone, *settings, number=number)
        assert_near(tensors["tokens"], alone["tokens"], learner.task.tokens.class_token)
        assert list(numbers) == list(alone_numbers)
        assert numbers == pytest.approx(alone_numbers, rel=1e-3, abs=1e-7)  # a cosine near 1 has no more digits


def test_no_identity_moves_another(backbone):
    """The gradient of the sum is each one's own, as it is alone: another companion changes it by rounding only."""
    alone = make(backbone, number=1)
    trainer = IdentityTrainer(alone.task, alone.config)
    trainer.compute_step(0)
    wanted = trainer.task.weights.table.grad.clone()
    for companion in (("learn.class_word=dog",), ("learn.batch=4", "learn.learning_rate=1")):
        group = [make(backbone, number=1), make(backbone, *companion, number=2)]
        trainers = [IdentityTrainer(one.task, one.config) for one in group]
        compute_gradients_together(trainers)
        found = trainers[0].task.weights.table.grad
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_each_loss_is_that_of_its_own_face_and_weights(backbone):
    """Of two with a face in another place and one without, whose attention counts everywhere."""
    hinge = "learn.attention_loss=hinge"
    group = [
        make(backbone, hinge, "learn.outside_weight=0.1", number=1, faces=(CropFace((0.1, 0.2, 0.2, 0.3)),)),
        make(backbone, hinge, "learn.attention_weight=0.1", number=2),
        make(backbone, hinge, "learn.outside_weight=0.5", number=3, faces=(CropFace((0.5, 0.4, 0.3, 0.3)),)),
    ]
    for learner in group:
        table = learner.task.weights.table
        table.data += torch.randn(table.shape, generator=create_generator(1, "moved"))
    tasks = [learner.task for learner in group]
    found = compute_losses_together(tasks, [task.draw_step(0) for task in tasks], [False, True, False])
    for task, losses in zip(tasks, found, strict=True):
        measure = task.config.learn.attention_weight == 0.1
        (tokens, batch), learn = task.draw_step(0), task.config.learn
        alone = compute_losses(backbone, task.texts, tokens, batch, learn, measure=measure, model=task.model)
        assert losses.attention.item() > 0
        for name in ("total", "denoise", "attention"):
            assert getattr(losses, name).item() == pytest.approx(getattr(alone, name).item(), rel=1e-4), name
        assert (losses.key_gradient_share is None) == (not measure)
        if measure:
            assert losses.key_gradient_share == pytest.approx(alone.key_gradient_share, rel=1e-2)


def test_one_that_is_not_finite_stops_alone(backbone):
    broken, whole = make(backbone, "learn.steps=3", number=2), make(backbone, "learn.steps=3", number=3)
    broken.task.latent_source.pool.fill_(float("nan"))
    failed, (tensors, numbers) = train_together([broken, whole], SilentProgress())
    assert isinstance(failed, ConfigError)
    assert "not finite at steps 0, 1, 2" in failed.problem
    assert "strikes" not in numbers
    alone, _ = learn_alone(backbone, "learn.steps=3", number=3)
    assert_near(tensors["tokens"], alone["tokens"], whole.task.tokens.class_token)


def test_a_probe_stops_one_and_not_the_others(backbone):
    settings = ("learn.steps=6", "learn.probe_every=1", "learn.patience=2")
    scored = []
    probed = make(backbone, *settings, number=2, probe=lambda _: -len(scored) if scored.append(1) is None else 0)
    other = make(backbone, "learn.steps=6", number=3)
    (_, numbers), _ = train_together([probed, other], SilentProgress())
    assert numbers["best_step"] == 1
    assert len(scored) == 3
    assert other.task.latent_source is not probed.task.latent_source


def fail_to_score(_):
    raise ConfigError("The probe fails.", "Mend it.")


@pytest.mark.parametrize("what", ["probe", "checkpoint that is there", "checkpoint that cannot be written", "space"])
def test_an_error_of_one_leaves_the_others_alone(backbone, tmp_path, monkeypatch, what):
    alone, _ = learn_alone(backbone, "learn.steps=3", number=1)
    settings, more = ("learn.steps=3", "learn.probe_every=1"), {"checkpoint": tmp_path / "two"}
    if what == "probe":
        more["probe"] = fail_to_score
    elif what == "checkpoint that is there":
        more["checkpoint"].write_bytes(b"damaged")
    else:
        name = "save" if what == "checkpoint that cannot be written" else "check_space"
        whole = getattr(IdentityTrainer, name)

        def fail(trainer, path):
            if path.name == "two":
                raise OutputError("The disk is full.", "Free some.")
            return whole(trainer, path)

        monkeypatch.setattr(IdentityTrainer, name, fail)
        monkeypatch.setattr(PeriodicSaver, "save_if_due", lambda saver: saver.trainer.save(saver.checkpoint))
    first = make(backbone, "learn.steps=3", number=1, checkpoint=tmp_path / "one")
    found, error = train_together([first, make(backbone, *settings, number=2, **more)], SilentProgress())
    assert isinstance(error, SefiError)
    assert_near(found[0]["tokens"], alone["tokens"], first.task.tokens.class_token)


def test_what_can_be_saved_is_saved_when_it_is_stopped(backbone, tmp_path, monkeypatch):
    whole = IdentityTrainer.save

    def fail(trainer, path):
        if path.name == "1":
            raise OutputError("The disk is full.", "Free some.")
        whole(trainer, path)

    monkeypatch.setattr(IdentityTrainer, "save", fail)
    learners = [make(backbone, "learn.steps=4", number=n, checkpoint=tmp_path / str(n)) for n in (1, 2, 3)]
    with pytest.raises(Interrupted, match=r"1 of 3 could not be saved: The disk is full\. Free some"):
        train_together(learners, StopAt(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_all_note_that_a_pass_was_not_compiled(backbone, monkeypatch):
    monkeypatch.setattr(token_inversion, "has_right_gradients", lambda *_: False)
    settings = ("learn.attention_weight=0", "learn.compile=true")
    learners = [make(backbone, "learn.steps=2", *settings, number=number) for number in (1, 2)]
    assert [numbers["not_compiled"] for _, numbers in train_together(learners, SilentProgress())] == [1, 1]


def allocate_too_much():
    torch.empty(2**60, dtype=torch.uint8)


def fail_like_onednn():
    raise RuntimeError(NO_PRIMITIVE)


@pytest.mark.slow
@pytest.mark.usefixtures("restored_onednn")
@pytest.mark.parametrize(("fail", "with_onednn"), [(allocate_too_much, True), (fail_like_onednn, False)])
def test_without_memory_for_all_fewer_are_learned_together(fail, with_onednn, backbone, monkeypatch):
    whole, sizes = together.compute_gradients_together, []

    def limited(trainers):
        sizes.append(len(trainers))
        if len(trainers) > 2:
            fail()
        return whole(trainers)

    monkeypatch.setattr(together, "compute_gradients_together", limited)
    learners = [make(backbone, "learn.steps=2", number=number) for number in (1, 2, 3)]
    outcomes = train_together(learners, SilentProgress())
    assert torch.backends.mkldnn.enabled == with_onednn
    assert max(sizes[1:]) == 2
    for number, (tensors, _) in enumerate(outcomes, 1):
        alone, _ = learn_alone(backbone, "learn.steps=2", number=number)
        assert_near(tensors["tokens"], alone["tokens"], learners[0].task.tokens.class_token)


class StopAt(SilentProgress):
    def __init__(self, count):
        self.count = count

    def advance(self, **_numbers):
        self.count -= 1
        if self.count == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_group_goes_on_with_the_same_bits(backbone, tmp_path):
    def make_all(folder):
        return [
            make(backbone, "learn.steps=4", number=number, checkpoint=folder and folder / f"{number}.safetensors")
            for number in (1, 2)
        ]

    with pytest.raises(Interrupted, match="what was begun is saved"):
        train_together(make_all(tmp_path), StopAt(4))
    resumed = train_together(make_all(tmp_path), SilentProgress())
    straight = train_together(make_all(None), SilentProgress())
    for (found, numbers), (wanted, wanted_numbers) in zip(resumed, straight, strict=True):
        assert torch.equal(found["tokens"], wanted["tokens"])
        assert numbers == wanted_numbers


@pytest.mark.parametrize(
    "setting",
    [
        "attention_loss=hinge",
        "attention_reduction=mean",
        "attention_option=1",
        "detach_query=true",
        "compile=true",
        "attention_weight=0",
    ],
)
def test_what_belongs_to_the_pass_must_be_the_same(backbone, setting):
    learners = [make(backbone), make(backbone, f"learn.{setting}")]
    with pytest.raises(ConfigError, match=rf"differ in learn\.{setting.partition('=')[0]}\."):
        train_together(learners, SilentProgress())


def test_the_model_must_be_the_same(backbone):
    with pytest.raises(ConfigError, match=r"differ in the model\."):
        train_together([make(backbone), make(replace(backbone))], SilentProgress())


def test_stopping_without_a_checkpoint_says_that_nothing_was_saved(backbone):
    with pytest.raises(Interrupted, match=r"0 of 2 learned; nothing was saved"):
        train_together([make(backbone, number=1), make(backbone, number=2)], StopAt(2))
