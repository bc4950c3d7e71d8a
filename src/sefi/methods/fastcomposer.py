"""FastComposer: nothing is learned of a subject but how CLIP sees it; the model was tuned once to read that."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.backbone.weights import ATTENTION_LAYERS, copy_with_weights, list_cross_attention_weights, select_part_tensors
from sefi.core.config import NAMES_FILE, ONE_TOKEN, Config, Section, make_embedded_preset, require_config
from sefi.core.errors import ConfigError, IdentityError
from sefi.diffusion.composer import (
    ComposerConditioner,
    Fuse,
    load_composer,
    load_fusion,
    prepare_clip_pixels,
    read_composer,
)
from sefi.diffusion.conditioning import check_identities
from sefi.diffusion.sampling import ConditionedModel
from sefi.diffusion.text import get_class_token_ids
from sefi.identity.file import Identity, read_saved_config
from sefi.methods.base import (
    UNREAD_BY_WEIGHTS,
    VIEW_SETTINGS,
    MethodInfo,
    TrainingOptions,
    WeightCounts,
    check_person,
    create_header,
    refuse_stages,
    require_evaluators,
    require_learn_values,
)
from sefi.photo.augment import PhotoViews, convert_to_bytes

FEATURES = {"tiny": 128}  # length of the image encoder's; else as wide as the text, as for Stable Diffusion 1.x
# Nothing is learned, from one square that is as `views.crop_margin` cuts it.
TRAINING_SETTINGS = (
    "steps", "batch", "learning_rate", "weight_decay", "gradient_clip", "rate_schedule", "patience", "templates"
)  # fmt: skip
UNREAD = (
    *UNREAD_BY_WEIGHTS,
    *(f"learn.{name}" for name in TRAINING_SETTINGS),
    *VIEW_SETTINGS,
    "views.flip",
    "views.latent_pool",
)
SHIPPED = Path(__file__).parent.parent / "models" / "composer.safetensors"


class ComposeSettings(Section, frozen=True):
    """What was learned once for all subjects, and when the subject comes in."""

    weights: str | None = Field(
        None, description="file of trained weights; none: the embedded model's", json_schema_extra=NAMES_FILE
    )
    alpha: float = Field(
        0.7, ge=0, le=1, description="share of the denoising steps, counted from the end, that use the photo"
    )


class FastComposerConfig(Config, frozen=True):
    """Settings of FastComposer."""

    compose: ComposeSettings = ComposeSettings()  # pyright: ignore[reportCallIssue]


ONE_STEP = ONE_TOKEN | {"steps": 1}
PRESETS = {
    "": make_embedded_preset(ONE_STEP, compose={"alpha": 1.0}),
    # mit-han-lab/fastcomposer, run_evaluation.sh.
    "official": {"learn": ONE_STEP, "compose": {"alpha": 0.5}, "generate": {"guidance_scale": 5.0}},
}


class FastComposer:
    """FastComposer (Xiao et al. 2023, arXiv 2305.10431).

    Any number of subjects share a prompt. The subject comes in after the first `1 - alpha` of the steps; a strength
    below 1 shortens its share, and at 0 the model is its own.
    Differs: of the UNet only cross-attention is tuned; the reference image is another one of the person, not a
    piece of the image that is to be denoised, and no noise is put around it; the features are the image encoder's
    before CLIP's projection.
    """

    info = MethodInfo(
        "FastComposer",
        "arXiv 2305.10431",
        "MIT; own implementation, trained on our drawings",
        keeps="the photo as an image encoder sees it; nothing is learned of it",
        kilobytes=5.2,
        needs="weights trained once; the embedded model only",
        unread=UNREAD,
    )
    presets = PRESETS
    config_type = FastComposerConfig

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count nothing for a subject; for all of them fusion and tuned attention, without the image encoder."""
        del config
        parameters = dict(backbone.unet.named_parameters())
        tuned = sum(parameters[name].numel() for name in list_cross_attention_weights(backbone.unet, ATTENTION_LAYERS))
        with torch.device("meta"):
            fusion = Fuse(backbone.token_width, FEATURES.get(backbone.family, backbone.token_width))
        return WeightCounts(0, tuned + sum(p.numel() for p in fusion.parameters()))

    def check_settings(self, config: Config) -> None:
        """Require a person in one token, no stages, no keys of their own, and no probe."""
        refuse_stages(self.info.title, config)
        check_person(self.info.title, config)
        require_learn_values(self.info.title, config, attention_weight=0.0, probe_every=0)

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Require a class word of known tokens, CLIP, and weights trained for this model."""
        self.check_settings(config)
        get_class_token_ids(backbone, config.learn.class_word)
        require_evaluators(self.info.title, evaluators, "clip")
        read_composer(get_weights_file(require_config(config, FastComposerConfig).compose.weights), backbone)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Return `image`, features `[1, features]`, and `composer`, SHA-256 of the trained weights.

        The features of several photos are averaged.
        """
        assert options.evaluators is not None
        file = get_weights_file(require_config(config, FastComposerConfig).compose.weights)
        weights = read_composer(file, backbone)
        composer = load_composer(options.evaluators, backbone.token_width, select_part_tensors(weights, "composer"))
        with torch.no_grad():
            photos = [convert_to_bytes(crop) for crop in views.crops]
            image = composer.encode_images(prepare_clip_pixels(photos, composer.vision.config)).mean(0, keepdim=True)
        tensors = {"image": image.contiguous(), "composer": hash_file(file)}
        return Identity(tensors, create_header(name, backbone, config, seed))

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """Return a copy of the model with the tuned attention, and a conditioner that fuses images into words.

        Raises:
            IdentityError: they were learned with other weights than there are, or with different settings.
            ConfigError: a strength beyond the one that is in all steps.
        """
        check_identities(backbone, identities)
        chosen = choose_settings(identities)
        if identities:
            check_share(strength, chosen.alpha)
        file = get_weights_file(chosen.weights)
        weights = read_composer(file, backbone)
        check_weights(identities, file)
        fusion = load_fusion(select_part_tensors(weights, "composer"), backbone.token_width)
        conditioner = ComposerConditioner(
            backbone,
            fusion,
            {i.name: get_features(i, fusion) for i in identities},
            {i.name: i.header.class_word for i in identities},
            min(1.0, strength * chosen.alpha),
        )
        tuned = {name: value for name, value in weights.items() if name.startswith("unet.")}
        return ConditionedModel(copy_with_weights(backbone, tuned if conditioner.alpha else {}), conditioner)


