"""The trainable table: stage x {key, value} x width."""

import torch
from torch import Tensor, nn

from sefi.backbone.quiet import LOADING
from sefi.core.config import LearnConfig
from sefi.core.streams import stream
from sefi.identity.expansion import ExpansionModule


class IdentityTokens(nn.Module):
    """Tokens of every stage, as free numbers or through the expansion module.

    Args:
        class_token: the token-table row of the class word, `[width]`.
        config: `expansion`, `residual_init`, `stages`, `split_key_value`, `dropout`.
        seed: of the module's first weights, or of the direct table's.
    """

    class_token: Tensor

    def __init__(self, class_token: Tensor, config: LearnConfig, seed: int) -> None:
        super().__init__()
        self.register_buffer("class_token", class_token.detach().float().clone())
        self.residual, self.norm_limit = config.residual_init, config.token_norm_limit
        self.split = config.split_key_value
        self.module: ExpansionModule | None = None
        self.table: nn.Parameter | None = None
        with LOADING:
            if config.expansion == "module":
                self.module = create_expansion_module(len(class_token), config, seed)
            else:
                self.table = nn.Parameter(create_first_table(self.class_token, config, seed))
        if self.module is not None and config.residual_init:
            self.module.zero_last()

    def forward(self, random: torch.Generator | None = None) -> Tensor:
        """`[stages, 2, width]`; `random` draws the module's dropout, None does without."""
        raw = self.module(self.class_token, random) if self.module is not None else self.table
        assert raw is not None
        tokens = self.class_token + raw if self.residual else raw
        return tokens if self.split else tokens.expand(-1, 2, -1)

    def after_step(self) -> None:
        """After an update: the limit of the tokens' norm, if there is one."""
        self.limit_norm(self.norm_limit)

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Nothing: the tokens are all that is kept."""
        return {}

    @torch.no_grad()
    def limit_norm(self, limit: float | None) -> None:
        """Shrink direct tokens that are longer than `limit` times the class word; the module's are left alone."""
        if limit is None or self.table is None:
            return
        base = self.class_token if self.residual else torch.zeros_like(self.class_token)
        tokens = self.table + base
        longest = limit * self.class_token.norm()
        self.table.copy_(tokens * (longest / tokens.norm(dim=-1, keepdim=True)).clamp(max=1) - base)


class FreeVectors(nn.Module):
    """Free vectors in the placeholder's place, the same for every stage, key and value.

    Args:
        class_token: row of the class word, `[width]`.
        first: where the vectors start, `[vector, width]`.
        then_class: the class word stands behind them and stays as it is.
    """

    class_token: Tensor

    def __init__(self, class_token: Tensor, first: Tensor, *, then_class: bool = False) -> None:
        super().__init__()
        self.register_buffer("class_token", class_token.detach().float().clone())
        with LOADING:
            self.table = nn.Parameter(first.detach().float().clone())
        self.then_class = then_class

    def forward(self, random: torch.Generator | None = None) -> Tensor:
        """`[1, 2, vector, width]`, the class word counted; nothing is random."""
        rows = torch.cat([self.table, self.class_token[None]]) if self.then_class else self.table
        return rows.expand(1, 2, -1, -1)

    def after_step(self) -> None:
        """Nothing to do after an update."""

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Nothing: the vectors are all that is kept."""
        return {}


def create_expansion_module(width: int, config: LearnConfig, seed: int) -> ExpansionModule:
    """An expansion module whose first weights depend on the seed alone."""
    with torch.device("meta"):
        module = ExpansionModule(width, config.stages, count_slots(config), dropout=config.dropout)
    module.to_empty(device="cpu").float().draw_first(stream(seed, "expansion"))
    return module


def count_slots(config: LearnConfig) -> int:
    """Tokens that are learned for a stage: key and value, or one for both."""
    return 2 if config.split_key_value else 1


def create_first_table(class_token: Tensor, config: LearnConfig, seed: int) -> Tensor:
    """Zeros on top of the class word, or the class word with a little noise that tells the slots apart."""
    shape = (config.stages, count_slots(config), len(class_token))
    if config.residual_init:
        return torch.zeros(shape, dtype=torch.float32)
    noise = torch.randn(shape, generator=stream(seed, "tokens"), dtype=torch.float32)
    return class_token + 0.1 * class_token.std() * noise


def count_module_weights(width: int, config: LearnConfig) -> int:
    """Weights of the expansion module that these settings need; 0 for direct tokens."""
    if config.expansion == "direct":
        return 0
    with torch.device("meta"):
        return sum(p.numel() for p in ExpansionModule(width, config.stages, count_slots(config)).parameters())
