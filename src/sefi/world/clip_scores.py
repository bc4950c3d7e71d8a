"""How the judge CLIP does on drawings that it has not seen, and how generated pictures do beside drawings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sefi.backbone.bundle import Backbone
from sefi.core.config import GenerateConfig
from sefi.core.protocols import Progress
from sefi.metrics.encoders import ClipEncoder
from sefi.metrics.prompt import mean_prompt_agreement
from sefi.world.captions import caption, nameless
from sefi.world.clip_training import CLIP
from sefi.world.drawing import draw
from sefi.world.figure import Figure
from sefi.world.judging_data import HELD_OUT_SEED, pictures
from sefi.world.model_scores import painted
from sefi.world.versions import FOURTH, WorldVersion

CHOICES = 32
# Unseen pictures whose captions the model is asked to draw; the judge CLIP itself is measured on the first ones.
ASKED_FROM, ASKED = 1000, 64


def score_clip_judge(folder: Path, count: int = 600, version: WorldVersion = FOURTH) -> list[Figure]:
    """Share of drawings that find their own caption among 32, and similarity to their own and to other captions.

    Captions that say the same in other words, or less, keep the share from 1.

    Args:
        folder: of the judges; CLIP lies in its folder `clip`.
    """
    encoder, shown = ClipEncoder(folder / CLIP), pictures(HELD_OUT_SEED, 0, count, version)
    captions = [nameless(caption(p, np.random.default_rng([HELD_OUT_SEED, 31, i])).text) for i, p in enumerate(shown)]
    nearness = encoder.images([draw(p) for p in shown]) @ encoder.texts(captions).T
    own = np.diag(nearness)
    others = np.stack([nearness[i, other_captions(captions, i)] for i in range(count)])
    return [
        Figure(f"judge CLIP: own caption found among {CHOICES}", float((own > others.max(1)).mean()), None, count),
        Figure("judge CLIP: similarity, own caption", float(own.mean()), None, count),
        Figure("judge CLIP: similarity, other caption", float(others.mean()), None, count),
    ]


def other_captions(captions: Sequence[str], number: int) -> np.ndarray:
    """Numbers of 31 captions that say something else, at most."""
    different = np.flatnonzero(np.array(captions) != captions[number])
    return np.random.default_rng([HELD_OUT_SEED, 32, number]).permutation(different)[: CHOICES - 1]


def score_agreement(
    folder: Path, backbone: Backbone, config: GenerateConfig, progress: Progress, version: WorldVersion = FOURTH
) -> list[Figure]:
    """The model draws the captions of unseen drawings: how near are its pictures to them, beside the drawings?"""
    shown = pictures(HELD_OUT_SEED, ASKED_FROM, ASKED, version)
    said = [nameless(caption(p, np.random.default_rng([HELD_OUT_SEED, 33, i])).text) for i, p in enumerate(shown)]
    made = painted(backbone, said, config, progress)
    return [agreement_ratio(ClipEncoder(folder / CLIP), made, said, [draw(p) for p in shown], said)]


def agreement_ratio(
    encoder: ClipEncoder,
    generated: Sequence[np.ndarray],
    prompts: Sequence[str],
    drawings: Sequence[np.ndarray],
    captions: Sequence[str],
) -> Figure:
    """Mean CLIP score of generated pictures, as a share of the mean CLIP score of true drawings.

    Args:
        generated: uint8 RGB pictures `[side, side, 3]`.
        prompts: what each was asked to show; without names, which the judge does not know (see `nameless`).
        drawings: uint8 RGB drawings of the same kinds of things.
        captions: what each drawing shows, worded like the prompts.
    """
    made = mean_prompt_agreement(encoder.images(generated), encoder.texts(prompts))
    drawn = mean_prompt_agreement(encoder.images(drawings), encoder.texts(captions))
    return Figure("judge CLIP score, share of drawings'", made / drawn, 0.90, len(generated))
