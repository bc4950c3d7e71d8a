"""Stage tokens on a flow-matching transformer: a trial with a tiny random Z-Image of diffusers.

    python experiments/flow_matching.py            # writes experiments/records/flow_matching.json

Five tokens, one for each stage, replace a word's row in the text encoder's input; stages divide the noise level instead
of DDPM's timesteps. Learned with the flow-matching loss against the frozen model, then swapped between the steps of the
stock pipeline. Weights are random, so nothing is said about likeness. What is not there is the split into key and
value tokens: text and image are one sequence, and every block writes new text states, so there is no text that keys and
values could read apart. The trial measures that: how far the text's states after each block depend on the image.
"""

import argparse
from pathlib import Path
from typing import Any

import sefi  # noqa: F401  before torch, so that OpenMP threads sleep while they wait

# isort: split

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3Model

from sefi.core.files import write_text
from sefi.core.rng import create_generator
from sefi.core.text import dump_json

RECORD = Path(__file__).parent / "records" / "flow_matching.json"
STAGES, WORDS, PLACEHOLDER, VOCABULARY = 5, 11, 7, 97
TEXT_WIDTH, CHANNELS, SIDE = 24, 4, 8
PATCHES = 32  # the image's 16, padded as Z-Image does; the text comes behind them
STEPS, BATCH, LEARNING_RATE = 150, 10, 0.05
SAMPLING_STEPS = 17


def create_text_encoder() -> Qwen3Model:
    """Create a tiny random Qwen3, the text encoder of Z-Image and FLUX.2 klein."""
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=TEXT_WIDTH, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=3, num_key_value_heads=3, head_dim=8,
    )  # fmt: skip
    return Qwen3Model(config).eval().requires_grad_(requires_grad=False)


def create_transformer() -> ZImageTransformer2DModel:
    """Create a tiny random Z-Image transformer: text and image in one sequence."""
    model = ZImageTransformer2DModel(
        in_channels=CHANNELS, dim=48, n_layers=3, n_refiner_layers=1, n_heads=3, n_kv_heads=3,
        cap_feat_dim=TEXT_WIDTH, axes_dims=[4, 6, 6], axes_lens=[64, 32, 32],
    )  # fmt: skip
    for name, weight in model.named_parameters():
        # diffusers leaves them empty, for weights that are loaded.
        if name.endswith("pad_token"):
            nn.init.normal_(weight, std=0.02)
    return model.eval().requires_grad_(requires_grad=False)


def encode_words(encoder: Qwen3Model, ids: Tensor, rows: Tensor) -> Tensor:
    """Encode a prompt with a row in the place of the placeholder; `[batch, word, width]`, the layer before the last.

    Args:
        ids: `[word]`.
        rows: `[batch, width]`.
    """
    embedded = encoder.get_input_embeddings()(ids).expand(len(rows), -1, -1)
    place = torch.arange(len(ids)) == PLACEHOLDER
    replaced = torch.where(place[:, None], rows[:, None], embedded)
    return encoder(inputs_embeds=replaced, output_hidden_states=True).hidden_states[-2]


def find_stage(noise_level: Tensor) -> Tensor:
    """Find the stage of noise levels in [0, 1], 0 clean: `floor(stages * level)`, the last one closed."""
    return (STAGES * noise_level).long().clamp(max=STAGES - 1)


def predict_velocity(transformer: ZImageTransformer2DModel, noisy: Tensor, level: Tensor, texts: Tensor) -> Tensor:
    """Predict `noise - image` for latents `[batch, channel, h, w]` at noise levels `[batch]`."""
    answer = transformer(list(noisy.unsqueeze(2)), 1 - level, list(texts), return_dict=False)[0]
    return -torch.stack(list(answer)).squeeze(2)


def compute_loss(transformer: ZImageTransformer2DModel, image: Tensor, level: Tensor, texts: Tensor) -> Tensor:
    """Compute the flow-matching loss of an image `[channel, h, w]` at noise levels `[batch]`, always with one noise."""
    generator = create_generator(0, "flow noise")
    noise = torch.randn(len(level), *image.shape, generator=generator)
    share = level[:, None, None, None]
    target = noise - image
    return F.mse_loss(predict_velocity(transformer, (1 - share) * image + share * noise, level, texts), target)


def learn_stage_tokens(
    encoder: Qwen3Model, transformer: ZImageTransformer2DModel, image: Tensor, ids: Tensor
) -> tuple[Tensor, list[float]]:
    """Learn a token for every stage, `[stage, width]`; with the loss of every step."""
    tokens = encoder.get_input_embeddings().weight[ids[PLACEHOLDER]].expand(STAGES, -1).clone().requires_grad_()
    optimiser = torch.optim.AdamW([tokens], lr=LEARNING_RATE, weight_decay=0)
    # The same noise in every step: the fall of the loss is then learning, not chance.
    level = (torch.arange(BATCH) + 0.5) / BATCH
    losses: list[float] = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = compute_loss(transformer, image, level, encode_words(encoder, ids, tokens[find_stage(level)]))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return tokens.detach(), losses


