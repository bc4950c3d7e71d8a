"""Settings to start from: ours, the paper's to the letter, and each other method's tuned and published recipe."""

from typing import Any

from sefi.core.config import Config, from_dict, override
from sefi.core.errors import ConfigError
from sefi.core.hints import METHOD_ALIASES, suggest
from sefi.core.templates import ALL_TEMPLATES, CLASS_TEMPLATES, FACE_TEMPLATES_81, SHORT_TEMPLATES

PAPER = Config()
# What suits one photo on the embedded model: many samples a step from a pool of views that is encoded once.
QUICK_VIEWS: dict[str, Any] = {"min_scale": 0.7, "aspect": 0.0, "canvas": "edge", "latent_pool": 64}
PLAIN_VIEWS: dict[str, Any] = {
    "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "min_scale": 1.0, "aspect": 0.0,
}  # fmt: skip
# The embedded model paints over itself at the usual 7.5; likeness and obedience are both better here.
QUICK_DRAWING: dict[str, Any] = {"guidance_scale": 4.0}
ONE_SLOT: dict[str, Any] = {"stages": 1, "split_key_value": False, "attention_weight": 0.0}
DIRECT: dict[str, Any] = {"expansion": "direct", "residual_init": True, "dropout": 0.0}


def tuned(method: str, learn: dict[str, Any], **sections: dict[str, Any]) -> Config:
    """A method as it does best on the embedded model: rate, steps and alpha from docs/results/sweep.md."""
    views = QUICK_VIEWS | sections.pop("views", {})
    drawing = QUICK_DRAWING | sections.pop("generate", {})
    return from_dict({"method": method, "learn": learn, "views": views, "generate": drawing, **sections})


DEFAULT = tuned("sefi", {**DIRECT, "steps": 200, "batch": 5, "stage_sampling": "stratified", "learning_rate": 5e-3})
INVERSION = ONE_SLOT | DIRECT | {"vectors": 2}
PUBLISHED_INVERSION = INVERSION | {"templates": ALL_TEMPLATES, "weight_decay": 1e-2}
PROSPECT = ONE_SLOT | {"stages": 10, "expansion": "module", "residual_init": False, "dropout": 0.1}
BASIS = ONE_SLOT | DIRECT
CROSS = ONE_SLOT | DIRECT | {"vectors": 2}
PICTURED = ONE_SLOT | DIRECT | {"steps": 1}
WEIGHTS = ONE_SLOT | DIRECT | {"templates": SHORT_TEMPLATES}

