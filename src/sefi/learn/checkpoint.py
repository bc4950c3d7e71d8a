"""A learning run's state in one safetensors file, so that a killed run resumes with the same bits."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sefi.core.errors import ConfigError
from sefi.core.files import CHECKPOINT_KEY as KEY, Kind, check_replaceable, write_file
from sefi.core.json_text import dump_json


def save_run(
    path: Path,
    weights: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    settings: dict[str, Any],
    best: dict[str, Tensor] | None = None,
) -> None:
    """Write weights, optimiser state, step, settings and the best so far, atomically.

    Raises:
        OutputError: it cannot be written, or a file that is no checkpoint is there.
    """
    tensors = {f"weights.{k}": v for k, v in weights.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in (best or {}).items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    apart = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    about = {KEY: dump_json({"step": step, "settings": settings}, sort_keys=True)}
    check_replaceable(path, Kind.CHECKPOINT, overwrite=True)
    write_file(path, lambda partial: save_file(apart, partial, metadata=about))


def load_run(
    path: Path, weights: nn.Module, optimiser: torch.optim.Optimizer, settings: dict[str, Any]
) -> tuple[int, dict[str, Tensor]]:
    """Restore a run in place; returns its next step and the best so far; `ConfigError` if it was another run."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path} is no checkpoint of a learning run.", "Remove it to start anew.") from error
    if not isinstance(about, dict) or not {"step", "settings"} <= about.keys():
        raise ConfigError(f"{path} is no checkpoint of a learning run.", "Remove it to start anew.")
    if about["settings"] != json.loads(dump_json(settings)):
        raise ConfigError(
            f"{path} belongs to a run with other settings, on another model or of another photo.",
            "Repeat that run, or remove the file to start anew.",
        )
    weights.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    return int(about["step"]), {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
