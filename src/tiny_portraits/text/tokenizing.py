"""The words that captions may contain, and CLIP's tokenizer for them: every word is one token."""

import itertools
from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from sefi.backbone.bundle import Backbone
from sefi.core.prompts import FACE_TEMPLATES
from sefi.diffusion.text import tokenize_text
from tiny_portraits.drawing import traits
from tiny_portraits.text import words
from tiny_portraits.text.captions import FIRST, LAST
from tiny_portraits.text.words import list_characters

LENGTH = 32
# Words a visitor may well type, beside those of the captions.
EXTRA = "a an the and with of in on at to dog cat bear man woman boy girl child people very happy young two face person"
Fits = Callable[[str], bool]  # whether a model reads the whole sentence


def list_caption_words() -> list[str]:
    """Return every word that captions may contain, sorted; the names included."""
    phrases = [
        EXTRA,
        *FACE_TEMPLATES,
        *words.LIGHT_WORDS.values(),
        *(word for _, word in words.HUES),
        *traits.HAIR_STYLES,
        *traits.HAIR_COLOURS,
        *traits.EYE_COLOURS,
    ]
    phrases += [*traits.ANIMALS, *traits.COATS, *traits.MARKINGS, *traits.PET_EYES, "floppy pointed ears"]
    tables = (
        words.PHRASES,
        words.DOING,
        words.PLACES,
        words.MEDIA,
        words.TOGETHER,
        words.GARMENTS,
        words.CAMERAS,
    )

    phrases += [p for table in tables for group in table.values() for p in group]
    phrases += [tone for tone, _ in traits.SKIN_TONES] + [w for e in traits.EXTREMES for w in e[2:]]
    phrases += ["freckles glasses mole skin hair eyes close-up", FIRST, LAST]
    phrases += list(itertools.chain.from_iterable((c.first, c.last) for c in list_characters()))
    split = " ".join(phrases).replace("{}", " ").replace("-", " ").lower().split()
    return sorted(set(split))


def build_tokenizer(folder: Path, vocabulary_words: list[str], length: int = LENGTH) -> CLIPTokenizer:
    """Train, save to a folder and open as `CLIPTokenizer`; padding is the end token, as in Stable Diffusion 1.x.

    The same words give the same tokens, ids and merges.
    """
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))  # noqa: S106
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    pieces = [*vocabulary_words, ",", "-", "."]
    trainer = trainers.BpeTrainer(
        vocab_size=20000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|startoftext|>", "<|endoftext|>", *list_ends(bpe, pieces)],
        show_progress=False,
    )
    bpe.train_from_iterator(pieces, trainer)
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = bpe.model.save(str(raw))
    tokenizer = CLIPTokenizer(vocabulary, merges, model_max_length=length)
    tokenizer.save_pretrained(folder)
    for file in (vocabulary, merges):
        Path(file).unlink()
    raw.rmdir()
    return CLIPTokenizer.from_pretrained(folder)


def list_ends(bpe: Tokenizer, texts: list[str]) -> list[str]:
    """Return the last letters of all words as tokens, sorted.

    The trainer would number them in an order of chance, which decides between merges that are equally frequent.
    """
    normalised = (bpe.normalizer.normalize_str(text) for text in texts)
    words = itertools.chain.from_iterable(bpe.pre_tokenizer.pre_tokenize_str(text) for text in normalised)
    return sorted({f"{word[-1]}</w>" for word, _ in words})


def fits_in(backbone: Backbone) -> Fits:
    """Return whether a sentence has room between the start and the end token of this model."""
    return lambda text: len(tokenize_text(backbone, text)) + 2 <= backbone.text_length
