"""Stopping at the best step: the best tokens are returned, training stops early, and a kill changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from tests.training.test_interrupt import views
from tests.training.token_training import learn_tokens

from sefi.core.config import DEFAULT, override
from sefi.core.errors import ConfigError, Interrupted
from sefi.core.progress import SilentProgress
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import ConditionedModel, GeneratedImage
from sefi.evaluation.encoders import SurestFace
from sefi.identity.file import Identity, IdentityHeader
from sefi.methods import PRESETS
from sefi.photo.detect import Face
from sefi.training import probe as probing
from sefi.training.probe import PROBE_PROMPTS, BestSoFar, ImageProbe, ProbeEvaluators

CONFIG = override(
    PRESETS["paper"],
    ["learn.steps=11", "learn.batch=1", "views.latent_pool=3", "learn.probe_every=2", "learn.patience=2"],
)


class Scripted:
    """A probe that gives these scores in turn and remembers what it saw."""

    def __init__(self, *scores):
        self.scores, self.seen = list(scores), []

    def __call__(self, tensors):
        self.seen.append(tensors["tokens"].clone())
        return self.scores[len(self.seen) - 1]


@given(st.lists(st.floats(-1, 1, allow_nan=False), min_size=1, max_size=13), st.integers(1, 4))
def test_the_best_is_the_first_highest_of_what_was_offered(scores, patience):
    best, seen = BestSoFar(patience), []
    for step, score in enumerate(scores):
        if best.should_stop:
            break
        seen.append(score)
        best.update({"tokens": torch.full((1, 2, 3), float(step))}, step, score)
    assert best.score == max(seen)
    assert best.step == seen.index(max(seen))
    assert best.tensors["tokens"].unique().item() == best.step
    assert best.worse == len(seen) - 1 - best.step
    again = BestSoFar(patience)
    again.restore(best.get_state())
    assert (again.score, again.step, again.worse, again.asked_at) == (best.score, best.step, best.worse, best.asked_at)


def test_a_fresh_best_has_nothing_to_save():
    best = BestSoFar(3)
    best.restore(best.get_state())
    assert best.get_state() == {}
    assert not best.should_stop


def test_learning_stops_after_its_patience_and_returns_the_best_tokens(backbone):
    probe = Scripted(0.1, 0.5, 0.4, 0.5, 0.9)
    tokens, numbers = learn_tokens(backbone, views(backbone), CONFIG, 1, SilentProgress(), probe=probe)
    assert len(probe.seen) == 4
    assert torch.equal(tokens, probe.seen[1])
    assert (numbers["best_step"], numbers["best_score"]) == (4, 0.5)


@pytest.mark.slow
def test_the_last_step_is_scored_too(backbone):
    probe = Scripted(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    tokens, numbers = learn_tokens(backbone, views(backbone), CONFIG, 1, SilentProgress(), probe=probe)
    assert numbers["best_step"] == 11
    plain, _ = learn_tokens(backbone, views(backbone), CONFIG, 1, SilentProgress())
    assert torch.equal(tokens, plain)


@pytest.mark.slow
def test_a_run_killed_between_probes_goes_on_to_the_same_end(backbone, tmp_path):
    scores, checkpoint = (0.1, 0.5, 0.4, 0.3, 0.9), tmp_path / "run.safetensors"
    whole, _ = learn_tokens(backbone, views(backbone), CONFIG, 1, SilentProgress(), probe=Scripted(*scores))

    class StopAt7(SilentProgress):
        done = 0

        def advance(self, **numbers):
            self.done += 1
            if self.done == 7:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="step 7 of 11"):
        learn_tokens(backbone, views(backbone), CONFIG, 1, StopAt7(), checkpoint, Scripted(*scores[:3]))
    resumed, numbers = learn_tokens(
        backbone, views(backbone), CONFIG, 1, SilentProgress(), checkpoint, Scripted(*scores[3:])
    )
    assert torch.equal(whole, resumed)
    assert numbers["best_step"] == 4


@pytest.mark.slow
def test_a_probe_that_a_kill_prevented_is_made_up_for(backbone, tmp_path):
    scores, checkpoint = (0.1, 0.5, 0.4, 0.3, 0.9), tmp_path / "run.safetensors"
    whole, _ = learn_tokens(backbone, views(backbone), CONFIG, 1, SilentProgress(), probe=Scripted(*scores))

    def killed(tokens, done=[]):  # noqa: B006  counts its calls
        done.append(0)
        if len(done) == 3:
            raise KeyboardInterrupt
        return scores[len(done) - 1]

    with pytest.raises(Interrupted, match="step 6 of 11"):
        learn_tokens(backbone, views(backbone), CONFIG, 1, SilentProgress(), checkpoint, killed)
    resumed, numbers = learn_tokens(
        backbone, views(backbone), CONFIG, 1, SilentProgress(), checkpoint, Scripted(*scores[2:])
    )
    assert torch.equal(whole, resumed)
    assert numbers["best_step"] == 4


def test_a_score_weighs_likeness_by_how_far_the_prompt_is_obeyed(backbone, monkeypatch):
    """Images differ in their brightness: 0 for the plain word, 1 to 4 with the identity."""
    shades, word = iter([0] * len(PROBE_PROMPTS) + [1, 2, 3, 4]), []

    def drawn(_backbone, _conditioner, prompts, seeds, config, _progress):
        word.extend(prompts)
        from PIL import Image

        for n, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            yield GeneratedImage(Image.new("RGB", (24, 24), (next(shades),) * 3), prompt, seed, n)

    class Clip:
        def encode_texts(self, prompts):
            return np.tile(np.array([1.0, 0.0], np.float32), (len(prompts), 1))

        def encode_images(self, images):
            # plain: 0.8; with the identity: 0.8, 0.4, 1.0, -0.5
            return np.array([[{0: 0.8, 1: 0.8, 2: 0.4, 3: 1.0, 4: -0.5}[int(p[0, 0, 0])], 0.0] for p in images])

    class Encode:
        def __call__(self, rgb, face):
            return np.array({9: [1.0, 0.0], 1: [0.6, 0.8], 2: [1.0, 0.0], 4: [1.0, 0.0]}[int(rgb[0, 0, 0])], np.float32)

    def detect(rgb):
        return [] if int(rgb[0, 0, 0]) == 3 else [Face(0, 0, 9, 9, ((0, 0),) * 5, 1.0)]

    monkeypatch.setattr(probing, "sample_images", drawn)

    def apply(identities):
        return ConditionedModel(backbone, IdentityConditioner(backbone, []))

    square = np.full((24, 24, 3), 9, np.uint8)
    probe = ImageProbe(apply, square, DEFAULT, ProbeEvaluators(SurestFace(detect, Encode()), Clip()))
    header = IdentityHeader(name="ada", method="sefi", stages=1, base_model="m", width=3, class_word="person")
    # 0.6 obeyed, 1.0 half obeyed, no face, 1.0 not obeyed at all
    assert probe(Identity({"tokens": torch.zeros(1, 2, 3)}, header)) == pytest.approx((0.6 + 0.5 + 0 + 0) / 4)
    assert word[0] == PROBE_PROMPTS[0].format("person")
    assert word[-1] == PROBE_PROMPTS[-1].format("<ada>")
    faceless = np.full((24, 24, 3), 3, np.uint8)
    with pytest.raises(ConfigError, match="no face in the photo"):
        ImageProbe(apply, faceless, DEFAULT, ProbeEvaluators(SurestFace(detect, Encode()), Clip()))


def test_a_model_without_evaluators_says_so(backbone, photo_file):
    from sefi.api import learn

    config = override(DEFAULT, ["learn.probe_every=1", "learn.steps=2", "learn.class_word=dog"])
    with pytest.raises(ConfigError, match="has no evaluators"):
        learn(photo_file, name="rex", backbone=backbone, config=config)
