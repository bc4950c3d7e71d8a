"""Single files in the original layout: the same model as the folder, and refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from sefi.backbone import checkpoint
from sefi.backbone.bundle import ModelParts, compute_fingerprint
from sefi.backbone.checkpoint import CONFIGS, read_checkpoint, write_checkpoint
from sefi.backbone.open import open_backbone
from sefi.core.errors import BackboneError


@pytest.fixture(scope="module")
def configs(sd1_parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped configurations, the models' sizes replaced by the tiny ones."""
    root = tmp_path_factory.mktemp("configs")
    folder = Path(shutil.copytree(CONFIGS / "sd1", root / "sd1"))
    sd1_parts.unet.save_config(folder / "unet")
    sd1_parts.vae.save_config(folder / "vae")
    sd1_parts.text_encoder.config.save_pretrained(folder / "text_encoder")
    return root


@pytest.fixture
def tiny_configs(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CONFIGS", configs)


@pytest.fixture(scope="module")
def single(sd1_parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    write_checkpoint(sd1_parts, path)
    return path


@pytest.fixture
def tensors(single: Path) -> dict[str, torch.Tensor]:
    return load_file(single)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_configs")
def test_every_weight_comes_back(single: Path, sd1_parts: ModelParts) -> None:
    found = read_checkpoint(single, torch.float32)
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(sd1_parts, name).state_dict()
        actual = getattr(found, name).state_dict()
        assert expected.keys() == actual.keys()
        assert all(torch.equal(actual[key], weight) for key, weight in expected.items())
    assert compute_fingerprint(found) == compute_fingerprint(sd1_parts)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_configs")
def test_opened_like_a_folder(single: Path) -> None:
    backbone = open_backbone(str(single), dtype=torch.bfloat16)
    assert (backbone.family, backbone.token_width, backbone.text_length) == ("sd1", 768, 77)
    assert backbone.dtype == torch.bfloat16
    assert backbone.scheduler.config["beta_end"] == 0.012


def test_names_that_would_be_unpickled(single: Path, tmp_path: Path) -> None:
    renamed = shutil.copy(single, tmp_path / "model.ckpt")
    assert "Rename it" in refusal(Path(renamed))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_configs")
def test_the_header_says_what_is_predicted(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    save_file(tensors, path, {"modelspec.prediction_type": "v"})
    found = read_checkpoint(path, torch.float32)
    assert found.scheduler.config["prediction_type"] == "v_prediction"


def refusal(path: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        read_checkpoint(path, torch.float32)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + b"\0" * 99, b"\x80\x02}q\x00.", b"\xff" * 50, b"{" * 50])
def test_pickles_and_noise(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert "not a safetensors file" in refusal(path)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
def test_truncated_files(single: Path, tmp_path: Path, share: float) -> None:
    content = single.read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[: int(share * len(content))])
    refusal(path)


def test_a_lora_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_down.alpha": torch.ones(1)}, path)
    assert "LoRA" in refusal(path)


def test_sdxls_refiner_is_not_supported_yet(tmp_path: Path) -> None:
    path = tmp_path / "xl.safetensors"
    save_file({"conditioner.embedders.0.model.x": torch.ones(1)}, path)
    assert "is an SDXL refiner checkpoint, which is not supported yet" in refusal(path)


def test_inpainting_models_are_named(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tensors[checkpoint.INPUT_KEY] = torch.zeros(8, 9, 3, 3)
    path = tmp_path / "inpainting.safetensors"
    save_file(tensors, path)
    assert "9 input channels" in refusal(path)


def test_other_widths_are_named(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tensors[checkpoint.TEXT_KEY] = torch.zeros(8, 2048)
    path = tmp_path / "wide.safetensors"
    save_file(tensors, path)
    assert "2048" in refusal(path)


@pytest.mark.slow_after(1)
@pytest.mark.usefixtures("tiny_configs")
@pytest.mark.parametrize(
    "prefix", ["first_stage_model.decoder.mid", "cond_stage_model.transformer.text_model.final",
               "model.diffusion_model.middle_block.2"]
)  # fmt: skip
def test_incomplete_models(tensors: dict[str, torch.Tensor], tmp_path: Path, prefix: str) -> None:
    kept = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
    path = tmp_path / "incomplete.safetensors"
    save_file(kept, path)
    assert "incomplete.safetensors" in refusal(path)


def test_a_model_of_other_sizes(single: Path) -> None:
    assert "cannot be read" in refusal(single)  # tiny weights, SD 1.x configuration


@pytest.mark.parametrize(
    ("family", "unet", "text", "vae"),
    [
        # SD 1.4 as published; 2.1 as diffusers builds it from the published configuration.
        ("sd1", 859_520_964, 123_060_480, 83_653_863),
        ("sd2", 865_910_724, 340_387_840, 83_653_863),
    ],
)
def test_shipped_configurations_have_the_published_sizes(family: str, unet: int, text: int, vae: int) -> None:
    def weights(model: torch.nn.Module) -> int:
        return sum(weight.numel() for weight in model.parameters())

    folder = CONFIGS / family
    with torch.device("meta"):
        assert weights(UNet2DConditionModel.from_config(config(folder / "unet"))) == unet
        assert weights(AutoencoderKL.from_config(config(folder / "vae"))) == vae
        text_config = CLIPTextConfig(**config(folder / "text_encoder"))
        assert weights(CLIPTextModel(text_config)) == text


def config(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


def test_shipped_schedules() -> None:
    for family, prediction in (("sd1", "epsilon"), ("sd2", "v_prediction")):
        scheduler = DDPMScheduler.from_pretrained(CONFIGS / family, subfolder="scheduler")
        assert scheduler.config["prediction_type"] == prediction
        assert scheduler.alphas_cumprod[-1].item() == pytest.approx(0.0047, abs=1e-4)


PARTS = {"VAE": "first_stage_model.", "text encoder": "cond_stage_model."}


@pytest.mark.usefixtures("tiny_configs")
@pytest.mark.parametrize("missing", [("VAE",), ("text encoder",), ("VAE", "text encoder")])
def test_files_without_a_part_say_which(
    tensors: dict[str, torch.Tensor], tmp_path: Path, missing: tuple[str, ...]
) -> None:
    starts = tuple(PARTS[part] for part in missing)
    path = tmp_path / "unet_only.safetensors"
    save_file({name: value for name, value in tensors.items() if not name.startswith(starts)}, path)
    message = refusal(path)
    assert f"holds no {' and no '.join(missing)}." in message
    assert "whole checkpoint" in message


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_configs")
def test_the_old_names_of_the_text_encoder_are_read(
    tensors: dict[str, torch.Tensor], tmp_path: Path, sd1_parts: ModelParts
) -> None:
    path = tmp_path / "old.safetensors"
    start = "cond_stage_model.transformer."
    old = {name.replace(f"{start}text_model.", start): value for name, value in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, path)
    found = read_checkpoint(path, torch.float32).text_encoder.state_dict()
    expected = sd1_parts.text_encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_configs")
def test_half_precision_files_with_ema_and_counters(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    halves = {name: value.to(torch.bfloat16 if "norm" in name else torch.float16) for name, value in tensors.items()}
    extra = {
        "model_ema.diffusion_modelinput_blocks00weight": torch.full((3,), float("nan")),
        "model_ema.num_updates": torch.tensor(7),
        "alphas_cumprod": torch.rand(1000),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    save_file(halves | extra, path)
    found = read_checkpoint(path, torch.float32)
    assert torch.equal(found.unet.conv_in.weight, halves[checkpoint.INPUT_KEY].float())


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_configs")
def test_weights_that_are_not_finite(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tensors[checkpoint.INPUT_KEY].view(-1)[5] = float("nan")
    path = tmp_path / "nan.safetensors"
    save_file(tensors, path)
    message = refusal(path)
    assert "'conv_in.weight' holds numbers that are not finite" in message
    assert str(path) in message


def test_a_header_of_many_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    save_file({f"t{k}": torch.zeros(0) for k in range(12_000)}, path)
    assert "12,000 tensors" in refusal(path)
