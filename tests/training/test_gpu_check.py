"""What `experiments/gpu.py check` says of trainings on a device is said here of the CPU: they have the same bits."""

import importlib.util
from pathlib import Path

import pytest

from sefi.backbone.open import open_backbone

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.slow
@pytest.mark.world
def test_resumed_and_repeated_trainings_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("gpu", SCRIPTS / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    found = gpu.compare_repeated(open_backbone())
    kinds = [f"{name}, {kind}" for name in ("default", "paper") for kind in ("resumed", "repeated")]
    assert found == {f"{kind}, relative difference": 0 for kind in kinds}
    assert gpu.PARTS["check"] is gpu.compare_all
