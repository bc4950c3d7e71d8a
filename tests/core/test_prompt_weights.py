"""Weights of prompts are parsed as they are written: nested, escaped, never at the cost of a word."""

import math

import pytest
from hypothesis import given, strategies as st

from sefi.core.prompts import (
    LARGEST_WEIGHT,
    WeightedText,
    check_template,
    describe_equal_prompts,
    find_placeholders,
    parse_weights,
    strip_weights,
)

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="()\\:"), min_size=1, max_size=9).filter(str.strip)
WEIGHTS = st.integers(0, 17).map(lambda tenths: tenths / 10)


def nest(inner):
    parts = st.lists(inner, min_size=1, max_size=3)
    return st.tuples(parts, WEIGHTS) | parts


TREES = st.recursive(WORDS, nest, max_leaves=7)


def write(tree):
    """Return the tree as a prompt."""
    if isinstance(tree, str):
        return tree
    if isinstance(tree, tuple):
        return f"({''.join(map(write, tree[0]))}:{tree[1]})"
    return "".join(map(write, tree))


def list_words(tree, weight=1.0):
    """Return the characters of the tree with their weights, found without parsing."""
    if isinstance(tree, str):
        return [(letter, weight) for letter in tree]
    inner, factor = tree if isinstance(tree, tuple) else (tree, 1.0)
    return [one for part in inner for one in list_words(part, weight * factor)]


@given(TREES)
def test_nested_weights_are_multiplied_and_no_word_is_lost(tree):
    expected = list_words(tree)
    if any(weight > LARGEST_WEIGHT for _, weight in expected):
        return
    parts = parse_weights(write(tree))
    found = [(letter, part.weight) for part in parts for letter in part.text]
    assert [letter for letter, _ in found] == [letter for letter, _ in expected]
    for (_, weight), (_, wanted) in zip(found, expected, strict=True):
        assert math.isclose(weight, wanted, abs_tol=1e-12)
    assert strip_weights(write(tree)) == "".join(letter for letter, _ in expected)


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_escaped_text_comes_back_as_it_was(text):
    escaped = text.replace("(", r"\(").replace(")", r"\)")
    assert parse_weights(escaped) == ([WeightedText(text)] if text else [])


@given(st.text(st.characters(codec="utf-8", exclude_characters="()"), max_size=20))
def test_text_without_parentheses_is_one_part(text):
    assert parse_weights(text) == ([WeightedText(text)] if text else [])


def test_neighbours_of_one_weight_are_one_text():
    assert parse_weights("a (photo:1.0) of (<ada>:1) (now:2.0)( and:2)") == [
        WeightedText("a photo of <ada> "),
        WeightedText("now and", 2.0),
    ]


def test_names_are_found_inside_weights():
    assert find_placeholders("(<ada>:1.2) and ((<bob>:1.1) smiling:0.9)") == ["ada", "bob"]


def test_prompts_that_differ_in_a_weight_are_not_the_same():
    assert describe_equal_prompts(["a dog", "a (dog:1.2)"], []) == []
    assert describe_equal_prompts(["a (xyz:1.2) dog", "a dog"], ["xyz"])


@pytest.mark.parametrize("sentence", ["a (photo:1.2) of <ada>", r"a photo \(sharp\) of <ada>"])
def test_sentences_to_learn_with_have_none(sentence):
    with pytest.raises(Exception, match="no weights and no parentheses"):
        check_template(sentence)
