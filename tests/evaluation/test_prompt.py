"""Agreement with the prompt: hand-computed values, properties, torch's own cosine, and torchmetrics."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torchmetrics.functional import cosine_similarity
from torchmetrics.functional.multimodal import clip_score
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from sefi.core.errors import BackboneError
from sefi.evaluation.encoders import ClipEncoder
from sefi.evaluation.metrics import measure_mean_prompt_score, measure_prompt_scores

PROMPTS = ["a photo of person", "person holding a cup at the beach", "a drawing of a dog in the snow"]


class PooledClip(torch.nn.Module):
    """A CLIP as torchmetrics expects it, whose features are tensors; `sign` turns its texts around."""

    def __init__(self, model, sign):
        super().__init__()
        self.model, self.config, self.sign = model, model.config, sign

    def get_image_features(self, pixels):
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, ids, mask):
        return self.sign * self.model.get_text_features(ids, mask).pooler_output


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory, tokenizer):
    torch.manual_seed(11)
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 12, "intermediate_size": 17, "num_attention_heads": 3, "num_hidden_layers": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    length = tokenizer.model_max_length
    text = CLIPTextConfig(**sizes, **ends, vocab_size=len(tokenizer), max_position_embeddings=length)
    vision = CLIPVisionConfig(**sizes, image_size=21, patch_size=7)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=19)).eval()
    torch.nn.init.normal_(model.text_model.embeddings.token_embedding.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square = {"height": 21, "width": 21}
    CLIPImageProcessorPil(size={"shortest_edge": 21}, crop_size=square).save_pretrained(folder)
    return folder


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_agreement_by_hand():
    images = np.array([[3.0, 4.0, 0.0], [0.0, 2.0, 0.0], [1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    texts = np.array([[4.0, 3.0, 0.0], [0.0, -5.0, 0.0], [2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert measure_prompt_scores(images, texts) == pytest.approx([24 / 25, -1, 1 / 3, 0])
    assert measure_mean_prompt_score(images, texts) == pytest.approx((24 / 25 - 1 + 1 / 3) / 4)


@given(st.integers(0, 1000), st.floats(0.1, 50))
def test_agreement_is_torchs_cosine_and_does_not_mind_length(seed, scale):
    images, texts = np.random.default_rng(seed).standard_normal((2, 3, 5))
    wanted = torch.cosine_similarity(torch.from_numpy(images), torch.from_numpy(texts)).numpy()
    assert measure_prompt_scores(scale * images, texts) == pytest.approx(wanted)


@given(st.integers(0, 1000))
def test_agreement_is_torchmetrics_cosine(seed):
    images, texts = np.random.default_rng(seed).standard_normal((2, 3, 5))
    pair = torch.from_numpy(images), torch.from_numpy(texts)  # which torchmetrics turns to single precision
    each, mean = (cosine_similarity(*pair, reduction=how).numpy() for how in ("none", "mean"))
    assert measure_prompt_scores(images, texts) == pytest.approx(each, abs=1e-6)
    assert measure_mean_prompt_score(images, texts) == pytest.approx(float(mean), abs=1e-6)


def test_agreement_is_a_hundredth_of_torchmetrics_clip_score(tiny_clip):
    encoder = ClipEncoder(tiny_clip)
    pictures = [noise(21, 21), noise(29, 23, 1), noise(31, 53, 2)]
    agreement = measure_prompt_scores(encoder.encode_images(pictures), encoder.encode_texts(PROMPTS))
    image_processor = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    processor = CLIPProcessor(image_processor, CLIPTokenizer.from_pretrained(tiny_clip))
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    # torchmetrics cuts what is negative off; with the texts turned around the rest is seen.
    for sign in (1, -1):
        made = partial(tuple, (PooledClip(model, sign), processor))
        for picture, prompt, found in zip(pictures, PROMPTS, agreement, strict=True):
            score = float(clip_score(torch.from_numpy(picture).permute(2, 0, 1), prompt, made).detach())
            assert score == pytest.approx(max(100 * sign * float(found), 0), abs=1e-3)
    assert len({round(float(a), 5) for a in agreement}) == 3
    assert (np.abs(agreement) > 1e-3).all()


def test_every_image_needs_one_prompt():
    with pytest.raises(ValueError, match="one prompt"):
        measure_prompt_scores(np.ones((3, 5)), np.ones((2, 5)))


def test_a_missing_clip_is_named(tmp_path):
    with pytest.raises(BackboneError, match="nothing"):
        ClipEncoder(tmp_path / "nothing")
