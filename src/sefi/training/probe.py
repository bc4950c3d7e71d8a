"""Score an identity during training: a few images from fixed noise, seen by the evaluators; and keep the best."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sefi.core.config import Config, override
from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from sefi.diffusion.sampling import ConditionedModel, sample_images
from sefi.evaluation.encoders import ClipEncoder, SurestFace
from sefi.evaluation.metrics import measure_similarity
from sefi.identity.file import Identity
from sefi.photo.detect import FaceBox

# None of these is a prompt of a bundled suite: what stops training should not be what evaluates it.
PROBE_PROMPTS = (
    "a picture of {} in a room",
    "a picture of {} with a balloon",
    "an image of {} waving",
    "an oil painting of {}",
)
# Users and benchmarks take small seeds.
FIRST_SEED = 9_000_001
STEPS = 10

Apply = Callable[[Sequence[Identity]], ConditionedModel]


@dataclass(frozen=True)
class ProbeEvaluators:
    """The networks of a probe: for faces, and CLIP."""

    face: SurestFace
    clip: ClipEncoder

    @staticmethod
    def open(folder: Path) -> "ProbeEvaluators":
        """Open the networks of a folder with `face_detection.onnx`, `face_recognition.onnx` and `clip/`.

        Raises:
            BackboneError: one of them is missing.
        """
        return ProbeEvaluators(SurestFace.load(folder), ClipEncoder(folder / "clip"))


class ImageProbe:
    """Score an identity by likeness where the prompt is still followed; higher is better, at most 1.

    `score = mean over prompts of id * min(1, clip / clip of the class word's image)`: the likeness of the face to the
    photo's (0 without a face), weakened as far as the image agrees less with its prompt than the one with the class
    word from the same noise.
    Differs: the paper's ID(Prompt) has a fixed threshold that belongs to one CLIP; the class word needs none.

    Args:
        apply: a method's, for this model.
        crop: the photo as it is learned, uint8 RGB `[side, side, 3]`.
        place: where the subject's face is to be found in it, if that is known.

    Raises:
        ConfigError: the evaluators find no face in the photo.
    """

    def __init__(
        self,
        apply: Apply,
        crop: NDArray[np.uint8],
        config: Config,
        evaluators: ProbeEvaluators,
        place: FaceBox | None = None,
    ) -> None:
        photo_face = evaluators.face(crop, place)
        if photo_face is None:
            raise ConfigError(
                "The probe's evaluators find no face in the photo.",
                "Set learn.probe_every=0, or name other evaluators.",
            )
        self.photo_face, self.apply, self.evaluators = photo_face, apply, evaluators
        settings = override(config, [f"generate.steps={STEPS}"]).generate
        # Of the trained size, whatever size images shall have later.
        self.settings = settings.model_copy(update={"width": None, "height": None})
        self.class_word = config.learn.class_word
        self.texts = evaluators.clip.encode_texts([prompt.format(self.class_word) for prompt in PROBE_PROMPTS])
        self.plain = self.score_prompts(self.generate_images([]))

    def __call__(self, identity: Identity) -> float:
        """Return the score of an identity."""
        images = self.generate_images([identity])
        followed = np.minimum(1.0, self.score_prompts(images) / np.maximum(self.plain, 1e-6))
        faces = [self.evaluators.face(image) for image in images]
        likeness = [0.0 if face is None else measure_similarity(self.photo_face, face) for face in faces]
        return float(np.mean(np.array(likeness) * np.maximum(followed, 0.0)))

    def generate_images(self, identities: Sequence[Identity]) -> list[NDArray[np.uint8]]:
        """Generate an image of every prompt of the probe, uint8 RGB, always from the same noise."""
        word = f"<{identities[0].name}>" if identities else self.class_word
        seeds = [FIRST_SEED + n for n in range(len(PROBE_PROMPTS))]
        model = self.apply(identities)
        prompts = [prompt.format(word) for prompt in PROBE_PROMPTS]
        samples = list(
            sample_images(model.backbone, model.conditioner, prompts, seeds, self.settings, SilentProgress())
        )
        return [np.asarray(one.pixels.convert("RGB"), np.uint8) for one in samples]

    def score_prompts(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return CLIP's cosine of each image and its prompt, `[prompt]`."""
        return (self.evaluators.clip.encode_images(images) * self.texts).sum(1)


@dataclass
class BestSoFar:
    """The tensors with the highest score.

    Attributes:
        patience: scores in a row that are no better, after which training stops.
        score: the highest so far; any unit.
        step: steps that had been made then.
        worse: scores since then.
        asked_at: steps that had been made at the last probe.
        tensors: those of that step, by name; None before the first probe.
    """

    patience: int
    score: float = -math.inf
    step: int = 0
    worse: int = 0
    asked_at: int = 0
    tensors: dict[str, Tensor] | None = None

    def update(self, tensors: dict[str, Tensor], step: int, score: float) -> None:
        """Keep these tensors if their score is higher than every one before; an equal one is no gain."""
        self.asked_at = step
        if score > self.score:
            self.tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            self.step, self.score, self.worse = step, score, 0
        else:
            self.worse += 1

    @property
    def should_stop(self) -> bool:
        """Whether training should stop."""
        return self.worse >= self.patience

    def get_state(self) -> dict[str, Tensor]:
        """Return everything as tensors, for a checkpoint; nothing before the first score."""
        if self.tensors is None:
            return {}
        numbers = torch.tensor([self.score, self.step, self.worse, self.asked_at], dtype=torch.float64)
        # The names are those of older checkpoints.
        return {"numbers": numbers, **{f"kept.{name}": tensor for name, tensor in self.tensors.items()}}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `get_state` returned."""
        if state:
            self.score, *steps = state["numbers"].tolist()
            self.step, self.worse, self.asked_at = map(int, steps)
            self.tensors = {k.removeprefix("kept."): v for k, v in state.items() if k.startswith("kept.")}
