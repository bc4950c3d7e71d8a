"""The text encoder's first lesson: its states must tell what the sentence says, before any picture is drawn.

Stable Diffusion's text encoder comes from CLIP and knows what words mean. Here the truth of every picture is known, so
instead of comparing with pictures the encoder is asked directly. Without this lesson the denoiser obeyed scenes and
styles after 42,000 pictures, but no attribute, no action and no name.
"""
# diffusers and transformers annotate their constructors and outputs too narrowly.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalSubscript=false

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.protocols import Progress
from sefi.world.animal import ANIMAL_WIDTH
from sefi.world.captions import FIRST, Caption, say
from sefi.world.lesson import NOWHERE, Keeping, Lesson, one_cycle, run_lesson
from sefi.world.person import VECTOR_WIDTH
from sefi.world.picture import Picture
from sefi.world.precision import autocast
from sefi.world.reader_training import scene_labels, scene_options
from sefi.world.sampling import random_picture
from sefi.world.text_training import LENGTH, WIDTH, NamedText, Worded, encode_named, named_text
from sefi.world.versions import FOURTH, WorldVersion
from sefi.world.widening import Earlier


@dataclass(frozen=True)
class TellingRecipe:
    """Endless sentences of a version's pictures, no drawings."""

    steps: int = 1000
    batch: int = 96
    learning_rate: float = 1e-3
    identity_weight: float = 2.0
    noise: float = 0.5
    earlier_weight: float = 4.0
    version: WorldVersion = FOURTH


class Teller(nn.Module):
    """Text states `[..., WIDTH]` to who is there `[..., VECTOR_WIDTH]`, logits of attributes and of each choice."""

    def __init__(self, version: WorldVersion = FOURTH) -> None:
        super().__init__()
        self.version, options = version, scene_options(version)
        self.who = nn.Linear(WIDTH, VECTOR_WIDTH)
        self.left, self.right = nn.Linear(WIDTH, VECTOR_WIDTH), nn.Linear(WIDTH, VECTOR_WIDTH)
        self.pet = nn.Linear(WIDTH, ANIMAL_WIDTH)
        self.attributes = nn.Linear(WIDTH, len(version.attributes))
        self.choices = nn.ModuleDict({name: nn.Linear(WIDTH, len(labels)) for name, labels in options.items()})


def told(states: Tensor, text: NamedText, end_id: int, random: np.random.Generator) -> Tensor:
    """A state after the sentence's last word, `[batch, WIDTH]`: the end token or any of the padding behind it."""
    first = (text.ids == end_id).int().argmax(1)
    places = [int(random.integers(int(f), LENGTH)) for f in first]
    return states[torch.arange(len(states)), torch.tensor(places)]


def identity_loss(teller: Teller, end: Tensor, shown: Sequence[Picture]) -> Tensor:
    """How wrongly the end tells who is there: one person, the left and the right of two, an animal."""
    total = torch.zeros((), device=end.device)
    for head, faces in (
        (teller.who, [p.subjects[0].person.vector() if len(p.subjects) == 1 else None for p in shown]),
        (teller.left, [p.subjects[0].person.vector() if len(p.subjects) == 2 else None for p in shown]),
        (teller.right, [p.subjects[1].person.vector() if len(p.subjects) == 2 else None for p in shown]),
        (teller.pet, [p.pets[0].animal.vector() if p.pets else None for p in shown]),
    ):
        there = [i for i, face in enumerate(faces) if face is not None]
        if there:
            vectors = torch.from_numpy(np.stack([f for f in faces if f is not None])).to(end.device)
            # Rare company counts by its share, so that a batch with one pair does not jump.
            total = total + F.mse_loss(head(end[there]), vectors) * (len(there) / len(shown)) ** 0.5
    return total


def telling_loss(
    teller: Teller, states: Tensor, text: NamedText, shown: Sequence[Picture], end: Tensor, first_id: int
) -> Tensor:
    """Errors of all answers; who it is also from the name's own place."""
    who = identity_loss(teller, end, shown)
    named = states[text.ids == first_id]
    if len(named):
        who = who + F.mse_loss(teller.who(named), text.firsts)
    worn = [{a for s in (*p.subjects, *p.pets) for a in s.attributes} for p in shown]
    known = teller.version.attributes
    has = torch.tensor([[float(a in attributes) for a in known] for attributes in worn], device=end.device)
    total = F.binary_cross_entropy_with_logits(teller.attributes(end), has) * len(known)
    for name, wanted in scene_labels(shown, teller.version).items():
        total = total + F.cross_entropy(teller.choices[name](end), wanted.to(end.device))
    return total + TellingRecipe.identity_weight * who


def describe_pictures(
    count: int, random: np.random.Generator, version: WorldVersion
) -> tuple[list[Caption], list[Picture]]:
    """Return captions of random pictures, and the pictures: of the fifth version as far as their captions say them."""
    shown = [random_picture(random, version=version) for _ in range(count)]
    told, said = zip(*(say(p, random, version) for p in shown), strict=True)
    return list(told), list(said)


def train_telling(
    pupil: Worded,
    recipe: TellingRecipe,
    seed: int,
    progress: Progress,
    keeping: Keeping = NOWHERE,
    earlier: Earlier | None = None,
    device: str = "cpu",
) -> None:
    """Teach the encoder and the naming network, in place; an earlier model's states of old words are kept near."""
    torch.manual_seed(seed)
    version = recipe.version
    teller, tokenizer = Teller(version).to(device), pupil.tokenizer
    pupil.text.to(device)
    pupil.names.to(device)
    earlier = earlier and earlier.to(device)
    parameters = [*pupil.text.parameters(), *pupil.names.parameters(), *teller.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    first_id = tokenizer.convert_tokens_to_ids(f"{FIRST}</w>")

    def loss_of(step: int) -> Tensor:
        random = np.random.default_rng([seed, 21, step])
        said, shown = describe_pictures(recipe.batch, random, version)
        text = named_text(tokenizer, said, random).to(device)
        jitter, blur = (
            torch.from_numpy(random.standard_normal((recipe.batch, LENGTH, WIDTH), np.float32)).to(device)
            for _ in range(2)
        )
        with autocast(device) if version.number > FOURTH.number else torch.autocast(device, torch.bfloat16):
            clean = encode_named(pupil, text, jitter).float()
            kept = recipe.earlier_weight * earlier.distance(clean, text, jitter) if earlier else 0.0
        # Noise on the states makes the encoder say everything loudly, not only readably.
        states = clean + recipe.noise * blur
        end = told(states, text, tokenizer.eos_token_id, random)
        return telling_loss(teller, states, text, shown, end, first_id) + kept

    lesson = Lesson(
        "text",
        (recipe, scene_options(version), version.attributes, earlier is not None),
        seed,
        recipe.steps,
        {"text": pupil.text, "names": pupil.names, "teller": teller},
        optimiser,
        partial(one_cycle, steps=recipe.steps, top=recipe.learning_rate),
        clip=1.0,
    )
    run_lesson(lesson, loss_of, keeping, progress)
    pupil.text.to("cpu")
    pupil.names.to("cpu")
