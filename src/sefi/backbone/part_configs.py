"""The configurations of UNet, VAE and text encoder: which fields are read, and within which bounds.

A configuration is input, not code to follow. Only the fields named here reach diffusers and transformers: no attention
implementation to fetch, no quantisation, no remote code. Defaults are those of the libraries, for files that leave
fields out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sefi.backbone.files import read_model_json
from sefi.backbone.kinds import REMEDY
from sefi.core.errors import BackboneError

DEFAULT_LATENT_SIZE = 64
MAX_LATENT_SIZE = 512
PIXEL_STEP = 8  # diffusers' pipelines generate no other sizes
INPAINTING_CHANNELS = {5: "a depth model?", 7: "an upscaler?", 8: "an editing model?", 9: "an inpainting model?"}

ADDED = "added conditions, as only SDXL has them"
# Fields of a UNet that must be empty (null, false, or a list of these), and what they would ask for.
UNSUPPORTED = {
    "class_embed_type": "class embeddings",
    "num_class_embeds": "class embeddings",
    "class_embeddings_concat": "class embeddings",
    "projection_class_embeddings_input_dim": "class embeddings",
    "addition_embed_type": ADDED,
    "addition_time_embed_dim": ADDED,
    "encoder_hid_dim": "a projected text or image condition",
    "encoder_hid_dim_type": "a projected text or image condition",
    "only_cross_attention": "cross-attention in the place of self-attention",
    "mid_block_only_cross_attention": "cross-attention in the place of self-attention",
    "dual_cross_attention": "two cross-attentions per layer",
    "cross_attention_norm": "a norm within the cross-attention",
    "num_attention_heads": "a number of heads apart from `attention_head_dim`",
    "reverse_transformer_layers_per_block": "other numbers of layers on the way up",
}

SIZE_CONDITIONS = 6  # numbers by which SDXL's UNet knows an image's original size, crop and target size

PER_BLOCK = (
    "down_block_types",
    "up_block_types",
    "layers_per_block",
    "attention_head_dim",
    "transformer_layers_per_block",
)

Channels = Annotated[int, Field(ge=4, le=4096)]
FewChannels = Annotated[int, Field(ge=1, le=64)]
Layers = Annotated[int, Field(ge=1, le=8)]
Heads = Annotated[int, Field(ge=1, le=512)]
Transformers = Annotated[int, Field(ge=1, le=12)]
Side = Annotated[int, Field(ge=1, le=MAX_LATENT_SIZE)]
Scale = Annotated[float, Field(gt=0, le=1000)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Groups = Annotated[int, Field(ge=1, le=512)]
Kernel = Literal[1, 3, 5, 7]
Activation = Literal["silu", "swish", "mish", "gelu", "relu"]
TextActivation = Literal["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"]
Width = Annotated[int, Field(ge=1, le=8192)]
InnerWidth = Annotated[int, Field(ge=1, le=32768)]
TransformerLayers = Annotated[int, Field(ge=1, le=64)]
TokenId = Annotated[int, Field(ge=0, lt=1_000_000)]
DownBlock = Literal["CrossAttnDownBlock2D", "DownBlock2D"]
UpBlock = Literal["CrossAttnUpBlock2D", "UpBlock2D"]
MidBlock = Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"]


class PartConfig(BaseModel):
    """Fields that are read; all others are passed over, and none is converted from another kind of value."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    def list_arguments(self) -> dict[str, Any]:
        """Return the fields that the file states, for the library's class."""
        return self.model_dump(exclude_unset=True)


