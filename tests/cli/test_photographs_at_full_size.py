"""Photographs of other packages go through `sefi learn` at Stable Diffusion's sizes, with no file but the model.

The model has the published vocabulary, text width and image size; its layers are few and narrow, with random weights.
"""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from matplotlib import cbook
from PIL import Image
from skimage import data
from transformers import CLIPTextConfig, CLIPTextModel

from sefi.backbone.checkpoint import CONFIGS
from sefi.backbone.open import read_shipped_config
from sefi.backbone.tokenizer import create_clip_tokenizer
from sefi.identity.file import Identity

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CHECKPOINT = "v1-5-pruned-emaonly.safetensors"  # of the README
VAE_BLOCKS = 4  # so that a latent's cell is 8 pixels


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> Path:
    """A folder as diffusers saves Stable Diffusion 1.x."""
    torch.manual_seed(19)
    text = CLIPTextConfig(**read_shipped_config("text_encoder") | {"num_hidden_layers": 1, "intermediate_size": 64})
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=768, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 8, 8, 8), norm_num_groups=4, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * VAE_BLOCKS, up_block_types=("UpDecoderBlock2D",) * VAE_BLOCKS,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=CLIPTextModel(text), tokenizer=create_clip_tokenizer(),
        scheduler=DDPMScheduler.from_pretrained(CONFIGS / "sd1", subfolder="scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("stand-in")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """The photographs of scikit-image, matplotlib and scikit-learn, as files."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "camera", "cat"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        (folder / "hopper.jpg").write_bytes(file.read())
    (package,) = importlib.util.find_spec("sklearn").submodule_search_locations
    for name in ("china.jpg", "flower.jpg"):
        (folder / name).write_bytes((Path(package) / "datasets" / "images" / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("photo", "options"),
    [
        ("astronaut.png", ()),
        ("camera.png", ()),
        ("hopper.jpg", ("--class-word", "woman")),
        ("cat.png", ("--class-word", "cat", "--box", "60,10,250,270")),
        ("flower.jpg", ("--class-word", "flower")),
        ("china.jpg", ("--class-word", "building", "--box", "150,30,380,340")),
    ],
)
def test_a_photograph_is_learned_and_generated(sefi, stand_in, photos, tmp_path, monkeypatch, photo, options):
    monkeypatch.chdir(tmp_path)
    few = ("--steps", 3, "--preset", "paper", "--model", stand_in, "--json")
    learned = sefi("learn", photos / photo, "--name", "me", *options, *few)
    assert learned.exit_code == 0, learned.output
    assert Identity.load("me.safetensors").tokens.shape == (5, 2, 768)
    shown = sefi("generate", "a photo of <me> at the beach", "-i", "me.safetensors", "--model", stand_in,
                 "--set", "generate.steps=2", "--out", "images", "--json")  # fmt: skip
    assert shown.exit_code == 0, shown.output
    (image,) = json.loads(shown.stdout)["images"]
    with Image.open(image["file"]) as made:
        assert made.size == (512, 512)


def test_the_three_lines_of_the_readme(sefi, stand_in, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me.jpg").write_bytes((photos / "hopper.jpg").read_bytes())
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## With a real Stable Diffusion")[2]
    lines = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert len(lines) == 3
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "sefi"
        quick = {"learn": ("--steps", 2), "generate": ("--set", "generate.steps=2")}.get(words[0], ())
        done = sefi(*(stand_in if word == CHECKPOINT else word for word in words), *quick)
        assert done.exit_code == 0, done.output


def test_no_face_in_a_photograph_of_none(sefi, stand_in, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = sefi("learn", photos / "china.jpg", "--name", "me", "--steps", 1, "--model", stand_in)
    assert found.exit_code == 2
    assert "No face was found" in found.stderr
    assert "--box" in found.stderr
    assert list(tmp_path.iterdir()) == []
