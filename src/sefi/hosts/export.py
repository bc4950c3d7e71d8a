"""Write an identity as textual-inversion embeddings, with the prompt text that other programs read.

A textual-inversion file holds one embedding `[vector, width]` that is keys' and values' alike and the same at every
denoising step. An identity with stages therefore leaves as one such file for each stage, which a program switches while
it denoises, or as a single one, which every program reads. What either loses was measured on the embedded model
(experiments/export_loss.py): docs/hosts/export.md has the table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from diffusers import EulerDiscreteScheduler
from safetensors.torch import save_file
from torch import Tensor

from sefi.backbone.kinds import USUAL_PREDICTIONS
from sefi.core.errors import ConfigError, IdentityError
from sefi.core.files import FileKind, check_output, prepare_folder, write_output
from sefi.core.hints import suggest
from sefi.identity.file import Identity, Tensors, compute_identity_digest

Slot = Literal["key", "value", "mean"]
FLAT_SLOT: Slot = "value"  # the best single file and the best files of stages by experiments/export_loss.py
STAGE_SLOT: Slot = "mean"
# A1111 and Forge find an embedding by its words anywhere in a prompt, where a plain `ada` would be taken too.
PREFIX = "sefi-"
KEY = "emb_params"  # what every program reads
SDXL_KEYS = ("clip_l", "clip_g")  # of the two text encoders, for which SDXL has a tensor each
MODEL_SPEC = "1.0.1"  # of the metadata: https://github.com/Stability-AI/ModelSpec
# By the width of a token, as `library/sai_model_spec.py` of sd-scripts writes them.
SD2_ARCHITECTURE, SD2_BASE_ARCHITECTURE = "stable-diffusion-v2-768-v", "stable-diffusion-v2-512"
ARCHITECTURES = {768: "stable-diffusion-v1", 1024: SD2_ARCHITECTURE, 2048: "stable-diffusion-xl-v1-base"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # ModelSpec's words
FAMILIES = ("sd1", "sd2", "sdxl")  # of the models that other programs have
TIMESTEPS = 1000  # of Stable Diffusion
PROMPT = "a photo of {} at the beach"  # the example that users get


@dataclass(frozen=True)
class Embedding:
    """One textual-inversion file.

    Attributes:
        stem: the file's name without its ending, which is the word in prompts.
        vectors: `[vector, width]`, float32.
        first, last: timesteps that it is for.
        widths: of the parts of a vector for each text encoder, where there are two.
    """

    stem: str
    vectors: Tensor
    first: int
    last: int
    widths: tuple[int, ...] = ()

    @property
    def tensors(self) -> Tensors:
        """The tensors of its file by their names there, each `[vector, width]` of one text encoder."""
        return split_vectors(self.vectors, self.widths) or {KEY: self.vectors}


def split_vectors(vectors: Tensor, widths: Sequence[int]) -> Tensors:
    """Split vectors `[vector, width]` into those of each text encoder, by SDXL's names; none where there is but one."""
    parts = vectors.split(list(widths), dim=-1) if widths else ()
    return {name: part.contiguous() for name, part in zip(SDXL_KEYS, parts, strict=False)}


def make_flat_embedding(identity: Identity, slot: Slot = "value") -> Embedding:
    """Make the one embedding that stands for all stages: their mean, of the key tokens, the value tokens or both.

    Raises:
        IdentityError: the identity has no tokens.
    """
    vectors = choose_slot(identity, slot).mean(0)
    return Embedding(make_stem(identity), vectors, 0, TIMESTEPS - 1, identity.header.widths)