class UNetConfig(PartConfig):
    """A `UNet2DConditionModel` of the Stable Diffusion kind."""

    unsupported: ClassVar[Mapping[str, str]] = UNSUPPORTED

    sample_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    in_channels: FewChannels = 4
    out_channels: FewChannels = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[float, Field(ge=0, le=1)] = 0
    down_block_types: Annotated[list[DownBlock], Field(min_length=1, max_length=6)] = [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ]
    mid_block_type: MidBlock | None = "UNetMidBlock2DCrossAttn"
    up_block_types: Annotated[list[UpBlock], Field(min_length=1, max_length=6)] = [
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    ]
    block_out_channels: Annotated[list[Channels], Field(min_length=1, max_length=6)] = [320, 640, 1280, 1280]
    layers_per_block: Layers | list[Layers] = 2
    downsample_padding: Annotated[int, Field(ge=0, le=1)] = 1
    mid_block_scale_factor: Scale = 1
    dropout: Share = 0.0
    act_fn: Activation = "silu"
    norm_num_groups: Groups = 32
    norm_eps: Epsilon = 1e-5
    cross_attention_dim: Width = 1280
    transformer_layers_per_block: Transformers | list[Transformers] = 1
    attention_head_dim: Heads | list[Heads] = 8
    use_linear_projection: bool = False
    upcast_attention: bool | None = False  # null in SDXL's published file
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: Scale = 1.0
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Annotated[int, Field(ge=2, le=8192)] | None = None
    time_embedding_act_fn: Activation | None = None
    timestep_post_act: Activation | None = None
    time_cond_proj_dim: Annotated[int, Field(ge=4, le=8192)] | None = None
    conv_in_kernel: Kernel = 3
    conv_out_kernel: Kernel = 3
    attention_type: Literal["default"] = "default"

    @model_validator(mode="before")
    @classmethod
    def refuse_unsupported(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse fields that ask for inputs or layers that neither learning nor generation knows."""
        for name, meaning in cls.unsupported.items():
            if not _is_empty(values.get(name)):
                raise ValueError(f"`{name}` asks for {meaning}, which is not supported")
        return values

    @model_validator(mode="after")
    def check_blocks(self) -> Self:
        """Refuse lists that do not fit the blocks, and a UNet that reads no text."""
        blocks = len(self.block_out_channels)
        for name in PER_BLOCK:
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != blocks:
                raise ValueError(f"`{name}` has {len(value)} entries for {blocks} blocks of `block_out_channels`")
        check_groups(self.block_out_channels, self.norm_num_groups)
        heads = self.attention_head_dim
        per_block = heads if isinstance(heads, list) else [heads] * blocks
        for number, channels in zip(per_block, self.block_out_channels, strict=True):
            if number > channels:
                raise ValueError(f"`attention_head_dim` asks for {number} heads of {channels} channels")
        if not any("CrossAttn" in kind for kind in (*self.down_block_types, *self.up_block_types)):
            raise ValueError("`down_block_types` and `up_block_types` hold no block that reads text")
        return self


ADDITIONS = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")


class SDXLUNetConfig(UNetConfig):
    """The `UNet2DConditionModel` of SDXL, which also reads the pooled text and the image's sizes."""

    unsupported: ClassVar[Mapping[str, str]] = {n: m for n, m in UNSUPPORTED.items() if n not in ADDITIONS}

    addition_embed_type: Literal["text_time"]
    addition_time_embed_dim: Annotated[int, Field(ge=2, le=8192)]
    projection_class_embeddings_input_dim: Annotated[int, Field(ge=1, le=65536)]


class VAEConfig(PartConfig):
    """An `AutoencoderKL` whose latents are scaled by one number."""

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: Annotated[list[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]], Field(max_length=6)] = [
        "DownEncoderBlock2D"
    ]
    up_block_types: Annotated[list[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]], Field(max_length=6)] = [
        "UpDecoderBlock2D"
    ]
    block_out_channels: Annotated[list[Channels], Field(min_length=1, max_length=6)] = [64]
    layers_per_block: Layers = 1
    act_fn: Activation = "silu"
    latent_channels: FewChannels = 4
    norm_num_groups: Groups = 32
    sample_size: Annotated[int, Field(ge=1, le=8192)] | list[Annotated[int, Field(ge=1, le=8192)]] | None = 32
    scaling_factor: Scale | None = 0.18215
    shift_factor: float | None = None
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def check_blocks(self) -> Self:
        """Refuse lists that do not fit the blocks, and latents that are shifted."""
        blocks = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != blocks:
                raise ValueError(f"`{name}` must have {blocks} entries, as many as `block_out_channels`")
        check_groups(self.block_out_channels, self.norm_num_groups)
        if self.shift_factor or any(self.latents_mean or ()):
            raise ValueError("`shift_factor` and `latents_mean` shift the latents, which is not supported")
        if any(value != 1 for value in self.latents_std or ()):
            raise ValueError("`latents_std` scales every channel by itself, which is not supported")
        return self

    def list_arguments(self) -> dict[str, Any]:
        """Return the stated fields; a size is for tiling alone, and null stands for the default."""
        ignored = ("sample_size", "shift_factor", "latents_mean", "latents_std")
        stated = {name: value for name, value in super().list_arguments().items() if name not in ignored}
        return {name: value for name, value in stated.items() if value is not None}


class TransformerConfig(PartConfig):
    """A part whose heads share its width."""

    hidden_size: Width
    num_attention_heads: Heads

    @model_validator(mode="after")
    def check_heads(self) -> Self:
        """Refuse heads that do not divide the width."""
        check_heads(self.hidden_size, self.num_attention_heads)
        return self


