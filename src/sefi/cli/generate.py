"""`sefi generate`: prompts and identity files to images, a grid and their records."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options
from sefi.cli.image_files import check_image_folder, check_room_on_record
from sefi.cli.output import print_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sefi.backbone.bundle import Backbone
    from sefi.cli.image_files import GridImage
    from sefi.core.config import Config
    from sefi.core.progress import Progress
    from sefi.diffusion.source_image import ImageArguments
    from sefi.identity.file import Identity
    from sefi.provenance.content_credentials import SigningKey
    from sefi.provenance.run_record import ImageFileRecord, RunRecord

FileEntry = dict[str, object]
"""What the record says of a file: `file`, `prompt`, `seed`, `invisible_mark`; `flagged`, `repaired_faces` if so."""
SCHEDULERS = "ddim, dpm++, dpm++_karras, dpm++_sde, euler, euler_a or lcm."
Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT", help='E.g. "a photo of <ada> at the beach".')]
Count = Annotated[int | None, typer.Option("--count", min=1, help="Images for each prompt.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", help="How strongly the prompt is followed.")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", metavar="NAME", help=SCHEDULERS)]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What must not be in the image.")]
Strength = Annotated[
    float | None,
    typer.Option("--identity-strength", help="0: the class word only; 1: the learned person; 2: the maximum."),
]
ClipSkip = Annotated[
    int | None,
    typer.Option("--clip-skip", min=1, help="Layer of the text encoder: 1 is the usual one, 2 the one before it."),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Images generated at once; pixels may differ by one grey level."),
]
InitImage = Annotated[
    Path | None,
    typer.Option(
        "--init-image", metavar="FILE", help="Start from this image; its middle is cropped to the output's proportions."
    ),
]
InitStrength = Annotated[
    float | None,
    typer.Option("--strength", help="Share of the steps that change --init-image, up to 1; 0.75 if left out."),
]
Mask = Annotated[
    Path | None, typer.Option("--mask", metavar="FILE", help="Repaint --init-image only where this is white.")
]
Control = Annotated[Path | None, typer.Option("--control", metavar="FILE", help="An image that --controlnet follows.")]
ControlNetFolder = Annotated[
    Path | None, typer.Option("--controlnet", metavar="DIR", help="A ControlNet in the format of diffusers.")
]
ControlScale = Annotated[
    float | None, typer.Option("--control-scale", help="How much --control counts, 0 to 2; 1 if left out.")
]
RepairFaces = Annotated[
    bool, typer.Option("--repair-faces", help="Generate small faces again, larger, and paste them back.")
]
Sign = Annotated[
    bool, typer.Option("--sign", help="Add signed content credentials (C2PA), by SEFI_C2PA_CERTIFICATE or a local key.")
]
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
    width: options.Width = None,
    height: options.Height = None,
    init_image: InitImage = None,
    strength: InitStrength = None,
    mask: Mask = None,
    control: Control = None,
    controlnet: ControlNetFolder = None,
    control_scale: ControlScale = None,
    repair_faces: RepairFaces = False,
    detector: options.Detector = None,
    clip_skip: ClipSkip = None,
    expired_consent: options.ExpiredConsent = False,
    no_safety_checker: options.NoSafetyChecker = False,
    settings: options.GenerationSettings = None,
    seed: options.Seed = 0,
    out: Folder = Path("pictures"),
    no_mark: options.NoMark = False,
    names: options.Names = False,
    sign: Sign = False,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = options.AUTO,
    as_json: options.AsJson = False,
) -> None:
    """Generate an image of every PROMPT; <name> in a prompt stands for the identity file of that name."""
    from sefi.cli import loading

    overrides = loading.format_settings(
        generate__count=count, generate__steps=steps, generate__guidance_scale=guidance_scale,
        generate__scheduler=scheduler, generate__negative_prompt=negative_prompt,
        generate__identity_strength=identity_strength, generate__batch_size=batch_size, generate__width=width,
        generate__height=height, generate__clip_skip=clip_skip,
    )  # fmt: skip
    inputs = InputFiles(init_image, strength, mask, control, controlnet, control_scale, repair_faces, detector)
    config = loading.load_generation_config(preset, [*(settings or []), *overrides])
    check_image_folder(out, [*(identity or []), model, init_image, mask, control, controlnet, detector])
    check_room_on_record(out, prompts, config.generate.count)
    identities = loading.load_identities(prompts, identity or [], config, expired_consent=expired_consent)
    loading.check_model(loading.ModelOptions(model, download, device, dtype))
    read = read_inputs(inputs, config, prompts)
    key = find_key(sign=sign)
    backbone = loading.load_backbone(model, download=download, device=device, dtype=dtype)
    loading.note_remarks(backbone, prompts, config, identities)
    record = describe_generation(backbone, config, prompts, inputs) | {"identities": [*map(str, identity or [])]}
    record["run"] = record_generation(backbone, config, inputs, identities, identity or []).add(preset=preset)
    allowed = Allowed(expired_consent=expired_consent, unchecked=no_safety_checker)
    run = GenerateRun(prompts, identities, backbone, config, seed, read, not no_mark, names, key, allowed)
    text = generate_and_record(run, out, record)
    print_answer(record, text, as_json=as_json, command="generate")


def find_key(*, sign: bool) -> "SigningKey | None":
    """Return the key that images are signed with, if they are; `ConfigError` where there can be none."""
    from sefi.cli.output import print_remark
    from sefi.provenance.content_credentials import find_signing_key
    from sefi.provenance.payload import find_key_file

    return find_signing_key(find_key_file().parent, lambda text: print_remark(f"note: {text}")) if sign else None


@dataclass(frozen=True)
class InputFiles:
    """The images of a command line, and what to do with them; named as the arguments of `sefi.generate`."""

    init_image: Path | None
    strength: float | None
    mask: Path | None
    control: Path | None
    controlnet: Path | None
    control_scale: float | None
    repair_faces: bool
    detector: Path | None


@dataclass(frozen=True)
class Allowed:
    """What a command line allows that is refused otherwise.

    Attributes:
        expired_consent: generate although a consent has expired.
        unchecked: leave the model's safety checker out.
    """

    expired_consent: bool = False
    unchecked: bool = False

    def describe(self, backbone: "Backbone") -> dict[str, object]:
        """Return what a record says of it."""
        said: dict[str, object] = {"expired_consent": True} if self.expired_consent else {}
        checked = backbone.safety_checker is not None and not self.unchecked
        return said | {"safety_checker": None if backbone.safety_checker is None else checked}


@dataclass(frozen=True)
class GenerateRun:
    """What is generated, on which model, and how.

    Attributes:
        mark: embed the invisible mark.
        names: say the subjects' names in the files.
        key: that they are signed with; None leaves signatures out.
    """

    prompts: list[str]
    identities: "Sequence[Identity]"
    backbone: "Backbone"
    config: "Config"
    seed: int
    inputs: "ImageArguments | None" = None
    mark: bool = True
    names: bool = False
    key: "SigningKey | None" = None
    allowed: Allowed = Allowed()


@dataclass
class SavedImages:
    """What a run has saved so far.

    Attributes:
        entries: what the record says of each image.
        hashes: of each file, computed when it was written: somebody may move or delete it while others are generated.
        shown: each image as the grid shows it.
    """

    entries: list[FileEntry] = field(default_factory=list[FileEntry])
    hashes: "list[ImageFileRecord]" = field(default_factory=list)
    shown: "list[GridImage]" = field(default_factory=list)


def read_inputs(inputs: InputFiles, config: "Config", prompts: "Sequence[str]") -> "ImageArguments":
    """Read the images of a command line, before a model is opened; say which prompts' faces are not repaired.

    Raises:
        ConfigError: Options that miss another one or are out of range.
        PhotoError: An image cannot be read.
        FaceError: The detector is missing.
    """
    from sefi.cli.loading import check_detector, import_libraries
    from sefi.cli.output import print_remark

    import_libraries()
    from sefi.diffusion.sampling import check_repair_steps, list_repair_remarks
    from sefi.diffusion.source_image import ImageArguments, check_image_arguments
    from sefi.photo.read import read_photo

    check_image_arguments(ImageArguments(**vars(inputs)), config.generate.steps)
    check_detector(inputs.detector)
    if inputs.repair_faces:
        check_repair_steps(config.generate)
        for remark in list_repair_remarks(prompts):
            print_remark(f"note: {remark}")
    read = ImageArguments(**vars(inputs))
    if inputs.init_image is not None:
        read["init_image"] = read_photo(inputs.init_image)
    if inputs.mask is not None:
        read["mask"] = read_photo(inputs.mask)
    if inputs.control is not None:
        read["control"] = read_photo(inputs.control)
    return read


def describe_generation(
    backbone: "Backbone", config: "Config", prompts: "Sequence[str]", inputs: InputFiles
) -> dict[str, object]:
    """Return the part of the record that says what was generated with: model, settings, size and images."""
    from sefi.diffusion.sampling import get_image_size
    from sefi.diffusion.source_image import DEFAULT_STRENGTH
    from sefi.diffusion.text import find_unknown_words

    height, width = get_image_size(backbone, config.generate)
    defaults: dict[str, object] = {} if inputs.init_image is None else {"strength": DEFAULT_STRENGTH}
    defaults |= {} if inputs.control is None else {"control_scale": 1.0}
    given = {name: value for name, value in vars(inputs).items() if value is not None and value is not False}
    return {
        "base_model": backbone.fingerprint,
        "settings": config.generate.model_dump(mode="json"),
        "size": [width, height],
        "inputs": {name: str(v) if isinstance(v, Path) else v for name, v in (defaults | given).items()},
        "unknown_words": find_unknown_words(backbone, [*prompts, config.generate.negative_prompt]),
    }


def record_generation(
    backbone: "Backbone",
    config: "Config",
    inputs: InputFiles,
    identities: "Sequence[Identity]",
    files: "Sequence[Path]",
) -> "RunRecord":
    """Record what explains the images: machine, model, settings, and the SHA-256 of every file that is read.

    Args:
        files: of the identities, in their order.
    """
    from sefi.provenance.run_record import ModelRecord, RunRecord, hash_input_files, shorten_source

    signature = backbone.signature.compute_digest() if backbone.signature else ""
    source = shorten_source(backbone.source)
    method = identities[0].method if identities else config.method
    named = {one.name: path for one, path in zip(identities, files, strict=True)}
    return RunRecord.describe_machine("generate", str(backbone.device), str(backbone.dtype)).add(
        model=ModelRecord(source=source, fingerprint=backbone.fingerprint, signature=signature),
        settings={"method": method, **config.generate.model_dump(mode="json")},
        identities=hash_input_files(named),
        inputs=hash_input_files({name: path for name, path in vars(inputs).items() if isinstance(path, Path)}),
    )


def generate_and_record(run: GenerateRun, folder: Path, record: dict[str, object]) -> str:
    """Draw every image, write all of them as one, and add the record to the folder's; return the files as a text.

    Args:
        record: what else is recorded, a `RunRecord` as `run`; gets the files.
    """
    from sefi.cli.image_files import append_record
    from sefi.cli.progress import TerminalProgress
    from sefi.core.reading import RECORDS
    from sefi.provenance.run_record import RunRecord

    run_record = record["run"]
    assert isinstance(run_record, RunRecord)
    saved = SavedImages()
    record |= run.allowed.describe(run.backbone)
    record |= {"seed": run.seed, "mark": run.mark, "records": str(folder / RECORDS)}
    record |= {"images": saved.entries, "grid": None}  # of an interrupted run, or for lack of memory
    try:
        with TerminalProgress() as progress:
            generate_and_save(run, folder, saved, progress)
        record["grid"] = save_grid_of_run(run, folder, saved)
    finally:
        record["run"] = run_record.add(seed=run.seed, images=saved.hashes).dump()
        if saved.entries:
            append_record(folder, record)
    lines = [str(entry["file"]) for entry in saved.entries]
    return "\n".join(lines if record["grid"] is None else [*lines, f"all of them: {record['grid']}"])


def save_grid_of_run(run: GenerateRun, folder: Path, saved: SavedImages) -> str | None:
    """Write all images as one, and add its hash; say so, and return None, where the memory is too small for it."""
    from sefi.cli.image_files import save_grid
    from sefi.cli.output import print_remark
    from sefi.core.errors import is_out_of_memory
    from sefi.provenance.run_record import record_image

    try:
        grid, encoded = save_grid(saved.shown, folder, mark=run.mark, names=run.names, key=run.key)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print_remark(
            f"note: there was not enough memory for a grid of these {len(saved.entries)} images, so there is none; "
            f"the images are in '{folder}'. Every run writes a grid: generate fewer images at once, or close other "
            "programs."
        )
        return None
    saved.hashes.append(record_image(grid.name, encoded.content))
    return str(grid)


def generate_and_save(run: GenerateRun, folder: Path, saved: SavedImages, progress: "Progress") -> None:
    """Draw every image and write it at once.

    Args:
        saved: gets every image as soon as it is written.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; it says how many images were saved.
    """
    from sefi.api import generate_each
    from sefi.cli.image_files import make_grid_image, save_numbered_image
    from sefi.cli.output import print_remark
    from sefi.core.errors import delay_interrupts, make_interrupted
    from sefi.diffusion.sampling import FLAGGED
    from sefi.provenance.run_record import record_image

    inputs = run.inputs or {}
    try:
        for image in generate_each(
            run.prompts,
            run.identities,
            backbone=run.backbone,
            config=run.config,
            seed=run.seed,
            progress=progress,
            expired_consent=run.allowed.expired_consent,
            safety_checker=not run.allowed.unchecked,
            **inputs,
        ):
            with delay_interrupts():  # no image without its record
                path, encoded = save_numbered_image(image, folder, mark=run.mark, names=run.names, key=run.key)
                entry = FileEntry(
                    file=str(path), prompt=image.prompt, seed=image.seed, invisible_mark=encoded.invisible_mark
                )
                if image.flagged:
                    entry["flagged"] = True
                    print_remark(f"note: {FLAGGED.format(image.prompt, image.seed)}")
                if inputs.get("repair_faces"):
                    entry["repaired_faces"] = [list(box) for box in image.repaired]
                saved.entries.append(entry)
                saved.hashes.append(record_image(path.name, encoded.content))
                saved.shown.append(make_grid_image(image))
    except KeyboardInterrupt as stop:
        total = len(run.prompts) * run.config.generate.count
        problem = f"Interrupted: {len(saved.entries)} of {total} images are in '{folder}'."
        raise make_interrupted(stop, problem, "Run the same command again.") from None
