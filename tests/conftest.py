"""One thread, and a tiny Stable Diffusion of the real classes with sizes that cannot be confused."""

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

# Before torch is loaded, for the programs that tests start too: tests of several people may share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sefi.backbone.bundle import Backbone
from sefi.core.templates import FACE_TEMPLATES
from sefi.world.tokenizing import build_tokenizer

# On a busy machine an example may take a second: a test says what is right, not how fast.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it gives

WIDTH, LENGTH, CHANNELS, LATENT, HEADS = 24, 17, 3, 12, 2
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


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    words = sorted({*PROMPT_WORDS, *" ".join(FACE_TEMPLATES).replace("{}", "").replace("-", " ").split()})
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"), words, LENGTH)


def make_backbone(tokenizer: CLIPTokenizer, prediction_type: str = "epsilon") -> Backbone:
    torch.manual_seed(3)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=31,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    torch.nn.init.normal_(text.get_input_embeddings().weight, std=0.3)
    unet = UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        latent_channels=CHANNELS,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=2 * LATENT,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.5,
    )
    schedule = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
    )
    return Backbone(
        tokenizer,
        text,
        vae,
        unet,
        schedule,
        f"tiny:{WIDTH}:0123456789abcdef",
        WIDTH,
        "tiny",
        2 * LATENT,
        "test",
    )


@pytest.fixture(scope="session")
def backbone(tokenizer: CLIPTokenizer) -> Backbone:
    return make_backbone(tokenizer)


@pytest.fixture
def answer_interrupts() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, also where it is ignored (nohup, background jobs of scripts)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def photo_file(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.radial_gradient("L").convert("RGB").resize((53, 61)).save(path)
    return path


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The made-up run of tests/bench as a module: `make_run`, `make_samples`, `write_run`."""
    file = Path(__file__).parent / "bench" / "synthetic.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
