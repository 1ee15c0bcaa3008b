"""The command line as tests call it: in this process, or as a process of its own."""

import contextlib
import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from support import programs
from worldvq.cli.main import main

COMMAND = [sys.executable, "-m", "worldvq"]


def run(*arguments):
    """Run in this process, and say how it ended and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return SimpleNamespace(returncode=stop.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue())


def spawn(*arguments, command=tuple(COMMAND)):
    """Run in a process of its own."""
    words = [*command, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, env=programs.environment())


def spawn_light(*arguments):
    """Run in a process of its own that is not to import torch, which takes seconds."""
    code = "import sys\nfrom worldvq.cli.main import main\n"
    code += "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    return spawn(*arguments, command=(sys.executable, "-c", code))


def succeed(*arguments, how=run):
    """What a command printed that has to end well."""
    result = how(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def check_error(result, code, words):
    """One line on stderr that holds these words."""
    error = result.stderr.removesuffix("\n")
    assert result.returncode == code, error
    assert error.startswith("worldvq: error: ") and "\n" not in error, error
    assert "Traceback" not in result.stdout + error
    assert all(word in error for word in words), error