class TextConfig(TransformerConfig):
    """A `CLIPTextModel`."""

    vocab_size: Annotated[int, Field(ge=3, le=1_000_000)] = 49408
    hidden_size: Width = 512
    intermediate_size: InnerWidth = 2048
    num_hidden_layers: TransformerLayers = 12
    num_attention_heads: Heads = 8
    max_position_embeddings: Annotated[int, Field(ge=3, le=1024)] = 77
    hidden_act: TextActivation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_dropout: Share = 0.0
    projection_dim: Width | None = 512
    bos_token_id: TokenId | None = 49406
    eos_token_id: TokenId | None = 49407
    pad_token_id: TokenId | None = 1


class VisionConfig(TransformerConfig):
    """The image tower of a `CLIPModel`."""

    hidden_size: Width = 768
    intermediate_size: InnerWidth = 3072
    projection_dim: Width = 512
    num_hidden_layers: TransformerLayers = 12
    num_attention_heads: Heads = 12
    num_channels: Literal[3] = 3
    image_size: Annotated[int, Field(ge=1, le=1024)] = 224
    patch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    hidden_act: TextActivation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_dropout: Share = 0.0


class ClipConfig(PartConfig):
    """A `CLIPModel`: text and image tower."""

    text_config: TextConfig = Field(default_factory=TextConfig)
    vision_config: VisionConfig = Field(default_factory=VisionConfig)
    projection_dim: Width = 512
    logit_scale_init_value: Annotated[float, Field(ge=-10, le=10)] = 2.6592


class DinoConfig(TransformerConfig):
    """A `Dinov2Model`: an image tower alone."""

    hidden_size: Width = 768
    num_hidden_layers: TransformerLayers = 12
    num_attention_heads: Heads = 12
    mlp_ratio: Annotated[int, Field(ge=1, le=16)] = 4
    hidden_act: TextActivation = "gelu"
    layer_norm_eps: Epsilon = 1e-6
    image_size: Annotated[int, Field(ge=1, le=1024)] = 224
    patch_size: Annotated[int, Field(ge=1, le=1024)] = 14
    num_channels: Literal[3] = 3
    qkv_bias: bool = True
    layerscale_value: Scale = 1.0
    use_swiglu_ffn: bool = False
    use_mask_token: bool = True


Config = TypeVar("Config", bound=PartConfig)


def _is_empty(value: object) -> bool:
    return value is None or value is False or (isinstance(value, list) and all(_is_empty(one) for one in value))


def check_groups(channels: list[int], groups: int) -> None:
    """Check that the groups of a group norm divide every block's channels."""
    for number in channels:
        if number % groups:
            raise ValueError(f"`norm_num_groups` is {groups}, which does not divide {number} channels")


def check_heads(width: int, heads: int) -> None:
    """Check that the heads divide the width."""
    if width % heads:
        raise ValueError(f"`num_attention_heads` is {heads}, which does not divide {width}")


def read_unet_config(path: Path, kind: type[UNetConfig] = UNetConfig) -> UNetConfig:
    """Read a UNet's `config.json`; `BackboneError` names the field at fault."""
    return validate_part_config(kind, path, _read_class_config(path, "UNet2DConditionModel"))


def read_vae_config(path: Path) -> VAEConfig:
    """Read a VAE's `config.json`; `BackboneError` names the field at fault."""
    return validate_part_config(VAEConfig, path, _read_class_config(path, "AutoencoderKL"))


def read_text_config(path: Path) -> TextConfig:
    """Read a text encoder's `config.json`; `BackboneError` names the field at fault."""
    values = read_model_json(path)
    if values.get("model_type") == "clip" and isinstance(values.get("text_config"), dict):
        values = {"model_type": "clip_text_model"} | values["text_config"]
    if values.get("model_type", "clip_text_model") not in ("clip_text_model", "clip"):
        raise BackboneError(f"{path}: `model_type` is {quote_value(values['model_type'])}, not CLIP.", REMEDY)
    return validate_part_config(TextConfig, path, values)


def read_clip_config(path: Path) -> ClipConfig:
    """Read a CLIP's `config.json`; `BackboneError` names the field at fault."""
    return validate_part_config(ClipConfig, path, read_model_json(path))


def read_dino_config(path: Path) -> DinoConfig:
    """Read a DINOv2's `config.json`; `BackboneError` names the field at fault."""
    values = read_model_json(path)
    if values.get("model_type") != "dinov2":
        raise BackboneError(f"{path}: `model_type` is {quote_value(values.get('model_type'))}, not dinov2.", REMEDY)
    return validate_part_config(DinoConfig, path, values)


