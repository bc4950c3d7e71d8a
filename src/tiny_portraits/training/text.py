"""Training of the text encoder on sentences alone: what they say must be readable from its states.

Stable Diffusion's text encoder comes from CLIP and knows what words mean. Here the truth of every image is known, so
instead of comparing with images the encoder is asked directly. Without this training the denoiser followed scenes and
styles after 42,000 images, but no attribute, no action and no name.
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

from sefi.core.progress import Progress
from sefi.core.prompts import split_words
from tiny_portraits.drawing.content import SHIPPED, ImageContent, WorldVersion
from tiny_portraits.drawing.face import DYES
from tiny_portraits.drawing.sampling import sample_content
from tiny_portraits.drawing.traits import (
    ANIMAL_WIDTH,
    EYE_COLOURS,
    HAIR_COLOURS,
    HAIR_STYLES,
    SKIN_TONES,
    VECTOR_WIDTH,
)
from tiny_portraits.text.captions import FIRST, Caption, say
from tiny_portraits.text.text_encoder import WIDTH, EarlierWords, NamedText, TextParts, encode_named, tokenise_captions
from tiny_portraits.text.tokenizing import LENGTH
from tiny_portraits.text.words import GARMENTS, HUES
from tiny_portraits.training.acceleration import choose_autocast
from tiny_portraits.training.loop import NOWHERE, Checkpointing, TrainingSetup, compute_one_cycle_rate, run_training
from tiny_portraits.training.readers import SCENE_LABELS, UNSEEN, label_scenes

# Words that say something of a noun shortly after them: what it is called, the nouns, the words. The same colours are
# said of hair, eyes, skin and clothes; until each was read at its noun, hair of every colour was one to the encoder.
COLOURED = tuple(dict.fromkeys(g[0].split()[-1] for g in GARMENTS.values() if "{}" in g[0]))
BOUND_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hair colour": (("hair",), tuple(dict.fromkeys((*HAIR_COLOURS, *(dye.split()[0] for dye in DYES))))),
    "hair style": (("hair",), HAIR_STYLES),
    "skin": (("skin",), tuple(tone for tone, _ in SKIN_TONES)),
    "eye colour": (("eyes",), tuple(EYE_COLOURS)),
    "clothes": (COLOURED, tuple(dict.fromkeys(hue for _, hue in HUES))),
}
# How many words may lie between the words and their noun, both counted: `short brown hair`.
REACH = 2


@dataclass(frozen=True)
class TextRecipe:
    """Endless sentences of a version's images, no drawings.

    Attributes:
        noise: deviation of the noise on states that are read; states that say something loudly can be read in it.
        bound_noise: the same where the words of `BOUND_WORDS` are read. With as little as elsewhere they could be read
            from small differences, which the denoiser did not follow.
    """

    steps: int = 1000
    batch: int = 96
    learning_rate: float = 1e-3
    identity_weight: float = 2.0
    noise: float = 0.5
    earlier_weight: float = 4.0
    bound_weight: float = 1.0
    bound_noise: float = 2.0
    version: WorldVersion = SHIPPED


class TextReader(nn.Module):
    """Text states `[..., WIDTH]` to who is there `[..., VECTOR_WIDTH]`, logits of attributes and of each choice."""

    def __init__(self, version: WorldVersion = SHIPPED) -> None:
        super().__init__()
        self.version, options = version, SCENE_LABELS
        self.who = nn.Linear(WIDTH, VECTOR_WIDTH)
        self.left, self.right = nn.Linear(WIDTH, VECTOR_WIDTH), nn.Linear(WIDTH, VECTOR_WIDTH)
        self.pet = nn.Linear(WIDTH, ANIMAL_WIDTH)
        self.attributes = nn.Linear(WIDTH, len(version.attributes))
        self.choices = nn.ModuleDict({name: nn.Linear(WIDTH, len(labels)) for name, labels in options.items()})
        self.bound_end, self.bound_noun = (
            nn.ModuleDict({kind: nn.Linear(WIDTH, len(words)) for kind, (_, words) in BOUND_WORDS.items()})
            for _ in range(2)
        )


@dataclass(frozen=True)
class BoundWord:
    """A word of `BOUND_WORDS`: its number there, and which of the sentence's words its noun is, counted from 0."""

    number: int
    noun: int


def find_bound_word(kind: str, sentence: str) -> BoundWord | None:
    """Return the word of a kind and its noun; None where a sentence has none, or different ones of several nouns.

    >>> find_bound_word("hair style", "a photo of a person with short brown hair")
    BoundWord(number=0, noun=8)
    """
    things, options = BOUND_WORDS[kind]
    words, found = split_words([sentence]), list[BoundWord]()
    for place, word in enumerate(words):
        near = [w for w in words[max(0, place - REACH) : place] if w in options] if word in things else []
        found += [BoundWord(options.index(w), place) for w in near[-1:]]
    return found[0] if len({word.number for word in found}) == 1 else None


def compute_binding_loss(reader: TextReader, states: Tensor, end: Tensor, captions: Sequence[Caption]) -> Tensor:
    """Return the errors of the bound words, read at their nouns and at the end of the sentences.

    Args:
        states: `[batch, LENGTH, WIDTH]`; the first is of the start token.
        end: `[batch, WIDTH]`.
    """
    total, rows = torch.zeros((), device=end.device), torch.arange(len(captions), device=end.device)
    for kind in BOUND_WORDS:
        found = [find_bound_word(kind, caption.text) for caption in captions]
        if not any(found):
            continue
        wanted, places = (
            torch.tensor([UNSEEN if word is None else word.number for word in found], device=end.device),
            torch.tensor([0 if word is None else min(word.noun + 1, LENGTH - 1) for word in found], device=end.device),
        )
        for read in (reader.bound_end[kind](end), reader.bound_noun[kind](states[rows, places])):
            total = total + F.cross_entropy(read, wanted, ignore_index=UNSEEN)
    return total


