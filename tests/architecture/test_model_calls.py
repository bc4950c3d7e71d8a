"""Only the rooms `backbone` and `diffusion` call a model's networks: another family of models changes nothing else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
ROOMS = ("backbone", "diffusion")
# They make and train the embedded model's networks, before there is a backbone.
TRAIN_NETWORKS = {"tiny_portraits/text/text_encoder.py", "tiny_portraits/training/denoiser.py"}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[1] not in ROOMS)
NETWORKS = {"unet", "text_encoder", "text_encoder_2"}
COPIES = {"copy_part", "copy_with_key_value_attention"}
# What a text encoder or a UNet says of its inside: sizes, token table, outputs.
INSIDE = {"cross_attention_dim", "encoder_hidden_states", "get_input_embeddings", "hidden_size", "last_hidden_state"}
MODELS = {"backbone", "embedded", "half", "model"}


def get_last_name(node):
    """Return the last part of a dotted name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def is_network(node):
    """Return whether an expression gives a network of a model, or a copy of one."""
    if isinstance(node, ast.Call):
        return get_last_name(node.func) in COPIES
    return get_last_name(node) in NETWORKS


def find_network_names(tree):
    """Return the names that some assignment gives to a network, however they are spelt."""
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and is_network(node.value)]
    return NETWORKS | {name for node in assigned for target in node.targets if (name := get_last_name(target))}


def find_model_calls(tree):
    """Return the lines that call a network, look inside one, or ask a model for a width of its text."""
    names, found = find_network_names(tree), []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=function) if get_last_name(function) in names or is_network(function):
                found.append(ast.unparse(node))
            case ast.Attribute(attr=inside) if inside in INSIDE:
                found.append(ast.unparse(node))
            case ast.Attribute(attr="width", value=owner) if get_last_name(owner) in MODELS:
                found.append(ast.unparse(node))
            case ast.keyword(arg=inside) if inside in INSIDE:
                found.append(f"{inside}=")
    return found


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_network_is_called_outside(path):
    assert bool(find_model_calls(parse(path))) == (path.relative_to(SOURCE).as_posix() in TRAIN_NETWORKS)


@pytest.mark.parametrize(
    "line",
    [
        "backbone.unet(noisy, t, context)",
        "self.backbone.text_encoder(ids)",
        "text_encoder_2(ids)",
        "copied = copy_part(backbone.unet)\ncopied(noisy, t, context)",
        "copy_with_key_value_attention(model.unet)(noisy, t, context)",
        "class A:\n    def f(self):\n        self.mine = self.model.unet\n        self.mine(1)",
        "answer.last_hidden_state",
        "backbone.text_encoder.get_input_embeddings()",
        "model.width",
        "run.backbone.width",
        "unet.config.cross_attention_dim",
    ],
)
def test_these_checks_can_fail(line):
    assert find_model_calls(ast.parse(line))


def test_what_is_meant_passes():
    text = """
unet = copy_with_key_value_attention(backbone.unet, recorder)
found = backbone.predict(noisy, t, backbone.encode_text(ids), unet)
names = list_cross_attention_weights(backbone.unet, layers)
sizes = backbone.token_width, header.width, image.width
"""
    assert not find_model_calls(ast.parse(text))
