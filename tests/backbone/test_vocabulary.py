"""The tokenizer built from the shipped merges is CLIP's."""

import pytest

from sefi.backbone.tokenizer import create_clip_tokenizer


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # Published ids of OpenAI's tokenizer.
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("person", [2533]),
        ("a dog", [320, 1929]),
        ("A   PHOTO", [320, 1125]),
    ],
)
def test_ids_are_clips(text: str, ids: list[int]) -> None:
    assert create_clip_tokenizer()(text).input_ids == [49406, *ids, 49407]


def test_sizes() -> None:
    tokenizer = create_clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer.model_max_length == 77
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49406, 49407)


@pytest.mark.parametrize(("pad", "identifier"), [("<|endoftext|>", 49407), ("!", 0)])
def test_padding_differs_between_sd1_and_sd2(pad: str, identifier: int) -> None:
    ids = create_clip_tokenizer(pad)("a dog", padding="max_length").input_ids
    assert ids[4:] == [identifier] * 73


def test_any_unicode_is_encoded_and_decoded() -> None:
    tokenizer = create_clip_tokenizer()
    text = "naïve 日本 ~ 😀"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
