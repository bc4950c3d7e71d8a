"""The table of methods."""

from sefi.core.errors import ConfigError
from sefi.methods.base import Method
from sefi.methods.sefi import StagedKeyValue

METHODS: dict[str, Method] = {"sefi": StagedKeyValue()}


def method_named(name: str) -> Method:
    """The method of this name; `ConfigError` names the others."""
    if name not in METHODS:
        raise ConfigError(f"There is no method {name!r}.", f"Choose one of {', '.join(METHODS)}.")
    return METHODS[name]
