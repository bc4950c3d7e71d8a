"""Every training, killed at a step and resumed, goes on bit for bit; a checkpoint of another training is refused."""

import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.tiny_portraits.training.progresses import Killed, Losses
from torch.optim.lr_scheduler import OneCycleLR

from sefi.core.errors import ConfigError, Interrupted
from sefi.core.progress import SilentProgress
from tiny_portraits.drawing.image import SIDE, draw
from tiny_portraits.drawing.sampling import get_content
from tiny_portraits.text.text_encoder import build_text_parts
from tiny_portraits.text.tokenizing import build_tokenizer, list_caption_words
from tiny_portraits.training.detector import DetectorRecipe, train_detector
from tiny_portraits.training.drawings import EVALUATOR_SEED, draw_face_crops
from tiny_portraits.training.loop import NOWHERE, Checkpointing, TrainingSetup, compute_one_cycle_rate, run_training
from tiny_portraits.training.readers import SCENE_LABELS, Reader, ReaderRecipe, label_scenes, train_reader
from tiny_portraits.training.recognisers import RecogniserRecipe, train_recogniser
from tiny_portraits.training.text import TextRecipe, train_text

STEPS, BREAK = 5, 2


@pytest.fixture(scope="module")
def images():
    return np.stack([draw(get_content(1, i)) for i in range(5)])


@pytest.fixture(scope="module")
def words_tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("words"), list_caption_words())


@pytest.fixture(scope="module")
def crops():
    return draw_face_crops(3, 2, EVALUATOR_SEED)


@pytest.fixture
def trainings(images, words_tokenizer, crops):
    """Every training with a tiny recipe: from a progress and a checkpointing to the final weights."""

    def text(progress, checkpointing):
        torch.manual_seed(4)
        worded = build_text_parts(words_tokenizer)
        recipe = TextRecipe(steps=STEPS, batch=8)
        train_text(worded, recipe, 0, progress, checkpointing)
        return worded.text.state_dict() | worded.names.state_dict()

    def detector(progress, checkpointing):
        recipe = DetectorRecipe(drawings=5, steps=STEPS, batch=2, sides=(64, 96))
        return train_detector(recipe, 0, EVALUATOR_SEED, progress, checkpointing).state_dict()

    def recogniser(progress, checkpointing):
        recipe = RecogniserRecipe(people=3, drawings=2, pairs=2, steps=STEPS)
        return train_recogniser(crops, recipe, 0, progress, checkpointing).state_dict()

    def reader(progress, checkpointing):
        torch.manual_seed(6)
        labels = label_scenes([get_content(1, i) for i in range(len(images))])
        model, recipe = Reader(SCENE_LABELS, SIDE), ReaderRecipe(steps=STEPS, batch=3)
        return train_reader(model, images, labels, recipe, 0, progress, checkpointing).state_dict()

    return locals()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "detector", "recogniser", "reader"])
def test_a_killed_training_goes_on_bit_for_bit(name, trainings, tmp_path):
    train, path = trainings[name], tmp_path / "kept.training.safetensors"
    straight, before, after = Losses(), Losses(BREAK), Losses()
    wanted = train(straight, Checkpointing(tmp_path / "straight.safetensors"))
    with pytest.raises(Killed):
        train(before, Checkpointing(path, every=0.0))
    torch.manual_seed(99)  # another process
    found = train(after, Checkpointing(path, resume=True))
    assert len(straight.seen) == STEPS
    assert len(set(straight.seen)) == STEPS
    assert after.total == STEPS - BREAK
    assert before.seen + after.seen == straight.seen
    assert wanted.keys() == found.keys()
    assert [k for k in wanted if not torch.equal(wanted[k], found[k])] == []
    # Once more: it is complete and stays so.
    ended = Losses()
    again = train(ended, Checkpointing(path, resume=True))
    assert ended.seen == []
    assert all(torch.equal(wanted[k], again[k]) for k in wanted)


