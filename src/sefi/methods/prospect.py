"""ProSpect: a token for each of ten stages, from an expansion module, by denoising alone."""

from pathlib import Path

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.identity.tokens import IdentityTokens, module_weights, slots_of
from sefi.methods.base import About, TokenMethod, Watched, Weights, class_row, learn_tokens
from sefi.methods.refusals import allow_only, staged
from sefi.photo.views import PhotoViews


class ProSpect(TokenMethod):
    """ProSpect (Zhang et al. 2023, arXiv 2305.16225).

    Differs: only the stage of a sample is encoded at each step (the published code encodes all ten), so batches work;
    the module is thrown away and the tokens are kept.
    """

    about = About("ProSpect", "arXiv 2305.16225", "Apache-2.0; written anew")

    def weights(self, backbone: Backbone, config: Config) -> Weights:
        """A token for each stage, and the module that gives them."""
        return Weights(
            config.learn.stages * slots_of(config.learn) * backbone.width, module_weights(backbone.width, config.learn)
        )

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """One token for the placeholder, and no attention loss."""
        del backbone, judges
        staged(self.about.title, config)
        allow_only(self.about.title, config, attention_weight=0.0)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, watched: Watched
    ) -> Identity:
        """Tokens `[stage, 2, width]`, key and value the same."""
        tokens = IdentityTokens(class_row(backbone, config), config.learn, seed)
        return learn_tokens(tokens, name, views, backbone, config, seed, watched)
