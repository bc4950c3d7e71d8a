"""The tokenizer of the embedded model: CLIP's kind, trained so that every word of the world is one token."""

import itertools
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from sefi.core.templates import FACE_TEMPLATES
from sefi.world import animal, captions, fifth_words, names, person
from sefi.world.versions import FOURTH, WorldVersion

LENGTH = 32
# Words a visitor may well type, beside those of the captions.
EXTRA = "a an the and with of in on at to dog cat bear man woman boy girl child people very happy young two face person"


def words(version: WorldVersion = FOURTH) -> list[str]:
    """Every word that captions may contain, sorted; the names included."""
    phrases = [
        EXTRA,
        *FACE_TEMPLATES,
        *captions.LIGHT_WORDS.values(),
        *person.HAIR_STYLES,
        *person.HAIR_COLOURS,
        *person.EYE_COLOURS,
    ]
    phrases += [*animal.ANIMALS, *animal.COATS, *animal.MARKINGS, *animal.PET_EYES, "floppy pointed ears"]
    tables = (captions.PHRASES, captions.DOING, captions.PLACES, captions.MEDIA, captions.TOGETHER)
    phrases += [p for table in tables for group in table.values() for p in group]
    phrases += [tone for tone, _ in person.SKIN_TONES] + [w for e in person.EXTREMES for w in e[2:]]
    phrases += ["freckles glasses mole skin hair eyes close-up", captions.FIRST, captions.LAST]
    phrases += list(itertools.chain.from_iterable((c.first, c.last) for c in names.characters()))
    phrases += new_phrases() if version.garments else []
    split = " ".join(phrases).replace("{}", " ").replace("-", " ").lower().split()
    return sorted(set(split))


def new_phrases() -> list[str]:
    """Return the phrases that the fifth version adds."""
    tables = (fifth_words.NEW_PHRASES, fifth_words.NEW_DOING, fifth_words.NEW_PLACES, fifth_words.NEW_MEDIA)
    tables += (fifth_words.GARMENTS, fifth_words.CAMERAS)
    found = [phrase for table in tables for group in table.values() for phrase in group]
    return [*found, *fifth_words.NEW_LIGHT_WORDS.values(), *(word for _, word in fifth_words.HUES)]


def build_tokenizer(folder: Path, vocabulary_words: list[str], length: int = LENGTH) -> CLIPTokenizer:
    """Train, save to a folder and open as `CLIPTokenizer`; padding is the end token, as in Stable Diffusion 1.x."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))  # noqa: S106
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=20000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        show_progress=False,
    )
    bpe.train_from_iterator([*vocabulary_words, ",", "-", "."], trainer)
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = bpe.model.save(str(raw))
    made = CLIPTokenizer(vocabulary, merges, model_max_length=length)
    made.save_pretrained(folder)
    for file in (vocabulary, merges):
        Path(file).unlink()
    raw.rmdir()
    return CLIPTokenizer.from_pretrained(folder)
