"""The state of a training in one safetensors file, so that a killed training resumes with the same bits."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from sefi.core.config import Config, drop_other_names, list_sections
from sefi.core.errors import ConfigError
from sefi.core.files import CHECKPOINT_KEY as KEY, FileKind, check_replaceable, fit_stem, write_file
from sefi.core.reading import (
    FLOATS,
    InvalidFileError,
    Limits,
    check_shapes,
    parse_object,
    read_layout,
    read_tensors,
    translate_file_errors,
)
from sefi.core.text import dump_json

# All of Stable Diffusion with its moments takes 12 GB; methods count their updates in integers.
LIMITS = Limits(size=32 * 2**30, dtypes=FLOATS | {"I64"})
MOMENTS = ("exp_avg", "exp_avg_sq")
# Pairs, as the order of the names is that of the result's; JSON has them as lists.
NUMBERS = TypeAdapter(Annotated[list[tuple[str, FiniteFloat]], Field(max_length=64)], config=ConfigDict(strict=True))


STRIKES = 3  # losses or gradients that are not finite, after which a training ends


@dataclass
class Recovery:
    """What a training did to go on; it is saved with it, so that a resumed one does the same.

    Attributes:
        strikes: the steps whose loss or gradients were not finite.
        parts: into how many parts the samples of a step are split, for want of memory.
        good_step: the last step whose state is known to be good; its loss and gradients were finite.
        good: weights and optimiser state before that step, named as in a checkpoint; empty where they are large.
    """

    strikes: list[int] = field(default_factory=list)
    parts: int = 1
    good_step: int = 0
    good: dict[str, Tensor] = field(default_factory=dict)


class SavedTraining(NamedTuple):
    """What a checkpoint holds besides weights and optimiser state: next step, best so far, the last step's numbers."""

    step: int
    best: dict[str, Tensor]
    numbers: dict[str, float]
    recovery: Recovery


def save_training(  # noqa: PLR0913
    path: Path,
    weights: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    training_key: dict[str, Any],
    best: dict[str, Tensor] | None = None,
    *,
    numbers: Mapping[str, float] | None = None,
    recovery: Recovery | None = None,
) -> None:
    """Write weights, optimiser state, step, key and the best so far, atomically.

    Args:
        training_key: what identifies the training, as plain values.
        numbers: of the last step, by name: where no step is left, the result still has them.

    Raises:
        OutputError: it cannot be written, or a file that is no checkpoint is there.
    """
    recovery = recovery or Recovery()
    tensors = collect_state(weights, optimiser)
    tensors |= {f"best.{k}": v for k, v in (best or {}).items()}
    tensors |= {f"good.{k}": v for k, v in recovery.good.items()}
    apart = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    saved = {"step": step, "settings": training_key, "numbers": list((numbers or {}).items())}
    saved |= {"strikes": recovery.strikes, "parts": recovery.parts, "good_step": recovery.good_step}
    about = {KEY: dump_json(saved, sort_keys=True)}
    check_replaceable(path, FileKind.CHECKPOINT, overwrite=True)
    write_file(path, lambda partial: save_file(apart, partial, metadata=about))


def load_training(
    path: Path, weights: nn.Module, optimiser: torch.optim.Optimizer, training_key: dict[str, Any]
) -> SavedTraining:
    """Restore weights and optimiser of a training in place; return the rest of it.

    Everything is checked before anything is restored: after an error weights and optimiser are as before.

    Raises:
        ConfigError: the file is damaged, no checkpoint, or of another training.
    """
    with translate_file_errors(path, ConfigError, "is no checkpoint of a training", REMOVE):
        metadata, tensors = read_tensors(path, LIMITS, as_views=True)  # `restore_state` copies them
        about = parse_object(metadata[KEY])
        if differences := describe_differences(about["settings"], training_key):
            raise make_other_training_error(path, differences)
        step = about["step"]
        if type(step) is not int or step < 0:
            raise InvalidFileError("it states no step")
        numbers = dict(NUMBERS.validate_json(dump_json(about.get("numbers", []))))  # earlier versions saved none
        best, good = (
            {name: view.clone() for name, view in select_group(tensors, group).items()} for group in ("best.", "good.")
        )
        state = {name: value for name, value in tensors.items() if not name.startswith(("best.", "good."))}
        check_training_numbers(tensors)
        check_state(state, weights, optimiser)
        if good:
            check_state(good, weights, optimiser)
        check_best(best, step)
        recovery = parse_recovery(about, step, good)
        restore_state(state, weights, optimiser)
    return SavedTraining(step, best, numbers, recovery)


