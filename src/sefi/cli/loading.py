"""Load what a command line names: the frozen model, settings, identities."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sefi.cli.options import AUTO, EMBEDDED
from sefi.cli.output import print_remark
from sefi.core.config import (
    Config,
    check_guidance,
    list_setting_names,
    make_unknown_setting_error,
    split_assignment,
)
from sefi.core.errors import ConfigError, FaceError
from sefi.core.files import describe_missing_folder, is_folder, is_regular_file
from sefi.core.hints import DTYPE_ALIASES, suggest
from sefi.core.process import import_quickly
from sefi.core.prompts import check_prompts, check_syntax
from sefi.methods import find_setting_owners, get_method, get_preset, name_default_preset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sefi.backbone.bundle import Backbone
    from sefi.identity.file import Identity

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = (AUTO, "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelOptions:
    """The model that a command line names, and how to open it."""

    name: str
    download: bool
    device: str
    dtype: str

    def list_options(self) -> list[str]:
        """Return the options that open it again; what is the default is left out."""
        words = [] if self.name == EMBEDDED else ["--model", self.name]
        words += ["--download"] if self.download else []
        words += [] if self.device == "auto" else ["--device", self.device]
        return words + ([] if self.dtype == AUTO else ["--dtype", self.dtype])


def load_config(preset: str, settings: list[str]) -> Config:
    """Return a preset with single settings changed; later ones win.

    Raises:
        ConfigError: There is no such preset, its method has no such setting, or a value does not fit.
    """
    return get_preset(preset, settings)


def load_generation_config(preset: str, settings: list[str]) -> Config:
    """Return the same as `load_config`, for commands that generate: an identity has its own settings of learning.

    Raises:
        ConfigError: A setting of something else than generation, or of nothing, or a negative prompt that guidance
            leaves out.
    """
    for setting in settings:
        check_generation_setting(split_assignment(setting)[0])
    config = load_config(preset, settings)
    check_guidance(config.generate)
    return config


def check_generation_setting(name: str) -> None:
    """Refuse a setting that does not begin with `generate.`: one of learning, or one that no method has.

    Raises:
        ConfigError: always for such a name.
    """
    if name.startswith("generate."):
        return
    if name in find_setting_owners():
        raise ConfigError(
            f"{name!r} is settled when a subject is learned.",
            "Give it to `sefi learn`; `sefi generate` takes generate.* only.",
        )
    names = [one for one in list_setting_names(Config) if one.startswith("generate.")]
    raise make_unknown_setting_error(name, names)


def load_identities(
    prompts: "Sequence[str]", files: "Sequence[Path]", config: Config, *, expired_consent: bool = False
) -> "list[Identity]":
    """Return the identities of a command line that generates, checked against its prompts; no model is needed for that.

    Raises:
        PromptError: As `check_prompts`.
        IdentityError: A file cannot be read, or the identities do not fit together.
        ConfigError: A consent has expired, and `expired_consent` does not allow it.
    """
    for prompt in prompts:
        check_syntax(prompt)
    import_quickly("torch")  # the rest once these files are good
    from sefi.identity.file import Identity, check_together
    from sefi.provenance.consent import check_consents

    identities = [Identity.load(path) for path in files]
    if not expired_consent:
        check_consents({one.name: one.header.consent for one in identities})
    check_prompts(prompts, {one.name: one.header.class_word for one in identities}, config.generate.negative_prompt)
    check_together(identities)
    return identities


def note_remarks(
    backbone: "Backbone", prompts: "Sequence[str]", config: Config, identities: "Sequence[Identity]" = ()
) -> None:
    """Say on stderr what a user should know before these prompts are drawn.

    Raises:
        IdentityError: An identity cannot be used on this model.
        ConfigError: The model reads no negative prompt, and there is one.
    """
    from sefi.api import list_prompt_remarks
    from sefi.diffusion.conditioning import list_identity_remarks

    check_guidance(config.generate, embeds_guidance=backbone.embeds_guidance)
    remarks = list_identity_remarks(backbone, identities)
    for remark in [*remarks, *list_prompt_remarks(backbone, prompts, config.generate, identities)]:
        print_remark(f"note: {remark}")


def choose_preset(method: str | None, preset: str | None) -> str:
    """Return the preset to start from when a method, a preset, both or none are named.

    Raises:
        ConfigError: There is no such method, or the preset is another method's.
    """
    if method is None:
        return preset or "default"
    get_method(method)
    chosen = preset or name_default_preset(method)
    if get_preset(chosen).method != method:
        raise ConfigError(
            f"The preset '{chosen}' belongs to the method {get_preset(chosen).method!r}.",
            f"Leave out --preset, or use --method {get_preset(chosen).method}.",
        )
    return chosen


def format_settings(**values: object) -> list[str]:
    """Return options that were given as settings: `learn__steps=3` becomes `learn.steps=3`.

    >>> format_settings(learn__steps=3, learn__class_word=None)
    ['learn.steps=3']
    """
    settings = {name: value for name, value in values.items() if value is not None}
    return [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]


def import_libraries() -> None:
    """Import torch, diffusers and transformers quickly; called where a command would import them for the first time."""
    import_quickly("sefi.api")


def load_backbone(model: str, *, download: bool, device: str, dtype: str) -> "Backbone":
    """Open the model that a command works on, and say how long it took.

    Raises:
        BackboneError: It is not there or cannot be used.
        ConfigError: The dtype or the device is unknown.
    """
    check_dtype(dtype)
    check_device(device)
    print_remark(f"opening {model} ...")
    started = time.monotonic()
    import_libraries()
    import torch

    from sefi.backbone.open import is_emulated, open_backbone

    backbone = open_backbone(
        model,
        allow_download=download,
        device=choose_device() if device == "auto" else device,
        dtype=None if dtype == AUTO else getattr(torch, dtype),
    )
    number = str(backbone.dtype).removeprefix("torch.")
    print_remark(f"opened in {time.monotonic() - started:.1f} s ({backbone.device.type}, {number})")
    if is_emulated(backbone.dtype, backbone.device):
        print_remark(f"this processor has no {number} of its own: expect it to be many times slower than float32")
    return backbone


def check_model(model_options: ModelOptions) -> None:
    """Refuse a model that is not there, and options that none is opened with, before photos are read.

    Raises:
        BackboneError: There is no such model.
        ConfigError: The dtype or the device is unknown.
    """
    check_dtype(model_options.dtype)
    check_device(model_options.device)
    if model_options.name != EMBEDDED:
        import_libraries()
        from sefi.backbone.open import check_source

        check_source(model_options.name, allow_download=model_options.download)


def check_detector(detector: Path | None) -> None:
    """Refuse a face detector that is not there, with `FaceError`, before a model is opened."""
    if detector is not None and not is_regular_file(detector):
        raise FaceError(
            f"There is no face detector at {detector}.",
            "Name a YuNet ONNX file, or learn without a crop (--no-crop).",
        )


def check_evaluators(evaluators: Path | None) -> None:
    """Refuse a folder of evaluators that is not there, with `ConfigError`, before a model is opened."""
    if evaluators is not None and not is_folder(evaluators):
        raise ConfigError(describe_missing_folder(evaluators), "Name a folder of evaluators with --evaluators.")


def check_dtype(dtype: str) -> None:
    """Refuse a dtype that does not exist, with `ConfigError`."""
    if dtype not in DTYPES:
        raise ConfigError(f"There is no dtype '{dtype}'.", suggest(dtype, DTYPES, DTYPE_ALIASES))


def check_device(device: str) -> None:
    """Refuse a device that no machine has, with `ConfigError`; whether this one has it shows when it is used."""
    kind, colon, number = device.partition(":")
    if kind not in DEVICES or (colon and not number.isdecimal()):
        raise ConfigError(
            f"There is no device '{device}'.", suggest(device, DEVICES, {"gpu": "cuda", "nvidia": "cuda"})
        )


def choose_device() -> str:
    """Return CUDA where there is some, else Apple's GPU, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
