"""Identities in a diffusers pipeline of the user's own: hooks on its UNet, and text embeddings for its calls.

All stages' key and value texts travel in the `prompt_embeds` that the pipeline is called with, side by side on the last
axis; a hook on the UNet picks the stage by the timestep, hooks on `attn2.to_k` and `attn2.to_v` pick the half. Nothing
of a call stays in the modules, so threads and identities share a pipeline, and every sampler, size, ControlNet, adapter
or attention processor works as before. Calls with texts of the usual width pass through unchanged.
"""

import inspect
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from itertools import product
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sefi.backbone.bundle import Backbone, TextEncoding, join_batches
from sefi.core.config import LARGEST_STRENGTH, refuse_negative_prompt
from sefi.core.errors import BackboneError, ConfigError, IdentityError, PromptError, check_type
from sefi.core.prompts import refuse_names
from sefi.diffusion.conditioning import IdentityConditioner, RecentEncodings, list_identity_remarks, pad_texts
from sefi.diffusion.sampling import list_text_arguments
from sefi.diffusion.text import join_texts
from sefi.hosts.pipeline import (
    has_negative_argument,
    is_negative_read,
    list_denoisers,
    lock_calls,
    read_text_width,
    release_calls,
    view_pipeline,
)
from sefi.hosts.stage_words import (
    StageTextParts,
    TextEncoder,
    check_equal_lengths,
    copy_text_parts,
    encode_stage,
    expand_loaded_words,
)
from sefi.identity.file import Identity, check_tokens_alone
from sefi.identity.tokens import get_stages
from sefi.provenance.consent import check_consents

HALVES = {"to_k": 0, "to_v": 1}
LAYERS = (*HALVES, "to_kv")  # the last one makes both, where projections are fused
TOKENS_REMEDY = (
    "Use sefi.generate; pipelines load what `sefi export --to diffusers` makes of a LoRA or Custom Diffusion."
)
HOOKED = "_sefi_hooked_denoiser"  # the attribute of a hooked module; no table outside, which would keep it for ever
_lock = threading.RLock()  # hooks are added and removed by one thread at a time


def attach(
    pipe: Any,  # noqa: ANN401
    *identities: Identity,
    strength: float = 1.0,
    clip_skip: int | None = None,
    expired_consent: bool = False,
) -> "Attachment":
    """Attach identities to a diffusers pipeline of Stable Diffusion 1.x, 2.x or XL, until `detach` or the block's end.

    Args:
        pipe: any pipeline with a UNet: text to image, image to image, inpainting, ControlNet ...
        identities: who the names in prompts are.
        strength: 0 is the class word, 1 what was learned, 2 the most.
        clip_skip: the text encoder's layer as AUTOMATIC1111 counts: 1 or None the usual, 2 the one before (diffusers'
            `clip_skip=1`, which has no effect on texts that are given).
        expired_consent: go on although the consent that an identity states has expired.

    Raises:
        ConfigError: such a consent has expired, or strength or clip_skip is no number or out of range.
        BackboneError: the pipeline is of another kind, or its parts are wrapped (offloading).
        IdentityError: an identity of another family of models, one that is more than tokens, two of one name, or
            numbers of stages that have no small common multiple.

    >>> with attach(pipe, ada) as handle:  # doctest: +SKIP
    ...     image = pipe(**handle.encode("a photo of <ada> at the beach")).images[0]
    """
    for one in identities:
        check_type(one, Identity, "The identity", IdentityError, "Give each one by itself, read with Identity.load.")
    check_tokens_alone(identities, TOKENS_REMEDY)
    check_strength(strength)
    check_type(clip_skip, (int, type(None)), "clip_skip", ConfigError, "Give 1 or 2.")
    if not expired_consent:
        check_consents({one.name: one.header.consent for one in identities})
    backbone = view_pipeline(pipe).skip_layers(clip_skip)
    conditioner = IdentityConditioner(backbone, identities, strength)
    remarks = list_identity_remarks(backbone, identities)
    attachment = Attachment(pipe, conditioner, [], count_packed_stages(conditioner), tuple(remarks))
    denoisers = list_denoisers(pipe)
    lock_calls(pipe)
    try:
        for module in denoisers:
            attachment.denoisers.append(HookedDenoiser.hook(module, backbone))
    except BaseException:
        attachment.detach()  # hooks of the modules before the one that failed
        raise
    return attachment


