"""A small record of every tensor of a model, which distinguishes copies in other dtypes from other weights.

Of each tensor 64 evenly spaced values are looked at, and the smallest of them is stored with its place. Rounding to
float16, bfloat16 or both moves a value by at most 2^-7 of itself, so a copy agrees in every tensor. A training step
moves small and large values alike, so it shows in the smallest ones: on the embedded model a step of 1e-5 in every
weight (AdamW's first) shows in more than 200 of 562 tensors, rounding in none (tests/backbone/test_signature.py).
A change to a few values of one tensor may be missed.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sefi.core.text import dump_json

SAMPLES = 64
RELATIVE = 1.5 * 2**-7  # a bfloat16 step is 2^-7; half a step more for files that were cut off instead of rounded
ABSOLUTE = 2**-24  # a step of the smallest float16 numbers
RECORD = np.dtype([("place", "u1"), ("value", "<u2")])
# Tensors that a pipeline has loaded beside a model's own: LoRA, IP-Adapter, projections fused for speed.
ADDED = re.compile(r"\.(lora_\w+|processor|to_kv|to_qkv)\.|^encoder_hid_proj\.image_projection_layers\.")
PART_NAMES = {
    "text_encoder": "text encoder", "text_encoder_2": "second text encoder", "unet": "UNet", "vae": "VAE"
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """How a model differs from the one of a stored signature; part names as people write them.

    Attributes:
        tokenizer: another vocabulary.
        structure: parts with other tensors or shapes.
        weights: parts with other values.
    """

    tokenizer: bool
    structure: tuple[str, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ModelSignature:
    """Samples of one model's tensors, taken when it was opened.

    Attributes:
        tokenizer: size and digest of each tokenizer's vocabulary, added tokens left out.
        shapes: digest of the names and shapes of each part's tensors.
        samples: `[tensor, 64]` for each part, float32, in the order of the tensors' names.
    """

    tokenizer: str
    shapes: Mapping[str, str]
    samples: Mapping[str, Tensor]

    def dump(self) -> dict[str, str]:
        """Return what an identity's header keeps: about 4 bytes for each tensor."""
        return {"tokenizer": self.tokenizer} | {
            part: f"{self.shapes[part]}:{_encode(samples)}" for part, samples in self.samples.items()
        }

    def compute_digest(self) -> str:
        """Return 16 hex digits of `dump()`: equal for equal weights of one dtype, for what must not be mixed."""
        return hashlib.sha256(dump_json(self.dump(), sort_keys=True).encode()).hexdigest()[:16]

    def compare(self, stored: Mapping[str, str]) -> Difference:
        """Return how this model differs from the one whose `dump()` this is.

        Raises:
            ValueError: the record is damaged.
        """
        structure: list[str] = []
        weights: list[str] = []
        for part, samples in self.samples.items():
            shapes, _, record = stored.get(part, "").partition(":")
            if shapes != self.shapes[part]:
                structure.append(PART_NAMES[part])
            elif not _fits_record(samples, record):
                weights.append(PART_NAMES[part])
        return Difference(stored.get("tokenizer") != self.tokenizer, tuple(structure), tuple(weights))


def sign_model(
    tokenizers: Sequence[PreTrainedTokenizerBase], text_encoders: Sequence[nn.Module], unet: nn.Module, vae: nn.Module
) -> ModelSignature | None:
    """Return a model's signature; None for one without values (the meta device)."""
    encoders = dict(zip(("text_encoder", "text_encoder_2"), text_encoders, strict=False))
    parts = {**encoders, "unet": unet, "vae": vae}
    if any(weight.is_meta for part in parts.values() for weight in part.parameters()):
        return None
    tables = [get_token_table(encoder) for encoder in text_encoders]
    rows = {id(t): count_base_rows(tokenizer, t) for tokenizer, t in zip(tokenizers, tables, strict=True)}
    signed = {name: _sample_part(part, rows) for name, part in parts.items()}
    return ModelSignature(
        "+".join(map(_sign_vocabulary, tokenizers)),
        {name: shapes for name, (shapes, _) in signed.items()},
        {name: samples for name, (_, samples) in signed.items()},
    )


def get_token_table(text_encoder: Any) -> Tensor:  # noqa: ANN401
    """Return the token table `[row, width]`."""
    return text_encoder.get_input_embeddings().weight


def count_base_rows(tokenizer: PreTrainedTokenizerBase, table: Tensor) -> int:
    """Return how many rows the token table had before tokens were added, as textual inversions are."""
    added = len(tokenizer) > tokenizer.vocab_size
    return min(len(table), tokenizer.vocab_size) if added else len(table)


def _sample_part(part: nn.Module, rows: Mapping[int, int]) -> tuple[str, Tensor]:
    """Sample a part: digest of names and shapes, and 64 values of each tensor, `[tensor, 64]` on the CPU.

    Args:
        rows: how many rows of a token table count, by its `id`.
    """
    digest, samples = hashlib.sha256(), list[Tensor]()
    weights = {name.replace(".base_layer.", "."): weight for name, weight in part.named_parameters()}
    for name, weight in sorted(weights.items()):
        if ADDED.search(name):
            continue
        counted = weight[: rows[id(weight)]] if id(weight) in rows else weight
        flat = counted.detach().reshape(-1)
        digest.update(f"{name.removeprefix('text_model.')}:{tuple(counted.shape)};".encode())
        places = torch.arange(SAMPLES, device=flat.device) * flat.numel() // SAMPLES
        samples.append(flat[places].float())
    return digest.hexdigest()[:8], torch.stack(samples).cpu()


def _sign_vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    size = tokenizer.vocab_size
    words = sorted((number, word) for word, number in tokenizer.get_vocab().items() if number < size)
    return f"{size}:{hashlib.sha256(repr(words).encode()).hexdigest()[:8]}"


def _encode(samples: Tensor) -> str:
    """Encode the smallest sample of each tensor with its place, as base64."""
    places = samples.abs().argmin(dim=1)
    values = samples.gather(1, places[:, None])[:, 0].to(torch.bfloat16).view(torch.uint16)
    record = np.empty(len(samples), RECORD)
    record["place"], record["value"] = places.numpy(), values.numpy()
    return base64.b64encode(record.tobytes()).decode("ascii")


def _fits_record(samples: Tensor, text: str) -> bool:
    """Return whether every tensor has the stored value at the stored place, up to rounding."""
    record = np.frombuffer(base64.b64decode(text, validate=True), RECORD)
    if len(record) != len(samples) or (record["place"] >= SAMPLES).any():
        raise ValueError("a model signature of another length")
    places = torch.from_numpy(record["place"].astype(np.int64))
    stored = torch.from_numpy(record["value"].copy()).view(torch.bfloat16).float()
    values = samples.gather(1, places[:, None])[:, 0]
    slack = RELATIVE * torch.maximum(values.abs(), stored.abs()) + ABSOLUTE
    return bool(((values - stored).abs() <= slack).all())
