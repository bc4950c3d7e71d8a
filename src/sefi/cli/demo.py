"""`sefi demo`: learn one portrait, generate it in every kind of prompt, and show it on one page."""

import os
import platform
import shlex
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi import __version__
from sefi.cli import options

if TYPE_CHECKING:
    from PIL import Image

    from sefi.backbone.bundle import Backbone
    from sefi.core.config import Config
    from sefi.core.own_files import OwnFiles
    from sefi.core.progress import Progress
    from sefi.identity.file import Identity
    from sefi.report.pages import DemoContent, DemoVariant

NAME, LEARNED, CONTROL = "ada", "learned", "one-token"
PRESET, LEARNING_PRESET = "default", "fast"
LIBRARIES = ("torch", "diffusers", "transformers")
PROMPTS = (
    ("scene", "a photo of <ada> at the beach"),
    ("scene", "a photo of <ada> in the snow"),
    ("action", "a photo of <ada> holding a cup"),
    ("action", "a photo of <ada> playing the guitar"),
    ("attribute", "a photo of <ada> smiling"),
    ("attribute", "a photo of <ada> wearing sunglasses"),
    ("style", "a painting of <ada>"),
    ("style", "a pencil drawing of <ada>"),
    ("combination", "a photo of <ada> smiling, holding a balloon, in the forest"),
    ("combination", "a painting of <ada> reading a book at the beach"),
)
ATTENTION_PROMPT = "a photo of <ada> holding a cup"
# SeFi-IDE without its two ideas: one token for every stage and for key and value alike, no
# attention loss. That is textual inversion.
ONE_TOKEN = ("learn.stages=1", "learn.split_key_value=false", "learn.attention_weight=0")
STEPS = ("generate.steps=25",)  # half of the usual 50: thirty images in half the time
QUICK = ("learn.steps=2", "generate.steps=2")
DEFAULT_LABEL = "SeFi-IDE"
LEARNED_LABEL = "attention loss"
CONTROL_LABEL = "one token"
ABOUT = {
    DEFAULT_LABEL: "The default: learned from what the name encoder reads in the photo, for 15 steps.",
    LEARNED_LABEL: "Key and value tokens for each stage, learned and held to the attention of the plain word.",
    "person": "The same prompt with the plain word: what the model does unasked.",
    CONTROL_LABEL: "One learned token, no attention loss: classic textual inversion.",
}
ATTENTION_NOTE = (
    "Above, where the words of the prompt look with the learned person; below, where they would "
    "look in the same image with the plain word. Start and end of the sentence are words too. "
    "A learned word that took over would glow everywhere and leave the others dark."
)
PORTRAIT = "portrait.png"
# The README shows the sheet with this text: one made on such a machine is the same file, byte for byte.
SHEET_TITLE = "the one photo"

Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page goes.")]
Quick = Annotated[bool, typer.Option("--quick", help="A few steps only, to see that it runs.")]


@dataclass(frozen=True)
class DemoRun:
    """What every part of the demo works with."""

    backbone: "Backbone"
    config: "Config"
    learning_config: "Config"
    seed: int
    progress: "Progress"
    prompts: tuple[tuple[str, str], ...] = PROMPTS
    mark: bool = True


@dataclass(frozen=True)
class DemoPortrait:
    """The drawn person to learn: the file and what is true of them."""

    path: Path
    truth: dict[str, str]


def run_demo(
    out: Folder = Path("demo"),
    seed: options.Seed = 0,
    quick: Quick = False,
    overwrite: options.Overwrite = False,
    no_mark: options.NoMark = False,
    as_json: options.AsJson = False,
) -> None:
    """Learn a drawn person from one portrait and write a page that shows what came of it."""
    from sefi.cli.loading import import_libraries, load_backbone, load_config
    from sefi.cli.output import print_answer
    from sefi.cli.progress import TerminalProgress

    started = time.monotonic()
    files = prepare_demo_files(out, overwrite=overwrite)
    files.check()
    config = load_config(PRESET, list(QUICK if quick else STEPS))
    # Half the steps: on two cores all of `make demo` shall take less than four minutes.
    learning_config = load_config(LEARNING_PRESET, list(QUICK if quick else ()))
    import_libraries()
    portrait = load_portrait()
    backbone = load_backbone(options.EMBEDDED, download=False, device="auto", dtype="float32")
    with TerminalProgress() as progress:
        run = DemoRun(backbone, config, learning_config, seed, progress, mark=not no_mark)
        page = make_demo(portrait, run, files)
    seconds = round(time.monotonic() - started, 1)
    record: dict[str, object] = {"page": str(page), "mark": not no_mark, "seconds": seconds}
    print_answer(record, f"done in {seconds:.0f} s; open {page.resolve()}", as_json=as_json, command="demo")


