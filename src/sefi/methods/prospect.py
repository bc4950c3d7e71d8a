"""ProSpect: a token for each of ten stages, from an expansion module, by denoising alone."""

from pathlib import Path

from sefi.backbone.bundle import Backbone
from sefi.core.config import ONE_SLOT, PLAIN_VIEWS, Config, make_embedded_preset
from sefi.identity.file import Identity
from sefi.identity.tokens import IdentityTokens, count_module_weights, count_slots
from sefi.methods.base import (
    ATTENTION_SETTINGS,
    MethodInfo,
    TokenMethod,
    TrainingOptions,
    WeightCounts,
    get_class_row,
    learn_tokens,
    refuse_vectors_and_limit,
    require_learn_values,
)
from sefi.photo.augment import PhotoViews
from sefi.training.token_inversion import check_gradient_dtype

# A key-and-value token for each of ten stages, from the expansion module.
TEN_STAGES = ONE_SLOT | {"stages": 10, "expansion": "module", "residual_init": False, "dropout": 0.1}
PRESETS = {
    "": make_embedded_preset(TEN_STAGES | {"steps": 200, "batch": 5, "learning_rate": 1e-4}),
    # zyxElsa/ProSpect, v1-finetune.yaml.
    "official": {
        "learn": TEN_STAGES | {"steps": 600, "learning_rate": 1e-4, "weight_decay": 1e-2, "templates": ("{}",)},
        "views": PLAIN_VIEWS,
        "generate": {"guidance_scale": 10.0},
    },
}


class ProSpect(TokenMethod):
    """ProSpect (Zhang et al. 2023, arXiv 2305.16225).

    Differs: only the stage of a sample is encoded at each step (the published code encodes all ten), so batches work;
    the module is thrown away and the tokens are saved.
    """

    info = MethodInfo(
        "ProSpect",
        "arXiv 2305.16225",
        "Apache-2.0; own implementation",
        keeps="a token for each of ten stages",
        kilobytes=20,
        unread=(*ATTENTION_SETTINGS, "learn.person_steps"),
    )
    presets = PRESETS

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count a token for each stage, and the module that gives them."""
        return WeightCounts(
            config.learn.stages * count_slots(config.learn) * backbone.token_width,
            count_module_weights(backbone.token_width, config.learn),
        )

    def check_settings(self, config: Config) -> None:
        """Require one token for the placeholder, and no attention loss."""
        title = self.info.title
        refuse_vectors_and_limit(title, config)
        require_learn_values(title, config, vectors=1, attention_weight=0.0, start="class")

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Require a model that is not in float16."""
        del evaluators
        self.check_settings(config)
        check_gradient_dtype(backbone)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Learn tokens `[stage, 2, width]`, key and value the same."""
        tokens = IdentityTokens(get_class_row(backbone, config), config.learn, seed)
        return learn_tokens(tokens, name, views, backbone, config, seed, options)
