"""One call of every part at its smallest size, so that a model that cannot be used is refused when it is opened."""

from typing import cast

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.core.errors import BackboneError
from sefi.core.reading import reason_of

PROMPT = "a photo"
REMEDY = "Use a Stable Diffusion 1.x or 2.x model."
WIDER = "Open it in float32 or bfloat16, or copy or download the model again."


def check_calls(backbone: Backbone) -> None:
    """Encode a prompt, predict noise, decode and encode; no gradient, a few latent cells.

    Raises:
        BackboneError: a part fails, or answers in another shape or with numbers that are not finite.
    """
    side = 2 ** max(1, len(backbone.unet.config["block_out_channels"]) - 1)
    latents = torch.linspace(-1, 1, backbone.latent_channels * side * side, device=backbone.device)
    latents = latents.reshape(1, backbone.latent_channels, side, side).to(backbone.dtype)
    part = "text encoder"
    try:
        with torch.no_grad():
            states = _text_states(backbone)
            _check(backbone, part, states, (1, states.shape[1], backbone.width))
            part = "UNet"
            t = torch.tensor([backbone.num_train_timesteps // 2], device=backbone.device)
            _check(backbone, part, backbone.predict(latents, t, states), tuple(latents.shape))
            part = "VAE"
            few = latents[..., :2, :2]
            pixels = backbone.decode(few)
            _check(backbone, part, pixels, (1, 3, 2 * backbone.latent_factor, 2 * backbone.latent_factor))
            _check(backbone, part, backbone.encode_image(pixels), tuple(few.shape))
    except BackboneError:
        raise
    except Exception as error:
        raise BackboneError(f"The {part} of '{backbone.source}' fails: {reason_of(error)}.", REMEDY) from error


def _text_states(backbone: Backbone) -> Tensor:
    tokenizer = backbone.tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    chosen = torch.tensor([ids[: backbone.text_length]], device=backbone.device)
    return cast(Tensor, backbone.text_encoder(chosen).last_hidden_state)


def _check(backbone: Backbone, part: str, answer: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(answer.shape) != shape:
        raise BackboneError(f"The {part} of '{backbone.source}' answers {tuple(answer.shape)}, not {shape}.", REMEDY)
    if not torch.isfinite(answer).all():
        number = str(backbone.dtype).removeprefix("torch.")
        raise BackboneError(f"The {part} of '{backbone.source}' gives numbers that are not finite in {number}.", WIDER)
