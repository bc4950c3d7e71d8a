"""The losses of the recipe against their formulas: hinge, share of gradients, context, words and mask of the photo."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings, strategies as st
from tests.training.test_recipe_options import Recorder, views
from tests.training.token_training import learn_tokens, make_task
from torch.nn import functional as F

import sefi
from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, LearnSettings, ViewSettings, override
from sefi.core.errors import ConfigError, FaceError
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.diffusion.attention import (
    AttentionRecorder,
    KeyValueProcessor,
    LossOptions,
    average_word_maps,
    compute_attention_weights,
    compute_map_difference,
    compute_map_excess,
)
from sefi.methods import PRESETS
from sefi.methods.base import get_class_row
from sefi.photo.augment import CropFace, PhotoViews, cut_head, draw_head_mask
from sefi.training import token_inversion
from sefi.training.token_inversion import (
    TrainingBatch,
    ViewLatents,
    compute_context_loss,
    compute_denoising_loss,
    compute_losses,
    draw_batch,
    encode_context_texts,
    encode_key_value_texts,
    encode_training_texts,
    split_samples,
    weight_losses,
)

FACE = CropFace((0.31, 0.23, 0.29, 0.37))
SHORT = ["learn.steps=3", "learn.batch=3", "views.latent_pool=5"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=create_generator(seed, "r"))


def views_with_face(backbone: Backbone, config: Config) -> PhotoViews:
    plain = views(backbone, config)
    return PhotoViews(plain.crop, config.views, (), (FACE,))


def moved_tokens(backbone: Backbone, config: Config, size: float = 0.3) -> torch.Tensor:
    row = get_class_row(backbone, config)
    return (row + size * random(5, 2, len(row), seed=3)).requires_grad_()


def draw(backbone: Backbone, config: Config, *, face: bool = True) -> TrainingBatch:
    source = ViewLatents(backbone, (views_with_face if face else views)(backbone, config), config.views, 1)
    return draw_batch(backbone, source, config.learn, 1, 0)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@given(seed=st.integers(0, 99), with_mask=st.booleans())
@settings(max_examples=8, deadline=None)
def test_the_hinge_equals_a_loop_over_heads_words_and_pixels(reduction: str, seed: int, with_mask: bool) -> None:
    maps, reference = (random(2, 3, 7, 4, 5, seed=seed + k).sigmoid() for k in (0, 1))
    words = random(2, 7, seed=seed + 2) > 0
    words[:, 0] = True
    outside = random(2, 1, 8, 10, seed=seed + 3).sigmoid() if with_mask else None
    options = LossOptions(words, (8, 10), reduction, detach_query=False, hinge=True, outside=outside)  # type: ignore[arg-type]
    got = compute_map_excess(maps, reference, options, (4, 5))
    for sample in range(2):
        total = 0.0
        for word in range(7):
            for y in range(4):
                for x in range(5):
                    cell = (
                        1.0
                        if outside is None
                        else float(outside[sample, 0, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean())
                    )
                    for head in range(3):
                        over = max(0.0, float(maps[sample, head, word, y, x] - reference[sample, head, word, y, x]))
                        total += (over * cell) ** 2 * bool(words[sample, word])
        wanted = total if reduction == "sum" else total / (int(words[sample].sum()) * 3 * 20)
        assert float(got[sample]) == pytest.approx(wanted, rel=1e-4)


def make_layer() -> Attention:
    """A cross-attention of 2 heads of 5 channels, which reads texts of 7 numbers; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        return Attention(query_dim=10, cross_attention_dim=7, heads=2, dim_head=5)


def read_texts(hidden: torch.Tensor, context: torch.Tensor, options: LossOptions, **kept: bool) -> AttentionRecorder:
    """Let the layer read key, value and reference text, and return what it records."""
    recorder = AttentionRecorder(loss_options=options, **kept)
    KeyValueProcessor("layer", recorder)(make_layer(), hidden, context)
    return recorder


