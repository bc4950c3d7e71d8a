"""FastComposer's training: true masks and words, a loss that says what it should, and a run that can be killed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_portraits.training.progresses import Killed, Losses
from tests.tiny_portraits.training.test_loop import BREAK, STEPS

import sefi
from sefi.api import find_evaluators
from sefi.backbone.weights import select_part_tensors
from sefi.core.errors import ConfigError, SefiError
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.diffusion.attention import AttentionRecorder
from sefi.diffusion.composer import (
    Composer,
    ComposerConditioner,
    Fuse,
    fuse_images,
    load_clip_vision,
    load_composer,
    read_composer,
)
from sefi.diffusion.text import parse_prompt
from tiny_portraits.drawing.image import SIDE, UNITS, locate_heads
from tiny_portraits.drawing.sampling import PEOPLE_ONLY, Shares, sample_content
from tiny_portraits.text.tokenizing import fits_in
from tiny_portraits.training.composer import (
    SERIES,
    ComposerRecipe,
    Sentences,
    build_composer,
    caption_people,
    compute_localisation_loss,
    make_people_masks,
    train_composer,
)
from tiny_portraits.training.loop import Checkpointing

RECIPE = ComposerRecipe(images=5, steps=STEPS, batch=2)


@pytest.fixture(scope="module")
def embedded():
    return sefi.open_backbone()


def pictures(count, shares=PEOPLE_ONLY):
    return [sample_content(np.random.default_rng([SERIES, 9, n]), None, shares) for n in range(count)]


def test_masks_hold_the_people_and_nobody_else():
    for picture in pictures(4) + pictures(4, Shares(pair=1.0, pet=0.0, companion=0.0)):
        masks = make_people_masks(picture, SIDE)
        for number, (x, y, scale, _) in enumerate(locate_heads(picture)):
            row, column = round(y * SIDE / UNITS), round(x * SIDE / UNITS)
            reach = max(1, round(0.2 * scale * SIDE / UNITS))
            face = masks[number, row - reach : row + reach, column - reach : column + reach]
            assert face.mean() > 0.8
            assert masks[1 - number, row - reach : row + reach, column - reach : column + reach].mean() < 0.2
        assert masks[len(picture.subjects) :].sum() == 0


def test_a_caption_gives_everybody_a_word():
    for n, picture in enumerate(pictures(5, Shares(pair=0.5, pet=0.0, companion=0.0))):
        text, count = caption_people(picture, np.random.default_rng(n), lambda text: True)
        assert count == len(picture.subjects)
        assert [f"<{k}>" in text for k in range(count)] == [True] * count
        assert "firstname" not in text
        assert "lastname" not in text


@pytest.mark.slow
def test_a_caption_that_is_too_long_is_said_again(embedded):
    fits, asked = fits_in(embedded), []

    def remembered(text):
        asked.append(text)
        return fits(text) and len(asked) > 3

    text, _ = caption_people(pictures(1, Shares())[0], np.random.default_rng(0), remembered)
    assert len(asked) > 3
    assert "<" not in "".join(asked)
    parse_prompt(embedded, text, {"0": "person", "1": "person"})


def test_the_localisation_loss_by_a_loop(embedded):
    parsed = parse_prompt(embedded, "a photo of <0> and <1>", {"0": "person", "1": "person"})
    maps = torch.rand(2, 3, embedded.text_length, 6, 6, generator=create_generator(1, "maps"))
    masks = (torch.rand(2, 2, 6, 6, generator=create_generator(2, "masks")) > 0.5).float()
    spoken = Sentences([parsed, parsed], [{"0": torch.ones(1), "1": torch.ones(1)}, {}])
    found = compute_localisation_loss(AttentionRecorder(maps={"a": maps}), spoken, masks)
    wanted = []
    for name in ("0", "1"):
        word, mask = maps[0, :, parsed.places[name][0]].numpy(), masks[0, int(name)].numpy()
        wanted += [head[mask == 0].mean() - head[mask == 1].mean() for head in word]
    assert float(found) == pytest.approx(np.mean(wanted), abs=1e-6)
    assert compute_localisation_loss(AttentionRecorder(maps={"a": maps}), Sentences([parsed] * 2, [{}, {}]), masks) == 0


def test_the_published_fusion_has_its_weights():
    with torch.device("meta"):
        assert sum(p.numel() for p in Fuse(768, 768).parameters()) == 2_958_336


def test_only_pictured_words_change(embedded):
    fuse = Fuse(embedded.token_width, 5)
    names = {"ada": "person", "bob": "person"}
    parsed = parse_prompt(embedded, "a photo of <ada> and <bob>", names)
    states = embedded.encode_text(parsed.ids[None]).states.detach()
    found = fuse_images(states, [parsed], [{"bob": torch.ones(5)}], fuse)
    place = parsed.places["bob"][0]
    torch.testing.assert_close(found[0, place], fuse(states[0, [place]], torch.ones(1, 5))[0])
    others = [k for k in range(embedded.text_length) if k != place]
    assert torch.equal(found[0, others], states[0, others])


def test_the_fusion_serves_a_model_of_another_precision(embedded):
    fuse = Fuse(embedded.token_width, 5)
    parsed = parse_prompt(embedded, "a photo of <ada>", {"ada": "person"})
    states = embedded.encode_text(parsed.ids[None]).states.detach()
    found, half = (fuse_images(s, [parsed], [{"ada": torch.ones(5)}], fuse) for s in (states, states.bfloat16()))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), found, atol=0.1, rtol=0.1)


def test_the_image_is_fused_in_the_last_steps(embedded):
    conditioner = ComposerConditioner(
        embedded, Fuse(embedded.token_width, 5), {"ada": torch.ones(5)}, {"ada": "person"}, 0.7
    )
    assert [conditioner.get_context_key(t) for t in (999, 700, 699, 0)] == [0, 0, 1, 1]
    early, late = (conditioner.encode_prompts(["a photo of <ada>"], t).states for t in (999, 0))
    with torch.no_grad():
        plain = embedded.encode_text(parse_prompt(embedded, "a photo of person", {}).ids[None]).states
    torch.testing.assert_close(early[0, :, : embedded.token_width], plain[0])
    assert not torch.equal(early, late)
    assert torch.equal(conditioner.encode_negative(1).states, conditioner.encode_prompts([""], 0).states)


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(embedded, tmp_path):
    def train(progress, name, **options):
        file = tmp_path / f"{name}.safetensors"
        train_composer(
            embedded,
            build_composer(embedded.token_width, 3),
            RECIPE,
            3,
            progress,
            file,
            Checkpointing(tmp_path / f"{name}.training.safetensors", **options),
        )
        return read_composer(file, embedded)

    class Steps(Losses):
        """Does not count the drawing, which has no loss."""

        def advance(self, **numbers):
            if numbers:
                super().advance(**numbers)

    straight, before, after = Steps(), Steps(BREAK), Steps()
    wanted = train(straight, "straight")
    with pytest.raises(Killed):
        train(before, "killed", every=0.0)
    found = train(after, "killed", resume=True)
    assert before.seen + after.seen == straight.seen
    assert [k for k in wanted if not torch.equal(wanted[k], found[k])] == []
    composer = Composer(load_clip_vision(find_evaluators(embedded) / "clip"), embedded.token_width)
    assert select_part_tensors(wanted, "composer").keys() == composer.list_trained().keys()
    opened = load_composer(find_evaluators(embedded), embedded.token_width, select_part_tensors(wanted, "composer"))
    assert torch.equal(opened.fuse.norm.weight, wanted["composer.fuse.norm.weight"])


def nudged(module):
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for weight in changed.mid_block.parameters():
            weight.add_(0.1)
    return changed


def test_it_goes_on_from_the_clip_that_is_named(embedded, tmp_path):
    with pytest.raises(SefiError, match=str(tmp_path / "clip")):
        build_composer(embedded.token_width, 3, clip=tmp_path / "clip")


@pytest.mark.slow
def test_it_goes_on_from_finished_weights(embedded, tmp_path):
    file, width = tmp_path / "composer.safetensors", embedded.token_width
    train_composer(embedded, build_composer(width, 3), replace(RECIPE, images=2, steps=1), 3, SilentProgress(), file)
    finished, started = load_file(file), build_composer(width, 4, start=file).list_trained()
    assert started.keys() == {n.removeprefix("composer.") for n in finished if n.startswith("composer.")}
    for name, weight in started.items():
        torch.testing.assert_close(weight.half(), finished[f"composer.{name}"])


@pytest.mark.slow
def test_weights_of_another_model_are_refused(embedded, tmp_path):
    file = tmp_path / "composer.safetensors"
    with pytest.raises(ConfigError, match="no weights"):
        read_composer(file, embedded)
    file.write_bytes(b"no safetensors")
    with pytest.raises(ConfigError, match="damaged"):
        read_composer(file, embedded)
    composer = build_composer(embedded.token_width, 3)
    train_composer(embedded, composer, replace(RECIPE, images=2, steps=1), 3, SilentProgress(), file)
    with pytest.raises(ConfigError, match="was trained for"):
        read_composer(file, replace(embedded, fingerprint="sd1:768:aa", signature=None, unet=nudged(embedded.unet)))
