"""One part of a model: its weights found, checked against the configuration and loaded; copies that share them."""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone, copy_part
from sefi.backbone.files import LIMITS, read_model_json, read_or_refuse, read_weights_header
from sefi.core.errors import BackboneError, IdentityError
from sefi.core.own_files import make_temporary_folder
from sefi.core.reading import FLOATS, Layout
from sefi.core.text import dump_json

Part = TypeVar("Part", bound=nn.Module)

# Parts that some method changes, where a model has them.
PARTS = ("unet", "text_encoder", "text_encoder_2")
# The layers of an attention that have weights, by their names in diffusers.
ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
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
            files = _find_variant_files(where, stem, variant)
            if files:
                return _check_weights(stem, files)
    raise _make_no_weights_error(where)


def _find_variant_files(where: Path, stem: str, variant: str) -> list[Path]:
    """Return the one file of a variant, or its shards; none if there is no such variant."""
    single = where / f"{stem}{variant}.safetensors"
    if single.exists():
        return [single]
    for name in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"):
        if (where / name).exists():
            return _list_shards(where / name)
    return []


def _list_shards(index: Path) -> list[Path]:
    """Return the shards that an index names; of the index nothing else is believed."""
    named = read_model_json(index).get("weight_map")
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


def _check_weights(stem: str, files: list[Path]) -> Weights:
    headers = tuple(read_weights_header(file) for file in files)
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


def _make_no_weights_error(where: Path) -> BackboneError:
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
    with make_temporary_folder() as clean:
        _prepare_folder(weights, config, clean)
        model, report = read_or_refuse(
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

    needed = read_or_refuse(where / "config.json", count)
    if needed > weights.count:
        raise BackboneError(
            f"{where / 'config.json'} describes {needed:,} weights, and the files hold {weights.count:,}.",
            "The file is incomplete or of another model: copy or download the model again.",
        )


def _prepare_folder(weights: Weights, config: Mapping[str, Any], clean: Path) -> None:
    """Write configuration, links to the weights and, for shards, an index made from their headers."""
    (clean / "config.json").write_text(dump_json(dict(config)), encoding="utf-8")
    count = len(weights.files)
    names = [f"{weights.stem}-{k:05}-of-{count:05}.safetensors" for k in range(1, count + 1)]
    if count == 1:
        names = [f"{weights.stem}.safetensors"]
    for file, name in zip(weights.files, names, strict=True):
        _place_link(file.resolve(), clean / name)
    if count > 1:
        placed = {key: name for header, name in zip(weights.headers, names, strict=True) for key in header.shapes}
        size = sum(file.stat().st_size for file in weights.files)
        index = {"metadata": {"total_size": size}, "weight_map": placed}
        (clean / f"{weights.stem}.safetensors.index.json").write_text(dump_json(index), encoding="utf-8")


def _place_link(file: Path, place: Path) -> None:
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


# ------------------------------------------------------------------ copies with other weights


def copy_with_weights(backbone: Backbone, weights: Mapping[str, Tensor]) -> Backbone:
    """Return a copy of a model in which some parameters hold other values; it shares all others.

    Args:
        weights: by part and parameter name (`unet....`, `text_encoder....`); cast to the part's dtype and moved
            to its device.

    Raises:
        IdentityError: the model has no such parameter, or one of another shape.
    """
    parameters = collect_parameters(backbone)
    for name, value in weights.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise IdentityError(
                f"This model has no weight {name!r} of shape {tuple(value.shape)}.",
                "Open the model that the identity was learned on.",
            )
    frozen = {name: nn.Parameter(v.to(parameters[name]), requires_grad=False) for name, v in weights.items()}
    return _copy_with_parameters(backbone, frozen)


def copy_for_training(backbone: Backbone, names: Iterable[str]) -> tuple[Backbone, dict[str, nn.Parameter]]:
    """Return a copy of a model whose weights of these names are its own and want gradients, and those weights.

    Args:
        names: of part and parameter, as `unet.conv_in.weight`.
    """
    parameters = collect_parameters(backbone)
    # In the usual order of memory, as files have them.
    trained = {
        name: nn.Parameter(parameters[name].detach().clone(memory_format=torch.contiguous_format)) for name in names
    }
    model = _copy_with_parameters(backbone, trained)
    for weight in trained.values():
        weight.requires_grad = True  # a Backbone freezes what it is made of
    return model, trained


def collect_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Collect every parameter that a method can change, by part and name: `unet....`, `text_encoder....`."""
    parts = _get_parts(backbone)
    return {f"{part}.{name}": weight for part in parts for name, weight in parts[part].named_parameters()}


def _copy_with_parameters(backbone: Backbone, weights: Mapping[str, nn.Parameter]) -> Backbone:
    """Return a copy of a model with other parameters in it."""
    parameters = collect_parameters(backbone)
    replaced = {id(parameters[name]): weight for name, weight in weights.items()}
    copies = {name: copy_part(part, replaced) for name, part in _get_parts(backbone).items()}
    return replace(backbone, **copies)


def _get_parts(backbone: Backbone) -> dict[str, nn.Module]:
    networks = backbone.networks
    return {name: networks[name] for name in PARTS if name in networks}


def select_part_tensors(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Select the tensors of one part (`unet`, `text_encoder` ...), by their names in it."""
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}


def list_cross_attention_weights(unet: nn.Module, layers: Iterable[str]) -> list[str]:
    """List the weights of these layers (`to_k`, `to_v`, ...) in every cross-attention, biases included."""
    endings = tuple(f"attn2.{layer}." for layer in layers)
    return [name for name, _ in unet.named_parameters() if any(layer in name for layer in endings)]
