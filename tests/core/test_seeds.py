"""Seeds fit into the files that keep them, from the command line and from Python alike."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sefi.api import generate, generate_each, learn
from sefi.core.errors import ConfigError
from sefi.core.rng import LARGEST_SEED, require_seed

WRONG = (-1, LARGEST_SEED + 1, 2**63, 10**30, 0.5, 3.0, "7", None)


@given(st.integers(0, LARGEST_SEED))
def test_a_seed_stays_what_it_is(seed):
    assert require_seed(seed) == seed


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), True + 6])
def test_whole_numbers_of_other_types_become_plain(seed):
    assert require_seed(seed) == 7
    assert type(require_seed(seed)) is int


@pytest.mark.parametrize("seed", WRONG)
def test_anything_else_is_refused(seed):
    with pytest.raises(ConfigError, match="is no seed"):
        require_seed(seed)


@pytest.mark.parametrize("seed", WRONG)
@pytest.mark.parametrize(
    "call",
    [
        lambda seed, **more: learn("/nowhere.png", name="ada", seed=seed, **more),
        lambda seed, **more: generate("a photo", seed=seed, **more),
        lambda seed, **more: next(iter(generate_each("a photo", seed=seed, **more))),
    ],
    ids=["learn", "generate", "generate_each"],
)
def test_the_library_refuses_it_before_the_work(call, seed):
    with pytest.raises(ConfigError, match="is no seed"):
        call(seed, backbone=None)
