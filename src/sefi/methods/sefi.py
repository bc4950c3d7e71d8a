"""The paper's method: a key token and a value token for every stage, held in place by the attention loss."""

from pathlib import Path

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.identity.tokens import IdentityTokens, count_module_weights, count_slots
from sefi.methods.base import MethodInfo, RunOptions, TokenMethod, WeightCounts, get_class_row, learn_tokens
from sefi.methods.checks import check_staged
from sefi.photo.views import PhotoViews


class StagedKeyValue(TokenMethod):
    """SeFi-IDE (arXiv 2402.00631)."""

    info = MethodInfo("SeFi-IDE", "arXiv 2402.00631", "no code was published; ours is Apache-2.0")

    def weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """A token for each stage and slot; the module, where there is one, is thrown away afterwards."""
        trained = config.learn.stages * count_slots(config.learn) * backbone.width
        return WeightCounts(trained, count_module_weights(backbone.width, config.learn))

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """One token for the placeholder."""
        del backbone, judges
        check_staged(self.info.title, config)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: RunOptions
    ) -> Identity:
        """Tokens `[stage, 2, width]` that, in the place of the class word, give the subject."""
        tokens = IdentityTokens(get_class_row(backbone, config), config.learn, seed)
        return learn_tokens(tokens, name, views, backbone, config, seed, options)
