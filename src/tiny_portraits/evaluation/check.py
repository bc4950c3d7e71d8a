"""Every figure of the embedded model and its evaluators, recomputed from the weights."""

from collections.abc import Callable
from pathlib import Path

from sefi.backbone.open import MODELS, open_backbone
from sefi.core.config import DEFAULT, Config, override
from sefi.core.errors import ConfigError
from sefi.core.hints import suggest
from sefi.core.progress import Progress
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS
from tiny_portraits.evaluation.evaluator_scores import SCORES, score_second_recogniser
from tiny_portraits.evaluation.fidelity_scores import (
    LEAK_PEOPLE,
    LEAK_STEPS,
    NAMED,
    TOKENS,
    score_autoencoder,
    score_backgrounds,
    score_expressiveness,
    score_identity,
    score_tokens,
)
from tiny_portraits.evaluation.figures import Figure, ImageEvaluators
from tiny_portraits.evaluation.model_scores import (
    score_agreement,
    score_names,
    score_pairs,
    score_pets,
    score_traits,
    score_words,
)

FITTED_PEOPLE, FIT_STEPS = 6, 200
# Half the default number of steps, as the benchmarks: twice as many images in the same time.
CHECKED = override(DEFAULT, ["generate.steps=25"])
GATE_DRAWINGS = 500
PARTS = (
    "autoencoder", "expressiveness", "identity", "tokens", "backgrounds",
    "traits", "words", "names", "pairs", "pets", "clip", "evaluators", "second-recogniser",
)  # fmt: skip


def find_model_folder(model: str) -> Path:
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
    evaluators_folder: Path | None = None,
    parts: tuple[str, ...] = PARTS,
    count: int = 6,
    config: Config = CHECKED,
    progress: Progress,
) -> list[Figure]:
    """Score the model against its evaluators, and the evaluators against the truth.

    Args:
        evaluators_folder: the evaluators' networks; None takes the package's.
        parts: which of `PARTS`.
        count: images of every wish.

    Raises:
        ConfigError: there is no such part.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ConfigError(
            f"There is no part {sorted(unknown)[0]!r}.", suggest(sorted(unknown)[0], PARTS, verb="Choose")
        )
    folder = evaluators_folder or EMBEDDED_EVALUATORS
    if tuple(parts) == ("autoencoder",):
        # The gate comes before there is a denoiser: a folder with nothing but an autoencoder will do.
        return score_autoencoder(find_model_folder(model), ImageEvaluators(folder), GATE_DRAWINGS, progress)
    backbone = open_backbone(model)
    evaluators, drawing = ImageEvaluators(folder), config.generate
    scores: dict[str, Callable[[], list[Figure]]] = {
        "evaluators": lambda: [figure for score in SCORES.values() for figure in score(folder)],
        "second-recogniser": lambda: score_second_recogniser(folder),
        "words": lambda: score_words(backbone, evaluators, count, drawing, progress),
        "traits": lambda: score_traits(backbone, evaluators, -(-count // 3), drawing, progress),
        "pets": lambda: score_pets(backbone, evaluators, drawing, progress),
        "clip": lambda: score_agreement(folder, backbone, drawing, progress),
        "names": lambda: score_names(backbone, evaluators, drawing, progress),
        "pairs": lambda: score_pairs(backbone, evaluators, drawing, progress),
        "expressiveness": lambda: score_expressiveness(
            backbone, evaluators, FITTED_PEOPLE, FIT_STEPS, drawing, progress
        ),
        "autoencoder": lambda: score_autoencoder(find_model_folder(model), evaluators, GATE_DRAWINGS, progress),
        "identity": lambda: score_identity(backbone, evaluators, NAMED, drawing, progress),
        "tokens": lambda: score_tokens(backbone, evaluators, TOKENS, drawing, progress),
        "backgrounds": lambda: score_backgrounds(backbone, folder, LEAK_PEOPLE, LEAK_STEPS, drawing, progress),
    }
    return [figure for part in PARTS if part in parts for figure in scores[part]()]
