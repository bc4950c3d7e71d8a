"""Suggestions for names that do not exist: the nearest one that does."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

# Below this share of common letters a hint is more often wrong than right.
CUTOFF = 0.75

# What other programs call our settings; where a name has several meanings here, all of them.
SETTING_ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("lr", "rate", "learn_rate", "learningrate", "base_lr", "max_lr", "stepsize"), ("learn.learning_rate",)
    ),
    **dict.fromkeys(
        ("lambda", "lamda", "lambda_attention", "attention_lambda", "attention_loss", "attn_weight", "loss_weight"),
        ("learn.attention_weight",),
    ),
    **dict.fromkeys(
        ("cfg", "cfg_scale", "cfgscale", "guidance", "scale", "unconditional_guidance_scale"),
        ("generate.guidance_scale",),
    ),
    **dict.fromkeys(
        ("num_steps", "num_inference_steps", "inference_steps", "sampling_steps", "denoising_steps", "ddim_steps"),
        ("generate.steps",),
    ),
    **dict.fromkeys(
        ("max_train_steps", "train_steps", "training_steps", "max_steps", "iterations", "iters", "epochs", "epoch"),
        ("learn.steps",),
    ),
    **dict.fromkeys(("sampler", "sampling_method", "sampler_name", "solver"), ("generate.scheduler",)),
    **dict.fromkeys(("strength", "identity_weight", "identity_scale"), ("generate.identity_strength",)),
    **dict.fromkeys(
        ("n", "num_images", "num_images_per_prompt", "images", "n_samples", "num_samples", "samples", "n_iter"),
        ("generate.count",),
    ),
    **dict.fromkeys(("batch", "batch_size", "batchsize", "bs"), ("learn.batch", "generate.batch_size")),
    "train_batch_size": ("learn.batch",),
    **dict.fromkeys(
        ("negative", "neg", "neg_prompt", "negativeprompt", "uncond", "unconditional_prompt"),
        ("generate.negative_prompt",),
    ),
    **dict.fromkeys(("clipskip", "clip_stop_at_last_layers", "skip_layers"), ("generate.clip_skip",)),
    **dict.fromkeys(("class", "classword", "class_name", "initializer_token", "initializer"), ("learn.class_word",)),
    **dict.fromkeys(("clip_grad", "max_grad_norm", "grad_clip", "gradient_clipping"), ("learn.gradient_clip",)),
    **dict.fromkeys(("wd", "decay", "adam_weight_decay"), ("learn.weight_decay",)),
    **dict.fromkeys(("num_vectors", "num_tokens", "tokens", "n_tokens"), ("learn.vectors",)),
    **dict.fromkeys(("num_stages", "n_stages"), ("learn.stages",)),
    **dict.fromkeys(("template", "prompts", "prompt_templates"), ("learn.templates",)),
    **dict.fromkeys(("lora_rank", "r", "network_dim"), ("tune.rank",)),
    **dict.fromkeys(("prior_loss_weight", "prior_preservation_weight"), ("tune.prior_weight",)),
    **dict.fromkeys(("num_class_images", "class_images", "reg_images"), ("tune.prior_images",)),
    **dict.fromkeys(("horizontal_flip", "mirror"), ("views.flip",)),
    **dict.fromkeys(("size", "resolution", "image_size"), ("generate.width", "generate.height")),
    "w": ("generate.width",),
    "h": ("generate.height",),
}
# Options of the commands that people look for among the settings.
OPTION_ALIASES: dict[str, str] = {
    **dict.fromkeys(("seed", "random_seed"), "--seed"),
    **dict.fromkeys(("preset", "config"), "--preset"),
    "method": "--method",
    **dict.fromkeys(("model", "checkpoint", "ckpt", "pretrained_model_name_or_path"), "--model"),
    **dict.fromkeys(("dtype", "precision", "mixed_precision", "fp16", "bf16", "half"), "--dtype"),
    **dict.fromkeys(("device", "gpu", "cuda"), "--device"),
    **dict.fromkeys(("out", "output", "output_dir", "outdir"), "--out"),
    **dict.fromkeys(("placeholder", "placeholder_token"), "--name"),
    **dict.fromkeys(("face", "face_index"), "--face"),
    **dict.fromkeys(("detector", "face_detector"), "--detector"),
    **dict.fromkeys(("evaluators", "judges"), "--evaluators"),
}
SCHEDULER_ALIASES: dict[str, str] = {
    **dict.fromkeys(("dpm", "dpmpp", "dpmpp_2m", "dpm++_2m", "dpmsolver", "dpmsolver++", "dpm_solver"), "dpm++"),
    **dict.fromkeys(
        ("dpm++_2m_karras", "dpmpp_2m_karras", "k_dpmpp_2m_karras", "dpmpp_karras", "dpm_karras", "karras"),
        "dpm++_karras",
    ),
    **dict.fromkeys(
        ("dpm++_2m_sde", "dpmpp_2m_sde", "dpmpp_sde", "sde_dpmsolver++", "dpm_sde", "sde"),
        "dpm++_sde",
    ),
    **dict.fromkeys(
        ("euler_ancestral", "k_euler_a", "k_euler_ancestral", "eulerancestral", "eulerancestraldiscretescheduler"),
        "euler_a",
    ),
    **dict.fromkeys(("k_euler", "euler_discrete", "eulerdiscrete", "eulerdiscretescheduler"), "euler"),
    **dict.fromkeys(("ddimscheduler",), "ddim"),
    **dict.fromkeys(("lcmscheduler", "latent_consistency", "consistency"), "lcm"),
}
METHOD_ALIASES: dict[str, str] = {
    **dict.fromkeys(("ti", "inversion", "textual_inversion", "textualinversion", "embedding"), "textual-inversion"),
    **dict.fromkeys(("db", "dream_booth"), "dreambooth"),
    **dict.fromkeys(("lora", "dreambooth_lora", "dreamboothlora"), "dreambooth-lora"),
    **dict.fromkeys(("custom", "cd", "customdiffusion", "custom_diffusion"), "custom-diffusion"),
    **dict.fromkeys(("ours", "sefi_ide", "sefiide"), "sefi"),
    **dict.fromkeys(("celeb", "celebbasis", "celeb_basis"), "celeb-basis"),
    **dict.fromkeys(("cross", "cross_initialization", "crossinitialization", "cross_init"), "cross-init"),
    **dict.fromkeys(("composer", "fast_composer"), "fastcomposer"),
}
DTYPE_ALIASES: dict[str, str] = {
    **dict.fromkeys(("fp32", "f32", "float", "single", "full"), "float32"),
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("bf16", "bfloat"), "bfloat16"),
}


def find_nearest(name: str, names: Iterable[str], aliases: Mapping[str, str] | None = None) -> str | None:
    """Return the known name that was meant: an alias, or the most similar name if it is similar enough.

    >>> find_nearest("DDIM", ["ddim", "euler"])
    'ddim'
    >>> find_nearest("magic", ["ddim", "euler"])
    """
    by_spelling = {normalise_spelling(one): one for one in names}
    written = normalise_spelling(name)
    alias = (aliases or {}).get(written)
    if alias is not None and alias in by_spelling.values():
        return alias
    near = difflib.get_close_matches(written, by_spelling, n=1, cutoff=CUTOFF)
    return by_spelling[near[0]] if near else None


def find_settings(name: str, names: Sequence[str]) -> list[str]:
    """Return the settings `section.name` that were meant, the likeliest first; none rather than a wrong one.

    >>> find_settings("lr", ["learn.learning_rate", "learn.vectors"])
    ['learn.learning_rate']
    """
    section, _, last = normalise_spelling(name).rpartition(".")
    last_names = {one: one.rpartition(".")[2] for one in names}
    candidates = [one for one in names if last_names[one] == last]
    candidates += [one for one in SETTING_ALIASES.get(last, ()) if one in last_names and one not in candidates]
    if not candidates:
        near = difflib.get_close_matches(last, set(last_names.values()), n=1, cutoff=CUTOFF)
        candidates = [one for one in names if near and last_names[one] == near[0]]
    inside = [one for one in candidates if one.startswith(f"{section}.")]
    return inside or candidates


def suggest_setting(name: str, names: Sequence[str]) -> str:
    """Suggest a setting in place of one that does not exist, in one sentence."""
    option = OPTION_ALIASES.get(normalise_spelling(name).rpartition(".")[2])
    if option is not None:
        return f"It is no setting but the option {option}."
    settings = find_settings(name, names)
    if not settings:
        return "`sefi settings` lists every setting."
    return f"Did you mean {' or '.join(repr(one) for one in settings)}?"


def suggest(name: str, names: Iterable[str], aliases: Mapping[str, str] | None = None, verb: str = "Use") -> str:
    """Suggest a name in place of one that does not exist: the nearest, and all there are."""
    names = list(names)
    near = find_nearest(name, names, aliases)
    question = "" if near is None else f"Did you mean {near!r}? "
    return f"{question}{verb} one of {', '.join(names)}."


def normalise_spelling(name: str) -> str:
    """Return a name in small letters, with `_` for hyphens and spaces, without leading hyphens.

    >>> normalise_spelling("--Learning-Rate ")
    'learning_rate'
    """
    return name.strip().lstrip("-").lower().replace("-", "_").replace(" ", "_")
