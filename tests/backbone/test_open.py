"""Opening a model folder: what comes out, and what is refused with which words."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from sefi.api import find_evaluators
from sefi.backbone import open as opener
from sefi.backbone.bundle import ModelParts
from sefi.backbone.checkpoint import write_checkpoint
from sefi.backbone.open import is_emulated, open_backbone
from sefi.backbone.weights import copy_for_training, copy_with_weights
from sefi.core.errors import BackboneError
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS

INDEX = "model_index.json"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_a_number_format_that_the_processor_lacks_is_known_to_be_slow(dtype: torch.dtype, name: str) -> None:
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")()
    assert is_emulated(dtype, torch.device("cpu")) is not supported
    assert not is_emulated(dtype, torch.device("cuda"))
    assert not is_emulated(torch.float32, torch.device("cpu"))


def test_every_size_is_read_from_the_model(folder: Path) -> None:
    backbone = open_backbone(str(folder))
    assert (backbone.token_width, backbone.text_length) == (24, 13)
    assert (backbone.latent_channels, backbone.latent_size, backbone.latent_factor) == (3, 8, 4)
    assert (backbone.resolution, backbone.num_train_timesteps) == (32, 1000)
    assert (backbone.family, backbone.prediction_type) == ("tiny", "v_prediction")
    assert (backbone.source, backbone.is_embedded, find_evaluators(backbone)) == (str(folder), False, None)


def test_everything_is_frozen(folder: Path) -> None:
    backbone = open_backbone(str(folder))
    for part in (backbone.text_encoder, backbone.vae, backbone.unet):
        assert not part.training
        assert not any(weight.requires_grad for weight in part.parameters())


def test_weights_survive_the_round_trip(folder: Path, parts: ModelParts) -> None:
    backbone = open_backbone(str(folder))
    for name, weight in parts.unet.state_dict().items():
        assert torch.equal(backbone.unet.state_dict()[name], weight)


def test_channels_are_last_in_memory_and_nothing_else_changes(folder: Path, parts: ModelParts) -> None:
    backbone = open_backbone(str(folder))
    networks = (backbone.unet, backbone.vae)
    last = [weight for network in networks for weight in network.parameters() if weight.dim() == 4]
    assert any(not weight.is_contiguous() for weight in last)
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in last)
    assert backbone.signature is not None
    assert replace(backbone, signature=None).signature.dump() == backbone.signature.dump()

    usual = open_backbone(str(folder))
    for network in (usual.unet, usual.vae):
        network.to(memory_format=torch.contiguous_format)
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    noisy = torch.randn(2, 3, 8, 8, generator=generator)
    found, expected = (
        (one.encode_image(pixels), one.decode(noisy), one.unet(noisy, 7, torch.ones(2, 13, 24)).sample)
        for one in (backbone, usual)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_that_are_trained_lie_in_memory_as_in_their_file(folder: Path) -> None:
    backbone = open_backbone(str(folder))
    names = [f"unet.{name}" for name, weight in backbone.unet.named_parameters() if weight.dim() == 4]
    _, trained = copy_for_training(backbone, names)
    assert trained
    assert all(weight.is_contiguous() for weight in trained.values())


def test_an_opened_model_is_written_as_a_checkpoint_with_the_same_weights(folder: Path, tmp_path: Path) -> None:
    backbone = open_backbone(str(folder))
    write_checkpoint(backbone, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")["model.diffusion_model.input_blocks.0.0.weight"]
    assert torch.equal(stored, backbone.unet.conv_in.weight)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fingerprint_does_not_depend_on_the_number_type(folder: Path, dtype: torch.dtype) -> None:
    backbone = open_backbone(str(folder), dtype=dtype)
    assert backbone.dtype == backbone.vae.dtype == backbone.text_encoder.dtype == dtype
    assert backbone.fingerprint == open_backbone(str(folder)).fingerprint
    family, width, digest = backbone.fingerprint.split(":")
    assert (family, width, len(digest)) == ("tiny", "24", 16)


def test_latents_are_scaled_and_repeatable(folder: Path) -> None:
    backbone = open_backbone(str(folder))
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = backbone.encode_image(pixels, torch.Generator().manual_seed(3))
    assert latents.shape == (2, 3, 8, 8)
    assert torch.equal(latents, backbone.encode_image(pixels, torch.Generator().manual_seed(3)))
    mean = backbone.vae.encode(pixels).latent_dist.mode()
    assert torch.equal(backbone.encode_image(pixels), mean * 0.5)


def test_decoded_images_are_in_range(folder: Path) -> None:
    decoded = open_backbone(str(folder)).decode(torch.randn(2, 3, 8, 8) * 9)
    assert decoded.shape == (2, 3, 32, 32)
    assert decoded.abs().max() <= 1


def test_libraries_are_silent_and_their_settings_come_back(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    open_backbone(str(folder))
    assert capfd.readouterr().err == ""
    after = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    assert before == after


def test_half_precision_files_are_found(copy: Path) -> None:
    for path in [*copy.glob("*/*.safetensors")]:
        path.rename(path.with_name(path.stem + ".fp16.safetensors"))
    assert open_backbone(str(copy)).fingerprint == open_backbone(str(copy)).fingerprint


def refusal(source: Path | str, **options: object) -> str:
    with pytest.raises(BackboneError) as caught:
        open_backbone(str(source), **options)  # type: ignore[arg-type]
    assert caught.value.problem
    assert caught.value.remedy
    return str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    assert "no model at" in refusal(tmp_path / "nowhere")
    # As mistyped as `models/sd15.safetensors` from a wrong folder: it looks like a hub id, and is none.
    assert "no model at" in refusal("nowhere/sd15.safetensors")
    assert "no model at" in refusal("nowhere/sd15.CKPT")


def test_an_unrelated_folder(tmp_path: Path) -> None:
    assert INDEX in refusal(tmp_path)


def test_pickled_weights_only(copy: Path) -> None:
    path = next((copy / "unet").glob("*.safetensors"))
    path.rename(path.with_suffix(".bin"))
    message = refusal(copy)
    assert "pickled" in message
    assert "safetensors" in message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    assert part in refusal(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("kept", [0, 5, 0.5])
def test_truncated_weights(copy: Path, part: str, kept: float) -> None:
    path = next((copy / part).glob("*.safetensors"))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    assert part in refusal(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights(copy: Path, part: str) -> None:
    path = next((copy / part).glob("*.safetensors"))
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, {"format": "pt"})
    assert part in refusal(copy)


def test_weights_of_another_size(copy: Path) -> None:
    edit(copy / "unet" / "config.json", block_out_channels=[16, 32])
    assert "unet" in refusal(copy)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\x01", '"x"'])
def test_damaged_index(copy: Path, content: str) -> None:
    (copy / INDEX).write_text(content)
    assert INDEX in refusal(copy)


@pytest.mark.parametrize("entry", [None, 5, [None, None], ["os", "system"], ["diffusers"], {}])
def test_foreign_classes_are_not_looked_up(copy: Path, entry: object) -> None:
    edit(copy / INDEX, unet=entry)
    assert "unet" in refusal(copy)


@pytest.mark.parametrize("name", ["Trainer", "pipeline", "__name__", "NoSuchTokenizer"])
def test_foreign_tokenizers_are_not_called(copy: Path, name: str) -> None:
    edit(copy / INDEX, tokenizer=["transformers", name])
    assert "tokenizer" in refusal(copy)


def test_an_sdxl_index_needs_both_tokenizers(copy: Path) -> None:
    edit(
        copy / INDEX,
        _class_name="StableDiffusionXLPipeline",
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
    )
    assert "names None as its tokenizer_2" in refusal(copy)


def test_flow_models_have_no_noise_schedule(copy: Path) -> None:
    (copy / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    assert "noise schedule" in refusal(copy)


def test_other_predictions_are_refused(copy: Path) -> None:
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "predicts 'sample'" in refusal(copy)


def test_parts_of_different_models(copy: Path, sd1_parts: ModelParts) -> None:
    sd1_parts.text_encoder.save_pretrained(copy / "text_encoder")
    assert "width" in refusal(copy)


def test_unknown_device(folder: Path) -> None:
    assert "no device 'toaster'" in refusal(folder, device="toaster")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_device(folder: Path) -> None:
    assert "with --device: cpu" in refusal(folder, device="cuda")


def test_a_hub_id_is_not_downloaded_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []
    real = opener.snapshot_download

    def watched(source: str, *, local_files_only: bool, **rest: object) -> str:
        asked.append(local_files_only)
        return real(source, local_files_only=local_files_only, cache_dir=tmp_path, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(opener, "snapshot_download", watched)
    assert "--download" in refusal("nobody/no-such-model")
    assert asked == [True]


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_a_hub_id_of_half_precision_only_is_asked_for_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copy: Path, variant: str
) -> None:
    """The hub's client is replaced by one that copies by the same patterns."""
    for path in [*copy.glob("*/*.safetensors")]:
        path.rename(path.with_name(f"{path.stem}{variant}.safetensors"))
    asked: list[list[str]] = []

    def copied(source: str, *, local_files_only: bool, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(ignore_patterns)
        names = [str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(copy / name, tmp_path / "hub" / name)
        return str(tmp_path / "hub")

    monkeypatch.setattr(opener, "snapshot_download", copied)
    assert open_backbone("somebody/some-model", allow_download=True).token_width == 24
    assert len(asked) == (2 if variant else 1)


@pytest.mark.parametrize("source", ["", "a/b/c", "../x", "~/no/such", "x" * 300, "a\x00b", "~nobody/x"])
def test_odd_names(source: str) -> None:
    refusal(source)


def test_a_missing_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(opener, "MODELS", tmp_path)
    assert "tiny-portraits" in refusal("tiny-portraits")


def test_evaluators_come_with_the_embedded_model_and_its_copies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "tiny-portraits").symlink_to(folder)
    monkeypatch.setattr(opener, "MODELS", tmp_path)
    backbone = open_backbone()
    for model in (backbone, copy_with_weights(backbone, {})):
        assert model.is_embedded
        assert find_evaluators(model) == EMBEDDED_EVALUATORS


def rename_weights(folder: Path, rename: Callable[[str], str]) -> None:
    path = next(folder.glob("*.safetensors"))
    save_file({rename(key): value for key, value in load_file(path).items()}, path, {"format": "pt"})


def test_published_files_use_older_names(copy: Path, folder: Path) -> None:
    """Stable Diffusion 1.x as published: weights named as diffusers and transformers once did."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def vae_name(key: str) -> str:
        for new, old in older.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        return key

    rename_weights(copy / "vae", vae_name)
    rename_weights(copy / "text_encoder", lambda key: "text_model." + key.removeprefix("text_model."))
    found, expected = open_backbone(str(copy)), open_backbone(str(folder))
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(found.encode_image(pixels), expected.encode_image(pixels))
    ids = torch.tensor([[0, 5, 7, 1]])
    assert torch.equal(found.text_encoder(ids)[0], expected.text_encoder(ids)[0])
