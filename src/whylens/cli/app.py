"""The typer application: verbs, exit codes, and one place where errors become a sentence."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from whylens import __version__
from whylens.cli import (
    banks,
    bcosify,
    bench,
    bundle,
    concepts,
    demo,
    dictionary,
    doctor,
    evaluate,
    explain,
    fit,
    key,
    merge,
    methods,
    models,
    verify,
)
from whylens.cli.console import errors
from whylens.errors import FitError, WhylensError

EXIT_CODES = """Exit codes: 0 done; 1 an unexpected error; 2 bad input or usage; 3 done, but some pictures or methods failed;
4 a fit was refused because its lens would be too poor; 5 doctor found a problem; 6 a record, explanation or bundle
does not verify; 7 it verifies, and was repeated with a difference; 130 interrupted."""

app = typer.Typer(
    name="whylens",
    help="Why did the image classifier say that? Words, each tested, with the measured faithfulness beside them.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (demo, explain, fit, evaluate, bcosify, methods, models, doctor, verify, bundle, merge):
    app.command(name=verb.__name__.rsplit(".", 1)[-1])(verb.run)
app.add_typer(banks.app, name="banks")
app.add_typer(key.app, name="key")
app.add_typer(bench.app, name="bench")
app.add_typer(dictionary.app, name="dictionary")
app.add_typer(concepts.app, name="concepts")


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
) -> None:
    """Options of every verb."""
    if version:
        sys.stdout.write(f"whylens {__version__}\n")
        raise typer.Exit
    if debug:
        os.environ["WHYLENS_DEBUG"] = "1"


def main() -> None:
    """Run the command line and leave with one of the documented exit codes."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app(prog_name="whylens")
    except WhylensError as error:
        if os.environ.get("WHYLENS_DEBUG"):
            raise
        errors().print(f"[bold red]Error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(4 if isinstance(error, FitError) else 2)
    except _InterruptedByUser:
        errors().print("Interrupted. The same command goes on where it stopped.", highlight=False)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone; nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


class _InterruptedByUser(BaseException):
    """Raised on Ctrl-C in place of KeyboardInterrupt, which typer would turn into exit code 1."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _InterruptedByUser


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
