"""Copies of a frozen model that share its weights: to hang processors on, to hold other weights, to be trained.

Nothing here changes the model itself, so any number of calls, threads and suspended generators can use one model.
"""

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from sefi.backbone.bundle import Backbone
from sefi.core.errors import BackboneError, IdentityError

PARTS = ("unet", "text_encoder")  # those that some method changes
# The layers of an attention that have weights, by their names in diffusers.
ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")

Part = TypeVar("Part", bound=nn.Module)


def copy_part(part: Part) -> Part:
    """Return a copy of a module tree that shares every weight and buffer with the original.

    The modules are new objects: attention processors, hooks, layers, modes and parameters that are put into the copy
    never reach the original. A tree of Stable Diffusion's size takes milliseconds and no memory for weights.

    Raises:
        BackboneError: a module's `forward` was replaced (offloading, a wrapper), so that a copy would run the original.
    """
    return _copy(part, {}, {})


def copy_with_weights(backbone: Backbone, weights: Mapping[str, Tensor]) -> Backbone:
    """Return a copy of a model in which some parameters hold other values; it shares all others.

    Args:
        weights: by part and parameter name (`unet....`, `text_encoder....`); cast to the part's number type and moved
            to its device.

    Raises:
        IdentityError: the model has no such parameter, or one of another shape.
    """
    there = parameters_of(backbone)
    for name, value in weights.items():
        if name not in there or there[name].shape != value.shape:
            raise IdentityError(
                f"This model has no weight {name!r} of shape {tuple(value.shape)}.",
                "Open the model that the identity was learned on.",
            )
    held = {name: nn.Parameter(v.to(there[name]), requires_grad=False) for name, v in weights.items()}
    return _with_parameters(backbone, held)


def copy_for_training(backbone: Backbone, names: Iterable[str]) -> tuple[Backbone, dict[str, nn.Parameter]]:
    """Return a copy of a model whose weights of these names are its own and want gradients, and those weights.

    Args:
        names: of part and parameter, as `unet.conv_in.weight`.
    """
    there = parameters_of(backbone)
    trained = {name: nn.Parameter(there[name].detach().clone()) for name in names}
    model = _with_parameters(backbone, trained)
    for weight in trained.values():
        weight.requires_grad = True  # a Backbone freezes what it is made of
    return model, trained


def parameters_of(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Every parameter that a method can change, by part and name: `unet....`, `text_encoder....`."""
    return {f"{part}.{name}": p for part in PARTS for name, p in getattr(backbone, part).named_parameters()}


def _with_parameters(backbone: Backbone, weights: Mapping[str, nn.Parameter]) -> Backbone:
    """Return a copy of a model with other parameters in it."""
    there = parameters_of(backbone)
    replaced = {id(there[name]): weight for name, weight in weights.items()}
    return replace(backbone, **{part: _copy(getattr(backbone, part), replaced, {}) for part in PARTS})


def _copy(module: Part, replaced: Mapping[int, nn.Parameter], copies: dict[int, nn.Module]) -> Part:
    """Copy a tree; a module or parameter that stands in two places does so in the copy.

    Args:
        replaced: parameters for the copy, by the `id` of those in the original.
        copies: the modules that are copied already, by the `id` of the original.
    """
    if id(module) in copies:
        return copies[id(module)]  # pyright: ignore[reportReturnType]
    if "forward" in vars(module):
        raise BackboneError(
            f"The model's {type(module).__name__} has another `forward` than its class.",
            "Remove offloading hooks and wrappers from the model first.",
        )
    made = copies[id(module)] = copy(module)
    state = vars(made)
    state.pop("_compiled_call_impl", None)  # it would run the original
    # Lists, dictionaries and sets: hooks, parameters, buffers, and what libraries note about a layer.
    state |= {name: copy(value) for name, value in state.items() if isinstance(value, dict | list | set)}
    state["_parameters"] = {name: replaced.get(id(weight), weight) for name, weight in state["_parameters"].items()}
    state["_modules"] = {
        name: None if child is None else _copy(child, replaced, copies) for name, child in state["_modules"].items()
    }
    return made


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part (`unet`, `text_encoder` ...), by their names in it."""
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}


def cross_attention_names(unet: nn.Module, layers: Iterable[str]) -> list[str]:
    """Names of the weights of these layers (`to_k`, `to_v`, ...) in every cross-attention, biases included."""
    wanted = tuple(f"attn2.{layer}." for layer in layers)
    return [name for name, _ in unet.named_parameters() if any(layer in name for layer in wanted)]