PRESETS: dict[str, Config] = {
    "default": DEFAULT,
    # Half the time at over 95 % of ID(Prompt): docs/results/pilot.md.
    "fast": override(DEFAULT, ["learn.steps=100"]),
    "paper": PAPER,
    "textual-inversion": tuned("textual-inversion", INVERSION | {"steps": 200, "batch": 5}),
    # rinongal/textual_inversion, v1-finetune.yaml: base rate 5e-3 times a batch of 2. Differs: two vectors, as the
    # paper's baseline has them; the file's default is one.
    "textual-inversion-official": from_dict({
        "method": "textual-inversion",
        "learn": PUBLISHED_INVERSION | {"steps": 6100, "batch": 2, "learning_rate": 1e-2},
        "views": PLAIN_VIEWS,
        "generate": {"guidance_scale": 10.0},
    }),
    # diffusers, examples/textual_inversion: 5e-4 times 4 accumulated samples. Differs: two vectors, as above.
    "textual-inversion-diffusers": from_dict({
        "method": "textual-inversion",
        "learn": PUBLISHED_INVERSION
        | {"templates": CLASS_TEMPLATES, "steps": 3000, "batch": 4, "learning_rate": 2e-3},
        "views": PLAIN_VIEWS,
    }),
    "prospect": tuned("prospect", PROSPECT | {"steps": 200, "batch": 5, "learning_rate": 1e-4}),
    # zyxElsa/ProSpect, v1-finetune.yaml.
    "prospect-official": from_dict({
        "method": "prospect",
        "learn": PROSPECT | {"steps": 600, "learning_rate": 1e-4, "weight_decay": 1e-2, "templates": ("{}",)},
        "views": PLAIN_VIEWS,
        "generate": {"guidance_scale": 10.0},
    }),
    "celeb-basis": tuned(
        "celeb-basis", BASIS | {"steps": 200, "batch": 5, "learning_rate": 3e-2}, basis={"components": 64}
    ),
    # ygtxr1997/CelebBasis, aigc_id.yaml: base rate 5e-3 times a batch of 2.
    "celeb-basis-official": from_dict({
        "method": "celeb-basis",
        "learn": BASIS
        | {"templates": FACE_TEMPLATES_81, "steps": 400, "batch": 2, "learning_rate": 1e-2, "weight_decay": 1e-2},
        "generate": {"guidance_scale": 10.0},
    }),
    "cross-init": tuned("cross-init", CROSS | {"steps": 200, "batch": 5, "learning_rate": 1e-2}),
    # lyuPang/CrossInitialization: 6.25e-4 times a batch of 8.
    "cross-init-official": from_dict({
        "method": "cross-init",
        "learn": CROSS
        | {"templates": FACE_TEMPLATES_81, "steps": 320, "batch": 8, "learning_rate": 5e-3, "weight_decay": 1e-2},
        "views": PLAIN_VIEWS,
        "generate": {"scheduler": "dpm++"},
    }),
    "dreambooth": tuned(
        "dreambooth",
        WEIGHTS | {"steps": 500, "batch": 2, "learning_rate": 5e-5, "weight_decay": 1e-2, "gradient_clip": 1.0},
        tune={"parts": "unet+text", "prior_images": 32},
    ),
    # diffusers, examples/dreambooth, with text encoder and prior preservation.
    "dreambooth-official": from_dict({
        "method": "dreambooth",
        "learn": WEIGHTS | {"steps": 800, "learning_rate": 2e-6, "weight_decay": 1e-2, "gradient_clip": 1.0},
        "views": PLAIN_VIEWS | {"flip": 0.0},
        "tune": {"parts": "unet+text"},
    }),
    "dreambooth-lora": tuned(
        "dreambooth-lora",
        WEIGHTS | {"steps": 500, "batch": 2, "learning_rate": 3e-3, "weight_decay": 1e-2, "gradient_clip": 1.0},
        tune={"parts": "unet", "prior_images": 32},
    ),
    # diffusers, examples/dreambooth, train_dreambooth_lora.py.
    "dreambooth-lora-official": from_dict({
        "method": "dreambooth-lora",
        "learn": WEIGHTS | {"steps": 500, "learning_rate": 1e-4, "weight_decay": 1e-2, "gradient_clip": 1.0},
        "views": PLAIN_VIEWS | {"flip": 0.0},
        "tune": {"parts": "unet", "prior_images": 0},
    }),
    "fastcomposer": tuned("fastcomposer", PICTURED, compose={"alpha": 0.85}),
    # mit-han-lab/fastcomposer, run_evaluation.sh.
    "fastcomposer-official": from_dict({
        "method": "fastcomposer",
        "learn": PICTURED,
        "compose": {"alpha": 0.5}, "generate": {"guidance_scale": 5.0},
    }),
    "custom-diffusion": tuned(
        "custom-diffusion",
        WEIGHTS | {"steps": 300, "batch": 2, "learning_rate": 3e-4, "weight_decay": 1e-2},
        tune={"parts": "key_value", "identifier": "ktn", "prior_images": 32},
    ),
    # adobe-research/custom-diffusion, its general recipe (for faces: half the rate, 750 steps; cross_attention where
    # pictures are few): 1e-5 times a batch of 2, twice for the prior. Differs: DDIM without its noise.
    "custom-diffusion-official": from_dict({
        "method": "custom-diffusion",
        "learn": WEIGHTS | {"steps": 500, "batch": 2, "learning_rate": 4e-5, "weight_decay": 1e-2},
        "views": PLAIN_VIEWS,
        "tune": {"parts": "key_value", "identifier": "ktn"},
        "generate": {"guidance_scale": 6.0, "steps": 200},
    }),
}  # fmt: skip
"""Settings by name: `default`, `fast`, `paper`, and those of the other methods (`sefi methods` lists them)."""


def preset_named(name: str) -> Config:
    """A preset.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}.", suggest(name, PRESETS, METHOD_ALIASES))
    return PRESETS[name]