def tiny(recipe="tiny", width=3, seed=0):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Dropout(0.5))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.0)
    setup = TrainingSetup("tiny", recipe, seed, 3, {"model": model}, optimiser, lambda step: 0.1 / (1 + step))
    return setup, lambda step: (model(torch.ones(1, 2)) - step).pow(2).sum()


def teach(checkpointing, progress=None, **changes):
    setup, compute_loss = tiny(**changes)
    run_training(setup, compute_loss, checkpointing, progress or SilentProgress())
    return setup.modules["model"].state_dict()


def test_without_resume_it_starts_anew(tmp_path):
    path, losses = tmp_path / "kept.safetensors", Losses()
    first = teach(Checkpointing(path))
    second = teach(Checkpointing(path), losses)
    assert len(losses.seen) == 3
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.safetensors"]


@pytest.mark.parametrize("changes", [{"recipe": "other"}, {"seed": 1}, {"width": 4}])
def test_another_recipe_is_refused(changes, tmp_path):
    path = tmp_path / "kept.safetensors"
    teach(Checkpointing(path))
    kept = path.read_bytes()
    with pytest.raises(ConfigError, match="without --resume"):
        teach(Checkpointing(path, resume=True), **changes)
    assert path.read_bytes() == kept


@pytest.mark.parametrize("keep", [0, 5, 300, -7])
def test_a_damaged_checkpoint_is_refused(keep, tmp_path):
    path = tmp_path / "kept.safetensors"
    teach(Checkpointing(path))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"no checkpoint of a training.*without --resume"):
        teach(Checkpointing(path, resume=True))


@pytest.mark.parametrize("about", [None, {"step": "1", "recipe": "tiny, seed 0, 3 steps, 'tiny'"}])
def test_a_foreign_file_and_one_of_the_earlier_format_are_refused_and_replaced(about, tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"model.0.weight": torch.zeros(3, 2)}, path, metadata=about)
    with pytest.raises(ConfigError, match=r"no checkpoint of a training.*without --resume"):
        teach(Checkpointing(path, resume=True))
    wanted = teach(Checkpointing(path))
    found = teach(Checkpointing(path, resume=True))
    assert all(torch.equal(wanted[k], found[k]) for k in wanted)


@pytest.mark.usefixtures("answer_interrupts")
def test_an_interrupted_training_is_saved_and_goes_on_with_the_same_bits(tmp_path):
    class Stop(Losses):
        def advance(self, **numbers):
            super().advance(**numbers)
            if len(self.seen) == BREAK:
                signal.raise_signal(signal.SIGINT)

    path, before, after = tmp_path / "kept.safetensors", Stop(), Losses()
    wanted = teach(Checkpointing(tmp_path / "straight.safetensors"))
    with pytest.raises(Interrupted, match=r"step 2 of 3.*with --resume"):
        teach(Checkpointing(path), before)
    found = teach(Checkpointing(path, resume=True), after)
    assert len(before.seen) + len(after.seen) == 3
    assert all(torch.equal(wanted[k], found[k]) for k in wanted)


def test_a_loss_that_is_not_finite_ends_the_training():
    setup, _ = tiny()
    with pytest.raises(ConfigError, match=r"not finite at steps 0, 1, 2.*recipe's learning rate"):
        run_training(setup, lambda step: torch.tensor(float("nan"), requires_grad=True), NOWHERE, SilentProgress())


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 100])
def test_the_learning_rate_is_that_of_torch(steps):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan, rates = OneCycleLR(optimiser, 0.3, steps, pct_start=0.1, cycle_momentum=False), []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        plan.step()
    assert [compute_one_cycle_rate(step, steps, 0.3) for step in range(steps)] == pytest.approx(rates)


def test_the_learning_rate_rises_to_the_top_and_falls_to_nothing():
    rates = [compute_one_cycle_rate(step, 100, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(2.0 / 25)
    assert max(rates) == rates[9] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(2.0 / 25e4)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
