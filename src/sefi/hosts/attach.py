"""Identities in a diffusers pipeline of the user's own: hooks on its UNet, and text embeddings for its calls.

All stages' key and value texts travel in the `prompt_embeds` that the pipeline is called with, side by side on the last
axis; a hook on the UNet picks the stage by the timestep, hooks on `attn2.to_k` and `attn2.to_v` pick the half. Nothing
of a call stays in the modules, so threads and identities share a pipeline, and every sampler, size, ControlNet, adapter
or attention processor works as before. Calls with texts of the usual width pass through unchanged.
"""

import inspect
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, cast

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sefi.backbone.bundle import Backbone, ModelParts, TextEncoding, compute_fingerprint, join_batches
from sefi.backbone.folder import parse_noise_settings
from sefi.backbone.kinds import detect_family
from sefi.core.errors import BackboneError
from sefi.diffusion.conditioning import IdentityConditioner, compare_model, pad_texts
from sefi.diffusion.sampling import list_text_arguments
from sefi.diffusion.text import join_texts
from sefi.identity.file import Identity

HALVES = {"to_k": 0, "to_v": 1}
NEEDED = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
_lock = threading.RLock()  # hooks are added and removed by one thread at a time


def attach(pipe: Any, *identities: Identity, strength: float = 1.0) -> "Attachment":  # noqa: ANN401
    """Attach identities to a diffusers pipeline of Stable Diffusion 1.x, 2.x or XL, until `detach` or the block's end.

    Args:
        pipe: any pipeline with a UNet: text to image, image to image, inpainting, ControlNet ...
        identities: who the names in prompts are.
        strength: 0 is the class word, 1 what was learned.

    Raises:
        BackboneError: the pipeline is of another kind, or its parts are wrapped (offloading).
        IdentityError: an identity of another family of models, or two of one name.

    >>> with attach(pipe, ada) as handle:  # doctest: +SKIP
    ...     image = pipe(**handle.encode("a photo of <ada> at the beach")).images[0]
    """
    backbone = view_pipeline(pipe)
    conditioner = IdentityConditioner(backbone, identities, strength)
    remarks = [compare_model(backbone, identity) for identity in identities]
    counts = [len(tokens) for tokens in conditioner.stage_tokens.values()]
    attachment = Attachment(conditioner, [], math.lcm(*counts), tuple(r for r in remarks if r is not None))
    try:
        for module in list_denoisers(pipe):
            attachment.denoisers.append(HookedDenoiser.hook(module, backbone))
    except BaseException:
        attachment.detach()  # hooks of the modules before the one that failed
        raise
    return attachment


