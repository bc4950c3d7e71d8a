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

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from sefi.core.protocols import Progress
from sefi.world.captions import FIRST, Caption, caption
from sefi.world.person import VECTOR_WIDTH
from sefi.world.picture import ATTRIBUTES, Picture
from sefi.world.reader_training import SCENE_LABELS, scene_labels
from sefi.world.sampling import random_picture
from sefi.world.text_training import LENGTH, WIDTH, NamedText, NameTokens, encode_named, named_text

QUESTIONS: dict[str, tuple[str, ...]] = {**SCENE_LABELS, "people": ("one", "two")}


@dataclass(frozen=True)
class TellingRecipe:
    """Endless sentences, no drawings."""

    steps: int = 1000
    batch: int = 96
    learning_rate: float = 1e-3
    identity_weight: float = 2.0
    noise: float = 0.5


class Teller(nn.Module):
    """Text states `[..., WIDTH]` to who it is `[..., VECTOR_WIDTH]`, and logits of attributes and of each choice."""

    def __init__(self) -> None:
        super().__init__()
        self.who = nn.Linear(WIDTH, VECTOR_WIDTH)
        self.attributes = nn.Linear(WIDTH, len(ATTRIBUTES))
        self.choices = nn.ModuleDict({name: nn.Linear(WIDTH, len(options)) for name, options in QUESTIONS.items()})


def told(states: Tensor, text: NamedText, end_id: int, random: np.random.Generator) -> Tensor:
    """A state after the sentence's last word, `[batch, WIDTH]`: the end token or any of the padding behind it."""
    first = (text.ids == end_id).int().argmax(1)
    places = [int(random.integers(int(f), LENGTH)) for f in first]
    return states[torch.arange(len(states)), torch.tensor(places)]


def telling_loss(
    teller: Teller, states: Tensor, text: NamedText, shown: Sequence[Picture], end: Tensor, first_id: int
) -> Tensor:
    """Errors of all answers; who it is also from the name's own place."""
    vectors = torch.from_numpy(np.stack([p.subjects[0].person.vector() for p in shown]))
    single = torch.tensor([len(p.subjects) == 1 for p in shown])
    who = F.mse_loss(teller.who(end)[single], vectors[single])
    named = states[text.ids == first_id]
    who = who + F.mse_loss(teller.who(named), text.firsts)
    has = torch.tensor([[float(any(a in s.attributes for s in p.subjects)) for a in ATTRIBUTES] for p in shown])
    total = F.binary_cross_entropy_with_logits(teller.attributes(end), has) * len(ATTRIBUTES)
    answers = {**scene_labels(shown), "people": (~single).long()}
    for name, wanted in answers.items():
        total = total + F.cross_entropy(teller.choices[name](end), wanted)
    return total + TellingRecipe.identity_weight * who


def train_telling(
    text_encoder: CLIPTextModel,
    names: NameTokens,
    tokenizer: CLIPTokenizer,
    recipe: TellingRecipe,
    seed: int,
    progress: Progress,
) -> None:
    """Teach the encoder and the naming network, in place."""
    torch.manual_seed(seed)
    teller = Teller()
    parameters = [*text_encoder.parameters(), *names.parameters(), *teller.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, recipe.steps, pct_start=0.1)
    first_id = tokenizer.convert_tokens_to_ids(f"{FIRST}</w>")
    progress.start(recipe.steps, "text")
    for step in range(recipe.steps):
        random = np.random.default_rng([seed, 21, step])
        shown = [random_picture(random) for _ in range(recipe.batch)]
        said: list[Caption] = [caption(p, random) for p in shown]
        text = named_text(tokenizer, said, random)
        jitter = torch.from_numpy(random.standard_normal((recipe.batch, LENGTH, WIDTH), np.float32))
        with torch.autocast("cpu", torch.bfloat16):
            states = encode_named(text_encoder, names, tokenizer, text, jitter)
        # Noise on the states makes the encoder say everything loudly, not only readably.
        states = states.float() + recipe.noise * torch.from_numpy(random.standard_normal(states.shape, np.float32))
        end = told(states, text, tokenizer.eos_token_id, random)
        loss = telling_loss(teller, states, text, shown, end, first_id)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        plan.step()
        progress.advance(loss=float(loss.detach()))
    progress.finish()
