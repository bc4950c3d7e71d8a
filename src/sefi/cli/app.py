"""The program `sefi`: every command by name."""

import logging
import os
from typing import Annotated

import typer

from sefi import __version__
from sefi.cli import attend, bench, demo, doctor, generate, inspect, learn, methods, settings, study, world
from sefi.cli.reporting import TRACE, ReportingGroup
from sefi.core.threads import limit_threads

app = typer.Typer(
    name="sefi",
    cls=ReportingGroup,
    help="Learn a person from one photo; generate them anywhere, with the prompt obeyed.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"sefi {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option("--debug", envvar=TRACE, help="Print the trace of an unexpected error.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=print_version, help="Print the version."),
    ] = False,
) -> None:
    """Options of every command; they stand before its name."""
    os.environ[TRACE] = "1" if debug else ""
    silence_libraries()
    limit_threads()


def silence_libraries() -> None:
    """Keep the libraries' progress bars and advice out of our output; commands make the remarks of `sefi.api`."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for library in ("diffusers", "transformers", "huggingface_hub", "sefi.remarks"):
        logging.getLogger(library).setLevel(logging.ERROR)


app.command("demo")(demo.demo)
app.command("learn")(learn.learn)
app.command("generate")(generate.generate)
app.command("attend")(attend.attend)
app.command("inspect")(inspect.inspect)
app.command("methods")(methods.methods)
app.command("settings")(settings.settings)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")
app.add_typer(study.app, name="study")
app.add_typer(world.app, name="world")
