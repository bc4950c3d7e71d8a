"""Training of the readers: what a picture shows (action, scene, style), and what its heads show (attributes)."""
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
from sefi.core.json_text import dump_json
from sefi.core.protocols import Progress
from sefi.world.animal import ANIMALS
from sefi.world.convolutions import trunk
from sefi.world.judging_data import roughened
from sefi.world.lesson import NOWHERE, Keeping, Lesson, one_cycle, run_lesson
from sefi.world.onnx_export import write_onnx
from sefi.world.person import EYE_COLOURS, HAIR_COLOURS, HAIR_STYLES, LOOKS, SKIN_TONES
from sefi.world.picture import ACTIONS, ATTRIBUTES, INTERACTIONS, SCENES, STYLES, Picture, Subject, hidden
from sefi.world.precision import autocast
from sefi.world.versions import FOURTH, WorldVersion

ATTRIBUTE_GROUP = "attributes"
PEOPLE = ("nobody", "one", "two")
SCENE_LABELS: dict[str, tuple[str, ...]] = {
    "action": ("", *ACTIONS),
    "scene": ("", *SCENES),
    "style": STYLES,
    "people": PEOPLE,
    "pet": ("", *ANIMALS),
    "interaction": ("", *INTERACTIONS),
}


def scene_options(version: WorldVersion) -> dict[str, tuple[str, ...]]:
    """Return what there is to read in a version's pictures: `SCENE_LABELS` with its labels, clothes, light, camera."""
    if version == FOURTH:
        return SCENE_LABELS
    own = {"action": ("", *version.actions), "scene": ("", *version.scenes), "style": version.styles}
    more = {"garment": ("", *version.garments), "light": version.lights, "camera": version.cameras}
    return SCENE_LABELS | own | more


HEAD_LABELS: dict[str, tuple[str, ...]] = {
    ATTRIBUTE_GROUP: (*ATTRIBUTES, *LOOKS),
    "skin": tuple(tone for tone, _ in SKIN_TONES),
    "hair style": HAIR_STYLES,
    "hair colour": tuple(HAIR_COLOURS),
    "eyes": tuple(EYE_COLOURS),
}
Labels = dict[str, Tensor]
# Stands where a picture does not show what is asked; in the yes-or-no questions it is not-a-number.
UNSEEN = -100


@dataclass(frozen=True)
class ReaderRecipe:
    """Drawings at the model's own size, or aligned heads."""

    pictures: int = 14_000
    steps: int = 1100
    batch: int = 96
    learning_rate: float = 2e-3


