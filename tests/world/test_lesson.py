"""Every training, killed at a step and resumed, goes on bit for bit; a checkpoint of another training is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from sefi.core.errors import ConfigError
from sefi.core.protocols import SilentProgress
from sefi.world.data import MODEL_SEED, picture_at
from sefi.world.detector_training import DetectorRecipe, train_detector
from sefi.world.diffusion_training import BLOCK, DiffusionRecipe, DiffusionTraining, Trained, encoded, train_diffusion
from sefi.world.drawing import SIDE, UNITS, draw, heads
from sefi.world.judging_data import JUDGE_SEED, face_crops
from sefi.world.lesson import Keeping, Lesson, laid_out_like, one_cycle, run_lesson
from sefi.world.reader_training import SCENE_LABELS, Reader, ReaderRecipe, scene_labels, train_reader
from sefi.world.recogniser_training import RecogniserRecipe, train_recogniser
from sefi.world.telling import TellingRecipe, train_telling
from sefi.world.tokenizing import build_tokenizer, words
from sefi.world.vae_training import VaeRecipe, corner, new_vae, to_tensor, train_vae

STEPS, BREAK = 5, 2


class Killed(Exception):
    """What a progress raises that does not live to see the end."""


class Losses:
    """Keeps the losses; dies at a step, whose loss it does not see and whose weights are not saved."""

    def __init__(self, last=None):
        self.seen, self.last, self.total = [], last, None

    def start(self, total, label):
        self.total = total

    def advance(self, **numbers):
        if len(self.seen) == self.last:
            raise Killed
        self.seen.append(numbers["loss"])

    def finish(self):
        pass


@pytest.fixture(scope="module")
def images():
    return np.stack([draw(picture_at(1, i)) for i in range(5)])


@pytest.fixture(scope="module")
def words_tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("words"), words())


@pytest.fixture(scope="module")
def crops():
    return face_crops(3, 2, JUDGE_SEED)


@pytest.fixture(scope="module")
def latents(images, tmp_path_factory):
    return encoded(tmp_path_factory.mktemp("latents") / "l.npy", new_vae().eval(), images, SilentProgress())


@pytest.fixture
def trainings(images, latents, words_tokenizer, crops):
    """Every training with a tiny recipe: from a progress and a keeping to the final weights."""

    def vae(progress, keeping):
        recipe = VaeRecipe(steps=STEPS, batch=2, whole_share=0.4)
        return train_vae(images, recipe, 0, progress, keeping=keeping).state_dict()

    def telling(progress, keeping):
        torch.manual_seed(4)
        model = Trained(words_tokenizer)
        recipe = TellingRecipe(steps=STEPS, batch=8)
        train_telling(model.words(), recipe, 0, progress, keeping)
        return model.worded()

    def detector(progress, keeping):
        recipe = DetectorRecipe(pictures=5, steps=STEPS, batch=2, sides=(64, 96))
        return train_detector(recipe, 0, JUDGE_SEED, progress, keeping).state_dict()

    def recogniser(progress, keeping):
        recipe = RecogniserRecipe(people=3, pictures=2, pairs=2, steps=STEPS)
        return train_recogniser(crops, recipe, 0, progress, keeping).state_dict()

    def reader(progress, keeping):
        torch.manual_seed(6)
        labels = scene_labels([picture_at(1, i) for i in range(len(images))])
        model, recipe = Reader(SCENE_LABELS, SIDE), ReaderRecipe(steps=STEPS, batch=3)
        return train_reader(model, images, labels, recipe, 0, progress, keeping).state_dict()

    def denoiser(progress, keeping):
        torch.manual_seed(5)
        # Two drawings a step of five: later epochs ask for drawings that the first had left out.
        recipe = DiffusionRecipe(steps=STEPS, batch=2, warm=1)
        training = DiffusionTraining(words_tokenizer, latents, recipe, 1)
        if keeping.resume:
            training.load(keeping.checkpoint)
        train_diffusion(training, keeping.checkpoint, progress, every=keeping.every)
        return training.averaged | {f"now.{k}": v for k, v in training.model.state_dict().items()}

    return locals()


@pytest.mark.parametrize(
    "name",
    [
        "telling",
        "detector",
        "recogniser",
        "reader",
        *(pytest.param(longest, marks=pytest.mark.slow) for longest in ("vae", "denoiser")),
    ],
)
def test_a_killed_training_goes_on_bit_for_bit(name, trainings, tmp_path):
    train, path = trainings[name], tmp_path / "kept.lesson.safetensors"
    straight, before, after = Losses(), Losses(BREAK), Losses()
    wanted = train(straight, Keeping(tmp_path / "straight.safetensors"))
    with pytest.raises(Killed):
        train(before, Keeping(path, every=0.0))
    torch.manual_seed(99)  # another process
    found = train(after, Keeping(path, resume=True))
    assert len(straight.seen) == STEPS
    assert len(set(straight.seen)) == STEPS
    assert after.total == STEPS - BREAK
    assert before.seen + after.seen == straight.seen
    assert wanted.keys() == found.keys()
    assert [k for k in wanted if not torch.equal(wanted[k], found[k])] == []
    # Once more: it is complete and stays so.
    ended = Losses()
    again = train(ended, Keeping(path, resume=True))
    assert ended.seen == []
    assert all(torch.equal(wanted[k], again[k]) for k in wanted)


def tiny(recipe="tiny", width=3, seed=0):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Dropout(0.5))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.0)
    lesson = Lesson("tiny", recipe, seed, 3, {"model": model}, optimiser, lambda step: 0.1 / (1 + step))
    return lesson, lambda step: (model(torch.ones(1, 2)) - step).pow(2).sum()


def teach(keeping, progress=None, **changes):
    lesson, loss_of = tiny(**changes)
    run_lesson(lesson, loss_of, keeping, progress or SilentProgress())
    return lesson.modules["model"].state_dict()


def test_without_resume_it_starts_anew(tmp_path):
    path, losses = tmp_path / "kept.safetensors", Losses()
    first = teach(Keeping(path))
    second = teach(Keeping(path), losses)
    assert len(losses.seen) == 3
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.safetensors"]


@pytest.mark.parametrize("changes", [{"recipe": "other"}, {"seed": 1}, {"width": 4}])
def test_another_recipe_is_refused(changes, tmp_path):
    path = tmp_path / "kept.safetensors"
    teach(Keeping(path))
    kept = path.read_bytes()
    with pytest.raises(ConfigError, match="without --resume"):
        teach(Keeping(path, resume=True), **changes)
    assert path.read_bytes() == kept


@pytest.mark.parametrize("keep", [0, 5, 300, -7])
def test_a_damaged_checkpoint_is_refused(keep, tmp_path):
    path = tmp_path / "kept.safetensors"
    teach(Keeping(path))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match="damaged"):
        teach(Keeping(path, resume=True))


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="not a checkpoint"):
        teach(Keeping(path, resume=True))


def test_a_denoiser_of_another_recipe_is_refused_and_a_longer_one_goes_on(words_tokenizer, latents, tmp_path):
    recipe, path = DiffusionRecipe(batch=2), tmp_path / "kept.safetensors"
    DiffusionTraining(words_tokenizer, latents, recipe, 1).save(path)
    DiffusionTraining(words_tokenizer, latents, replace(recipe, steps=recipe.steps + 1), 1).load(path)
    with pytest.raises(ConfigError, match="another recipe"):
        DiffusionTraining(words_tokenizer, latents, replace(recipe, head_weight=3.0), 1).load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="damaged"):
        DiffusionTraining(words_tokenizer, latents, recipe, 1).load(path)


def test_latents_are_encoded_once_and_scaled(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (BLOCK + 3, 16, 16, 3), np.uint8)
    torch.manual_seed(0)
    vae, path = new_vae().eval(), tmp_path / "latents.npy"
    found = encoded(path, vae, images, SilentProgress())
    assert found.shape == (BLOCK + 3, 4, 4, 4)
    with torch.no_grad():
        alone = vae.encode(to_tensor(images[-1:])).latent_dist.mean * vae.config.scaling_factor
    assert np.abs(found[-1].astype(np.float32) - alone[0].numpy()).max() < 0.03
    # What is there is read, not made anew; nothing else is left behind.
    assert (encoded(path, vae, images[::-1], SilentProgress()) == found).all()
    assert [p.name for p in tmp_path.iterdir()] == ["latents.npy"]


def test_crops_of_the_autoencoder_lie_on_faces(images):
    faces = VaeRecipe(face_share=1.0)
    for number in range(30):
        top, left = corner(number, SIDE, faces, np.random.default_rng(number))
        x, y, _, _ = heads(picture_at(MODEL_SEED, number))[0]
        assert left <= x * SIDE / UNITS <= left + faces.crop
        assert top <= y * SIDE / UNITS <= top + faces.crop
    anywhere = {corner(3, SIDE, VaeRecipe(face_share=0.0), np.random.default_rng(n)) for n in range(40)}
    assert len(anywhere) > 30
    assert all(0 <= v <= SIDE - faces.crop for place in anywhere for v in place)


def test_only_the_decoder_learns(images):
    torch.manual_seed(0)
    start = new_vae()
    before = {k: v.clone() for k, v in start.state_dict().items()}
    vae = train_vae(images, VaeRecipe(steps=2, batch=2, decoder_only=True), 0, SilentProgress(), start)
    frozen = ("encoder.", "quant_conv.")
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name
    assert all(p.grad is None for n, p in vae.named_parameters() if n.startswith(frozen))


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 100])
def test_the_learning_rate_is_that_of_torch(steps):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan, rates = OneCycleLR(optimiser, 0.3, steps, pct_start=0.1, cycle_momentum=False), []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        plan.step()
    assert [one_cycle(step, steps, 0.3) for step in range(steps)] == pytest.approx(rates)


def test_the_learning_rate_rises_to_the_top_and_falls_to_nothing():
    rates = [one_cycle(step, 100, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(2.0 / 25)
    assert max(rates) == rates[9] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(2.0 / 25e4)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_a_moment_takes_the_layout_of_its_weight():
    weight = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    value = torch.arange(96.0).reshape(2, 3, 4, 4)
    found = laid_out_like(weight, value)
    assert found.stride() == weight.stride()
    assert torch.equal(found, value)
    assert laid_out_like(weight, torch.tensor(7.0)) == 7.0
