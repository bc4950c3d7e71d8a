"""The name encoder: it finds what pairs hold, travels through its file, starts learning, and is the whole result."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sefi.api import generate
from sefi.backbone.bundle import Backbone
from sefi.core.config import override
from sefi.core.errors import ConfigError, FaceError, Interrupted
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.diffusion.text import tokenize_text
from sefi.identity.file import Identity
from sefi.methods import METHODS, PRESETS, sefi as sefi_method
from sefi.methods.base import TrainingOptions, create_header, get_class_row
from sefi.methods.name_encoder import (
    FIRST_PAIR_SEED,
    PAIR_PROMPT,
    EncoderRecipe,
    HeadFeatures,
    NamePairs,
    compute_explained_variance,
    compute_head_features,
    draw_name_pairs,
    find_name_tokens,
    fit_encoder,
    load_encoder,
    pair_heads_with_names,
    save_encoder,
)
from sefi.photo.augment import CropFace, PhotoViews
from sefi.photo.read import convert_to_pixels

BOX = (0.31, 0.23, 0.29, 0.37)
FACE = CropFace(BOX, ((0.37, 0.37), (0.53, 0.37), (0.45, 0.43), (0.39, 0.51), (0.51, 0.51)))
START = ["learn.start=encoder", "learn.steps=0", "views.latent_pool=3"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=create_generator(seed, "r"))


def made_pairs(latent: tuple[int, int], faces: int, width: int, words: int = 1, people: int = 97) -> NamePairs:
    """Features that say the person, by unknown matrices and with noise.

    Args:
        latent: channels and cells.
        faces: numbers of a face.
    """
    traits, (channels, cells) = random(people, 5), latent
    tokens = torch.nn.functional.normalize(traits @ random(5, words * width, seed=1), dim=-1).view(people, words, width)
    size = channels * cells**2
    seen = traits @ random(5, size + faces, seed=2)
    noisy = torch.cat([seen + 0.1 * random(people, size + faces, seed=3 + k) for k in range(3)])
    heads = HeadFeatures(noisy[:, :size].unflatten(1, (channels, cells, cells)), noisy[:, size:])
    return NamePairs(heads, 0.7 * tokens.repeat(3, 1, 1), torch.arange(people).repeat(3))


def made_pairs_for(backbone: Backbone, words: int = 1) -> NamePairs:
    cells = min(12, backbone.latent_size)
    return made_pairs((backbone.latent_channels, cells), 0, backbone.token_width, words)


@pytest.fixture(scope="module")
def encoder_file(backbone: Backbone, tmp_path_factory):
    """Encoders of one and of two words, of made-up weights."""
    folder, files = tmp_path_factory.mktemp("encoders"), {}
    for words in (1, 2):
        pairs = made_pairs_for(backbone, words)
        encoder, _ = fit_encoder(pairs, EncoderRecipe(steps=3), words, SilentProgress())
        files[words] = folder / f"{words}.safetensors"
        save_encoder(encoder, backbone, files[words])
    return files


@pytest.mark.slow
@pytest.mark.parametrize("faces", [0, 13])
def test_it_finds_people_it_was_not_fitted_on(faces: int) -> None:
    pairs, recipe = made_pairs((3, 5), faces, 11), EncoderRecipe(steps=100, batch=32)
    encoder, explained = fit_encoder(pairs, recipe, 1, SilentProgress())
    assert explained > 0.7
    norms = encoder(pairs.heads).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.7))


@pytest.mark.slow
def test_of_features_that_say_nothing_it_explains_nothing_and_the_seed_decides() -> None:
    pairs, recipe = made_pairs((3, 5), 13, 11), EncoderRecipe(steps=30, batch=32)
    nothing = HeadFeatures(random(*pairs.heads.latents.shape, seed=9), random(*pairs.heads.faces.shape, seed=10))
    encoder, by_chance = fit_encoder(NamePairs(nothing, pairs.tokens, pairs.person), recipe, 1, SilentProgress())
    assert by_chance < 0.1
    again, _ = fit_encoder(NamePairs(nothing, pairs.tokens, pairs.person), recipe, 1, SilentProgress())
    assert torch.equal(encoder(nothing), again(nothing))


@pytest.mark.parametrize("held_out", [True, False])
def test_people_are_held_out_whole(held_out: bool) -> None:
    """Other heads and names of those who are held out change nothing of the encoder, only how well it is found."""
    pairs, recipe = made_pairs((3, 5), 13, 11), EncoderRecipe(steps=2, batch=32)
    changed = pairs.person % recipe.held_out == (0 if held_out else 1)

    def change(values: torch.Tensor) -> torch.Tensor:
        return torch.where(changed.view(-1, *[1] * (values.dim() - 1)), 2 * values.flip(-1), values)

    heads = HeadFeatures(change(pairs.heads.latents), change(pairs.heads.faces))
    (first, explained), (other, otherwise) = (
        fit_encoder(one, recipe, 1, SilentProgress())
        for one in (pairs, NamePairs(heads, change(pairs.tokens), pairs.person))
    )
    weights = other.state_dict()
    assert all(torch.equal(one, weights[name]) for name, one in first.state_dict().items()) == held_out
    assert explained != otherwise


@given(st.floats(-1, 2), st.integers(0, 99))
def test_a_share_of_the_way_from_the_mean_explains_its_share_of_the_variance(share: float, seed: int) -> None:
    true, mean = random(5, 2, 7, seed=seed).double(), random(2, 7, seed=100).double()
    found = mean + share * (true - mean)
    assert compute_explained_variance(found, true, mean) == pytest.approx(1 - (1 - share) ** 2)


def test_few_people_are_refused() -> None:
    pairs = made_pairs((3, 5), 0, 11, people=7)
    with pytest.raises(ConfigError, match="too few"):
        fit_encoder(pairs, EncoderRecipe(steps=1), 1, SilentProgress())


@pytest.mark.slow
def test_it_travels_through_its_file(backbone: Backbone, encoder_file) -> None:
    read = load_encoder(encoder_file[2], backbone)
    assert read.words == 2
    with safe_open(encoder_file[2], "pt") as file:
        assert json.loads(file.metadata()["sefi-model-signature"])
    saved = load_file(encoder_file[2])
    assert all(torch.equal(one.half(), saved[name]) for name, one in read.state_dict().items())


def test_foreign_and_damaged_files_are_refused(backbone: Backbone, encoder_file, tmp_path) -> None:
    tensors, path = load_file(encoder_file[1]), tmp_path / "other.safetensors"
    with safe_open(encoder_file[1], "pt") as file:
        about = file.metadata()
    cases = {
        "is no name encoder": (tensors, {}),
        "for another model": (tensors, {"sefi-name-encoder": "tiny:7:00"}),
        "a wrong shape": ({**tensors, "latent_mean": tensors["latent_mean"][:-1]}, about),
        "not finite": ({**tensors, "norm": torch.tensor(float("nan"))}, about),
        "not of this model's width": ({**tensors, "last.bias": tensors["last.bias"][:-1]}, about),
        "are not of this": ({**tensors, "last.bias": tensors["last.bias"].repeat(9)}, about),
        "tokens are not of this": ({name: one for name, one in tensors.items() if name != "last.bias"}, about),
        "more than 16,384 numbers of a face": ({**tensors, "face_mean": torch.zeros(16_385)}, about),
    }
    for message, (changed, metadata) in cases.items():
        save_file(changed, path, metadata=metadata)
        with pytest.raises(ConfigError, match=r"is no name encoder|for another model") as error:
            load_encoder(path, backbone)
        assert message in error.value.problem
        assert "sefi encoder train" in error.value.remedy
    path.write_bytes(encoder_file[1].read_bytes()[:-7])
    for wrong in (path, tmp_path / "missing.safetensors"):
        with pytest.raises(ConfigError, match=r"is no name encoder|missing"):
            load_encoder(wrong, backbone)


def make_views(backbone: Backbone, config, faces=(FACE,)) -> PhotoViews:
    side = backbone.resolution
    return PhotoViews(random(3, side, side, seed=4).clamp(-1, 1), config.views, (), faces)


def test_without_steps_it_is_the_whole_result(backbone: Backbone, encoder_file) -> None:
    config = override(PRESETS["default"], [*START, f"learn.encoder={encoder_file[1]}"])
    method, views = METHODS["sefi"], make_views(backbone, config)
    method.check(backbone, config, None)
    made = method.learn("ada", views, backbone, config, 1, TrainingOptions())
    assert made.tokens.shape == (5, 2, backbone.token_width)
    features = compute_head_features(backbone, [views.crop], [FACE], None)
    wanted = load_encoder(encoder_file[1], backbone)(features)[0, 0]
    torch.testing.assert_close(made.tokens, wanted.expand(5, 2, -1), rtol=1e-4, atol=1e-6)


def test_of_several_photos_it_reads_the_mean_of_what_each_shows(backbone: Backbone, encoder_file) -> None:
    config = override(PRESETS["default"], [*START, f"learn.encoder={encoder_file[1]}"])
    faces = FACE, replace(FACE, box=(0.4, 0.1, 0.3, 0.3))
    one, two = (replace(make_views(backbone, config), faces=(face,)) for face in faces)
    two = replace(two, crop=two.crop.flip(-1))
    seen = [compute_head_features(backbone, [each.crop], each.faces, None).latents for each in (one, two)]
    mean = HeadFeatures((seen[0] + seen[1]) / 2, torch.zeros(1, 0))
    wanted = load_encoder(encoder_file[1], backbone)(mean)[0, 0]
    both = PhotoViews(one.crop, config.views, (two.crop,), faces)
    made = METHODS["sefi"].learn("ada", both, backbone, config, 1, TrainingOptions())
    torch.testing.assert_close(made.tokens, wanted.expand(5, 2, -1), rtol=1e-4, atol=1e-6)


def test_learning_starts_there(backbone: Backbone, encoder_file) -> None:
    few = ["learn.steps=1", "learn.batch=5", "learn.learning_rate=1e-4"]
    config = override(PRESETS["default"], [*START, *few, f"learn.encoder={encoder_file[1]}"])
    start = override(config, ["learn.steps=0"])
    first, then = (
        METHODS["sefi"].learn("ada", make_views(backbone, one), backbone, one, 1, TrainingOptions()).tokens
        for one in (start, config)
    )
    step = (then - first).abs()
    assert 5e-5 < float(step.max()) < 1.1e-4
    held = override(config, ["learn.hold_norm=true", "learn.change_limit=0.01", "learn.learning_rate=0.1"])
    moved = METHODS["sefi"].learn("ada", make_views(backbone, held), backbone, held, 1, TrainingOptions()).tokens
    row = get_class_row(backbone, config)
    torch.testing.assert_close(moved.norm(dim=-1), row.norm().expand(5, 2))


class StoppingProgress(SilentProgress):
    """Interrupts the third step."""

    steps = 0

    def advance(self, **numbers: float) -> None:
        self.steps += bool(numbers)
        if self.steps == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_training_goes_on_where_the_photo_is_read_with_other_rounding(
    backbone: Backbone, encoder_file, tmp_path, monkeypatch
) -> None:
    """As it is with another number of threads; another encoder is another training."""
    config = override(PRESETS["default"], [*START, "learn.steps=5", f"learn.encoder={encoder_file[1]}"])
    method, views = METHODS["sefi"], make_views(backbone, config)
    checkpoint, file = tmp_path / "a.checkpoint", tmp_path / "encoder.safetensors"
    file.write_bytes(encoder_file[1].read_bytes())
    config = override(config, [f"learn.encoder={file}"])
    with pytest.raises(Interrupted):
        method.learn("ada", views, backbone, config, 1, TrainingOptions(StoppingProgress(), checkpoint=checkpoint))
    read = sefi_method.read_tokens

    def read_otherwise(*arguments):
        made = read(*arguments)
        return replace(made, tensors={"tokens": made.tensors["tokens"] * (1 + 1e-6)})

    monkeypatch.setattr(sefi_method, "read_tokens", read_otherwise)
    resumed = StoppingProgress()
    method.learn("ada", views, backbone, config, 1, TrainingOptions(resumed, checkpoint=checkpoint))
    assert resumed.steps == 2, "of five steps three were taken before"
    checkpoint.unlink()
    with pytest.raises(Interrupted):
        method.learn("ada", views, backbone, config, 1, TrainingOptions(StoppingProgress(), checkpoint=checkpoint))
    other = fit_encoder(made_pairs_for(backbone), EncoderRecipe(steps=2), 9, SilentProgress())[0]
    save_encoder(other, backbone, file)
    with pytest.raises(ConfigError, match="what another name encoder reads"):
        method.learn("ada", views, backbone, config, 1, TrainingOptions(checkpoint=checkpoint))


def test_two_words_need_two_vectors(backbone: Backbone, encoder_file) -> None:
    config = override(PRESETS["default"], [*START, f"learn.encoder={encoder_file[2]}"])
    with pytest.raises(ConfigError, match=r"gives 2 tokens") as error:
        METHODS["sefi"].check(backbone, config, None)
    assert error.value.remedy == "Set learn.vectors=2."
    two = override(config, ["learn.vectors=2"])
    made = METHODS["sefi"].learn("ada", make_views(backbone, two), backbone, two, 1, TrainingOptions())
    assert made.tokens.shape == (5, 2, 2, backbone.token_width)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("split", ["true", "false"])
def test_what_is_learned_from_there_is_saved_loaded_and_used(
    backbone: Backbone, encoder_file, tmp_path, split: str, vectors: int, steps: int
) -> None:
    chosen = [f"learn.split_key_value={split}", f"learn.vectors={vectors}", f"learn.steps={steps}"]
    config = override(PRESETS["default"], [*START, *chosen, f"learn.encoder={encoder_file[vectors]}"])
    METHODS["sefi"].check(backbone, config, None)
    made = METHODS["sefi"].learn("ada", make_views(backbone, config), backbone, config, 1, TrainingOptions())
    several = (vectors,) if vectors > 1 else ()
    assert made.tokens.shape == (5, 2, *several, backbone.token_width)
    made.save(tmp_path / "ada.safetensors")
    loaded = Identity.load(tmp_path / "ada.safetensors")
    assert torch.equal(loaded.tokens, made.tokens)
    few = override(config, ["generate.steps=1"])
    (image,) = generate("a photo of <ada>", loaded, backbone=backbone, config=few)
    assert image.pixels.size == (backbone.resolution,) * 2


def test_what_is_missing_is_said(backbone: Backbone, encoder_file) -> None:
    config = override(PRESETS["default"], START)
    with pytest.raises(ConfigError, match="brings no name encoder"):
        METHODS["sefi"].check(backbone, config, None)
    named = override(config, [f"learn.encoder={encoder_file[1]}"])
    with pytest.raises(FaceError, match="where the face is"):
        METHODS["sefi"].learn("ada", make_views(backbone, named, ()), backbone, named, 1, TrainingOptions())
    both = Identity({"tokens": torch.zeros(5, 2, backbone.token_width)}, create_header("b", backbone, named, 1))
    with pytest.raises(ConfigError, match="either at an identity"):
        METHODS["sefi"].learn("a", make_views(backbone, named), backbone, named, 1, TrainingOptions(init=both))


def test_names_are_paired_with_their_first_tokens(backbone: Backbone) -> None:
    names = ["ada lovelace", "ada", "grace hopper"]
    rows = find_name_tokens(backbone, names, 1)
    assert set(rows) == set(names)
    assert torch.equal(rows["ada lovelace"], rows["ada"])
    assert not torch.equal(rows["grace hopper"], rows["ada"])
    tokens = tokenize_text(backbone, "grace hopper")
    (whole,) = find_name_tokens(backbone, ["a", "grace hopper"], len(tokens)).values()
    assert torch.equal(whole, torch.stack([backbone.get_token_row(token) for token in tokens]))
    with pytest.raises(ConfigError, match="No name has 8 tokens"):
        find_name_tokens(backbone, ["a"], 8)


class EverywhereAFace:
    """A detector that finds a face in the middle of every image but the third."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, rgb):
        from sefi.photo.detect import Face

        self.seen += 1
        side = rgb.shape[0]
        face = Face(0.3 * side, 0.3 * side, 0.4 * side, 0.4 * side, ((0.0, 0.0),) * 5, 0.9)
        return [] if self.seen == 3 else [face]


