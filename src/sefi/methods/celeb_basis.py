"""Celeb Basis: two tokens within the space of known names, their coefficients read from the face itself."""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.bundle import Backbone
from sefi.backbone.quiet import LOADING
from sefi.conditioning.names import COLUMNS, look_up_name_rows, read_name_list
from sefi.core.config import Config
from sefi.core.errors import ConfigError, FaceError
from sefi.core.nouns import Identity
from sefi.core.streams import stream
from sefi.methods.base import MethodInfo, RunOptions, TokenMethod, WeightCounts, get_class_row, learn_tokens
from sefi.methods.checks import check_judges, check_one_word, check_person
from sefi.metrics.faces import DETECTOR, RECOGNISER, SurestFace
from sefi.photo.views import PhotoViews, rgb_bytes

FEATURES = 128  # length of an SFace embedding; the published method reads 512 numbers of an IResNet100
MOMENTUM = 0.99


class CelebBasis(TokenMethod):
    """Celeb Basis (Yuan et al. 2023, arXiv 2306.00926).

    Differs: the recogniser is SFace instead of InsightFace's; it sees the photo and its mirror image, not every view;
    the running mean of the coefficients starts at nothing and is used at unit length, as it is learned (the published
    one keeps a rest of random numbers, and is shorter where the coefficients still turned); the basis is kept with the
    result, so that it depends on no list and no library; components that the names do not span, which the published
    code fills with whatever its library gives, are left out.
    """

    info = MethodInfo("Celeb Basis", "arXiv 2306.00926", "MIT; written anew, without its InsightFace weights")

    def weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Coefficients; the layer that gives them from a face."""
        found = min(config.basis.components, backbone.width)
        with torch.device("meta"):
            return WeightCounts(COLUMNS * found, sum(p.numel() for p in Mapper(FEATURES, found).parameters()))

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """A person; no stages, no keys of their own; a detector, a recogniser and names."""
        check_one_word(self.info.title, config)
        check_person(self.info.title, config)
        check_judges(self.info.title, judges, DETECTOR, RECOGNISER)
        compute_bases(backbone, config)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: RunOptions
    ) -> Identity:
        """Tokens `[1, 2, 3, width]`: two in the basis, then the class word; with coefficients and basis.

        Raises:
            FaceError: no face in the photo.
        """
        basis = compute_bases(backbone, config)
        faces = torch.tensor(np.stack(embed_faces(views, options)))
        tokens = BasisTokens(get_class_row(backbone, config), basis, faces, seed)
        return learn_tokens(tokens, name, views, backbone, config, seed, options)


def compute_bases(backbone: Backbone, config: Config) -> Tensor:
    """Mean and components of both words of the known names, `[2, 1 + component, width]`.

    Raises:
        ConfigError: no list of names, or too few different ones.
    """
    columns = look_up_name_rows(backbone, read_name_list(backbone, config.basis.names))
    spanned = min(count_dimensions(column) for column in columns)
    if not spanned:
        raise ConfigError("All names of the list are the same.", "Give a longer list with basis.names.")
    return torch.stack(
        [compute_principal_components(column, min(config.basis.components, spanned)) for column in columns]
    )


def count_dimensions(rows: Tensor) -> int:
    """How many components rows `[name, width]` span: one less than there are different ones, the width at most."""
    return min(len(torch.unique(rows, dim=0)) - 1, rows.shape[1])


def compute_principal_components(rows: Tensor, count: int) -> Tensor:
    """Mean and first principal components of rows `[name, width]`: `[1 + component, width]`, mean first.

    The components are orthonormal and not scaled; each one's largest entry is positive, so that libraries agree.
    """
    mean = rows.mean(0, keepdim=True)
    components = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:count]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return torch.cat([mean, components * largest.sign()])


def embed_faces(views: PhotoViews, options: RunOptions) -> list[NDArray[np.float32]]:
    """Unit embeddings of the photo's face and of its mirror image.

    Raises:
        FaceError: there is none.
    """
    assert options.judges is not None
    embed = SurestFace.of(options.judges)
    found = [face for side in (views.clean, views.clean.flip(-1)) if (face := embed(rgb_bytes(side))) is not None]
    if not found:
        raise FaceError("The recogniser's detector finds no face in the photo.", "Use a photo from the front.")
    return found


class Mapper(nn.Module):
    """A face's embedding to the coefficients of both tokens: one equalised linear layer, then LeakyReLU.

    Source: Celeb Basis, `meta_net.py`: weights from a standard normal, scaled when used.
    """

    def __init__(self, features: int, components: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        shape = (COLUMNS * components, features)
        with LOADING:
            self.weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float32))
            self.bias = nn.Parameter(torch.zeros(shape[0], dtype=torch.float32))

    def forward(self, face: Tensor) -> Tensor:
        """`face [features]` to unit coefficients `[2, component]`."""
        raw = F.linear(face, self.weight / math.sqrt(self.weight.shape[1]), self.bias)
        return F.normalize(F.leaky_relu(raw, 0.2).unflatten(0, (COLUMNS, -1)), dim=-1)


class BasisTokens(nn.Module):
    """Tokens from coefficients in the basis: learned through the mapper, kept as a running mean.

    Args:
        class_token: row of the class word, the last of the three tokens.
        basis: `[2, 1 + component, width]`, mean first.
        faces: embeddings of the photo, `[face, features]`.
        seed: of the mapper's first weights.
    """

    class_token: Tensor
    basis: Tensor
    faces: Tensor
    running: Tensor
    updates: Tensor

    def __init__(self, class_token: Tensor, basis: Tensor, faces: Tensor, seed: int) -> None:
        super().__init__()
        for name, value in {"class_token": class_token, "basis": basis, "faces": faces}.items():
            self.register_buffer(name, value.detach().float().clone())
        components = basis.shape[1] - 1
        self.mapper = Mapper(faces.shape[1], components, stream(seed, "mapper"))
        self.register_buffer("running", torch.zeros(COLUMNS, components, dtype=torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def compute_coefficients(self) -> Tensor:
        """Unit coefficients `[2, component]`: of this step while learning, else the running mean's direction."""
        if not self.training and self.updates:
            return F.normalize(self.running, dim=-1)
        return self.mapper(self.faces[int(self.updates) % len(self.faces)])

    def forward(self, random: torch.Generator | None = None) -> Tensor:
        """`[1, 2, 3, width]`: two tokens in the basis, then the class word; nothing is random."""
        inside = self.basis[:, 0] + torch.einsum("kc,kcw->kw", self.compute_coefficients(), self.basis[:, 1:])
        return torch.cat([inside, self.class_token[None]]).expand(1, 2, -1, -1)

    @torch.no_grad()
    def after_step(self) -> None:
        """One more step into the running mean."""
        now = self.mapper(self.faces[int(self.updates) % len(self.faces)])
        self.running.mul_(MOMENTUM).add_((1 - MOMENTUM) * now)
        self.updates += 1

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """The coefficients and the basis that they belong to."""
        return {"coefficients": self.compute_coefficients().detach().clone(), "basis": self.basis.clone()}