def attend_by_hand(hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The layer's attention maps `[batch, head, word, 8, 6]`, one head at a time."""
    query, key = make_layer().to_q(hidden).split(5, dim=-1), make_layer().to_k(text).split(5, dim=-1)
    heads = [torch.einsum("bpc,bwc->bwp", q, k) / 5**0.5 for q, k in zip(query, key, strict=True)]
    return torch.stack([one.exp() / one.exp().sum(1, keepdim=True) for one in heads], dim=1).unflatten(-1, (8, 6))


@pytest.mark.parametrize("detach_query", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_layers_attention_loss_is_that_of_algorithm_1_at_half_the_latents_size(
    reduction: str, *, detach_query: bool
) -> None:
    hidden, context = random(2, 48, 10).requires_grad_(), random(2, 6, 21, seed=1).requires_grad_()
    words = torch.tensor([[False, True, True, False, True, False], [False, False, True, False, False, False]])
    options = LossOptions(words, (8, 6), reduction, detach_query=detach_query)  # type: ignore[arg-type]
    (loss,) = read_texts(hidden, context, options).losses
    change = attend_by_hand(hidden, context[..., :7]) - attend_by_hand(hidden, context[..., 14:])
    # Between four cells a bilinear value is their mean.
    squares = change.unflatten(-2, (4, 2)).unflatten(-1, (3, 2)).mean((-3, -1)).pow(2)
    chosen = [torch.stack([squares[n, :, word] for word in row.nonzero()[:, 0]]) for n, row in enumerate(words)]
    wanted = torch.stack([one.sum() if reduction == "sum" else one.mean() for one in chosen])
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-8)
    through_query, through_text = torch.autograd.grad(loss.sum(), (hidden, context), materialize_grads=True)
    assert (through_query.abs().max() > 0) == (not detach_query)
    assert through_text[..., :7].abs().max() > 0
    assert through_text[..., 7:].abs().max() == 0, "neither the value text nor the reference is pulled"


@pytest.mark.parametrize("keep_gradient", [False, True])
def test_maps_are_kept_with_their_gradient_where_that_is_asked_for(*, keep_gradient: bool) -> None:
    hidden, context = random(2, 48, 10).requires_grad_(), random(2, 6, 21, seed=1)
    options = LossOptions(torch.ones(2, 6, dtype=torch.bool), (8, 6), "sum", detach_query=False)
    found = read_texts(hidden, context, options, keep_maps=True, keep_gradient=keep_gradient)
    torch.testing.assert_close(found.maps["layer"], attend_by_hand(hidden, context[..., :7]))
    torch.testing.assert_close(found.reference_maps["layer"], attend_by_hand(hidden, context[..., 14:]))
    assert found.maps["layer"].requires_grad == keep_gradient
    assert not found.reference_maps["layer"].requires_grad


def test_the_hinge_counts_what_is_left_of_an_excess_after_resizing() -> None:
    reference = torch.full((1, 1, 1, 4, 4), 0.5)
    maps = reference.clone()
    maps[..., 0, 0] += 0.4  # more than half of it is taken back beside it
    maps[..., 1, 1] -= 0.3
    maps[..., 2, 2] += 0.2
    maps[..., 3, 3] -= 0.3
    options = LossOptions(torch.ones(1, 1, dtype=torch.bool), (4, 4), "sum", detach_query=False, hinge=True)
    assert float(compute_map_excess(maps, reference, options, (2, 2))) == pytest.approx(((0.4 - 0.3) / 4) ** 2)


def test_weights_of_half_precision_are_those_of_the_same_numbers_in_single_precision() -> None:
    query, key = (random(1, 2, 5, 7, seed=seed).bfloat16() for seed in (0, 1))
    found = compute_attention_weights(query, key, 0.3)
    assert torch.equal(found, compute_attention_weights(query.float(), key.float(), 0.3))


def test_word_maps_are_the_mean_of_all_layers_and_heads() -> None:
    recorder = AttentionRecorder(
        maps={name: random(1, 2, 3, 4, 6, seed=number) for number, name in enumerate("abc")},
        reference_maps={name: random(1, 2, 3, 4, 6, seed=9 + number) for number, name in enumerate("abc")},
    )
    for layers, found in (
        (recorder.maps, average_word_maps(recorder, (4, 6))),
        (recorder.reference_maps, average_word_maps(recorder, (4, 6), reference=True)),
    ):
        torch.testing.assert_close(found, sum(maps[:, head] for maps in layers.values() for head in (0, 1)) / 6)


def test_no_gradient_flows_into_the_reference() -> None:
    maps, reference = random(1, 2, 3, 4, 4).requires_grad_(), random(1, 2, 3, 4, 4, seed=1).requires_grad_()
    words = torch.ones(1, 3, dtype=torch.bool)
    options = LossOptions(words, (8, 8), "sum", detach_query=False, hinge=True)
    for loss in (
        compute_map_difference(maps, reference, words, (2, 2), "sum"),
        compute_map_excess(maps, reference, options, (2, 2)),
    ):
        into_maps, into_reference = torch.autograd.grad(loss.sum(), (maps, reference), materialize_grads=True)
        assert into_maps.abs().max() > 0
        assert into_reference.abs().max() == 0


def test_the_hinge_lets_a_word_look_at_the_face_and_less_than_the_class_word() -> None:
    reference = torch.full((1, 2, 3, 4, 4), 0.5)
    words = torch.tensor([[False, True, False]])
    inside = torch.ones(1, 1, 8, 8)
    inside[..., :4] = 0  # the left half is the face
    options = LossOptions(words, (8, 8), "sum", detach_query=False, hinge=True, outside=inside)
    more_in_face, less, more_outside, other_word = (reference.clone() for _ in range(4))
    more_in_face[:, :, 1, :, :2] += 0.3
    less[:, :, 1] -= 0.3
    more_outside[:, :, 1, 0, 3] += 0.3
    other_word[:, :, 2] += 0.3
    for maps in (more_in_face, less, other_word):
        assert float(compute_map_excess(maps, reference, options, (4, 4))) == 0
    assert float(compute_map_excess(more_outside, reference, options, (4, 4))) == pytest.approx(2 * 0.09)


def test_the_hinge_is_part_of_learning_and_only_for_the_subjects_words(backbone: Backbone) -> None:
    config = override(PRESETS["default"], [*SHORT, "learn.attention_loss=hinge"])
    texts = encode_training_texts(backbone, config.learn)
    assert torch.equal(texts.compared_words, texts.vector_index >= 0)
    tokens, batch = moved_tokens(backbone, config).detach(), draw(backbone, config)
    found = compute_losses(backbone, texts, tokens, batch, config.learn)
    everywhere = compute_losses(backbone, texts, tokens, draw(backbone, config, face=False), config.learn)
    assert 0 < float(found.attention) < float(everywhere.attention)
    plain = encode_training_texts(backbone, override(config, ["learn.attention_loss=difference"]).learn)
    full = compute_losses(backbone, plain, tokens, batch, override(config, ["learn.attention_loss=difference"]).learn)
    assert float(everywhere.attention) < float(full.attention)


@pytest.mark.parametrize("share", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["difference", "hinge"])
def test_the_gradient_on_the_keys_has_its_share(backbone: Backbone, share: float, kind: str) -> None:
    shared = [f"learn.attention_share={share}", "learn.attention_weight=0"]
    config = override(PRESETS["default"], [*SHORT, *shared, f"learn.attention_loss={kind}"])
    texts, batch = encode_training_texts(backbone, config.learn), draw(backbone, config)
    tokens = moved_tokens(backbone, config)
    found = compute_losses(backbone, texts, tokens, batch, config.learn)
    assert found.key_gradient_share == share
    (joint,) = torch.autograd.grad(found.total, tokens)
    # Independent: the denoising loss alone, in a pass of its own; what is left of the joint gradient is the other's.
    alone = override(config, ["learn.attention_share=none", "learn.attention_weight=1e-9"]).learn
    (pull,) = torch.autograd.grad(compute_losses(backbone, texts, tokens, batch, alone).denoise, tokens)
    hold = joint - pull
    assert float(hold[:, 0].norm() / pull[:, 0].norm()) == pytest.approx(share, rel=1e-2)
    weighted = float((found.total - found.denoise).detach())
    assert weighted > 0


def test_the_measured_share_is_that_of_lambda_and_changes_no_gradient(backbone: Backbone) -> None:
    config = override(PRESETS["default"], SHORT)
    texts, batch, tokens = (
        encode_training_texts(backbone, config.learn),
        draw(backbone, config, face=False),
        moved_tokens(backbone, config),
    )
    measured = compute_losses(backbone, texts, tokens, batch, config.learn, measure=True)
    parts = [torch.autograd.grad(loss, tokens, retain_graph=True)[0] for loss in (measured.denoise, measured.attention)]
    wanted = 0.003 * parts[1][:, 0].norm() / parts[0][:, 0].norm()
    assert measured.key_gradient_share == pytest.approx(float(wanted), rel=1e-4)
    plain = compute_losses(backbone, texts, tokens, batch, config.learn)
    assert plain.key_gradient_share is None
    gradients = [torch.autograd.grad(one.total, tokens)[0] for one in (measured, plain)]
    assert torch.equal(*gradients)


def test_a_hinge_that_nothing_exceeds_has_no_weight() -> None:
    tokens = random(5, 2, 7).requires_grad_()
    chosen = LearnSettings(attention_share=0.5)
    found = weight_losses(tokens.pow(2).sum(), (0 * tokens).sum(), tokens, chosen, measure=False)
    (gradient,) = torch.autograd.grad(found.total, tokens)
    torch.testing.assert_close(gradient, 2 * tokens.detach())
    assert found.key_gradient_share == 0


def test_a_share_of_no_gradient_is_a_number() -> None:
    tokens = random(5, 2, 7).requires_grad_()
    found = weight_losses((0 * tokens).sum(), (0 * tokens).sum(), tokens, LearnSettings(), measure=True)
    assert found.key_gradient_share == 0


def test_the_share_is_logged_at_the_first_and_the_last_step(backbone: Backbone) -> None:
    config, seen = override(PRESETS["default"], SHORT), Recorder()
    _, last = learn_tokens(backbone, views(backbone, config), config, 5, seen)
    assert ["key_gradient_share" in numbers for numbers in seen.steps] == [True, False, True]
    longer = override(config, ["learn.steps=120"])
    task = make_task(backbone, views(backbone, longer), longer, 5)
    assert [step for step in range(120) if task.is_measured(step)] == [0, 49, 99, 119]
    assert last["key_gradient_share"] > 0
    assert "ratio" not in last
    alone = override(config, ["learn.attention_weight=0"])
    _, last = learn_tokens(backbone, views(backbone, alone), alone, 5, SilentProgress())
    assert "key_gradient_share" not in last


def test_the_weight_outside_the_head_equals_a_loop() -> None:
    prediction, target = random(2, 4, 3, 5), random(2, 4, 3, 5, seed=1)
    outside = random(2, 1, 3, 5, seed=2).sigmoid()
    got, total = float(compute_denoising_loss(prediction, target, outside, 0.2)), 0.0
    for sample in range(2):
        cells = [[1 - float(o) + 0.2 * float(o) for o in row] for row in outside[sample, 0]]
        mean = sum(map(sum, cells)) / 15
        for y in range(3):
            for x in range(5):
                error = (prediction - target)[sample, :, y, x].pow(2).sum()
                total += cells[y][x] / mean * float(error)
    assert got == pytest.approx(total / (2 * 4 * 15), rel=1e-5)
    assert compute_denoising_loss(prediction, target, outside, 1.0) == F.mse_loss(prediction, target)
    assert compute_denoising_loss(prediction, target, None, 0.2) == F.mse_loss(prediction, target)
    assert compute_denoising_loss(prediction, target, torch.ones(2, 1, 3, 5), 0.0) == 0, (
        "no head, and nothing else counts"
    )


@given(st.integers(0, 99))
@settings(max_examples=20)
def test_the_mask_of_a_view_lies_where_the_view_has_the_head(seed: int) -> None:
    face, side = (0.3, 0.25, 0.25, 0.3), 61
    head = draw_head_mask(face, side)
    # A white head on black: wherever the view is white the mask has to be 1.
    crop = (2 * head - 1).expand(3, -1, -1)
    still = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    for canvas in ("black", "edge"):
        sizes = ViewSettings(min_scale=0.4, max_scale=1.0, canvas=canvas, **still)  # type: ignore[arg-type]
        view, mask = PhotoViews(crop, sizes, (), (CropFace(face),)).draw_view_and_mask(create_generator(seed, "v"))
        assert mask is not None
        torch.testing.assert_close(mask[0], (view[0] + 1) / 2, rtol=0, atol=1e-5)


def test_what_is_outside_the_head_is_the_rest_of_each_cell(backbone: Backbone) -> None:
    face, side, factor = (0.3, 0.25, 0.25, 0.3), backbone.resolution, backbone.latent_factor
    still = ViewSettings(latent_pool=0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    head = (2 * draw_head_mask(face, side) - 1).expand(3, -1, -1)
    source = ViewLatents(backbone, PhotoViews(head, still, (), (CropFace(face),)), still, 1)
    views, outside = source.draw_views(4, create_generator(1, "v"))
    white = (views[:, :1] + 1) / 2
    inside = white.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor)).mean((-3, -1))
    assert outside is not None
    torch.testing.assert_close(outside, 1 - inside, rtol=0, atol=1e-5)


