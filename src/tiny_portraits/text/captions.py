"""Captions of images: who, how, doing what, where, in which style; and drawings written with theirs."""

import colorsys
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sefi.core.files import FileKind, check_output, make_text_writer, write_output
from sefi.core.progress import Progress
from sefi.core.prompts import FACE_TEMPLATES, split_words
from sefi.core.text import dump_json
from tiny_portraits.drawing.content import GREY_STYLES, SHIPPED, ImageContent, Pet, Subject, WorldVersion, list_hidden
from tiny_portraits.drawing.image import describe_content, draw
from tiny_portraits.drawing.sampling import get_content
from tiny_portraits.drawing.traits import Person
from tiny_portraits.text.words import (
    ADJECTIVES,
    CAMERAS,
    DOING,
    GARMENTS,
    HUES,
    LIGHT_WORDS,
    MEDIA,
    PHRASES,
    PLACES,
    TOGETHER,
)

# Stands for a person's two-word name until the tokens are known.
FIRST, LAST = "firstname", "lastname"
NAMED = re.compile(rf"\b{FIRST}( {LAST})?\b")
OMITTED = ("scene", "action", "clothes", "light")
# Written drawings are larger than the model's: they serve as photos.
FILE_SIDE = 512


@dataclass(frozen=True)
class Caption:
    """Words of an image.

    Attributes:
        text: the sentence; every named person stands in it as `firstname lastname` or `firstname`.
        named: the named people, in the order of the sentence.
        unsaid_scene: the image's scene where the sentence leaves it out, else "".
    """

    text: str
    named: tuple[Person, ...]
    unsaid_scene: str = ""


def remove_names(text: str) -> str:
    """Return a caption's words with `person` for every name."""
    return text.replace(f"{FIRST} {LAST}", "person").replace(FIRST, "person")


def number_names(text: str) -> tuple[str, int]:
    """Return a caption with `<0>`, `<1>` for its names, in order, and how many there are."""
    count = len(NAMED.findall(text))
    numbers = iter(range(count))
    return NAMED.sub(lambda _: f"<{next(numbers)}>", text), count


def choose_phrase(random: np.random.Generator, options: tuple[str, ...]) -> str:
    """Return one option, drawn with equal chances."""
    return options[int(random.integers(len(options)))]


def join_words(words: list[str]) -> str:
    """Return words as `a, b and c`."""
    return (", ".join(words[:-1]) + " and " if len(words) > 1 else "") + words[-1]


def choose_trait_words(subject: Subject, style: str, random: np.random.Generator) -> list[str]:
    """Return words for every trait that this image shows; hair style and colour mostly go into one phrase."""
    unseen = list_hidden(subject, style)
    traits = {kind: words for kind, words in subject.person.get_traits().items() if kind not in unseen}
    if {"hair style", "hair colour"} <= traits.keys() and random.random() < 0.6:
        traits["hair style"] = traits["hair style"].replace("hair", traits.pop("hair colour"))
    return list(traits.values())


def describe(subject: Subject, style: str, random: np.random.Generator) -> str:
    """Return `a person with ...` and one to four of the traits, fewer where somebody else needs words too."""
    traits = choose_trait_words(subject, style, random)
    most = 3 if subject.scale < 26 else 5
    if not traits:
        return "a person"
    return "a person with " + join_words(
        [traits[i] for i in random.permutation(len(traits))[: int(random.integers(1, most))]]
    )


def say_who(subject: Subject, style: str, random: np.random.Generator) -> tuple[str, bool]:
    """Return words for one person, and whether they are the person's name."""
    kind = random.random()
    if kind < 0.60:
        return (f"{FIRST} {LAST}" if random.random() < 0.4 else FIRST), True
    if kind < 0.88:
        return describe(subject, style, random), False
    return ("a person" if random.random() < 0.6 else "person"), False


