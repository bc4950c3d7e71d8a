"""Threads that share one model, and the process around it: each gets what it would get alone, to the bit."""

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import accelerate
import pytest
import torch
from tests.training.people import EACH, couple, person, settings

from sefi.api import generate
from sefi.backbone.bundle import Backbone, copy_part
from sefi.backbone.files import quiet_libraries
from sefi.backbone.open import MODELS
from sefi.backbone.weights import copy_for_training, copy_with_weights
from sefi.core.config import Config, override, select_settings
from sefi.core.errors import BackboneError
from sefi.core.progress import Progress, SilentProgress
from sefi.core.rng import create_generator
from sefi.diffusion.text import tokenize_plain
from sefi.identity.file import Identity
from sefi.identity.tokens import IdentityTokens
from sefi.methods import METHODS, PRESETS
from sefi.methods.base import TrainingOptions, get_class_row
from sefi.photo.augment import PhotoViews
from sefi.photo.detect import YuNetDetector
from sefi.testing import list_differences, record_state
from sefi.training.token_inversion import TokenTask

THREADS, IMAGES = 8, 50
FEW = ["learn.steps=3", "learn.batch=2", "views.latent_pool=3", "tune.prior_images=1", "generate.steps=2"]
NAMES = "photo cup\ndog beach\nsnow drawing\nperson cup\n"
# Learning that needs no networks but the model; `paper` has the expansion module with dropout.
LEARNED = ["paper", "dreambooth"]
LEARNED_SLOWLY = ["default", "custom-diffusion", "textual-inversion", "prospect", "cross-init", "dreambooth-lora"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("composer")


def draw(backbone: Backbone, who: Identity, count: int, batch: int = 10, progress: Progress | None = None):
    config = override(settings(who.method), [f"generate.count={count}", f"generate.batch_size={batch}"])
    text = f"a photo of <{who.name}> at the beach"
    return [i.pixels.tobytes() for i in generate(text, [who], backbone=backbone, config=config, progress=progress)]


def in_threads(*works):
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


@pytest.mark.slow
def test_eight_threads_generate_fifty_images_each_as_one_thread_does(backbone: Backbone, folder: Path) -> None:
    people = couple(backbone, "sefi", folder)
    alone = [draw(backbone, who, IMAGES) for who in people]
    assert len({image for images in alone for image in images}) == 2 * IMAGES
    before = record_state(backbone)
    found = in_threads(*(lambda n=n: draw(backbone, people[n % 2], IMAGES) for n in range(THREADS)))
    assert [sum(a != b for a, b in zip(f, alone[n % 2], strict=True)) for n, f in enumerate(found)] == [0] * THREADS
    assert list_differences(before, record_state(backbone)) == []


class Meet(SilentProgress):
    """At its first step announces itself and waits for another."""

    def __init__(self, here: threading.Event, other: threading.Event) -> None:
        self.here, self.other = here, other

    def advance(self, **numbers: float) -> None:
        self.here.set()
        assert self.other.wait(60)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", EACH)
def test_staggered_calls_leave_the_model_as_it_was(backbone: Backbone, folder: Path, method: str) -> None:
    """The first to begin ends first, while the second is under way."""
    ada, bob = couple(backbone, method, folder)
    alone = [draw(backbone, who, 1) for who in (ada, bob)]
    before = record_state(backbone)
    first_began, second_began, first_ended = (threading.Event() for _ in range(3))

    def first():
        made = draw(backbone, ada, 1, progress=Meet(first_began, second_began))
        first_ended.set()
        return made

    def second():
        assert first_began.wait(60)
        return draw(backbone, bob, 1, progress=Meet(second_began, first_ended))

    assert in_threads(first, second) == alone
    assert list_differences(before, record_state(backbone)) == []


# ---------------------------------------------------------------- learning


def learn(backbone: Backbone, preset: str, name: str, folder: Path, progress: Progress | None = None):
    names, partial = folder / "names.txt", folder / f"names-{threading.get_ident()}.txt"
    partial.write_text(NAMES)
    partial.replace(names)  # at once: the other thread may be reading it
    config = PRESETS[preset]
    config = override(config, select_settings(type(config), [*FEW, f"basis.names={names}"]))
    square = (
        torch.rand(
            (3, backbone.resolution, backbone.resolution),
            generator=create_generator(len(name), name),
            dtype=torch.float32,
        )
        * 2
        - 1
    )
    options = TrainingOptions(progress or SilentProgress())
    return METHODS[config.method].learn(name, PhotoViews(square, config.views), backbone, config, 1, options).tensors


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("preset", [*LEARNED, *(pytest.param(p, marks=pytest.mark.slow) for p in LEARNED_SLOWLY)])
def test_two_people_learned_in_two_threads_are_those_learned_one_by_one(
    backbone: Backbone, folder: Path, preset: str
) -> None:
    before = record_state(backbone)
    alone = [learn(backbone, preset, name, folder) for name in ("ada", "bob")]
    assert list_differences(before, record_state(backbone)) == []
    assert not equal(*alone)
    together = in_threads(*(lambda n=n: learn(backbone, preset, n, folder) for n in ("ada", "bob")))
    assert all(equal(one, other) for one, other in zip(together, alone, strict=True))
    assert list_differences(before, record_state(backbone)) == []


class Stop(SilentProgress):
    """Runs something at one of its steps."""

    def __init__(self, at: int, action) -> None:
        self.left, self.action = at, action

    def advance(self, **numbers: float) -> None:
        self.left -= 1
        if self.left == 0:
            self.action()


@pytest.mark.parametrize("preset", ["custom-diffusion", pytest.param("dreambooth", marks=pytest.mark.slow)])
def test_generating_while_weights_are_learned_shows_the_frozen_model(
    backbone: Backbone, folder: Path, preset: str
) -> None:
    bob = person(backbone, "sefi", "bob")
    alone, plain = learn(backbone, preset, "ada", folder), draw(backbone, bob, 1)
    seen = []
    # One image of the class takes two steps of the bar: from the third on weights are learned.
    again = learn(backbone, preset, "ada", folder, Stop(4, lambda: seen.extend(draw(backbone, bob, 1))))
    assert seen == plain
    assert equal(again, alone)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("preset", ["default", "custom-diffusion"])
def test_learning_that_fails_leaves_the_model_as_it_was(backbone: Backbone, folder: Path, preset: str) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    before = record_state(backbone)
    for at in range(1, 4):
        with pytest.raises(ZeroDivisionError):
            learn(backbone, preset, "ada", folder, Stop(at, fail))
        assert list_differences(before, record_state(backbone)) == []


# ---------------------------------------------------------------- what belongs to the process


def test_dropout_never_touches_the_random_numbers_of_the_process(backbone: Backbone) -> None:
    config = override(PRESETS["paper"], select_settings(Config, FEW))
    states = []

    class Watching(IdentityTokens):
        def forward(self, *given) -> torch.Tensor:
            states.append(torch.get_rng_state())
            return super().forward(*given)

    before = torch.get_rng_state()
    tokens = Watching(get_class_row(backbone, config), config.learn, 1)
    square = torch.zeros(3, backbone.resolution, backbone.resolution)
    task = TokenTask(backbone, PhotoViews(square, config.views), config, 1, tokens)
    first, again = (task.compute_loss(0)[0] for _ in range(2))
    assert len(states) == 3
    assert all(torch.equal(one, before) for one in [*states, torch.get_rng_state()])
    assert torch.equal(first, again)
    assert not torch.equal(first, task.compute_loss(1)[0])


def test_dropout_drops_what_torch_drops() -> None:
    from sefi.identity.tokens import drop_out

    x = torch.randn(31, 7, generator=create_generator(1, "x"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        wanted = torch.nn.functional.dropout(x, 0.3, training=True)
    assert torch.equal(drop_out(x, 0.3, torch.Generator().manual_seed(3)), wanted)
    assert torch.equal(drop_out(x, 0.3, None), x)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("preset", ["paper", "cross-init"])
def test_another_default_number_type_changes_nothing(backbone: Backbone, folder: Path, preset: str) -> None:
    """Libraries change it for the whole process while they load a model in half precision."""
    wanted, who = learn(backbone, preset, "ada", folder), person(backbone, "sefi", "ada")
    images = draw(backbone, who, 2)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found, drawn = learn(backbone, preset, "ada", folder), draw(backbone, who, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert equal(found, wanted)
    assert drawn == images


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "preset", ["paper", "custom-diffusion", pytest.param("dreambooth-lora", marks=pytest.mark.slow)]
)
def test_learning_while_a_model_is_opened_waits_for_it(backbone: Backbone, folder: Path, preset: str) -> None:
    """While diffusers loads, new parameters of the whole process have no values."""
    wanted, loading, loaded = learn(backbone, preset, "ada", folder), threading.Event(), threading.Event()

    def load() -> None:
        with quiet_libraries(), accelerate.init_empty_weights():
            loading.set()
            time.sleep(0.3)
            loaded.set()

    def study():
        assert loading.wait(60)
        return learn(backbone, preset, "ada", folder)

    _, found = in_threads(load, study)
    assert loaded.is_set()
    assert equal(found, wanted)


def test_one_detector_serves_several_threads() -> None:
    from PIL import Image

    detector = YuNetDetector(MODELS / "evaluators" / "face_detection.onnx")
    portrait = Image.open(MODELS / "demo" / "portrait.png").convert("RGB")
    images = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(p.height, p.width, 3).numpy()
                for p in (portrait.resize((side, side)) for side in (150, 190, 260, 310))]  # fmt: skip
    alone = [detector(image) for image in images]
    assert all(alone)
    found = in_threads(*(lambda n=n: [detector(images[n % 4]) for _ in range(4)] for n in range(THREADS)))
    assert all(one == alone[n % 4] for n, many in enumerate(found) for one in many)


def test_one_tokenizer_serves_several_threads(backbone: Backbone) -> None:
    tokenizer = copy.deepcopy(backbone.tokenizer)
    texts = ["a photo of person", "dog holding cup at the beach", "snow", "a drawing of dog and person smiling"]
    alone = [tokenize_plain(tokenizer, text) for text in texts]

    found = in_threads(
        *(lambda n=n: [tokenize_plain(tokenizer, texts[n % 4]) for _ in range(50)] for n in range(THREADS))
    )
    assert all(one == alone[n % 4] for n, many in enumerate(found) for one in many)


# ---------------------------------------------------------------- copies


def test_a_copy_shares_the_weights_and_nothing_else(backbone: Backbone) -> None:
    copied = copy_part(backbone.unet)
    assert str(copied) == str(backbone.unet)
    theirs = dict(backbone.unet.named_parameters())
    assert all(weight is theirs[name] for name, weight in copied.named_parameters())
    assert not {id(m) for m in copied.modules()} & {id(m) for m in backbone.unet.modules()}
    assert copied.config == backbone.unet.config
    before = record_state(backbone)
    copied.train()
    copied.register_forward_hook(lambda *_: None)
    copied.set_attn_processor({name: object() for name in copied.attn_processors})
    assert list_differences(before, record_state(backbone)) == []


def test_other_weights_are_in_the_copy_alone(backbone: Backbone) -> None:
    name = next(iter(dict(backbone.text_encoder.named_parameters())))
    before, ids = record_state(backbone), torch.zeros(1, 1, backbone.text_length, dtype=torch.long)
    plain = backbone.encode_text(ids).states
    other = copy_with_weights(
        backbone, {f"text_encoder.{name}": torch.ones_like(backbone.text_encoder.get_parameter(name))}
    )
    trained, weights = copy_for_training(backbone, [f"text_encoder.{name}"])
    assert not torch.equal(other.encode_text(ids).states, plain)
    trained.encode_text(ids).states.sum().backward()
    (weight,) = weights.values()
    assert weight.grad is not None
    with torch.no_grad():
        weight.add_(1)
    assert torch.equal(backbone.encode_text(ids).states, plain)
    assert list_differences(before, record_state(backbone)) == []


def test_a_replaced_forward_is_refused_and_a_compiled_one_is_not_used(backbone: Backbone) -> None:
    unet = copy.deepcopy(backbone.unet)
    vars(unet)["_compiled_call_impl"] = lambda *_: pytest.fail("the original was run")
    latents = torch.zeros(1, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    context = torch.zeros(1, backbone.text_length, backbone.token_width)
    copied = copy_part(unet)
    assert torch.equal(copied(latents, 5, context).sample, backbone.unet(latents, 5, context).sample)
    unet.mid_block.forward = unet.mid_block.forward
    with pytest.raises(BackboneError, match="another `forward`"):
        copy_part(unet)
