"""What is particular to one method, against plain arithmetic."""

import numpy as np
import pytest
import torch

from sefi.backbone.bundle import Backbone, copy_part
from sefi.core.config import dump_config, override
from sefi.core.errors import ConfigError, IdentityError
from sefi.core.rng import create_generator
from sefi.diffusion.attention import copy_with_key_value_attention
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.identity.file import Identity
from sefi.methods import PRESETS
from sefi.methods.base import create_header
from sefi.methods.celeb_basis import BasisTokens, Mapper, compute_principal_components, count_dimensions
from sefi.methods.custom_diffusion import (
    RIDGE,
    encode_common_sentences,
    encode_subject,
    mark_cells_inside,
    merge_weights,
)
from sefi.methods.dreambooth_lora import copy_with_matrices, draw_first, is_adapted
from sefi.photo.augment import ResizedView, draw_resized_view
from sefi.training.finetuning import average_error


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=create_generator(seed, "test"))


# ---------------------------------------------------------------- Celeb Basis


def test_the_basis_is_the_principal_components_of_numpy() -> None:
    rows = random(31, 11)
    found = compute_principal_components(rows, 5)
    centred = (rows - rows.mean(0)).numpy().astype(np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    wanted = vectors[:, np.argsort(values)[::-1][:5]].T
    assert found[0].numpy() == pytest.approx(rows.mean(0).numpy(), abs=1e-6)
    # A component has no sign of its own.
    agreement = np.abs((found[1:].numpy() * wanted).sum(1))
    assert agreement == pytest.approx(np.ones(5), abs=1e-4)
    assert all(row[row.abs().argmax()] > 0 for row in found[1:])
    torch.testing.assert_close(found[1:] @ found[1:].T, torch.eye(5))


def test_names_span_one_component_less_than_there_are_different_ones() -> None:
    rows = random(5, 11)
    assert count_dimensions(torch.cat([rows, rows])) == 4
    assert torch.linalg.matrix_rank(rows - rows.mean(0)) == 4
    assert count_dimensions(random(31, 11)) == 11
    assert count_dimensions(rows[:1].expand(3, -1)) == 0


def test_the_mapper_is_a_scaled_layer_to_unit_coefficients() -> None:
    mapper, face = Mapper(13, 5, create_generator(1, "mapper")), random(13)
    raw = np.array([float(w @ face) / 13**0.5 for w in mapper.weight.detach()])
    raw = np.where(raw > 0, raw, 0.2 * raw).reshape(2, 5)
    wanted = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert mapper(face).detach().numpy() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("decay", [0.99, 0.9801])
def test_the_running_mean_is_used_at_unit_length(decay: float) -> None:
    tokens = BasisTokens(random(7), random(2, 4, 7, seed=1), random(2, 13, seed=2), 3, decay)
    seen = []
    for _ in range(3):
        tokens.train()
        with torch.no_grad():
            seen.append(tokens.compute_coefficients().clone())
        tokens.after_step()
    weights = np.array([decay**2, decay, 1.0])
    wanted = sum(w * s for w, s in zip(weights, seen, strict=True))
    wanted = wanted / wanted.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(tokens.eval().compute_coefficients(), wanted, atol=1e-5, rtol=1e-5)
    made = tokens()
    assert made.shape == (1, 2, 3, 7)
    by_hand = tokens.basis[1, 0] + sum(c * row for c, row in zip(wanted[1], tokens.basis[1, 1:], strict=True))
    torch.testing.assert_close(made[0, 0, 1], by_hand, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made[0, 1, 2], tokens.class_token)


def test_the_published_mean_decays_once_for_each_sample_of_a_step() -> None:
    """Of the published code, which makes an update for every sample; the embedded preset was tuned with one a step."""
    published, embedded = PRESETS["celeb-basis-official"], PRESETS["celeb-basis"]
    assert published.basis.average_decay == pytest.approx(0.99**published.learn.batch, abs=1e-12)
    assert embedded.basis.average_decay == 0.99
    # So the settings of earlier versions are those that are saved now.
    assert dump_config(embedded)["basis"] == {"names": None, "components": 64}
    for wrong in ("0", "1"):
        with pytest.raises(ConfigError, match=r"basis\.average_decay"):
            override(published, [f"basis.average_decay={wrong}"])


# ---------------------------------------------------------------- Custom Diffusion


def test_the_published_limit_of_the_gradient_is_the_official_presets_alone() -> None:
    """`--max_grad_norm` of diffusers_training.py; the embedded preset was tuned without."""
    assert PRESETS["custom-diffusion-official"].learn.gradient_clip == 1.0
    assert PRESETS["custom-diffusion"].learn.gradient_clip is None


def test_no_gradient_flows_through_the_start_word(backbone: Backbone) -> None:
    context = random(1, backbone.text_length, 2 * backbone.token_width).requires_grad_()
    latents = random(1, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    for detach in (False, True):
        context.grad = None
        unet = copy_with_key_value_attention(backbone.unet, detach_start=detach)
        unet(latents, torch.tensor(500), context).sample.pow(2).sum().backward()
        assert (context.grad[0, 0].abs().max() == 0) == detach
        assert context.grad[0, 1:].abs().max() > 0


@pytest.mark.parametrize("seed", range(30))
def test_views_are_small_whole_or_enlarged(seed: int) -> None:
    square = random(3, 24, 24).clamp(-1, 1)
    view = draw_resized_view(square, 0.0, create_generator(seed, "view"))
    assert view.pixels.shape == square.shape
    assert view.pixels.abs().max() <= 1
    assert (view.box is not None) == (view.distance == "far")
    if view.distance == "plain":
        assert torch.equal(view.pixels, square)
    if view.box is not None:
        left, top, right, bottom = (round(edge * 24) for edge in view.box)
        outside = torch.ones(24, 24, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert (view.pixels[:, outside] == 0).all()
        assert 24 / 3 - 1 <= right - left <= 0.6 * 24 + 1


def test_all_kinds_of_view_come_up() -> None:
    seen = [draw_resized_view(random(3, 24, 24), 0.5, create_generator(seed, "view")).distance for seed in range(60)]
    assert {"plain", "far", "near"} == set(seen)


def test_only_cells_within_the_pasted_image_count() -> None:
    assert mark_cells_inside(ResizedView(random(3, 24, 24), "near"), 12).sum() == 144
    inside = mark_cells_inside(ResizedView(random(3, 24, 24), "far", (0.25, 0.5, 0.75, 1.0)), 12)[0]
    assert inside.nonzero().min(0).values.tolist() == [7, 4]
    assert inside.nonzero().max(0).values.tolist() == [10, 7]
    tiny = mark_cells_inside(ResizedView(random(3, 24, 24), "far", (0.5, 0.5, 0.55, 0.55)), 12)
    assert tiny.sum() == 1


def test_a_mask_counts_cells_and_no_channels() -> None:
    error, mask = random(3, 5, 7, 7).square(), (random(3, 1, 7, 7, seed=1) > 0.3).float()
    sums = [sum(float(error[n, :, y, x].sum()) for _, y, x in mask[n].nonzero().tolist()) for n in range(3)]
    wanted = np.mean([total / float(mask[n].sum()) for n, total in enumerate(sums)])
    assert float(average_error(error, mask)) == pytest.approx(wanted, rel=1e-5)
    assert float(average_error(error, torch.ones(3, 1, 7, 7))) == pytest.approx(5 * float(error.mean()), rel=1e-5)
    assert average_error(error, None) == error.mean()
    assert average_error(error, torch.zeros(3, 1, 7, 7)) == 0


def test_merged_weights_serve_both_subjects_and_change_the_rest_least(backbone: Backbone) -> None:
    config = override(PRESETS["custom-diffusion"], ["learn.class_word=person"])
    there = dict(backbone.unet.named_parameters())
    name = next(n for n in there if n.endswith("attn2.to_k.weight"))
    sets = [{name: there[name].data + 0.1 * random(*there[name].shape, seed=n)} for n in (1, 2)]
    tokens = [random(1, 2, 2, backbone.token_width, seed=n) for n in (3, 4)]
    both = [
        Identity({"tokens": t}, create_header(who, backbone, config, 0))
        for t, who in zip(tokens, ("ada", "bob"), strict=True)
    ]
    conditioner = IdentityConditioner(backbone, both)
    found = merge_weights(backbone, both, sets, conditioner)[name].double()
    own = [encode_subject(backbone, one, conditioner) for one in both]
    for one, states in zip(sets, own, strict=True):
        torch.testing.assert_close(found @ states.T, one[name].double() @ states.T, atol=1e-4, rtol=1e-4)
    # Any other solution moves what the common sentences give more.
    common, before = encode_common_sentences(backbone), there[name].data.double()
    basis = torch.linalg.qr(torch.cat(own).T).Q
    free = torch.eye(backbone.token_width, dtype=torch.double) - basis @ basis.T
    least = ((found - before) @ common.T).norm()
    for seed in range(5):
        other = found + 0.01 * random(*found.shape, seed=seed).double() @ free
        assert ((other - before) @ common.T).norm() > least


def prepare_merge(backbone: Backbone, *seeds: tuple[int, int]) -> tuple:
    """Return what `merge_weights` takes of subjects whose weights and tokens have these seeds."""
    config = override(PRESETS["custom-diffusion"], ["learn.class_word=person"])
    there = dict(backbone.unet.named_parameters())
    name = next(n for n in there if n.endswith("attn2.to_v.weight"))
    sets = [{name: there[name].data + 0.1 * random(*there[name].shape, seed=n)} for n, _ in seeds]
    people = [
        Identity(
            {"tokens": random(1, 2, 2, backbone.token_width, seed=n)}, create_header(f"ada-{k}", backbone, config, 0)
        )
        for k, (_, n) in enumerate(seeds)
    ]
    return backbone, people, sets, IdentityConditioner(backbone, people, separate_names=False)


def test_a_subject_that_was_learned_twice_merges_to_its_own_weights(backbone: Backbone) -> None:
    once, twice = (prepare_merge(backbone, *[(1, 3)] * times) for times in (1, 2))
    (alone,), (found,) = (merge_weights(*one).values() for one in (once, twice))
    torch.testing.assert_close(found, alone)
    (states,) = (encode_subject(backbone, one, once[3]) for one in once[1])
    wanted = next(iter(once[2][0].values())).double() @ states.T
    torch.testing.assert_close(found.double() @ states.T, wanted, atol=1e-4, rtol=1e-4)


def test_equal_words_of_subjects_with_other_weights_get_their_mean(backbone: Backbone) -> None:
    _, people, sets, conditioner = prepare_merge(backbone, (1, 3), (2, 3))
    (found,) = merge_weights(backbone, people, sets, conditioner).values()
    states = encode_subject(backbone, people[0], conditioner)
    mean = sum(next(iter(one.values())).double() for one in sets) / 2 @ states.T
    torch.testing.assert_close(found.double() @ states.T, mean, atol=1e-4, rtol=1e-4)


def test_words_that_differ_merge_as_the_inverse_says(backbone: Backbone) -> None:
    _, people, sets, conditioner = prepare_merge(backbone, (1, 3), (2, 4), (5, 6))
    ((name, found),) = merge_weights(backbone, people, sets, conditioner).items()
    before = dict(backbone.unet.named_parameters())[name].data.double()
    own = [encode_subject(backbone, one, conditioner) for one in people]
    states, common = torch.cat(own).T, encode_common_sentences(backbone)
    gram = common.T @ common
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.double)
    solved = torch.linalg.solve(gram, states)
    wanted = torch.cat([one[name].double() @ some.T for one, some in zip(sets, own, strict=True)], dim=1)
    by_inverse = before + (wanted - before @ states) @ torch.linalg.solve(states.T @ solved, solved.T)
    torch.testing.assert_close(found, by_inverse.float(), atol=1e-6, rtol=1e-6)


def test_weights_of_different_parts_do_not_merge(backbone: Backbone) -> None:
    key, query = {"attn2.to_k.weight": random(3, 3)}, {"attn2.to_q.weight": random(3, 3)}
    for sets in ([key, key | query], [key | query, key]):
        with pytest.raises(IdentityError, match="different parts"):
            merge_weights(backbone, [], sets, IdentityConditioner(backbone, []))


# ---------------------------------------------------------------- DreamBooth, LoRA


def test_matrices_start_at_nothing_and_change_the_copy_alone(backbone: Backbone) -> None:
    before, printed, had = dict(backbone.unet.named_modules()), str(backbone.unet), set(vars(backbone.unet))
    latents = random(1, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    context = random(1, backbone.text_length, backbone.token_width)

    @torch.no_grad()
    def answer(unet: torch.nn.Module) -> torch.Tensor:
        return unet(latents, torch.tensor(500), context).sample

    plain = answer(backbone.unet)
    model, matrices = copy_with_matrices(backbone, 3)
    draw_first(matrices, 3, create_generator(0, "lora"))
    assert len(matrices) == 2 * sum(map(is_adapted, before))
    assert all(matrix.requires_grad for matrix in matrices.values())
    torch.testing.assert_close(answer(model.unet), plain)
    for matrix in matrices.values():
        matrix.data += 0.3
    assert (answer(model.unet) - plain).abs().max() > 1e-4
    assert str(backbone.unet) == printed
    assert set(vars(backbone.unet)) == had
    after = dict(backbone.unet.named_modules())
    assert after.keys() == before.keys()
    assert all(after[name] is module for name, module in before.items())
    assert torch.equal(answer(backbone.unet), plain)


def test_the_first_matrices_are_those_of_peft_from_the_seed(backbone: Backbone) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    _, matrices = copy_with_matrices(backbone, 3)
    draw_first(matrices, 3, create_generator(7, "lora"))
    theirs = copy_part(backbone.unet)
    layers = [name for name, _ in theirs.named_modules() if is_adapted(name)]
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(create_generator(7, "lora").get_state())
        chosen = LoraConfig(r=3, lora_alpha=3, target_modules=layers, init_lora_weights="gaussian")
        inject_adapter_in_model(chosen, theirs, adapter_name="peft")
    wanted = {n.replace(".peft.weight", ""): w for n, w in theirs.named_parameters() if ".peft." in n}
    assert matrices.keys() == wanted.keys()
    assert all(torch.equal(matrix, wanted[name]) for name, matrix in matrices.items())


@pytest.mark.parametrize("method", ["dreambooth", "dreambooth-lora"])
def test_two_that_change_the_whole_model_are_refused(backbone: Backbone, method: str) -> None:
    from sefi.methods import METHODS

    config = PRESETS[method]
    both = [Identity({}, create_header(name, backbone, config, 0)) for name in ("ada", "bob")]
    with pytest.raises(IdentityError, match="share a prompt"):
        METHODS[method].apply(both, backbone)


# ---------------------------------------------------------------- every method of tokens


def test_a_sentence_has_as_many_words_as_the_table_has_tokens(backbone: Backbone) -> None:
    from sefi.photo.augment import PhotoViews
    from sefi.training.token_inversion import TokenTask

    config = override(PRESETS["celeb-basis"], ["views.latent_pool=1", "learn.templates=a photo of {}"])
    width, side = backbone.token_width, backbone.resolution
    tokens = BasisTokens(random(width), random(2, 4, width, seed=1), random(1, 5, seed=2), 3, 0.99)
    views = PhotoViews(random(3, side, side, seed=4).clamp(-1, 1), config.views)
    task = TokenTask(backbone, views, config, 0, tokens)
    assert task.texts.vector_index[0].tolist()[4:7] == [0, 1, 2]
    loss, _ = task.compute_loss(0)
    loss.backward()
    halves = tokens.mapper.weight.grad.unflatten(0, (2, -1)).abs().amax((1, 2))
    assert (halves > 0).all()
