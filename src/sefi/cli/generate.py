"""`sefi generate`: prompts and identity files to images, a grid and their records."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sefi.backbone.bundle import Backbone
    from sefi.core.config import Config
    from sefi.core.progress import Progress
    from sefi.diffusion.sampling import GeneratedImage
    from sefi.identity.file import Identity

Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT...", help='E.g. "a photo of <ada> at the beach".')]
Count = Annotated[int | None, typer.Option("--count", min=1, help="Images for each prompt.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", help="How strongly the prompt is followed.")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", metavar="NAME", help="ddim, dpm++, euler or lcm.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What must not be in the image.")]
Strength = Annotated[
    float | None,
    typer.Option("--identity-strength", help="1 is what was learned, 0 leaves it out and keeps the class word."),
]
ClipSkip = Annotated[
    int | None, typer.Option("--clip-skip", min=1, help="Text encoder's layer: 1 the usual, 2 the one before.")
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images at once; rounding may differ.")]
Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the files go.")]


def run_generate(
    prompts: Prompts,
    identity: options.Identities = None,
    model: options.Model = options.EMBEDDED,
    preset: options.Preset = "default",
    count: Count = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    scheduler: Scheduler = None,
    negative_prompt: Negative = None,
    identity_strength: Strength = None,
    batch_size: BatchSize = None,
    clip_skip: ClipSkip = None,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    out: Folder = Path("pictures"),
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Draw every PROMPT; <name> in a prompt stands for the identity file of that name."""
    from sefi.cli.image_files import append_record, check_image_folder, save_grid
    from sefi.cli.loading import format_settings, load_backbone, load_generation_config, load_identities, note_remarks
    from sefi.cli.output import print_answer

    overrides = format_settings(
        generate__count=count,
        generate__steps=steps,
        generate__guidance_scale=guidance_scale,
        generate__scheduler=scheduler,
        generate__negative_prompt=negative_prompt,
        generate__identity_strength=identity_strength,
        generate__batch_size=batch_size,
        generate__clip_skip=clip_skip,
    )
    config = load_generation_config(preset, [*(settings or []), *overrides])
    check_image_folder(out, [*(identity or []), model])
    identities = load_identities(prompts, identity or [], config)
    from sefi.cli.progress import TerminalProgress
    from sefi.diffusion.text import find_unknown_words

    backbone = load_backbone(model, download=download, device=device, dtype=dtype)
    note_remarks(backbone, prompts, config, identities)
    files: list[dict[str, str | int]] = []
    # An interrupted run has no grid.
    record: dict[str, object] = {"images": files, "grid": None, "identities": [str(path) for path in identity or []]}
    record |= {"base_model": backbone.fingerprint, "settings": config.generate.model_dump(mode="json"), "seed": seed}
    record["unknown_words"] = find_unknown_words(backbone, [*prompts, config.generate.negative_prompt])
    try:
        with TerminalProgress() as progress:
            images = draw_and_save(GenerateRun(prompts, identities, backbone, config, seed, progress), out, files)
        record["grid"] = str(save_grid(images, out))
    finally:
        if files:
            append_record(out, record)
    text = "\n".join([*(str(entry["file"]) for entry in files), f"all of them: {record['grid']}"])
    print_answer(record, text, as_json=as_json, command="generate")


@dataclass(frozen=True)
class GenerateRun:
    """What is generated, on which model, and how."""

    prompts: list[str]
    identities: "Sequence[Identity]"
    backbone: "Backbone"
    config: "Config"
    seed: int
    progress: "Progress"


def draw_and_save(run: GenerateRun, folder: Path, files: list[dict[str, str | int]]) -> "list[GeneratedImage]":
    """Draw every image and write it at once.

    Args:
        files: gets an entry for every file as soon as it is written.

    Raises:
        Interrupted: Ctrl-C; it says how many images were saved.
    """
    from sefi.api import generate_each
    from sefi.cli.image_files import save_image
    from sefi.core.errors import Interrupted

    images: list[GeneratedImage] = []
    try:
        for image in generate_each(
            run.prompts,
            run.identities,
            backbone=run.backbone,
            config=run.config,
            seed=run.seed,
            progress=run.progress,
        ):
            path = save_image(image, folder)
            images.append(image)
            files.append({"file": str(path), "prompt": image.prompt, "seed": image.seed})
    except KeyboardInterrupt:
        total = len(run.prompts) * run.config.generate.count
        problem = f"Interrupted: {len(files)} of {total} images are in '{folder}'."
        raise Interrupted(problem, "Run the same command again.") from None
    return images