class Reader(nn.Module):
    """RGB `[batch, 3, side, side]` in [0, 255] to probabilities side by side, in the order of the labels."""

    def __init__(self, labels: dict[str, tuple[str, ...]], side: int, mixed: int = 256) -> None:
        super().__init__()
        self.labels = labels
        self.trunk = trunk((24, 48, 96, 128))
        self.mix = nn.Sequential(nn.Flatten(), nn.Linear(128 * (side // 16) ** 2, mixed), nn.ReLU(), nn.Dropout(0.3))
        self.tell = nn.Linear(mixed, sum(len(names) for names in labels.values()))

    def raw(self, image: Tensor) -> dict[str, Tensor]:
        """Logits of every group."""
        logits = self.tell(self.mix(self.trunk(image / 127.5 - 1)))
        return dict(zip(self.labels, logits.split([len(n) for n in self.labels.values()], dim=1), strict=True))

    def forward(self, data: Tensor) -> Tensor:
        """Attributes each on its own, every other group as shares that add up to 1."""
        found = self.raw(data)
        return torch.cat([g.sigmoid() if n == ATTRIBUTE_GROUP else g.softmax(1) for n, g in found.items()], dim=1)


def scene_labels(shown: Sequence[Picture], version: WorldVersion = FOURTH) -> Labels:
    """What the first person does, scene, style, who is there and what they do together, as numbers."""
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
    groups = scene_options(version)
    return {name: torch.tensor([options.index(v[name]) for v in values]) for name, options in groups.items()}


def head_options(version: WorldVersion) -> dict[str, tuple[str, ...]]:
    """Return what there is to read on a version's heads: `HEAD_LABELS` with its attributes."""
    return HEAD_LABELS | {ATTRIBUTE_GROUP: (*version.attributes, *LOOKS)}


def head_labels(shown: Sequence[Picture], version: WorldVersion = FOURTH) -> Labels:
    """What the first person's head shows in every picture; what cannot be seen there is left open."""
    rows = [(p.subjects[0], hidden(p.subjects[0], p.style)) for p in shown]
    flags = [
        [float(shows(s, a)) for a in version.attributes] + [seen_look(s.person.look(n), n, unseen) for n in LOOKS]
        for s, unseen in rows
    ]
    chosen = [(s.person.skin_tone, s.person.hair_style, s.person.hair_colour, s.person.eye_colour) for s, _ in rows]
    labels = {ATTRIBUTE_GROUP: torch.tensor(flags)}
    for k, name in enumerate(n for n in HEAD_LABELS if n != ATTRIBUTE_GROUP):
        options = HEAD_LABELS[name]
        known = [name not in unseen for _, unseen in rows]
        labels[name] = torch.tensor(
            [options.index(c[k]) if ok else UNSEEN for c, ok in zip(chosen, known, strict=True)]
        )
    return labels


def shows(subject: Subject, attribute: str) -> bool:
    """Whether a head looks as this attribute says; some people's hair is curly of itself."""
    return attribute in subject.attributes or (attribute == "curly hair" and subject.person.hair_style == "curly")


def seen_look(value: float, name: str, unseen: frozenset[str]) -> float:
    """The answer to a yes-or-no question about a face, not-a-number where there is none."""
    return float("nan") if value == 0.5 or LOOKS[name] in unseen else value


def reader_loss(found: dict[str, Tensor], labels: Labels) -> Tensor:
    """Cross entropy of every group, yes-or-no questions each on their own; open answers do not count."""
    total = torch.zeros(())
    for name, logits in found.items():
        if name == ATTRIBUTE_GROUP:
            told = ~labels[name].isnan()
            # A question counts as much as a choice: as a mean of all, questions were not learned beside choices.
            error = F.binary_cross_entropy_with_logits(logits.float()[told], labels[name][told])
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
    keeping: Keeping = NOWHERE,
) -> Reader:
    """A reader trained on images `[picture, side, side, 3]` and what they show."""
    torch.manual_seed(seed)
    model = model.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.02)
    rate = partial(one_cycle, steps=recipe.steps, top=recipe.learning_rate)

    def loss_of(step: int) -> Tensor:
        random = np.random.default_rng([seed, step])
        chosen = random.permutation(len(images))[: recipe.batch]
        batch = torch.from_numpy(roughened(images[chosen], random)).permute(0, 3, 1, 2)
        with autocast("cpu"):
            found = model.raw(batch)
        return reader_loss(found, {name: values[chosen] for name, values in labels.items()})

    about = (recipe, model.labels)
    run_lesson(
        Lesson("reader", about, seed, recipe.steps, {"reader": model}, optimiser, rate), loss_of, keeping, progress
    )
    return model.eval().to(memory_format=torch.contiguous_format)


def reading_accuracy(
    found: dict[str, np.ndarray], labels: Labels, attributes: tuple[str, ...] = ATTRIBUTES
) -> dict[str, float]:
    """Balanced accuracy of every yes-or-no question and their means, accuracy of each other group.

    Open answers are left out.

    Args:
        found: probabilities of every group, `[picture, option]`.
    """
    scores: dict[str, float] = {}
    for name, group in found.items():
        truth = labels[name].numpy()
        if name == ATTRIBUTE_GROUP:
            flags = {q: balanced(group[:, i] > 0.5, truth[:, i]) for i, q in enumerate((*attributes, *LOOKS))}
            scores |= flags
            scores[name] = float(np.mean([flags[a] for a in attributes]))
            scores["looks"] = float(np.mean([flags[a] for a in LOOKS]))
        else:
            told = truth != UNSEEN
            scores[name] = float((group[told].argmax(1) == truth[told]).mean())
    return scores


def balanced(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the shares right among yes and among no, over the answers that are known."""
    yes, no = truth == 1, truth == 0
    return float((found[yes].mean() + (~found[no]).mean()) / 2)


def export_reader(model: Reader, path: Path, side: int) -> None:
    """Write ONNX, and the labels beside it as JSON."""
    write_onnx(model, side, path, "data", ["read"])
    write_text(path.with_suffix(".json"), dump_json(model.labels, indent=1) + "\n")
