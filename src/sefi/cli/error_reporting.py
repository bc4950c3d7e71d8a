"""End a command: a typed error, Ctrl-C, SIGTERM or a crash becomes two short lines and an exit code."""

import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from sefi.core.errors import (
    SefiError,
    answer_termination,
    describe_machine_fault,
    find_interrupt,
    join_message,
    make_interrupted,
    print_trace,
    suggest_install,
)
from sefi.core.text import dump_json, escape_controls

CRASHED = 1
REFUSED = 2
EXTRAS = {
    "skia": "world",
    "onnx": "world",
    "peft": "lora",
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
}  # modules that only some installations have


class ReportingGroup(TyperGroup):
    """A group of commands whose failures are reported in one place."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  typer hides the type
        """Remember whether this run prints JSON, for errors before its options are read."""
        ctx.meta["sefi.json"] = "--json" in args
        print_any_text()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  typer hides the type
        """Run a command; report whatever it raises."""
        as_json = bool(ctx.meta["sefi.json"])
        try:
            with answer_termination():
                return super().invoke(ctx)
        except SefiError as error:
            print_trace(error)
            end_program(error.problem, error.remedy, code=error.exit_code, as_json=as_json)
        except KeyboardInterrupt as stop:
            report_interrupt(stop, as_json=as_json)
        except typer.TyperException as error:
            if not as_json:
                raise
            remedy = f"{ctx.command_path} --help"
            end_program(error.format_message(), remedy, code=error.exit_code, as_json=True)
        except (typer.Exit, typer.Abort, SystemExit):
            raise
        except BrokenPipeError:
            discard_output()  # whoever read it has enough (`| head`)
            raise typer.Exit(CRASHED) from None
        except Exception as error:
            report_crash(error, as_json=as_json)


def report_interrupt(stop: KeyboardInterrupt, *, as_json: bool) -> NoReturn:
    """Report that the command was interrupted or asked to end."""
    error = make_interrupted(stop, "Interrupted.", "Run the command again.")
    end_program(error.problem, error.remedy, code=error.exit_code, as_json=as_json)


def print_any_text() -> None:
    """Let both streams take every text: what their encoding lacks, and bytes that are no text, become escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def report_crash(error: Exception, *, as_json: bool) -> NoReturn:
    """Report an unexpected error, its trace only when asked for; a missing extra has a message of its own.

    An import that a signal broke off is an interrupt.
    """
    stop = find_interrupt(error)
    if stop is not None:
        report_interrupt(stop, as_json=as_json)
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        remedy = suggest_install(EXTRAS[error.name])
        end_program(
            f"This needs the package {error.name}, which is not installed.", remedy, code=REFUSED, as_json=as_json
        )
    print_trace(error)
    fault = describe_machine_fault(error)
    if fault is not None:
        end_program(fault.problem, fault.remedy, code=REFUSED, as_json=as_json)
    text = join_message(error)
    problem = f"Unexpected {type(error).__name__}: {text}" if text else type(error).__name__
    remedy = "Run it again as `sefi --debug ...` and report what it prints."
    end_program(problem, remedy, code=CRASHED, as_json=as_json)


def end_program(problem: str, remedy: str, *, code: int, as_json: bool) -> NoReturn:
    """Print the problem and its remedy, and end the program with this exit code."""
    if as_json:
        print_error_record({"schema": "error/1", "error": problem, "try": remedy})
    else:
        typer.echo(f"error: {escape_controls(problem)}\n  try: {escape_controls(remedy)}", err=True)
    raise typer.Exit(code)


def print_error_record(record: dict[str, object]) -> None:
    """Print an error as JSON on stdout, and on stderr where stdout takes nothing, as on a full disk."""
    try:
        typer.echo(dump_json(record))
    except OSError:
        discard_output()
        typer.echo(dump_json(record), err=True)


def discard_output() -> None:
    """Send what is left for stdout nowhere: Python would fail on it again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
