"""How good an identity is while it is learned: a few pictures from frozen noise, seen by judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sefi.core.config import Config, override
from sefi.core.errors import ConfigError
from sefi.core.nouns import Identity
from sefi.core.protocols import SilentProgress
from sefi.generate.sampler import ConditionedModel, generate
from sefi.metrics.encoders import ClipEncoder
from sefi.metrics.faces import SurestFace
from sefi.metrics.similarity import similarity

# None of these is a prompt of a bundled suite: what stops learning should not be what judges it.
PROBES = (
    "a picture of {} in a room",
    "a picture of {} with a balloon",
    "an image of {} waving",
    "an oil painting of {}",
)
# Pictures of users and benchmarks have small seeds; these are nobody's.
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
        """From a folder with `face_detection.onnx`, `face_recognition.onnx` and `clip/`.

        Raises:
            BackboneError: one of them is missing.
        """
        return ProbeEvaluators(SurestFace.of(folder), ClipEncoder(folder / "clip"))


class ImageProbe:
    """Scores an identity by likeness where the prompt is still obeyed; higher is better, at most 1.

    `score = mean over prompts of id * min(1, clip / clip of the plain word's picture)`: the likeness of the face to the
    photo's (0 without a face), weakened as far as the picture agrees less with its prompt than the one with the class
    word from the same noise.
    Differs: the paper's ID(Prompt) has a fixed threshold that belongs to one CLIP; the plain word needs none.

    Args:
        apply: a method's, for this model.
        square: the photo as it is learned, uint8 RGB `[side, side, 3]`.

    Raises:
        ConfigError: the judges find no face in the photo.
    """

    def __init__(
        self,
        apply: Apply,
        square: NDArray[np.uint8],
        config: Config,
        judges: ProbeEvaluators,
    ) -> None:
        known = judges.face(square)
        if known is None:
            raise ConfigError(
                "The probe's judges find no face in the photo.", "Set learn.probe_every=0, or name other judges."
            )
        self.known, self.apply, self.judges = known, apply, judges
        self.config = override(config, [f"generate.steps={STEPS}"]).generate
        self.class_word = config.learn.class_word
        self.texts = judges.clip.texts([prompt.format(self.class_word) for prompt in PROBES])
        self.plain = self.score_prompts(self.draw_images([]))

    def __call__(self, identity: Identity) -> float:
        """The score of an identity."""
        pictures = self.draw_images([identity])
        obeyed = np.minimum(1.0, self.score_prompts(pictures) / np.maximum(self.plain, 1e-6))
        faces = [self.judges.face(picture) for picture in pictures]
        likeness = [0.0 if face is None else similarity(self.known, face) for face in faces]
        return float(np.mean(np.array(likeness) * np.maximum(obeyed, 0.0)))

    def draw_images(self, identities: Sequence[Identity]) -> list[NDArray[np.uint8]]:
        """A picture of every probe, uint8 RGB, always from the same noise."""
        word = f"<{identities[0].name}>" if identities else self.class_word
        seeds = [FIRST_SEED + n for n in range(len(PROBES))]
        model = self.apply(identities)
        prompts = [prompt.format(word) for prompt in PROBES]
        made = list(generate(model.backbone, model.conditioner, prompts, seeds, self.config, SilentProgress()))
        return [np.asarray(one.pixels.convert("RGB"), np.uint8) for one in made]

    def score_prompts(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """CLIP's cosine of each picture and its probe's sentence, `[probe]`."""
        return (self.judges.clip.images(pictures) * self.texts).sum(1)
