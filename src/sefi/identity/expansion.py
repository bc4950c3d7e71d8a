"""One class word to the tokens of every stage: ProSpect's transformer block, which the paper uses."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention with an inner width that need not be the token's."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.to_query = nn.Linear(width, inner, bias=False)
        self.to_key = nn.Linear(width, inner, bias=False)
        self.to_value = nn.Linear(width, inner, bias=False)
        self.to_out, self.dropout = nn.Sequential(nn.Linear(inner, width)), dropout

    def forward(self, x: Tensor, context: Tensor, random: torch.Generator | None) -> Tensor:
        """`x [batch, length, width]` reads `context [batch, length, width]`."""
        query, key, value = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.to_query, x), (self.to_key, context), (self.to_value, context))
        )
        read = F.scaled_dot_product_attention(query, key, value)
        return drop_out(self.to_out(read.transpose(1, 2).flatten(2)), self.dropout, random)


class GatedLinear(nn.Module):
    """GEGLU (Shazeer 2020): half of the outputs gate the other half."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to `[..., inner]`."""
        value, gate = self.project(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class ExpansionModule(nn.Module):
    """Class-word embedding to `[stages, slots, width]` (paper section 3.2; block from ProSpect, which has one slot).

    With its one input token both softmaxes are over a single word, so the query and key weights get no gradient.
    The last layer has no residual: the output starts at random values unless it is zeroed (`residual_init`).
    """

    def __init__(
        self, width: int, stages: int, slots: int = 2, heads: int = 8, head_width: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.stages, self.slots = stages, slots
        self.norm_self, self.norm_cross, self.norm_feed = (nn.LayerNorm(width) for _ in range(3))
        self.attend_self = Attention(width, heads, head_width, dropout)
        self.attend_cross = Attention(width, heads, head_width, dropout)
        self.gate = GatedLinear(width, 4 * width)
        self.dropout = dropout
        self.last = nn.Linear(4 * width, slots * stages * width)

    def forward(self, class_token: Tensor, random: torch.Generator | None = None) -> Tensor:
        """`class_token [width]` to `[stages, slots, width]`: the tokens of every stage.

        Args:
            random: draws which numbers drop out; None drops none.
        """
        raw = class_token[None, None]
        x = self.norm_self(raw)
        x = self.attend_self(x, x, random) + raw
        x = self.attend_cross(self.norm_cross(x), raw, random) + x
        x = self.last(drop_out(self.gate(self.norm_feed(x)), self.dropout, random))
        return x.view(self.stages, self.slots, -1)

    def zero_last(self) -> None:
        """Make the output exactly 0, for a start at the class word."""
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.bias.zero_()

    def draw_first(self, random: torch.Generator) -> None:
        """Fill the linear layers with the first values that torch gives them, drawn from `random`."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=random)
                if isinstance(layer.bias, nn.Parameter):  # pyright: ignore[reportUnnecessaryIsInstance]
                    bound = 1 / math.sqrt(layer.in_features)
                    nn.init.uniform_(layer.bias, -bound, bound, generator=random)
            elif isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()


def drop_out(x: Tensor, share: float, random: torch.Generator | None) -> Tensor:
    """Zero this share of the numbers and scale the others up; without a generator nothing drops out.

    `torch.nn.Dropout` draws from torch's global state, which all threads share; this gives the same numbers.
    """
    if random is None or not share:
        return x
    return x * torch.empty_like(x).bernoulli_(1 - share, generator=random).div_(1 - share)
