"""`sefi import`: a textual inversion of another program as an identity."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sefi.cli import options

EmbeddingFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A .safetensors file with one textual-inversion embedding.")
]
Name = Annotated[str, typer.Option("--name", help="The word for it in prompts: <ada>.")]
ClassWord = Annotated[str, typer.Option("--class-word", help="What it is, in one word: person, dog, style ...")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: NAME.safetensors.")]


def run_import(
    file: EmbeddingFile,
    name: Name,
    class_word: ClassWord = "person",
    model: options.Model = options.EMBEDDED,
    out: Out = None,
    overwrite: options.Overwrite = False,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Make an identity of a textual inversion, for `sefi generate -i` or as a start for `sefi learn --init`."""
    from sefi.api import import_embedding
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