def choose_states(states: Tensor, text: NamedText, end_id: int, random: np.random.Generator) -> Tensor:
    """Return a state after the sentence's last word, `[batch, WIDTH]`: of the end token or of the padding."""
    first = (text.ids == end_id).int().argmax(1)
    places = [int(random.integers(int(f), LENGTH)) for f in first]
    return states[torch.arange(len(states)), torch.tensor(places)]


def compute_identity_loss(reader: TextReader, end: Tensor, shown: Sequence[ImageContent]) -> Tensor:
    """Return the error of who is there, read from the end: one person, the left and the right of two, an animal."""
    total = torch.zeros((), device=end.device)
    for head, faces in (
        (reader.who, [p.subjects[0].person.get_vector() if len(p.subjects) == 1 else None for p in shown]),
        (reader.left, [p.subjects[0].person.get_vector() if len(p.subjects) == 2 else None for p in shown]),
        (reader.right, [p.subjects[1].person.get_vector() if len(p.subjects) == 2 else None for p in shown]),
        (reader.pet, [p.pets[0].animal.get_vector() if p.pets else None for p in shown]),
    ):
        present = [i for i, face in enumerate(faces) if face is not None]
        if present:
            vectors = torch.from_numpy(np.stack([f for f in faces if f is not None])).to(end.device)
            # Rare company counts by its share, so that a batch with one pair does not jump.
            total = total + F.mse_loss(head(end[present]), vectors) * (len(present) / len(shown)) ** 0.5
    return total


def compute_text_loss(
    reader: TextReader, states: Tensor, text: NamedText, shown: Sequence[ImageContent], end: Tensor, first_id: int
) -> Tensor:
    """Return the errors of all answers; who it is is also read from the name's own place."""
    who = compute_identity_loss(reader, end, shown)
    named = states[text.ids == first_id]
    if len(named):
        who = who + F.mse_loss(reader.who(named), text.firsts)
    worn = [{a for s in (*p.subjects, *p.pets) for a in s.attributes} for p in shown]
    asked = reader.version.attributes
    has = torch.tensor([[float(a in attributes) for a in asked] for attributes in worn], device=end.device)
    total = F.binary_cross_entropy_with_logits(reader.attributes(end), has) * len(asked)
    for name, wanted in label_scenes(shown).items():
        total = total + F.cross_entropy(reader.choices[name](end), wanted.to(end.device))
    return total + TextRecipe.identity_weight * who


def caption_contents(
    count: int, random: np.random.Generator, version: WorldVersion
) -> tuple[list[Caption], list[ImageContent]]:
    """Return captions of random images, and the images as far as their captions say them."""
    shown = [sample_content(random, version=version) for _ in range(count)]
    captions, said = zip(*(say(p, random, version) for p in shown), strict=True)
    return list(captions), list(said)


def train_text(
    parts: TextParts,
    recipe: TextRecipe,
    seed: int,
    progress: Progress,
    checkpointing: Checkpointing = NOWHERE,
    earlier: EarlierWords | None = None,
    device: str = "cpu",
) -> None:
    """Train the encoder and the naming network, in place; an earlier model's states of old words stay near."""
    torch.manual_seed(seed)
    version = recipe.version
    reader, tokenizer = TextReader(version).to(device), parts.tokenizer
    parts.text.to(device)
    parts.names.to(device)
    earlier = earlier and earlier.to(device)
    parameters = [*parts.text.parameters(), *parts.names.parameters(), *reader.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    first_id = tokenizer.convert_tokens_to_ids(f"{FIRST}</w>")

    def compute_loss(step: int) -> Tensor:
        random = np.random.default_rng([seed, 21, step])
        said, shown = caption_contents(recipe.batch, random, version)
        text = tokenise_captions(tokenizer, said, random).to(device)
        jitter, blur = (
            torch.from_numpy(random.standard_normal((recipe.batch, LENGTH, WIDTH), np.float32)).to(device)
            for _ in range(2)
        )
        with choose_autocast(device):
            clean = encode_named(parts, text, jitter).float()
            distance = recipe.earlier_weight * earlier.measure_distance(clean, text, jitter) if earlier else 0.0
        # Noise on the states makes the encoder say everything loudly, not only readably.
        states = clean + recipe.noise * blur
        end = choose_states(states, text, tokenizer.eos_token_id, random)
        noisier = clean + recipe.bound_noise * blur
        bound_end = choose_states(noisier, text, tokenizer.eos_token_id, random)
        bound = recipe.bound_weight * compute_binding_loss(reader, noisier, bound_end, said)
        return compute_text_loss(reader, states, text, shown, end, first_id) + bound + distance

    setup = TrainingSetup(
        "text",
        (recipe, SCENE_LABELS, version.attributes, earlier is not None),
        seed,
        recipe.steps,
        {"text": parts.text, "names": parts.names, "teller": reader},
        optimiser,
        partial(compute_one_cycle_rate, steps=recipe.steps, top=recipe.learning_rate),
        clip=1.0,
    )
    run_training(setup, compute_loss, checkpointing, progress)
    parts.text.to("cpu")
    parts.names.to("cpu")
