"""ProSpect: a token for each of ten stages, from an expansion module, by denoising alone."""

from pathlib import Path

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.identity.tokens import IdentityTokens, count_module_weights, count_slots
from sefi.methods.base import MethodInfo, RunOptions, TokenMethod, WeightCounts, get_class_row, learn_tokens
from sefi.methods.checks import check_settings_used, check_staged
from sefi.photo.views import PhotoViews


class ProSpect(TokenMethod):
    """ProSpect (Zhang et al. 2023, arXiv 2305.16225).

    Differs: only the stage of a sample is encoded at each step (the published code encodes all ten), so batches work;
    the module is thrown away and the tokens are kept.
    """

    info = MethodInfo("ProSpect", "arXiv 2305.16225", "Apache-2.0; written anew")

    def weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """A token for each stage, and the module that gives them."""
        return WeightCounts(
            config.learn.stages * count_slots(config.learn) * backbone.width,
            count_module_weights(backbone.width, config.learn),
        )

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """One token for the placeholder, and no attention loss."""
        del backbone, judges
        check_staged(self.info.title, config)
        check_settings_used(self.info.title, config, attention_weight=0.0)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: RunOptions
    ) -> Identity:
        """Tokens `[stage, 2, width]`, key and value the same."""
        tokens = IdentityTokens(get_class_row(backbone, config), config.learn, seed)
        return learn_tokens(tokens, name, views, backbone, config, seed, options)
