"""COMPOSER: steps of the objective until the tokens are learned."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.conditioning.encode import token_row
from sefi.conditioning.prompt import class_token_id
from sefi.core.config import Config, to_dict
from sefi.core.errors import ConfigError, Interrupted
from sefi.core.protocols import Progress
from sefi.core.streams import stream
from sefi.identity.tokens import IdentityTokens
from sefi.learn.best import Best
from sefi.learn.checkpoint import load_run, save_run
from sefi.learn.objective import Losses, losses
from sefi.learn.sampling import ViewLatents, draw_sample
from sefi.learn.texts import training_texts
from sefi.learn.uninterrupted import uninterrupted
from sefi.photo.views import PhotoViews

SAVE_EVERY_SECONDS = 20.0

Probe = Callable[[Tensor], float]


def learn_tokens(
    backbone: Backbone,
    views: PhotoViews,
    config: Config,
    seed: int,
    progress: Progress,
    checkpoint: Path | None = None,
    probe: Probe | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Learn the tokens of one identity.

    Args:
        checkpoint: file to resume from and to save to; None keeps nothing.
        probe: scores tokens `[stage, 2, width]` every `learn.probe_every` steps; then the best ones are returned, and
            learning stops early once `learn.patience` probes were no better.

    Returns:
        Tokens `[stage, 2, width]`, float32, and the last step's numbers.

    Raises:
        Interrupted: the user stopped it; a checkpoint, if asked for, is kept.
        ConfigError: the losses are no longer finite.
    """
    run = LearningRun(backbone, views, config, seed)
    start = run.resume(checkpoint)
    progress.start(config.learn.steps - start, "learning")
    numbers: dict[str, float] = {}
    saved = time.monotonic()
    try:
        for step in range(start, config.learn.steps):
            run.look(probe)
            if run.best.settled:
                break
            numbers = run.advance(step)
            progress.advance(**numbers)
            if checkpoint is not None and time.monotonic() - saved > SAVE_EVERY_SECONDS:
                run.save(checkpoint)
                saved = time.monotonic()
        run.look(probe)
    except KeyboardInterrupt:
        raise run.stopped(checkpoint) from None
    progress.finish()
    return run.result(), numbers | run.told()


class LearningRun:
    """Tokens, optimiser and everything frozen that a step needs.

    Attributes:
        done: steps whose update is in the tokens; changes together with them.
        best: the best tokens so far, where a probe scores them.
    """

    def __init__(self, backbone: Backbone, views: PhotoViews, config: Config, seed: int) -> None:
        self.backbone, self.config, self.seed = backbone, config, seed
        self.done, self.best = 0, Best(config.learn.patience)
        row = token_row(backbone, class_token_id(backbone.tokenizer, config.learn.class_word))
        self.tokens = IdentityTokens(row, config.learn, seed)
        self.optimiser = torch.optim.Adam(self.tokens.parameters(), lr=config.learn.learning_rate)
        self.texts = training_texts(backbone, config.learn)
        self.latents = ViewLatents(backbone, views, config.views, seed)
        self.settings: dict[str, Any] = {
            "config": to_dict(config),
            "seed": seed,
            "model": backbone.fingerprint,
            "photo": hashlib.sha256(views.square.cpu().numpy().tobytes()).hexdigest(),
        }

    def advance(self, step: int) -> dict[str, float]:
        """One optimiser step; returns what is worth logging."""
        # The module's dropout draws from torch's global state: give each step its own, and put the old one back.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(stream(self.seed, "dropout", step).get_state())
            tokens = self.tokens.train()()
        sample = draw_sample(self.backbone, self.latents, self.config.learn, self.seed, step)
        found = losses(self.backbone, self.texts, tokens, sample, self.config.learn)
        if not torch.isfinite(found.total):
            raise ConfigError(f"The loss is not finite at step {step}.", "Lower learn.learning_rate.")
        self.optimiser.zero_grad(set_to_none=True)
        found.total.backward()
        with uninterrupted():
            self.optimiser.step()
            self.tokens.limit_norm(self.config.learn.token_norm_limit)
            self.done = step + 1
        return self.numbers(found, tokens)

    def numbers(self, found: Losses, tokens: Tensor) -> dict[str, float]:
        """Both losses, their weighted ratio (the scale check) and the mean token norm over the class word's."""
        denoise, attention = float(found.denoise.detach()), float(found.attention.detach())
        norm = float(tokens.detach().norm(dim=-1).mean() / self.tokens.class_token.norm())
        ratio = self.config.learn.attention_weight * attention / max(denoise, 1e-12)
        return {
            "loss_denoise": denoise,
            "loss_attention": attention,
            "ratio": ratio,
            "token_norm": norm,
        }

    @torch.no_grad()
    def tokens_now(self) -> Tensor:
        """The tokens as generation uses them, dropout off."""
        return self.tokens.eval()().clone().contiguous()

    def result(self) -> Tensor:
        """The best tokens that a probe saw, else the last ones."""
        return self.tokens_now() if self.best.tokens is None else self.best.tokens.to(self.tokens_now().device)

    def look(self, probe: Probe | None) -> None:
        """Score the tokens if it is time and that was not done before; after a kill it may still have to be."""
        every = self.config.learn.probe_every
        due = every > 0 and (self.done % every == 0 or self.done == self.config.learn.steps)
        if probe is not None and due and self.best.looked < self.done:
            self.best.offer(self.tokens_now(), self.done, probe(self.tokens_now()))

    def told(self) -> dict[str, float]:
        """Which step was best and how good it was, where a probe looked."""
        return {} if self.best.tokens is None else {"best_step": self.best.step, "best_score": self.best.score}

    def resume(self, checkpoint: Path | None) -> int:
        """The step to go on with."""
        if checkpoint is not None and checkpoint.is_file():
            self.done, best = load_run(checkpoint, self.tokens, self.optimiser, self.settings)
            self.best.restore(best)
        return self.done

    def save(self, checkpoint: Path) -> None:
        """Keep the run as it is after its last whole step."""
        save_run(checkpoint, self.tokens, self.optimiser, self.done, self.settings, self.best.state())

    def stopped(self, checkpoint: Path | None) -> Interrupted:
        """Save after Ctrl-C and say what was kept."""
        steps = self.config.learn.steps
        if checkpoint is None:
            return Interrupted(f"Stopped at step {self.done} of {steps}; nothing was kept.", "Run the command again.")
        self.save(checkpoint)
        return Interrupted(
            f"Stopped at step {self.done} of {steps}; {checkpoint} keeps the run.",
            "Run the same command again to go on from there.",
        )
