"""How a command ends: a typed error, Ctrl-C or a crash becomes two short lines and an exit code."""

import os
import sys
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from sefi.core.errors import SefiError, how_to_install
from sefi.core.json_text import dump_json

CRASHED = 1
REFUSED = 2
INTERRUPTED = 130
EXTRAS = {"skia": "world", "onnx": "world", "peft": "lora"}  # modules that only some installations have
TRACE = "SEFI_DEBUG"  # set and not empty: a crash prints its trace


class ReportingGroup(TyperGroup):
    """A group of commands whose failures are told in one place."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  typer hides the type
        """Remember whether this run speaks JSON, for errors before its options are read."""
        ctx.meta["sefi.json"] = "--json" in args
        print_any_text()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  typer hides the type
        """Run a command; report whatever it raises."""
        as_json = bool(ctx.meta["sefi.json"])
        try:
            return super().invoke(ctx)
        except SefiError as error:
            end(error.problem, error.remedy, code=error.exit_code, as_json=as_json)
        except KeyboardInterrupt:
            end("Interrupted.", "Run the command again.", code=INTERRUPTED, as_json=as_json)
        except typer.TyperException as error:
            if not as_json:
                raise
            remedy = f"{ctx.command_path} --help"
            end(error.format_message(), remedy, code=error.exit_code, as_json=True)
        except (typer.Exit, typer.Abort, SystemExit):
            raise
        except BrokenPipeError:
            # Whoever read our output has enough of it (`| head`); Python would complain again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(CRASHED) from None
        except Exception as error:
            crash(error, as_json=as_json)


def print_any_text() -> None:
    """Let both streams take every text: what their encoding lacks, and bytes that are no text, become escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def crash(error: Exception, *, as_json: bool) -> NoReturn:
    """Tell of an error that nobody foresaw, its trace only when asked for; a missing extra is told as what it is."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        remedy = how_to_install(EXTRAS[error.name])
        end(f"This needs the package {error.name}, which is not installed.", remedy, code=REFUSED, as_json=as_json)
    if os.environ.get(TRACE):
        traceback.print_exception(error, file=sys.stderr)
    text = " ".join(str(error).split())[:300]
    problem = f"Unexpected {type(error).__name__}: {text}" if text else type(error).__name__
    remedy = "Run it again as `sefi --debug ...` and report what it prints."
    end(problem, remedy, code=CRASHED, as_json=as_json)


def end(problem: str, remedy: str, *, code: int, as_json: bool) -> NoReturn:
    """Say what is wrong and what to do, and end the program with this exit code."""
    if as_json:
        typer.echo(dump_json({"schema": "error/1", "error": problem, "try": remedy}))
    else:
        typer.echo(f"error: {problem}\n  try: {remedy}", err=True)
    raise typer.Exit(code)
