"""The words that captions may contain, in groups, for people who write prompts."""

from pathlib import Path

from sefi.conditioning.known_words import split_words
from sefi.core.files import write_text
from sefi.core.json_text import dump_json
from sefi.core.templates import FACE_TEMPLATES
from sefi.world import animal, captions, fifth_words, person
from sefi.world.names import characters
from sefi.world.tokenizing import words
from sefi.world.versions import SHIPPED, WorldVersion

NAME_PARTS = (captions.FIRST, captions.LAST)
SUBJECTS = ("person", "man", "woman", "boy", "girl", "child", "people", *animal.ANIMALS)


def list_phrases(table: dict[str, tuple[str, ...]], labels: tuple[str, ...]) -> list[str]:
    """Return every phrase that a table of captions has for these labels, each once, in order."""
    return list(dict.fromkeys(phrase for label in labels if label for phrase in table[label]))


def group_words(version: WorldVersion = SHIPPED) -> dict[str, list[str]]:
    """Return phrases by what they say: scenes, actions, attributes ...; the characters' names are left out."""
    clothes = [phrase.format("red") for phrase in list_phrases(fifth_words.GARMENTS, version.garments)]
    colours = [word for _, word in fifth_words.HUES] if version.garments else []
    tones = [tone for tone, _ in person.SKIN_TONES]
    looks = [word for extreme in person.EXTREMES for word in extreme[2:]]
    groups: dict[str, list[str]] = {
        "subjects": list(SUBJECTS),
        "scenes": list_phrases(captions.EVERY_PLACE, version.scenes),
        "actions": list_phrases(captions.EVERY_DOING, version.actions),
        "actions of two": list_phrases(captions.TOGETHER, tuple(captions.TOGETHER)),
        "attributes": list_phrases(captions.EVERY_PHRASE, version.attributes),
        "styles": list_phrases(captions.EVERY_MEDIUM, version.styles),
        "light": [captions.EVERY_LIGHT[light] for light in version.lights if light],
        "clothes": clothes,
        "colours of clothes": list(dict.fromkeys(colours)),
        "framing": [
            "a close-up photo of",
            *list_phrases(fifth_words.CAMERAS, version.cameras),
            *(t.replace(" {}", "") for t in FACE_TEMPLATES),
        ],
        "hair": [*(f"{style} hair" for style in person.HAIR_STYLES), *(f"{c} hair" for c in person.HAIR_COLOURS)],
        "eyes": [f"{colour} eyes" for colour in person.EYE_COLOURS],
        "skin": [f"{tone} skin" for tone in tones],
        "looks": [*looks, "freckles", "glasses", "a mole"],
        "coats of animals": [*animal.COATS, *animal.MARKINGS, "floppy ears", "pointed ears"],
        "eyes of animals": [f"{colour} eyes" for colour in animal.PET_EYES],
    }
    grouped = set(split_words(phrase for phrases in groups.values() for phrase in phrases))
    names = set(captions_names())
    groups = {name: phrases for name, phrases in groups.items() if phrases}
    return groups | {"other words": [w for w in words(version) if w not in grouped | names]}


def captions_names() -> list[str]:
    """Return the words that names consist of, and what stands for them while training."""
    return [*NAME_PARTS, *(word for one in characters() for word in (one.first, one.last))]


def write_words(path: Path, version: WorldVersion = SHIPPED) -> None:
    """Write the groups as JSON, as they lie in the package."""
    write_text(path, dump_json(group_words(version), indent=1) + "\n")
