"""Training of the readers: what an image shows (action, scene, style), and what its heads show (attributes)."""
# torch's own annotations lack `Module.to(memory_format=...)`.
# pyright: reportCallIssue=false, reportArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.files import write_text
from sefi.core.progress import Progress
from sefi.core.text import dump_json
from tiny_portraits.drawing.content import (
    ACTIONS,
    ATTRIBUTES,
    CAMERAS,
    GARMENTS,
    INTERACTIONS,
    LIGHTS,
    SCENES,
    STYLES,
    ImageContent,
    Subject,
    list_hidden,
)
from tiny_portraits.drawing.traits import ANIMALS, EYE_COLOURS, HAIR_COLOURS, HAIR_STYLES, LOOKS, SKIN_TONES
from tiny_portraits.training.acceleration import choose_autocast
from tiny_portraits.training.drawings import roughen_images
from tiny_portraits.training.loop import NOWHERE, Checkpointing, TrainingSetup, compute_one_cycle_rate, run_training
from tiny_portraits.training.networks import build_trunk, write_onnx

ATTRIBUTE_GROUP = "attributes"
PEOPLE = ("nobody", "one", "two")
SCENE_LABELS: dict[str, tuple[str, ...]] = {
    "action": ("", *ACTIONS),
    "scene": ("", *SCENES),
    "style": STYLES,
    "people": PEOPLE,
    "pet": ("", *ANIMALS),
    "interaction": ("", *INTERACTIONS),
    "garment": ("", *GARMENTS),
    "light": LIGHTS,
    "camera": CAMERAS,
}
HEAD_LABELS: dict[str, tuple[str, ...]] = {
    ATTRIBUTE_GROUP: (*ATTRIBUTES, *LOOKS),
    "skin": tuple(tone for tone, _ in SKIN_TONES),
    "hair style": HAIR_STYLES,
    "hair colour": tuple(HAIR_COLOURS),
    "eyes": tuple(EYE_COLOURS),
}
Labels = dict[str, Tensor]
# Stands where an image does not show what is asked; in the yes-or-no questions it is not-a-number.
UNSEEN = -100


@dataclass(frozen=True)
class ReaderRecipe:
    """Drawings at the model's own size, or aligned heads."""

    drawings: int = 14_000
    steps: int = 1100
    batch: int = 96
    learning_rate: float = 2e-3


