"""FastComposer: nothing is learned of a subject but how CLIP sees it; the model was tuned once to read that."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from sefi.attention.install import key_value_attention
from sefi.backbone.bundle import Backbone
from sefi.backbone.weights import ATTENTION_LAYERS, cross_attention_names, part_of, swapped
from sefi.conditioning.composer import (
    ComposerConditioner,
    Fuse,
    clip_pixels,
    opened_composer,
    opened_fusion,
    read_composer,
)
from sefi.conditioning.conditioner import check_identities
from sefi.core.config import ComposeConfig, Config
from sefi.core.errors import ConfigError
from sefi.core.nouns import Identity
from sefi.core.protocols import Conditioner
from sefi.methods.base import About, Watched, Weights, header_of
from sefi.photo.views import PhotoViews, rgb_bytes

FEATURES = {"tiny": 128}  # length of the image encoder's; else as wide as the text, as for Stable Diffusion 1.x
SHIPPED = Path(__file__).parent.parent / "models" / "composer.safetensors"


class FastComposer:
    """FastComposer (Xiao et al. 2023, arXiv 2305.10431).

    Any number of subjects share a prompt. The subject comes in after the first `1 - alpha` of the steps; a strength
    below 1 shortens its share.
    Differs: of the UNet only cross-attention is tuned; the reference picture is another one of the person, not a
    piece of the picture that is to be denoised.
    """

    about = About("FastComposer", "arXiv 2305.10431", "MIT; written anew, trained on our drawings")

    def weights(self, backbone: Backbone, config: Config) -> Weights:
        """Nothing for a subject; for all of them the fusion and the tuned attention, the image encoder not counted."""
        del config
        there = dict(backbone.unet.named_parameters())
        tuned = sum(there[name].numel() for name in cross_attention_names(backbone.unet, ATTENTION_LAYERS))
        with torch.device("meta"):
            fusion = Fuse(backbone.width, FEATURES.get(backbone.family, backbone.width))
        return Weights(0, tuned + sum(p.numel() for p in fusion.parameters()))

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, watched: Watched
    ) -> Identity:
        """`image`: features `[1, features]` of the photo, as it is.

        Raises:
            ConfigError: no image encoder, or no trained weights for this model.
        """
        if watched.judges is None:
            raise ConfigError(
                "FastComposer reads the photo with CLIP, and this model brings none.",
                "Name a folder with clip/ in it with --judges.",
            )
        weights = read_composer(weights_file(config.compose.weights), backbone.fingerprint)
        composer = opened_composer(watched.judges, backbone.width, part_of(weights, "composer"))
        with torch.no_grad():
            image = composer.features(clip_pixels([rgb_bytes(views.clean)], composer.vision.config))
        return Identity({"image": image.contiguous()}, header_of(name, backbone, config, seed))

    @contextmanager
    def applied(
        self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0
    ) -> Generator[Conditioner]:
        """The tuned attention in place, and a conditioner that fuses pictures into words."""
        check_identities(backbone, identities)
        chosen = [ComposeConfig.model_validate(i.header.settings["compose"]) for i in identities] or [Config().compose]
        weights = read_composer(weights_file(chosen[0].weights), backbone.fingerprint)
        conditioner = ComposerConditioner(
            backbone,
            opened_fusion(part_of(weights, "composer")),
            {i.name: i.tensors["image"].mean(0) for i in identities},
            {i.name: i.header.class_word for i in identities},
            min(1.0, strength * chosen[0].alpha),
        )
        with swapped(backbone.unet, part_of(weights, "unet")), key_value_attention(backbone.unet, backbone.width):
            yield conditioner


def weights_file(named: str | None) -> Path:
    """Where FastComposer's trained weights lie."""
    return SHIPPED if named is None else Path(named)
