"""The embedded model, and the same in half precision; every test must leave them as they were."""

import pytest
import torch

import sefi
from sefi.backbone.bundle import Backbone


@pytest.fixture(scope="package")
def embedded() -> Backbone:
    return sefi.open_backbone()


@pytest.fixture(scope="package")
def half() -> Backbone:
    return sefi.open_backbone(dtype=torch.bfloat16)


@pytest.fixture(scope="package")
def narrow() -> Backbone:
    return sefi.open_backbone(dtype=torch.float16)
