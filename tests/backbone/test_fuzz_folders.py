"""Model folders and files with random faults: they open, or a `BackboneError` says why not, in bounded time and memory.

`SEFI_FUZZ_TRIES` sets the number of tries, `SEFI_FUZZ_SEED` the first seed.
"""

import json
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.fuzz.changes import change_bytes, change_json, change_weights

from sefi.backbone import checkpoint
from sefi.backbone.bundle import ModelParts
from sefi.backbone.checkpoint import CONFIGS, write_checkpoint
from sefi.backbone.open import open_backbone
from sefi.core.errors import BackboneError

TRIES = int(os.environ.get("SEFI_FUZZ_TRIES", "300"))
FIRST_SEED = int(os.environ.get("SEFI_FUZZ_SEED", "0"))
SECONDS, BYTES = 10, 1 << 30

CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": change_json,
    ".txt": change_bytes,
    ".safetensors": change_weights,
}


def change_file(path: Path, chance: random.Random) -> None:
    path.write_bytes(CHANGES[path.suffix](path.read_bytes(), chance))


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def opens(source: Path, about: str) -> bool:
    """Whether a model opens; anything but a `BackboneError`, ten seconds or a gigabyte fails the test."""
    started, before = time.process_time(), peak_memory()
    try:
        open_backbone(str(source))
        opened = True
    except BackboneError as error:
        opened = False
        about = f"{about}: {error.problem} {error.remedy}"
    except BaseException as error:
        pytest.fail(f"{about}: {type(error).__name__}: {error}")
    assert time.process_time() - started < SECONDS, about
    assert peak_memory() - before < BYTES, about
    return opened


@pytest.fixture(scope="module")
def originals(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tiny model as it is written today, and with shards and the tokenizer's older files."""
    older = Path(shutil.copytree(folder, tmp_path_factory.mktemp("older") / "model"))
    whole = older / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    placed: dict[str, str] = {}
    for part in (0, 1):
        name = f"diffusion_pytorch_model-{part + 1:05}-of-00002.safetensors"
        some = {key: value for k, (key, value) in enumerate(sorted(tensors.items())) if k % 2 == part}
        save_file(some, whole.with_name(name), {"format": "pt"})
        placed |= dict.fromkeys(some, name)
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    whole.unlink()
    words = older / "tokenizer" / "tokenizer.json"
    model = json.loads(words.read_text())["model"]
    (older / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    (older / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])))
    flags = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    (older / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": "a</w>", "eos_token": flags}))
    (older / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<|startoftext|>": 0}))
    words.unlink()
    return [folder, older]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_folders_with_faults_open_or_are_refused(originals: list[Path], tmp_path: Path) -> None:
    for original in originals:
        open_backbone(str(original))
    outcomes = {True: 0, False: 0}
    for seed in range(FIRST_SEED, FIRST_SEED + TRIES):
        chance = random.Random(seed)
        model = Path(shutil.copytree(originals[seed % 2], tmp_path / str(seed)))
        files = sorted(path for path in model.rglob("*") if path.suffix in CHANGES)
        chosen = chance.choice(files)
        change_file(chosen, chance)
        outcomes[opens(model, f"seed {seed}, {chosen.relative_to(model)}")] += 1
        shutil.rmtree(model)
    # Neither all faults pass nor is everything refused.
    assert min(outcomes.values()) > TRIES / 20, outcomes


@pytest.mark.slow
def test_single_files_with_faults_open_or_are_refused(
    sd1_parts: ModelParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = Path(shutil.copytree(CONFIGS / "sd1", tmp_path / "configs" / "sd1"))
    sd1_parts.unet.save_config(configs / "unet")
    sd1_parts.vae.save_config(configs / "vae")
    sd1_parts.text_encoder.config.save_pretrained(configs / "text_encoder")
    monkeypatch.setattr(checkpoint, "CONFIGS", configs.parent)
    path = tmp_path / "model.safetensors"
    write_checkpoint(sd1_parts, path)
    open_backbone(str(path))
    content = path.read_bytes()
    for seed in range(FIRST_SEED, FIRST_SEED + max(20, TRIES // 10)):
        path.write_bytes(change_weights(content, random.Random(seed)))
        opens(path, f"seed {seed}")