def check_share(strength: float, alpha: float) -> None:
    """Refuse a strength that cannot do more than another one: at `1 / alpha` the subject is in all steps.

    Raises:
        ConfigError: names the most that has an effect.
    """
    if strength * alpha > 1 + 1e-9:  # 1 / alpha is rounded
        raise ConfigError(
            f"FastComposer's subject is in all steps at a strength of {1 / alpha:.3g}: {strength:g} does no more.",
            f"Set generate.identity_strength={math.floor(100 / alpha) / 100:g} or less.",
        )


def choose_settings(identities: Sequence[Identity]) -> ComposeSettings:
    """Return the settings that these identities are composed with.

    Raises:
        IdentityError: they differ.
    """
    chosen = [read_saved_config(i.header, FastComposerConfig).compose for i in identities] or [
        FastComposerConfig().compose
    ]
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
    digest = hash_file(file)
    for identity in identities:
        saved = identity.tensors.get("composer")
        if saved is None or saved.tolist() != digest.tolist():
            raise IdentityError(
                f"{identity.name!r} was learned with other weights of FastComposer than {file} holds.",
                "Learn it again; it takes a second.",
            )


def get_features(identity: Identity, fusion: Fuse) -> Tensor:
    """Return the features `[features]` of an identity's image.

    Raises:
        IdentityError: it has none, or of another length than the fusion takes.
    """
    expected = fusion.join.norm.normalized_shape[0] - fusion.norm.normalized_shape[0]
    image = identity.tensors.get("image")
    if image is None or image.ndim != 2 or image.shape[1] != expected:
        raise IdentityError(
            f"{identity.name!r} has no features of an image that FastComposer reads here.",
            "Learn it again; it takes a second.",
        )
    return image.float().mean(0)


def hash_file(file: Path) -> Tensor:
    """Return a file's digest, uint8 `[32]`."""
    with file.open("rb") as content:
        return torch.frombuffer(bytearray(hashlib.file_digest(content, "sha256").digest()), dtype=torch.uint8)


def get_weights_file(named: str | None) -> Path:
    """Return the file of FastComposer's trained weights."""
    return SHIPPED if named is None else Path(named)
