"""The name that was meant: right, or none."""

import pytest

from sefi.core.config import PAPER, Config, list_setting_names, override, parse_config
from sefi.core.errors import ConfigError
from sefi.core.hints import DTYPE_ALIASES, METHOD_ALIASES, SCHEDULER_ALIASES, find_nearest, find_settings
from sefi.methods import METHODS, PRESETS, get_preset

NAMES = list(dict.fromkeys(name for method in METHODS.values() for name in list_setting_names(method.config_type)))
SAMPLERS = ("ddim", "dpm++", "dpm++_karras", "dpm++_sde", "euler", "euler_a", "lcm")
TRIES = {
    "learn.lr": ["learn.learning_rate"],
    "lr": ["learn.learning_rate"],
    "learning-rate": ["learn.learning_rate"],
    "learn.learningrate": ["learn.learning_rate"],
    "lambda": ["learn.attention_weight"],
    "learn.lambda": ["learn.attention_weight"],
    "cfg": ["generate.guidance_scale"],
    "guidance": ["generate.guidance_scale"],
    "cfg_scale": ["generate.guidance_scale"],
    "generate.guidance": ["generate.guidance_scale"],
    "learn.guidance_scale": ["generate.guidance_scale"],
    "steps": ["learn.steps", "generate.steps"],
    "learn.step": ["learn.steps"],
    "generate.num_steps": ["generate.steps"],
    "num_inference_steps": ["generate.steps"],
    "max_train_steps": ["learn.steps"],
    "epochs": ["learn.steps"],
    "sampler": ["generate.scheduler"],
    "generate.sampler": ["generate.scheduler"],
    "strength": ["generate.identity_strength"],
    "n": ["generate.count"],
    "num_images": ["generate.count"],
    "batch": ["learn.batch", "generate.batch_size"],
    "learn.batch_size": ["learn.batch"],
    "generate.batch": ["generate.batch_size"],
    "negative": ["generate.negative_prompt"],
    "NEGATIVE-PROMPT": ["generate.negative_prompt"],
    "class": ["learn.class_word"],
    "learn.templats": ["learn.templates"],
    "views.fliip": ["views.flip"],
    "tune.lora_rank": ["tune.rank"],
    "learn.xyzzy": [],
    "flux_capacitor": [],
    "learn": [],
}


@pytest.mark.parametrize(("written", "meant"), TRIES.items())
def test_a_setting_is_understood_or_no_hint_is_given(written: str, meant: list[str]) -> None:
    assert find_settings(written, NAMES) == meant


@pytest.mark.parametrize(("written", "meant"), TRIES.items())
def test_the_remedy_names_what_was_meant(written: str, meant: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        get_preset("paper", [f"{written}=1"])
    wanted = [f"'{one}'" for one in meant] or ["`sefi settings`"]
    assert all(one in refused.value.remedy for one in wanted)
    assert refused.value.remedy.count("'") == 2 * len(meant)


@pytest.mark.parametrize(
    ("written", "option"),
    {"method": "--method", "seed": "--seed", "learn.seed": "--seed", "model": "--model", "fp16": "--dtype"}.items(),
)
def test_what_is_an_option_is_said_to_be_one(written: str, option: str) -> None:
    with pytest.raises(ConfigError) as refused:
        override(PAPER, [f"{written}=1"])
    assert option in refused.value.remedy


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_found_by_its_last_word(name: str) -> None:
    assert name in find_settings(name.partition(".")[2], NAMES)


@pytest.mark.parametrize(
    ("written", "known", "aliases", "meant"),
    [
        ("DPM++ 2M Karras", SAMPLERS, SCHEDULER_ALIASES, "dpm++_karras"),
        ("DPM++ 2M", SAMPLERS, SCHEDULER_ALIASES, "dpm++"),
        ("DPM++ 2M SDE", SAMPLERS, SCHEDULER_ALIASES, "dpm++_sde"),
        ("Euler a", SAMPLERS, SCHEDULER_ALIASES, "euler_a"),
        ("euler ancestral", SAMPLERS, SCHEDULER_ALIASES, "euler_a"),
        ("DDIM", SAMPLERS, SCHEDULER_ALIASES, "ddim"),
        ("k_euler", SAMPLERS, SCHEDULER_ALIASES, "euler"),
        ("magic", SAMPLERS, SCHEDULER_ALIASES, None),
        ("lora", PRESETS, METHOD_ALIASES, "dreambooth-lora"),
        ("Textual_Inversion", PRESETS, METHOD_ALIASES, "textual-inversion"),
        ("defualt", PRESETS, METHOD_ALIASES, "default"),
        ("fancy", PRESETS, METHOD_ALIASES, None),
        ("fp16", ("float32", "bfloat16", "float16"), DTYPE_ALIASES, "float16"),
    ],
)
def test_other_names_are_understood_or_no_hint_is_given(written, known, aliases, meant) -> None:
    assert find_nearest(written, known, aliases) == meant


def test_a_wrong_choice_names_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'dpm\+\+'") as refused:
        parse_config({"generate": {"scheduler": "dpmsolver++"}}, Config)
    assert "generate.scheduler" in refused.value.problem
    with pytest.raises(ConfigError, match="Did you mean 'celeb-basis'"):
        get_preset("celeb basis")
