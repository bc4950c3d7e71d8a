"""The text encoder, the naming network, and how both take over the words of an earlier model."""
# diffusers annotates its constructors and outputs too narrowly; torch its modules too widely.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tiny_portraits.drawing.content import SCENES
from tiny_portraits.drawing.traits import VECTOR_WIDTH, sample_relative
from tiny_portraits.text.captions import FIRST, LAST, Caption
from tiny_portraits.text.tokenizing import LENGTH
from tiny_portraits.text.words import list_characters

WIDTH = 192
# Standard deviation of a name token's numbers, about that of native rows.
NAME_DEVIATION = 0.05
# Factors of the length of name tokens that `draw_name_changes` chooses from.
LENGTHS = (0.6, 1.8)
# Lengths of the scene that a name token may carry, in lengths of a name token.
SCENE_LENGTHS = (0.4, 1.2)
FIT_STEPS, FIT_RATE = 1500, 3e-3


class NameTokens(nn.Module):
    """Identity vector `[batch, VECTOR_WIDTH]` to the token of a first name or of a last name `[batch, WIDTH]`."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.first = build_naming_network(width)
        self.last = build_naming_network(width)

    def forward(self, vectors: Tensor, *, last: bool) -> Tensor:
        """Return tokens with about the spread of native rows."""
        network = self.last if last else self.first
        return NAME_DEVIATION * network(vectors)


def build_naming_network(width: int) -> nn.Sequential:
    """Return two layers and a normalisation without weights."""
    return nn.Sequential(
        nn.Linear(VECTOR_WIDTH, 256),
        nn.SiLU(),
        nn.Linear(256, width),
        nn.LayerNorm(width, elementwise_affine=False),
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return a CLIP text transformer of 4 layers, width 192, 32 words."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = CLIPTextModel(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.05)
    return model


@dataclass(frozen=True)
class TextParts:
    """A text encoder, the network that makes tokens of names, and the tokenizer that both belong to."""

    text: CLIPTextModel
    names: NameTokens
    tokenizer: CLIPTokenizer


def build_text_parts(tokenizer: CLIPTokenizer) -> TextParts:
    """Return an untrained text encoder and naming network."""
    text = build_text_encoder(tokenizer)
    text.set_attn_implementation("eager")
    return TextParts(text, NameTokens(), tokenizer)


@dataclass(frozen=True)
class NamedText:
    """Sentences as numbers.

    Attributes:
        ids: token ids `[batch, LENGTH]`.
        firsts, lasts: the identity vector of every first and last name, in reading order, `[name, VECTOR_WIDTH]`.
        scenes: number in `SCENES` of the scene that a sentence leaves out, -1 where it leaves none out, `[batch]`.
    """

    ids: Tensor
    firsts: Tensor
    lasts: Tensor
    scenes: Tensor

    def to(self, device: torch.device | str) -> "NamedText":
        """Return the same on another device."""
        return NamedText(*(values.to(device) for values in (self.ids, self.firsts, self.lasts, self.scenes)))


def tokenise_captions(tokenizer: CLIPTokenizer, captions: Sequence[Caption], random: np.random.Generator) -> NamedText:
    """Return captions as ids and vectors; a last name gets the vector of some relative, as families do."""
    ids = tokenizer(
        [c.text for c in captions],
        padding="max_length",
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
    ).input_ids
    first_id, last_id = (tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in (FIRST, LAST))
    firsts, lasts = [], []
    for row, caption in zip(ids, captions, strict=True):
        first_places, last_places = ((row == i).nonzero().flatten().tolist() for i in (first_id, last_id))
        firsts += [p.get_vector() for p in caption.named[: len(first_places)]]
        spoken = dict(zip(first_places, caption.named, strict=False))
        lasts += [sample_relative(spoken[place - 1], random).get_vector() for place in last_places]
    empty = np.zeros((0, VECTOR_WIDTH), np.float32)
    scenes = torch.tensor([SCENES.index(c.unsaid_scene) if c.unsaid_scene else -1 for c in captions])
    return NamedText(ids, *(torch.from_numpy(np.stack(v) if v else empty) for v in (firsts, lasts)), scenes)


@dataclass(frozen=True)
class NameChanges:
    """How the name tokens of each sentence differ from the naming network's.

    Attributes:
        lengths: factors of their length, `[batch]`.
        turns: shares of a random direction in theirs, 0 to 1, `[batch]`.
        scenes: lengths of the unsaid scene that is added to them, in lengths of a name token, `[batch]`.
    """

    lengths: Tensor
    turns: Tensor
    scenes: Tensor

    def to(self, device: torch.device | str) -> "NameChanges":
        """Return the same on another device."""
        return NameChanges(self.lengths.to(device), self.turns.to(device), self.scenes.to(device))

    def apply(self, rows: Tensor, noise: Tensor, sentences: Tensor) -> Tensor:
        """Return changed tokens `[name, WIDTH]`.

        Args:
            noise: standard normal `[name, WIDTH]`.
            sentences: the number of each token's sentence, `[name]`.
        """
        turn = self.turns[sentences, None].to(rows)
        elsewhere = NAME_DEVIATION * noise.to(rows)
        mixed = (1 - turn) * rows + turn * elsewhere
        # The length of a mixture is less than that of its parts.
        mixed = mixed * (rows.norm(dim=1, keepdim=True) / mixed.norm(dim=1, keepdim=True))
        return self.lengths[sentences, None].to(rows) * mixed


def draw_name_changes(count: int, share: float, stream: torch.Generator, scene_share: float = 0.0) -> NameChanges:
    """Return changes of a share of the sentences, so that a token that no name has is still read as one person.

    Learned tokens leave the shell on which all names lie: without this, a token of 1.7 times a name's length is drawn
    as two people.

    Args:
        count: sentences.
        share: of the sentences with another length and direction.
        stream: random numbers.
        scene_share: share of the sentences whose names carry the scene that is left out, as names in captions from the
            web go with places. Without it no learned token could bring back a photo's background.
    """
    changed = torch.rand(count, generator=stream) < share
    lengths = draw_lengths(count, LENGTHS, stream)
    turns = torch.rand(count, generator=stream) ** 2
    carries, scenes = torch.rand(count, generator=stream) < scene_share, draw_lengths(count, SCENE_LENGTHS, stream)
    return NameChanges(
        torch.where(changed, lengths, 1.0), torch.where(changed, turns, 0.0), torch.where(carries, scenes, 0.0)
    )


def draw_lengths(count: int, limits: tuple[float, float], stream: torch.Generator) -> Tensor:
    """Return uniform numbers `[count]` between two limits."""
    low, high = limits
    return low + (high - low) * torch.rand(count, generator=stream)


@torch.no_grad()
def compute_scene_rows(worded: TextParts) -> Tensor:
    """Return what a name token may carry of every scene, `[scene + 1, WIDTH]`, as long as a name token; last, zeros.

    These are the rows of the scenes' words, so that the text encoder can read them.
    """
    ids = worded.tokenizer.convert_tokens_to_ids([f"{scene}</w>" for scene in SCENES])
    rows = worded.text.get_input_embeddings().weight.detach()[ids].float()
    lengths = NAME_DEVIATION * WIDTH**0.5
    return nn.functional.pad(nn.functional.normalize(rows) * lengths, (0, 0, 0, 1))


def encode_named(worded: TextParts, text: NamedText, noise: Tensor, changes: NameChanges | None = None) -> Tensor:
    """Return text states `[batch, LENGTH, WIDTH]`; name tokens come from the network, jittered a little.

    Args:
        noise: standard normal `[batch, LENGTH, WIDTH]`.
        changes: of the name tokens; None leaves them.
    """
    model, names = worded.text, worded.names
    first_id, last_id = (worded.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in (FIRST, LAST))

    def overwrite(_module: nn.Module, _args: object, rows: Tensor) -> Tensor:
        rows = rows.clone()
        for i, vectors, last in ((first_id, text.firsts, False), (last_id, text.lasts, True)):
            places = text.ids == i
            if len(vectors):
                # A fixed number of rows: the CPU backend compiles again for every shape it has not seen.
                padded = nn.functional.pad(vectors, (0, 0, 0, 2 * len(text.ids) - len(vectors)))
                named = names(padded, last=last)[: len(vectors)]
                named = named + 0.01 * noise[places]
                if changes is not None:
                    sentences = places.nonzero()[:, 0]
                    named = changes.apply(named, noise[places], sentences)
                    scenes = compute_scene_rows(worded)[text.scenes[sentences]]
                    named = named + (scenes * changes.scenes[sentences, None]).to(named)
                rows[places] = named.to(rows.dtype)
        return rows

    handle = model.get_input_embeddings().register_forward_hook(overwrite)
    try:
        return model(text.ids).last_hidden_state
    finally:
        handle.remove()


def list_name_tokens(tokenizer: CLIPTokenizer) -> list[tuple[Tensor, Tensor, bool]]:
    """Return first names, then last ones: token ids `[name]`, identity vectors `[name, VECTOR_WIDTH]`, whether last."""
    everyone = list_characters()
    return [
        (
            torch.tensor(tokenizer.convert_tokens_to_ids([f"{w}</w>" for w in words])),
            torch.from_numpy(np.stack([p.get_vector() for p in people])),
            last,
        )
        for words, people, last in (
            ([c.first for c in everyone], [c.person for c in everyone], False),
            ([c.last for c in everyone], [c.parent for c in everyone], True),
        )
    ]


@torch.no_grad()
def write_names(worded: TextParts) -> None:
    """Write the named characters' tokens into the token table."""
    table = worded.text.get_input_embeddings().weight
    for ids, vectors, last in list_name_tokens(worded.tokenizer):
        table[ids] = worded.names(vectors, last=last).to(table.dtype)


