"""One model, many calls: suspended, interleaved, abandoned and failing ones of every method never meet in it."""

import gc
import signal
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from tests.training.people import ALL, EACH, MOSTLY_SLOW, couple, settings

from sefi.api import generate_each
from sefi.backbone.bundle import Backbone
from sefi.benchmark.samples import PromptSeed, generate_images
from sefi.core.progress import SilentProgress
from sefi.diffusion.sampling import GeneratedImage
from sefi.identity.file import Identity
from sefi.testing import list_differences, record_state

PROMPTS = ("a photo of {}", "a drawing of {} at the beach")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("composer")


class Call(SilentProgress):
    """Does something at one of the calls of a progress bar, and counts them."""

    def __init__(self, at: int = -1, action=None) -> None:
        self.at, self.action, self.calls = at, action, 0

    def start(self, total: int, label: str) -> None:
        self.advance()

    def advance(self, **numbers: float) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.action()

    def finish(self) -> None:
        self.advance()


def drawing(backbone: Backbone, who: Identity | None, progress=None, seed: int = 3) -> Iterator[GeneratedImage]:
    """Pictures of a person, or of the plain class word, one by one."""
    prompts = [p.format(f"<{who.name}>" if who else "person") for p in PROMPTS]
    config = settings(who.method if who else "sefi")
    return generate_each(prompts, [who] if who else [], backbone=backbone, config=config, seed=seed, progress=progress)


def pixels(images) -> list[bytes]:
    return [image.pixels.tobytes() for image in images]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", EACH)
def test_interleaved_generators_yield_what_each_yields_alone(backbone: Backbone, folder: Path, method: str) -> None:
    ada, bob = couple(backbone, method, folder)
    alone = [pixels(drawing(backbone, who)) for who in (ada, bob, None)]
    assert len({tuple(one) for one in alone}) == 3
    before, together = record_state(backbone), []
    for three in zip(drawing(backbone, ada), drawing(backbone, bob), drawing(backbone, None), strict=True):
        assert list_differences(before, record_state(backbone)) == []
        together.append(pixels(three))
    assert [list(one) for one in zip(*together, strict=True)] == alone


@pytest.mark.slow
def test_generators_of_all_methods_at_once(backbone: Backbone, folder: Path) -> None:
    people = [who for method in ALL for who in couple(backbone, method, folder)]
    alone = [pixels(drawing(backbone, who)) for who in people]
    before = record_state(backbone)
    together = [pixels(images) for images in zip(*(drawing(backbone, who) for who in people), strict=True)]
    assert [list(one) for one in zip(*together, strict=True)] == alone
    assert list_differences(before, record_state(backbone)) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", MOSTLY_SLOW)
def test_class_word_images_are_unchanged_while_a_subject_is_generated(
    backbone: Backbone, folder: Path, method: str
) -> None:
    ada, _ = couple(backbone, method, folder)
    plain, person = (pixels(drawing(backbone, who)) for who in (None, ada))
    suspended = drawing(backbone, ada)
    first = pixels(islice(suspended, 1))
    assert pixels(drawing(backbone, None)) == plain
    assert first + pixels(suspended) == person


@pytest.mark.slow
@pytest.mark.parametrize("method", MOSTLY_SLOW)
def test_an_image_generated_in_a_progress_callback_is_the_same(backbone: Backbone, folder: Path, method: str) -> None:
    ada, bob = couple(backbone, method, folder)
    alone = [pixels(drawing(backbone, who)) for who in (ada, bob, None)]
    inner: list[list[bytes]] = []

    def draw_others() -> None:
        inner.extend(pixels(drawing(backbone, who)) for who in (bob, None))

    outer = pixels(drawing(backbone, ada, Call(3, draw_others)))
    assert [outer, *inner] == alone


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", EACH)
def test_abandoned_generators_leave_nothing(backbone: Backbone, folder: Path, method: str) -> None:
    ada, bob = couple(backbone, method, folder)
    before = record_state(backbone)
    first, second, third = drawing(backbone, ada), drawing(backbone, bob), drawing(backbone, ada)
    for one in (first, second, third):
        next(one)
    assert list_differences(before, record_state(backbone)) == []
    first.close()
    with pytest.raises(ZeroDivisionError):
        third.throw(ZeroDivisionError())
    held = [second]
    del second

    def drop() -> None:
        held.clear()
        gc.collect()

    thread = threading.Thread(target=drop)
    thread.start()
    thread.join()
    assert list_differences(before, record_state(backbone)) == []


@pytest.mark.parametrize("method", MOSTLY_SLOW)
def test_the_benchmark_leaves_nothing_between_two_batches(backbone: Backbone, folder: Path, method: str) -> None:
    ada, _ = couple(backbone, method, folder)
    before = record_state(backbone)
    places = [PromptSeed(n, n) for n in range(2)]
    for one in generate_images(backbone, [ada], ["a photo of <ada>"] * 2, places, settings(method)):
        assert list_differences(before, record_state(backbone)) == []
        assert one.rgb.shape == (backbone.resolution, backbone.resolution, 3)


def divide() -> None:
    raise ZeroDivisionError


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.usefixtures("answer_interrupts")
@pytest.mark.parametrize("method", MOSTLY_SLOW)
def test_an_error_or_ctrl_c_at_any_step_leaves_the_model_as_it_was(
    backbone: Backbone, folder: Path, method: str
) -> None:
    ada, _ = couple(backbone, method, folder)
    count = Call()
    whole, before = pixels(drawing(backbone, ada, count)), record_state(backbone)
    assert count.calls >= 2 + 2 * len(PROMPTS)
    for at in range(1, count.calls + 1):
        action, raised = ((divide, ZeroDivisionError), (interrupt, KeyboardInterrupt))[at % 2]
        with pytest.raises(raised):
            list(drawing(backbone, ada, Call(at, action)))
        assert list_differences(before, record_state(backbone)) == []
    assert pixels(drawing(backbone, ada)) == whole


def test_the_snapshot_sees_a_hook_a_processor_and_a_weight(backbone: Backbone) -> None:
    """What the tests above rest on."""
    before = record_state(backbone)
    embedding = backbone.text_encoder.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda *_: None)
    assert any("_forward_hooks" in name for name in list_differences(before, record_state(backbone)))
    handle.remove()
    attention = next(m for n, m in backbone.unet.named_modules() if n.endswith("attn2"))
    stock = attention.processor
    attention.processor = object()
    assert any("processor" in name for name in list_differences(before, record_state(backbone)))
    attention.processor = stock
    weight = next(backbone.unet.parameters())
    held = weight.data
    weight.data = held + 1
    assert len(list_differences(before, record_state(backbone))) == 2
    weight.data = held
    torch.rand(1)
    assert list_differences(before, record_state(backbone)) == ["rng"]
