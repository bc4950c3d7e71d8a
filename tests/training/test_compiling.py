"""A compiled denoiser: the same identity as without, and none where a gradient is wrong or nothing can be compiled."""

import gc
import subprocess
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from tests.conftest import CHANNELS, LATENT
from tests.training import test_together
from tests.training.test_interrupt import views
from tests.training.token_training import make_task
from torch._dynamo.backends.common import aot_autograd

from sefi.core.config import LearnSettings, dump_config, override
from sefi.core.errors import REMARKS, ConfigError
from sefi.core.progress import SilentProgress
from sefi.methods import PRESETS
from sefi.training import token_inversion
from sefi.training.compiling import CHECKED, LIMIT, compile_task, compile_unet, has_right_gradients
from sefi.training.loop import list_recovery_remarks, train
from sefi.training.memory import plan_memory
from sefi.training.together import JointTraining, train_together

PLAIN = override(
    PRESETS["scratch"], ["learn.batch=5", "learn.steps=3", "learn.attention_weight=0", "views.latent_pool=3"]
)
COMPILED = override(PLAIN, ["learn.compile=true"])
STEERED = ("learn.attention_weight=0.003",)


@pytest.fixture(autouse=True)
def forget_what_is_compiled(caplog):
    caplog.set_level("WARNING", logger=REMARKS)  # the command line raises it
    torch.compiler.reset()
    CHECKED.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def choose_backend(monkeypatch):
    """Trace with torch, and run what was traced by another backend than the one that writes code."""

    def choose(backend):
        monkeypatch.setattr(token_inversion, "compile_unet", partial(compile_unet, backend=backend))

    return choose


def scale_gradients(factor):
    """Return a backend that runs the operations as they are, and scales every gradient."""

    def compile_backward(graph, _):
        return make_boxed_func(lambda *given: [one if one is None else one * factor for one in graph(*given)])

    return aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph), bw_compiler=compile_backward)


def learn(backbone, config, **more):
    task = make_task(backbone, views(backbone, config), config, 1)
    return train(task, config, SilentProgress(), **more)[0]["tokens"]


# ------------------------------------------------------------------ the comparison


def compute_scaled(factor, wanted=None):
    """Return gradients of two losses, of which the first is another one of the compiled network."""
    wanted = torch.ones(7) if wanted is None else wanted
    return lambda unet: {"denoising loss": wanted * (1 if unet else factor), "attention loss": wanted * 1e6}


def compare(backbone, compute, *, inputs=(7,), owner=None):
    return has_right_gradients(compute, backbone.unet, None, owner or backbone.unet, inputs)


@pytest.mark.parametrize(
    ("factor", "right"), [(1, True), (1 + LIMIT / 2, True), (1 + 2 * LIMIT, False), (-1, False), (float("nan"), False)]
)
def test_each_gradient_is_compared_with_its_own(backbone, caplog, factor, right):
    """The attention loss, whose gradient is the larger one by far, hides no error of the other."""
    assert compare(backbone, compute_scaled(factor)) is right
    assert ("gradient of the denoising loss is wrong by" in caplog.text) is not right


def test_a_gradient_that_is_not_finite_says_nothing_of_the_compiler(backbone, caplog):
    """The training takes care of such a step, and the next one is compared."""
    assert not compare(backbone, compute_scaled(1, torch.tensor([1, float("nan")])))
    assert not caplog.text
    assert compare(backbone, compute_scaled(1))


def test_a_comparison_is_known_as_long_as_the_network_lives(backbone, caplog):
    network = torch.nn.Linear(2, 3)
    assert compare(backbone, compute_scaled(1), owner=network)
    assert compare(backbone, compute_scaled(2), owner=network)  # not computed again
    assert not compare(backbone, compute_scaled(2), owner=network, inputs=(5,))
    assert not compare(backbone, compute_scaled(1), owner=network, inputs=(5,))
    assert caplog.text.count("goes on without compiling") == 1
    del network
    gc.collect()
    assert not CHECKED


@pytest.mark.parametrize("kind", [RuntimeError, OSError, subprocess.SubprocessError])
def test_a_failure_of_the_compiler_is_one_line(backbone, caplog, kind):
    def compute(unet):
        if unet is None:
            raise kind("no C++ compiler\n\nand a page of other words")
        return {"denoising loss": torch.ones(7)}

    assert not compare(backbone, compute)
    assert "could not compile the denoiser: no C++ compiler. Learning goes on" in caplog.text
    assert "page" not in caplog.text


def test_a_lack_of_memory_is_no_failure_of_the_compiler(backbone):
    """The samples are taken in parts then, as without a compiler."""

    def compute(unet):
        if unet is None:
            raise RuntimeError("CUDA out of memory")
        return {"denoising loss": torch.ones(7)}

    with pytest.raises(RuntimeError, match="out of memory"):
        compare(backbone, compute)
    assert compare(backbone, compute_scaled(1))


# ------------------------------------------------------------------ the setting


