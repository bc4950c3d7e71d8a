"""A ControlNet's folder: read as safely as a model's, and only for the UNet that it was made for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.diffusion.test_source_image import make_controlnet, make_image

from sefi.api import generate
from sefi.backbone.bundle import Backbone, set_channel_order
from sefi.backbone.folder import read_controlnet
from sefi.core.config import Config, parse_config
from sefi.core.errors import BackboneError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(params=["backbone", "sdxl"])
def model(request: pytest.FixtureRequest) -> Backbone:
    return request.getfixturevalue(request.param)


@pytest.fixture
def folder(model: Backbone, tmp_path: Path) -> Path:
    make_controlnet(model).save_pretrained(tmp_path / "control")
    return tmp_path / "control"


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.slow_after(1)
def test_the_folder_is_the_network(model: Backbone, folder: Path) -> None:
    found, made = read_controlnet(folder, model), make_controlnet(model)
    for name, value in made.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    assert not found.training
    assert not any(value.requires_grad for value in found.parameters())
    set_channel_order(made)  # as one from a folder has it: in another order, the last bits differ
    config = parse_config({"generate": {"steps": 3}}, Config)
    images = [
        generate("a dog", backbone=model, config=config, control=make_image(64, 48), controlnet=one)[0]
        for one in (folder, made, str(folder))
    ]
    assert len({image.pixels.tobytes() for image in images}) == 1


def test_variants_and_shards_open(model: Backbone, tmp_path: Path) -> None:
    made = make_controlnet(model)
    made.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    made.half().save_pretrained(tmp_path / "half", variant="fp16")
    for name in ("shards", "half"):
        found = read_controlnet(tmp_path / name, model)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.conv_in.weight, made.conv_in.weight.float(), atol=1e-3, rtol=1e-3)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"_class_name": "T2IAdapter"}, "`_class_name` is 'T2IAdapter', not ControlNetModel"),
    ({"in_channels": 9}, "`in_channels` is 9, and this model's UNet has 3"),
    ({"cross_attention_dim": 77}, "`cross_attention_dim` is 77"),
    ({"block_out_channels": [8, 32]}, "`block_out_channels`"),
    ({"layers_per_block": 2}, "`layers_per_block` is 2"),
    ({"layers_per_block": [1, 1]}, "`layers_per_block`"),
    ({"conditioning_embedding_out_channels": [4, 5, 6]}, "a cell of 4 x 4 pixels, and this model's VAE of 2 x 2"),
    ({"conditioning_channels": 1}, "`conditioning_channels`"),
    ({"global_pool_conditions": True}, "`global_pool_conditions`"),
    ({"class_embed_type": "timestep"}, "`class_embed_type` asks for class embeddings"),
    ({"encoder_hid_dim": 5}, "`encoder_hid_dim`"),
    ({"block_out_channels": [10**9, 10**9]}, "`block_out_channels"),
    ({"norm_num_groups": 3}, "`norm_num_groups` is 3"),
    ({"down_block_types": ["os.system"] * 2}, "`down_block_types"),
]


@pytest.mark.parametrize(("values", "named"), REFUSED, ids=[str(values)[:50] for values, _ in REFUSED])
def test_a_network_of_another_model_is_refused(model: Backbone, folder: Path, values: Any, named: str) -> None:
    change(folder, **values)
    with pytest.raises(BackboneError) as caught:
        read_controlnet(folder, model)
    assert named in str(caught.value)


def test_a_network_of_another_family_is_refused(backbone: Backbone, sdxl: Backbone, tmp_path: Path) -> None:
    make_controlnet(backbone).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="`cross_attention_dim`"):
        read_controlnet(tmp_path, sdxl)
    with pytest.raises(BackboneError, match="`cross_attention_dim`"):
        generate("a dog", backbone=sdxl, control=make_image(64, 48), controlnet=make_controlnet(backbone))


def test_damaged_and_foreign_folders_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    make_controlnet(backbone).save_pretrained(whole)

    def refuse(named: str) -> None:
        with pytest.raises(BackboneError, match=named):
            read_controlnet(tmp_path / "changed", backbone)

    def copy() -> Path:
        shutil.rmtree(tmp_path / "changed", ignore_errors=True)
        return Path(shutil.copytree(whole, tmp_path / "changed"))

    refuse(r"holds no config.json")
    (copy() / WEIGHTS).rename(tmp_path / "changed" / "diffusion_pytorch_model.bin")
    refuse("pickled weights only")
    (copy() / WEIGHTS).write_bytes((whole / WEIGHTS).read_bytes()[:-50])
    refuse(WEIGHTS)
    (copy() / "config.json").write_text("{")
    refuse(r"config.json")
    weights = load_file(whole / WEIGHTS)
    save_file(dict(list(weights.items())[3:]), copy() / WEIGHTS)
    refuse("copy or download the model again")
    save_file(weights | {"conv_in.weight": weights["conv_in.weight"] * float("nan")}, copy() / WEIGHTS)
    refuse("not finite")
