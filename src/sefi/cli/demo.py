"""`sefi demo`: one portrait learned, drawn in every kind of prompt, and told on one page."""

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
    from sefi.core.nouns import Identity
    from sefi.core.own_files import OwnFiles
    from sefi.core.protocols import Progress
    from sefi.report.page import DemoStory, Variant

NAME, CONTROL = "ada", "one-token"
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
ATTENDED = "a photo of <ada> holding a cup"
# Our own method without its two ideas: one token for every stage and for key and value alike, no
# attention loss. That is textual inversion.
ONE_TOKEN = ("learn.stages=1", "learn.split_key_value=false", "learn.attention_weight=0")
STEPS = ("generate.steps=25",)  # half of the usual 50: thirty images in half the time
QUICK = ("learn.steps=2", "generate.steps=2")
ABOUT = {
    "ours": "Key and value tokens for each stage, held to the attention of the plain word.",
    "person": "The same prompt with the plain word: what the model does unasked.",
    "one token": "One learned token, no attention loss: classic textual inversion.",
}
ATTENTION_NOTE = (
    "Above, where the words of the prompt look with the learned person; below, where they would "
    "look in the same picture with the plain word. Start and end of the sentence are words too. "
    "A learned word that took over would glow everywhere and leave the others dark."
)
PORTRAIT = "portrait.png"

Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page goes.")]
Quick = Annotated[bool, typer.Option("--quick", help="A few steps only, to see that it runs.")]


@dataclass(frozen=True)
class Run:
    """What every part of the demo works with."""

    backbone: "Backbone"
    config: "Config"
    seed: int
    progress: "Progress"
    prompts: tuple[tuple[str, str], ...] = PROMPTS


@dataclass(frozen=True)
class Portrait:
    """The drawn person to learn: the file and what is true of them."""

    path: Path
    truth: dict[str, str]


