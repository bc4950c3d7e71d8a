"""Every method and every preset by name, of this package and of others; a method is imported when it is looked up.

Other packages bring methods by entry points of the group `sefi.methods`: docs/add-a-method.md.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from sefi.core.config import (
    STARTING_PRESETS,
    Config,
    list_sections,
    list_setting_fields,
    list_setting_names,
    make_unknown_setting_error,
    override,
    parse_config,
    select_settings,
    split_assignment,
)
from sefi.core.errors import ConfigError, MethodError, SefiError, is_external
from sefi.core.hints import METHOD_ALIASES, find_settings, suggest
from sefi.core.prompts import NAME

if TYPE_CHECKING:  # listing names and reading the starting presets loads no torch
    from sefi.methods.base import Method

GROUP = "sefi.methods"
MEMBERS = ("info", "presets", "config_type", "count_weights", "check", "learn", "apply")  # of the protocol `Method`
# The methods of this package, written as other packages write theirs: `module:class`.
BUILT_IN = {
    "sefi": "sefi.methods.sefi:StagedKeyValue",
    "textual-inversion": "sefi.methods.textual_inversion:TextualInversion",
    "dreambooth": "sefi.methods.dreambooth:DreamBooth",
    "dreambooth-lora": "sefi.methods.dreambooth_lora:DreamBoothLora",
    "custom-diffusion": "sefi.methods.custom_diffusion:CustomDiffusion",
    "prospect": "sefi.methods.prospect:ProSpect",
    "celeb-basis": "sefi.methods.celeb_basis:CelebBasis",
    "cross-init": "sefi.methods.cross_init:CrossInitialization",
    "fastcomposer": "sefi.methods.fastcomposer:FastComposer",
}


class MethodTable(Mapping[str, "Method"]):
    """The methods by name, built in ones first. Listing names imports none; looking one up imports that one.

    A method that cannot be loaded, and a name that two packages give, are a `MethodError` when they are looked up.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Method] = {}

    @cached_property
    def entries(self) -> dict[str, list[EntryPoint]]:
        """The places of every name: one, or several where packages contradict each other."""
        places = {name: [EntryPoint(name, place, GROUP)] for name, place in BUILT_IN.items()}
        for entry in sorted(entry_points(group=GROUP), key=lambda one: one.name):
            places.setdefault(entry.name, []).append(entry)
        return places

    def refresh(self) -> None:
        """Find methods again, after a package was installed or removed while Python runs."""
        self.loaded.clear()
        self.__dict__.pop("entries", None)

    def __getitem__(self, name: str) -> "Method":
        if name not in self.loaded:
            self.loaded[name] = load_method(name, self.entries[name])
        return self.loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class PresetTable(Mapping[str, Config]):
    """The presets by name: `default`, `fast`, `paper`, and each method's own, which begin with the method's name.

    Only the methods whose name a preset begins with are imported when it is looked up. All are imported when the names
    are listed; those of a method that cannot be loaded are left out.
    """

    def __init__(self, methods: Mapping[str, "Method"]) -> None:
        self.methods = methods

    def __getitem__(self, name: str) -> Config:
        if name in STARTING_PRESETS:
            return STARTING_PRESETS[name]
        owners = [method for method in self.methods if f"{name}-".startswith(f"{method}-")]
        for method in sorted(owners, key=len, reverse=True):  # of dreambooth and dreambooth-lora the latter
            presets = read_presets(method, self.methods[method])
            if name in presets:
                return presets[name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        names = dict.fromkeys(STARTING_PRESETS)
        for name in self.methods:
            with suppress(MethodError):
                names |= dict.fromkeys(read_presets(name, self.methods[name]))
        return iter(names)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def load_method(name: str, entries: Sequence[EntryPoint]) -> "Method":
    """Load the class that a method's entry point names, and return a method made of it.

    Raises:
        MethodError: the name has several entry points, or the one of another package leads to no whole method.
    """
    if len(entries) > 1:
        raise create_clash_error(name, entries)
    (entry,) = entries
    if entry.dist is None:  # a method of this package
        return entry.load()()
    from sefi.methods.other_packages import PackagedMethod, create_fault_error  # noqa: PLC0415  loads torch

    package = entry.dist.name
    try:
        method = entry.load()()
        fault = find_fault(name, method)
    except Exception as error:
        if is_external(error):
            raise
        fault = str(error) if isinstance(error, SefiError) else f"{type(error).__name__}: {error}."
        raise create_fault_error(name, package, fault) from error
    if fault is not None:
        raise create_fault_error(name, package, fault)
    return PackagedMethod(name, package, method)


def create_clash_error(name: str, entries: Sequence[EntryPoint]) -> MethodError:
    """Return the error for a name with several entry points; it names the packages."""
    packages = [entry.dist.name for entry in entries if entry.dist is not None]
    owners = " and ".join(map(repr, packages))
    source = "sefi itself and from" if name in BUILT_IN else "several packages:"
    problem = f"The method {name!r} comes from {source} {owners}."
    return MethodError(
        problem, f"Remove what you do not need (pip uninstall {packages[-1]}), or ask its authors to rename the method."
    )


def find_fault(name: str, method: object) -> str | None:
    """Return what is wrong with a method of another package, in one sentence, or None.

    Raises:
        ConfigError: one of its presets has a setting that does not exist or a value that does not fit.
    """
    from sefi.methods.base import MethodInfo  # noqa: PLC0415  loads torch

    missing = [member for member in MEMBERS if not hasattr(method, member)]
    if missing:
        return f"Its class has no {', '.join(missing)}."
    if not isinstance(getattr(method, "info"), MethodInfo):  # noqa: B009  an object of another package, of any type
        return "Its `info` is no MethodInfo."
    whole = cast("Method", method)
    if fault := find_config_fault(whole.config_type, whole.info.unread):
        return fault
    if name not in read_presets(name, whole):
        return "It has no preset of its own name, the one with an empty ending."
    if not re.fullmatch(NAME, name):
        return "Its name has other signs than letters, digits, - and _, or too many."
    return "Its name is that of a preset." if name in STARTING_PRESETS else None


def find_config_fault(kind: object, unread: Iterable[str]) -> str | None:
    """Return what is wrong with the class of a method's settings, or with those that it does not read, or None."""
    if not (isinstance(kind, type) and issubclass(kind, Config)):
        return "Its `config_type` is neither Config nor derived from it."
    apart = sorted(kind.model_fields.keys() - {"method", "explicit", *list_sections(kind)})
    if apart:
        return f"Its settings {', '.join(apart)} are in no section."
    required = [
        name for name, field in {**kind.model_fields, **list_setting_fields(kind)}.items() if field.is_required()
    ]
    if required:
        return f"Its settings {', '.join(required)} have no default."
    unknown = [name for name in unread if name not in list_setting_names(kind)]
    return f"Its `info.unread` names {', '.join(unknown)}, but it has no such setting." if unknown else None


def read_presets(name: str, method: "Method") -> dict[str, Config]:
    """Return the presets of a method by their whole names, as settings.

    Raises:
        ConfigError: one has a setting that does not exist or a value that does not fit.
    """
    return {
        f"{name}-{ending}" if ending else name: parse_config({**tree, "method": name}, method.config_type)
        for ending, tree in method.presets.items()
    }


METHODS = MethodTable()
"""Methods by name."""
PRESETS: Mapping[str, Config] = PresetTable(METHODS)
"""Settings by name: `default`, `fast`, `paper`, and those of the other methods (`sefi methods` lists them)."""


def get_method(name: str) -> "Method":
    """Return the method of this name.

    Raises:
        ConfigError: there is none; the error names the others.
        MethodError: another package brings it, and it cannot be used.
    """
    if name not in METHODS:
        choice = suggest(name, METHODS, METHOD_ALIASES, "Choose").rstrip(".")
        raise ConfigError(f"There is no method {name!r}.", f"{choice}, or install the package that brings it.")
    return METHODS[name]


def get_preset(name: str, assignments: Iterable[str] = ()) -> Config:
    """Return the preset of this name, with the assignments `section.name=value` made.

    Raises:
        ConfigError: there is none, and the error names the others; its method has no such setting, or a value
            does not fit.
        MethodError: it is of a method that another package brings, and that cannot be used.
    """
    try:
        preset = PRESETS[name]
    except KeyError:
        raise ConfigError(f"There is no preset {name!r}.", suggest(name, PRESETS, METHOD_ALIASES)) from None
    assignments = list(assignments)
    check_settings_exist(assignments, [preset])
    return override(preset, assignments)


def check_settings_exist(assignments: Iterable[str], presets: Sequence[Config]) -> None:
    """Refuse assignments to settings that the method of none of these presets has.

    Raises:
        ConfigError: there is one; the error names the methods that have it.
    """
    names = {name for preset in presets for name in list_setting_names(type(preset))}
    for name, _ in map(split_assignment, assignments):
        if name not in names:
            raise make_missing_setting_error(name, presets)


def select_read_settings(preset: Config, assignments: Iterable[str]) -> list[str]:
    """Select the assignments `section.name=value` whose setting the method of a preset has and reads."""
    own = select_settings(type(preset), assignments)
    unread = get_method(preset.method).info.unread if own else ()
    return [assignment for assignment in own if split_assignment(assignment)[0] not in unread]


def make_missing_setting_error(name: str, presets: Sequence[Config]) -> ConfigError:
    """Return the error for a setting that the methods of these presets do not have.

    Methods are imported to look for its owners only where one could have it: not for the sections of every method.
    """
    names = list(dict.fromkeys(name for preset in presets for name in list_setting_names(type(preset))))
    unknown = make_unknown_setting_error(name, names)
    if name.partition(".")[0] in list_sections(Config):
        return unknown
    owners = find_setting_owners()
    meant = [name] if name in owners else [] if find_settings(name, names) else find_settings(name, list(owners))
    if not meant:
        return unknown
    of, methods = owners[meant[0]], list(dict.fromkeys(preset.method for preset in presets))
    owned = f"is a setting of {' and '.join(of)}; {' and '.join(methods)} {'has' if len(methods) == 1 else 'have'} none"
    if meant[0] == name:
        return ConfigError(f"{name} {owned} of this name.", "Leave it out, or take a method that has it.")
    return ConfigError(unknown.problem, f"Did you mean {meant[0]!r}? It {owned} of this name.")


def find_setting_owners() -> dict[str, list[str]]:
    """Find the methods that have a setting, by its name; those that cannot be loaded are left out."""
    owners: dict[str, list[str]] = {}
    for method in METHODS:
        with suppress(MethodError):
            for name in list_setting_names(METHODS[method].config_type):
                owners.setdefault(name, []).append(method)
    return owners


def name_default_preset(method: str) -> str:
    """Return the name of the preset that a method starts from where no other is named."""
    return "default" if method == Config().method else method


def name_published_preset(method: str) -> str:
    """Return the name of the preset with a method's published recipe; of a method without one, its default preset."""
    published = "paper" if method == Config().method else f"{method}-official"
    return published if published in PRESETS else name_default_preset(method)


def is_of_tokens(name: str) -> bool:
    """Return whether the identities of this method are applied by their tokens alone: the model stays as it is."""
    from sefi.methods.base import TokenMethod  # noqa: PLC0415  loads torch
    from sefi.methods.other_packages import PackagedMethod  # noqa: PLC0415

    method = get_method(name)
    return isinstance(method.method if isinstance(method, PackagedMethod) else method, TokenMethod)
