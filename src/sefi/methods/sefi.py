"""The paper's method: a key token and a value token for every stage, held in place by the attention loss."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from sefi.attention.install import key_value_attention
from sefi.backbone.bundle import Backbone
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.core.config import Config, to_dict
from sefi.core.nouns import Identity, IdentityHeader
from sefi.core.protocols import Conditioner, Progress
from sefi.learn.loop import learn_tokens
from sefi.photo.views import PhotoViews

LIBRARIES = ("torch", "diffusers", "transformers")


class StagedKeyValue:
    """SeFi-IDE (arXiv 2402.00631)."""

    def learn(
        self,
        name: str,
        views: PhotoViews,
        backbone: Backbone,
        config: Config,
        seed: int,
        progress: Progress,
        checkpoint: Path | None = None,
    ) -> Identity:
        """Tokens `[stage, 2, width]` that, in the place of the class word, give the subject."""
        tokens, numbers = learn_tokens(backbone, views, config, seed, progress, checkpoint)
        header = IdentityHeader(
            name=name,
            method="sefi",
            stages=config.learn.stages,
            base_model=backbone.fingerprint,
            width=backbone.width,
            class_word=config.learn.class_word,
            settings=to_dict(config),
            seed=seed,
            library_versions={library: version(library) for library in LIBRARIES},
            metrics=numbers,
        )
        return Identity({"tokens": tokens}, header)

    @contextmanager
    def applied(
        self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0
    ) -> Generator[Conditioner]:
        """Key-value attention in place, and a conditioner that writes the tokens into the sentences."""
        with key_value_attention(backbone.unet, backbone.width):
            yield IdentityConditioner(backbone, identities, strength)
