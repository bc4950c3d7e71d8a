"""A model moves as torch's do, is shown in one line, and has a dtype that its device is good at."""

import copy
from dataclasses import replace

import pytest
import torch

from sefi.backbone.bundle import parse_device, parse_dtype
from sefi.backbone.open import MODELS, check_calls, choose_dtype, open_backbone
from sefi.core.errors import BackboneError, ConfigError


@pytest.fixture
def backbone(backbone):
    """A copy of the tiny model: what is rounded to another type stays so, for every test after it too."""
    return replace(backbone, **{name: copy.deepcopy(network) for name, network in backbone.networks.items()})


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


NOWHERE = ("xpu", "meta", "hpu", "cpu:1", "cuda:99", "mps:1", "tpu", "CPU", "", "cuda:-1")


@pytest.mark.parametrize("device", NOWHERE)
def test_devices_that_are_not_there_are_refused_with_those_that_are(backbone, device):
    for place in (lambda: backbone.to(device), lambda: open_backbone(device=device)):
        with pytest.raises(BackboneError, match="This machine has no device") as error:
            place()
        assert repr(device) in error.value.problem
        assert "cpu" in error.value.remedy
    assert backbone.device == torch.device("cpu")
    assert not any(weight.is_meta for network in backbone.networks.values() for weight in network.parameters())


def test_numbers_of_cuda_devices_are_those_that_torch_finds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [parse_device(name).index for name in ("cuda", "cuda:0", "cuda:1")] == [None, 0, 1]
    with pytest.raises(BackboneError, match="no device 'cuda:2'") as error:
        parse_device("cuda:2")
    assert "cpu, cuda:0, cuda:1" in error.value.remedy


@pytest.mark.parametrize("name", ["predict", "encode_text", "decode", "encode_image"])
def test_too_little_memory_for_a_model_is_no_fault_of_the_model(backbone, monkeypatch, name):
    def fail(*_arguments, **_options):
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(type(backbone), name, fail)
    with pytest.raises(BackboneError, match=r"not enough memory to run .* \(.*allocate memory") as error:
        check_calls(backbone)
    assert error.value.lacks_memory


def test_another_fault_of_a_model_is_its_own(backbone, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(type(backbone), "decode", fail)
    with pytest.raises(BackboneError, match=r"The VAE of .* fails: .*cannot be multiplied") as error:
        check_calls(backbone)
    assert not error.value.lacks_memory


def test_too_little_memory_where_a_model_is_moved_to_is_said(backbone, monkeypatch):
    def fail(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(backbone.vae, "to", fail)
    with pytest.raises(BackboneError, match="not enough memory to move the model to cpu") as error:
        backbone.to("cpu")
    assert error.value.lacks_memory


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
