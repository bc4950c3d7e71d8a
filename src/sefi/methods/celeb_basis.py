"""Celeb Basis: two tokens within the space of known names, their coefficients read from the face itself."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.bundle import Backbone
from sefi.backbone.files import LOADING
from sefi.core.config import ONE_TOKEN, Config, make_embedded_preset, make_option, require_config
from sefi.core.errors import ConfigError, FaceError
from sefi.core.prompts import FACE_TEMPLATES_81
from sefi.core.rng import create_generator
from sefi.evaluation.encoders import SurestFace, hash_face_networks
from sefi.identity.file import Identity
from sefi.methods.base import (
    MODULE_SETTINGS,
    NAME_WORDS,
    STAGE_SETTINGS,
    MethodInfo,
    NameListSettings,
    TokenMethod,
    TrainingOptions,
    WeightCounts,
    check_person,
    find_name_rows,
    get_class_row,
    learn_tokens,
    read_name_list,
    refuse_stages,
    require_face_networks,
)
from sefi.photo.augment import PhotoViews, convert_to_bytes, swap_box_sides
from sefi.training.token_inversion import check_gradient_dtype

FEATURES = 128  # length of an SFace embedding; the published method reads 512 numbers of an IResNet100


class BasisSettings(NameListSettings, frozen=True):
    """The space of names that tokens are learned in, and the mean of what is learned there.

    `average_decay` is the d of m <- d m + (1 - d) c after every step, c its coefficients. The published code
    (`EmbeddingManagerId.forward`) makes an update of 0.99 for each sample of a batch: d = 0.99 ** `learn.batch`.
    """

    components: int = Field(
        512, ge=1, le=100_000, description="maximum number of principal components; fewer if the names span fewer"
    )
    average_decay: float = make_option(
        0.99, "decay a step of the coefficients' running mean; as published 0.99 ** learn.batch", gt=0, lt=1
    )


class CelebBasisConfig(Config, frozen=True):
    """Settings of Celeb Basis."""

    basis: BasisSettings = BasisSettings()  # pyright: ignore[reportCallIssue]


PRESETS = {
    "": make_embedded_preset(ONE_TOKEN | {"steps": 200, "batch": 5, "learning_rate": 3e-2}, basis={"components": 64}),
    # ygtxr1997/CelebBasis, aigc_id.yaml: base rate 5e-3 times a batch of 2; a decay of 0.99 for each of its samples.
    "official": {
        "learn": ONE_TOKEN
        | {"templates": FACE_TEMPLATES_81, "steps": 400, "batch": 2, "learning_rate": 1e-2, "weight_decay": 1e-2},
        "basis": {"average_decay": 0.9801},
        "generate": {"guidance_scale": 10.0},
    },
}


class CelebBasis(TokenMethod):
    """Celeb Basis (Yuan et al. 2023, arXiv 2306.00926).

    Differs: the recogniser is SFace instead of InsightFace's; it sees the photo and its mirror image, not every view;
    the running mean of the coefficients starts at nothing and is used at unit length, as it is learned (the published
    one retains a rest of random numbers, and is shorter where the coefficients still turned); in the preset for the
    embedded model, which was tuned so, it decays once a step and not once for each sample; the basis is saved with
    the result, so that it depends on no list and no library; components that the names do not span, which the published
    code fills with whatever its library gives, are left out; the mapper's weights are divided by the root of the number
    of a face's features when they are used, for which the presets were tuned.
    """

    info = MethodInfo(
        "Celeb Basis",
        "arXiv 2306.00926",
        "MIT; own implementation, without its InsightFace weights",
        keeps="coefficients in the space of names, as tokens",
        kilobytes=110,
        needs="a list of names, face detector and recogniser",
        reads_faces=True,
        unread=(*MODULE_SETTINGS, *STAGE_SETTINGS),
    )
    presets = PRESETS
    config_type = CelebBasisConfig

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count the coefficients, and the layer that gives them from a face."""
        components = min(require_config(config, CelebBasisConfig).basis.components, backbone.token_width)
        with torch.device("meta"):
            return WeightCounts(
                NAME_WORDS * components, sum(p.numel() for p in Mapper(FEATURES, components).parameters())
            )

    def check_settings(self, config: Config) -> None:
        """Require a person, no stages, and no keys of their own."""
        refuse_stages(self.info.title, config)
        check_person(self.info.title, config)

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Require a detector, a recogniser, names, and a model that is not in float16."""
        self.check_settings(config)
        check_gradient_dtype(backbone)
        require_face_networks(self.info.title, evaluators)
        compute_bases(backbone, require_config(config, CelebBasisConfig).basis)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Learn tokens `[1, 2, 3, width]`: two in the basis, then the class word; with coefficients and basis.

        Raises:
            FaceError: no face in the photo.
        """
        settings = require_config(config, CelebBasisConfig).basis
        basis = compute_bases(backbone, settings)
        faces = torch.tensor(np.stack(embed_views(views, options)))
        tokens = BasisTokens(get_class_row(backbone, config), basis, faces, seed, settings.average_decay)
        options = replace(options, networks_digest=hash_face_networks(options.evaluators))
        return learn_tokens(tokens, name, views, backbone, config, seed, options)


