"""Other weights in a frozen part, for a while: to generate with, or to be trained; the part itself comes back."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from sefi.core.errors import IdentityError

# The layers of an attention that have weights, by their names in diffusers.
ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


@contextmanager
def swapped(part: nn.Module, weights: Mapping[str, Tensor]) -> Generator[None]:
    """Within the block the parameters of these names hold other values; on leaving the very same tensors are back.

    Args:
        weights: by parameter name; cast to the part's number type and moved to its device.

    Raises:
        IdentityError: the part has no such parameter, or one of another shape.
    """
    there = dict(part.named_parameters())
    for name, value in weights.items():
        if name not in there or there[name].shape != value.shape:
            raise IdentityError(
                f"This model has no weight {name!r} of shape {tuple(value.shape)}.",
                "Open the model that the identity was learned on.",
            )
    before = {name: there[name].data for name in weights}
    try:
        for name, value in weights.items():
            there[name].data = value.to(before[name])
        yield
    finally:
        for name, value in before.items():
            there[name].data = value


@contextmanager
def trainable(part: nn.Module, names: Iterable[str]) -> Generator[dict[str, nn.Parameter]]:
    """Within the block copies of these weights may be trained in place; on leaving the part is frozen as it was."""
    there = dict(part.named_parameters())
    chosen = {name: there[name] for name in names}
    before = {name: weight.data for name, weight in chosen.items()}
    try:
        for name, weight in chosen.items():
            weight.data = before[name].clone()
            weight.requires_grad = True
        yield chosen
    finally:
        for name, weight in chosen.items():
            weight.data, weight.grad = before[name], None
            weight.requires_grad = False


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part (`unet`, `text_encoder` ...), by their names in it."""
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}


def cross_attention_names(unet: nn.Module, layers: Iterable[str]) -> list[str]:
    """Names of the weights of these layers (`to_k`, `to_v`, ...) in every cross-attention, biases included."""
    wanted = tuple(f"attn2.{layer}." for layer in layers)
    return [name for name, _ in unet.named_parameters() if any(layer in name for layer in wanted)]
