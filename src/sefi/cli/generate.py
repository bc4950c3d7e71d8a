"""`sefi generate`: prompts and identity files to pictures, a grid and their records."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sefi.backbone.bundle import Backbone
    from sefi.core.config import Config
    from sefi.core.nouns import GeneratedImage, Identity
    from sefi.core.protocols import Progress

Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT...", help='E.g. "a photo of <ada> at the beach".')]
Count = Annotated[int | None, typer.Option("--count", min=1, help="Images for each prompt.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", help="How strongly the prompt is followed.")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", metavar="NAME", help="ddim, dpm++ or euler.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What must not be in the picture.")]
Strength = Annotated[
    float | None,
    typer.Option("--identity-strength", help="1 is what was learned, 0 leaves it out and keeps the class word."),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images at once; rounding may differ.")]
Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the files go.")]


def generate(
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
    settings: options.Settings = None,
    seed: options.Seed = 0,
    out: Folder = Path("pictures"),
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Draw every PROMPT; <name> in a prompt stands for the identity file of that name."""
    from sefi.cli.opening import assigned, drawing_config, identities_for, note_remarks, opened
    from sefi.cli.output import answer
    from sefi.cli.pictures import append_record, check_image_folder, save_grid

    given = assigned(
        generate__count=count,
        generate__steps=steps,
        generate__guidance_scale=guidance_scale,
        generate__scheduler=scheduler,
        generate__negative_prompt=negative_prompt,
        generate__identity_strength=identity_strength,
        generate__batch_size=batch_size,
    )
    config = drawing_config(preset, [*(settings or []), *given])
    folder = check_image_folder(out, [*(identity or []), model])
    identities = identities_for(prompts, identity or [], config)
    from sefi.cli.progress import TerminalProgress
    from sefi.conditioning.known_words import find_unknown_words

    backbone = opened(model, download=download, device=device, dtype=dtype)
    note_remarks(backbone, prompts, config, identities)
    files: list[dict[str, str | int]] = []
    record: dict[str, object] = {
        "images": files,
        "grid": None,  # an interrupted run has none
        "identities": [str(path) for path in identity or []],
        "base_model": backbone.fingerprint,
        "settings": config.generate.model_dump(mode="json"),
        "seed": seed,
        "unknown_words": find_unknown_words(backbone, [*prompts, config.generate.negative_prompt]),
    }
    try:
        with TerminalProgress() as progress:
            images = draw_and_save(Work(prompts, identities, backbone, config, seed, progress), folder, files)
        record["grid"] = str(save_grid(images, folder))
    finally:
        if files:
            append_record(folder, record)
    text = "\n".join([*(str(entry["file"]) for entry in files), f"all of them: {record['grid']}"])
    answer(record, text, as_json=as_json, command="generate")


@dataclass(frozen=True)
class Work:
    """What is to be drawn, on what, and how."""

    prompts: list[str]
    identities: "Sequence[Identity]"
    backbone: "Backbone"
    config: "Config"
    seed: int
    progress: "Progress"


def draw_and_save(work: Work, folder: Path, files: list[dict[str, str | int]]) -> "list[GeneratedImage]":
    """Draw every picture and write it at once.

    Args:
        files: gets an entry for every file as soon as it is written.

    Raises:
        Interrupted: Ctrl-C; it says how many pictures were kept.
    """
    from sefi.api import generate_each
    from sefi.cli.pictures import save_image
    from sefi.core.errors import Interrupted

    images: list[GeneratedImage] = []
    try:
        for image in generate_each(
            work.prompts,
            work.identities,
            backbone=work.backbone,
            config=work.config,
            seed=work.seed,
            progress=work.progress,
        ):
            path = save_image(image, folder)
            images.append(image)
            files.append({"file": str(path), "prompt": image.prompt, "seed": image.seed})
    except KeyboardInterrupt:
        total = len(work.prompts) * work.config.generate.count
        kept = f"{len(files)} of {total} pictures are in '{folder}'."
        raise Interrupted(f"Interrupted: {kept}", "Run the same command again.") from None
    return images
