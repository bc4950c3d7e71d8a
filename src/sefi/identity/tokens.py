"""The tokens of an identity: stages, the expansion module, first values, norms, and identities side by side."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.bundle import move_to_device
from sefi.backbone.files import LOADING
from sefi.core.config import LearnSettings
from sefi.core.errors import MethodError
from sefi.core.rng import create_generator


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
        """Let `x [batch, length, width]` read `context [batch, length, width]`."""
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
        """Map `[..., width]` to `[..., inner]`."""
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
        """Map `class_token [width]` to `[stages, slots, width]`, the tokens of every stage.

        Args:
            random: draws which numbers drop out; None drops none.
        """
        raw = class_token[None, None]
        x = self.norm_self(raw)
        x = self.attend_self(x, x, random) + raw
        x = self.attend_cross(self.norm_cross(x), raw, random) + x
        x = self.last(drop_out(self.gate(self.norm_feed(x)), self.dropout, random))
        return x.view(self.stages, self.slots, -1)

    def zero_last_layer(self) -> None:
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
    # Drawn by the CPU, whatever device the numbers are on: the same ones everywhere.
    stays = torch.empty(x.shape, dtype=x.dtype).bernoulli_(1 - share, generator=random).div_(1 - share)
    return x * move_to_device(stays, x.device)


def get_stage(timestep: int, stages: int, num_train_timesteps: int) -> int:
    """Return `floor(stages * t / T)`, clipped: stage 0 is the least noisy.

    Differs: the paper counts its stages from the noisiest, P_1 = stage `stages - 1`.

    >>> [get_stage(t, 5, 1000) for t in (0, 199, 200, 999)]
    [0, 0, 1, 4]
    """
    return min(stages - 1, stages * int(timestep) // num_train_timesteps)


def get_stages(timesteps: Tensor, stages: int, num_train_timesteps: int) -> Tensor:
    """Return the stage of each of the timesteps `[batch]`, whole numbers."""
    return (stages * timesteps // num_train_timesteps).clamp(max=stages - 1)


class IdentityTokens(nn.Module):
    """Tokens of every stage, as free numbers or through the expansion module.

    Args:
        class_token: the token-table row of the class word, `[width]`.
        settings: `expansion`, `residual_init`, `stages`, `vectors`, `split_key_value`, `dropout`, `token_norm_limit`,
            `hold_norm`, `token_average`, `change_limit` and `noise_freedom` of them.
        seed: of the module's first weights, or of the direct table's.
        first: where direct tokens start instead, `[stage, slot, width]` or `[stage, slot, vector, width]`; one slot
            where key and value are one.
    """

    class_token: Tensor
    limits: Tensor | None

    def __init__(self, class_token: Tensor, settings: LearnSettings, seed: int, first: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_token", class_token.detach().float().clone())
        self.residual, self.norm_limit = settings.residual_init, settings.token_norm_limit
        self.held, self.decay = settings.hold_norm, settings.token_average
        self.register_buffer("limits", compute_change_limits(settings), persistent=False)
        self.module: ExpansionModule | None = None
        self.table: nn.Parameter | None = None
        with LOADING:
            if settings.expansion == "module":
                self.module = create_expansion_module(len(class_token), settings, seed)
            else:
                table = create_first_table(self.class_token, settings, seed) if first is None else first.float()
                from_class_word = first is not None and settings.residual_init
                self.table = nn.Parameter(table - self.class_token if from_class_word else table)
        if self.module is not None and settings.residual_init:
            self.module.zero_last_layer()
        # Buffers only where an option needs them: checkpoints of other trainings keep their tensors.
        if self.limits is not None:
            self.register_buffer("origin", self.compute_tokens().detach().clone())
        if self.decay:
            self.register_buffer("average", self.compute_tokens().detach().clone())
            self.register_buffer("averaged", torch.zeros((), dtype=torch.float32))

    def forward(self, random: torch.Generator | None = None) -> Tensor:
        """Return `[stages, 2, width]`, of several vectors `[stages, 2, vector, width]`.

        `random` draws the module's dropout, None does without.
        In evaluation it is the running mean where `token_average` is set.
        """
        use_average = self.decay > 0 and not self.training
        tokens = self.hold_norm(self.get_buffer("average")) if use_average else self.compute_tokens(random)
        return expand_slots(tokens)

    def compute_tokens(self, random: torch.Generator | None = None) -> Tensor:
        """Compute the tokens of this step, `[stages, slots, width]` or `[stages, slots, vector, width]`."""
        raw = self.module(self.class_token, random) if self.module is not None else self.table
        assert raw is not None
        return self.hold_norm(self.class_token + raw if self.residual else raw)

    def hold_norm(self, tokens: Tensor) -> Tensor:
        """Scale tokens `[..., width]` to the norm at which they are held, where they are.

        v = r u / |u| has no gradient along u, so that steps change the direction alone (DTI, ICLR 2026).
        """
        return F.normalize(tokens, dim=-1) * self.compute_held_norm() if self.held else tokens

    def compute_held_norm(self) -> Tensor:
        """Return the norm at which tokens are held: `token_norm_limit` times the class word's, or the class word's."""
        return (self.norm_limit or 1.0) * self.class_token.norm()

    @torch.no_grad()
    def after_step(self) -> None:
        """Apply the limits of the norm and of the way from the start, and the running mean, after an update."""
        if self.table is not None and (self.held or self.limits is not None):
            base = self.class_token if self.residual else torch.zeros_like(self.class_token)
            self.table.copy_(self.limit_change(self.compute_tokens()) - base)
        if not self.held:
            self.limit_norm(self.norm_limit)
        if self.decay:
            # The first values weigh less (as in tf.train.ExponentialMovingAverage): the start is soon forgotten.
            steps = self.get_buffer("averaged").add_(1)
            decay = torch.minimum(torch.full_like(steps, self.decay), (1 + steps) / (10 + steps))
            self.get_buffer("average").lerp_(self.compute_tokens(), (1 - decay).item())

    def limit_change(self, tokens: Tensor) -> Tensor:
        """Move tokens `[stage, slot, ..., width]` that are too far from their start back towards it.

        Free tokens go back on the straight line, held ones on the sphere, by the angle whose chord is the limit.
        """
        if self.limits is None:
            return tokens
        by_stage = self.limits.view(-1, *[1] * (tokens.dim() - 1))
        origin, longest = self.get_buffer("origin"), by_stage * self.class_token.norm()
        if not self.held:
            change = tokens - origin
            # Where nothing may change and nothing did, 0 / 0 would be no number.
            size = change.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(change.dtype).tiny)
            return origin + change * (longest / size).clamp(max=1)
        most = 2 * torch.asin((longest / (2 * self.compute_held_norm())).clamp(max=1))
        angle = compute_angle(origin, tokens)
        return self.hold_norm(interpolate_on_sphere(origin, tokens, (most / angle).clamp(max=1)))

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return nothing: the tokens are all that is saved."""
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


