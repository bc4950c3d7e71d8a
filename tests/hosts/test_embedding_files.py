"""Textual inversions of other programs become identities, and learning goes on from tokens."""

import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save, save_file
from typer.testing import CliRunner

import sefi
from sefi.backbone.open import MODELS
from sefi.cli.app import app
from sefi.core.config import override
from sefi.core.errors import ConfigError, IdentityError, PromptError, SefiError
from sefi.core.progress import SilentProgress
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.hosts.embedding_files import MOST_VECTORS, read_embedding
from sefi.hosts.export import choose_slot, export_tokens, get_host, write_exported
from sefi.identity.file import Identity
from sefi.methods import get_method, get_preset
from sefi.methods.base import TrainingOptions, compute_tokens_digest, create_header, fit_first_tokens
from sefi.photo.augment import PhotoViews

PROMPT = "a photo of <ada> at the beach"


def draw(*shape, seed=0):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(path, metadata=None, **tensors):
    save_file(tensors, path, metadata=metadata)
    return path


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("name", ["emb_params", "*", "<cat-toy>", "anything"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vectors", [1, 3, 32])
def test_a_single_tensor_is_read_whatever_its_name(tmp_path, name, dtype, vectors):
    tensor = draw(vectors, 13).to(dtype)
    read = read_embedding(write(tmp_path / "it.safetensors", **{name: tensor}), (13,))
    assert read.dtype == torch.float32
    assert torch.equal(read, tensor.float())


def test_one_vector_may_lack_its_axis(tmp_path):
    tensor = draw(13)
    assert torch.equal(read_embedding(write(tmp_path / "it.safetensors", a=tensor), (13,)), tensor[None])


def test_emb_params_is_read_beside_others(tmp_path):
    path = write(tmp_path / "it.safetensors", emb_params=draw(2, 13), step=draw(1))
    assert torch.equal(read_embedding(path, (13,)), draw(2, 13))


def test_both_encoders_of_sdxl_are_read_side_by_side(tmp_path):
    path = write(tmp_path / "it.safetensors", clip_l=draw(3, 13), clip_g=draw(3, 29, seed=1))
    assert torch.equal(read_embedding(path, (13, 29)), torch.cat([draw(3, 13), draw(3, 29, seed=1)], dim=-1))


@pytest.mark.parametrize(
    ("tensors", "widths", "message"),
    [
        ({"a": draw(2, 13), "b": draw(2, 13)}, (13,), "2 tensors"),
        ({"emb_params": draw(2, 11)}, (13,), r"\(2, 11\)"),
        ({"emb_params": draw(2, 3, 13)}, (13,), r"\(2, 3, 13\)"),
        ({"emb_params": draw(MOST_VECTORS + 1, 13)}, (13,), "33 vectors"),
        ({"emb_params": draw(0, 13)}, (13,), "shape that is not allowed"),
        ({"emb_params": torch.full((1, 13), torch.nan)}, (13,), "not finite"),
        ({"emb_params": torch.full((1, 13), 1e30)}, (13,), "text encoder"),
        ({"emb_params": torch.zeros(1, 13, dtype=torch.int64)}, (13,), "I64"),
        ({"clip_l": draw(2, 13), "clip_g": draw(2, 29)}, (13,), "for SDXL"),
        ({"clip_l": draw(2, 13), "clip_g": draw(3, 29)}, (13, 29), "different numbers"),
        ({"emb_params": draw(2, 13)}, (13, 29), "this model has two"),
    ],
)
def test_what_is_no_embedding_of_this_model_is_refused(tmp_path, tensors, widths, message):
    with pytest.raises(IdentityError, match=message):
        read_embedding(write(tmp_path / "it.safetensors", **tensors), widths)


@pytest.mark.parametrize("start", [b"PK\x03\x04rest of it", b"\x80\x02}q\x00(X\x0f\x00\x00\x00string"])
def test_files_that_may_run_code_are_refused_with_what_to_do(tmp_path, start):
    path = tmp_path / "it.safetensors"
    path.write_bytes(start)
    with pytest.raises(IdentityError, match=r"may run code.*Get it as a \.safetensors"):
        read_embedding(path, (13,))


def test_a_header_as_long_as_a_pickles_first_byte_is_a_safetensors_file(tmp_path):
    for length in range(1, 90):
        content = save({"a": draw(1, 13)}, metadata={"x": "y" * length})
        if content[0] == 0x80:
            (tmp_path / "it.safetensors").write_bytes(content)
            assert read_embedding(tmp_path / "it.safetensors", (13,)).shape == (1, 13)
            return
    pytest.fail("no header of that length")


def test_an_identity_is_no_import(tmp_path, backbone):
    make_identity(backbone).save(tmp_path / "ada.safetensors")
    with pytest.raises(IdentityError, match="identity already"):
        read_embedding(tmp_path / "ada.safetensors", (backbone.token_width,))
    with pytest.raises(IdentityError, match="no file"):
        read_embedding(tmp_path / "nobody.safetensors", (13,))


def test_an_embedding_in_place_of_an_identity_is_refused_with_the_command_that_makes_one(tmp_path):
    path = write(tmp_path / "it.safetensors", emb_params=draw(1, 13))
    with pytest.raises(IdentityError, match="no identity of sefi") as refused:
        Identity.load(path)
    assert "`sefi import`" in refused.value.remedy


@given(st.binary(max_size=200))
@settings(max_examples=60)
def test_any_bytes_give_a_typed_error_or_vectors(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "it.safetensors"
    path.write_bytes(content)
    with suppress(SefiError):
        read_embedding(path, (13,))


# ------------------------------------------------------------------ identities


def make_identity(backbone, stages=1, vectors=1, *, keys=False, name="ada"):
    config = get_preset("textual-inversion", [f"learn.vectors={vectors}", "learn.class_word=dog"])
    header = create_header(name, backbone, config, 0)
    tokens = draw(stages, 2 if keys else 1, vectors, backbone.token_width, seed=5).expand(-1, 2, -1, -1).clone()
    settings = header.settings | {"learn": header.settings["learn"] | {"stages": stages}}
    return Identity({"tokens": tokens}, header.model_copy(update={"stages": stages, "settings": settings}))


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("kind", ["backbone", "sdxl"])
@pytest.mark.parametrize("host", ["a1111", "invokeai", "comfyui"])
def test_what_is_exported_flat_and_imported_is_the_same(request, tmp_path, kind, vectors, host):
    model = request.getfixturevalue(kind)
    identity = make_identity(model, vectors=vectors)
    (path,) = write_exported(export_tokens(identity, get_host(host), "value", None).files, tmp_path)
    found = sefi.import_embedding(path, name="ada", backbone=model, class_word="dog")
    assert torch.equal(found.stage_tokens, identity.stage_tokens)
    assert (found.header.stages, found.header.class_word, found.method) == (1, "dog", "textual-inversion")
    found.save(tmp_path / "ada.safetensors")
    again = Identity.load(tmp_path / "ada.safetensors")
    ours, theirs = (IdentityConditioner(model, [one]).encode_prompts([PROMPT], 500).states for one in (identity, again))
    assert torch.equal(ours, theirs)


def test_names_and_class_words_are_checked(tmp_path, backbone):
    path = write(tmp_path / "it.safetensors", emb_params=draw(1, backbone.token_width))
    with pytest.raises(IdentityError, match="cannot be a name"):
        sefi.import_embedding(path, name="a b", backbone=backbone, class_word="dog")
    with pytest.raises(PromptError):
        sefi.import_embedding(path, name="ada", backbone=backbone, class_word="q" * 60)


@pytest.mark.slow
def test_the_command_imports_and_the_result_generates(tmp_path):
    embedded = sefi.open_backbone()
    path = write(tmp_path / "it.safetensors", emb_params=embedded.get_token_row([5])[None].repeat(2, 1))
    arguments = ["import", str(path), "--name", "ada", "--out", str(tmp_path / "ada.safetensors"), "--json"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    record = json.loads(answer.stdout)
    assert (record["schema"], record["vectors"]) == ("import/1", 2)
    config = override(sefi.PRESETS["fast"], ["generate.steps=2"])
    (image,) = sefi.generate(
        "a photo of <ada>", [Identity.load(tmp_path / "ada.safetensors")], backbone=embedded, config=config
    )
    assert image.pixels.size == (embedded.resolution, embedded.resolution)
    assert CliRunner().invoke(app, arguments).exit_code == 2  # nothing is replaced unless asked
    assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 0
    assert CliRunner().invoke(app, [*arguments[:-2], str(path), "--overwrite"]).exit_code == 2  # never an input


# ------------------------------------------------------------------ going on from tokens


def learn(backbone, preset, init, *settings):
    config = get_preset(preset, ["learn.class_word=dog", "learn.batch=2", "learn.probe_every=0", *settings])
    views = PhotoViews(torch.zeros(3, backbone.resolution, backbone.resolution), config.views)
    method = get_method(config.method)
    return method.learn("ada", views, backbone, config, 0, TrainingOptions(SilentProgress(), init=init))


SMALL = ("learn.steps=1", "learn.learning_rate=1e-12", "views.latent_pool=0")


@pytest.mark.parametrize("residual", [True, False])
def test_learning_starts_at_the_given_tokens(backbone, residual):
    init = make_identity(backbone, 5, keys=True)
    made = learn(backbone, "default", init, *SMALL, f"learn.residual_init={residual}")
    torch.testing.assert_close(made.stage_tokens, init.stage_tokens, rtol=0, atol=1e-6)
    without = learn(backbone, "default", None, *SMALL, f"learn.residual_init={residual}")
    assert (without.stage_tokens - init.stage_tokens).abs().max() > 0.1


def test_an_imported_identity_starts_every_stage(backbone):
    init = make_identity(backbone)
    made = learn(backbone, "default", init, *SMALL)
    torch.testing.assert_close(made.stage_tokens, init.stage_tokens.expand(5, -1, -1, -1), rtol=0, atol=1e-6)


def test_textual_inversion_goes_on_from_its_vectors(backbone):
    init = make_identity(backbone, vectors=3)
    made = learn(backbone, "textual-inversion", init, *SMALL, "learn.vectors=3")
    torch.testing.assert_close(made.stage_tokens, init.stage_tokens, rtol=0, atol=1e-6)


def test_the_start_is_left_as_it_was_and_changes_what_is_learned(backbone):
    init = make_identity(backbone, 5, keys=True)
    before = init.tokens.clone()
    made = learn(backbone, "default", init, "learn.steps=3", "views.latent_pool=0")
    assert torch.equal(init.tokens, before)
    assert not torch.equal(made.stage_tokens, init.stage_tokens)


@pytest.mark.parametrize(
    ("stages", "vectors", "keys", "change", "message"),
    [
        (3, 1, True, [], "3 stages"),
        (5, 2, True, [], "2 vectors"),
        (5, 1, True, ["learn.split_key_value=false"], "keys of its own"),
        (5, 1, True, ["learn.expansion=module"], "expansion=direct"),
    ],
)
def test_tokens_that_do_not_fit_the_settings_are_refused(backbone, stages, vectors, keys, change, message):
    with pytest.raises(ConfigError, match=message):
        fit_first_tokens(make_identity(backbone, stages, vectors, keys=keys), get_preset("default", change).learn)


def test_equal_keys_and_values_fit_a_single_slot(backbone):
    init = make_identity(backbone, 5)
    first = fit_first_tokens(init, get_preset("default", ["learn.split_key_value=false"]).learn)
    assert torch.equal(first, choose_slot(init, "value")[:, None])


@pytest.mark.slow
def test_methods_that_start_from_nothing_else_say_so(photo_file):
    config = get_preset("dreambooth-lora", ["learn.steps=1"])
    init = sefi.open_backbone()
    with pytest.raises(ConfigError, match="does not go on"):
        sefi.learn(photo_file, name="ada", init=make_identity(init), config=config, crop=False, any_style=True)


def test_an_identity_of_another_model_is_no_start(backbone, photo_file):
    with pytest.raises(IdentityError):
        sefi.learn(photo_file, name="bob", init=make_identity(backbone), crop=False, any_style=True)


def test_a_checkpoint_of_another_start_is_none_of_this_training(tmp_path, backbone):
    """Two unfinished trainings that differ in their start only must not go on from each other."""
    one, other = make_identity(backbone, 5, keys=True), make_identity(backbone, 5)
    assert compute_tokens_digest(one) != compute_tokens_digest(other)
    assert compute_tokens_digest(one) == compute_tokens_digest(make_identity(backbone, 5, keys=True))


@pytest.mark.slow
def test_the_command_goes_on_from_an_identity(tmp_path):
    common = [
        "learn",
        str(MODELS / "demo" / "portrait.png"),
        "--name",
        "ada",
        "--set",
        "views.latent_pool=2",
        "--set",
        "learn.batch=1",
        "--json",
    ]
    first = CliRunner().invoke(app, [*common, "--steps", "1", "--out", str(tmp_path / "a.safetensors")])
    assert first.exit_code == 0, first.output
    start = Identity.load(tmp_path / "a.safetensors")
    more = ["--init", str(tmp_path / "a.safetensors"), "--set", "learn.learning_rate=1e-9", "--steps", "1"]
    second = CliRunner().invoke(app, [*common, *more, "--out", str(tmp_path / "b.safetensors")])
    assert second.exit_code == 0, second.output
    torch.testing.assert_close(Identity.load(tmp_path / "b.safetensors").tokens, start.tokens, rtol=0, atol=1e-6)
