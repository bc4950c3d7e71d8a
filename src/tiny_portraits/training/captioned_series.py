"""What the denoiser learns beside latents, made once for a whole series: weights, labels, texts of several captions."""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import CLIPTokenizer

from sefi.core.progress import Progress
from tiny_portraits.drawing.content import WorldVersion
from tiny_portraits.drawing.sampling import get_content
from tiny_portraits.text.captions import say
from tiny_portraits.text.text_encoder import (
    WIDTH,
    NamedText,
    TextParts,
    draw_name_changes,
    encode_named,
    tokenise_captions,
)
from tiny_portraits.text.tokenizing import LENGTH
from tiny_portraits.training.acceleration import choose_autocast
from tiny_portraits.training.drawings import run_in_processes
from tiny_portraits.training.latent_reader import LatentLabels, label_contents
from tiny_portraits.training.latents import EMPTY, DiffusionRecipe, compute_face_weights

TEXT_TENSORS = tuple(field.name for field in fields(NamedText))


@dataclass(frozen=True)
class CaptionedSeries:
    """Everything on one device.

    Attributes:
        weights: how much each latent cell counts, float16 `[count, 1, side, side]`.
        labels: what there is to read.
        states: text states of the captions of every image, float16 `[count, captions, LENGTH, WIDTH]`.
        empty: text states of the empty caption, `[LENGTH, WIDTH]`.
    """

    weights: Tensor
    labels: LatentLabels
    states: Tensor
    empty: Tensor


@dataclass(frozen=True)
class CaptionedRange:
    """The same of some images, texts not encoded yet."""

    weights: Tensor
    labels: LatentLabels
    text: NamedText


def write_range(part: CaptionedRange) -> bytes:
    """Return a range as bytes: a process that passes tensors on needs an open file for each of them."""
    text = {f"text.{name}": getattr(part.text, name) for name in TEXT_TENSORS}
    return save({"weights": part.weights, **text, **part.labels.get_tensors()})


def read_range(data: bytes) -> CaptionedRange:
    """Return the range that `write_range` wrote."""
    tensors = load(data)
    text = NamedText(*(tensors[f"text.{name}"] for name in TEXT_TENSORS))
    return CaptionedRange(tensors["weights"], LatentLabels.select_from(tensors), text)


def caption_range(
    tokenizer_folder: Path, seed: int, captions: int, recipe: DiffusionRecipe, version: WorldVersion, numbers: range
) -> bytes:
    """Return what there is to learn of some images; captions are in the order of the images."""
    torch.set_num_threads(1)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    random = np.random.default_rng([seed, 61, numbers.start])
    shown = [get_content(seed, number, version) for number in numbers]
    said = [say(content, random, version)[0] for content in shown for _ in range(captions)]
    weights = compute_face_weights(shown, version.latent_side, recipe).half()
    return write_range(
        CaptionedRange(weights, label_contents(shown, version), tokenise_captions(tokenizer, said, random))
    )


@torch.no_grad()
def encode_text(
    worded: TextParts, text: NamedText, device: torch.device, changed_names: float = 0.0, scene_share: float = 0.0
) -> Tensor:
    """Return text states float16 `[batch, LENGTH, WIDTH]`; names get a little noise, so that neighbours look alike.

    Args:
        changed_names: share of the sentences with changed name tokens.
        scene_share: share of the sentences whose names carry the scene that is left out.
    """
    with choose_autocast(device):
        noise = torch.randn((len(text.ids), LENGTH, WIDTH), device=device)
        changes = draw_name_changes(len(text.ids), changed_names, torch.default_generator, scene_share).to(device)
        return encode_named(worded, text.to(device), noise, changes).half()


def caption_series(
    tokenizer_folder: Path, seed: int, count: int, captions: int, recipe: DiffusionRecipe, version: WorldVersion,
    progress: Progress,
) -> list[CaptionedRange]:  # fmt: skip
    """Return what there is to learn of a seed's first images, in parts."""
    job = partial(caption_range, tokenizer_folder, seed, captions, recipe, version)
    return [read_range(data) for data in run_in_processes(job, count, progress, "captions")]


def encode_series_texts(
    parts: list[CaptionedRange], worded: TextParts, seed: int, device: torch.device, changed_names: float = 0.0,
    scene_share: float = 0.0,
) -> CaptionedSeries:  # fmt: skip
    """Return the whole series on a device, where the text encoder lies too.

    Args:
        changed_names: share of the captions with changed name tokens.
        scene_share: share of the captions whose names carry the scene that is left out.
    """
    torch.manual_seed(seed)
    states = torch.cat([encode_text(worded, part.text, device, changed_names, scene_share) for part in parts])
    empty = encode_text(worded, tokenise_captions(worded.tokenizer, [EMPTY], np.random.default_rng(0)), device)[0]
    labels = join_labels([part.labels for part in parts]).to(device)
    weights = torch.cat([part.weights for part in parts]).to(device)
    return CaptionedSeries(weights, labels, states.reshape(len(weights), -1, LENGTH, WIDTH), empty)


def label_range(seed: int, version: WorldVersion, numbers: range) -> bytes:
    """Return the labels of some images of a seed, as bytes."""
    torch.set_num_threads(1)
    return save(label_contents([get_content(seed, number, version) for number in numbers], version).get_tensors())


def label_series(seed: int, count: int, version: WorldVersion, progress: Progress) -> LatentLabels:
    """Return the labels of a seed's first images."""
    job = partial(label_range, seed, version)
    return join_labels(
        [LatentLabels.select_from(load(data)) for data in run_in_processes(job, count, progress, "labels")]
    )


def join_labels(parts: list[LatentLabels]) -> LatentLabels:
    """Return the labels of all parts, one after the other."""
    named = [part.get_tensors() for part in parts]
    return LatentLabels.select_from({name: torch.cat([tensors[name] for tensors in named]) for name in named[0]})
