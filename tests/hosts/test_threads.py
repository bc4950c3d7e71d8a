"""Several threads, each with an identity of its own: pipelines around one model, and one pipeline for all."""

import copy
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from tests.hosts.conftest import count_hooks, draw, make_identity, make_pipe, record_contexts

import sefi
from sefi.diffusion.conditioning import IdentityConditioner

NAMES = ["ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal"]
# Threads and images of each; all of the specification's images are drawn by the thorough ones.
MANY = [pytest.mark.thorough, pytest.mark.timeout(1500)]
CASES = [
    pytest.param(4, 6, True, DPMSolverMultistepScheduler, id="one pipeline"),
    pytest.param(4, 6, False, DDIMScheduler, id="a pipeline each"),
    pytest.param(8, 50, True, DDIMScheduler, marks=MANY, id="one pipeline, 8 x 50, ddim"),
    pytest.param(8, 50, True, DPMSolverMultistepScheduler, marks=MANY, id="one pipeline, 8 x 50, dpm++"),
    pytest.param(8, 50, False, DDIMScheduler, marks=MANY, id="a pipeline each, 8 x 50, ddim"),
    pytest.param(8, 50, False, DPMSolverMultistepScheduler, marks=MANY, id="a pipeline each, 8 x 50, dpm++"),
]
FEW = {"guidance_scale": 4.0, "output_type": "np"}


def draw_image(pipe, texts, number):
    """Draw one of a thread's images; steps and noise differ from image to image."""
    generator = torch.Generator().manual_seed(number)
    return pipe(**texts, **FEW, num_inference_steps=3 + number % 3, generator=generator).images


def run_threads(work, names):
    """Run `work(name)` in a thread for each name, all at once; return what each gave."""
    start = threading.Barrier(len(names))

    def begin(name):
        start.wait()
        return work(name)

    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(begin, names), strict=True))


def attach_all(pipe, backbone, names):
    """Attach an identity for each name, with handles of their own; stages differ."""
    people = {name: make_identity(backbone, name, 2 + seed, seed) for seed, name in enumerate(names)}
    return people, {name: sefi.attach(pipe, person) for name, person in people.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "images", "shared", "scheduler"), CASES)
def test_threads_generate_what_one_thread_generates(host, threads, images, shared, scheduler):
    names = NAMES[:threads]
    pipe = make_pipe(host)
    pipe.scheduler = scheduler.from_config(host.scheduler.config)
    before = draw(pipe, prompt="a photo of a dog", num_inference_steps=3)
    _, handles = attach_all(pipe, host, names)

    def work(name):
        mine = pipe
        if not shared:
            mine = copy.copy(pipe)
            mine.scheduler = scheduler.from_config(pipe.scheduler.config)
        # Each text is encoded in its thread, while others draw.
        texts = [handles[name].encode(f"a photo of <{name}> at the beach") for _ in range(2)]
        return np.concatenate([draw_image(mine, texts[number % 2], number) for number in range(images)])

    alone = {name: work(name) for name in names}
    together = run_threads(work, names)
    assert all(np.array_equal(together[name], alone[name]) for name in names)
    distinct = {images[0].tobytes() for images in alone.values()}
    assert len(distinct) == threads
    for handle in handles.values():
        handle.detach()
    assert count_hooks(pipe.unet) == 0
    assert type(pipe) is StableDiffusionPipeline
    assert np.array_equal(draw(pipe, prompt="a photo of a dog", num_inference_steps=3), before)


def test_no_thread_reads_anothers_identity(host):
    """What reaches the layers in each thread is that thread's own text, also in one pipeline for all."""
    names = NAMES[:4]
    pipe = make_pipe(host)
    people, handles = attach_all(pipe, host, names)
    prompts = {name: [f"a photo of <{name}>"] for name in names}
    threads = {}

    def work(name):
        threads[name] = threading.get_ident()
        for number in range(3):
            draw_image(pipe, handles[name].encode(prompts[name]), number)

    with record_contexts(pipe.unet) as readings:
        run_threads(work, names)
    for name in names:
        mine = [reading for reading in readings if reading.thread == threads[name]]
        conditioner = IdentityConditioner(host, [people[name]])
        assert len(mine) > 10
        for reading in mine:
            wanted = conditioner.encode_prompts(prompts[name], int(reading.timestep)).states.chunk(2, -1)[reading.half]
            assert torch.equal(reading.texts[1:], wanted)
    for handle in handles.values():
        handle.detach()


@pytest.mark.parametrize(
    ("other", "own_scheduler"),
    [(StableDiffusionPipeline, False), (StableDiffusionImg2ImgPipeline, False), (StableDiffusionPipeline, True)],
)
def test_a_call_waits_for_another_with_its_scheduler(host, other, own_scheduler):
    """Pipelines that share a scheduler, as `Img2Img(**pipe.components)` does, wait for each other."""
    pipe, ada = make_pipe(host), make_identity(host, "ada", 5, 1)
    second = other(**pipe.components, requires_safety_checker=False)
    if own_scheduler:
        second.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    inside, go_on, order = threading.Event(), threading.Event(), []

    def stop(_pipe, step, _t, state):
        if step == 0:
            inside.set()
            assert go_on.wait(60)
        return state

    image = {"image": Image.radial_gradient("L").convert("RGB").resize((24, 24))} if "Img" in other.__name__ else {}
    with sefi.attach(pipe, ada) as handle, sefi.attach(second, ada), ThreadPoolExecutor(2) as pool:
        texts = handle.encode("a photo of <ada>")
        first = pool.submit(lambda: (pipe(**texts, num_inference_steps=2, callback_on_step_end=stop), order.append(1)))
        assert inside.wait(60)
        later = pool.submit(lambda: (second(**texts, **image, num_inference_steps=3), order.append(2)))
        done, _ = wait([later], timeout=60 if own_scheduler else 0.5)
        assert bool(done) == own_scheduler
        go_on.set()
        first.result(60), later.result(60)
    assert order == ([2, 1] if own_scheduler else [1, 2])


