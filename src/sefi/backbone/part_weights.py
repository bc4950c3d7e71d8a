"""The weights of one part of a model folder: found, checked against the configuration, loaded."""

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sefi.backbone.files import LIMITS, guarded, read_header, read_json
from sefi.core.errors import BackboneError
from sefi.core.json_text import dump_json
from sefi.core.reading import FLOATS, Layout

Part = TypeVar("Part", bound=nn.Module)

# Names that diffusers and transformers give to a part's weights, most precise first.
STEMS = ("diffusion_pytorch_model", "model")
VARIANTS = ("", ".fp32", ".bf16", ".fp16", ".ema", ".non_ema")
PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth")
MAX_SHARDS = 64
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{0,199}")


@dataclass(frozen=True)
class Weights:
    """The safetensors files of one part.

    Attributes:
        stem: `diffusion_pytorch_model` or `model`.
        files: the files, one or several shards.
        headers: their headers, in this order.
    """

    stem: str
    files: tuple[Path, ...]
    headers: tuple[Layout, ...]

    @property
    def count(self) -> int:
        """Number of stored values."""
        return sum(torch.Size(shape).numel() for header in self.headers for shape in header.shapes.values())


def find_weights(where: Path) -> Weights:
    """Find a part's safetensors files and check their headers.

    The plain file or its shards come first; a folder that holds one variant only (`fp16`, `bf16`, `non_ema`) is read
    as well. Files whose names begin with a dot, such as those that macOS leaves, are passed over.

    Raises:
        BackboneError: no weights, pickled weights only, or a damaged or strange file.
    """
    for stem in STEMS:
        for variant in VARIANTS:
            files = _files_of(where, stem, variant)
            if files:
                return _checked_weights(stem, files)
    raise _no_weights(where)


def _files_of(where: Path, stem: str, variant: str) -> list[Path]:
    """Return the one file of a variant, or its shards; none if there is no such variant."""
    single = where / f"{stem}{variant}.safetensors"
    if single.exists():
        return [single]
    for name in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"):
        if (where / name).exists():
            return _shards(where / name)
    return []


