"""The command line as tests call it: in this process, or as a process of its own."""

import contextlib
import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from worldvq.cli.main import main

COMMAND = [sys.executable, "-m", "worldvq.cli"]


def run(*arguments):
    """Run in this process, and say how it ended and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return SimpleNamespace(returncode=stop.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue())


def spawn(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
