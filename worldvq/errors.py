"""The ways in which a run ends early, the exit codes that go with them, and the words that messages share."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

DEBUG = "WORLDVQ_DEBUG"
"""The environment variable that has processes show the traceback of an error; ``--debug`` sets it."""


class WorldVQError(Exception):
    """Base of the errors that the command line prints as one line, without a traceback."""

    exit_code = 1


class UsageError(WorldVQError, ValueError):
    """What was asked for cannot be done as asked: exit code 2. The message names the value and the way out."""

    exit_code = 2


class RunError(WorldVQError, RuntimeError):
    """Something failed while running (disk, codec, worker, corrupt file): exit code 1."""

    exit_code = 1


class CorruptFileError(RunError):
    """A file does not hold what its index or manifest says. The message names the file."""


class StoppedError(WorldVQError):
    """A signal asked the process to end. What was done is saved; the exit code is 128 + the signal's number."""

    def __init__(self, signum: int):
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; run the same command again to continue")


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the option nearest to ``word``, or ``""``."""
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


def plural(count: int, what: str) -> str:
    """Return ``"1 episode"``, ``"0 episodes"``, ``"12,000 episodes"``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def one_line(error: BaseException) -> str:
    """Return what an error says in one line: each run of line breaks and spaces in it as one space."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, as torch writes many; its type where it says nothing."""
    return str(error).strip().partition("\n")[0].rstrip() or type(error).__name__