def demo(
    out: Folder = Path("demo"),
    seed: options.Seed = 0,
    quick: Quick = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Learn a drawn person from one portrait and write a page that shows what came of it."""
    from sefi.cli.opening import chosen_config, opened
    from sefi.cli.output import answer
    from sefi.cli.progress import TerminalProgress

    started = time.monotonic()
    files = demo_files(out, overwrite=overwrite)
    files.check()
    config = chosen_config("default", list(QUICK if quick else STEPS))
    portrait = bundled_portrait()
    backbone = opened(options.EMBEDDED, download=False, device="auto", dtype="float32")
    with TerminalProgress() as progress:
        run = Run(backbone, config, seed, progress)
        page = make_demo(portrait, run, files)
    seconds = round(time.monotonic() - started, 1)
    record: dict[str, object] = {"page": str(page), "seconds": seconds}
    answer(record, f"done in {seconds:.0f} s; open {page.resolve()}", as_json=as_json, command="demo")


def demo_files(folder: Path, *, overwrite: bool = False) -> "OwnFiles":
    """Return the files of a demo; its folder is created if it is missing.

    Raises:
        OutputError: nothing can be written there.
    """
    from sefi.core.files import Kind, check_folder, make_folder
    from sefi.core.own_files import OwnFiles

    identities = dict.fromkeys((f"{NAME}.safetensors", f"{CONTROL}.safetensors"), Kind.IDENTITY)
    images = dict.fromkeys((PORTRAIT, "sheet.png", "attention.png"), Kind.PNG)
    kinds = {**identities, **images, "index.html": Kind.HTML}
    return OwnFiles(make_folder(check_folder(folder)), kinds, identity=NAME, overwrite=overwrite)


def bundled_portrait() -> Portrait:
    """The portrait in the package.

    Raises:
        BackboneError: It is not in this installation.
    """
    from sefi.backbone.open import MODELS
    from sefi.core.errors import BackboneError
    from sefi.core.reading import file_errors, read_json

    folder = MODELS / "demo"
    if not (folder / "portrait.png").is_file():
        raise BackboneError("The demo's portrait is not in this installation.", "Install sefi again.")
    truth = folder / "truth.json"
    with file_errors(truth, BackboneError, "is damaged", "Install sefi again."):
        content = read_json(truth)
        traits = content.get("traits", content)
        told = {name: text for name, text in traits.items() if isinstance(text, str)}
    return Portrait(folder / "portrait.png", told)


def make_demo(portrait: Portrait, run: Run, files: "OwnFiles") -> Path:
    """Learn, generate, look into the attention, and write everything into a folder.

    Returns:
        The page. Beside it lie the portrait, the sheet, the figure and both identity files.

    Raises:
        OutputError: a file of somebody else has appeared in a place that was free before the work.
    """
    from sefi.core.files import text_writer
    from sefi.report.page import demo_page

    started = time.monotonic()
    # The commands on the page learn from this copy.
    files.write(PORTRAIT, lambda partial: shutil.copyfile(portrait.path, partial))
    ours, control = learn_both(portrait, run)
    learned = time.monotonic()
    for name, identity in ((NAME, ours), (CONTROL, control)):
        files.write(f"{name}.safetensors", identity.save)
    variants = make_variants(ours, control, run)
    generated = time.monotonic()
    times = {
        "learning, both": f"{learned - started:.0f} s",
        f"{len(variants) * len(run.prompts)} pictures": f"{generated - learned:.0f} s",
    }
    files.write("sheet.png", sheet(portrait, run, variants).save)
    figure = write_attention(ours, run, files)
    told = story(portrait, run, variants, figure, times, commands_in(files.folder))
    return files.write("index.html", text_writer(demo_page(told)))


def learn_both(portrait: Portrait, run: Run) -> tuple["Identity", "Identity"]:
    """The identity as we learn it, and as one token without attention loss."""
    from sefi.api import learn
    from sefi.core.config import override

    def learned(config: "Config") -> "Identity":
        return learn(
            portrait.path,
            name=NAME,
            backbone=run.backbone,
            config=config,
            seed=run.seed,
            crop=run.backbone.judges is not None,
            progress=run.progress,
        )

    return learned(run.config), learned(override(run.config, ONE_TOKEN))


def make_variants(ours: "Identity", control: "Identity", run: Run) -> list["Variant"]:
    """The same prompts from the same noise, three times."""
    from sefi.api import generate
    from sefi.report.page import Variant

    def images(identity: "Identity | None") -> list["Image.Image"]:
        prompts = [prompt for _, prompt in run.prompts]
        if identity is None:
            prompts = [prompt.replace(f"<{NAME}>", "person") for prompt in prompts]
        made = generate(
            prompts,
            [] if identity is None else [identity],
            backbone=run.backbone,
            config=run.config,
            seed=run.seed,
            progress=run.progress,
        )
        return [image.pixels for image in made]

    who = {"ours": ours, "person": None, "one token": control}
    return [Variant(label, ABOUT[label], images(identity)) for label, identity in who.items()]


def sheet(portrait: Portrait, run: Run, variants: list["Variant"]) -> "Image.Image":
    """All pictures in one: a row per variant, the portrait in front."""
    from PIL import Image

    from sefi.report.sheet import Row, contact_sheet

    photo = Image.open(portrait.path)
    fronts = [photo, *[None] * (len(variants) - 1)]
    rows = [Row(variant.label, [front, *variant.images]) for variant, front in zip(variants, fronts, strict=True)]
    return contact_sheet(rows, ["the one picture", *(prompt for _, prompt in run.prompts)])


def write_attention(ours: "Identity", run: Run, files: "OwnFiles") -> "Image.Image":
    """The attention figure for one prompt, as a file and as an image."""
    from PIL import Image

    from sefi.cli.attend import attention_rows, figure_writer

    rows = attention_rows(ATTENDED, [ours], run.backbone, run.config, run.seed, run.progress)
    path = files.write("attention.png", figure_writer(rows, ATTENDED))
    return Image.open(path).convert("RGB")


def story(
    portrait: Portrait,
    run: Run,
    variants: list["Variant"],
    figure: "Image.Image",
    times: dict[str, str],
    commands: tuple[str, ...],
) -> "DemoStory":
    """Everything that the page tells."""
    from PIL import Image

    from sefi.report.page import DemoStory, Example

    return DemoStory(
        name=NAME,
        photo=Image.open(portrait.path).convert("RGB"),
        truth=portrait.truth,
        examples=[Example(kind, prompt) for kind, prompt in run.prompts],
        variants=variants,
        attention=figure,
        attention_note=ATTENTION_NOTE,
        facts=facts(run) | times,
        commands=commands,
    )


def commands_in(folder: Path) -> tuple[str, ...]:
    """Return commands that can be run where the demo was started."""
    photo, identity = (shlex.quote(str(folder / name)) for name in (PORTRAIT, f"{NAME}.safetensors"))
    return (
        f"sefi learn {photo} --name bea",
        'sefi generate "a photo of <bea> at the beach" -i bea.safetensors',
        f'sefi attend "{ATTENDED}" -i {identity} --out maps.png',
    )


def facts(run: Run) -> dict[str, str]:
    """The settings and the machine, for the page."""
    learn, generate = run.config.learn, run.config.generate
    return {
        "model": f"{run.backbone.source} ({run.backbone.fingerprint})",
        "learned": f"{learn.stages} stages x key and value x {run.backbone.width} numbers",
        "learning": f"{learn.steps} steps of {learn.batch}, lambda {learn.attention_weight}",
        "drawing": f"{generate.steps} {generate.scheduler} steps, scale {generate.guidance_scale}",
        "seed": str(run.seed),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {run.backbone.device.type}",
        "versions": ", ".join([f"sefi {__version__}", *(f"{name} {version(name)}" for name in LIBRARIES)]),
    }
