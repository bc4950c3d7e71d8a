"""Cross-attention of every word of a prompt while one image is generated."""

from dataclasses import dataclass, replace

import torch
from PIL.Image import Image
from torch import Tensor

from sefi.backbone.bundle import Backbone, TextEncoding
from sefi.core.config import GenerateSettings, check_guidance
from sefi.core.progress import Progress
from sefi.diffusion.attention import AttentionRecorder, average_word_maps
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import ConditionedModel, build_pipeline, check_size, get_latent_size, sample_batch
from sefi.diffusion.schedulers import check_steps
from sefi.diffusion.text import apply_weights, encode_reference, join_texts


@dataclass(frozen=True)
class PromptAttention:
    """Attention of one image, averaged over steps, layers and heads.

    Attributes:
        words: one readable word per token, start and end of each chunk included, padding left out.
        maps: `[word, height, width]`, for the prompt with its identities.
        reference_maps: the same for the class word's prompt, with the same queries.
        placeholders: positions of the placeholders in `words`.
        image: the generated image.
    """

    words: tuple[str, ...]
    maps: Tensor
    reference_maps: Tensor
    placeholders: tuple[int, ...]
    image: Image


class ReferenceConditioner:
    """A conditioner that carries the class word's text as a third part of the context."""

    def __init__(self, inner: IdentityConditioner, prompt: str) -> None:
        self.inner = inner
        parsed = inner.parse(prompt)
        with torch.no_grad():
            plain = encode_reference(inner.backbone, [parsed], inner.class_words)
            self.reference = apply_weights(inner.backbone, plain, parsed)

    def get_context_key(self, timestep: int) -> int:
        """Return the inner conditioner's stage."""
        return self.inner.get_context_key(timestep)

    def count_chunks(self, prompt: str) -> int:
        """Return how many chunks a prompt has."""
        return self.inner.count_chunks(prompt)

    def encode_prompts(self, prompts: list[str], timestep: int) -> TextEncoding:
        """Encode prompts and the reference, states `[batch, word, 3 * width]`."""
        context = self.inner.encode_prompts(prompts, timestep)
        return join_texts(context, self.reference.expand(len(context.states)))

    def encode_negative(self, count: int, negative_prompt: str) -> TextEncoding:
        """Encode the negative prompt, which is its own reference, states `[count, word, 3 * width]`."""
        context = self.inner.encode_negative(count, negative_prompt)
        text, _ = context.states.chunk(2, dim=-1)
        return replace(context, states=torch.cat([context.states, text], dim=-1))


class MapCollector:
    """The recorder's maps of the prompt after every step; a negative prompt's, where there is one, come before it."""

    def __init__(self, recorder: AttentionRecorder, size: tuple[int, int]) -> None:
        self.recorder, self.size = recorder, size
        self.maps: list[Tensor] = []
        self.reference: list[Tensor] = []

    def collect(self) -> None:
        """Take the maps of the step that just ended out of the recorder."""
        self.maps.append(average_word_maps(self.recorder, self.size)[-1])
        self.reference.append(average_word_maps(self.recorder, self.size, reference=True)[-1])
        self.recorder.clear()


def record_attention(
    backbone: Backbone,
    conditioner: IdentityConditioner,
    prompt: str,
    seed: int,
    settings: GenerateSettings,
    progress: Progress,
) -> PromptAttention:
    """Generate one image and record the attention of its words.

    Raises:
        ConfigError: more steps than the model has timesteps, a size that it does not generate, or a negative prompt
            that nothing uses.
    """
    check_guidance(settings, embeds_guidance=backbone.embeds_guidance)
    check_steps(backbone, settings.steps)
    check_size(backbone, settings)
    latent_size = get_latent_size(backbone, settings)
    parsed, recorder = conditioner.parse(prompt), AttentionRecorder(keep_maps=True, latent_size=latent_size)
    collector = MapCollector(recorder, (max(1, latent_size[0] // 2), max(1, latent_size[1] // 2)))

    def after_step() -> None:
        collector.collect()
        progress.advance()

    progress.start(settings.steps, "generating")
    pipeline = build_pipeline(backbone, settings, recorder)
    model = ConditionedModel(backbone, ReferenceConditioner(conditioner, prompt))
    image = sample_batch(model, pipeline, [prompt], [seed], settings, after_step)[0]
    progress.finish()
    maps_of_both = (collector.maps, collector.reference)
    maps, reference = (torch.stack(m).mean(0)[list(parsed.word_places)].cpu() for m in maps_of_both)
    places = tuple(sorted(parsed.word_places.index(p) for places in parsed.places.values() for p in places))
    return PromptAttention(parsed.words, maps, reference, places, image)
