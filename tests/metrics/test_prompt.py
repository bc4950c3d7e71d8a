"""Agreement with the prompt: hand-computed values, properties, and torch's own cosine."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from sefi.core.errors import BackboneError
from sefi.metrics.encoders import ClipEncoder
from sefi.metrics.prompt import mean_prompt_agreement, prompt_agreement


def test_agreement_by_hand():
    images = np.array([[3.0, 4.0, 0.0], [0.0, 2.0, 0.0], [1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    texts = np.array([[4.0, 3.0, 0.0], [0.0, -5.0, 0.0], [2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert prompt_agreement(images, texts) == pytest.approx([24 / 25, -1, 1 / 3, 0])
    assert mean_prompt_agreement(images, texts) == pytest.approx((24 / 25 - 1 + 1 / 3) / 4)


@given(st.integers(0, 1000), st.floats(0.1, 50))
def test_agreement_is_torchs_cosine_and_does_not_mind_length(seed, scale):
    images, texts = np.random.default_rng(seed).standard_normal((2, 3, 5))
    wanted = torch.cosine_similarity(torch.from_numpy(images), torch.from_numpy(texts)).numpy()
    assert prompt_agreement(scale * images, texts) == pytest.approx(wanted)


def test_every_picture_needs_one_prompt():
    with pytest.raises(ValueError, match="one prompt"):
        prompt_agreement(np.ones((3, 5)), np.ones((2, 5)))


def test_a_missing_clip_is_named(tmp_path):
    with pytest.raises(BackboneError, match="nothing"):
        ClipEncoder(tmp_path / "nothing")