def expand_slots(tokens: Tensor) -> Tensor:
    """Return tokens `[stage, 1 or 2, ...]` as an identity has them, `[stage, 2, ...]`: one slot is both."""
    return tokens.expand(-1, 2, *tokens.shape[2:])


def compute_change_limits(settings: LearnSettings) -> Tensor | None:
    """Return how far a token of each stage may go, `[stage]`, times the class word's norm; None for as far as it likes.

    rho_s = change_limit (1 - (1 - noise_freedom) s / (stages - 1)): T-LoRA's rank, which falls linearly with the noise
    (AAAI 2026), for tokens. Stage 0 is the least noisy.
    """
    if settings.change_limit is None:
        return None
    noise = torch.arange(settings.stages, dtype=torch.float32) / max(1, settings.stages - 1)
    return settings.change_limit * (1 - (1 - settings.noise_freedom) * noise)


def compute_angle(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between vectors `[..., width]`, `[..., 1]`, in radians, at least 1e-6."""
    first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    # By both chords: the arc cosine loses half of the digits near 0.
    apart, along = (first - second).norm(dim=-1, keepdim=True), (first + second).norm(dim=-1, keepdim=True)
    return (2 * torch.atan2(apart, along)).clamp(min=1e-6)


def interpolate_on_sphere(first: Tensor, second: Tensor, share: Tensor | float) -> Tensor:
    """Return the direction on the arc from one vector to another, unit vectors `[..., width]` (slerp; Shoemake 1985).

    slerp(a, b; s) = (sin((1 - s) w) a + sin(s w) b) / sin w, w the angle between a and b.

    Args:
        share: of the arc: 0 gives the first vector, 1 the second; above 1 it goes on along the circle.
    """
    angle = compute_angle(first, second)
    first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    mixed = (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)
    return F.normalize(mixed, dim=-1)


class FreeVectors(nn.Module):
    """Free vectors in the placeholder's place, the same for every stage, key and value.

    Args:
        class_token: row of the class word, `[width]`.
        first: where the vectors start, `[vector, width]`.
        then_class: append the class word, which stays as it is.

    Raises:
        MethodError: the shapes are others.
    """

    class_token: Tensor

    def __init__(self, class_token: Tensor, first: Tensor, *, then_class: bool = False) -> None:
        super().__init__()
        if class_token.ndim != 1 or first.ndim != 2 or first.shape[1] != len(class_token):
            raise MethodError(
                f"The class word has the shape {list(class_token.shape)}, and the first vectors {list(first.shape)}.",
                f"Give [width] and [vector, width], such as [{class_token.shape[-1]}] and"
                f" [vector, {class_token.shape[-1]}].",
            )
        self.register_buffer("class_token", class_token.detach().float().clone())
        with LOADING:
            self.table = nn.Parameter(first.detach().float().clone())
        self.then_class = then_class

    def forward(self, random: torch.Generator | None = None) -> Tensor:
        """Return `[1, 2, vector, width]`, the class word counted; nothing is random."""
        rows = torch.cat([self.table, self.class_token[None]]) if self.then_class else self.table
        return rows.expand(1, 2, -1, -1)

    def after_step(self) -> None:
        """Do nothing after an update."""

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return nothing: the vectors are all that is saved."""
        return {}


def create_expansion_module(width: int, settings: LearnSettings, seed: int) -> ExpansionModule:
    """Create an expansion module whose first weights depend on the seed alone."""
    with torch.device("meta"):
        module = ExpansionModule(width, settings.stages, count_slots(settings), dropout=settings.dropout)
    module.to_empty(device="cpu").float().draw_first(create_generator(seed, "expansion"))
    return module


def count_slots(settings: LearnSettings) -> int:
    """Count what is learned for a stage: key and value, or one for both."""
    return 2 if settings.split_key_value else 1


def create_first_table(class_token: Tensor, settings: LearnSettings, seed: int) -> Tensor:
    """Return zeros to add to the class word, or the class word with a little noise so that the slots differ."""
    several = (settings.vectors,) if settings.vectors > 1 else ()
    shape = (settings.stages, count_slots(settings), *several, len(class_token))
    if settings.residual_init:
        return torch.zeros(shape, dtype=torch.float32)
    noise = torch.randn(shape, generator=create_generator(seed, "tokens"), dtype=torch.float32)
    return class_token + 0.1 * class_token.std() * noise


def count_module_weights(width: int, settings: LearnSettings) -> int:
    """Count the weights of the expansion module that these settings need; 0 for direct tokens."""
    if settings.expansion == "direct":
        return 0
    with torch.device("meta"):
        return sum(p.numel() for p in ExpansionModule(width, settings.stages, count_slots(settings)).parameters())
