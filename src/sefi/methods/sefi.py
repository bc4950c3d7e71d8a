"""The paper's method: a key token and a value token for every stage, held in place by the attention loss."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from sefi.attention.install import key_value_attention
from sefi.backbone.bundle import Backbone
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.core.config import Config, to_dict
from sefi.core.nouns import Identity, IdentityHeader
from sefi.core.protocols import Conditioner
from sefi.learn.loop import Probe, learn_tokens
from sefi.methods.base import Watched
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
        watched: Watched,
    ) -> Identity:
        """Tokens `[stage, 2, width]` that, in the place of the class word, give the subject."""
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
        )

        tokens, numbers = learn_tokens(
            backbone, views, config, seed, watched.progress, watched.checkpoint, scoring(watched.probe, header)
        )
        return Identity({"tokens": tokens}, header.model_copy(update={"metrics": numbers}))

    @contextmanager
    def applied(
        self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0
    ) -> Generator[Conditioner]:
        """Key-value attention in place, and a conditioner that writes the tokens into the sentences."""
        with key_value_attention(backbone.unet, backbone.width):
            yield IdentityConditioner(backbone, identities, strength)


def scoring(probe: Callable[[Identity], float] | None, header: IdentityHeader) -> Probe | None:
    """A probe of identities as one of their tokens."""
    return None if probe is None else lambda tokens: probe(Identity({"tokens": tokens}, header))
