"""Class words, and which of them mean a person."""

from sefi.core.errors import ConfigError

# Words for people that are one token of CLIP; such subjects are cut out by their faces.
PEOPLE = (
    "person", "human", "man", "woman", "boy", "girl", "child", "kid", "baby", "toddler", "infant", "teen", "teenager",
    "adult", "lady", "gentleman", "guy", "male", "female", "people", "men", "women", "children", "mother", "father",
    "mom", "dad", "brother", "sister", "daughter", "grandmother", "grandfather", "grandma", "grandpa", "bride", "groom",
    "wife", "husband", "son", "uncle", "aunt", "friend", "student", "king", "queen", "prince", "princess",
    "actor", "actress", "celebrity", "face",
)  # fmt: skip
EXAMPLES = (*PEOPLE[:8], "dog", "cat", "bear")


def normalise_class_word(word: str) -> str:
    """Return a class word in small letters with single spaces; `ValueError` if nothing is left.

    >>> normalise_class_word(" Person ")
    'person'
    """
    normal = " ".join(word.split()).lower()
    if not normal:
        raise ValueError("the class word is empty")
    return normal


def is_person(class_word: str) -> bool:
    """Return whether a class word means a person, however it is spelt."""
    return " ".join(class_word.split()).lower() in PEOPLE


def needs_face(class_word: str, *, crop: bool) -> bool:
    """Return whether the subject is cut out by its face: people are, unless the whole photo is wanted."""
    return crop and is_person(class_word)


def check_face_options(class_word: str, *, crop: bool, face: int | None, detector: object | None) -> None:
    """Refuse the choice of a face or of a detector where no face is looked for.

    Raises:
        ConfigError: the subject is no person, or the whole photo is taken.
    """
    given = {"--face": face, "--detector": detector}
    unused = [option for option, value in given.items() if value is not None]
    if not unused or needs_face(class_word, crop=crop):
        return
    listed, have = " and ".join(unused), "has" if len(unused) == 1 else "have"
    if is_person(class_word):
        reason, other = "--no-crop takes the whole photo", "leave out --no-crop"
    else:
        reason, other = f"{class_word!r} is not known as a word for a person", "use the class word person"
    raise ConfigError(f"{listed} {have} no effect: {reason}.", f"Leave out {listed}, or {other}.")