def compute_bases(backbone: Backbone, settings: BasisSettings) -> Tensor:
    """Compute mean and components of both words of the known names, `[2, 1 + component, width]`.

    Raises:
        ConfigError: no list of names, or too few different ones.
    """
    columns = find_name_rows(backbone, read_name_list(backbone, settings.names))
    spanned = min(count_dimensions(column) for column in columns)
    if not spanned:
        raise ConfigError("All names of the list are the same.", "Give a longer list with basis.names.")
    return torch.stack([compute_principal_components(column, min(settings.components, spanned)) for column in columns])


def count_dimensions(rows: Tensor) -> int:
    """Count the components that rows `[name, width]` span: one less than different rows, the width at most."""
    return min(len(torch.unique(rows, dim=0)) - 1, rows.shape[1])


def compute_principal_components(rows: Tensor, count: int) -> Tensor:
    """Compute mean and first principal components of rows `[name, width]`: `[1 + component, width]`, mean first.

    The components are orthonormal and not scaled; each one's largest entry is positive, so that libraries agree.
    """
    mean = rows.mean(0, keepdim=True)
    components = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:count]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return torch.cat([mean, components * largest.sign()])


def embed_views(views: PhotoViews, options: TrainingOptions) -> list[NDArray[np.float32]]:
    """Embed the subject's face in every photo and its mirror image, at unit length.

    Raises:
        FaceError: there is none.
    """
    embed = SurestFace.load(options.evaluators)
    places = views.places or (None,) * len(views.crops)
    sides = [
        side
        for crop, place in zip(views.crops, places, strict=True)
        for side in ((crop, place), (crop.flip(-1), None if place is None else swap_box_sides(place)))
    ]
    embeddings = [embed(convert_to_bytes(pixels), place) for pixels, place in sides]
    faces = [one for one in embeddings if one is not None]
    if not faces:
        raise FaceError("The recogniser's detector finds no face in the photo.", "Use a photo from the front.")
    return faces


class Mapper(nn.Module):
    """A face's embedding to the coefficients of both tokens: one equalised linear layer, then LeakyReLU.

    Source: Celeb Basis, `meta_net.py`, `EqualLinear`: weights from a standard normal, there used as they are. Here they
    are scaled by 1 / sqrt(features) when they are used.
    """

    def __init__(self, features: int, components: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        shape = (NAME_WORDS * components, features)
        with LOADING:
            self.weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float32))
            self.bias = nn.Parameter(torch.zeros(shape[0], dtype=torch.float32))

    def forward(self, face: Tensor) -> Tensor:
        """Map `face [features]` to unit coefficients `[2, component]`."""
        raw = F.linear(face, self.weight / math.sqrt(self.weight.shape[1]), self.bias)
        return F.normalize(F.leaky_relu(raw, 0.2).unflatten(0, (NAME_WORDS, -1)), dim=-1)


class BasisTokens(nn.Module):
    """Tokens from coefficients in the basis: trained through the mapper, saved as a running mean.

    Args:
        class_token: row of the class word, the last of the three tokens.
        basis: `[2, 1 + component, width]`, mean first.
        faces: embeddings of the photo, `[face, features]`.
        seed: of the mapper's first weights.
        decay: of the running mean, a step.
    """

    class_token: Tensor
    basis: Tensor
    faces: Tensor
    running: Tensor
    updates: Tensor

    def __init__(self, class_token: Tensor, basis: Tensor, faces: Tensor, seed: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        for name, value in {"class_token": class_token, "basis": basis, "faces": faces}.items():
            self.register_buffer(name, value.detach().float().clone())
        components = basis.shape[1] - 1
        self.mapper = Mapper(faces.shape[1], components, create_generator(seed, "mapper"))
        self.register_buffer("running", torch.zeros(NAME_WORDS, components, dtype=torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def compute_coefficients(self) -> Tensor:
        """Return unit coefficients `[2, component]`: of this step in training, else the running mean's direction."""
        if not self.training and self.updates:
            return F.normalize(self.running, dim=-1)
        return self.mapper(self.faces[int(self.updates) % len(self.faces)])

    def forward(self, random: torch.Generator | None = None) -> Tensor:
        """Return `[1, 2, 3, width]`: two tokens in the basis, then the class word; nothing is random."""
        inside = self.basis[:, 0] + torch.einsum("kc,kcw->kw", self.compute_coefficients(), self.basis[:, 1:])
        return torch.cat([inside, self.class_token[None]]).expand(1, 2, -1, -1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Take this step into the running mean."""
        now = self.mapper(self.faces[int(self.updates) % len(self.faces)])
        self.running.mul_(self.decay).add_((1 - self.decay) * now)
        self.updates += 1

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return the coefficients and the basis that they belong to."""
        return {"coefficients": self.compute_coefficients().detach().clone(), "basis": self.basis.clone()}
