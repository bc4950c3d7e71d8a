"""The properties of the method that need no trained weights, on a model with one text encoder and on one with two."""

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from tests.conftest import make_backbone
from transformers import CLIPTokenizer

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, GenerateSettings, LearnSettings, override
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.diffusion.attention import AttentionRecorder, average_word_maps, copy_with_key_value_attention, resize_maps
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import build_pipeline, draw_initial_noise, sample_images
from sefi.diffusion.text import get_class_token_ids, parse_prompt
from sefi.identity.file import Identity, IdentityHeader
from sefi.identity.tokens import ExpansionModule, IdentityTokens, get_stage
from sefi.methods import PRESETS
from sefi.training.token_inversion import TrainingBatch, compute_losses, encode_key_value_texts, encode_training_texts

STAGES = 5


@pytest.fixture(scope="module", params=["one text encoder", "sdxl"])
def backbone(request: pytest.FixtureRequest, tokenizer: CLIPTokenizer, sdxl: Backbone) -> Backbone:
    return sdxl if request.param == "sdxl" else make_backbone(tokenizer)


def identity(backbone: Backbone, tokens: torch.Tensor, name: str = "ada") -> Identity:
    header = IdentityHeader(
        name=name,
        method="sefi",
        stages=len(tokens),
        base_model=backbone.fingerprint,
        width=backbone.token_width,
        class_word="person",
    )
    return Identity({"tokens": tokens}, header)


def class_tokens(backbone: Backbone, stages: int = STAGES) -> torch.Tensor:
    row = backbone.get_token_row(get_class_token_ids(backbone, "person"))
    return row.expand(stages, 2, -1).clone()


def moved(backbone: Backbone, seed: int = 9, stages: int = STAGES) -> torch.Tensor:
    """Tokens away from the class word; a constant shift would be invisible behind the text encoder's normalisation."""
    return class_tokens(backbone, stages) + torch.randn(
        stages, 2, backbone.token_width, generator=create_generator(seed, "moved")
    )


