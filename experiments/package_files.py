"""Write the files of the package that come from the drawings: the words of captions and the demo's portrait.

Run it as `python experiments/package_files.py`.
"""

from functools import partial
from pathlib import Path

from PIL import Image

from sefi.backbone.open import MODELS
from sefi.core.files import write_file, write_text
from sefi.core.prompts import FACE_TEMPLATES, WORDS, split_words
from sefi.core.text import dump_json
from tiny_portraits.drawing import traits
from tiny_portraits.drawing.content import SHIPPED
from tiny_portraits.drawing.image import describe_content, draw
from tiny_portraits.drawing.sampling import make_scene_photo, make_test_person
from tiny_portraits.text import words
from tiny_portraits.text.captions import FILE_SIDE, FIRST, LAST
from tiny_portraits.text.tokenizing import list_caption_words
from tiny_portraits.text.words import list_characters

NAME_PARTS = (FIRST, LAST)
SUBJECTS = ("person", "man", "woman", "boy", "girl", "child", "people", *traits.ANIMALS)
DEMO_PERSON = 19  # number of the test person whom the demo learns


def main() -> None:
    """Write the files."""
    write_words(WORDS)
    write_portrait(DEMO_PERSON, MODELS / "demo")


def write_portrait(number: int, folder: Path) -> None:
    """Write `portrait.png`, a photo of a test person in a scene, and `truth.json` into a folder."""
    shown = make_scene_photo(make_test_person(number), number)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "portrait.png", partial(Image.fromarray(draw(shown, FILE_SIDE)).save, optimize=True))
    traits = describe_content(shown)["subjects"][0]["traits"]
    write_text(folder / "truth.json", dump_json({"subject": number, "traits": traits}, indent=1) + "\n")


def list_phrases(table: dict[str, tuple[str, ...]], labels: tuple[str, ...]) -> list[str]:
    """Return every phrase that a table of captions has for these labels, each once, in order."""
    return list(dict.fromkeys(phrase for label in labels if label for phrase in table[label]))


def group_words() -> dict[str, list[str]]:
    """Return phrases by what they say: scenes, actions, attributes ...; the characters' names are left out."""
    clothes = [phrase.format("red") for phrase in list_phrases(words.GARMENTS, SHIPPED.garments)]
    colours = [word for _, word in words.HUES]
    tones = [tone for tone, _ in traits.SKIN_TONES]
    looks = [word for extreme in traits.EXTREMES for word in extreme[2:]]
    groups: dict[str, list[str]] = {
        "subjects": list(SUBJECTS),
        "scenes": list_phrases(words.PLACES, SHIPPED.scenes),
        "actions": list_phrases(words.DOING, SHIPPED.actions),
        "actions of two": list_phrases(words.TOGETHER, tuple(words.TOGETHER)),
        "attributes": list_phrases(words.PHRASES, SHIPPED.attributes),
        "styles": list_phrases(words.MEDIA, SHIPPED.styles),
        "light": [words.LIGHT_WORDS[light] for light in SHIPPED.lights if light],
        "clothes": clothes,
        "colours of clothes": list(dict.fromkeys(colours)),
        "framing": [
            "a close-up photo of",
            *list_phrases(words.CAMERAS, SHIPPED.cameras),
            *(t.replace(" {}", "") for t in FACE_TEMPLATES),
        ],
        "hair": [*(f"{style} hair" for style in traits.HAIR_STYLES), *(f"{c} hair" for c in traits.HAIR_COLOURS)],
        "eyes": [f"{colour} eyes" for colour in traits.EYE_COLOURS],
        "skin": [f"{tone} skin" for tone in tones],
        "looks": [*looks, "freckles", "glasses", "a mole"],
        "coats of animals": [*traits.COATS, *traits.MARKINGS, "floppy ears", "pointed ears"],
        "eyes of animals": [f"{colour} eyes" for colour in traits.PET_EYES],
    }
    grouped = set(split_words(phrase for phrases in groups.values() for phrase in phrases))
    names = set(list_name_words())
    groups = {name: phrases for name, phrases in groups.items() if phrases}
    return groups | {"other words": [w for w in list_caption_words() if w not in grouped | names]}


def list_name_words() -> list[str]:
    """Return the words that names consist of, and what stands for them while training."""
    return [*NAME_PARTS, *(word for one in list_characters() for word in (one.first, one.last))]


def write_words(path: Path) -> None:
    """Write the groups as JSON, as they lie in the package."""
    write_text(path, dump_json(group_words(), indent=1) + "\n")


if __name__ == "__main__":
    main()