def _read_class_config(path: Path, name: str) -> dict[str, Any]:
    values = read_model_json(path)
    if values.get("_class_name", name) != name:
        raise BackboneError(f"{path}: `_class_name` is {quote_value(values['_class_name'])}, not {name}.", REMEDY)
    return values


def validate_part_config(kind: type[Config], path: Path, values: Mapping[str, Any]) -> Config:
    """Validate the fields of a configuration.

    Raises:
        BackboneError: a value of another kind or out of range; names file and field.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors()[0]
        message = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:
            raise BackboneError(f"{path}: {message}.", REMEDY) from error
        field, value = _place(values, fault["loc"])
        raise BackboneError(f"{path}: `{field}` is {quote_value(value)}: {message}.", REMEDY) from error


def _place(values: object, location: tuple[int | str, ...]) -> tuple[str, object]:
    """Return the name of a field, dots between, and its value; pydantic's location also names alternatives."""
    names: list[str] = []
    for part in location:
        if not (isinstance(values, dict) and part in values):
            break
        names.append(str(part))
        values = values[part]
    return ".".join(names), values


def quote_value(value: object) -> str:
    """Shorten a value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def compute_latent_size(unet: UNetConfig, vae: VAEConfig, unet_file: Path) -> int:
    """Return the side of a latent at the trained size: the UNet's, else the VAE's size, else 64.

    Raises:
        BackboneError: images of the trained size are not square, or the sampler cannot draw them.
    """
    factor = 2 ** (len(vae.block_out_channels) - 1)
    side = _get_stated_side(unet, unet_file)
    if side is None:
        stated = vae.sample_size if "sample_size" in vae.model_fields_set else None
        pixels = stated[0] if isinstance(stated, list) and len(set(stated)) == 1 else stated
        fits = isinstance(pixels, int) and pixels % factor == 0 and pixels % PIXEL_STEP == 0
        side = min(pixels // factor, MAX_LATENT_SIZE) if fits else DEFAULT_LATENT_SIZE
    if side * factor % PIXEL_STEP:
        raise BackboneError(
            f"{unet_file}: `sample_size` is {side}, which stands for images of {side * factor} pixels; "
            f"diffusers generates multiples of {PIXEL_STEP}.",
            REMEDY,
        )
    return side


def _get_stated_side(unet: UNetConfig, unet_file: Path) -> int | None:
    """Return the UNet's side where it states one; refuses images that are not square."""
    size = unet.sample_size
    if not isinstance(size, list):
        return size
    if size[0] != size[1]:
        raise BackboneError(f"{unet_file}: `sample_size` is {size}, and only square images are learned.", REMEDY)
    return size[0]


def check_fit(unet: UNetConfig, vae: VAEConfig, texts: Sequence[TextConfig], unet_file: Path) -> None:
    """Refuse a UNet that reads other latents or texts than the other parts make; names the field.

    Args:
        texts: those of the text encoders, whose states ride side by side.
    """
    for name in ("in_channels", "out_channels"):
        channels = getattr(unet, name)
        if channels != vae.latent_channels:
            guess = INPAINTING_CHANNELS.get(channels, "an inpainting model?")
            raise BackboneError(
                f"{unet_file}: `{name}` is {channels}, and the VAE's latents have {vae.latent_channels} ({guess}).",
                "Use the text-to-image model of the same family.",
            )
    widths = [text.hidden_size for text in texts]
    if unet.cross_attention_dim != sum(widths):
        encoders = "text encoder's width is" if len(widths) == 1 else "text encoders' widths are"
        raise BackboneError(
            f"{unet_file}: `cross_attention_dim` is {unet.cross_attention_dim}, and the {encoders} "
            f"{' and '.join(map(str, widths))}.",
            REMEDY,
        )
    if isinstance(unet, SDXLUNetConfig):
        check_conditions(unet, texts[-1], unet_file)


def check_conditions(unet: SDXLUNetConfig, text: TextConfig, unet_file: Path) -> None:
    """Refuse an SDXL UNet that reads another pooled text than the second encoder's, or another number of sizes.

    The refiner reads five sizes.
    """
    pooled, size = text.projection_dim or 0, unet.addition_time_embed_dim
    expected = SIZE_CONDITIONS * size + pooled
    if unet.projection_class_embeddings_input_dim != expected:
        raise BackboneError(
            f"{unet_file}: `projection_class_embeddings_input_dim` is {unet.projection_class_embeddings_input_dim}; "
            f"{SIZE_CONDITIONS} sizes of {size} and the pooled text of {pooled} are {expected}.",
            REMEDY,
        )
