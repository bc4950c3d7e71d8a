"""A suite: which subjects, variants, prompts and seeds are compared, read from TOML and checked."""

import hashlib
import re
import tomllib
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import AliasChoices, Field, ValidationError, model_validator

from sefi.core.config import LARGEST_STRENGTH, Config, Section, check_guidance
from sefi.core.errors import ConfigError, FaceError, PhotoError, PromptError, describe_first_fault
from sefi.core.files import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    describe_missing_folder,
    describe_unread,
    is_folder,
    write_file,
)
from sefi.core.hints import suggest
from sefi.core.prompts import check_syntax, is_person, strip_weights
from sefi.core.reading import InvalidFileError, check_values, read_user_text, translate_file_errors
from sefi.core.text import make_slug
from sefi.methods import check_settings_exist, get_preset, select_read_settings
from sefi.photo.augment import convert_to_bytes, crop_face, crop_middle
from sefi.photo.detect import FaceDetector
from sefi.photo.read import Photo, convert_to_pixels, read_photo

if TYPE_CHECKING:
    from sefi.diffusion.conditioning import Slot


KINDS: tuple[Literal["K", "V"], ...] = ("K", "V")


def parse_slots(names: tuple[str, ...], stages: int) -> "list[Slot]":
    """Return `K` (of every stage), `V`, `3` (both of a stage) and `3K` as slots.

    >>> parse_slots(("V", "0K"), 2)
    [(0, 'V'), (1, 'V'), (0, 'K')]

    Raises:
        ConfigError: a name is none of these.
    """
    slots: list[Slot] = []
    for name in names:
        matches: list[Slot] = [
            (stage, k) for k in KINDS for stage in range(stages) if name in (k, str(stage), f"{stage}{k}")
        ]
        if not matches:
            raise ConfigError(f"There is no slot {name!r}.", "Write K, V, a stage such as 3, or both as 3K.")
        slots += matches
    return slots


BUNDLED = "sefi.benchmark"
Control = Literal["class word", "photo", "same", "other"]  # the last two as files have had them from the start
ANOTHER_PHOTO: Final = "same"
ANOTHER_SUBJECT: Final = "other"