def prepare_demo_files(folder: Path, *, overwrite: bool = False) -> "OwnFiles":
    """Return the files of a demo; its folder is created if it is missing.

    Raises:
        OutputError: nothing can be written there.
    """
    from sefi.core.files import FileKind, prepare_folder
    from sefi.core.own_files import OwnFiles

    identities = dict.fromkeys((f"{one}.safetensors" for one in (NAME, LEARNED, CONTROL)), FileKind.IDENTITY)
    images = dict.fromkeys((PORTRAIT, "sheet.png", "attention.png"), FileKind.PNG)
    kinds = {**identities, **images, "index.html": FileKind.HTML}
    return OwnFiles(prepare_folder(folder), kinds, identity=NAME, overwrite=overwrite)


def load_portrait() -> DemoPortrait:
    """Return the portrait in the package.

    Raises:
        BackboneError: It is not in this installation.
    """
    from sefi.backbone.open import MODELS
    from sefi.core.errors import BackboneError
    from sefi.core.reading import read_json, translate_file_errors

    folder = MODELS / "demo"
    if not (folder / "portrait.png").is_file():
        raise BackboneError("The demo's portrait is not in this installation.", "Install sefi again.")
    truth = folder / "truth.json"
    with translate_file_errors(truth, BackboneError, "is damaged", "Install sefi again."):
        content = read_json(truth)
        traits = content.get("traits", content)
        trait_texts = {name: text for name, text in traits.items() if isinstance(text, str)}
    return DemoPortrait(folder / "portrait.png", trait_texts)


def make_demo(portrait: DemoPortrait, run: DemoRun, files: "OwnFiles") -> Path:
    """Learn, generate, draw the attention, and write everything into a folder.

    Returns:
        The page. Beside it lie the portrait, the sheet, the figure and the three identity files.

    Raises:
        OutputError: a file of somebody else has appeared in a place that was free before the work.
    """
    from sefi.core.files import make_text_writer
    from sefi.identity.file import compute_identity_digest
    from sefi.provenance.save import encode_image
    from sefi.report.pages import render_demo_page

    started = time.monotonic()
    # The commands on the page learn from this copy.
    files.write(PORTRAIT, lambda partial: shutil.copyfile(portrait.path, partial))
    identities = learn_variants(portrait, run)
    learned = time.monotonic()
    for name, identity in identities.items():
        files.write(f"{name}.safetensors", identity.save)
    variants = make_variants(identities, run)
    generated = time.monotonic()
    times = {
        "learning, all three": f"{learned - started:.0f} s",
        f"{len(variants) * len(run.prompts)} images": f"{generated - learned:.0f} s",
    }
    digests = [compute_identity_digest(identity) for identity in identities.values()]
    sheet = encode_image(draw_demo_sheet(portrait, run, variants), mark=run.mark, identities=digests)
    files.write("sheet.png", sheet.write)
    figure = write_demo_attention(identities[NAME], run, files)
    content = collect_demo_content(portrait, run, variants, figure, times, list_demo_commands(files.folder))
    return files.write("index.html", make_text_writer(render_demo_page(content, digests)))


def learn_variants(portrait: DemoPortrait, run: DemoRun) -> dict[str, "Identity"]:
    """Learn the identity by the default, with the attention loss, and as one token; by the names of their files."""
    from sefi.api import learn
    from sefi.benchmark.identities import Stopwatch
    from sefi.core.config import override

    configs = {
        NAME: (DEFAULT_LABEL, run.config),
        LEARNED: (LEARNED_LABEL, run.learning_config),
        CONTROL: (CONTROL_LABEL, override(run.learning_config, ONE_TOKEN)),
    }
    return {
        name: learn(
            portrait.path,
            name=NAME,
            backbone=run.backbone,
            config=config,
            seed=run.seed,
            crop=run.backbone.is_embedded,
            progress=Stopwatch(run.progress, f"{label}: "),
        )
        for name, (label, config) in configs.items()
    }


