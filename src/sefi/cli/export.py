"""`sefi export`: an identity as files and prompt text of another program."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from sefi.hosts.export import Embedding
    from sefi.identity.file import Identity

IdentityFile = Annotated[Path, typer.Argument(metavar="FILE", help="An identity that `sefi learn` wrote.")]
HostName = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="HOST",
        help="a1111, forge, sdnext, comfyui, invokeai, diffusers, kohya, fooocus or drawthings.",
    ),
]
Stages = Annotated[
    bool,
    typer.Option("--stages/--flat", help="A file for each denoising stage, or one for all, which every program reads."),
]
SlotName = Annotated[
    Literal["value", "key", "mean"],
    typer.Option("--slot", help="Which tokens stand for keys and values alike: value, key or mean."),
]
Sampling = Annotated[
    Literal["karras", "uniform"],
    typer.Option("--schedule", help="The noise schedule of your sampler, for --stages: karras or uniform."),
]
SamplingSteps = Annotated[int, typer.Option("--steps", min=1, max=1000, help="Your sampler's steps, for --stages.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: NAME-HOST.")]
FAMILIES = ("sd1", "sd2", "sdxl")  # of the models that other programs have


def run_export(
    file: IdentityFile,
    to: HostName,
    stages: Stages = False,
    slot: SlotName = "value",
    schedule: Sampling = "karras",
    steps: SamplingSteps = 20,
    out: Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write an identity as textual-inversion embeddings for another program, and say what to write in its prompt."""
    from sefi.cli.output import print_answer, print_remark
    from sefi.core.files import FileKind, make_text_writer, write_output
    from sefi.hosts.export import (
        Sampler,
        format_prompt,
        get_host,
        make_flat_embedding,
        make_stage_embeddings,
        write_embeddings,
    )
    from sefi.identity.file import Identity

    host = get_host(to)
    identity = Identity.load(file)
    embeddings = make_stage_embeddings(identity, slot) if stages else [make_flat_embedding(identity, slot)]
    prompt = format_prompt(embeddings, host, Sampler(schedule, steps))
    folder = out or Path(f"{identity.name}-{to}")
    paths = write_embeddings(identity, embeddings, folder, slot, overwrite=overwrite)
    notes = list_notes(identity, embeddings, host.advice)
    text = f"{prompt}\n\nPut {'the file' if len(paths) == 1 else 'the files'} into {host.folder}."
    write = make_text_writer("\n".join([text, *notes]) + "\n")
    write_output(folder / "prompt.txt", FileKind.TEXT, write, overwrite=overwrite)
    for note in notes:
        print_remark(f"note: {note}")
    record: dict[str, object] = {
        "files": [str(path) for path in paths],
        "prompt": prompt,
        "folder": host.folder,
        "notes": notes,
    }
    print_answer(record, f"wrote {', '.join(map(str, paths))}\n{text}", as_json=as_json, command="export")


def list_notes(identity: "Identity", embeddings: "list[Embedding]", advice: str) -> list[str]:
    """List what a user of the files should know: what they lose, what they fit."""
    from sefi.hosts.export import CLIP_SKIP

    family = identity.header.base_model.partition(":")[0]
    # SDXL reads the layer before the last anyway.
    notes = [] if not advice or (family == "sdxl" and advice == CLIP_SKIP) else [advice]
    if family not in FAMILIES:
        notes.append(f"learned on a model of the family {family!r}, which other programs do not have.")
    if family == "sdxl":
        notes.append("the file has a tensor for each text encoder; diffusers loads them one by one.")
    if len(embeddings) == 1 and identity.header.stages > 1:
        notes.append(f"one embedding stands for {identity.header.stages} stages; what that costs is not measured yet.")
    return notes