def some_sample(backbone: Backbone, batch: int = 3) -> TrainingBatch:
    random = create_generator(1, "test")
    shape = (batch, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    return TrainingBatch(
        torch.randn(shape, generator=random),
        torch.randn(shape, generator=random),
        torch.tensor([3, 420, 990])[:batch],
        torch.tensor([0, 3, 6])[:batch],
    )


@pytest.mark.parametrize(("stages", "weights"), [(5, 31_477_248), (1, 12_596_736), (10, 55_077_888)])
def test_the_module_has_the_papers_weights(stages: int, weights: int) -> None:
    with torch.device("meta"):
        module = ExpansionModule(768, stages)
    assert sum(p.numel() for p in module.parameters()) == weights
    assert module.last.out_features == 2 * stages * 768


def test_query_and_key_weights_of_the_module_are_dead() -> None:
    module = ExpansionModule(7, 3, heads=2, head_width=5, dropout=0.0)
    module.draw_first(create_generator(1, "x"))
    module(torch.randn(7, generator=create_generator(0, "x"))).pow(2).sum().backward()
    for attention in (module.attend_self, module.attend_cross):
        for dead in (attention.to_query, attention.to_key):
            assert dead.weight.grad is None or dead.weight.grad.abs().max() < 1e-7  # rounding
        assert attention.to_value.weight.grad is not None
        assert attention.to_value.weight.grad.abs().max() > 1e-4


def test_fifty_ddim_steps_fall_ten_times_in_each_stage(backbone: Backbone) -> None:
    scheduler = build_pipeline(backbone, GenerateSettings(steps=50)).scheduler
    scheduler.set_timesteps(50)
    steps = scheduler.timesteps.tolist()
    assert steps == list(range(981, 0, -20))
    stages = [get_stage(t, 5, 1000) for t in steps]
    assert stages == sorted(stages, reverse=True)
    assert [stages.count(s) for s in range(5)] == [10] * 5


@pytest.mark.parametrize("expansion", ["direct", "module"])
def test_residual_start_is_the_class_word_with_no_attention_loss(backbone: Backbone, expansion: str) -> None:
    config = LearnSettings(expansion=expansion, residual_init=True, dropout=0.0)  # type: ignore[arg-type]
    tokens = IdentityTokens(class_tokens(backbone)[0, 0], config, seed=0)()
    torch.testing.assert_close(tokens, class_tokens(backbone), rtol=0, atol=0)
    texts = encode_training_texts(backbone, config)
    found = compute_losses(backbone, texts, tokens, some_sample(backbone), config)
    assert float(found.attention.detach()) < 1e-9
    assert float(found.denoise.detach()) > 0


@pytest.mark.parametrize("option", [1, 2, 3])
def test_moved_tokens_have_an_attention_loss_that_reaches_key_and_value(backbone: Backbone, option: int) -> None:
    config = LearnSettings(attention_option=option)  # type: ignore[arg-type]
    tokens = (
        class_tokens(backbone) + torch.randn(STAGES, 2, backbone.token_width, generator=create_generator(2, "t"))
    ).requires_grad_()
    found = compute_losses(backbone, encode_training_texts(backbone, config), tokens, some_sample(backbone), config)
    assert float(found.attention.detach()) > 1e-6
    (gradient,) = torch.autograd.grad(found.total, tokens)
    touched = gradient.abs().sum(-1) > 0
    assert touched.all(1).tolist() == [
        True,
        False,
        True,
        False,
        True,
    ]  # the sample's timesteps lie in stages 0, 2, 4


def test_options_count_ever_more_words(backbone: Backbone) -> None:
    tokens = moved(backbone)
    config = LearnSettings()
    values = []
    for option in (1, 2, 3):
        chosen = config.model_copy(update={"attention_option": option})
        values.append(
            float(
                compute_losses(
                    backbone,
                    encode_training_texts(backbone, chosen),
                    tokens,
                    some_sample(backbone),
                    chosen,
                ).attention
            )
        )
    assert 1e-6 < values[0] < values[1] < values[2]


def test_attention_loss_equals_a_loop_over_layers_heads_words_and_pixels(
    backbone: Backbone,
) -> None:
    config = LearnSettings()
    tokens = moved(backbone)
    texts, sample = encode_training_texts(backbone, config), some_sample(backbone, 1)
    found = compute_losses(backbone, texts, tokens, sample, config).attention
    recorder = AttentionRecorder(keep_maps=True)
    from sefi.backbone.bundle import add_noise

    noisy = add_noise(sample.latents, sample.noise, sample.timesteps, backbone.scheduler.alphas_cumprod)
    context = encode_key_value_texts(backbone, texts, sample.template_index, tokens[[0]])
    with torch.no_grad():
        unet = copy_with_key_value_attention(backbone.unet, recorder)
        backbone.predict(noisy, sample.timesteps, context, unet)
    side, total = backbone.latent_size // 2, 0.0
    for name, maps in recorder.maps.items():
        ours, theirs = resize_maps(maps, (side, side)), resize_maps(recorder.reference_maps[name], (side, side))
        total += sum(float((a - b) ** 2) for a, b in zip(ours.flatten(), theirs.flatten(), strict=True))
    assert float(found) == pytest.approx(total / len(recorder.maps), rel=1e-4)


def test_reference_and_key_text_agree_before_the_placeholder(backbone: Backbone) -> None:
    texts = encode_training_texts(backbone, LearnSettings())
    template = torch.arange(7)
    context = encode_key_value_texts(backbone, texts, template, moved(backbone)[[0] * 7])
    key, value, reference = context.states.chunk(3, dim=-1)
    for i in range(7):
        place = int((texts.vector_index[i] >= 0).nonzero())
        torch.testing.assert_close(key[i, :place], reference[i, :place])
        torch.testing.assert_close(value[i, :place], reference[i, :place])
        assert (key[i, place] - reference[i, place]).abs().max() > 1e-3
        assert (key[i, place + 1 :] - reference[i, place + 1 :]).abs().max() > 1e-4


def test_maps_sum_to_one_before_and_after_resizing(backbone: Backbone) -> None:
    recorder = AttentionRecorder(keep_maps=True)
    texts = encode_training_texts(backbone, LearnSettings())
    context = encode_key_value_texts(backbone, texts, torch.tensor([2]), class_tokens(backbone)[[1]])
    noisy = draw_initial_noise(backbone, [11])
    with torch.no_grad():
        unet = copy_with_key_value_attention(backbone.unet, recorder)
        backbone.predict(noisy, torch.tensor([500]), context, unet)
    assert len(recorder.maps) == 7
    for maps in recorder.maps.values():
        assert maps.shape[:3] == (1, 2, 17)
        torch.testing.assert_close(maps.sum(2), torch.ones_like(maps.sum(2)))
    merged = average_word_maps(recorder, 7)
    torch.testing.assert_close(merged.sum(1), torch.ones(1, 7, 7))


def test_swapping_only_values_leaves_the_first_layers_maps(backbone: Backbone) -> None:
    texts = encode_training_texts(backbone, LearnSettings())
    plain = class_tokens(backbone)[[0]]
    swapped = plain.clone()
    swapped[:, 1] = moved(backbone)[:1, 1]
    seen = []
    for tokens in (plain, swapped):
        recorder = AttentionRecorder(keep_maps=True)
        with torch.no_grad():
            context = encode_key_value_texts(backbone, texts, torch.tensor([0]), tokens)
            unet = copy_with_key_value_attention(backbone.unet, recorder)
            backbone.predict(draw_initial_noise(backbone, [1]), torch.tensor([500]), context, unet)
        seen.append(recorder.maps)
    first, *_, last = seen[0]
    torch.testing.assert_close(seen[0][first], seen[1][first], rtol=0, atol=0)
    assert (seen[0][last] - seen[1][last]).abs().max() > 0


def make_stock_pipeline(
    backbone: Backbone, schedule: DDIMScheduler
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    names = ("vae", "unet", "tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    parts = {name: getattr(backbone, name) for name in names if getattr(backbone, name) is not None}
    if backbone.family == "sdxl":
        # An empty negative prompt is encoded, as by this package; SDXL itself was trained with zeros in its place.
        return StableDiffusionXLPipeline(**parts, scheduler=schedule, force_zeros_for_empty_prompt=False)
    empty = {"safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(**parts, **empty, scheduler=schedule, requires_safety_checker=False)


def test_class_word_tokens_give_the_stock_pipelines_image(backbone: Backbone) -> None:
    config = override(Config(), ["generate.steps=5"]).generate
    made = identity(backbone, class_tokens(backbone))
    conditioner = IdentityConditioner(backbone, [made])
    (ours,) = sample_images(backbone, conditioner, ["a photo of <ada> at the beach"], [7], config, SilentProgress())
    schedule = DDIMScheduler.from_config(
        backbone.scheduler.config,
        steps_offset=1,
        timestep_spacing="leading",
        clip_sample=False,
        set_alpha_to_one=False,
    )
    stock = make_stock_pipeline(backbone, schedule)
    stock.set_progress_bar_config(disable=True)
    side = backbone.resolution
    theirs = stock(
        "a photo of person at the beach",
        latents=draw_initial_noise(backbone, [7]),
        num_inference_steps=5,
        guidance_scale=config.guidance_scale,
        height=side,
        width=side,
    )
    from PIL import ImageChops

    assert max(high for _, high in ImageChops.difference(ours.pixels, theirs.images[0]).getextrema()) <= 1


@pytest.mark.slow_after(1)
def test_the_batch_changes_no_pixel_by_more_than_one_grey_level(backbone: Backbone) -> None:
    tokens = class_tokens(backbone) + torch.randn(STAGES, 2, backbone.token_width, generator=create_generator(5, "t"))
    prompts = ["a photo of <ada>", "a drawing of <ada>", "a photo of <ada> in the snow"]
    images = []
    for size in (1, 3):
        config = override(Config(), ["generate.steps=4", f"generate.batch_size={size}"]).generate
        conditioner = IdentityConditioner(backbone, [identity(backbone, tokens)])
        images.append(list(sample_images(backbone, conditioner, prompts, [1, 2, 3], config, SilentProgress())))
    from PIL import ImageChops

    for one, many in zip(*images, strict=True):
        assert one.prompt == many.prompt
        assert max(high for _, high in ImageChops.difference(one.pixels, many.pixels).getextrema()) <= 1


def test_strength_zero_is_the_class_word_and_slots_can_be_reset(backbone: Backbone) -> None:
    tokens = moved(backbone)
    plain = class_tokens(backbone)
    weak = IdentityConditioner(backbone, [identity(backbone, tokens)], strength=0.0)
    torch.testing.assert_close(weak.stage_tokens["ada"][:, :, 0], plain)
    reset = IdentityConditioner(backbone, [identity(backbone, tokens)], class_slots=[(4, "V"), (0, "K")]).stage_tokens[
        "ada"
    ][:, :, 0]
    torch.testing.assert_close(reset[4, 1], plain[4, 1])
    torch.testing.assert_close(reset[0, 0], plain[0, 0])
    torch.testing.assert_close(reset[4, 0], tokens[4, 0])


def test_two_identities_take_their_own_tokens(backbone: Backbone) -> None:
    ada, bob = moved(backbone), moved(backbone, 4, 3)
    both = IdentityConditioner(backbone, [identity(backbone, ada), identity(backbone, bob, "bob")])
    parsed = both.parse("a photo of <bob> and <ada> and <bob>")
    rows, mask = both.build_rows(parsed, 999)
    assert parsed.places == {"bob": (4, 8), "ada": (6,)}
    assert mask.nonzero().flatten().tolist() == [4, 6, 8]
    torch.testing.assert_close(rows[0, 6], ada[4, 0])
    torch.testing.assert_close(rows[1, 4], bob[2, 1])
    torch.testing.assert_close(rows[1, 8], bob[2, 1])


def test_hook_rows_equal_a_table_that_holds_them(backbone: Backbone) -> None:
    parsed = parse_prompt(backbone, "a photo of <ada>", {"ada": "person"})
    dog = get_class_token_ids(backbone, "dog")
    rows = backbone.get_token_row(dog).expand(1, backbone.text_length, -1)
    mask = torch.zeros(1, backbone.text_length, dtype=torch.bool)
    mask[0, 4] = True
    other = parsed.ids.clone()
    other[:, 4] = torch.tensor(dog)
    replaced, plain = backbone.encode_text(parsed.ids[None], rows, mask), backbone.encode_text(other[None])
    torch.testing.assert_close(replaced.states, plain.states)
    assert (replaced.pooled is None) == (plain.pooled is None) == (backbone.family != "sdxl")
    if plain.pooled is not None:
        torch.testing.assert_close(replaced.pooled, plain.pooled)


def test_the_default_preset_starts_at_the_class_word() -> None:
    assert PRESETS["default"].learn.residual_init
    assert PRESETS["paper"].learn.attention_weight == 0.003
    assert PRESETS["paper"].learn.steps == 1000
