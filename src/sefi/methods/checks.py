"""What methods refuse before they begin: settings they have no use for, models and folders that cannot serve them."""

from pathlib import Path

import torch

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config
from sefi.core.errors import ConfigError
from sefi.core.people import PEOPLE, is_person


def check_settings_used(title: str, config: Config, **values: object) -> None:
    """Refuse learning settings that a method would pass over.

    Args:
        values: settings of `learn`, each with the only value that the method knows.

    Raises:
        ConfigError: one has another value.
    """
    for name, value in values.items():
        if getattr(config.learn, name) != value:
            raise ConfigError(
                f"{title} knows only learn.{name}={value}, not {getattr(config.learn, name)}.",
                "Leave this setting out, and start from the method's own preset.",
            )


def check_one_word(title: str, config: Config, vectors: int = 1) -> None:
    """Refuse what is made for tokens by stage: stages, keys that differ from values, the module, the limit of norms.

    Raises:
        ConfigError: there is some.
    """
    check_settings_used(
        title, config, stages=1, split_key_value=False, vectors=vectors, expansion="direct", token_norm_limit=None
    )


def check_staged(title: str, config: Config) -> None:
    """Refuse what tokens by stage do not have: several for a placeholder, a limit of norms on those of the module.

    Raises:
        ConfigError: there is some.
    """
    check_settings_used(title, config, vectors=1)
    if config.learn.expansion == "module":
        check_settings_used(f"{title} with learn.expansion=module", config, token_norm_limit=None)


def check_person(title: str, config: Config) -> None:
    """Refuse subjects whose face no recogniser knows.

    Raises:
        ConfigError: the class word is no word for a person.
    """
    if not is_person(config.learn.class_word):
        raise ConfigError(
            f"{title} knows a subject by the face of a person, and {config.learn.class_word!r} is none.",
            f"Use another method, or a class word for a person: {', '.join(PEOPLE[:7])} ...",
        )


def check_tuned_weights(title: str, config: Config, backbone: Backbone) -> None:
    """Refuse what no method that trains the model's own weights has: stages, the attention loss, half precision.

    Raises:
        ConfigError: there is some.
    """
    check_one_word(title, config)
    check_settings_used(title, config, attention_weight=0.0)
    check_single_precision(title, backbone)


def check_single_precision(title: str, backbone: Backbone) -> None:
    """Refuse to train weights whose steps would be rounded away.

    Raises:
        ConfigError: the model is in another number type than float32.
    """
    if backbone.dtype != torch.float32:
        raise ConfigError(
            f"{title} trains weights of the model itself, and {str(backbone.dtype).removeprefix('torch.')} is too "
            "coarse for their small steps.",
            "Open the model with --dtype float32.",
        )


def check_judges(title: str, judges: Path | None, *names: str) -> Path:
    """The folder of judges that a method reads the photo with.

    Raises:
        ConfigError: there is none, or it lacks one of them.
    """
    missing = names if judges is None else [name for name in names if not (judges / name).exists()]
    if judges is None or missing:
        raise ConfigError(
            f"{title} reads the photo with {' and '.join(missing)}, which this model does not bring.",
            f"Name a folder with {' and '.join(names)} in it with --judges.",
        )
    return judges
