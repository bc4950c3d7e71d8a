"""An identity fits its model at any precision, and no other: dtype x changed part x added tokens x old files."""

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sefi.api import generate_each
from sefi.backbone.open import open_backbone
from sefi.backbone.signature import SAMPLES, sign_model
from sefi.core.config import Config, parse_config
from sefi.core.errors import IdentityError
from sefi.diffusion.conditioning import check_identities, compare_model
from sefi.identity.file import Identity
from sefi.methods.base import create_header

PARTS = ("text_encoder", "unet", "vae")
NAMES = {"text_encoder": "text encoder", "unet": "UNet", "vae": "VAE"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def identity_on(backbone, version=2, **tensors):
    header = create_header("ada", backbone, Config(), 0)
    if version == 1:
        header = header.model_copy(update={"schema_version": 1, "signature": {}})
    return Identity({"tokens": torch.full((5, 2, backbone.token_width), 0.1), **tensors}, header)


def changed(backbone, part, change):
    """The same model with `change` applied to one part, signed anew."""
    module = copy.deepcopy(getattr(backbone, part))
    with torch.no_grad():
        change(module)
    return replace(backbone, **{part: module}, signature=None)


def at(backbone, *dtypes):
    """The model rounded to each dtype in turn, signed anew."""
    parts = {name: copy.deepcopy(getattr(backbone, name)) for name in PARTS}
    for dtype in dtypes:
        parts = {name: torch.nn.Module.to(part, dtype) for name, part in parts.items()}
    return replace(
        backbone, **parts, signature=None, fingerprint=f"{backbone.family}:{backbone.token_width}:{'f' * 16}"
    )


def as_sd1(backbone):
    """The tiny model under the name of a family whose checkpoints share their words and sizes."""
    return replace(backbone, family="sd1", fingerprint=f"sd1:{backbone.token_width}:{'0' * 16}")


@pytest.mark.parametrize("learned", DTYPES)
@pytest.mark.parametrize("opened", [*((one,) for one in DTYPES), (torch.float16, torch.bfloat16)])
def test_the_same_weights_fit_at_any_precision(backbone, learned, opened):
    identity = identity_on(at(backbone, learned))
    model = at(backbone, *opened)
    assert compare_model(model, identity) is None
    assert compare_model(replace(model, family="sd1"), with_family(identity, "sd1")) is None


def with_family(identity, family):
    base = identity.header.base_model.partition(":")
    return replace(identity, header=identity.header.model_copy(update={"base_model": f"{family}:{base[2]}"}))


def nudge_all(module):
    for weight in module.parameters():
        weight.add_(1e-5 * torch.sign(torch.randn_like(weight)))


def nudge_one(module):
    list(module.parameters())[-2].mul_(1.5).add_(0.01)


@pytest.mark.parametrize("change", [nudge_all, nudge_one])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_weights_are_noted_or_refused(backbone, dtype, part, change):
    torch.manual_seed(5)
    other = changed(backbone, part, change)
    model = at(other, dtype)
    identity = identity_on(backbone)
    with pytest.raises(IdentityError, match="was learned on"):
        check_identities(model, [identity])
    note = compare_model(replace(model, family="sd1"), with_family(identity, "sd1"))
    assert f"in the {NAMES[part]}." in note
    assert "another checkpoint" in note


@pytest.mark.slow
def test_the_figures_of_both_sides():
    """What the module's docstring says: tensors that rounding changes, and that one training step changes."""
    backbone = open_backbone()
    found = {}
    for name, dtypes in (("half", DTYPES[2:]), ("bfloat16", DTYPES[1:2]), ("both", (torch.float16, torch.bfloat16))):
        found[name] = count_changed(backbone, at(backbone, *dtypes))
    torch.manual_seed(5)
    step = backbone
    for part in PARTS:
        step = changed(step, part, nudge_all)
    found["step"] = count_changed(backbone, step)
    found["step in bfloat16"] = count_changed(backbone, at(step, torch.bfloat16))
    assert sum(len(backbone.signature.samples[part]) for part in PARTS) == 562  # as docs/file-format.md says
    assert (found["half"], found["bfloat16"], found["both"]) == (0, 0, 0)
    assert found["step"] > 200
    assert found["step in bfloat16"] > 200


def count_changed(backbone, other):
    """Tensors whose stored sample is not within rounding."""
    count = 0
    for part in PARTS:
        for before, after in zip(backbone.signature.samples[part], other.signature.samples[part], strict=True):
            place = int(before.abs().argmin())
            a, b = before[place].bfloat16().float(), after[place]
            count += bool((a - b).abs() > 1.5 * 2**-7 * max(a.abs(), b.abs()) + 2**-24)
    return count


def test_added_tokens_change_nothing(backbone):
    tokenizer, text = copy.deepcopy(backbone.tokenizer), copy.deepcopy(backbone.text_encoder)
    tokenizer.add_tokens(["<cat-toy>", "<cat-toy>_1"])
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = replace(backbone, tokenizer=tokenizer, text_encoder=text, signature=None, fingerprint="tiny:24:" + "e" * 16)
    assert compare_model(model, identity_on(backbone)) is None
    assert compare_model(backbone, with_base(identity_on(model), backbone)) is None


def test_a_loaded_lora_changes_nothing(backbone):
    """Pipelines of users have one loaded beside the model's own weights."""
    loaded = copy.deepcopy(backbone.unet)
    loaded.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v", "conv1"], init_lora_weights=False), "style")
    assert len(list(loaded.parameters())) > len(list(backbone.unet.parameters()))
    other = replace(backbone, unet=loaded, signature=None)
    assert other.signature.dump() == backbone.signature.dump()
    assert compare_model(other, identity_on(backbone)) is None


def with_base(identity, backbone):
    return replace(identity, header=identity.header.model_copy(update={"base_model": backbone.fingerprint}))


def test_other_words_are_refused_in_every_family(backbone):
    tokenizer = copy.deepcopy(backbone.tokenizer)
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.get)
    words[7], words[8] = words[8], words[7]
    other = type(tokenizer)(vocab={word: k for k, word in enumerate(words)}, merges=[], model_max_length=17)
    model = replace(as_sd1(backbone), tokenizer=other, signature=None)
    with pytest.raises(IdentityError, match="was learned on"):
        compare_model(model, identity_on(as_sd1(backbone)))