def _shards(index: Path) -> list[Path]:
    """Return the shards that an index names; of the index nothing else is believed."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise BackboneError(f"{index}: `weight_map` must map every weight to a file.", "Copy the model again.")
    names = sorted(set(named.values()))
    if not names or len(names) > MAX_SHARDS or len(named) > LIMITS.tensors:
        raise BackboneError(
            f"{index}: `weight_map` names {len(named):,} weights in {len(names):,} files; "
            f"at most {LIMITS.tensors:,} in {MAX_SHARDS}.",
            "Copy the model again.",
        )
    for name in names:
        if not (PLAIN_NAME.fullmatch(name) and name.endswith(".safetensors")):
            raise BackboneError(
                f"{index}: `weight_map` names {name[:80]!r}, which is no safetensors file beside it.",
                "Do not use this model: its index leads elsewhere.",
            )
    return [index.with_name(name) for name in names]


def _checked_weights(stem: str, files: list[Path]) -> Weights:
    headers = tuple(read_header(file) for file in files)
    for file, header in zip(files, headers, strict=True):
        refuse_other_numbers(file, header)
    if sum(len(header.shapes) for header in headers) > LIMITS.tensors:
        raise BackboneError(f"{files[0].parent} holds more than {LIMITS.tensors:,} tensors.", "Copy the model again.")
    return Weights(stem, tuple(files), headers)


def refuse_other_numbers(file: Path, header: Layout) -> None:
    """Refuse quantised weights: a matrix must hold floating point numbers. Positions and counters may be whole."""
    for name, dtype in header.dtypes.items():
        if dtype not in FLOATS and len(header.shapes[name]) > 1 and not name.endswith("position_ids"):
            raise BackboneError(
                f"{file}: '{name[:80]}' is stored as {dtype}, so these weights are quantised.",
                "Use the model in float32, float16 or bfloat16.",
            )


def _no_weights(where: Path) -> BackboneError:
    if not where.is_dir():
        return BackboneError(f"There is no folder {where}.", "Copy or download the model again.")
    others = sorted(path.name for path in where.glob("[!.]*.safetensors"))
    if others:
        return BackboneError(
            f"{where} holds {others[0]}, which is not a name of diffusers.",
            f"Rename the weights to {STEMS[0]}.safetensors, or model.safetensors for a text encoder.",
        )
    if any(path for pattern in PICKLED for path in where.glob(f"[!.]{pattern}")):
        return BackboneError(
            f"{where} holds pickled weights only, which may run code when opened.",
            "Convert the model to safetensors (`pipeline.save_pretrained(..., safe_serialization=True)`).",
        )
    return BackboneError(f"{where} holds no weights.", "Copy or download the model again, as safetensors.")


def load_part(cls: type[Part], where: Path, config: Mapping[str, Any], dtype: torch.dtype, **options: object) -> Part:
    """Build a part from a checked configuration and load its weights.

    The library reads a folder of our own making: our configuration, and links to the weights. So nothing else that
    lies in the model's folder has a say.

    Args:
        cls: a model class of diffusers or transformers.
        where: the part's folder.
        config: the arguments of the class, with what the library needs to know it by.
        options: further arguments of `from_pretrained`.

    Raises:
        BackboneError: the weights are missing, damaged, of other shapes or not finite.
    """
    weights = find_weights(where)
    loader: Any = cls  # diffusers and transformers share this call, but no base class
    _check_count(cls, where, config, weights)
    with tempfile.TemporaryDirectory(prefix="sefi-") as clean:
        _stage(weights, config, Path(clean))
        model, report = guarded(
            where,
            lambda: loader.from_pretrained(
                clean,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            ),
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise BackboneError(
            f"{where} lacks {len(missing)} weights, such as {missing[0]}.",
            "The file is incomplete: copy or download the model again.",
        )
    check_finite(model, where)
    return model


def _check_count(cls: Any, where: Path, config: Mapping[str, Any], weights: Weights) -> None:  # noqa: ANN401
    """Refuse a configuration that asks for more values than are stored, before any of them is allocated."""

    def count() -> int:
        with torch.device("meta"):
            model = cls.from_config(config) if hasattr(cls, "from_config") else cls(cls.config_class(**config))
        return sum(weight.numel() for weight in model.parameters())

    needed = guarded(where / "config.json", count)
    if needed > weights.count:
        raise BackboneError(
            f"{where / 'config.json'} describes {needed:,} weights, and the files hold {weights.count:,}.",
            "The file is incomplete or of another model: copy or download the model again.",
        )


def _stage(weights: Weights, config: Mapping[str, Any], clean: Path) -> None:
    """Write configuration, links to the weights and, for shards, an index made from their headers."""
    (clean / "config.json").write_text(dump_json(dict(config)), encoding="utf-8")
    count = len(weights.files)
    names = [f"{weights.stem}-{k:05}-of-{count:05}.safetensors" for k in range(1, count + 1)]
    if count == 1:
        names = [f"{weights.stem}.safetensors"]
    for file, name in zip(weights.files, names, strict=True):
        _link(file.resolve(), clean / name)
    if count > 1:
        placed = {key: name for header, name in zip(weights.headers, names, strict=True) for key in header.shapes}
        size = sum(file.stat().st_size for file in weights.files)
        index = {"metadata": {"total_size": size}, "weight_map": placed}
        (clean / f"{weights.stem}.safetensors.index.json").write_text(dump_json(index), encoding="utf-8")


def _link(file: Path, place: Path) -> None:
    try:
        place.symlink_to(file)
    except OSError:  # Windows asks for a right to make links
        shutil.copyfile(file, place)


def check_finite(model: nn.Module, where: Path) -> None:
    """Refuse weights that are not finite, naming the first.

    Args:
        where: the file or folder that they come from.
    """
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise BackboneError(
                f"{where}: the weight '{name}' holds numbers that are not finite.",
                "Copy or download the model again, or use another one.",
            )