class Reader(nn.Module):
    """RGB `[batch, 3, side, side]` in [0, 255] to probabilities side by side, in the order of the labels."""

    def __init__(self, labels: dict[str, tuple[str, ...]], side: int, mixed: int = 256) -> None:
        super().__init__()
        self.labels = labels
        self.trunk = build_trunk((24, 48, 96, 128))
        self.mix = nn.Sequential(nn.Flatten(), nn.Linear(128 * (side // 16) ** 2, mixed), nn.ReLU(), nn.Dropout(0.3))
        self.tell = nn.Linear(mixed, sum(len(names) for names in labels.values()))

    def compute_logits(self, image: Tensor) -> dict[str, Tensor]:
        """Return logits of every group."""
        logits = self.tell(self.mix(self.trunk(image / 127.5 - 1)))
        return dict(zip(self.labels, logits.split([len(n) for n in self.labels.values()], dim=1), strict=True))

    def forward(self, data: Tensor) -> Tensor:
        """Return probabilities: of attributes each on its own, of every other group as shares that add up to 1."""
        logits = self.compute_logits(data)
        return torch.cat([g.sigmoid() if n == ATTRIBUTE_GROUP else g.softmax(1) for n, g in logits.items()], dim=1)


def label_scenes(shown: Sequence[ImageContent]) -> Labels:
    """Return numbers for what the first person does, scene, style, who is there and what they do together."""
    values = [
        {
            "action": p.subjects[0].action if p.subjects else "",
            "scene": p.scene,
            "style": p.style,
            "people": PEOPLE[len(p.subjects)],
            "pet": p.pets[0].animal.kind if p.pets else "",
            "interaction": p.interaction,
            "garment": p.subjects[0].garment if p.subjects else "",
            "light": p.light,
            "camera": p.camera,
        }
        for p in shown
    ]
    return {name: torch.tensor([options.index(v[name]) for v in values]) for name, options in SCENE_LABELS.items()}


def label_heads(shown: Sequence[ImageContent]) -> Labels:
    """Return labels of the first person's head in every image; what cannot be seen there is left open."""
    rows = [(p.subjects[0], list_hidden(p.subjects[0], p.style)) for p in shown]
    flags = [
        [float(has_attribute(s, a)) for a in ATTRIBUTES] + [answer_look(s.person.get_look(n), n, unseen) for n in LOOKS]
        for s, unseen in rows
    ]
    chosen = [(s.person.skin_tone, s.person.hair_style, s.person.hair_colour, s.person.eye_colour) for s, _ in rows]
    labels = {ATTRIBUTE_GROUP: torch.tensor(flags)}
    for k, name in enumerate(n for n in HEAD_LABELS if n != ATTRIBUTE_GROUP):
        options = HEAD_LABELS[name]
        visible = [name not in unseen for _, unseen in rows]
        labels[name] = torch.tensor(
            [options.index(c[k]) if ok else UNSEEN for c, ok in zip(chosen, visible, strict=True)]
        )
    return labels


def has_attribute(subject: Subject, attribute: str) -> bool:
    """Return whether a head looks as this attribute says; some people's hair is curly of itself."""
    return attribute in subject.attributes or (attribute == "curly hair" and subject.person.hair_style == "curly")


def answer_look(value: float, name: str, unseen: frozenset[str]) -> float:
    """Return the answer to a yes-or-no question about a face, not-a-number where there is none."""
    return float("nan") if value == 0.5 or LOOKS[name] in unseen else value


def compute_reader_loss(predictions: dict[str, Tensor], labels: Labels) -> Tensor:
    """Return the cross entropy of every group, of yes-or-no questions each on their own; open answers do not count."""
    total = torch.zeros(())
    for name, logits in predictions.items():
        if name == ATTRIBUTE_GROUP:
            answered = ~labels[name].isnan()
            # A question counts as much as a choice: as a mean of all, questions were not learned beside choices.
            error = F.binary_cross_entropy_with_logits(logits.float()[answered], labels[name][answered])
            total = total + logits.shape[1] * error
        elif bool((labels[name] != UNSEEN).any()):
            total = total + F.cross_entropy(logits.float(), labels[name], ignore_index=UNSEEN)
    return total


def train_reader(
    model: Reader,
    images: np.ndarray,
    labels: Labels,
    recipe: ReaderRecipe,
    seed: int,
    progress: Progress,
    checkpointing: Checkpointing = NOWHERE,
) -> Reader:
    """Return a reader trained on images `[image, side, side, 3]` and what they show."""
    torch.manual_seed(seed)
    model = model.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.02)
    rate = partial(compute_one_cycle_rate, steps=recipe.steps, top=recipe.learning_rate)

    def compute_loss(step: int) -> Tensor:
        random = np.random.default_rng([seed, step])
        chosen = random.permutation(len(images))[: recipe.batch]
        batch = torch.from_numpy(roughen_images(images[chosen], random)).permute(0, 3, 1, 2)
        with choose_autocast("cpu"):
            predictions = model.compute_logits(batch)
        return compute_reader_loss(predictions, {name: values[chosen] for name, values in labels.items()})

    about = (recipe, model.labels)
    run_training(
        TrainingSetup("reader", about, seed, recipe.steps, {"reader": model}, optimiser, rate),
        compute_loss,
        checkpointing,
        progress,
    )
    return model.eval().to(memory_format=torch.contiguous_format)


def measure_accuracy(probabilities: dict[str, np.ndarray], labels: Labels) -> dict[str, float]:
    """Return the balanced accuracy of every yes-or-no question and their means, the accuracy of each other group.

    Open answers are left out.

    Args:
        probabilities: of every group, `[image, option]`.
    """
    scores: dict[str, float] = {}
    for name, group in probabilities.items():
        truth = labels[name].numpy()
        if name == ATTRIBUTE_GROUP:
            flags = {
                q: compute_balanced_accuracy(group[:, i] > 0.5, truth[:, i])
                for i, q in enumerate((*ATTRIBUTES, *LOOKS))
            }
            scores |= flags
            scores[name] = float(np.mean([flags[a] for a in ATTRIBUTES]))
            scores["looks"] = float(np.mean([flags[a] for a in LOOKS]))
        else:
            answered = truth != UNSEEN
            scores[name] = float((group[answered].argmax(1) == truth[answered]).mean())
    return scores


def compute_balanced_accuracy(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean of the shares right among yes and among no, over the answers that are known."""
    yes, no = truth == 1, truth == 0
    return float((found[yes].mean() + (~found[no]).mean()) / 2)


def export_reader(model: Reader, path: Path, side: int) -> None:
    """Write ONNX, and the labels beside it as JSON."""
    write_onnx(model, side, path, "data", ["read"])
    write_text(path.with_suffix(".json"), dump_json(model.labels, indent=1) + "\n")
