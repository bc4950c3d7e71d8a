"""FastComposer's training: true masks and words, a loss that says what it should, and a run that can be killed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.world.test_lesson import BREAK, STEPS, Killed, Losses

import sefi
from sefi.attention.recorder import AttentionRecorder
from sefi.backbone.weights import part_of
from sefi.conditioning.composer import (
    Composer,
    ComposerConditioner,
    Fuse,
    fuse_images,
    load_clip_vision,
    load_composer,
    read_composer,
)
from sefi.conditioning.encode import encode_token_ids
from sefi.conditioning.prompt import parse_prompt
from sefi.core.errors import ConfigError
from sefi.core.protocols import SilentProgress
from sefi.core.streams import stream
from sefi.world.composer_training import (
    SERIES,
    ComposerRecipe,
    Sentences,
    localisation,
    people_masks,
    said,
    train_composer,
)
from sefi.world.drawing import SIDE, UNITS, heads
from sefi.world.grids import fits_in
from sefi.world.lesson import Keeping
from sefi.world.sampling import PEOPLE_ONLY, Shares, random_picture

RECIPE = ComposerRecipe(pictures=5, steps=STEPS, batch=2)


@pytest.fixture(scope="module")
def embedded():
    return sefi.open_backbone()


def pictures(count, shares=PEOPLE_ONLY):
    return [random_picture(np.random.default_rng([SERIES, 9, n]), None, shares) for n in range(count)]


def test_masks_hold_the_people_and_nobody_else():
    for picture in pictures(4) + pictures(4, Shares(pair=1.0, pet=0.0, companion=0.0)):
        masks = people_masks(picture, SIDE)
        for number, (x, y, scale, _) in enumerate(heads(picture)):
            row, column = round(y * SIDE / UNITS), round(x * SIDE / UNITS)
            reach = max(1, round(0.2 * scale * SIDE / UNITS))
            face = masks[number, row - reach : row + reach, column - reach : column + reach]
            assert face.mean() > 0.8
            assert masks[1 - number, row - reach : row + reach, column - reach : column + reach].mean() < 0.2
        assert masks[len(picture.subjects) :].sum() == 0


def test_a_caption_gives_everybody_a_word():
    for n, picture in enumerate(pictures(5, Shares(pair=0.5, pet=0.0, companion=0.0))):
        text, count = said(picture, np.random.default_rng(n), lambda text: True)
        assert count == len(picture.subjects)
        assert [f"<{k}>" in text for k in range(count)] == [True] * count
        assert "firstname" not in text
        assert "lastname" not in text


def test_a_caption_that_is_too_long_is_said_again(embedded):
    fits, asked = fits_in(embedded), []

    def remembered(text):
        asked.append(text)
        return fits(text) and len(asked) > 3

    text, _ = said(pictures(1, Shares())[0], np.random.default_rng(0), remembered)
    assert len(asked) > 3
    assert "<" not in "".join(asked)
    parse_prompt(embedded.tokenizer, text, {"0": "person", "1": "person"}, embedded.text_length)


def test_the_localisation_loss_by_a_loop(embedded):
    parsed = parse_prompt(
        embedded.tokenizer, "a photo of <0> and <1>", {"0": "person", "1": "person"}, embedded.text_length
    )
    maps = torch.rand(2, 3, embedded.text_length, 6, 6, generator=stream(1, "maps"))
    masks = (torch.rand(2, 2, 6, 6, generator=stream(2, "masks")) > 0.5).float()
    spoken = Sentences([parsed, parsed], [{"0": torch.ones(1), "1": torch.ones(1)}, {}])
    found = localisation(AttentionRecorder(maps={"a": maps}), spoken, masks)
    wanted = []
    for name in ("0", "1"):
        word, mask = maps[0, :, parsed.places[name][0]].numpy(), masks[0, int(name)].numpy()
        wanted += [head[mask == 0].mean() - head[mask == 1].mean() for head in word]
    assert float(found) == pytest.approx(np.mean(wanted), abs=1e-6)
    assert localisation(AttentionRecorder(maps={"a": maps}), Sentences([parsed] * 2, [{}, {}]), masks) == 0


def test_the_published_fusion_has_its_weights():
    with torch.device("meta"):
        assert sum(p.numel() for p in Fuse(768, 768).parameters()) == 2_958_336


def test_only_pictured_words_change(embedded):
    fuse = Fuse(embedded.width, 5)
    names = {"ada": "person", "bob": "person"}
    parsed = parse_prompt(embedded.tokenizer, "a photo of <ada> and <bob>", names, embedded.text_length)
    states = encode_token_ids(embedded, parsed.ids[None]).detach()
    found = fuse_images(states, [parsed], [{"bob": torch.ones(5)}], fuse)
    place = parsed.places["bob"][0]
    torch.testing.assert_close(found[0, place], fuse(states[0, [place]], torch.ones(1, 5))[0])
    others = [k for k in range(embedded.text_length) if k != place]
    assert torch.equal(found[0, others], states[0, others])


def test_the_fusion_serves_a_model_of_another_precision(embedded):
    fuse = Fuse(embedded.width, 5)
    parsed = parse_prompt(embedded.tokenizer, "a photo of <ada>", {"ada": "person"}, embedded.text_length)
    states = encode_token_ids(embedded, parsed.ids[None]).detach()
    found, half = (fuse_images(s, [parsed], [{"ada": torch.ones(5)}], fuse) for s in (states, states.bfloat16()))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), found, atol=0.1, rtol=0.1)


def test_the_picture_comes_in_late(embedded):
    conditioner = ComposerConditioner(embedded, Fuse(embedded.width, 5), {"ada": torch.ones(5)}, {"ada": "person"}, 0.7)
    assert [conditioner.stage(t) for t in (999, 700, 699, 0)] == [0, 0, 1, 1]
    early, late = (conditioner.context(["a photo of <ada>"], t) for t in (999, 0))
    with torch.no_grad():
        parsed = conditioner.backbone.tokenizer
        plain = encode_token_ids(
            embedded, parse_prompt(parsed, "a photo of person", {}, embedded.text_length).ids[None]
        )
    torch.testing.assert_close(early[0, :, : embedded.width], plain[0])
    assert not torch.equal(early, late)
    assert torch.equal(conditioner.null_context(1), conditioner.context([""], 0))


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(embedded, tmp_path):
    def train(progress, name, **keeping):
        file = tmp_path / f"{name}.safetensors"
        train_composer(embedded, RECIPE, 3, progress, file, Keeping(tmp_path / f"{name}.lesson.safetensors", **keeping))
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
    composer = Composer(load_clip_vision(embedded.judges / "clip"), embedded.width)
    assert part_of(wanted, "composer").keys() == composer.list_trained().keys()
    opened = load_composer(embedded.judges, embedded.width, part_of(wanted, "composer"))
    assert torch.equal(opened.fuse.norm.weight, wanted["composer.fuse.norm.weight"])


def nudged(module):
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for weight in changed.mid_block.parameters():
            weight.add_(0.1)
    return changed


def test_weights_of_another_model_are_refused(embedded, tmp_path):
    file = tmp_path / "composer.safetensors"
    with pytest.raises(ConfigError, match="no weights"):
        read_composer(file, embedded)
    file.write_bytes(b"no safetensors")
    with pytest.raises(ConfigError, match="damaged"):
        read_composer(file, embedded)
    train_composer(embedded, replace(RECIPE, pictures=2, steps=1), 3, SilentProgress(), file)
    with pytest.raises(ConfigError, match="was trained for"):
        read_composer(file, replace(embedded, fingerprint="sd1:768:aa", signature=None, unet=nudged(embedded.unet)))
