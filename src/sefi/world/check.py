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
from sefi.world.figure import Figure
from sefi.world.judge_scores import SCORES
from sefi.world.looking import Judges
from sefi.world.model_scores import score_names, score_pairs, score_pets, score_traits, score_words

FITTED_PEOPLE, FIT_STEPS = 12, 200
# Half the default number of steps, as the benchmarks: twice as many pictures in the same time.
CHECKED = override(DEFAULT, ["generate.steps=25"])
PARTS = ("expressiveness", "traits", "words", "names", "pairs", "pets", "clip", "judges")


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
        parts: which of `PARTS`.
        count: pictures of every wish.

    Raises:
        ConfigError: there is no such part.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ConfigError(
            f"There is no part {sorted(unknown)[0]!r}.", suggest(sorted(unknown)[0], PARTS, verb="Choose")
        )
    backbone = open_backbone(model)
    folder = judges_folder or MODELS / "judges"
    judges, drawing = Judges(folder), config.generate
    scores: dict[str, Callable[[], list[Figure]]] = {
        "judges": lambda: [figure for score in SCORES.values() for figure in score(folder)],
        "words": lambda: score_words(backbone, judges, count, drawing, progress),
        "traits": lambda: score_traits(backbone, judges, -(-count // 3), drawing, progress),
        "pets": lambda: score_pets(backbone, judges, drawing, progress),
        "clip": lambda: score_agreement(folder, backbone, drawing, progress),
        "names": lambda: score_names(backbone, judges, drawing, progress),
        "pairs": lambda: score_pairs(backbone, judges, drawing, progress),
        "expressiveness": lambda: score_expressiveness(backbone, judges, FITTED_PEOPLE, FIT_STEPS, drawing, progress),
    }
    return [figure for part in PARTS if part in parts for figure in scores[part]()]