def test_the_setting_is_saved_where_it_is_set_and_refused_where_it_does_nothing():
    assert dump_config(COMPILED)["learn"]["compile"] is True
    assert "compile" not in dump_config(PLAIN)["learn"]
    with pytest.raises(ValueError, match="compile has no effect with attention_share"):
        LearnSettings(compile=True, attention_share=0.5)


def test_what_cannot_be_compiled_and_what_is_not_with_what_is(backbone):
    with pytest.raises(ConfigError, match="is not compiled"):
        compile_task(object())
    pair = [test_together.make(backbone, f"learn.compile={value}") for value in ("true", "false")]
    with pytest.raises(ConfigError, match=r"differ in learn\.compile"):
        train_together([JointTraining(one.task, one.config) for one in pair], SilentProgress())


# ------------------------------------------------------------------ learning


def count_runs(counts):
    """Return a backend that runs the operations as they are, and notes samples and graph of each run."""

    def compile_forward(graph, _):
        def run(*given):
            latents = (
                one for one in given if isinstance(one, torch.Tensor) and one.shape[1:] == (CHANNELS, LATENT, LATENT)
            )
            counts.append((len(next(latents)), id(graph)))
            return graph(*given)

        return make_boxed_func(run)

    return aot_autograd(fw_compiler=compile_forward)


@pytest.mark.slow
def test_each_step_is_compiled_and_each_size_apart(backbone, choose_backend):
    """The check and three steps of each size; the first size is what it was, whatever came between."""
    runs = []
    choose_backend(count_runs(runs))
    first = learn(backbone, COMPILED)
    learn(backbone, override(COMPILED, ["learn.batch=2"]))
    assert torch.equal(learn(backbone, COMPILED), first)
    samples = [count for count, _ in runs]
    graphs = samples.index(2) // 4  # of a pass: torch cuts where diffusers looks at its settings
    assert graphs > 0
    assert samples == [5] * 4 * graphs + [2] * 4 * graphs + [5] * 3 * graphs
    assert runs[8 * graphs :] == runs[: 3 * graphs]  # nothing that was made for any size


@pytest.mark.slow
def test_with_wrong_gradients_learning_goes_on_without(backbone, choose_backend, caplog):
    choose_backend(scale_gradients(1 + 2 * LIMIT))
    task = make_task(backbone, views(backbone, COMPILED), COMPILED, 1)
    tensors, numbers = train(task, COMPILED, SilentProgress())
    assert torch.equal(tensors["tokens"], learn(backbone, PLAIN))
    assert "learn.compile had no effect" in list_recovery_remarks(numbers)[0]
    assert "gradient of the denoising loss is wrong by 0.2%, and 0.1% are allowed. Learning goes on" in caplog.text


# Told by torch where activations are computed again: diffusers asks for the version of torch, which is remembered.
CACHED = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache:UserWarning")
HINGE = (*STEERED, "learn.attention_loss=hinge", "learn.context_weight=0.1")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), HINGE])
def test_a_compiled_denoiser_teaches_the_same(backbone, choose_backend, settings):
    choose_backend("aot_eager")
    config = override(COMPILED, settings)
    tensors, numbers = train(make_task(backbone, views(backbone, config), config, 1), config, SilentProgress())
    found = tensors["tokens"]
    assert "not_compiled" not in numbers
    assert list(CHECKED[backbone.unet].values()) == [True]
    torch.testing.assert_close(found, learn(backbone, override(PLAIN, settings)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_several_in_a_pass(backbone, choose_backend):
    """Of three steps the first and the last compute the gradient of each loss apart, and are not compiled."""
    choose_backend("aot_eager")
    learners = [test_together.make(backbone, "learn.compile=true", "learn.steps=3", number=n) for n in (1, 2)]
    outcomes = train_together(learners, SilentProgress())
    for number, (tensors, _) in enumerate(outcomes, 1):
        alone, _ = test_together.learn_alone(backbone, "learn.steps=3", number=number)
        test_together.assert_near(tensors["tokens"], alone["tokens"], learners[0].task.tokens.class_token)
    assert [inputs[0][0] for inputs in CHECKED[backbone.unet]] == [4]


@CACHED
@pytest.mark.slow
def test_within_a_limit_of_memory(backbone, choose_backend):
    """Activations that are computed again are compiled so; each size of the parts of a step is checked."""
    choose_backend("aot_eager")
    task = make_task(backbone, views(backbone, COMPILED), COMPILED, 1)
    assert task.set_recomputing(enabled=True)
    found = train(task, COMPILED, SilentProgress(), parts=2)[0]["tokens"]
    assert sorted(inputs[0][0] for inputs in CHECKED[backbone.unet]) == [2, 3]
    torch.testing.assert_close(found, learn(backbone, PLAIN), rtol=1e-3, atol=1e-5)
    again = make_task(backbone, views(backbone, COMPILED), COMPILED, 1)
    assert plan_memory(again, backbone.networks.values(), 10**12).parts == 1
