"""Options that several commands share, each with one meaning everywhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sefi.core.rng import LARGEST_SEED

EMBEDDED = "tiny-portraits"
AUTO = "auto"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="tiny-portraits, a Stable Diffusion folder, a .safetensors checkpoint or a hub id.",
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Allow a hub id, or the face recogniser, to be downloaded; otherwise no network."),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or mps.")]
Precision = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="auto (bfloat16 on CUDA, else float32), float32, bfloat16 or float16 (images only).",
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        "--preset", metavar="NAME", help="Settings to start from: default, scratch, fast, paper, or see `sefi methods`."
    ),
]

MethodName = Annotated[
    str | None, typer.Option("--method", metavar="NAME", help="Another method to learn with: see `sefi methods`.")
]
MethodPreset = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="NAME", help="Settings to start from: default, scratch, fast, paper, or a method's."
    ),
]
LearningSteps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=0,
        help="Learning steps; else the preset's. With 0 the default takes as many as suit where learning starts.",
    ),
]


def make_settings_option(example: str) -> Any:  # noqa: ANN401  typer's own type is private
    """Make the option that changes settings; its help shows an example that the command takes."""
    return typer.Option("--set", metavar="KEY=VALUE", help=f"Change one setting, e.g. {example}; repeatable.")


LEARNING_EXAMPLE, GENERATION_EXAMPLE = "learn.batch=8", "generate.clip_skip=2"  # short: helps cut long words
Settings = Annotated[list[str] | None, make_settings_option(LEARNING_EXAMPLE)]
GenerationSettings = Annotated[list[str] | None, make_settings_option(GENERATION_EXAMPLE)]
Seed = Annotated[int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="The same seed gives the same result.")]
Identities = Annotated[
    list[Path] | None,
    typer.Option("-i", "--identity", metavar="FILE", help="An identity file; repeatable."),
]
Detector = Annotated[
    Path | None,
    typer.Option("--detector", metavar="FILE", help="A YuNet face detector (ONNX) to use."),
]
Width = Annotated[int | None, typer.Option("--width", help="Width of an image in pixels; the model's own if left out.")]
Height = Annotated[
    int | None, typer.Option("--height", help="Height of an image in pixels; the model's own if left out.")
]
Evaluators = Annotated[
    Path | None,
    typer.Option(
        "--evaluators",
        "--judges",  # its name before
        metavar="DIR",
        help="Networks for methods and probes: a face detector, a face recogniser and clip/ (docs/guide.md).",
    ),
]
ExpiredConsent = Annotated[
    bool, typer.Option("--expired-consent", help="Use an identity although its consent has expired.")
]
NoSafetyChecker = Annotated[
    bool,
    typer.Option(
        "--no-safety-checker", help="Show what the model's own safety checker would make black; its record says so."
    ),
]
NoMark = Annotated[
    bool, typer.Option("--no-mark", help="Leave out the invisible mark of generated images; their files say so.")
]
Names = Annotated[bool, typer.Option("--names", help="Write the subjects' names in the files, not <subject>.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier result of the same kind; never anything else.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]
