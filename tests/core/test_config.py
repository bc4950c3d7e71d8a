"""Settings that cannot work are refused before anything is computed."""

import pytest

from sefi.core.config import Config, dump_config, override, parse_config, parse_saved_config
from sefi.core.errors import ConfigError
from sefi.methods import PRESETS


@pytest.mark.parametrize(
    "assignment",
    [
        "learn.templates=a photo",
        "learn.templates=a photo of {x}",
        "learn.templates={",
        "learn.templates=",
        "learn.learning_rate=inf",
        "learn.learning_rate=nan",
        "generate.guidance_scale=inf",
        "generate.guidance_scale=1e30",
        "generate.steps=0",
        "learn.steps=none",
        "views.min_scale=2",
    ],
)
def test_values_that_cannot_work_are_refused_by_name(assignment):
    with pytest.raises(ConfigError, match=assignment.partition("=")[0]):
        override(Config(), [assignment])


def test_a_range_upside_down_is_refused_without_printing_the_section():
    with pytest.raises(ConfigError, match=r"min_scale 0\.9 is above max_scale 0\.5") as error:
        override(Config(), ["views.min_scale=0.9", "views.max_scale=0.5"])
    assert "brightness" not in str(error.value)


def test_only_an_optional_setting_can_be_nothing():
    assert override(Config(), ["generate.negative_prompt=none"]).generate.negative_prompt == "none"
    limited = override(Config(), ["learn.token_norm_limit=3"])
    assert override(limited, ["learn.token_norm_limit=none"]).learn.token_norm_limit is None


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_as_plain_values(preset):
    config = PRESETS[preset]
    assert parse_config(dump_config(config), type(config)) == config
    assert parse_saved_config(dump_config(config), type(config)) == config


def test_a_size_is_saved_only_where_it_is_given():
    """Identities, runs and unfinished trainings of before there were sizes have the same settings."""
    config = Config()
    assert not {"width", "height"} & set(dump_config(config)["generate"])
    wide = override(config, ["generate.width=64"])
    assert dump_config(wide)["generate"]["width"] == 64
    assert "height" not in dump_config(wide)["generate"]
    for one in (config, wide):
        assert parse_config(dump_config(one), Config) == parse_saved_config(dump_config(one), Config) == one
        assert Config.model_validate_json(one.model_dump_json()) == one
    assert override(wide, ["generate.width=none"]) == config


def test_clip_skip_is_saved_only_where_it_is_given():
    """Identities, runs and unfinished trainings of before there was this setting have the same settings."""
    config = Config()
    assert "clip_skip" not in dump_config(config)["generate"]
    other = override(config, ["generate.clip_skip=2"])
    assert dump_config(other)["generate"]["clip_skip"] == 2
    for one in (config, other):
        assert parse_config(dump_config(one), Config) == parse_saved_config(dump_config(one), Config) == one
        assert Config.model_validate_json(one.model_dump_json()) == one
    assert override(other, ["generate.clip_skip=none"]) == config