@dataclass
class Attachment(AbstractContextManager["Attachment"]):
    """Identities attached to a pipeline.

    Attributes:
        remarks: what a user should know, as that an identity was learned on another checkpoint.
    """

    conditioner: IdentityConditioner
    denoisers: list["HookedDenoiser"]
    stages: int
    remarks: tuple[str, ...] = ()

    def encode(self, prompt: str | Sequence[str], negative: str | Sequence[str] = "") -> dict[str, Tensor]:
        """Encode prompts for a pipeline's call: `prompt_embeds`, `negative_prompt_embeds`, and the pooled ones of SDXL.

        Every embedding is `[prompt, word, stages * 2 * width]`.

        Args:
            prompt: one or several, with `<name>` for every identity.
            negative: what to avoid, without names; one for all or one for each.

        Raises:
            PromptError: an unknown name, or a prompt that does not fit.
            BackboneError: the identities are detached already.
        """
        if not self.denoisers:
            raise BackboneError("The identities are detached.", "Attach them again: sefi.attach(pipe, ...).")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
        avoided = [self.conditioner.encode_negative(1, text) for text in negatives]
        null = join_batches(pad_texts(self.conditioner, avoided))
        total = self.conditioner.backbone.num_train_timesteps
        # The middle of each stage: any of its timesteps would do.
        steps = [(2 * stage + 1) * total // (2 * self.stages) for stage in range(self.stages)]
        positive = [self.conditioner.encode_prompts(prompts, step) for step in steps]
        null, *positive = pad_texts(self.conditioner, [null, *positive])
        dtype = self.conditioner.backbone.dtype
        negative_arguments = list_text_arguments(join_stages([null] * len(steps)).to(dtype))
        return {
            **list_text_arguments(join_stages(positive).to(dtype)),
            **{f"negative_{name}": value for name, value in negative_arguments.items()},
        }

    def detach(self) -> None:
        """Remove the hooks; the pipeline is what it was."""
        while self.denoisers:
            self.denoisers.pop().release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def join_stages(encodings: Sequence[TextEncoding]) -> TextEncoding:
    """Return the texts of all stages side by side on the last axis, states and pooled text."""
    pooled = [one.pooled for one in encodings if one.pooled is not None]
    return replace(join_texts(*encodings), pooled=torch.cat(pooled, dim=-1) if pooled else None)


def view_pipeline(pipe: Any) -> Backbone:  # noqa: ANN401
    """Return the parts of a pipeline as a model, and leave them as they are: no gradient is stopped, no mode changed.

    Raises:
        BackboneError: it has no UNet, or text encoders of another kind.
    """
    missing = [name for name in NEEDED if getattr(pipe, name, None) is None]
    if missing:
        raise BackboneError(
            f"A {type(pipe).__name__} without {' and '.join(missing)} cannot take identities.",
            "Use a pipeline of Stable Diffusion 1.x, 2.x or XL with all its parts.",
        )
    second = getattr(pipe, "text_encoder_2", None)
    width = int(pipe.unet.config["cross_attention_dim"])
    parts: dict[str, Any] = {
        "tokenizer": pipe.tokenizer, "text_encoder": pipe.text_encoder, "vae": pipe.vae, "unet": pipe.unet,
        # Its noise is the model's, whatever sampler it is of.
        "scheduler": DDPMScheduler(**parse_noise_settings(pipe.scheduler.config)),
        "family": detect_family(width) if second is None else "sdxl",
        "tokenizer_2": None if second is None else pipe.tokenizer_2, "text_encoder_2": second,
    }  # fmt: skip
    model = ModelParts(**parts)
    return Backbone(
        **parts,
        fingerprint=compute_fingerprint(model),
        resolution=model.trained_resolution,
        source=str(pipe.name_or_path),
        freezes=False,
    )


def list_denoisers(pipe: Any) -> list[nn.Module]:  # noqa: ANN401
    """List the networks of a pipeline that read its texts: the UNet and its ControlNets."""
    control = getattr(pipe, "controlnet", None)
    nets = getattr(control, "nets", None)
    return [pipe.unet, *([] if control is None else [control] if nets is None else nets)]


@dataclass
class HookedDenoiser:
    """A UNet or ControlNet with hooks; attachments of one pipeline share them, and the last one removes them."""

    module: nn.Module
    names: tuple[str, ...]  # of the parameters of its `forward`
    width: int
    pooled: int | None
    total: int
    hooks: dict[int, RemovableHandle]
    users: int = 0

    @staticmethod
    def hook(module: nn.Module, backbone: Backbone) -> "HookedDenoiser":
        """Return the hooked module; hooks are added where there are none yet."""
        with _lock:
            if module not in _hooked:
                second = backbone.text_encoder_2
                denoiser = HookedDenoiser(
                    module,
                    names=tuple(inspect.signature(module.forward).parameters),
                    width=int(cast(Any, module).config["cross_attention_dim"]),
                    pooled=None if second is None else int(cast(Any, second).config.projection_dim),
                    total=backbone.num_train_timesteps,
                    hooks={},
                )
                denoiser.hooks[id(module)] = module.register_forward_pre_hook(denoiser.choose_stage, with_kwargs=True)
                _hooked[module] = denoiser
            _hooked[module].users += 1
            return _hooked[module]

    def release(self) -> None:
        """Remove the hooks when nobody uses them any more."""
        with _lock:
            self.users -= 1
            if not self.users:
                for handle in self.hooks.values():
                    handle.remove()
                _hooked.pop(self.module, None)

    def choose_stage(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Replace the texts of all stages by those of the timestep's."""
        values = dict(zip(self.names, args, strict=False)) | kwargs
        texts = values.get("encoder_hidden_states")
        if not isinstance(texts, Tensor) or texts.shape[-1] % (2 * self.width):
            return None  # texts of the usual width
        self.hook_layers()
        count = texts.shape[-1] // (2 * self.width)
        timestep = torch.as_tensor(values["timestep"]).flatten().double()
        stages = (count * timestep / self.total).floor().long().clamp(0, count - 1).expand(len(texts))
        values["encoder_hidden_states"] = select_stage(texts, stages, 2 * self.width)
        conditions = values.get("added_cond_kwargs")
        if self.pooled is not None and conditions is not None:
            pooled = select_stage(conditions["text_embeds"], stages, self.pooled)
            values["added_cond_kwargs"] = {**conditions, "text_embeds": pooled}
        return (), values

    def hook_layers(self) -> None:
        """Hook the layers that make keys and values; a layer may have been replaced meanwhile, as LoRA does."""
        for name, layer in self.module.named_modules():
            half = HALVES.get(name.rpartition(".")[2])
            if half is None or ".attn2." not in name or id(layer) in self.hooks:
                continue
            with _lock:
                if id(layer) not in self.hooks:
                    self.hooks[id(layer)] = layer.register_forward_pre_hook(make_half_hook(half, self.width))


def select_stage(packed: Tensor, stages: Tensor, size: int) -> Tensor:
    """Select each row's stage from `[batch, ..., stages * size]`."""
    if bool((stages == stages[0]).all()):
        start = int(stages[0]) * size
        return packed[..., start : start + size]
    return torch.stack([row[..., s * size : (s + 1) * size] for row, s in zip(packed, stages.tolist(), strict=True)])


def make_half_hook(half: int, width: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
    """Make a hook that gives a layer the key text (0) or the value text (1) of both side by side."""

    def choose_half(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if args[0].shape[-1] != 2 * width:
            return None
        return (args[0][..., half * width : (half + 1) * width], *args[1:])

    return choose_half


_hooked: dict[nn.Module, HookedDenoiser] = {}
