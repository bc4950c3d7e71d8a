"""One thread, and a tiny Stable Diffusion of the real classes with sizes that cannot be confused."""

import collections
import functools
import gc
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Before torch is loaded, for the programs that tests start too: tests of several people may share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Help and errors are tested as plain text of 80 columns, also where the caller's variables ask for something else:
# typer takes those of GitHub's workflows for a terminal with colours.
os.environ.pop("COLUMNS", None)
os.environ.pop("TERMINAL_WIDTH", None)
os.environ.pop("FORCE_COLOR", None)
os.environ.pop("PY_COLORS", None)
os.environ.pop("TTY_COMPATIBLE", None)
os.environ.pop("GITHUB_ACTIONS", None)
# No key of an installation, for the programs that tests start too: the marks are the same on every machine.
os.environ["SEFI_KEY_FILE"] = str(Path(__file__).parent / "no-installation.key")

import hypothesis
import torch
import typer.testing
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tests.blocked.block import BLOCK, read_refusals, refuse_to_load
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sefi.backbone.bundle import Backbone, ModelParts, compute_fingerprint
from sefi.core.prompts import FACE_TEMPLATES
from tiny_portraits.text.tokenizing import build_tokenizer

# On a busy machine an example may take a second: a test says what is right, not how fast.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it gives

WIDTH, LENGTH, CHANNELS, LATENT, HEADS = 24, 17, 3, 12, 2
WIDTH_2, POOLED = 40, 20  # of the second text encoder
PROMPT_WORDS = [
    "a",
    "photo",
    "of",
    "person",
    "dog",
    "holding",
    "cup",
    "at",
    "the",
    "beach",
    "and",
    "in",
    "snow",
    "smiling",
    "drawing",
]


torch.load = refuse_to_load
# The tree of commands is the same at every call, and takes longer to build than most refusals.
typer.testing._get_command = functools.cache(typer.testing._get_command)


def spare_what_stays() -> None:
    """Leave out of garbage collection what is there now: half a million objects of libraries that never become free.

    Looking at them again and again took a tenth of the time of the tests.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is thorough, and the later cases of tests that are `slow_after` some, before pytest chooses."""
    cases: collections.Counter[tuple[Path, str]] = collections.Counter()
    for item in items:
        if item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.slow)
        mark = item.get_closest_marker("slow_after")
        if mark is not None and not item.get_closest_marker("slow"):
            test = item.path, getattr(item, "originalname", item.name)
            cases[test] += 1
            if cases[test] > mark.args[0]:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Spare the collected tests too."""
    spare_what_stays()


spare_what_stays()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Allow a test what its marks say, from before its fixtures of any scope until after them."""
    marks = {"loopback": BLOCK["LOOPBACK"], "net": BLOCK["NETWORK"]}
    allowed = [name for mark, name in marks.items() if item.get_closest_marker(mark)]
    os.environ.update(dict.fromkeys(allowed, "1"))
    try:
        return (yield)
    finally:
        for name in allowed:
            del os.environ[name]


@pytest.fixture(autouse=True)
def no_network_and_nothing_unpickled() -> Iterator[None]:
    """Fail a test in which something was refused, also where nobody saw the error."""
    caller = sys.modules.get("huggingface_hub.utils._detect_agent")
    if caller is not None:  # the hub's library asks a server once in a process; every test is to see that
        vars(caller)["_registry"] = None
    yield
    assert read_refusals() == []


@pytest.fixture
def refusals() -> Callable[[], list[str]]:
    """What was refused so far, for a test that tries it on purpose: what is asked for does not fail the test."""
    return read_refusals