def measure_stage_gradients(
    encoder: Qwen3Model, transformer: ZImageTransformer2DModel, image: Tensor, ids: Tensor, tokens: Tensor
) -> list[list[bool]]:
    """Return for a noise level of each stage which tokens get a gradient: its own, and no other."""
    reached: list[list[bool]] = []
    for stage in range(STAGES):
        rows = tokens.clone().requires_grad_()
        level = torch.tensor([(stage + 0.5) / STAGES])
        compute_loss(transformer, image, level, encode_words(encoder, ids, rows[find_stage(level)])).backward()
        assert rows.grad is not None
        reached.append([bool(one) for one in (rows.grad.abs().sum(1) > 0)])
    return reached


def count_wrong_texts(
    encoder: Qwen3Model, transformer: ZImageTransformer2DModel, ids: Tensor, tokens: Tensor
) -> tuple[int, int]:
    """Generate with the stock pipeline, texts swapped after steps; count calls, and those with another stage's text."""
    texts = encode_words(encoder, ids, tokens)
    seen: list[tuple[float, Tensor]] = []

    def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append((1 - float(args[1][0]), args[2][0]))

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4), latent_channels=CHANNELS, norm_num_groups=2, shift_factor=0.0,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = ZImagePipeline(scheduler, vae, encoder, None, transformer)  # pyright: ignore[reportArgumentType]
    pipeline.set_progress_bar_config(disable=True)

    def choose_text(timestep: Tensor) -> list[Tensor]:
        return [texts[int(find_stage(timestep / 1000))]]

    def swap(pipe: ZImagePipeline, step: int, _t: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        upcoming = pipe.scheduler.timesteps[step + 1 :]
        return {"prompt_embeds": choose_text(upcoming[0])} if len(upcoming) else state

    handle = transformer.register_forward_pre_hook(note)
    try:
        pipeline(
            prompt=None, prompt_embeds=choose_text(torch.tensor(1000.0)), negative_prompt_embeds=[texts[0] * 0],
            height=SIDE * 2, width=SIDE * 2, num_inference_steps=SAMPLING_STEPS, guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0), output_type="latent", callback_on_step_end=swap,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )  # fmt: skip
    finally:
        handle.remove()
    wrong = sum(not torch.equal(text, texts[int(find_stage(torch.tensor(level)))]) for level, text in seen)
    return len(seen), wrong


def measure_text_changes(transformer: ZImageTransformer2DModel, texts: Tensor) -> list[float]:
    """Return how far the text's states before each block depend on the image: relative change with another image."""
    states: list[list[Tensor]] = []
    handles = [
        layer.register_forward_pre_hook(
            lambda _module, args, n=n: states[n].append(args[0][0, PATCHES : PATCHES + WORDS].clone())
        )
        for n, layer in enumerate(transformer.layers)
    ]
    states += [[] for _ in handles]
    try:
        with torch.no_grad():
            for seed in (1, 2):
                noisy = torch.randn(1, CHANNELS, SIDE, SIDE, generator=create_generator(seed, "flow image"))
                predict_velocity(transformer, noisy, torch.tensor([0.5]), texts[:1])
    finally:
        for handle in handles:
            handle.remove()
    return [round(float((one - other).norm() / one.norm()), 4) for one, other in states]


def run_trial() -> dict[str, Any]:
    """Learn, generate, measure; returns what the record holds."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)  # of the random weights
        encoder, transformer = create_text_encoder(), create_transformer()
    before = [weight.clone() for weight in (*encoder.parameters(), *transformer.parameters())]
    image = torch.randn(CHANNELS, SIDE, SIDE, generator=create_generator(0, "flow photo"))
    ids = torch.randint(VOCABULARY, (WORDS,), generator=create_generator(0, "flow prompt"))
    tokens, losses = learn_stage_tokens(encoder, transformer, image, ids)
    gradients = measure_stage_gradients(encoder, transformer, image, ids, tokens)
    calls, wrong = count_wrong_texts(encoder, transformer, ids, tokens)
    after = (*encoder.parameters(), *transformer.parameters())
    return {
        "loss": {"first": round(losses[0], 4), "last": round(losses[-1], 4), "steps": STEPS},
        "tokens_differ_by_stage": len(torch.unique(tokens, dim=0)) == STAGES,
        "gradient_reaches_own_stage_only": gradients == torch.eye(STAGES, dtype=torch.bool).tolist(),
        "model_unchanged": all(torch.equal(one, other) for one, other in zip(before, after, strict=True)),
        "pipeline_calls": calls,
        "calls_with_another_stages_text": wrong,
        "text_states_depend_on_the_image": measure_text_changes(transformer, encode_words(encoder, ids, tokens)),
    }


def main() -> None:
    """Run the trial and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    record = run_trial()
    write_text(options.record, dump_json(record, indent=2) + "\n")
    print(dump_json(record, indent=2))


if __name__ == "__main__":
    main()
