"""Learning runs: they improve, resume with the same bits, say what was saved, and travel through files."""

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from safetensors.torch import save_file
from tests.training.token_training import learn_tokens, make_trainer

import sefi
from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, override
from sefi.core.errors import ConfigError, IdentityError, Interrupted, PromptError
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.identity.file import Identity, IdentityHeader
from sefi.identity.tokens import get_stage
from sefi.methods import PRESETS
from sefi.photo.augment import PhotoViews
from sefi.training.token_inversion import draw_training_timesteps

SETTINGS = ["learn.steps=6", "learn.batch=3", "views.latent_pool=5"]


def views(backbone: Backbone, config: Config) -> PhotoViews:
    square = torch.rand((3, backbone.resolution, backbone.resolution), generator=create_generator(4, "photo")) * 2 - 1
    return PhotoViews(square, config.views)


class StopAfter(SilentProgress):
    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, **numbers: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_stopped_run_resumes_with_the_same_bits(backbone: Backbone, tmp_path: Path, preset: str) -> None:
    config = override(PRESETS[preset], SETTINGS)
    whole, _ = learn_tokens(backbone, views(backbone, config), config, 5, SilentProgress())
    checkpoint = tmp_path / "run.safetensors"
    with pytest.raises(Interrupted, match="the training is saved in") as stopped:
        learn_tokens(backbone, views(backbone, config), config, 5, StopAfter(3), checkpoint)
    assert stopped.value.exit_code == 130
    resumed, _ = learn_tokens(backbone, views(backbone, config), config, 5, SilentProgress(), checkpoint)
    assert torch.equal(whole, resumed)
    with pytest.raises(ConfigError, match="another training: seed is 6 and was 5"):
        learn_tokens(backbone, views(backbone, config), config, 6, SilentProgress(), checkpoint)


def test_stopping_without_a_checkpoint_says_that_nothing_was_saved(backbone: Backbone) -> None:
    config = override(PRESETS["default"], SETTINGS)
    with pytest.raises(Interrupted, match="nothing was saved"):
        learn_tokens(backbone, views(backbone, config), config, 5, StopAfter(2))


@pytest.mark.slow
def test_the_loss_on_fixed_samples_falls(backbone: Backbone) -> None:
    from sefi.training.token_inversion import compute_losses, draw_batch

    config = override(PRESETS["default"], ["learn.steps=40", "learn.learning_rate=0.05", "views.latent_pool=3"])
    run = make_trainer(backbone, views(backbone, config), config, 1)
    probe = draw_batch(backbone, run.task.latent_source, config.learn, 99, 0)

    def loss() -> float:
        with torch.no_grad():
            return float(compute_losses(backbone, run.task.texts, run.task.tokens(), probe, config.learn).denoise)

    before = loss()
    for step in range(40):
        run.take_step(step)
    assert loss() < before


def test_shared_tokens_are_one_token() -> None:
    from sefi.identity.tokens import IdentityTokens

    config = override(
        PRESETS["paper"],
        ["learn.split_key_value=false", "learn.stages=1", "learn.expansion=direct"],
    ).learn
    tokens = IdentityTokens(torch.randn(7, generator=create_generator(0, "t")), config, 1)()
    assert tokens.shape == (1, 2, 7)
    assert torch.equal(tokens[:, 0], tokens[:, 1])


def test_the_norm_limit_holds() -> None:
    from sefi.identity.tokens import IdentityTokens

    for residual in ("true", "false"):
        config = override(PRESETS["default"], [f"learn.residual_init={residual}"]).learn
        row = torch.randn(7, generator=create_generator(0, "t"))
        tokens = IdentityTokens(row, config, 1)
        assert tokens.table is not None
        tokens.table.data += 10 * torch.randn(5, 2, 7, generator=create_generator(1, "t"))
        tokens.limit_norm(1.5)
        torch.testing.assert_close(tokens().norm(dim=-1), (1.5 * row.norm()).expand(5, 2))


@given(st.integers(1, 10), st.integers(1, 13), st.integers(0, 10_000), st.integers(0, 7))
@example(3, 3, 0, 0)  # 1000 / 3 is no whole number, and this draw lies on the border of two stages
@settings(max_examples=40)
def test_stratified_samples_cycle_through_the_stages(stages: int, batch: int, seed: int, step: int) -> None:
    learn = override(PRESETS["default"], [f"learn.stages={stages}", f"learn.batch={batch}"]).learn
    drawn = draw_training_timesteps(learn, 1000, create_generator(seed, "t"), step)
    # On from step to step: ten stages and five samples would else leave half of the stages as they were.
    wanted = [i % stages for i in range(step * batch, (step + 1) * batch)]
    assert [get_stage(int(t), stages, 1000) for t in drawn] == wanted


