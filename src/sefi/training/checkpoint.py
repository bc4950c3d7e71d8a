"""The state of a training in one safetensors file, so that a killed training resumes with the same bits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from sefi.core.config import Config, drop_other_names, list_sections
from sefi.core.errors import ConfigError
from sefi.core.files import CHECKPOINT_KEY as KEY, FileKind, check_replaceable, write_file
from sefi.core.reading import (
    FLOATS,
    InvalidFileError,
    Limits,
    check_shapes,
    parse_object,
    read_tensors,
    translate_file_errors,
)
from sefi.core.text import dump_json

# All of Stable Diffusion with its moments takes 12 GB; methods count their updates in integers.
LIMITS = Limits(size=32 * 2**30, dtypes=FLOATS | {"I64"})
MOMENTS = ("exp_avg", "exp_avg_sq")
# Pairs, as the order of the names is that of the result's; JSON has them as lists.
NUMBERS = TypeAdapter(Annotated[list[tuple[str, FiniteFloat]], Field(max_length=64)], config=ConfigDict(strict=True))


def save_training(
    path: Path,
    weights: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    training_key: dict[str, Any],
    best: dict[str, Tensor] | None = None,
    numbers: Mapping[str, float] | None = None,
) -> None:
    """Write weights, optimiser state, step, key and the best so far, atomically.

    Args:
        training_key: what identifies the training, as plain values.
        numbers: of the last step, by name: where no step is left, the result still has them.

    Raises:
        OutputError: it cannot be written, or a file that is no checkpoint is there.
    """
    tensors = {f"weights.{k}": v for k, v in weights.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in (best or {}).items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    apart = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    saved = {"step": step, "settings": training_key, "numbers": list((numbers or {}).items())}
    about = {KEY: dump_json(saved, sort_keys=True)}
    check_replaceable(path, FileKind.CHECKPOINT, overwrite=True)
    write_file(path, lambda partial: save_file(apart, partial, metadata=about))


def load_training(
    path: Path, weights: nn.Module, optimiser: torch.optim.Optimizer, training_key: dict[str, Any]
) -> tuple[int, dict[str, Tensor], dict[str, float]]:
    """Restore a training in place; return its next step, the best so far and the last step's numbers.

    Everything is checked before anything is restored: after an error weights and optimiser are as before.

    Raises:
        ConfigError: the file is damaged, no checkpoint, or of another training.
    """
    with translate_file_errors(path, ConfigError, "is no checkpoint of a training", "Remove it to start again."):
        metadata, tensors = read_tensors(path, LIMITS)
        about = parse_object(metadata[KEY])
        wanted = json.loads(dump_json(training_key))
        if not is_same_training(about["settings"], wanted):
            raise ConfigError(
                f"{path} belongs to a training with other settings, on another model or of another photo.",
                "Repeat that training, or remove the file to start again.",
            )
        step, weight_tensors = about["step"], select_group(tensors, "weights.")
        if type(step) is not int or step < 0:
            raise InvalidFileError("it states no step")
        numbers = dict(NUMBERS.validate_json(dump_json(about.get("numbers", []))))  # earlier versions saved none
        state, best = collect_optimiser_state(select_group(tensors, "adam."), optimiser), select_group(tensors, "best.")
        check_shapes(weight_tensors, weights.state_dict())
        check_training_numbers(tensors)
        check_best(best, step)
        if strange := len(tensors) - len(weight_tensors) - sum(map(len, state.values())) - len(best):
            raise InvalidFileError(f"it has {strange} tensors that no training has")
        weights.load_state_dict(weight_tensors)
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step, best, numbers


def is_same_training(saved: object, wanted: dict[str, Any]) -> bool:
    """Return whether what identifies a saved training identifies this one.

    Earlier versions saved the settings of all methods, and no signature of the model.
    """
    if not isinstance(saved, dict):
        return False
    if isinstance(saved.get("config"), dict) and "config" in wanted:
        # Options that stand at their defaults are not saved, and a saved one that does not is a difference.
        known = {**wanted["config"]}
        for section, kind in list_sections(Config).items():
            known[section] = dict.fromkeys(kind.model_fields) | known.get(section, {})
        saved = {**saved, "config": drop_other_names(saved["config"], known)}
    return {"signature": wanted.get("signature"), **saved} == {"signature": None, **wanted}


def select_group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def collect_optimiser_state(
    tensors: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """Return Adam's state by number of the parameter, from tensors `NUMBER.NAME`.

    Raises:
        InvalidFileError: there is no such parameter, or a moment is not shaped as its parameter.
        ValueError: a number is none.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        if str(int(index)) != index or not 0 <= int(index) < len(parameters):
            raise InvalidFileError(f"it has a state of parameter {index[:20]}, which the training has not")
        shape = parameters[int(index)].shape if key in MOMENTS else torch.Size()
        if key not in (*MOMENTS, "step") or value.shape != shape:
            raise InvalidFileError(f"{key[:80]!r} is no state of Adam for its parameter")
        state.setdefault(int(index), {})[key] = copy_layout(parameters[int(index)], value)
    if any(len(one) != len(MOMENTS) + 1 for one in state.values()):
        raise InvalidFileError("the state of Adam is incomplete")
    return state


def copy_layout(parameter: Tensor, value: Tensor) -> Tensor:
    """Return the value in the parameter's memory layout: torch's fused optimiser walks through both in memory order.

    With a moment in another layout every weight is moved by another weight's moment, and nothing says so.
    """
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def check_training_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Check that every number is finite, and that no squared gradient is negative: Adam would make NaN of it.

    Raises:
        InvalidFileError: names the first tensor that has another number.
    """
    for name, tensor in tensors.items():
        # Before the first score, the best so far has none: minus infinity, which `check_best` checks.
        if name != "best.numbers" and not torch.isfinite(tensor).all():
            raise InvalidFileError(f"{name[:80]!r} has a number that is not finite")
        if name.startswith("adam.") and name.endswith((".exp_avg_sq", ".step")) and (tensor < 0).any():
            raise InvalidFileError(f"{name[:80]!r} has a negative number")


def check_best(best: Mapping[str, Tensor], step: int) -> None:
    """Check what `BestSoFar.get_state` returned: four numbers and tensors.

    Raises:
        InvalidFileError: the numbers are missing, or count steps that the training has not made.
    """
    if not best:
        return
    numbers = best["numbers"]
    if numbers.shape != (4,) or not torch.isfinite(numbers).all() or not (numbers[1:] >= 0).all():
        raise InvalidFileError("the numbers of the best so far are damaged")
    if float(numbers[1:].max()) > step or not all(name == "numbers" or name.startswith("kept.") for name in best):
        raise InvalidFileError("the best so far is of another training")