def say_pet(pet: Pet, style: str, random: np.random.Generator) -> str:
    """Return `a spotted brown dog with floppy ears`: the kind, and often what can be seen of the animal."""
    animal, unseen = pet.animal, list_hidden(pet, style)
    if random.random() < 0.25:
        return f"a {animal.kind}"
    said = {kind: words for kind, words in animal.get_traits().items() if random.random() < 0.6}
    traits = {kind: words for kind, words in said.items() if kind not in unseen}
    before = " ".join([traits[k] for k in ("marking", "coat") if k in traits] + [animal.kind])
    behind = [traits[k] for k in ("ears", "eyes") if k in traits]
    return f"a {before}" + (f" with {join_words(behind)}" if behind else "")


def add_state(who: str, subject: Subject, random: np.random.Generator, style: str = "photo") -> str:
    """Return the person's words with attributes before or after, and what they do."""
    before, after = "", [choose_phrase(random, DOING[subject.action])] if subject.action else []
    for attribute in subject.attributes:
        if attribute in ADJECTIVES and not before and random.random() < 0.4:
            before = ADJECTIVES[attribute] + " "
        else:
            after.insert(int(random.integers(len(after) + 1)), choose_phrase(random, PHRASES[attribute]))
    if subject.garment:
        after.append(say_garment(subject, style, random))
    article = "an " if before[:1] in ("a", "o") else "a "
    bare = who.removeprefix("a ")
    spoken = (article if bare != who or random.random() < 0.3 else "") + before + bare if before else who
    comma = "," if random.random() < 0.3 else ""
    return spoken + "".join(f"{comma} {words}" if i == 0 else f", {words}" for i, words in enumerate(after))


def say_dressed_pet(pet: Pet, style: str, random: np.random.Generator) -> str:
    """Return a pet's words and what it wears."""
    return ", ".join([say_pet(pet, style, random), *(choose_phrase(random, PHRASES[a]) for a in pet.attributes)])


def say_company(content: ImageContent, random: np.random.Generator) -> tuple[str, tuple[Person, ...]]:
    """Return words for everybody, left to right, and for what they do with each other; and who is called by name."""
    spoken, named = list[str](), list[Person]()
    for subject in content.subjects:
        who, is_name = say_who(subject, content.style, random)
        named += [subject.person] if is_name else []
        spoken.append(add_state(who, subject, random, content.style))
    words = " and ".join(spoken + [say_dressed_pet(pet, content.style, random) for pet in content.pets])
    if content.interaction:
        words += " " + choose_phrase(random, TOGETHER[content.interaction])
    return words, tuple(named)


def say_opening(content: ImageContent, who: str, random: np.random.Generator) -> str:
    """Return medium and subject, the start of a sentence; for one close person also by a face template."""
    alone = content.style == "photo" and len(content.subjects) == 1 and not content.pets
    scale = content.subjects[0].scale if alone else 0.0
    if scale > 34 and random.random() < 0.5:
        return choose_phrase(random, FACE_TEMPLATES).format(who)
    close = scale > 38 and random.random() < 0.5
    return ("a close-up photo of " if close else choose_phrase(random, MEDIA[content.style]) + " ") + who


def say_garment(subject: Subject, style: str, random: np.random.Generator) -> str:
    """Return words for the clothes, with their colour where the garment comes in any and the style shows colours."""
    colour = "" if style in GREY_STYLES else name_colour(subject.clothes)
    return " ".join(choose_phrase(random, GARMENTS[subject.garment]).format(colour).split())


def name_colour(colour: tuple[float, float, float]) -> str:
    """Return the nearest colour word of RGB in [0, 1].

    >>> name_colour((0.8, 0.2, 0.2)), name_colour((0.2, 0.3, 0.7))
    ('red', 'blue')
    """
    hue = colorsys.rgb_to_hls(*colour)[0]
    return next(word for end, word in HUES if hue < end)


