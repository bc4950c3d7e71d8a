"""Methods to learn a subject: one file each, found by name. Importing this loads no torch."""

from sefi.methods.registry import (
    BUILT_IN,
    METHODS,
    PRESETS,
    check_settings_exist,
    find_setting_owners,
    get_method,
    get_preset,
    is_of_tokens,
    name_default_preset,
    name_published_preset,
    select_read_settings,
)

__all__ = [
    "BUILT_IN",
    "METHODS",
    "PRESETS",
    "check_settings_exist",
    "find_setting_owners",
    "get_method",
    "get_preset",
    "is_of_tokens",
    "name_default_preset",
    "name_published_preset",
    "select_read_settings",
]