def make_stage_embeddings(identity: Identity, slot: Slot = "value") -> list[Embedding]:
    """Make an embedding for every stage, the least noisy first.

    Raises:
        IdentityError: the identity has no tokens, or but one stage.
    """
    tokens = choose_slot(identity, slot)
    if len(tokens) == 1:
        raise IdentityError(f"{identity.name!r} has one text for all stages.", "Leave out --stages.")
    # Stage s has the timesteps t with s = floor(stages * t / T).
    starts = [-(-stage * TIMESTEPS // len(tokens)) for stage in range(len(tokens) + 1)]
    return [
        Embedding(
            f"{make_stem(identity)}-s{stage + 1}", vectors, starts[stage], starts[stage + 1] - 1, identity.header.widths
        )
        for stage, vectors in enumerate(tokens)
    ]


def choose_slot(identity: Identity, slot: Slot) -> Tensor:
    """Return the tokens that stand for keys and values alike, `[stage, vector, width]`, float32 and contiguous."""
    keys, values = identity.stage_tokens.float().unbind(1)
    chosen = {"key": keys, "value": values, "mean": (keys + values) / 2}[slot]
    return chosen.detach().cpu().contiguous()


def make_stem(identity: Identity) -> str:
    """Return the stem of an identity's exported files, which is its word in prompts: letters, digits, - and _."""
    return PREFIX + identity.name


def make_metadata(identity: Identity, embedding: Embedding, slot: Slot) -> dict[str, str]:
    """Return what the file says about itself, by ModelSpec and by names of ours."""
    return make_model_metadata(identity, embedding.stem, "textual-inversion") | {
        "modelspec.trigger_phrase": embedding.stem,
        "modelspec.timestep_range": f"{embedding.first},{embedding.last}",
        "sefi.slot": slot,
    }


def make_model_metadata(identity: Identity, stem: str, kind: str) -> dict[str, str]:
    """Return what every exported file says about itself; `kind` is ModelSpec's, such as lora."""
    header, prediction = identity.header, find_prediction(identity)
    architecture = ARCHITECTURES.get(header.width, f"text-width-{header.width}")
    if architecture == SD2_ARCHITECTURE and prediction == "epsilon":
        architecture = SD2_BASE_ARCHITECTURE
    return {
        "format": "pt",
        "modelspec.sai_model_spec": MODEL_SPEC,
        "modelspec.architecture": f"{architecture}/{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": stem,
        **({"modelspec.prediction_type": PREDICTIONS[prediction]} if prediction in PREDICTIONS else {}),
        "sefi.base_model": header.base_model,
        "sefi.identity": compute_identity_digest(identity),
        "sefi.class_word": header.class_word,
        "sefi.method": header.method,
        **({"sefi.consent": header.consent} if header.consent else {}),
    }


def find_prediction(identity: Identity) -> str:
    """Return what the model of an identity predicts; empty where neither its header nor its family says it."""
    family = identity.header.base_model.partition(":")[0]
    return identity.header.prediction_type or USUAL_PREDICTIONS.get(family, "")


@dataclass(frozen=True)
class ExportedFile:
    """One safetensors file: its name without the ending, its tensors by name, and what it says about itself."""

    stem: str
    tensors: Tensors
    metadata: dict[str, str]


@dataclass(frozen=True)
class Exported:
    """What leaves for a program.

    Attributes:
        files: the files.
        prompt: what its user writes in the program's prompt, or how.
        folder: where the program looks for such files.
        advice: what else its user needs to know.
        stage_advice: the same of the prompt of a file for each stage.
    """

    files: tuple[ExportedFile, ...]
    prompt: str
    folder: str
    advice: str = ""
    stage_advice: str = ""


def list_embedding_files(identity: Identity, embeddings: Sequence[Embedding], slot: Slot) -> tuple[ExportedFile, ...]:
    """List the files of embeddings."""
    return tuple(ExportedFile(one.stem, one.tensors, make_metadata(identity, one, slot)) for one in embeddings)


def write_exported(files: Sequence[ExportedFile], folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write files atomically; return their paths.

    Args:
        overwrite: replace files of these names, where they are safetensors files and no identities.

    Raises:
        OutputError: a file of this name is there, or the folder cannot be written.
    """
    prepare_folder(folder)
    paths = [folder / f"{one.stem}.safetensors" for one in files]
    for path in paths:
        check_output(path, FileKind.SAFETENSORS, overwrite=overwrite, follow=False)
    for one, path in zip(files, paths, strict=True):
        write = partial(save_file, one.tensors, metadata=one.metadata)
        write_output(path, FileKind.SAFETENSORS, write, overwrite=overwrite, follow=False)
    return paths


# ------------------------------------------------------------------ prompts

StepSchedule = Literal["uniform", "karras", "exponential"]


@dataclass(frozen=True)
class Sampler:
    """A program's sampler: its noise schedule and its number of steps."""

    schedule: StepSchedule = "karras"
    steps: int = 20


StageFormat = Callable[[Sequence[Embedding], str, Sampler], str]
"""Formats what to write for embeddings, the least noisy stage first, given a program's word for one and its sampler."""


def list_timesteps(sampler: Sampler) -> list[float]:
    """List the timesteps of a program's sampler, noisiest first, for Stable Diffusion's noise schedule.

    Uniform: A1111's "normal" and "uniform", linear from the last timestep to 0. Karras et al. 2022, equation 5.
    Exponential: noise levels whose logarithms are evenly spaced.
    """
    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="linspace",
        use_karras_sigmas=sampler.schedule == "karras",
        use_exponential_sigmas=sampler.schedule == "exponential",
    )
    if sampler.steps == 1:  # programs make it from noise; diffusers' linspace would begin at 0
        return [float(TIMESTEPS - 1)]
    scheduler.set_timesteps(sampler.steps)
    return [float(timestep) for timestep in scheduler.timesteps]


def count_steps_before(embeddings: Sequence[Embedding], sampler: Sampler) -> list[int]:
    """Count the steps of the stages that come before each stage's end, the noisiest stage first.

    Whole numbers, because fractions of the steps put a third of Karras' steps into the wrong stage.
    """
    timesteps = list_timesteps(sampler)
    return [sum(timestep >= one.first for timestep in timesteps) for one in reversed(embeddings)]


def format_switching(embeddings: Sequence[Embedding], word: str, sampler: Sampler, first_step: int) -> str:
    """Format a prompt's part that changes words after whole numbers of steps: `[s5:[s4:s3:7]:4]`.

    A word is read up to the step of its number, that step included. A stage that the sampler never visits is left out.

    Args:
        first_step: the number that the program gives the first step.
    """
    ends = count_steps_before(embeddings, sampler)
    visited: list[tuple[str, int]] = []
    for one, end in zip(reversed(embeddings), ends, strict=True):
        if end > (visited[-1][1] if visited else 0):
            visited.append((word.format(one.stem), end))
    text = visited[-1][0]
    for before, end in reversed(visited[:-1]):
        last = first_step + end - 1
        if last > 0:  # programs take no notice of a number 0, so that a word for step 0 alone cannot be written
            text = f"[{before}:{text}:{last}]"
    return text


def format_webui_prompt(embeddings: Sequence[Embedding], word: str, sampler: Sampler) -> str:
    """Format a whole prompt for A1111 and Forge, which count steps from 0."""
    return PROMPT.format(format_switching(embeddings, word, sampler, first_step=0))


def format_sdnext_prompt(embeddings: Sequence[Embedding], word: str, sampler: Sampler) -> str:
    """Format a whole prompt for SD.Next, which counts steps from 1."""
    return PROMPT.format(format_switching(embeddings, word, sampler, first_step=1))


def describe_comfyui_ranges(embeddings: Sequence[Embedding], word: str, _sampler: Sampler) -> str:
    """Describe the nodes of ComfyUI for stages: a text and a range of each, joined by Conditioning (Combine).

    ComfyUI's percent p stands for timestep (1 - p) (T - 1), so a stage that starts at t begins at 1 - t / (T - 1).
    """
    lines = ["For each line a CLIP Text Encode and a ConditioningSetTimestepRange (start, end); join them with",
             "Conditioning (Combine):"]  # fmt: skip
    for one in reversed(embeddings):
        start, end = (1 - min(TIMESTEPS - 1, t) / (TIMESTEPS - 1) for t in (one.last + 0.5, one.first - 0.5))
        text = PROMPT.format(word.format(one.stem))
        lines.append(f"{max(0.0, start):.4f} {min(1.0, end):.4f}  {text}")
    return "\n".join(lines)


def describe_invokeai_ranges(embeddings: Sequence[Embedding], word: str, _sampler: Sampler) -> str:
    """Describe InvokeAI's graph for stages: a chain of Denoise Latents, each with its range and prompt."""
    lines = [
        "In the workflow editor chain one Denoise Latents for each line (denoising start, end), with its own prompt:"
    ]
    for one in reversed(embeddings):
        start, end = 1 - (one.last + 1) / TIMESTEPS, 1 - one.first / TIMESTEPS
        lines.append(f"{start:.4g} {end:.4g}  {PROMPT.format(word.format(one.stem))}")
    return "\n".join(lines)


def describe_diffusers_calls(embeddings: Sequence[Embedding], word: str, _sampler: Sampler) -> str:
    """Describe the calls of diffusers for stages: a token for each, encoded beforehand and swapped at step ends."""
    ranges = ", ".join(f"({one.first}, {one.last}): {word.format(one.stem)}" for one in reversed(embeddings))
    return f"{describe_diffusers_loading(embeddings, word)}\n# timesteps and words: {ranges}"


def describe_diffusers_loading(embeddings: Sequence[Embedding], word: str) -> str:
    """Describe the calls of diffusers that load embeddings."""
    imports = ["from safetensors.torch import load_file"] if embeddings[0].widths else []
    calls = [format_diffusers_loading(one.stem, word.format(one.stem), one.widths) for one in embeddings]
    return "\n".join([*imports, *calls])


def format_diffusers_loading(stem: str, token: str, widths: Sequence[int]) -> str:
    """Format the calls that load one file; one of two text encoders is loaded for each by itself."""
    path = f'f"{{FOLDER}}/{stem}.safetensors"'
    if not widths:
        return f'pipe.load_textual_inversion({path}, token="{token}")'
    first, second = SDXL_KEYS
    call = 'pipe.load_textual_inversion(state["{}"], token="{}", text_encoder=pipe.{}, tokenizer=pipe.{})'
    return "\n".join(
        [
            f"state = load_file({path})",
            call.format(first, token, "text_encoder", "tokenizer"),
            call.format(second, token, "text_encoder_2", "tokenizer_2"),
        ]
    )


@dataclass(frozen=True)
class Host:
    """A program that loads textual-inversion embeddings and LoRA files.

    Attributes:
        title: its name.
        folder: where it looks for embeddings.
        word: the words of an embedding in a prompt, `{}` for its file's stem.
        format_stages: what to write for an embedding of each stage; None where it cannot change words as it denoises.
        describe_loading: the calls that load embeddings, where its users write them.
        advice: what else its users need to know.
        stage_advice: the same of an embedding of each stage.
        lora_folder: where it looks for LoRA files.
        lora_prompt: what to write for a LoRA, `{stem}` for its file's stem, `{words}` for the subject.
        lora_advice: how to load one, where its prompt does not.
        reads_diffusers_lora: it gets LoRA files with the names of diffusers; the others with kohya's.
        reads_custom_diffusion: it reads weights of Custom Diffusion.
        families: of its models.
    """

    title: str
    folder: str
    word: str
    format_stages: StageFormat | None = None
    describe_loading: Callable[[Sequence[Embedding], str], str] | None = None
    advice: str = ""
    stage_advice: str = ""
    lora_folder: str = "models/Lora/"
    lora_prompt: str = "a photo of {words} at the beach <lora:{stem}:1>"
    lora_advice: str = ""
    reads_diffusers_lora: bool = False
    reads_custom_diffusion: bool = False
    families: tuple[str, ...] = FAMILIES


CLIP_SKIP = "Clip skip must be 1: tokens are learned on the text encoder's last layer."
FIRST_ORDER = "The prompt is for one pass of a sampler that calls the model once a step."
SECOND_ORDER = "DPM++ SDE, DPM++ 2S a, Heun, DPM2 and DPM2 a call it twice: double each number and add 1."
OTHER_RUNS = "Hires. fix and image to image need other numbers (docs/hosts/a1111-forge.md), or a single file."
WEBUI_STAGES = f"{FIRST_ORDER} {SECOND_ORDER} {OTHER_RUNS}"
SDNEXT_STAGES = f"{FIRST_ORDER} Export a single file for others."
IMPORT = "its model manager (import the file)"
PLAIN_LORA = "a photo of {words} at the beach"
HOSTS: dict[str, Host] = {
    "a1111": Host("AUTOMATIC1111 web UI", "embeddings/", "{}", format_webui_prompt, None, CLIP_SKIP, WEBUI_STAGES),
    "forge": Host("Forge and reForge", "embeddings/", "{}", format_webui_prompt, None, CLIP_SKIP, WEBUI_STAGES),
    "sdnext": Host("SD.Next", "models/embeddings/", "{}", format_sdnext_prompt, None, CLIP_SKIP, SDNEXT_STAGES),
    "comfyui": Host(
        "ComfyUI",
        "models/embeddings/",
        "embedding:{}",
        describe_comfyui_ranges,
        advice="Put a space before `embedding:`.",
        lora_folder="models/loras/",
        lora_prompt=PLAIN_LORA,
        lora_advice="Load the file with a Load LoRA node, strength_model 1.",
    ),
    "invokeai": Host(
        "InvokeAI",
        IMPORT,
        "<{}>",
        describe_invokeai_ranges,
        lora_folder=IMPORT,
        lora_prompt=PLAIN_LORA,
        lora_advice="Add the LoRA with weight 1.",
    ),
    "diffusers": Host(
        "diffusers",
        "any folder (FOLDER in these calls)",
        "<{}>",
        describe_diffusers_calls,
        describe_diffusers_loading,
        lora_folder="any folder (FOLDER in these calls)",
        lora_prompt='pipe.load_lora_weights(FOLDER, weight_name="{stem}.safetensors")\n# ' + PLAIN_LORA,
        reads_diffusers_lora=True,
        reads_custom_diffusion=True,
    ),
    "kohya": Host(
        "kohya-ss sd-scripts",
        "any folder (--textual_inversion_embeddings)",
        "{}",
        lora_folder="any folder",
        lora_prompt=PLAIN_LORA,
        lora_advice="Give the file with --network_module networks.lora --network_weights FILE.",
    ),
    "fooocus": Host(
        "Fooocus",
        "models/embeddings/",
        "(embedding:{}:1.0)",
        lora_folder="models/loras/",
        lora_prompt=PLAIN_LORA,
        lora_advice="Choose the file under Models, LoRA, with weight 1.",
        families=("sdxl",),
    ),
    "drawthings": Host(
        "Draw Things",
        "its import dialog",
        "<{}>",
        lora_folder="its import dialog",
        lora_prompt=PLAIN_LORA,
        lora_advice="Choose the LoRA with weight 100%.",
    ),
}


def get_host(name: str) -> Host:
    """Return the program of this name; `ConfigError` names the others."""
    if name not in HOSTS:
        raise ConfigError(f"{name!r} is no program that is known here.", suggest(name, HOSTS, verb="Choose"))
    return HOSTS[name]


def format_prompt(embeddings: Sequence[Embedding], host: Host, sampler: Sampler) -> str:
    """Format what a user writes in the program's prompt, and how; one line, or one for each stage.

    Raises:
        ConfigError: the program cannot change words while it denoises, and there are stages.
    """
    if len(embeddings) == 1:
        prompt = PROMPT.format(host.word.format(embeddings[0].stem))
        loading = host.describe_loading and host.describe_loading(embeddings, host.word)
        return f"{loading}\n# {prompt}" if loading else prompt
    if host.format_stages is None:
        raise ConfigError(
            f"{host.title} cannot change words while it denoises.", "Export a single file: leave out --stages."
        )
    return host.format_stages(embeddings, host.word, sampler)


def export_tokens(identity: Identity, host: Host, slot: Slot | None, sampler: Sampler | None) -> Exported:
    """Return the embeddings of an identity for a program, and the prompt that uses them.

    Args:
        slot: which tokens stand for keys and values alike; None takes the best by experiments/export_loss.py.
        sampler: the program's, for a file of each stage; None makes a single file for all.

    Raises:
        IdentityError: the identity has no tokens, or but one stage where stages are asked for.
        ConfigError: the program cannot change words while it denoises, and there are stages.
    """
    slot = slot or (STAGE_SLOT if sampler else FLAT_SLOT)
    embeddings = make_stage_embeddings(identity, slot) if sampler else [make_flat_embedding(identity, slot)]
    prompt = format_prompt(embeddings, host, sampler or Sampler())
    stage_advice = host.stage_advice if sampler else ""
    return Exported(list_embedding_files(identity, embeddings, slot), prompt, host.folder, host.advice, stage_advice)