def test_other_families_and_widths_are_refused(backbone):
    with pytest.raises(IdentityError, match="was learned on"):
        compare_model(as_sd1(backbone), identity_on(backbone))
    wide = identity_on(backbone)
    wide = replace(wide, header=wide.header.model_copy(update={"width": 25}))
    with pytest.raises(IdentityError, match="width 25"):
        check_identities(backbone, [wide])


def test_weights_for_other_shapes_are_refused_tokens_noted(backbone):
    from diffusers import UNet2DConditionModel

    config = dict(backbone.unet.config) | {"layers_per_block": 2}
    other = replace(as_sd1(backbone), unet=UNet2DConditionModel.from_config(config), signature=None)
    assert "in the UNet." in compare_model(other, identity_on(as_sd1(backbone)))
    with_weights = identity_on(as_sd1(backbone), **{"unet.conv_in.weight": torch.zeros(1)})
    with pytest.raises(IdentityError, match="was learned on"):
        compare_model(other, with_weights)


@pytest.mark.parametrize("family", ["tiny", "sd1"])
def test_version_1_is_compared_by_name(backbone, family):
    model = replace(backbone, family=family, fingerprint=f"{family}:24:{'0' * 16}")
    old = identity_on(model, version=1)
    assert compare_model(model, old) is None
    other = replace(model, fingerprint=f"{family}:24:{'1' * 16}")
    if family == "tiny":
        with pytest.raises(IdentityError, match="was learned on"):
            compare_model(other, old)
    else:
        assert "perhaps in weights" in compare_model(other, old)


def test_version_1_files_open_and_a_signature_travels(backbone, tmp_path):
    path = tmp_path / "ada.safetensors"
    identity_on(backbone).save(path)
    assert Identity.load(path).header.signature == backbone.signature.dump()
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sefi"])
    assert header["schema_version"] == 4, "it predicts noise, which the embedded model's family does not"
    del header["signature"], header["prediction_type"]
    save_file(load_file(path), path, {"sefi": json.dumps(header | {"schema_version": 1})})
    assert Identity.load(path).header.signature == {}
    check_identities(backbone, [Identity.load(path)])


@pytest.mark.parametrize("record", ["?", "AAAA", "QUJD" * 900, ""])
def test_a_damaged_signature_is_refused(backbone, record):
    identity = identity_on(backbone)
    shapes = identity.header.signature["unet"].partition(":")[0]
    bad = identity.header.model_copy(update={"signature": identity.header.signature | {"unet": f"{shapes}:{record}"}})
    with pytest.raises(IdentityError, match="signature of 'ada' is damaged"):
        compare_model(backbone, replace(identity, header=bad))


def test_a_note_is_said_once_and_images_are_made(backbone, caplog):
    model = as_sd1(changed(backbone, "vae", nudge_one))
    identity = identity_on(as_sd1(backbone))
    config = parse_config({"generate": {"steps": 1}}, Config)
    with caplog.at_level(logging.WARNING, "sefi.remarks"):  # the command line, tested before, silences it
        images = list(generate_each("a photo of <ada>", [identity], backbone=model, config=config))
    assert len(images) == 1
    notes = [one.getMessage() for one in caplog.records if "another checkpoint" in one.getMessage()]
    assert len(notes) == 1
    assert "in the VAE." in notes[0]


def test_a_copy_with_changed_weights_keeps_the_signature(backbone):
    assert replace(backbone, source="elsewhere").signature is backbone.signature
    assert all(samples.shape[1] == SAMPLES for samples in backbone.signature.samples.values())
    text_encoder, unet, vae = (getattr(backbone, part) for part in PARTS)
    assert sign_model([backbone.tokenizer], [text_encoder], unet, vae).dump() == backbone.signature.dump()