def make_variants(identities: dict[str, "Identity"], run: DemoRun) -> list["DemoVariant"]:
    """Generate the same prompts from the same noise, once for each variant."""
    from sefi.api import generate
    from sefi.benchmark.identities import Stopwatch
    from sefi.report.pages import DemoVariant

    def generate_all(label: str, identity: "Identity | None") -> list["Image.Image"]:
        prompts = [prompt for _, prompt in run.prompts]
        if identity is None:
            prompts = [prompt.replace(f"<{NAME}>", "person") for prompt in prompts]
        made = generate(
            prompts,
            [] if identity is None else [identity],
            backbone=run.backbone,
            config=run.config,
            seed=run.seed,
            progress=Stopwatch(run.progress, f"{label}: "),
        )
        return [image.pixels for image in made]

    who = {
        DEFAULT_LABEL: identities[NAME],
        LEARNED_LABEL: identities[LEARNED],
        CONTROL_LABEL: identities[CONTROL],
        "person": None,
    }
    return [DemoVariant(label, ABOUT[label], generate_all(label, identity)) for label, identity in who.items()]


def draw_demo_sheet(portrait: DemoPortrait, run: DemoRun, variants: list["DemoVariant"]) -> "Image.Image":
    """Draw all images in one: a row per variant, the portrait in front."""
    from PIL import Image

    from sefi.report.contact_sheet import SheetRow, draw_contact_sheet

    photo = Image.open(portrait.path)
    fronts = [photo, *[None] * (len(variants) - 1)]
    rows = [SheetRow(variant.label, [front, *variant.images]) for variant, front in zip(variants, fronts, strict=True)]
    return draw_contact_sheet(rows, [SHEET_TITLE, *(prompt for _, prompt in run.prompts)])


def write_demo_attention(ada: "Identity", run: DemoRun, files: "OwnFiles") -> "Image.Image":
    """Write the attention figure for one prompt; return it as an image."""
    from PIL import Image

    from sefi.cli.attend import compute_attention_rows, make_figure_writer

    rows = compute_attention_rows(ATTENTION_PROMPT, [ada], run.backbone, run.config, run.seed, run.progress)
    # The name of nobody: the page shows the same prompts.
    write = make_figure_writer(rows, ATTENTION_PROMPT, mark=run.mark, identities=[ada], names=True)
    path = files.write("attention.png", write)
    return Image.open(path).convert("RGB")


def collect_demo_content(
    portrait: DemoPortrait,
    run: DemoRun,
    variants: list["DemoVariant"],
    figure: "Image.Image",
    times: dict[str, str],
    commands: tuple[str, ...],
) -> "DemoContent":
    """Return everything that the page shows."""
    from PIL import Image

    from sefi.report.pages import DemoContent, DemoPrompt

    return DemoContent(
        name=NAME,
        photo=Image.open(portrait.path).convert("RGB"),
        truth=portrait.truth,
        examples=[DemoPrompt(kind, prompt) for kind, prompt in run.prompts],
        variants=variants,
        attention=figure,
        attention_note=ATTENTION_NOTE,
        facts=collect_demo_facts(run) | times,
        commands=commands,
        mark=run.mark,
    )


def list_demo_commands(folder: Path) -> tuple[str, ...]:
    """Return commands that can be run where the demo was started."""
    photo, identity = (shlex.quote(str(folder / name)) for name in (PORTRAIT, f"{NAME}.safetensors"))
    return (
        f"sefi learn {photo} --name bea",
        'sefi generate "a photo of <bea> at the beach" -i bea.safetensors',
        f'sefi attend "{ATTENTION_PROMPT}" -i {identity} --out maps.png',
    )


def collect_demo_facts(run: DemoRun) -> dict[str, str]:
    """Return the settings and the machine, for the page."""
    learn, generate = run.learning_config.learn, run.config.generate
    return {
        "model": f"{run.backbone.source} ({run.backbone.fingerprint})",
        "learned": f"{learn.stages} stages x key and value x {run.backbone.token_width} numbers",
        "learning": f"{LEARNED_LABEL}: {learn.steps} steps of {learn.batch}, lambda {learn.attention_weight}",
        "generation": f"{generate.steps} {generate.scheduler} steps, scale {generate.guidance_scale}",
        "seed": str(run.seed),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {run.backbone.device.type}",
        "versions": ", ".join([f"sefi {__version__}", *(f"{name} {version(name)}" for name in LIBRARIES)]),
    }