Text = Annotated[str, Field(max_length=2000)]
Label = Annotated[str, Field(max_length=200)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
LONGEST_SLUG = 80  # letters: two subjects, prompt and seed are in the names of files too
TABLES = ("prompts", "variants", "ways")  # lists of tables, each below its name in double brackets
LISTS = ("prompt_lists", "settings", "seeds")
KEY_ALIASES = {"method": "preset", "name": "label", "prompt": "text"}  # what people write for a key
LARGEST_SUITE, LONGEST_LINE = 2**18, 2**13  # bytes, and letters: tomllib takes time by the square of a key's length


class SuitePrompt(Section, frozen=True):
    """One prompt.

    Attributes:
        text: the sentence, `{}` for every subject in it.
        kind: what it asks for: scene, action, attribute, style, combination, ...
        wanted: what a reader must see, as (kind, label); empty where no reader is asked.
    """

    text: Text
    kind: Label
    wanted: tuple[tuple[Label, Label], ...] = Field((), max_length=50)


class Variant(Section, frozen=True):
    """One method with one set of settings.

    Attributes:
        settings: what differs from the preset, as `learn.steps=100`.
        learned_by: label of the variant whose identity is used; None learns one.
        class_slots: slots that hold the class word instead (the paper's Figure 5): `K` and `V` for every stage, `3` for
            both of a stage, `3K` for one.
        strength: 0 is the class word, once however many tokens were learned; 1 what was learned.
        learning_seed: of learning, for every subject; that of the images is the suite's.
        control: a reference row that learns nothing: the plain class word, the photo pasted, another image of the same
            subject, another subject's photo.
        images: folder of images that another program made, from the current folder; nothing is learned or generated.
    """

    label: Label
    about: Text = ""
    preset: Label = "default"
    settings: tuple[Text, ...] = Field((), max_length=200)
    learned_by: Label | None = None
    class_slots: tuple[Label, ...] = Field((), max_length=400)
    strength: float = Field(1.0, ge=0, le=LARGEST_STRENGTH)
    learning_seed: Seed = 0
    control: Control | None = None
    images: Text | None = None

    @model_validator(mode="after")
    def check_images(self) -> Self:
        """Refuse settings of a variant whose images another program made: they would change nothing."""
        others = self.model_fields_set - {"label", "about", "images"}
        if self.images is not None and others:
            raise ValueError(f"{self.label!r} takes its images from a folder, so {sorted(others)[0]} is of no use")
        return self

    @model_validator(mode="after")
    def check_control(self) -> Self:
        """Refuse what would change nothing of a reference row; the class word is generated, so it has a preset."""
        if self.control is None:
            return self
        own = ["learned_by", "class_slots", "strength"]
        if self.control != "class word":
            own += ["preset", "settings"]
        idle = [name for name in own if getattr(self, name) != Variant.model_fields[name].default]
        idle += [setting.partition("=")[0] for setting in self.settings if not setting.startswith("generate.")]
        if idle:
            raise ValueError(f"{self.label!r} is a reference row ({self.control}), so {idle[0]} is of no use")
        return self


class Suite(Section, frozen=True):
    """A whole comparison.

    Attributes:
        settings: what a variant whose method reads the setting gets on top of its preset and below its own settings.
        seeds: of the images; each prompt is drawn once a seed.
        subjects: how many drawn ones, and the number of the first, where no photographs are given.
        together: how many subjects share an image.
        class_word: what the subjects are: a word for people, such as person; or cat, dog or bear, which are drawn.
        photos: what the drawn people are learned from: a plain portrait, or a photo in a scene with something in the
            hand, compared with a second photo of the same person in another scene; with `both`, the first half from
            portraits (one more where the number is odd) and the others from photos in scenes.
        attention: also measure the placeholder's attention; one image at a time, so slower.
    """

    name: str = Field(max_length=300)
    about: Text
    prompts: tuple[SuitePrompt, ...] = Field(min_length=1, max_length=2000)
    variants: tuple[Variant, ...] = Field(
        min_length=1,
        max_length=200,
        validation_alias=AliasChoices("variants", "ways"),  # older suites have [[ways]]
    )
    settings: tuple[Text, ...] = Field((), max_length=200)
    seeds: tuple[Seed, ...] = Field((100, 101), min_length=1, max_length=2000)
    subjects: int = Field(4, ge=1, le=10_000)
    first: int = Field(0, ge=0, le=10**9)
    together: int = Field(1, ge=1, le=2)
    class_word: Label = Field(
        "person",
        validation_alias=AliasChoices("class_word", "kind"),  # as older suites call it
    )
    photos: Literal["plain", "scene", "both"] = "plain"
    attention: bool = False

    @model_validator(mode="after")
    def check_variants(self) -> Self:
        """Check that labels and seeds differ."""
        names = [make_slug(variant.label) for variant in self.variants]
        for variant, name in zip(self.variants, names, strict=True):
            if not name:
                raise ValueError(f"the label {variant.label!r} has no letter a to z or digit for the names of files")
            if names.count(name) > 1:
                raise ValueError(f"two variants are called {variant.label!r}, or their files would be")
            if len(name) > LONGEST_SLUG:
                raise ValueError(f"the label {variant.label!r} is too long for the names of files")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is given twice")
        return self

    @model_validator(mode="after")
    def check_learning(self) -> Self:
        """Check that an identity comes from a variant that learns one, and that the others have no such settings."""
        learning = {w.label for w in self.list_learning_variants()}
        for variant in self.variants:
            if variant.learned_by is not None and variant.learned_by not in learning:
                raise ValueError(
                    f"{variant.label!r} uses the identity of {variant.learned_by!r}, which no variant learns"
                )
            if variant.learned_by is not None and any(not s.startswith("generate.") for s in variant.settings):
                raise ValueError(f"{variant.label!r} learns nothing, so its settings of learning would be of no use")
            if variant.learning_seed and variant.label not in learning:
                raise ValueError(f"{variant.label!r} learns nothing, so its learning_seed would be of no use")
        return self

    @model_validator(mode="after")
    def check_photos(self) -> Self:
        """Refuse photos in scenes of animals, as only people are drawn in them, and folders of images of two."""
        if self.photos != "plain" and not is_person(self.class_word):
            raise ValueError(f"photos in scenes are drawn of people only, not of a {self.class_word}")
        if self.together > 1 and any(variant.images is not None for variant in self.variants):
            raise ValueError(f"images of a folder show one subject, not {self.together}")
        return self

    @model_validator(mode="after")
    def check_prompts(self) -> Self:
        """Check that every prompt has a place for each of the subjects that share an image.

        One of other programs' images may have none.
        """
        generates = any(w.images is None and w.control in (None, "class word") for w in self.variants)
        for prompt in self.prompts:
            if prompt.text.count("{}") not in ((self.together,) if generates else (0, self.together)):
                raise ValueError(f"the prompt {prompt.text!r} needs {{}} {self.together} times")
            if {"{", "}"} & set(prompt.text.replace("{}", "")):
                raise ValueError(f"the prompt {prompt.text!r} has braces that are no place for a subject")
            try:
                # Only a prompt that is generated must be one of ours: others may say "C++" or "<3".
                (check_syntax if generates else strip_weights)(prompt.text.replace("{}", "<subject>"))
            except PromptError as error:
                raise ValueError(error.problem.rstrip(".")) from None
        return self

    def list_photo_kinds(self) -> tuple[Literal["plain", "scene"], ...]:
        """Return what each drawn subject is learned from, in their order."""
        if self.photos != "both":
            return (self.photos,) * self.subjects
        plain = (self.subjects + 1) // 2
        return ("plain",) * plain + ("scene",) * (self.subjects - plain)

    def make_config(self, variant: Variant) -> Config:
        """Return the settings of one variant."""
        shared = select_read_settings(get_preset(variant.preset), self.settings)
        return get_preset(variant.preset, [f"learn.class_word={self.class_word}", *shared, *variant.settings])

    def add_settings(self, settings: Sequence[str]) -> "Suite":
        """Return this suite with more settings: above those of the suite, below the variant's own.

        Each is for the variants whose method has and reads it.

        Raises:
            ConfigError: as `check`.
        """
        suite = self.model_copy(update={"settings": (*self.settings, *settings)})
        suite.check()
        return suite

    def check(self) -> None:
        """Refuse settings and slots that would only be refused after hours.

        Raises:
            ConfigError: a preset, setting or slot that does not exist, or what the variant's method does not have.
        """
        from sefi.methods import get_method, is_of_tokens  # noqa: PLC0415  listing suites loads no torch

        variants = [variant for variant in self.variants if variant.images is None]
        presets = [get_preset(variant.preset) for variant in variants]
        check_settings_exist(self.settings, presets or [Config()])  # without a method they exist, and have no effect
        learned = [get_preset(variant.preset) for variant in self.list_method_variants()]
        for setting in self.settings:
            if not any(select_read_settings(preset, [setting]) for preset in learned or presets):
                raise ConfigError(
                    f"No variant's method reads {setting.partition('=')[0]}: it would have no effect.", "Leave it out."
                )
        for variant in variants:
            method = self.make_config(self.find_learning_variant(variant)).method
            if not is_of_tokens(method) and (variant.class_slots or variant.strength != 1.0 or self.attention):
                raise ConfigError(
                    f"{variant.label!r}: {method} learns no tokens, so it has no slots, strength or attention of them.",
                    "Leave them out, or take another method.",
                )
            if self.together > 1 and get_method(method).info.alone:
                raise ConfigError(
                    f"{variant.label!r}: {method} has one subject in a prompt; {self.together} share an image here.",
                    "Take another method.",
                )
            check_guidance(self.make_config(variant).generate)
            self.check_generation(variant)
            # The slots are those of the identity that is changed: the learning variant's.
            parse_slots(variant.class_slots, self.make_config(self.find_learning_variant(variant)).learn.stages)

    def check_generation(self, variant: Variant) -> None:
        """Refuse to compare an identity with itself by other settings of generation than a variant's own `settings`.

        Raises:
            ConfigError: its preset, or the learning variant's settings, make a difference.
        """
        learning = self.find_learning_variant(variant)
        ours, theirs = self.make_config(variant).generate, self.make_config(learning).generate
        own = [setting.partition("=")[0] for setting in variant.settings]
        for name in type(ours).model_fields:
            value, other = getattr(ours, name), getattr(theirs, name)
            if value != other and f"generate.{name}" not in own:
                problem = f"{variant.label!r} uses the identity of {learning.label!r}, but generates with generate."
                raise ConfigError(
                    f"{problem}{name}={value}, not {other}.",
                    f"Give it the preset of {learning.label!r}, or write generate.{name} into its settings.",
                )

    def find_learning_variant(self, variant: Variant) -> Variant:
        """Return the variant whose identity this one uses."""
        return next(w for w in self.variants if w.label == (variant.learned_by or variant.label))

    def list_learning_variants(self) -> list[Variant]:
        """Return the variants that learn something, each once."""
        return [variant for variant in self.list_method_variants() if variant.learned_by is None]

    def list_method_variants(self) -> list[Variant]:
        """Return the variants of a method: neither a reference row nor images of another program."""
        return [variant for variant in self.variants if variant.control is None and variant.images is None]


def list_bundled() -> dict[str, str]:
    """Return every bundled suite and what it is about."""
    names = sorted(f.name for f in find_data("suites").iterdir() if f.name.endswith(".toml"))
    return {name.removesuffix(".toml"): read_toml(find_data("suites") / name)["about"] for name in names}


def open_suite(name: str | Path) -> Suite:
    """Open a bundled suite by its name, or a TOML file.

    Raises:
        ConfigError: there is no such suite, or something in it is wrong.
    """
    path = find_data("suites") / f"{name}.toml" if str(name) in list_bundled() else Path(name)
    with translate_file_errors(path, ConfigError, "is no suite", "Mend the suite."):
        if not path.is_file():
            raise ConfigError(
                f"There is no suite {str(name)!r}.",
                suggest(str(name), list_bundled()).rstrip(".") + ", or name a TOML file.",
            )
        tree = read_toml(path)
        check_lists(tree, path)
        lists, suite_prompts = tree.pop("prompt_lists", []), tree.pop("prompts", [])
        listed = [prompt for name in lists for prompt in read_prompt_list(str(name))]
        own = [{"kind": "own", **p} if isinstance(p, dict) else p for p in suite_prompts]
        suite = parse_suite({"name": Path(path.name).stem, **tree, "prompts": [*listed, *own]}, path, len(listed))
    suite.check()
    return suite


def check_lists(tree: dict[str, Any], path: object) -> None:
    """Refuse a key of a suite's tree that must be a list and is none, with `ConfigError`; `path` is for its message."""
    for name in (*TABLES, *LISTS):
        if not isinstance(tree.get(name, []), list):
            remedy = f"Write [[{name}]] above each." if name in TABLES else f"Write it in brackets: {name} = [...]."
            raise ConfigError(f"{path}: {name} is no list.", remedy)


def parse_suite(tree: dict[str, Any], path: object, listed: int) -> Suite:
    """Parse a tree of plain values as a suite.

    Args:
        path: of its file, for the message.
        listed: how many of the first prompts are from lists: messages count the file's own, from 0.

    Raises:
        ConfigError: it has a key that there is not.
        InvalidFileError: a value is of the wrong kind, or out of range.
    """
    try:
        return Suite.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        place = [str(part) for part in fault["loc"]]
        if place[:1] == ["prompts"] and len(place) > 1:
            place[1] = str(int(place[1]) - listed)
        if fault["type"] != "extra_forbidden":
            raise InvalidFileError(describe_first_fault(error, place)) from error
        raise make_unknown_key_error(f"{path}: there is no key {'.'.join(place)!r}.", place) from None


def make_unknown_key_error(problem: str, place: Sequence[str]) -> ConfigError:
    """Return the error for a key of a suite that does not exist, with the nearest that does.

    Args:
        place: where it is: its section and number, if it is in one, and the key.
    """
    section = {"prompts": SuitePrompt, "variants": Variant, "ways": Variant}[place[0]] if len(place) > 1 else Suite
    key, of_suite = place[-1], [*Suite.model_fields, "prompt_lists"]
    if section is not Suite and key in of_suite and key not in KEY_ALIASES:
        return ConfigError(problem, f"{key!r} is a key of the suite: write it above the first [[...]].")
    return ConfigError(problem, suggest(key, of_suite if section is Suite else section.model_fields, KEY_ALIASES))


def read_prompt_list(name: str) -> list[dict[str, Any]]:
    """Return a bundled list of prompts.

    Raises:
        ConfigError: there is none of this name.
    """
    names = sorted(f.name.removesuffix(".toml") for f in find_data("prompts").iterdir() if f.name.endswith(".toml"))
    if name not in names:
        raise ConfigError(f"There is no list of prompts {name!r}.", suggest(name, names))
    return read_toml(find_data("prompts") / f"{name}.toml")["prompts"]


def find_data(name: str) -> Traversable:
    """Return a folder of the package's data."""
    return files(BUNDLED).joinpath(name)


def read_toml(path: Path | Traversable) -> dict[str, Any]:
    """Return a TOML file as plain values; `ConfigError` if it is none."""
    with translate_file_errors(path, ConfigError, "is no TOML file", "Mend it."):
        text = read_user_text(path, LARGEST_SUITE) if isinstance(path, Path) else path.read_text(encoding="utf-8")
        if max(map(len, text.splitlines()), default=0) > LONGEST_LINE:
            raise InvalidFileError(f"a line has more than {LONGEST_LINE} letters")
        tree = tomllib.loads(text)
        check_values(tree)
        return tree


SIDE = 512
LONGEST_KEY = 64


@dataclass(frozen=True)
class BenchmarkSubject:
    """One person or animal.

    Attributes:
        key: a short name, letters, digits, `-` and `_`.
        photo: the square that is learned from, uint8 RGB `[side, side, 3]`.
        other_photo: the same of another image of the subject; None where there is none.
    """

    key: str
    photo: NDArray[np.uint8]
    other_photo: NDArray[np.uint8] | None = None


def read_subjects(folder: Path, detector: FaceDetector | None) -> list[BenchmarkSubject]:
    """Return a subject for every image file of a folder and for every folder in it, whose first image is learned.

    Args:
        detector: finds the face whose square is learned; None takes the middle square of each image.

    Raises:
        PhotoError: there is no image, one cannot be read, or two subjects have one name.
        FaceError: the photo that is to be learned shows no face, or several.
    """
    return [read_subject(key, paths, detector) for key, paths in group_image_files(folder).items()]


def group_image_files(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each subject by its key, hidden folders left out; errors as in `read_subjects`."""
    if not is_folder(folder):
        raise PhotoError(describe_missing_folder(folder), "Name a folder with a photo or a folder for every person.")
    groups = [[path] for path in list_image_files(folder)]
    inside = [inner for inner in sorted(folder.iterdir()) if inner.name[0] != "." and is_folder(inner)]
    groups += [images for inner in inside if (images := list_image_files(inner))]
    if not groups:
        raise PhotoError(
            f"'{folder}' has no images{describe_unread(list_unread_files(folder))}.",
            f"Put {', '.join(IMAGE_SUFFIXES)} files or folders of them into it.",
        )
    refuse_namesakes([make_key(paths, folder) for paths in groups])
    return {make_key(paths, folder): paths for paths in groups}


def list_image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder, by name; hidden ones are left out.

    Raises:
        PhotoError: it cannot be read.
    """
    with translate_file_errors(f"'{folder}'", PhotoError, "cannot be read", "Allow it to be read, or move it away."):
        return sorted(
            p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() and p.name[0] != "."
        )


def list_unread_files(folder: Path, *, inside: bool = True) -> list[str]:
    """Return what in a folder has the name of an image of a format that is not read; what cannot be seen is left out.

    Args:
        inside: also in the folders in it.
    """
    places, found = [folder], list[Path]()
    if inside:
        with suppress(OSError):
            places += [one for one in folder.iterdir() if one.name[0] != "." and is_folder(one)]
    for place in places:
        with suppress(OSError):
            files = [one for one in place.iterdir() if one.suffix.lower() in UNREAD_SUFFIXES and one.name[0] != "."]
            found += [one for one in files if one.is_file()]
    return sorted(one.relative_to(folder).as_posix() for one in found)


def make_key(paths: list[Path], root: Path) -> str:
    """Return a subject's name in plain letters, from its file or its folder."""
    return make_subject_key(paths[0].stem if paths[0].parent == root else paths[0].parent.name)


def make_subject_key(named: str) -> str:
    """Return a name in plain letters, as it may stand in names of files.

    >>> make_subject_key("Zoë & co.")
    'Zoe-co'
    """
    plain = unicodedata.normalize("NFKD", named).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-")[:LONGEST_KEY] or "subject"


def refuse_namesakes(keys: list[str]) -> None:
    """Refuse two subjects of one name, which would share what is learned; case does not count, as on some disks."""
    for key in keys:
        if [k.lower() for k in keys].count(key.lower()) > 1:
            raise PhotoError(f"Two subjects would be called {key!r}.", "Rename one of the files or folders.")


def read_subject(key: str, paths: list[Path], detector: FaceDetector | None) -> BenchmarkSubject:
    """Return a subject that learns from its first image; the second is compared with if its face can be found."""
    try:
        photo = read_square(paths[0], detector)
    except FaceError as error:
        raise FaceError(f"{paths[0]}: {error.problem}", "Use a photo with one clear face.") from error
    try:
        return BenchmarkSubject(key, photo, read_square(paths[1], detector) if len(paths) > 1 else None)
    except FaceError:
        return BenchmarkSubject(key, photo)


def read_square(path: Path, detector: FaceDetector | None) -> NDArray[np.uint8]:
    """Return the face's square of a photo file, or the middle one, uint8 RGB `[SIDE, SIDE, 3]`."""
    return crop_subject(read_photo(path), detector)


def crop_drawing(rgb: NDArray[np.uint8], detector: FaceDetector | None) -> NDArray[np.uint8]:
    """Return the same as `read_square`, of a drawing."""
    return crop_subject(Photo(convert_to_pixels(Image.fromarray(rgb)), "drawing"), detector)


def crop_subject(photo: Photo, detector: FaceDetector | None) -> NDArray[np.uint8]:
    """Return the face's square, or the middle one; with the margin of the default settings."""
    return convert_to_bytes(crop_middle(photo, SIDE) if detector is None else crop_face(photo, detector, SIDE))


def hash_pixels(rgb: NDArray[np.uint8]) -> str:
    """Return the first 16 digits of the SHA-256 of the pixels."""
    return hashlib.sha256(rgb.tobytes()).hexdigest()[:16]


def save_photo(subject: BenchmarkSubject, path: Path) -> Path:
    """Write the square for learning and the report, whole or not at all, and return its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, Image.fromarray(subject.photo).save)
    return path