def check_strength(strength: object) -> None:
    """Refuse a strength that is no number from 0 to 2, with `ConfigError`."""
    remedy = "Give a number from 0 to 2: 0 is the class word, 1 what was learned."
    check_type(strength, (int, float), "The strength", ConfigError, remedy)
    if not 0 <= cast(float, strength) <= LARGEST_STRENGTH:  # false for NaN too
        raise ConfigError(f"A strength of {strength:g} is out of range.", remedy)


def count_packed_stages(conditioner: IdentityConditioner) -> int:
    """Return how many stages the texts of a call have: the least common multiple of the identities' numbers of stages.

    Raises:
        IdentityError: it is larger than the model's number of timesteps; names the identities.
    """
    counts = {name: len(tokens) for name, tokens in conditioner.stage_tokens.items()}
    packed, total = math.lcm(*counts.values()), conditioner.backbone.num_train_timesteps
    if packed > total:
        listed = ", ".join(f"{name!r} has {count}" for name, count in counts.items() if count > 1)
        raise IdentityError(
            f"The stages of these identities have no common multiple up to the model's {total} timesteps: {listed}.",
            "Attach them one after the other, or learn them again with as many learn.stages each.",
        )
    return packed


@dataclass
class Attachment(AbstractContextManager["Attachment"]):
    """Identities attached to a pipeline.

    Attributes:
        remarks: what a user should know, as that an identity was learned on another checkpoint.
    """

    pipe: Any
    conditioner: IdentityConditioner
    denoisers: list["HookedDenoiser"]
    stages: int
    remarks: tuple[str, ...] = ()
    attached: bool = True

    def encode(
        self,
        prompt: str | Sequence[str],
        negative: str | Sequence[str] | None = "",
        encoder: TextEncoder | None = None,
    ) -> dict[str, Tensor]:
        """Encode prompts for a pipeline's call: `prompt_embeds`, `negative_prompt_embeds`, and the pooled ones of SDXL.

        Negative ones are left out where the call has no argument for them (`LatentConsistencyModelPipeline`).

        Every embedding is `[prompt, word, stages * 2 * width]`: one batch of one length. Prompts that are shorter than
        the longest go on with the empty prompt, which the pipeline reads too: with a prompt of more than 75 tokens the
        images of the others are not those that they have alone. Encode prompts of different lengths in calls of their
        own. What the pipeline has loaded meanwhile (a textual inversion, a LoRA of the text encoder) counts.

        Args:
            prompt: one or several, with `<name>` for every identity.
            negative: what to avoid, without names; one for all or one for each. None is the empty text.
            encoder: encodes a text instead, as compel does, with the parts of `copy_text_parts`: text to states
                `[1, word, width]`, of SDXL to states and pooled text.

        Raises:
            PromptError: an unknown name, a prompt that does not fit, what is no text, no prompt, or not as many
                negative prompts.
            ConfigError: an encoder is given, and `clip_skip` was; or a negative prompt that this pipeline never reads.
            BackboneError: the identities are detached already.
        """
        self.check_attached()
        prompts, negatives = pair_texts(prompt, negative)
        if self.conditioner.backbone.embeds_guidance and not is_negative_read(self.pipe):
            refuse_negative_prompt("".join(negatives))
        # Texts encoded before are forgotten: the text encoder may have changed.
        conditioner = copy(self.conditioner)
        conditioner.encodings, conditioner.negative_encodings = RecentEncodings(), RecentEncodings()
        total = conditioner.backbone.num_train_timesteps
        # The first of each stage: any of its timesteps would do.
        steps = [-(-stage * total // self.stages) for stage in range(self.stages)]
        if encoder is None:
            expanded, avoided = (
                [expand_loaded_words(self.pipe, text) for text in texts] for texts in (prompts, negatives)
            )
            negative_texts = [conditioner.encode_negative(1, text) for text in avoided]
            null = join_batches(pad_texts(conditioner, negative_texts))
            positive = [conditioner.encode_prompts(expanded, step) for step in steps]
            null, *positive = pad_texts(conditioner, [null, *positive])
        else:
            null, positive = encode_elsewhere(conditioner, encoder, prompts, negatives, steps)
        # The text encoder's, as pipelines cast texts; a UNet's weights may be stored in a coarser one (float8).
        dtype = conditioner.backbone.token_tables[-1].dtype
        arguments = list_text_arguments(join_stages(positive).to(dtype))
        if has_negative_argument(self.pipe):
            negative_arguments = list_text_arguments(join_stages([null] * len(steps)).to(dtype))
            arguments |= {f"negative_{name}": value for name, value in negative_arguments.items()}
        return arguments

    def copy_text_parts(self) -> StageTextParts:
        """Copy the pipeline's tokenizers and text encoders, with words for the identities' vectors, for an `encoder`.

        Raises:
            BackboneError: the identities are detached already.
        """
        self.check_attached()
        return copy_text_parts(self.conditioner)

    def check_attached(self) -> None:
        """Refuse to go on after `detach`.

        Raises:
            BackboneError: the identities are detached already.
        """
        if not self.attached:
            raise BackboneError("The identities are detached.", "Attach them again: sefi.attach(pipe, ...).")

    def detach(self) -> None:
        """Remove the hooks; the pipeline is what it was."""
        while self.denoisers:
            self.denoisers.pop().release()
        if self.attached:
            self.attached = False
            release_calls(self.pipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def pair_texts(prompt: object, negative: object) -> tuple[list[str], list[str]]:
    """Return prompts, and the negative prompt of each.

    Raises:
        PromptError: one is no text, there is none, or there are not as many of both.
    """
    prompts = list_texts(prompt, "The prompt")
    if not prompts:
        raise PromptError("There is no prompt to encode.", "Give a text, or a list of texts.")
    if negative is None or isinstance(negative, str):
        return prompts, [negative or ""] * len(prompts)
    negatives = list_texts(negative, "The negative prompt")
    if len(negatives) != len(prompts):
        raise PromptError(
            f"There are {len(prompts)} prompts and {len(negatives)} negative prompts.",
            "Give one negative prompt for all, or one for each.",
        )
    return prompts, negatives


def list_texts(given: object, what: str) -> list[str]:
    """Return a text, or several, as a list; `PromptError` for anything else."""
    remedy = "Give a text, or a list of texts."
    check_type(given, (str, Iterable), what, PromptError, remedy)
    texts = [given] if isinstance(given, str) else list(cast(Iterable[object], given))
    for text in texts:
        check_type(text, str, what, PromptError, remedy)
    return cast(list[str], texts)


def encode_elsewhere(
    conditioner: IdentityConditioner,
    encoder: TextEncoder,
    prompts: Sequence[str],
    negatives: Sequence[str],
    steps: Sequence[int],
) -> tuple[TextEncoding, list[TextEncoding]]:
    """Encode negative texts, and prompts at each of the timesteps, by another program.

    Raises:
        PromptError: an unknown name, or texts of different lengths.
        ConfigError: the identities are attached with an earlier layer of the text encoder.
    """
    for text in negatives:
        refuse_names(text)
    check_usual_layer(conditioner)
    avoided = [encode_stage(conditioner, encoder, text, 0) for text in negatives]
    encoded: dict[tuple[str, int], TextEncoding] = {}  # neighbouring steps of few stages have one text
    for step, prompt in product(steps, prompts):
        key = (prompt, conditioner.get_context_key(step))
        if key not in encoded:
            encoded[key] = encode_stage(conditioner, encoder, prompt, step)
    check_equal_lengths(list(encoded.values()), avoided)
    null = join_batches(avoided)
    return null, [join_batches([encoded[prompt, conditioner.get_context_key(s)] for prompt in prompts]) for s in steps]


def check_usual_layer(conditioner: IdentityConditioner) -> None:
    """Refuse an earlier layer of the text encoder, which only the program that encodes can choose.

    Raises:
        ConfigError: it is not the usual one.
    """
    clip_skip = conditioner.backbone.clip_skip
    if clip_skip != 1:
        raise ConfigError(
            f"The identities are attached with clip_skip={clip_skip}, which an encoder of your own does not know.",
            "Attach without clip_skip, and let the encoder read that layer.",
        )


def join_stages(encodings: Sequence[TextEncoding]) -> TextEncoding:
    """Return the texts of all stages side by side on the last axis, states and pooled text."""
    pooled = [one.pooled for one in encodings if one.pooled is not None]
    return replace(join_texts(*encodings), pooled=torch.cat(pooled, dim=-1) if pooled else None)


@dataclass
class HookedDenoiser:
    """A UNet or ControlNet with hooks; attachments of one pipeline share them, and the last one removes them."""

    module: nn.Module
    names: tuple[str, ...]  # of the parameters of its `forward`
    width: int
    pooled: int | None
    total: int
    attentions: tuple[nn.Module, ...]  # its cross-attention
    hooks: dict[nn.Module, RemovableHandle]
    users: int = 0

    @staticmethod
    def hook(module: nn.Module, backbone: Backbone) -> "HookedDenoiser":
        """Return the hooked module; hooks are added where there are none yet."""
        with _lock:
            denoiser = HookedDenoiser.find(module)
            if denoiser is None:
                second = backbone.text_encoder_2
                denoiser = HookedDenoiser(
                    module,
                    names=tuple(inspect.signature(module.forward).parameters),
                    width=read_text_width(module),
                    pooled=None if second is None else int(cast(Any, second).config.projection_dim),
                    total=backbone.num_train_timesteps,
                    attentions=tuple(part for name, part in module.named_modules() if name.endswith("attn2")),
                    hooks={},
                )
                denoiser.hooks[module] = module.register_forward_pre_hook(denoiser.choose_stage, with_kwargs=True)
                setattr(module, HOOKED, denoiser)
            denoiser.users += 1
            return denoiser

    @staticmethod
    def find(module: nn.Module) -> "HookedDenoiser | None":
        """Return what hooks this very module; None where nothing does, as for a copy that took the hooks along."""
        found = vars(module).get(HOOKED)
        return found if isinstance(found, HookedDenoiser) and found.module is module else None

    def __deepcopy__(self, _memo: object) -> "HookedDenoiser":
        """Return itself: nothing is attached to the copy of a module."""
        return self

    def release(self) -> None:
        """Remove the hooks when nobody uses them any more."""
        with _lock:
            self.users -= 1
            if not self.users:
                for handle in self.hooks.values():
                    handle.remove()
                vars(self.module).pop(HOOKED, None)

    def choose_stage(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Replace the texts of all stages by those of the timestep's."""
        if self.find(module) is not self:
            return None  # a copy that took the hooks along: nothing was attached to it
        values = dict(zip(self.names, args, strict=False)) | kwargs
        texts = values.get("encoder_hidden_states")
        if not isinstance(texts, Tensor) or texts.shape[-1] % (2 * self.width):
            return None  # texts of the usual width
        self.hook_layers()
        count = texts.shape[-1] // (2 * self.width)
        # Samplers have timesteps in between; each counts as the whole one below, as in `get_stage`.
        timesteps = torch.as_tensor(values["timestep"]).flatten().long()
        stages = get_stages(timesteps, count, self.total).expand(len(texts))
        values["encoder_hidden_states"] = select_stage(texts, stages, 2 * self.width)
        conditions = values.get("added_cond_kwargs")
        if self.pooled is not None and conditions is not None:
            pooled = select_stage(conditions["text_embeds"], stages, self.pooled)
            values["added_cond_kwargs"] = {**conditions, "text_embeds": pooled}
        return (), values

    def hook_layers(self) -> None:
        """Hook the layers that make keys and values; a layer may have been replaced meanwhile, as LoRA does."""
        layers = [(kind, getattr(attention, kind, None)) for attention, kind in product(self.attentions, LAYERS)]
        missing = [(kind, layer) for kind, layer in layers if isinstance(layer, nn.Module) and layer not in self.hooks]
        for kind, layer in missing:
            hook = make_half_hook(HALVES[kind], self.width) if kind in HALVES else make_refusal(self.width)
            with _lock:
                if layer not in self.hooks and self.find(self.module) is self:
                    self.hooks[layer] = layer.register_forward_pre_hook(hook)


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


def make_refusal(width: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Make a hook that refuses key and value text side by side, where one layer makes both keys and values."""

    def refuse_both(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].shape[-1] == 2 * width:
            raise BackboneError(
                "The pipeline's projections are fused, so keys and values read one text.",
                "Call pipe.unfuse_qkv_projections() first.",
            )

    return refuse_both