def write_caption(
    content: ImageContent, random: np.random.Generator, place_share: float = 0.92, light_share: float = 0.6
) -> Caption:
    """Return a sentence for an image; scene and light are sometimes left out, attributes never."""
    who, named = say_company(content, random)
    text = say_opening(content, who, random)
    place = choose_phrase(random, PLACES[content.scene]) if content.scene and random.random() < place_share else ""
    light = LIGHT_WORDS[content.light] if content.light and random.random() < light_share else ""
    comma = "," if random.random() < 0.25 else ""
    camera = choose_phrase(random, CAMERAS[content.camera]) if content.camera else ""
    return Caption(text + "".join(f"{comma} {words}" for words in (place, light, camera) if words), named)


def hide_unsaid(content: ImageContent, random: np.random.Generator, version: WorldVersion) -> ImageContent:
    """Return what the caption says of an image: in `version.omission` of them some of what is there is left out.

    Each of scene, action, clothes and light is then left out of every other caption, so an unnamed background can
    come from the word of the subject, as in captions from the web. Attributes are never left out.
    """
    leaves = random.random() < version.omission
    unsaid = {kind for kind in OMITTED if leaves and random.random() < 0.5}
    if not leaves:
        # Few people say what somebody wears; and a caption must fit into the text encoder.
        unsaid |= {"clothes"} if random.random() < 0.4 else set()
    people = tuple(
        replace(s, action="" if "action" in unsaid else s.action, garment="" if "clothes" in unsaid else s.garment)
        for s in content.subjects
    )
    scene, light = (
        "" if kind in unsaid else there for kind, there in (("scene", content.scene), ("light", content.light))
    )
    return replace(content, subjects=people, scene=scene, light=light)


def say(content: ImageContent, random: np.random.Generator, version: WorldVersion) -> tuple[Caption, ImageContent]:
    """Return a caption of a version's image, and the image as far as the caption says it.

    A sentence too long for the text encoder is tried again, the fourth time without clothes and with plain words.
    """
    said, sentence = content, Caption("", ())
    for attempt in range(6):
        said = hide_unsaid(content, random, version)
        if attempt > 2:
            said = replace(said, subjects=tuple(replace(s, garment="") for s in said.subjects), light="", camera="")
        sentence = write_caption(said, random, place_share=1.0, light_share=1.0)
        if count_words(sentence.text) <= version.longest:
            break
    return replace(sentence, unsaid_scene="" if said.scene else content.scene), said


def count_words(text: str) -> int:
    """Return how many tokens a caption has, start and end left out.

    >>> count_words("a close-up photo of a person, smiling")
    10
    """
    return len(split_words([text]))


def check_drawings(count: int, out: Path, *, overwrite: bool) -> None:
    """Refuse to replace what is not asked to be replaced.

    Raises:
        OutputError: a file that `write_drawings` would write is there.
    """
    for index in range(count):
        check_output(out / f"{index:05d}.png", FileKind.PNG, overwrite=overwrite, follow=False)
        check_output(out / f"{index:05d}.json", FileKind.JSON, overwrite=overwrite, follow=False)


def write_drawings(
    count: int, seed: int, out: Path, progress: Progress, side: int = FILE_SIDE, *, overwrite: bool = False
) -> None:
    """Write `NNNNN.png` and `NNNNN.json` (caption and truth) for the first images of a seed's series.

    Args:
        count: how many.
        seed: of the series; the same seed always gives the same drawings.
        out: an existing folder.
        side: side of the drawings in pixels.
        overwrite: replace earlier drawings.

    Raises:
        OutputError: a file is there and must not be replaced, or it cannot be written.
    """
    progress.start(count, "drawing")
    for index in range(count):
        content = get_content(seed, index, SHIPPED)
        sentence = remove_names(say(content, np.random.default_rng([seed, index, 1]), SHIPPED)[0].text)
        save = Image.fromarray(draw(content, side)).save
        write_output(out / f"{index:05d}.png", FileKind.PNG, save, overwrite=overwrite, follow=False)
        text = dump_json({"caption": sentence, **describe_content(content)}, indent=1)
        write_output(
            out / f"{index:05d}.json", FileKind.JSON, make_text_writer(text), overwrite=overwrite, follow=False
        )
        progress.advance()
    progress.finish()
