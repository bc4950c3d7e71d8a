"""The embedded model's figures: what is asked, how ranks and shares are counted, what is refused."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from tiny_portraits.drawing.content import ACTIONS, ATTRIBUTES, SCENES, STYLES
from tiny_portraits.drawing.sampling import HELD_OUT
from tiny_portraits.drawing.traits import sample_person
from tiny_portraits.evaluation.check import check
from tiny_portraits.evaluation.figures import Figure
from tiny_portraits.evaluation.model_scores import (
    KINDS,
    TARGETS,
    choose_who,
    compute_share,
    list_trait_wishes,
    list_wishes,
    rank,
)
from tiny_portraits.text.words import list_characters


def test_every_word_of_the_world_is_wished_for_once():
    alone = [w.wanted[0] for w in list_wishes() if len(w.wanted) == 1]
    assert sorted(label for _, label in alone) == sorted((*ATTRIBUTES, *ACTIONS, *SCENES, *STYLES))
    assert {w.group for w in list_wishes()} == {"attribute", "action", "scene", "style", "held out", "seen pair"}
    assert set(TARGETS) == {w.group for w in list_wishes() if len(w.wanted) == 1} | {"described trait"}


def test_combinations_are_those_that_training_never_saw():
    combined = [frozenset(label for _, label in w.wanted) for w in list_wishes() if w.group == "held out"]
    assert sorted(map(sorted, combined)) == sorted(map(sorted, HELD_OUT))
    assert all(w.prompt.count("{}") == 1 for w in list_wishes())


def test_seen_combinations_are_of_the_same_words_and_not_held_out():
    seen = [tuple(label for _, label in w.wanted) for w in list_wishes() if w.group == "seen pair"]
    assert len(seen) == len(set(seen)) == len(HELD_OUT)
    held = {frozenset(pair) for pair in HELD_OUT}
    assert not held & set(map(frozenset, seen))
    assert {label for pair in seen for label in pair} <= {label for pair in HELD_OUT for label in pair}
    kind = {label: k for k, table in KINDS.items() for label in table}
    assert all(kind[first] != kind[second] for first, second in seen)


def test_every_trait_that_words_can_say_is_described_once():
    asked = [w.wanted[0] for w in list_trait_wishes()]
    assert len(asked) == len(set(asked))
    sayable = {word for n in range(400) for word in sample_person(np.random.default_rng(n)).get_traits().values()}
    said = {w.prompt.removeprefix("a photo of a person with ") for w in list_trait_wishes()}
    assert said == sayable


def test_the_plain_word_and_names_take_turns():
    assert choose_who(0) == "a person"
    assert choose_who(3) in {c.first for c in list_characters()}


@given(st.integers(0, 6), st.integers(0, 1000))
def test_a_rank_is_the_place_in_the_sorted_list(number, seed):
    random = np.random.default_rng(seed)
    gallery, face = random.standard_normal((7, 5)), random.standard_normal(5)
    assert list(np.argsort(-(gallery @ face))).index(number) == rank(gallery, face, number)


def test_no_face_is_the_last_rank():
    assert rank(np.eye(3), None, 1) == 3
    assert compute_share([0, 3, 1, 9], 2) == 0.5


def test_a_figure_without_target_is_neither_met_nor_missed():
    assert Figure("x", 0.95, 0.95, 7).make_record() == {"name": "x", "value": 0.95, "target": 0.95, "met": True, "n": 7}
    assert Figure("x", 0.94, 0.95, 7).met is False
    assert Figure("x", 0.94, None, 7).met is None


def test_an_unknown_part_is_refused_before_anything_is_opened():
    with pytest.raises(ConfigError, match="'beauty'"):
        check("nowhere", parts=("beauty",), progress=SilentProgress())
