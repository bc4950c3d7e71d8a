"""The tiny model of the tests, for the scripts that try the same as they do."""

from pathlib import Path

from tests.conftest import LENGTH, PROMPT_WORDS, make_backbone
from transformers import CLIPTokenizer

from sefi.backbone.bundle import Backbone
from sefi.core.prompts import FACE_TEMPLATES
from tiny_portraits.text.tokenizing import build_tokenizer


def make_model(folder: Path) -> Backbone:
    """Make the model, always the same, with the tokenizer of a folder; where it holds none, one is trained."""
    if any(folder.glob("tokenizer*.json")):
        return make_backbone(CLIPTokenizer.from_pretrained(folder))
    words = {*PROMPT_WORDS, *" ".join(FACE_TEMPLATES).replace("{}", "").replace("-", " ").split()}
    folder.mkdir(parents=True, exist_ok=True)
    return make_backbone(build_tokenizer(folder, sorted(words), LENGTH))
