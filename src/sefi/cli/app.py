"""The program `sefi`: every command by name."""

import logging
import os
from typing import Annotated

import typer

from sefi import __version__
from sefi.cli import (
    attend,
    batch,
    bench,
    compare,
    demo,
    describe,
    doctor,
    encoder,
    export,
    forget,
    generate,
    key,
    learn,
    score,
    serve,
    study,
    verify,
    world,
)
from sefi.cli.error_reporting import ReportingGroup
from sefi.core.errors import TRACE
from sefi.core.process import limit_addresses, limit_threads

app = typer.Typer(
    name="sefi",
    cls=ReportingGroup,
    help="Learn a person from one photo; generate them anywhere a prompt asks for.",
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
def set_up(
    debug: Annotated[
        bool, typer.Option("--debug", envvar=TRACE, help="Print the trace of an unexpected error.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=print_version, help="Print the version."),
    ] = False,
) -> None:
    """Set up what all commands share; these options stand before a command's name."""
    os.environ[TRACE] = "1" if debug else ""
    silence_libraries()
    limit_threads()
    limit_addresses()


def silence_libraries() -> None:
    """Keep the libraries' progress bars and advice out of our output; commands make the remarks of `sefi.api`."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # it asks a server which program calls, and tells it
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for library in ("diffusers", "transformers", "huggingface_hub", "sefi.remarks"):
        logging.getLogger(library).setLevel(logging.ERROR)


app.command("demo")(demo.run_demo)
app.command("learn")(learn.run_learn)
app.command("batch")(batch.run_batch)
app.command("generate")(generate.run_generate)
app.command("attend")(attend.run_attend)
app.command("export")(export.run_export)
app.command("import")(export.run_import)
app.command("inspect")(describe.run_inspect)
app.command("compare")(compare.run_compare)
app.command("methods")(describe.list_methods)
app.command("settings")(describe.list_settings)
app.command("verify")(verify.run_verify)
app.command("key")(key.run_key)
app.command("forget")(forget.run_forget)
app.command("doctor")(doctor.run_doctor)
app.command("score")(score.run_score)
app.command("serve")(serve.run_serve)
app.add_typer(encoder.app, name="encoder")
app.add_typer(bench.app, name="bench")
app.add_typer(study.app, name="study")
app.add_typer(world.app, name="world")
