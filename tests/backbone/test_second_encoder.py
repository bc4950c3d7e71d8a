"""A family with two text encoders, pooled text and size conditions: a tiny SDXL of random weights."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import POOLED, PROMPT_WORDS, WIDTH, WIDTH_2

import sefi
from sefi.backbone.bundle import Backbone, compute_fingerprint
from sefi.backbone.open import check_calls
from sefi.backbone.weights import copy_with_weights
from sefi.core.config import override, select_settings
from sefi.core.errors import ConfigError, IdentityError, PromptError
from sefi.core.rng import create_generator
from sefi.diffusion.conditioning import IdentityConditioner, compare_model
from sefi.diffusion.text import find_unknown_words, get_class_token_ids, parse_prompt, tokenize_text
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS
from sefi.identity.file import MARK, Identity
from sefi.methods import METHODS, PRESETS
from sefi.methods.base import create_header
from sefi.testing import PORTRAIT, list_differences, record_state
from tiny_portraits.text.tokenizing import build_tokenizer

FEW = ("learn.steps=2", "learn.batch=2", "views.latent_pool=2", "tune.prior_images=1", "generate.steps=5")
PROMPT = "a photo of <ada> at the beach"
METHODS_WITHOUT_EVALUATORS = (
    "sefi", "textual-inversion", "dreambooth", "dreambooth-lora", "custom-diffusion", "prospect",
)  # fmt: skip


def make_identity(backbone: Backbone, seed: int = 1) -> Identity:
    """Tokens away from the class word, others in every stage."""
    row = backbone.get_token_row(get_class_token_ids(backbone, "person"))
    noise = torch.randn(5, 2, backbone.token_width, generator=create_generator(seed, "moved"))
    return Identity({"tokens": row + 0.5 * noise}, create_header("ada", backbone, PRESETS["default"], 0))


def test_every_tokenizer_numbers_the_words_and_pads(sdxl: Backbone) -> None:
    first, second = sdxl.tokenizers
    parsed = parse_prompt(sdxl, PROMPT, {"ada": "person"})
    assert parsed.ids.shape == (2, sdxl.text_length)
    assert parsed.ids[0, 4] == first.convert_tokens_to_ids("person</w>")
    assert parsed.ids[1, 4] == second.convert_tokens_to_ids("person</w>") != parsed.ids[0, 4]
    assert parsed.ids[0, parsed.length - 1] == first.eos_token_id
    assert set(parsed.ids[0, parsed.length :].tolist()) == {first.eos_token_id}
    assert set(parsed.ids[1, parsed.length :].tolist()) == {second.pad_token_id}
    assert parsed.ids[1, parsed.length - 1] == second.eos_token_id != second.pad_token_id
    assert parsed.words == ("(start)", "a", "photo", "of", "<ada>", "at", "the", "beach", "(end)")
    assert find_unknown_words(sdxl, ["a photo"]) == []


def test_a_token_is_the_rows_of_all_tables_side_by_side(sdxl: Backbone) -> None:
    token = get_class_token_ids(sdxl, "dog")
    row = sdxl.get_token_row(token)
    assert sdxl.token_width == len(row) == WIDTH + WIDTH_2
    assert torch.equal(row[:WIDTH], sdxl.text_encoder.get_input_embeddings().weight[token[0]])
    assert torch.equal(row[WIDTH:], sdxl.text_encoder_2.get_input_embeddings().weight[token[1]])


@pytest.mark.parametrize("half", ["first", "second"])
def test_each_half_of_a_token_reaches_its_encoder_and_nothing_else(sdxl: Backbone, half: str) -> None:
    parsed = parse_prompt(sdxl, PROMPT, {"ada": "person"})
    mask = torch.zeros(1, sdxl.text_length, dtype=torch.bool)
    mask[0, 4] = True
    changed = slice(None, WIDTH) if half == "first" else slice(WIDTH, None)
    row = sdxl.get_token_row(get_class_token_ids(sdxl, "person"))
    rows = row.repeat(1, sdxl.text_length, 1)
    before, plain = sdxl.encode_text(parsed.ids[None], rows, mask), sdxl.encode_text(parsed.ids[None])
    torch.testing.assert_close(before.states, plain.states)
    rows[..., changed] += torch.randn(rows[..., changed].shape, generator=create_generator(3, "row"))
    after = sdxl.encode_text(parsed.ids[None], rows, mask)
    moved = (after.states - plain.states).abs().amax((0, 1)) > 1e-6
    assert moved[changed].all()
    assert moved.sum() == moved[changed].numel()
    assert torch.equal(after.pooled, before.pooled) == (half == "first")
    assert after.pooled.shape == (1, POOLED)
    side = sdxl.resolution
    assert after.extra["time_ids"].tolist() == [[side, side, 0, 0, side, side]]


def test_pooled_text_and_sizes_reach_the_prediction(sdxl: Backbone) -> None:
    check_calls(sdxl)
    encoding = sdxl.encode_text(parse_prompt(sdxl, "a photo of dog", {}).ids[None])
    noisy = torch.randn(1, sdxl.latent_channels, sdxl.latent_size, sdxl.latent_size, generator=create_generator(0, "n"))
    found = sdxl.predict(noisy, torch.tensor([300]), encoding)
    other_pooled = replace(encoding, pooled=encoding.pooled + 1)
    other_sizes = replace(encoding, extra={"time_ids": encoding.extra["time_ids"] * 2})
    for other in (other_pooled, other_sizes):
        assert (sdxl.predict(noisy, torch.tensor([300]), other) - found).abs().max() > 1e-4


def test_the_pooled_text_changes_with_the_stage_while_an_image_is_made(sdxl: Backbone) -> None:
    seen: list[torch.Tensor] = []
    hook = sdxl.unet.add_embedding.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    config = override(PRESETS["default"], ["generate.steps=10"])
    sefi.generate(PROMPT, [make_identity(sdxl)], backbone=sdxl, config=config)
    hook.remove()
    pooled = torch.stack(seen)[:, :, :POOLED]
    assert pooled.shape[:2] == (10, 2)  # negative and positive text
    assert len(torch.unique(pooled[:, 0], dim=0)) == 1
    assert len(torch.unique(pooled[:, 1], dim=0)) == 5


def test_the_pooled_text_is_the_key_texts(sdxl: Backbone) -> None:
    made = make_identity(sdxl)
    values = made.tensors["tokens"].clone()
    values[:, 1] += 1
    one, other = (
        IdentityConditioner(sdxl, [Identity({"tokens": tokens}, made.header)]).encode_prompts([PROMPT], 500)
        for tokens in (made.tokens, values)
    )
    assert torch.equal(one.pooled, other.pooled)
    key, value = (part.chunk(2, dim=-1) for part in (one.states, other.states))
    assert torch.equal(key[0], value[0])
    assert not torch.equal(key[1], value[1])


def test_fingerprint_and_signature_cover_the_second_encoder(sdxl: Backbone) -> None:
    assert sdxl.fingerprint.startswith(f"sdxl:{WIDTH + WIDTH_2}:")
    assert set(sdxl.signature.samples) == {"text_encoder", "text_encoder_2", "unet", "vae"}
    weights = {name: weight + 1 for name, weight in sdxl.text_encoder_2.named_parameters(prefix="text_encoder_2")}
    other = replace(copy_with_weights(sdxl, weights), signature=None)
    assert compute_fingerprint(other) != sdxl.fingerprint
    assert "in the second text encoder." in compare_model(other, make_identity(sdxl))


def test_an_identity_of_one_encoder_is_refused(sdxl: Backbone, backbone: Backbone) -> None:
    with pytest.raises(IdentityError, match=f"width {WIDTH}, this model reads {WIDTH + WIDTH_2}"):
        IdentityConditioner(sdxl, [make_identity(backbone)])


def test_the_family_says_how_many_encoders_there_are(sdxl: Backbone, backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="family tiny with 2 text encoders"):
        replace(sdxl, family="tiny")
    with pytest.raises(ValueError, match="family sdxl with 1 text encoders"):
        replace(backbone, family="sdxl")


def test_tokenizers_that_divide_a_text_differently_are_refused(sdxl: Backbone, tmp_path: Path) -> None:
    model = replace(sdxl, tokenizer_2=build_tokenizer(tmp_path, ["dog"], sdxl.text_length))
    with pytest.raises(PromptError, match="divide 'person' into different tokens"):
        tokenize_text(model, "person")


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", METHODS_WITHOUT_EVALUATORS)
def test_it_learns_travels_and_generates(sdxl: Backbone, photo_file: Path, tmp_path: Path, method: str) -> None:
    preset = PRESETS["default" if method == "sefi" else method]
    config = override(preset, select_settings(type(preset), FEW))
    before = record_state(sdxl)
    made = sefi.learn(photo_file, name="ada", backbone=sdxl, config=config, crop=False)
    made.save(tmp_path / "ada.safetensors")
    loaded = Identity.load(tmp_path / "ada.safetensors")
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in made.tensors.items())
    one, other, plain = (
        sefi.generate(prompt, identities, backbone=sdxl, config=config, seed=3)[0].pixels.tobytes()
        for prompt, identities in ((PROMPT, [made]), (PROMPT, [loaded]), ("a photo of person at the beach", []))
    )
    assert one == other != plain
    assert list_differences(before, record_state(sdxl)) == []


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["celeb-basis", "cross-init"])
def test_methods_of_known_names_learn(sdxl: Backbone, tmp_path: Path, method: str) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"{one} {other}" for one, other in permutations(PROMPT_WORDS[:7], 2)))
    preset = PRESETS[method]
    few = [*FEW, f"basis.names={names}", "basis.components=5"]
    config = override(preset, select_settings(type(preset), few))
    options = {"backbone": sdxl, "config": config, "evaluators": EMBEDDED_EVALUATORS}
    made = sefi.learn(PORTRAIT, name="ada", any_style=True, **options)
    made.save(tmp_path / "ada.safetensors")
    loaded = Identity.load(tmp_path / "ada.safetensors")
    assert loaded.tokens.shape == (1, 2, 3, WIDTH + WIDTH_2)
    assert torch.equal(loaded.tokens, made.tokens)
    sefi.generate(PROMPT, [loaded], backbone=sdxl, config=config)


def test_fastcomposer_is_refused_before_anything_is_learned(sdxl: Backbone) -> None:
    with pytest.raises(ConfigError, match="use another method"):
        METHODS["fastcomposer"].check(sdxl, PRESETS["fastcomposer"], EMBEDDED_EVALUATORS)


@pytest.mark.slow
def test_dreambooth_trains_both_text_encoders(sdxl: Backbone, photo_file: Path, tmp_path: Path) -> None:
    config = override(PRESETS["dreambooth"], FEW)
    made = sefi.learn(photo_file, name="ada", backbone=sdxl, config=config, crop=False)
    made.save(tmp_path / "ada.safetensors")
    learned = load_file(tmp_path / "ada.safetensors")
    for part, network in (("text_encoder", sdxl.text_encoder), ("text_encoder_2", sdxl.text_encoder_2)):
        before = dict(network.named_parameters(prefix=part))
        assert before.keys() <= learned.keys()
        assert any(not torch.equal(learned[name], weight) for name, weight in before.items())
    assert METHODS["dreambooth"].count_weights(sdxl, config).trained == sum(
        tensor.numel() for name, tensor in learned.items() if name != MARK
    )
    unet_only = override(config, ["tune.parts=unet"])
    assert METHODS["dreambooth"].count_weights(sdxl, unet_only).trained == sum(
        weight.numel() for weight in sdxl.unet.parameters()
    )
