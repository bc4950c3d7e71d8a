"""FastComposer's networks: CLIP's features of a face image, fused into the state of its word."""
# transformers annotates outputs too narrowly.
# pyright: reportOptionalMemberAccess=false

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sefi.backbone.bundle import Backbone, TextEncoding, join_batches
from sefi.backbone.files import LOADING, quiet_libraries
from sefi.backbone.open import open_backbone
from sefi.backbone.part_configs import read_clip_config
from sefi.backbone.signature import ModelSignature
from sefi.backbone.weights import load_part, select_part_tensors
from sefi.core.errors import ConfigError
from sefi.core.prompts import refuse_names
from sefi.core.reading import InvalidFileError, parse_object, read_tensors, translate_file_errors
from sefi.core.text import dump_json
from sefi.diffusion.conditioning import RecentEncodings, pad_texts
from sefi.diffusion.text import (
    ParsedPrompt,
    apply_weights,
    count_chunks,
    get_class_token_ids,
    join_texts,
    parse_prompt,
)

TRAINED_LAYERS = 2  # the last ones of the image encoder
LARGEST_FEATURES = 8192
REMEDY = "Use the weights that were trained for this model."
KEY = "sefi-composer"
SIGNATURE_KEY = "sefi-model-signature"


class TwoLayers(nn.Module):
    """Layer norm, two linear layers with a GELU between, and the input added where the sizes allow it and it is asked.

    Source: FastComposer, `model.py::MLP`.
    """

    def __init__(self, into: int, out: int, hidden: int, *, residual: bool) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(into), nn.Linear(into, hidden), nn.Linear(hidden, out)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., into]` to `[..., out]`."""
        change = self.second(nn.functional.gelu(self.first(self.norm(x))))
        return x + change if self.residual else change


class Fuse(nn.Module):
    """A word's state and an image's features to one state of the word (FastComposer's `PostfuseModule`)."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.join = TwoLayers(width + features, width, width, residual=False)
        self.refine = TwoLayers(width, width, width, residual=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, state: Tensor, features: Tensor) -> Tensor:
        """Fuse states `[n, width]` and features `[n, features]` to states `[n, width]`."""
        return self.norm(self.refine(self.join(torch.cat([state, features], dim=-1)) + state))


class Composer(nn.Module):
    """Image encoder and fusion; the encoder's first layers are CLIP's and stay so.

    Differs: the features are the encoder's pooled state before CLIP's projection.
    """

    def __init__(self, vision: CLIPVisionModel, width: int) -> None:
        super().__init__()
        self.vision = vision
        self.fuse = Fuse(width, int(vision.config.hidden_size))

    def list_trained(self) -> dict[str, nn.Parameter]:
        """List the weights that are trained: the fusion, the image encoder's last layers and its last norm."""
        layers = int(self.vision.config.num_hidden_layers)
        last = tuple(f"layers.{n}." for n in range(layers - TRAINED_LAYERS, layers))
        return {
            name: weight
            for name, weight in self.named_parameters()
            if name.startswith("fuse.") or "post_layernorm" in name or any(layer in name for layer in last)
        }

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode images `[n, 3, side, side]`, normalised as CLIP's, to `[n, features]`."""
        return self.vision(pixel_values=pixels).pooler_output


def load_composer(evaluators: Path, width: int, weights: Mapping[str, Tensor]) -> Composer:
    """Load the networks with their trained weights, the others CLIP's.

    Raises:
        ConfigError: no CLIP in the folder, or another one than they were trained with.
    """
    with LOADING:
        vision = load_clip_vision(evaluators / "clip")
        with torch.device("meta"):
            composer = Composer(vision, width)
    composer.fuse.to_empty(device="cpu").float()
    shapes = {name: weight.shape for name, weight in composer.list_trained().items()}
    if shapes != {name: weight.shape for name, weight in weights.items()}:
        raise ConfigError("FastComposer's weights do not fit this CLIP.", "Use the one that they were trained with.")
    composer.load_state_dict(dict(weights), strict=False)
    return composer.eval().requires_grad_(requires_grad=False)


def load_fusion(weights: Mapping[str, Tensor], width: int) -> Fuse:
    """Return the fusion alone, its features as long as its weights, which are named `fuse....`.

    Args:
        width: of the model's text.

    Raises:
        ConfigError: weights are missing, or fit no fusion of this width.
    """
    fuse_weights = select_part_tensors(weights, "fuse")
    shape = fuse_weights["join.first.weight"].shape if "join.first.weight" in fuse_weights else ()
    if len(shape) != 2 or shape[0] != width or not 0 < shape[1] - width <= LARGEST_FEATURES:
        raise ConfigError("FastComposer's weights do not fit this model.", REMEDY)
    # Without first values: they would be drawn from torch's state, which all threads share.
    with LOADING, torch.device("meta"):
        fuse = Fuse(width, shape[1] - width)
    if {n: w.shape for n, w in fuse.state_dict().items()} != {n: w.shape for n, w in fuse_weights.items()}:
        raise ConfigError("FastComposer's weights do not fit this model.", REMEDY)
    fuse.to_empty(device="cpu").float().load_state_dict(fuse_weights)
    return fuse.eval().requires_grad_(requires_grad=False)


def load_clip_vision(folder: Path) -> CLIPVisionModel:
    """Load the image encoder of a CLIP folder, in single precision; no other code, no network.

    Raises:
        ConfigError: there is none.
        BackboneError: its configuration or its weights are damaged or out of bounds.
    """
    remedy = "Name a folder with clip/ in it with --evaluators."
    with translate_file_errors(folder, ConfigError, "holds no CLIP", remedy), quiet_libraries():
        settings = read_clip_config(folder / "config.json").vision_config.list_arguments()
        # The implementation is named: the library must never take it from a file.
        return load_part(CLIPVisionModel, folder, settings, torch.float32, attn_implementation="sdpa")


def prepare_clip_pixels(images: Sequence[NDArray[np.uint8]], config: CLIPVisionConfig) -> Tensor:
    """Resize and normalise RGB squares `[side, side, 3]` of any size for the image encoder."""
    side = int(str(config.image_size))
    small = [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC), np.float32) for p in images]
    values = (np.stack(small) / 255 - np.array(OPENAI_CLIP_MEAN, np.float32)) / np.array(OPENAI_CLIP_STD, np.float32)
    return torch.from_numpy(values.astype(np.float32)).permute(0, 3, 1, 2).contiguous()


def describe_model(backbone: Backbone) -> dict[str, str]:
    """Return the metadata by which trained weights find the model that they were trained for."""
    signature = {} if backbone.signature is None else backbone.signature.dump()
    return {KEY: backbone.fingerprint, SIGNATURE_KEY: dump_json(signature)}


def read_composer(path: Path, backbone: Backbone) -> dict[str, Tensor]:
    """Return trained weights, `composer.NAME` and `unet.NAME`; the model may have any dtype.

    Raises:
        ConfigError: missing, foreign, or trained for another model.
    """
    if not path.is_file():
        raise ConfigError(
            f"FastComposer has no weights at {path}.",
            "Put them there; or train some (`sefi world train composer`), then learn with compose.weights=FILE.",
        )
    with translate_file_errors(path, ConfigError, "is damaged or no safetensors file", "Copy it again."):
        metadata, tensors = read_tensors(path)
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise InvalidFileError("a weight is not finite")
        trained_on = metadata.get(KEY, "")[:200]
        fits = is_trained_for(backbone, trained_on, parse_object(metadata.get(SIGNATURE_KEY, "{}")))
    if not fits:
        raise ConfigError(
            f"{path} was trained for {trained_on or 'something else'}, this model is {backbone.fingerprint}"
            " or has other weights.",
            "Open the model that it was trained for, or use another method.",
        )
    return {name: tensor.float() for name, tensor in tensors.items()}


def is_trained_for(backbone: Backbone, name: str, signature: Mapping[str, str]) -> bool:
    """Return whether weights belong to a model.

    Args:
        backbone: the model, in any dtype.
        name: fingerprint of the model that the weights were trained for.
        signature: that model's `dump()` signature; empty for the shipped weights and for other old files, which
            have the name alone. The name covers two tensors, so the embedded model's signature is compared as well.

    Raises:
        ValueError: the signature is damaged.
    """
    if backbone.signature is None:
        return name == backbone.fingerprint
    if (
        not signature
        and backbone.family == "tiny"
        and not backbone.is_embedded
        and name == describe_embedded_model()[0]
    ):
        signature = describe_embedded_model()[1].dump()
    if not signature:
        return name == backbone.fingerprint
    difference = backbone.signature.compare({part: str(record) for part, record in signature.items()})
    return not (difference.tokenizer or difference.structure or difference.weights)


@cache
def describe_embedded_model() -> tuple[str, ModelSignature]:
    """Return fingerprint and signature of the embedded model."""
    backbone = open_backbone()
    assert backbone.signature is not None
    return backbone.fingerprint, backbone.signature


class ComposerConditioner:
    """Plain words in the noisier steps, words fused with their images in the last ones.

    Args:
        features: `[features]` of each name's image.
        class_words: what each name is.
        alpha: share of the timesteps, the cleaner ones, that know the images.
    """

    def __init__(
        self,
        backbone: Backbone,
        fuse: Fuse,
        features: Mapping[str, Tensor],
        class_words: Mapping[str, str],
        alpha: float,
    ) -> None:
        self.backbone, self.fuse, self.features, self.alpha = backbone, fuse, dict(features), alpha
        self.class_words = dict(class_words)
        for word in self.class_words.values():
            get_class_token_ids(backbone, word)  # the image is fused with the state of one token
        self.encodings = RecentEncodings()

    def get_context_key(self, timestep: int) -> int:
        """Return 1 where the images are known, 0 before."""
        return int(timestep < self.alpha * self.backbone.num_train_timesteps)

    def count_chunks(self, prompt: str) -> int:
        """Return how many chunks a prompt has."""
        return count_chunks(self.backbone, prompt, self.class_words)

    def encode_prompts(self, prompts: Sequence[str], timestep: int) -> TextEncoding:
        """Encode prompts to key and value text, the same, states `[batch, word, 2 * width]`."""
        stage = self.get_context_key(timestep)
        return join_batches(pad_texts(self, [self.encode_one(prompt, stage) for prompt in prompts]))

    def encode_negative(self, count: int, negative_prompt: str = "") -> TextEncoding:
        """Encode the negative prompt, states `[count, word, 2 * width]`; `PromptError` if it names an identity."""
        refuse_names(negative_prompt)
        return self.encode_one(negative_prompt, 0).expand(count)

    @torch.no_grad()
    def encode_one(self, prompt: str, stage: int) -> TextEncoding:
        """Encode one prompt, states `[1, word, 2 * width]`."""
        encoding = self.encodings.find(prompt, stage)
        if encoding is None:
            parsed = parse_prompt(self.backbone, prompt, self.class_words)
            text = self.backbone.encode_text(parsed.ids[None])
            if stage:
                text = replace(text, states=fuse_images(text.states, [parsed], [self.features], self.fuse))
            text = apply_weights(self.backbone, text, parsed)
            encoding = join_texts(text, text)
            self.encodings.add(encoding, prompt, stage)
        return encoding


def fuse_images(
    states: Tensor, parsed: Sequence[ParsedPrompt], images: Sequence[Mapping[str, Tensor]], fuse: Fuse
) -> Tensor:
    """Fuse every name's word in states `[batch, word, width]` with its image; differentiable.

    Args:
        images: for each sentence the features of its names; a name without any stays plain.
    """
    places = [
        (row, place, images[row][name])
        for row, one in enumerate(parsed)
        for name, positions in one.places.items()
        if name in images[row]
        for place in positions
    ]
    if not places:
        return states
    rows, words = (torch.tensor([p[k] for p in places], device=states.device) for k in (0, 1))
    # The fusion keeps its own device and precision, whatever the model has.
    first_weight = fuse.norm.weight
    features = torch.stack([features for _, _, features in places]).to(first_weight)
    return states.index_put((rows, words), fuse(states[rows, words].to(first_weight), features).to(states))
