"""FastComposer's weights fit the model that they were trained for at any precision, and no other."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sefi.api import find_evaluators
from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, override
from sefi.core.errors import ConfigError
from sefi.diffusion.composer import describe_model
from sefi.methods import METHODS, PRESETS
from sefi.methods.fastcomposer import SHIPPED

PARTS = ("text_encoder", "unet", "vae")


@pytest.fixture(scope="module", params=["shipped", "signed"])
def config(request: pytest.FixtureRequest, embedded: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The shipped weights, which have the model's name alone, and the same as they would be written now."""
    if request.param == "shipped":
        return PRESETS["fastcomposer"]
    file: Path = tmp_path_factory.mktemp("composer") / "signed.safetensors"
    save_file(load_file(SHIPPED), file, describe_model(embedded))
    return override(PRESETS["fastcomposer"], [f"compose.weights={file}"])


def copy_model(embedded: Backbone, change: Callable[[nn.Module], object], name: str) -> Backbone:
    """Return the embedded model as a folder of the user's would open, with changed parts and signed by itself."""
    parts = {part: copy.deepcopy(getattr(embedded, part)) for part in PARTS}
    with torch.no_grad():
        for part in parts.values():
            change(part)
    return replace(embedded, **parts, source="folder", fingerprint=name, signature=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_copy_in_another_number_type_is_the_same_model(
    embedded: Backbone, config: Config, dtype: torch.dtype
) -> None:
    """Its name may differ, because float16 copies are rounded twice."""
    model = copy_model(embedded, lambda part: nn.Module.to(part, dtype), "tiny:192:0123456789abcdef")
    METHODS["fastcomposer"].check(model, config, find_evaluators(embedded))


def test_another_model_of_the_same_name_is_refused(embedded: Backbone, config: Config) -> None:
    def change(part: nn.Module) -> None:
        for name, weight in part.named_parameters():
            if ".mid_block." in f".{name}":
                weight.add_(0.01)

    model = copy_model(embedded, change, embedded.fingerprint)
    with pytest.raises(ConfigError, match="was trained for"):
        METHODS["fastcomposer"].check(model, config, find_evaluators(embedded))
