"""The table of methods."""

from collections.abc import Sequence

from sefi.core.errors import ConfigError, IdentityError
from sefi.core.hints import METHOD_ALIASES, suggest
from sefi.core.nouns import Identity
from sefi.methods.base import Method, TokenMethod
from sefi.methods.celeb_basis import CelebBasis
from sefi.methods.cross_init import CrossInitialization
from sefi.methods.custom_diffusion import CustomDiffusion
from sefi.methods.dreambooth import DreamBooth
from sefi.methods.dreambooth_lora import DreamBoothLora
from sefi.methods.fastcomposer import FastComposer
from sefi.methods.prospect import ProSpect
from sefi.methods.sefi import StagedKeyValue
from sefi.methods.textual_inversion import TextualInversion

METHODS: dict[str, Method] = {
    "sefi": StagedKeyValue(),
    "textual-inversion": TextualInversion(),
    "dreambooth": DreamBooth(),
    "dreambooth-lora": DreamBoothLora(),
    "custom-diffusion": CustomDiffusion(),
    "prospect": ProSpect(),
    "celeb-basis": CelebBasis(),
    "cross-init": CrossInitialization(),
    "fastcomposer": FastComposer(),
}


def get_method(name: str) -> Method:
    """The method of this name; `ConfigError` names the others."""
    if name not in METHODS:
        raise ConfigError(f"There is no method {name!r}.", suggest(name, METHODS, METHOD_ALIASES, "Choose"))
    return METHODS[name]


def is_of_tokens(name: str) -> bool:
    """Whether the identities of this method are tokens and nothing else, so that the model stays as it is."""
    return isinstance(get_method(name), TokenMethod)


def check_tokens_only(identities: Sequence[Identity]) -> None:
    """Refuse identities that are more than their tokens, where only tokens are looked at.

    Raises:
        IdentityError: a method that changes the model learned one.
    """
    for identity in identities:
        if not is_of_tokens(identity.method):
            raise IdentityError(
                f"{identity.name!r} was learned with {identity.method}, which changes the model itself; attention is "
                "shown for tokens.",
                "Learn it with another method (`sefi methods`), or leave it out.",
            )