def test_pairs_are_made_of_the_models_own_images(backbone: Backbone) -> None:
    config = override(PRESETS["default"], ["generate.steps=1", "generate.batch_size=2"])
    names = ["ada", "grace", "alan"]
    pairs = draw_name_pairs(backbone, names, 1, 2, config, EverywhereAFace(), SilentProgress())
    assert pairs.person.tolist() == [0, 0, 1, 2, 2], "the third image shows no face"
    assert pairs.heads.latents.shape == (5, backbone.latent_channels, *[min(12, backbone.latent_size)] * 2)
    assert pairs.heads.faces.shape == (5, 0)
    rows = find_name_tokens(backbone, names, 1)
    for k, person in enumerate(pairs.person.tolist()):
        assert torch.equal(pairs.tokens[k], rows[names[person]])
    assert not torch.equal(pairs.heads.latents[0], pairs.heads.latents[1]), "each image has its own seed"


def test_pairs_are_of_images_as_they_are_generated(backbone: Backbone) -> None:
    """With another layer of the text encoder, too."""
    found = []
    for clip_skip in (1, 2):
        config = override(PRESETS["default"], ["generate.steps=1", f"generate.clip_skip={clip_skip}"])
        pairs = draw_name_pairs(backbone, ["ada"], 1, 1, config, EverywhereAFace(), SilentProgress())
        prompt = PAIR_PROMPT.format("ada")
        (image,) = generate(prompt, backbone=backbone, config=config, seed=FIRST_PAIR_SEED)
        shown = [(0, convert_to_pixels(image.pixels), pairs.tokens[0])]
        again = pair_heads_with_names(backbone, shown, EverywhereAFace())
        assert torch.equal(pairs.heads.latents, again.heads.latents)
        found.append(pairs.heads.latents)
    assert not torch.equal(*found)
