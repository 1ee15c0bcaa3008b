"""The entry point: runs a verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated

import typer

from worldvq import __version__
from worldvq.cli import act, compression, config, data, dream, play, record, sample, scene, sound, train
from worldvq.errors import DEBUG, StoppedError, WorldVQError, one_line
from worldvq.training.signals import StopAtOnce

HELP = """Train a video world model of a 3D environment, then dream in it.

The road: record -> train tokenizer -> tokenize -> train dynamics -> imagine / evaluate / play.
`worldvq demo` walks it all in about ten minutes on two CPU cores.

`worldvq config list`, `show` and `explain` say what can be set.
"""
INTERRUPTED = 130
app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
for verbs in (record, train, dream, sample, scene, sound, act, play, compression, data, config):
    app.add_typer(verbs.app)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"worldvq {__version__}")
        raise typer.Exit


def _run(arguments: list[str]) -> int:
    try:
        code = app(arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer has swallowed the KeyboardInterrupt
            raise KeyboardInterrupt
    except StoppedError as stop:
        print(f"worldvq: {stop}", file=sys.stderr)
        return stop.exit_code
    except WorldVQError as error:
        print(f"worldvq: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("worldvq: interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        if _is_click_usage(error):
            message = " ".join(error.format_message().splitlines())  # type: ignore[attr-defined]
            if message:  # without a command typer has printed the help instead
                print(f"worldvq: error: {message}", file=sys.stderr)
            return 2
        print(f"worldvq: error: {type(error).__name__}: {one_line(error)} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _run_in_the_open(arguments: list[str]) -> int:
    """As :func:`_run`, but errors keep their traceback."""
    try:
        app(arguments)
    except StoppedError as stop:
        traceback.print_exc()
        return stop.exit_code
    return 0


def _is_click_usage(error: Exception) -> bool:
    """Typer carries its own click or the installed one, depending on its version: both errors look like this."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def main(given: list[str] | None = None) -> None:
    """Entry point, of a program where no arguments are given. ``--debug`` anywhere shows the traceback of an error."""
    arguments = sys.argv[1:] if given is None else given
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    os.environ.setdefault("ACCELERATE_LOG_LEVEL", "error")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths need not be UTF-8
    if debug:
        os.environ[DEBUG] = "1"
    runner = _run_in_the_open if debug else _run
    with StopAtOnce(ends_program=given is None):
        sys.exit(runner(arguments))
