"""A finished model's words for a new training: its encoder, its token rows word by word, its names as a network."""
# transformers annotates its modules too widely.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from sefi.world.text_training import NamedText, NameTokens, Worded, encode_named, naming_lessons

FIT_STEPS, FIT_RATE = 1500, 3e-3


@dataclass(frozen=True)
class Earlier:
    """An earlier model's words, and the earlier id of every id of a newer tokenizer, -1 where it had none."""

    worded: Worded
    ids: Tensor

    def to(self, device: str) -> "Earlier":
        """The same with its networks on another device."""
        self.worded.text.to(device)
        self.worded.names.to(device)
        return Earlier(self.worded, self.ids.to(device))

    def distance(self, states: Tensor, text: NamedText, noise: Tensor) -> Tensor:
        """Mean square distance of states `[batch, word, width]` from the earlier ones, over sentences of old words."""
        ids = self.ids[text.ids]
        old = (ids >= 0).all(1)
        with torch.no_grad():
            known = NamedText(ids.clamp(min=0), text.firsts, text.lasts)
            wanted = encode_named(self.worded, known, noise).float()
        return F.mse_loss(states[old], wanted[old])


def earlier_words(folder: Path) -> Worded:
    """Tokenizer and text encoder of a model folder, and a naming network fitted to the rows of its names.

    The network that made the names is not part of a finished model; its 2,000 answers are.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True, use_safetensors=True)
    text = text.float().eval().requires_grad_(requires_grad=False)
    text.set_attn_implementation("eager")
    return Worded(text, fitted_names(text, tokenizer), tokenizer)


def fitted_names(text: CLIPTextModel, tokenizer: CLIPTokenizer) -> NameTokens:
    """The naming network whose answers are nearest to the rows of the named characters."""
    torch.manual_seed(0)
    names, table = NameTokens(), text.get_input_embeddings().weight.detach()
    lessons = [(vectors, table[ids], last) for ids, vectors, last in naming_lessons(tokenizer)]
    optimiser = torch.optim.Adam(names.parameters(), lr=FIT_RATE)
    for step in range(FIT_STEPS):
        optimiser.param_groups[0]["lr"] = FIT_RATE * (1 - step / FIT_STEPS)
        loss = torch.stack([F.mse_loss(names(v, last=last) / 0.05, rows / 0.05) for v, rows, last in lessons]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return names.requires_grad_(requires_grad=False)


def widened(pupil: Worded, earlier: Worded) -> Earlier:
    """Give the pupil what the earlier model knows, in place; words that are new keep their random rows."""
    old, table = earlier.tokenizer.get_vocab(), pupil.text.get_input_embeddings().weight
    ids = torch.full((len(table),), -1)
    for word, number in pupil.tokenizer.get_vocab().items():
        ids[number] = old.get(word, -1)
    known = ids >= 0
    rows = table.detach().clone()
    rows[known] = earlier.text.get_input_embeddings().weight.detach()[ids[known]]
    state = earlier.text.state_dict()
    name = next(k for k in state if k.endswith("token_embedding.weight"))
    pupil.text.load_state_dict({**state, name: rows})
    pupil.names.load_state_dict(earlier.names.state_dict())
    return Earlier(earlier, ids)
