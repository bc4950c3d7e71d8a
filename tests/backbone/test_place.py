"""A model moves as torch's do, is shown in one line, and has a dtype that its device is good at."""

import pytest
import torch

from sefi.backbone.bundle import parse_dtype
from sefi.backbone.open import MODELS, choose_dtype, open_backbone
from sefi.core.errors import BackboneError, ConfigError


def test_moving_changes_every_network_in_place(backbone):
    before = {name: next(network.parameters()).dtype for name, network in backbone.networks.items()}
    assert set(before.values()) == {torch.float32}
    try:
        assert backbone.to(dtype=torch.bfloat16) is backbone
        assert {next(network.parameters()).dtype for network in backbone.networks.values()} == {torch.bfloat16}
        assert backbone.to("cpu").dtype == torch.bfloat16
    finally:
        backbone.to(dtype=torch.float32)


def test_a_device_that_is_not_there_is_refused_and_nothing_moves(backbone):
    for device in ("tpu", "cuda:99"):
        with pytest.raises(BackboneError):
            backbone.to(device, torch.bfloat16)
    assert backbone.dtype == torch.float32


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_may_be_given_by_its_name(backbone, name):
    assert parse_dtype(name) == getattr(torch, name) == parse_dtype(getattr(torch, name))
    try:
        assert backbone.to(dtype=name).dtype == getattr(torch, name)
    finally:
        backbone.to(dtype=torch.float32)


@pytest.mark.parametrize("dtype", ["bf16", "auto", "int8", "", 3, float, torch.int8, torch.complex64])
def test_another_dtype_is_refused_before_anything_is_opened(backbone, dtype):
    for place in (lambda: open_backbone(dtype=dtype), lambda: backbone.to(dtype=dtype)):
        with pytest.raises(ConfigError, match="There is no dtype") as error:
            place()
        assert "float32, bfloat16, float16" in error.value.remedy
    assert backbone.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.world
def test_the_embedded_model_opens_in_a_dtype_by_its_name():
    assert open_backbone(dtype="bfloat16").dtype == torch.bfloat16


def test_the_dtype_of_a_device():
    assert choose_dtype(torch.device("cuda")) == torch.bfloat16
    assert choose_dtype(torch.device("cpu")) == choose_dtype(torch.device("mps")) == torch.float32


@pytest.mark.world
def test_the_embedded_model_in_one_line():
    assert (MODELS / "tiny-portraits").is_dir()
    assert repr(open_backbone(dtype=None)) == "<Backbone 'tiny-portraits': tiny, 192 px, float32 on cpu>"