def test_an_identity_travels_through_its_file_bit_by_bit(tmp_path: Path) -> None:
    header = IdentityHeader(
        name="ada",
        method="sefi",
        stages=3,
        base_model="tiny:7:00",
        width=7,
        class_word="dog",
        consent="own photo",
    )
    made = Identity({"tokens": torch.randn(3, 2, 7, generator=create_generator(0, "t"))}, header)
    made.save(tmp_path / "ada.safetensors")
    read = Identity.load(tmp_path / "ada.safetensors")
    assert torch.equal(read.tokens, made.tokens)
    assert read.header == header
    assert [p.name for p in tmp_path.iterdir()] == ["ada.safetensors"]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    header = IdentityHeader(name="ada", method="sefi", stages=3, base_model="tiny:7:00", width=7, class_word="dog")
    good = tmp_path / "good.safetensors"
    Identity({"tokens": torch.ones(3, 2, 7)}, header).save(good)
    cases = {
        "missing": None,
        "damaged": good.read_bytes()[:-5],
        "no safetensors": b"PK\x03\x04 not what it says",
        "empty": b"",
        "nan": b"",
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.safetensors"
        if name == "nan":
            Identity({"tokens": torch.full((3, 2, 7), float("nan"))}, header).save(path)
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(IdentityError) as error:
            Identity.load(path)
        assert error.value.remedy
    foreign = tmp_path / "lora.safetensors"
    save_file({"lora_A": torch.ones(2)}, foreign)
    with pytest.raises(IdentityError, match="no identity of sefi"):
        Identity.load(foreign)
    wrong = tmp_path / "wrong.safetensors"
    Identity({"tokens": torch.ones(3, 2, 11)}, header).save(wrong)
    with pytest.raises(IdentityError, match="header says"):
        Identity.load(wrong)


def test_learn_and_generate_from_a_photo(backbone: Backbone, photo_file: Path) -> None:
    config = override(
        PRESETS["default"],
        ["learn.steps=2", "generate.steps=3", "generate.count=2", "views.latent_pool=2"],
    )
    learned = sefi.learn(photo_file, name="ada", backbone=backbone, config=config, crop=False, seed=3)
    assert learned.tokens.shape == (5, 2, backbone.token_width)
    images = sefi.generate(
        ["a photo of <ada>", "a drawing of <ada>"],
        [learned],
        backbone=backbone,
        config=config,
        seed=11,
    )
    assert [(p.prompt, p.seed) for p in images] == [
        (p, s) for p in ("a photo of <ada>", "a drawing of <ada>") for s in (11, 12)
    ]
    assert images[0].pixels.size == (backbone.resolution,) * 2
    with pytest.raises(PromptError, match="<bob>"):
        sefi.generate("a photo of <bob>", [learned], backbone=backbone)
    with pytest.raises(PromptError, match="no prompt contains"):
        sefi.generate("a photo of person", [learned], backbone=backbone)
    with pytest.raises(IdentityError, match="cannot be a name"):
        sefi.learn(photo_file, name="../ada", backbone=backbone)
    with pytest.raises(PromptError, match="not 1 to 8 tokens"):
        sefi.learn(
            photo_file,
            name="ada",
            backbone=backbone,
            config=override(config, ["learn.class_word=hippopotamus"]),
            crop=False,
        )


def test_identities_of_other_models_are_refused(backbone: Backbone) -> None:
    from sefi.diffusion.conditioning import IdentityConditioner, WordsConditioner

    def foreign(width: int, base: str) -> Identity:
        header = IdentityHeader(name="ada", method="sefi", stages=2, base_model=base, width=width, class_word="person")
        return Identity({"tokens": torch.ones(2, 2, width)}, header)

    with pytest.raises(IdentityError, match="width 768"):
        IdentityConditioner(backbone, [foreign(768, "sd1:768:aa")])
    with pytest.raises(IdentityError, match=r"learned on another model \(sd1"):
        IdentityConditioner(backbone, [foreign(backbone.token_width, "sd1:24:aa")])
    with pytest.raises(IdentityError, match="than this one"):
        IdentityConditioner(backbone, [foreign(backbone.token_width, f"tiny:{backbone.token_width}:ffffffffffffffff")])
    with pytest.raises(ConfigError, match="no stage 2"):
        IdentityConditioner(backbone, [foreign(backbone.token_width, backbone.fingerprint)], class_slots=[(2, "K")])
    with pytest.raises(PromptError, match="negative prompt names <ada>"):
        IdentityConditioner(backbone, [foreign(backbone.token_width, backbone.fingerprint)]).encode_negative(2, "<ada>")
    for refused in ({"negative_prompt": "<ada>"}, {"negative_prompt": "a <bob>"}):
        with pytest.raises(PromptError, match="negative prompt names"):
            WordsConditioner(backbone, {"ada": "person"}).encode_negative(1, **refused)
    with pytest.raises(PromptError, match="<bob>"):
        WordsConditioner(backbone, {"ada": "person"}).encode_prompts(["a <bob>"], 0)
    with pytest.raises(IdentityError, match="Two identities"):
        IdentityConditioner(backbone, [foreign(backbone.token_width, backbone.fingerprint)] * 2)


def test_recorded_attention_has_words_and_maps(backbone: Backbone) -> None:
    from sefi.diffusion.attention_maps import record_attention
    from sefi.diffusion.conditioning import IdentityConditioner

    header = IdentityHeader(
        name="ada",
        method="sefi",
        stages=5,
        base_model=backbone.fingerprint,
        width=backbone.token_width,
        class_word="person",
    )
    tokens = torch.randn(5, 2, backbone.token_width, generator=create_generator(0, "t"))
    conditioner = IdentityConditioner(backbone, [Identity({"tokens": tokens}, header)])
    config = override(Config(), ["generate.steps=3"]).generate
    found = record_attention(backbone, conditioner, "a photo of <ada> holding a cup", 5, config, SilentProgress())
    assert found.words == ("(start)", "a", "photo", "of", "<ada>", "holding", "a", "cup", "(end)")
    assert found.placeholders == (4,)
    assert found.maps.shape == (9, 6, 6)
    assert (found.maps - found.reference_maps).abs().max() > 1e-4
    assert float(found.maps.sum(0).max()) <= 1.0 + 1e-5  # padding holds the rest


def test_a_misspelled_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"learn\.attention_weight"):
        override(Config(), ["learn.atention_wieght=1"])
    with pytest.raises(ConfigError, match="no assignment"):
        override(Config(), ["learn.steps"])
    with pytest.raises(ConfigError, match="steps"):
        override(Config(), ["learn.steps=-1"])
    assert override(Config(), ["learn.attention_weight=0.25"]).learn.attention_weight == 0.25