@pytest.mark.slow
def test_an_error_in_one_thread_stops_no_other(host):
    pipe = make_pipe(host)
    _, handles = attach_all(pipe, host, NAMES[:2])
    texts = {name: handle.encode(f"a photo of <{name}>") for name, handle in handles.items()}
    wanted = draw_image(pipe, texts["bob"], 5)

    class Stop(Exception):
        pass

    def stop(_pipe, step, _t, state):
        if step == 1:
            raise Stop
        return state

    def work(name):
        if name == "bob":
            return [np.array_equal(draw_image(pipe, texts[name], 5), wanted) for _ in range(4)]
        for _ in range(4):
            with pytest.raises(Stop):
                pipe(**texts[name], **FEW, num_inference_steps=4, callback_on_step_end=stop)
        return [True]

    assert all(all(right) for right in run_threads(work, list(handles)).values())
    for handle in handles.values():
        handle.detach()


# ------------------------------------------------------------------ the pipeline's class while attached


def test_a_pipeline_whose_calls_wait_is_still_its_kind(host):
    pipe = make_pipe(host)
    signature = inspect.signature(pipe.__call__)
    with sefi.attach(pipe, make_identity(host, "ada", 5, 1)) as handle:
        assert isinstance(pipe, StableDiffusionPipeline)
        assert type(pipe).__name__ == "StableDiffusionPipeline"
        assert type(pipe).__module__ == StableDiffusionPipeline.__module__
        assert inspect.signature(pipe.__call__) == signature
        change = AutoPipelineForImage2Image.from_pipe(pipe)
        assert type(change) is StableDiffusionImg2ImgPipeline
        inner = []

        def draw_again(_pipe, step, _t, state):
            if step == 1 and not inner:  # a thread does not wait for itself
                inner.append(pipe(**handle.encode("a photo of <ada>"), **FEW, num_inference_steps=2))
            return state

        texts = handle.encode("a photo of <ada>")
        pipe(**texts, **FEW, num_inference_steps=2, callback_on_step_end=draw_again)
        assert inner
    assert type(pipe) is StableDiffusionPipeline


def test_a_pipeline_saved_while_attached_is_the_same(host, tmp_path):
    pipe = make_pipe(host)
    pipe.save_pretrained(tmp_path / "before")
    with sefi.attach(pipe, make_identity(host, "ada", 5, 1)):
        pipe.save_pretrained(tmp_path / "attached")
    files = sorted(path.relative_to(tmp_path / "before") for path in (tmp_path / "before").rglob("*.*"))
    for file in files:
        if file.suffix != ".json" or file.name == "model_index.json":
            assert (tmp_path / "attached" / file).read_bytes() == (tmp_path / "before" / file).read_bytes(), file


@pytest.mark.slow
def test_nested_attachments_in_any_order(host):
    pipe = make_pipe(host)
    before = draw(pipe, prompt="a photo of a dog", num_inference_steps=3)
    handles = [sefi.attach(pipe, make_identity(host, name, 2 + i, i)) for i, name in enumerate(NAMES[:3])]
    images = [draw_image(pipe, h.encode(f"a photo of <{n}>"), 1) for h, n in zip(handles, NAMES[:3], strict=True)]
    for number in (1, 0, 2):
        assert count_hooks(pipe.unet)
        assert np.array_equal(
            draw_image(pipe, handles[number].encode(f"a photo of <{NAMES[number]}>"), 1), images[number]
        )
        handles[number].detach()
        handles[number].detach()  # twice is once
    assert count_hooks(pipe.unet) == 0
    assert type(pipe) is StableDiffusionPipeline
    assert np.array_equal(draw(pipe, prompt="a photo of a dog", num_inference_steps=3), before)


@pytest.mark.parametrize("where", ["encode", "call", "block"])
def test_an_exception_leaves_nothing(host, where):
    pipe = make_pipe(host)
    pipe.scheduler = PNDMScheduler.from_config(host.scheduler.config, skip_prk_steps=True)
    before = draw(pipe, prompt="a photo of a dog", num_inference_steps=4)

    def fail(*_args):
        raise KeyboardInterrupt

    def use(handle):
        handle.encode("a photo of <eve>" if where == "encode" else "a photo of <ada>")
        texts = handle.encode("a photo of <ada>")
        draw(pipe, **texts, num_inference_steps=4, **({"callback_on_step_end": fail} if where == "call" else {}))
        raise KeyboardInterrupt

    with (
        pytest.raises((KeyboardInterrupt, sefi.SefiError)),
        sefi.attach(pipe, make_identity(host, "ada", 5, 1)) as handle,
    ):
        use(handle)
    assert count_hooks(pipe.unet) == 0
    assert type(pipe) is StableDiffusionPipeline
    assert np.array_equal(draw(pipe, prompt="a photo of a dog", num_inference_steps=4), before)