@pytest.fixture
def restored_onednn() -> Iterator[None]:
    """Let torch compute with oneDNN again after a test in which that has run out of memory."""
    yield
    torch.backends.mkldnn.set_flags(_enabled=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The clock of durations, which only the test moves."""

    class Clock:
        now = 50.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    words = sorted({*PROMPT_WORDS, *" ".join(FACE_TEMPLATES).replace("{}", "").replace("-", " ").split()})
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"), words, LENGTH)


@pytest.fixture(scope="session")
def tokenizer_2(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """A tokenizer that divides texts as `tokenizer` does, with other ids and another padding, as SDXL's second one."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    start, end, *words = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {word: number for number, word in enumerate([start, end, *reversed(words)])}
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!", model_max_length=LENGTH)


def make_text_encoder(tokenizer: CLIPTokenizer, kind: type = CLIPTextModel, **sizes: int) -> Any:
    settings = {"hidden_size": WIDTH, "intermediate_size": 31, "num_hidden_layers": 2, "num_attention_heads": 3}
    text = kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **settings | sizes,
        )
    )
    torch.nn.init.normal_(text.get_input_embeddings().weight, std=0.3)
    return text


def make_unet(width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=HEADS,
        norm_num_groups=4,
        **more,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=CHANNELS,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=2 * LATENT,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.5,
    )


def make_schedule(prediction_type: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
    )


def make_backbone(tokenizer: CLIPTokenizer, prediction_type: str = "epsilon") -> Backbone:
    torch.manual_seed(3)
    return Backbone(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(tokenizer),
        unet=make_unet(WIDTH),
        vae=make_vae(),
        scheduler=make_schedule(prediction_type),
        family="tiny",
        fingerprint=f"tiny:{WIDTH}:0123456789abcdef",
        resolution=2 * LATENT,
        source="test",
    )


def save_model_folder(backbone: Backbone, folder: Path) -> Path:
    """Write the tiny model in the Stable Diffusion format; return the folder."""
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline"}
    for name in ("tokenizer", "text_encoder", "vae", "unet", "scheduler"):
        part = getattr(backbone, name)
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_sdxl(tokenizer: CLIPTokenizer, tokenizer_2: CLIPTokenizer) -> Backbone:
    """SDXL's parts: two text encoders of different widths, pooled text, sizes as conditions."""
    torch.manual_seed(5)
    sizes = {"hidden_size": WIDTH_2, "num_hidden_layers": 3, "num_attention_heads": 2, "projection_dim": POOLED}
    parts = ModelParts(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        text_encoder=make_text_encoder(tokenizer),
        text_encoder_2=make_text_encoder(tokenizer_2, CLIPTextModelWithProjection, **sizes),
        unet=make_unet(
            WIDTH + WIDTH_2,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + POOLED,
        ),
        vae=make_vae(),
        scheduler=make_schedule(),
        family="sdxl",
    )
    return Backbone(**vars(parts), fingerprint=compute_fingerprint(parts), resolution=2 * LATENT, source="test")


@pytest.fixture(scope="session")
def backbone(tokenizer: CLIPTokenizer) -> Backbone:
    return make_backbone(tokenizer)


@pytest.fixture(scope="session")
def sdxl(tokenizer: CLIPTokenizer, tokenizer_2: CLIPTokenizer) -> Backbone:
    return make_sdxl(tokenizer, tokenizer_2)


@pytest.fixture
def answer_interrupts() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, also where it is ignored (nohup, background jobs of scripts)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def install_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make a package known: a module of its name with a text, and an entry point to a class of it, `Mine`."""
    from sefi.methods import METHODS

    site, modules = tmp_path / "site", set(sys.modules)

    def install(package: str, code: str, method: str = "mine", place: str = "Mine") -> None:
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sefi.methods]\n{method} = {package}:{place}\n")
        (site / f"{package}.py").write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(site)
        METHODS.refresh()

    yield install
    monkeypatch.undo()
    METHODS.refresh()
    for name in set(sys.modules) - modules:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def photo_file(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.radial_gradient("L").convert("RGB").resize((53, 61)).save(path)
    return path


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The made-up run of tests/benchmark as a module: `make_run`, `make_samples`, `write_run`."""
    file = Path(__file__).parent / "benchmark" / "synthetic.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