@dataclass(frozen=True)
class EarlierWords:
    """An earlier model's words, and the earlier id of every id of a newer tokenizer, -1 where it had none."""

    worded: TextParts
    ids: Tensor

    def to(self, device: str) -> "EarlierWords":
        """Return the same with its networks on another device."""
        self.worded.text.to(device)
        self.worded.names.to(device)
        return EarlierWords(self.worded, self.ids.to(device))

    def measure_distance(self, states: Tensor, text: NamedText, noise: Tensor) -> Tensor:
        """Return the mean square distance of states `[batch, word, width]` from the earlier model's, for old words."""
        ids = self.ids[text.ids]
        old = (ids >= 0).all(1)
        with torch.no_grad():
            earlier_text = NamedText(ids.clamp(min=0), text.firsts, text.lasts, text.scenes)
            wanted = encode_named(self.worded, earlier_text, noise).float()
        return F.mse_loss(states[old], wanted[old])


def load_earlier_words(folder: Path) -> TextParts:
    """Load tokenizer and text encoder of a model folder, and fit a naming network to the rows of its names.

    The network that made the names is not part of a finished model; its 2,000 answers are.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True, use_safetensors=True)
    text = text.float().eval().requires_grad_(requires_grad=False)
    text.set_attn_implementation("eager")
    return TextParts(text, fit_names(text, tokenizer), tokenizer)


def fit_names(text: CLIPTextModel, tokenizer: CLIPTokenizer) -> NameTokens:
    """Return the naming network whose outputs are nearest to the rows of the named characters."""
    torch.manual_seed(0)
    names, table = NameTokens(), text.get_input_embeddings().weight.detach()
    name_tokens = [(vectors, table[ids], last) for ids, vectors, last in list_name_tokens(tokenizer)]
    optimiser = torch.optim.Adam(names.parameters(), lr=FIT_RATE)
    for step in range(FIT_STEPS):
        optimiser.param_groups[0]["lr"] = FIT_RATE * (1 - step / FIT_STEPS)
        loss = torch.stack([F.mse_loss(names(v, last=last) / 0.05, rows / 0.05) for v, rows, last in name_tokens]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return names.requires_grad_(requires_grad=False)


def take_over_words(parts: TextParts, earlier: TextParts) -> EarlierWords:
    """Write what the earlier model knows into the new one, in place; words that are new keep their random rows."""
    old, table = earlier.tokenizer.get_vocab(), parts.text.get_input_embeddings().weight
    ids = torch.full((len(table),), -1)
    for word, number in parts.tokenizer.get_vocab().items():
        ids[number] = old.get(word, -1)
    shared = ids >= 0
    rows = table.detach().clone()
    rows[shared] = earlier.text.get_input_embeddings().weight.detach()[ids[shared]]
    state = earlier.text.state_dict()
    name = next(k for k in state if k.endswith("token_embedding.weight"))
    parts.text.load_state_dict({**state, name: rows})
    parts.names.load_state_dict(earlier.names.state_dict())
    return EarlierWords(earlier, ids)
