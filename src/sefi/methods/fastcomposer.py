"""FastComposer: nothing is learned of a subject but how CLIP sees it; the model was tuned once to read that."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.backbone.weights import ATTENTION_LAYERS, copy_with_weights, cross_attention_names, part_of
from sefi.conditioning.composer import (
    ComposerConditioner,
    Fuse,
    clip_pixels,
    load_composer,
    load_fusion,
    read_composer,
)
from sefi.conditioning.conditioner import check_identities
from sefi.core.config import ComposeConfig, Config, from_saved
from sefi.core.errors import IdentityError
from sefi.core.nouns import Identity
from sefi.generate.sampler import ConditionedModel
from sefi.methods.base import MethodInfo, RunOptions, WeightCounts, create_header
from sefi.methods.checks import check_judges, check_one_word, check_person, check_settings_used
from sefi.photo.views import PhotoViews, rgb_bytes

FEATURES = {"tiny": 128}  # length of the image encoder's; else as wide as the text, as for Stable Diffusion 1.x
SHIPPED = Path(__file__).parent.parent / "models" / "composer.safetensors"


class FastComposer:
    """FastComposer (Xiao et al. 2023, arXiv 2305.10431).

    Any number of subjects share a prompt. The subject comes in after the first `1 - alpha` of the steps; a strength
    below 1 shortens its share, and at 0 the model is its own.
    Differs: of the UNet only cross-attention is tuned; the reference picture is another one of the person, not a
    piece of the picture that is to be denoised, and no noise is put around it; the features are the image encoder's
    before CLIP's projection.
    """

    info = MethodInfo("FastComposer", "arXiv 2305.10431", "MIT; written anew, trained on our drawings")

    def weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Nothing for a subject; for all of them the fusion and the tuned attention, the image encoder not counted."""
        del config
        there = dict(backbone.unet.named_parameters())
        tuned = sum(there[name].numel() for name in cross_attention_names(backbone.unet, ATTENTION_LAYERS))
        with torch.device("meta"):
            fusion = Fuse(backbone.width, FEATURES.get(backbone.family, backbone.width))
        return WeightCounts(0, tuned + sum(p.numel() for p in fusion.parameters()))

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """A person; no stages, no keys of their own; CLIP, and weights trained for this model."""
        check_one_word(self.info.title, config)
        check_person(self.info.title, config)
        check_settings_used(self.info.title, config, attention_weight=0.0, probe_every=0)
        check_judges(self.info.title, judges, "clip")
        read_composer(get_weights_file(config.compose.weights), backbone)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: RunOptions
    ) -> Identity:
        """`image`: features `[1, features]` of the photo, as it is; `composer`: SHA-256 of the trained weights."""
        assert options.judges is not None
        file = get_weights_file(config.compose.weights)
        weights = read_composer(file, backbone)
        composer = load_composer(options.judges, backbone.width, part_of(weights, "composer"))
        with torch.no_grad():
            image = composer.encode_images(clip_pixels([rgb_bytes(views.clean)], composer.vision.config))
        tensors = {"image": image.contiguous(), "composer": hash_file(file)}
        return Identity(tensors, create_header(name, backbone, config, seed))

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """A copy of the model with the tuned attention, and a conditioner that fuses pictures into words.

        Raises:
            IdentityError: they were learned with other weights than there are, or with different settings.
        """
        check_identities(backbone, identities)
        chosen = choose_settings(identities)
        file = get_weights_file(chosen.weights)
        weights = read_composer(file, backbone)
        check_weights(identities, file)
        fusion = load_fusion(part_of(weights, "composer"), backbone.width)
        conditioner = ComposerConditioner(
            backbone,
            fusion,
            {i.name: get_features(i, fusion) for i in identities},
            {i.name: i.header.class_word for i in identities},
            min(1.0, strength * chosen.alpha),
        )
        tuned = {name: value for name, value in weights.items() if name.startswith("unet.")}
        return ConditionedModel(copy_with_weights(backbone, tuned if conditioner.alpha else {}), conditioner)


def choose_settings(identities: Sequence[Identity]) -> ComposeConfig:
    """How these identities are composed.

    Raises:
        IdentityError: not all in the same way.
    """
    chosen = [from_saved(i.header.settings).compose for i in identities] or [Config().compose]
    for identity, one in zip(identities, chosen, strict=False):
        if one != chosen[0]:
            raise IdentityError(
                f"{identities[0].name!r} and {identity.name!r} have different settings of compose.",
                "Learn one of them again with the settings of the other; it takes a second.",
            )
    return chosen[0]


def check_weights(identities: Sequence[Identity], file: Path) -> None:
    """Refuse identities whose features were read with other weights.

    Raises:
        IdentityError: one was.
    """
    there = hash_file(file)
    for identity in identities:
        found = identity.tensors.get("composer")
        if found is None or found.tolist() != there.tolist():
            raise IdentityError(
                f"{identity.name!r} was learned with other weights of FastComposer than {file} holds.",
                "Learn it again; it takes a second.",
            )


def get_features(identity: Identity, fusion: Fuse) -> Tensor:
    """Return the features `[features]` of an identity's picture.

    Raises:
        IdentityError: it has none, or of another length than the fusion takes.
    """
    expected = fusion.join.norm.normalized_shape[0] - fusion.norm.normalized_shape[0]
    image = identity.tensors.get("image")
    if image is None or image.ndim != 2 or image.shape[1] != expected:
        raise IdentityError(
            f"{identity.name!r} has no features of a picture that FastComposer reads here.",
            "Learn it again; it takes a second.",
        )
    return image.float().mean(0)


def hash_file(file: Path) -> Tensor:
    """A file's digest, uint8 `[32]`."""
    with file.open("rb") as content:
        return torch.frombuffer(bytearray(hashlib.file_digest(content, "sha256").digest()), dtype=torch.uint8)


def get_weights_file(named: str | None) -> Path:
    """Where FastComposer's trained weights lie."""
    return SHIPPED if named is None else Path(named)
