"""`sefi export` and `sefi import`: an identity as files and prompt text of another program, and the way back."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from sefi.hosts.export import Exported, Host, Sampler, Slot
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
    Literal["value", "key", "mean"] | None,
    typer.Option("--slot", help="Which tokens are used for both keys and values: value, key or their mean."),
]
Sampling = Annotated[
    Literal["karras", "exponential", "uniform"] | None,
    typer.Option("--schedule", help="With --stages: your sampler's noise schedule.", show_default="karras"),
]
SamplingSteps = Annotated[
    int | None,
    typer.Option("--steps", min=1, max=1000, help="With --stages: your sampler's steps.", show_default="20"),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: NAME-HOST.")]


def run_export(
    file: IdentityFile,
    to: HostName,
    stages: Stages = False,
    slot: SlotName = None,
    schedule: Sampling = None,
    steps: SamplingSteps = None,
    out: Out = None,
    overwrite: options.Overwrite = False,
    expired_consent: options.ExpiredConsent = False,
    as_json: options.AsJson = False,
) -> None:
    """Write an identity as files of another program, and say what to write in its prompt."""
    from sefi.cli.output import print_answer, print_remark
    from sefi.core.files import FileKind, check_output, is_folder, make_text_writer, write_output
    from sefi.core.text import escape_controls
    from sefi.hosts.export import Sampler, get_host, write_exported
    from sefi.identity.file import Identity, compute_identity_digest
    from sefi.provenance.consent import check_consents

    refuse_idle_options(stages=stages, schedule=schedule, steps=steps)
    host = get_host(to)
    identity = Identity.load(file)
    if not expired_consent:
        check_consents({identity.name: identity.header.consent})
    sampler = Sampler(schedule or Sampler.schedule, steps or Sampler.steps)
    exported = export_identity(identity, host, TokenOptions(stages, slot, sampler))
    folder = out or Path(f"{identity.name}-{to}")
    # One file and a file for each stage have different names, so both exports go into one folder.
    prompt_file = folder / f"sefi-{identity.name}{'-stages' if stages else ''}-prompt.txt"
    if is_folder(folder):  # before anything is written
        check_output(prompt_file, FileKind.TEXT, overwrite=overwrite, follow=False)
    paths = write_exported(exported.files, folder, overwrite=overwrite)
    notes = list_notes(identity, host, exported)
    text = f"{exported.prompt}\n\nPut {'the file' if len(paths) == 1 else 'the files'} into {exported.folder}."
    # So that `sefi forget` finds what holds the name.
    of_identity = [f"Identity: {compute_identity_digest(identity)}"]
    of_identity += [f"Consent: {escape_controls(identity.header.consent)}"] if identity.header.consent else []
    write = make_text_writer("\n".join([text, *notes, *of_identity]) + "\n")
    write_output(prompt_file, FileKind.TEXT, write, overwrite=overwrite, follow=False)
    for note in notes:
        print_remark(f"note: {note}")
    record: dict[str, object] = {
        "files": [str(path) for path in paths],
        "prompt": exported.prompt,
        "folder": exported.folder,
        "notes": notes,
    }
    print_answer(record, f"wrote {', '.join(map(str, paths))}\n{text}", as_json=as_json, command="export")


def refuse_idle_options(*, stages: bool, **of_stages: object) -> None:
    """Refuse options that have no effect without `--stages`, with `ConfigError`."""
    from sefi.core.errors import make_idle_option_error

    given = [f"--{name}" for name, value in of_stages.items() if value is not None]
    if given and not stages:
        raise make_idle_option_error(given[0], "--stages")


@dataclass(frozen=True)
class TokenOptions:
    """How tokens become embeddings, as typed."""

    stages: bool
    slot: "Slot | None"
    sampler: "Sampler"


def export_identity(identity: "Identity", host: "Host", token_options: TokenOptions) -> "Exported":
    """Return what leaves for a program: embeddings, a LoRA, or the two files of Custom Diffusion.

    Raises:
        IdentityError: nothing that the identity's method keeps is read by any other program.
        ConfigError: this program does not read it, or stages are asked for where there are none.
    """
    from sefi.core.errors import ConfigError, IdentityError
    from sefi.hosts.export import export_tokens
    from sefi.hosts.weight_files import export_custom_diffusion, export_lora, is_custom_diffusion, is_lora
    from sefi.training.finetuning import format_subject_words

    of_weights = is_lora(identity) or is_custom_diffusion(identity)
    if of_weights and (token_options.stages or token_options.slot is not None):
        option = "--stages" if token_options.stages else "--slot"
        raise ConfigError(f"{identity.name!r} has weights, which have no stages and no slots.", f"Leave out {option}.")
    if is_lora(identity):
        return export_lora(identity, host, format_subject_words(identity.header, 1.0))
    if is_custom_diffusion(identity):
        return export_custom_diffusion(identity, host)
    if not identity.is_tokens_alone:
        raise IdentityError(
            f"{identity.name!r} was learned by {identity.method}, which no other program can read.",
            "Learn it with the default method, whose tokens become embeddings, or with --method dreambooth-lora.",
        )
    return export_tokens(identity, host, token_options.slot, token_options.sampler if token_options.stages else None)


def list_notes(identity: "Identity", host: "Host", exported: "Exported") -> list[str]:
    """List what a user of the files should know: what they lose, what they fit."""
    from sefi.hosts.export import CLIP_SKIP, FAMILIES

    family, header = identity.header.base_model.partition(":")[0], identity.header
    # SDXL reads the layer before the last anyway.
    notes = [exported.advice] if exported.advice and (family != "sdxl" or exported.advice != CLIP_SKIP) else []
    if exported.stage_advice:
        notes.append(exported.stage_advice)
    if identity.name != identity.name.lower():
        notes.append(f"most programs read words in lower case: nobody else there may be {identity.name.lower()!r}.")
    if family not in FAMILIES:
        notes.append(f"learned on a model of the family {family!r}, which other programs do not have.")
    elif family not in host.families:
        theirs = " and ".join(host.families)
        notes.append(f"learned on a model of the family {family!r}; {host.title} has models of {theirs} only.")
    of_tokens = "sefi.slot" in exported.files[0].metadata
    if of_tokens and family == "sdxl":
        notes.append("the file has a tensor for each text encoder; diffusers loads them one by one.")
    if of_tokens and len(exported.files) == 1 and header.stages > 1:
        notes.append(f"one embedding stands for {header.stages} stages; docs/hosts/export.md has what that costs.")
    return notes


# ------------------------------------------------------------------ import

EmbeddingFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A .safetensors file with one textual-inversion embedding.")
]
Name = Annotated[str, typer.Option("--name", help="The word for it in prompts: <ada>.")]
ClassWord = Annotated[str, typer.Option("--class-word", help="What it is, in a word or a few: person, dog, style ...")]
IdentityOut = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: NAME.safetensors.")]


def run_import(
    file: EmbeddingFile,
    name: Name,
    class_word: ClassWord = "person",
    model: options.Model = options.EMBEDDED,
    out: IdentityOut = None,
    overwrite: options.Overwrite = False,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = options.AUTO,
    as_json: options.AsJson = False,
) -> None:
    """Make an identity of a textual inversion, for `sefi generate -i` or as a start for `sefi learn --init`."""
    from sefi.cli.loading import ModelOptions, load_backbone
    from sefi.cli.output import print_answer
    from sefi.core.files import FileKind, check_output
    from sefi.core.prompts import check_name
    from sefi.hosts.embedding_files import refuse_unsafe_file
    from sefi.identity.file import write_identity

    check_name(name)
    path = out or Path(f"{name}.safetensors")
    check_output(path, FileKind.IDENTITY, inputs=(file, model), overwrite=overwrite, name=name)
    refuse_unsafe_file(file)
    backbone = load_backbone(model, download=download, device=device, dtype=dtype)
    from sefi.api import import_embedding

    identity = import_embedding(file, name=name, class_word=class_word, backbone=backbone)
    write_identity(identity, path, replace=overwrite)
    vectors = identity.stage_tokens.shape[2]
    record: dict[str, object] = {
        "identity": str(path),
        "name": name,
        "vectors": vectors,
        "base_model": identity.header.base_model,
    }
    words = shlex.join(["-i", str(path), *ModelOptions(model, download, device, dtype).list_options()])
    text = f'imported {vectors} vector{"s"[: vectors != 1]}: {path}\ntry: sefi generate "a photo of <{name}>" {words}'
    print_answer(record, text, as_json=as_json, command="import")