def parse_recovery(about: Mapping[str, Any], step: int, good: dict[str, Tensor]) -> Recovery:
    """Return what a checkpoint states of strikes, parts and the last good state; earlier versions state nothing.

    Raises:
        InvalidFileError: it states what cannot be.
    """
    strikes, parts, good_step = about.get("strikes", []), about.get("parts", 1), about.get("good_step", 0)
    counts = [*strikes, parts, good_step] if isinstance(strikes, list) else [None]
    if not all(type(count) is int and count >= 0 for count in counts) or parts < 1 or len(strikes) > STRIKES:
        raise InvalidFileError("what it states of strikes, parts or its good state is damaged")
    if good_step > step or any(strike >= step for strike in strikes):
        raise InvalidFileError("its strikes or its good state are of steps that were not made")
    return Recovery(list(strikes), parts, good_step, good)


def collect_state(weights: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of weights and optimiser as they are, by their names in a checkpoint."""
    tensors = {f"weights.{name}": value for name, value in weights.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors


def check_state(tensors: Mapping[str, Tensor], weights: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Check that tensors of a checkpoint are those of these weights and this optimiser, and nothing else.

    Raises:
        InvalidFileError: names what is not.
        ValueError: a parameter's number is none.
    """
    weight_tensors = select_group(tensors, "weights.")
    state = collect_optimiser_state(select_group(tensors, "adam."), optimiser)
    check_shapes(weight_tensors, weights.state_dict())
    if strange := len(tensors) - len(weight_tensors) - sum(map(len, state.values())):
        raise InvalidFileError(f"it has {strange} tensors that no training has")


def restore_state(tensors: Mapping[str, Tensor], weights: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Give weights and optimiser copies of the tensors that `collect_state` returned; its settings stay."""
    weights.load_state_dict(select_group(tensors, "weights."))
    state = collect_optimiser_state(select_group(tensors, "adam."), optimiser)
    state = {index: {name: value.clone() for name, value in one.items()} for index, one in state.items()}
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def name_checkpoint(path: Path, photos: Sequence[Tensor], training: Sequence[object]) -> Path:
    """Return the checkpoint of an output's training: the same command finds it again, no other does.

    Args:
        photos: `[3, side, side]` each.
        training: whatever else identifies the training.
    """
    content = hashlib.sha256(repr(training).encode())
    for pixels in photos:
        content.update(pixels.contiguous().numpy().data)
    rest = f".{content.hexdigest()[:12]}.unfinished"
    return path.with_name(f".{fit_stem(path, len(rest) + 1)}{rest}")


def find_unfinished(
    path: Path, checkpoint: Path, training_key: Mapping[str, Any], *, resume: bool | None
) -> tuple[int, list[str]]:
    """Return the step that a training of an output goes on at, 0 for a new one, and remarks on what is unfinished.

    Args:
        checkpoint: of this training; removed where `resume` is false.
        resume: None goes on where there is something to go on with, true insists on it.

    Raises:
        ConfigError: `resume` is true, and there is no unfinished training, or one of another photo, model or settings,
            which are named; or the checkpoint cannot be read.
    """
    if resume is False:
        checkpoint.unlink(missing_ok=True)
    if checkpoint.exists():
        step, _ = read_unfinished(checkpoint)
        return step, [f"going on at step {step} of the training in '{checkpoint}'; --no-resume starts again"]
    remarks: list[str] = []
    for other in list_unfinished(path):
        try:
            differences = describe_differences(read_unfinished(other)[1], training_key)
        except ConfigError:
            differences = ["it cannot be read"]
        differences = differences or ["another version of the program saved it"]
        if resume:
            raise make_other_training_error(other, differences)
        remarks.append(f"'{other}' stays, which belongs to another training: {'; '.join(differences)}")
    if resume:
        problem = f"There is no unfinished training of '{path}'."
        raise ConfigError(problem, "Leave --resume out to start one, or name the --out of the one that you mean.")
    return 0, remarks


def list_unfinished(path: Path) -> list[Path]:
    """List the checkpoints of unfinished trainings of an output, the newest first."""
    rest = "." + "?" * 12 + ".unfinished"
    found = path.parent.glob(f".{escape(fit_stem(path, len(rest) + 1))}{rest}")
    return sorted((one for one in found if one.is_file()), key=lambda one: one.stat().st_mtime_ns, reverse=True)


REMOVE = "Remove it to start again, as `sefi learn --no-resume` does."


def read_unfinished(path: Path) -> tuple[int, object]:
    """Return the next step of an unfinished training and what identifies it, without its tensors.

    Raises:
        ConfigError: the file is damaged or no checkpoint.
    """
    with translate_file_errors(path, ConfigError, "is no checkpoint of a training", REMOVE):
        about = parse_object(read_layout(path, LIMITS).metadata[KEY])
        step = about["step"]
        if type(step) is not int or step < 0:
            raise InvalidFileError("it states no step")
        return step, about["settings"]


# How a difference is called that is no setting.
OTHERS = {
    "photo": "it is of another photo",
    "model": "it is on another model",
    "signature": "it is on another model",
    "init": "it started from another identity",
    "encoder": "it started from what another name encoder reads",
    "faces": "the face is in another place of its photo",
    "networks": "its photo was read with other networks",
}
FILE_OF = "file of "  # begins what stands for the content of a file that a setting names
# What every training has; the rest of what identifies it is there only where it reads more.
COMMON = ("config", "seed", "model", "signature", "photo")


def list_read_files(training_key: Mapping[str, Any]) -> list[object]:
    """List what stands in a training's key for the files and identities that it reads, for the checkpoint's name.

    Faces are in no name: their last digits differ between machines, and a checkpoint of other faces is refused.
    """
    return [value for name, value in training_key.items() if name not in (*COMMON, "faces")]


def describe_difference(name: str, value: object, was: object) -> str:
    """Describe what is otherwise than in a saved training."""
    if name.startswith(FILE_OF):
        return f"the file of {name.removeprefix(FILE_OF)} was another"
    return OTHERS.get(name) or f"{name} is {shorten_setting(value)} and was {shorten_setting(was)}"


def describe_differences(saved: object, wanted: Mapping[str, Any]) -> list[str]:
    """List in words what identifies this training and was otherwise in a saved one; empty where it is the same.

    Earlier versions saved the settings of all methods, and stated no signature of the model, no faces, networks or
    contents of files: what is not stated is not compared.

    >>> describe_differences({"config": {"learn": {"steps": 3}}}, {"config": {"learn": {"steps": 4}}})
    ['learn.steps is 4 and was 3']
    """
    if not isinstance(saved, dict):
        return ["it does not say what it is a training of"]
    wanted = json.loads(dump_json(wanted))  # as it would be saved
    if isinstance(saved.get("config"), dict) and isinstance(wanted.get("config"), dict):
        # Options that stand at their defaults are not saved, and a saved one that does not is a difference.
        known = {**wanted["config"]}
        for section, kind in list_sections(Config).items():
            known[section] = dict.fromkeys(kind.model_fields) | known.get(section, {})
        saved = {**saved, "config": drop_other_names(saved["config"], known)}
    later = {name for name in wanted if name in ("signature", "faces", "networks") or name.startswith(FILE_OF)}
    before = flatten_key({"signature": None, **{name: wanted[name] for name in later}, **saved})
    now = flatten_key({"signature": None, **wanted})
    found: dict[str, None] = {}
    for name in dict.fromkeys([*now, *before]):
        was, value = before.get(name, "nothing"), now.get(name, "nothing")
        if was != value:
            found[describe_difference(name, value, was)] = None
    return list(found)


def flatten_key(key: Mapping[str, Any]) -> dict[str, object]:
    """Return what identifies a training with one entry for each setting, by its name as `--set` takes it."""
    flat: dict[str, object] = {name: value for name, value in key.items() if name != "config"}
    config = key.get("config", {})
    for section, values in config.items() if isinstance(config, dict) else [("config", config)]:
        if isinstance(values, dict) and values:
            flat |= {f"{section}.{name}": value for name, value in values.items()}
        else:
            flat[section] = values
    return flat


LONGEST_VALUE = 60  # characters of a setting in a message


def shorten_setting(value: object) -> str:
    """Return a value as a message shows it."""
    text = value if isinstance(value, str) else dump_json(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def make_other_training_error(path: Path, differences: Sequence[str]) -> ConfigError:
    """Return the error that says how the training of a checkpoint differs from the one that is wanted."""
    return ConfigError(
        f"{path} belongs to another training: {'; '.join(differences)}.",
        "Repeat that training, or remove the file to start again, as `sefi learn --no-resume` does.",
    )


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
        if (
            name.removeprefix("good.").startswith("adam.")
            and name.endswith((".exp_avg_sq", ".step"))
            and (tensor < 0).any()
        ):
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
