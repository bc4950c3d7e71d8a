"""The paper's method: a key token and a value token for every stage, held in place by the attention loss."""

from pathlib import Path

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.identity.tokens import IdentityTokens, module_weights, slots_of
from sefi.methods.base import About, TokenMethod, Watched, Weights, class_row, learn_tokens
from sefi.methods.refusals import staged
from sefi.photo.views import PhotoViews


class StagedKeyValue(TokenMethod):
    """SeFi-IDE (arXiv 2402.00631)."""

    about = About("SeFi-IDE", "arXiv 2402.00631", "no code was published; ours is Apache-2.0")

    def weights(self, backbone: Backbone, config: Config) -> Weights:
        """A token for each stage and slot; the module, where there is one, is thrown away afterwards."""
        trained = config.learn.stages * slots_of(config.learn) * backbone.width
        return Weights(trained, module_weights(backbone.width, config.learn))

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """One token for the placeholder."""
        del backbone, judges
        staged(self.about.title, config)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, watched: Watched
    ) -> Identity:
        """Tokens `[stage, 2, width]` that, in the place of the class word, give the subject."""
        tokens = IdentityTokens(class_row(backbone, config), config.learn, seed)
        return learn_tokens(tokens, name, views, backbone, config, seed, watched)
