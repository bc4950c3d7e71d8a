"""`sefi encoder`: fit the network that reads a person's tokens off a photo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options
from sefi.core.errors import ConfigError

if TYPE_CHECKING:
    from sefi.backbone.bundle import Backbone
    from sefi.core.config import Config
    from sefi.core.progress import Progress
    from sefi.methods.name_encoder import NamePairs

app = typer.Typer(
    no_args_is_help=True, help="Fit a name encoder, which predicts the tokens of a person's name from a photo."
)

Names = Annotated[
    Path | None,
    typer.Option("--names", metavar="FILE", help="Names of people that the model knows, one a line."),
]
Images = Annotated[int, typer.Option("--count", min=1, max=64, help="Images of each name.")]
Words = Annotated[
    int, typer.Option("--words", min=1, max=8, help="How many tokens of a name to predict; equals learn.vectors.")
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of the fit; the images take longer.")]
EncoderFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="The encoder, a safetensors file.")]


@app.command("train")
def train_encoder(
    model: options.Model = options.EMBEDDED,
    names: Names = None,
    count: Images = 2,
    words: Words = 1,
    steps: Steps = 2000,
    preset: options.Preset = "default",
    settings: options.Settings = None,
    detector: options.Detector = None,
    seed: options.Seed = 0,
    out: EncoderFile = Path("encoder.safetensors"),
    overwrite: options.Overwrite = False,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = options.AUTO,
    as_json: options.AsJson = False,
) -> None:
    """Fit it on the model's own images of names that it knows; of the embedded model, without names, on drawings."""
    from sefi.cli.loading import (
        ModelOptions,
        check_detector,
        check_model,
        import_libraries,
        load_backbone,
        load_config,
    )
    from sefi.cli.output import print_answer
    from sefi.cli.progress import TerminalProgress
    from sefi.core.files import FileKind, check_output, write_output

    if names is None and model != options.EMBEDDED:
        raise ConfigError("This model needs a list of the names that it knows.", "Give a file with --names.")
    inputs = (names, model, detector)
    check_output(out, FileKind.SAFETENSORS, inputs=inputs, overwrite=overwrite)
    check_detector(detector)
    config = load_config(preset, settings or [])
    check_model(ModelOptions(model, download, device, dtype))
    import_libraries()
    from sefi.methods.base import read_listed_names
    from sefi.methods.name_encoder import EncoderRecipe, fit_encoder, save_encoder

    listed = None if names is None else read_listed_names(names)
    backbone = load_backbone(model, download=download, device=device, dtype=dtype)
    with TerminalProgress() as progress:
        pairs = collect_pairs(backbone, listed, count, words, config, detector, progress)
        encoder, explained = fit_encoder(pairs, EncoderRecipe(steps=steps), seed, progress)
    write_output(
        out,
        FileKind.SAFETENSORS,
        lambda path: save_encoder(encoder, backbone, path),
        inputs=inputs,
        overwrite=overwrite,
    )
    record = describe_fit(out, pairs, encoder.words, explained)
    text = (
        f"{out}: fitted on {record['pairs']} images of {record['people']} people; of the tokens of people left out it "
        f"explains {explained:.0%}\ntry: sefi learn PHOTO --name ada --set learn.start=encoder "
        f"--set learn.encoder={out} --set learn.vectors={encoder.words}"
    )
    print_answer(record, text, as_json=as_json, command="encoder train")


def describe_fit(file: Path, pairs: "NamePairs", words: int, explained: float) -> dict[str, object]:
    """Describe a fitted encoder for `--json`."""
    return {
        "encoder": str(file),
        "bytes": file.stat().st_size,
        "pairs": len(pairs.person),
        "people": len(pairs.person.unique()),
        "words": words,
        "explained": round(explained, 4),
    }


def collect_pairs(
    backbone: "Backbone",
    names: list[str] | None,
    count: int,
    words: int,
    config: "Config",
    detector: Path | None,
    progress: "Progress",
) -> "NamePairs":
    """Pair heads with names: of the model's own images, or of drawings of people for the embedded model."""
    from sefi.api import open_detector
    from sefi.methods.name_encoder import draw_name_pairs

    finder = open_detector(backbone, detector)
    if names is None:
        from tiny_portraits.training.drawings import pair_drawings_with_names

        return pair_drawings_with_names(backbone, finder, progress)
    return draw_name_pairs(backbone, names, words, count, config, finder, progress)
