"""COMPOSER: every figure of the embedded model and its judges, recomputed from the weights."""

from collections.abc import Callable
from pathlib import Path

from sefi.backbone.open import MODELS, open_backbone
from sefi.core.config import Config, override
from sefi.core.errors import ConfigError
from sefi.core.hints import suggest
from sefi.core.presets import DEFAULT
from sefi.core.protocols import Progress
from sefi.world.clip_scores import score_agreement
from sefi.world.expressiveness import score_expressiveness
from sefi.world.fifth_scores import (
    LEAK_PEOPLE,
    LEAK_STEPS,
    NAMED,
    TOKENS,
    score_autoencoder,
    score_backgrounds,
    score_identity,
    score_tokens,
)
from sefi.world.figure import Figure
from sefi.world.judge_scores import SCORES
from sefi.world.looking import Judges
from sefi.world.model_scores import score_names, score_pairs, score_pets, score_traits, score_words
from sefi.world.versions import FOURTH, version_of_side

FITTED_PEOPLE, FIT_STEPS = 12, 200
# Half the default number of steps, as the benchmarks: twice as many pictures in the same time.
CHECKED = override(DEFAULT, ["generate.steps=25"])
# Figures of the fifth version; the shipped model's card has those of `PARTS`.
FIFTH_PARTS = ("autoencoder", "identity", "tokens", "backgrounds")
GATE_DRAWINGS = 500
PARTS = ("expressiveness", "traits", "words", "names", "pairs", "pets", "clip", "judges")


def named_folder(model: str) -> Path:
    """Return the folder of a model: an embedded one by its name, or the folder itself.

    Raises:
        ConfigError: it has no autoencoder.
    """
    folder = MODELS / model if (MODELS / model).is_dir() else Path(model)
    if not (folder / "vae").is_dir():
        raise ConfigError(f"There is no autoencoder in {folder}.", "Name a folder that has a folder `vae`.")
    return folder


def check(
    model: str,
    *,
    judges_folder: Path | None = None,
    parts: tuple[str, ...] = PARTS,
    count: int = 6,
    config: Config = CHECKED,
    progress: Progress,
) -> list[Figure]:
    """Score the model against its judges, and the judges against the truth.

    Args:
        judges_folder: the judges' networks; None takes the package's.
        parts: which of `PARTS` and `FIFTH_PARTS`.
        count: pictures of every wish.

    Raises:
        ConfigError: there is no such part.
    """
    every = (*PARTS, *FIFTH_PARTS)
    unknown = set(parts) - set(every)
    if unknown:
        raise ConfigError(
            f"There is no part {sorted(unknown)[0]!r}.", suggest(sorted(unknown)[0], every, verb="Choose")
        )
    folder = judges_folder or MODELS / "judges"
    if tuple(parts) == ("autoencoder",):
        # The gate comes before there is a denoiser: a folder with nothing but an autoencoder will do.
        return score_autoencoder(named_folder(model), Judges(folder), GATE_DRAWINGS, progress)
    backbone = open_backbone(model)
    judges, drawing, version = Judges(folder), config.generate, version_of_side(backbone.resolution)
    # The fifth version's denoiser must come nearer to the drawings.
    share = 0.75 if version == FOURTH else 0.85
    scores: dict[str, Callable[[], list[Figure]]] = {
        "judges": lambda: [figure for score in SCORES.values() for figure in score(folder, version=version)],
        "words": lambda: score_words(backbone, judges, count, drawing, progress, version),
        "traits": lambda: score_traits(backbone, judges, -(-count // 3), drawing, progress),
        "pets": lambda: score_pets(backbone, judges, drawing, progress),
        "clip": lambda: score_agreement(folder, backbone, drawing, progress, version),
        "names": lambda: score_names(backbone, judges, drawing, progress),
        "pairs": lambda: score_pairs(backbone, judges, drawing, progress),
        "expressiveness": lambda: score_expressiveness(
            backbone, judges, FITTED_PEOPLE, FIT_STEPS, drawing, progress, share
        ),
        "autoencoder": lambda: score_autoencoder(named_folder(model), judges, GATE_DRAWINGS, progress),
        "identity": lambda: score_identity(backbone, judges, NAMED, drawing, progress),
        "tokens": lambda: score_tokens(backbone, judges, TOKENS, drawing, progress),
        "backgrounds": lambda: score_backgrounds(backbone, folder, LEAK_PEOPLE, LEAK_STEPS, drawing, progress),
    }
    return [figure for part in every if part in parts for figure in scores[part]()]