def test_views_without_a_pool_are_drawn_anew_in_every_step(backbone: Backbone) -> None:
    config = override(PRESETS["default"], ["views.latent_pool=0"])
    first, again, second = (
        ViewLatents(backbone, views(backbone, config), config.views, 1)(2, step) for step in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_every_step_has_samples_of_its_own_and_they_are_the_same_again(backbone: Backbone) -> None:
    config = override(PRESETS["default"], [*SHORT, "learn.batch=8", "learn.stage_sampling=uniform"])
    source = ViewLatents(backbone, views(backbone, config), config.views, 1)
    first, again, second = (draw_batch(backbone, source, config.learn, 1, step) for step in (0, 0, 1))
    for name in ("latents", "noise", "timesteps", "template_index"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
        assert not torch.equal(getattr(first, name), getattr(second, name)), name


def test_the_mask_changes_no_random_number(backbone: Backbone) -> None:
    config = override(PRESETS["default"], SHORT)
    with_face, without = (draw(backbone, config, face=one) for one in (True, False))
    assert torch.equal(with_face.latents, without.latents)
    assert with_face.outside is not None
    assert without.outside is None
    assert with_face.outside.shape == (3, 1, *with_face.latents.shape[-2:])
    assert 0 < float(with_face.outside.mean()) < 1


def test_a_cut_head_is_always_in_the_same_place() -> None:
    side = 97
    for left, top, size in ((0.1, 0.2, 0.2), (0.4, 0.35, 0.3)):
        face = (left, top, size, size)
        small = cut_head((2 * draw_head_mask(face, side) - 1).expand(3, -1, -1), face)
        inside = (small[0] > 0).float()
        places = torch.arange(side, dtype=torch.float32) + 0.5
        # An ellipse of 1.5 of 2 boxes around the middle: its area is pi / 4 times 0.75 squared.
        assert float(inside.mean()) == pytest.approx(torch.pi / 4 * 0.75**2, abs=0.02)
        for weights in (inside.sum(0), inside.sum(1)):
            assert float((weights * places).sum() / weights.sum()) == pytest.approx(side / 2, abs=1.5)


def test_the_context_loss_equals_a_loop_and_is_0_at_the_class_word(backbone: Backbone) -> None:
    config = override(PRESETS["default"], SHORT)
    lines = ("a photo of {} at the beach", "{} and {} smiling")
    texts = encode_training_texts(backbone, config.learn.model_copy(update={"templates": lines}))
    tokens = moved_tokens(backbone, config)
    got = compute_context_loss(backbone, texts, tokens, create_generator(1, "c"))
    generator = create_generator(1, "c")
    template, stage = torch.randint(2, (2,), generator=generator), torch.randint(5, (2,), generator=generator)
    states = encode_key_value_texts(backbone, texts, template, tokens[stage]).states.detach()
    width, terms = states.shape[-1] // 3, []
    for sample in range(2):
        place = int((texts.vector_index[template[sample]] >= 0).nonzero().max())
        for word in range(place + 1, states.shape[1]):
            ours, plain = states[sample, word], states[sample, word, 2 * width :]
            parts = (ours[:width], ours[width : 2 * width])
            terms += [1 - float(part @ plain / part.norm() / plain.norm()) for part in parts]
    got = got.detach()
    assert float(got) == pytest.approx(sum(terms) / len(terms), rel=1e-3)
    assert float(got) > 1e-5
    plain = get_class_row(backbone, config).expand(5, 2, -1)
    assert float(compute_context_loss(backbone, texts, plain, create_generator(1, "c"))) < 1e-6


def test_options_compare_the_placeholder_the_sentence_or_all_words(backbone: Backbone) -> None:
    lines = ("a photo of {} and {}", "{} smiling")
    settings = LearnSettings(templates=lines, vectors=2)
    found = {
        option: encode_training_texts(backbone, settings.model_copy(update={"attention_option": option}))
        for option in (1, 2, 3)
    }
    first, second = found[1].vector_index.tolist()
    # After the start of the text.
    assert first == [-1, -1, -1, -1, 0, 1, -1, 0, 1] + [-1] * (backbone.text_length - 9)
    assert second == [-1, 0, 1] + [-1] * (backbone.text_length - 3)
    assert torch.equal(found[1].compared_words, found[1].vector_index >= 0)
    end = backbone.tokenizer.eos_token_id
    for ids, compared in zip(found[2].ids[:, 0], found[2].compared_words, strict=True):
        last = ids.tolist().index(end)
        assert compared.nonzero()[:, 0].tolist() == list(range(1, last + 1))
    assert found[3].compared_words.all()


def test_sentences_with_a_context_are_those_that_fit(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "a photo of {} " + "and a dog " * 9
    monkeypatch.setattr(token_inversion, "CONTEXT_TEMPLATES", ("{} smiling", long, "a photo of {} in snow"))
    settings = LearnSettings(photo_words="at the beach")
    found = encode_context_texts(backbone, settings)
    wanted = encode_training_texts(backbone, LearnSettings(templates=("{} smiling", "a photo of {} in snow")))
    assert torch.equal(found.ids, wanted.ids)
    monkeypatch.setattr(token_inversion, "CONTEXT_TEMPLATES", (long,))
    with pytest.raises(ConfigError, match="No sentence with a context fits"):
        encode_context_texts(backbone, settings)


@pytest.mark.parametrize("face", [False, True])
def test_parts_of_a_batch_are_all_of_its_samples_in_order(backbone: Backbone, *, face: bool) -> None:
    batch = draw(backbone, override(PRESETS["default"], SHORT), face=face)
    parts = [batch.select(samples) for samples in split_samples(3, 2)]
    for name, whole in vars(batch).items():
        some = [getattr(part, name) for part in parts]
        assert some == [None, None] if whole is None else torch.equal(torch.cat(some), whole)
    assert split_samples(2, 5) == [range(1), range(1, 2)], "no part is empty"


@pytest.mark.slow
def test_the_context_loss_keeps_the_other_words(backbone: Backbone) -> None:
    changes = []
    for weight in (0, 10):
        config = override(
            PRESETS["default"], [*SHORT, "learn.steps=20", "learn.learning_rate=0.02", f"learn.context_weight={weight}"]
        )
        task = make_task(backbone, views(backbone, config), config, 1)
        tokens, _ = learn_tokens(backbone, views(backbone, config), config, 1, SilentProgress())
        texts = task.context_texts or encode_training_texts(
            backbone, config.learn.model_copy(update={"templates": ("a photo of {} smiling",)})
        )
        with torch.no_grad():
            draws = [compute_context_loss(backbone, texts, tokens, create_generator(n, "c")) for n in range(8)]
        changes.append(float(torch.stack(draws).mean()))
    assert changes[1] < 0.7 * changes[0]


def test_what_else_the_photo_shows_ends_every_sentence(backbone: Backbone) -> None:
    config = override(PRESETS["default"], [*SHORT, "learn.photo_words= at the beach "])
    assert all(one.endswith("{} at the beach") for one in config.learn.list_sentences())
    said = [f"{template} at the beach" for template in config.learn.templates]
    typed = override(PRESETS["default"], [*SHORT, f"learn.templates={';'.join(said)}"])
    for first, second in zip(
        *(vars(encode_training_texts(backbone, c.learn)).values() for c in (config, typed)), strict=True
    ):
        if isinstance(first, torch.Tensor):
            assert torch.equal(first, second)
    for wrong in ("<ada>", "at {}", "a (beach:1.2)"):
        with pytest.raises(ConfigError, match="photo_words"):
            override(PRESETS["default"], [f"learn.photo_words={wrong}"])


@pytest.mark.parametrize("option", ["outside_weight=0.1", "start=encoder"])
def test_settings_that_need_a_face_say_so(backbone: Backbone, photo_file, option: str) -> None:
    config = override(PRESETS["default"], [*SHORT, f"learn.{option}"])
    with pytest.raises(ConfigError, match=r"no word for a person|by the face of a person"):
        sefi.learn(
            photo_file, name="rex", backbone=backbone, config=override(config, ["learn.class_word=dog"]), crop=False
        )
    # A model without a name encoder is told so before anybody looks for a face.
    missing = (FaceError, "No face was found") if "outside" in option else (ConfigError, "brings no name encoder")
    with pytest.raises(missing[0], match=missing[1]):
        sefi.learn(photo_file, name="ada", backbone=backbone, config=config, crop=False)
