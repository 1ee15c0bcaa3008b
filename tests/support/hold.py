"""Commands that wait at a place of their work until they are told to go on: a signal meets them there, however busy
the machine is.

Run as a module, it is the command line that is held where its environment says.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

from support.fault_tools import wait_until

HOLD = "WORLDVQ_TEST_HOLD"


class Hold:
    """A place: where a function returns for the n-th time.

    Attributes:
        environment: What is to stand in the environment of a command that is to be held.
    """

    def __init__(self, folder: Path, function: str, calls: int = 1):
        """Describe a place.

        Args:
            folder: Where commands and this process leave signs for each other; it does not exist yet.
            function: ``module:name`` or ``module:class.name``.
            calls: At which call a command waits.
        """
        folder.mkdir()
        self.folder = folder
        self.environment = {HOLD: json.dumps([str(folder), function, calls])}

    def wait(self, count: int = 1) -> None:
        """Return when so many processes are there."""
        assert wait_until(lambda: len(list(self.folder.glob("held-*"))) == count, every=0.005), "it never got there"

    def release(self) -> None:
        """Let all of them go on, and all that come there later."""
        (self.folder / "go").touch()


def install() -> None:
    """Hold this process, if its environment says so."""
    if HOLD not in os.environ:
        return
    folder, function, calls = json.loads(os.environ.pop(HOLD))
    module, _, name = function.partition(":")
    *path, name = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    original, count = getattr(owner, name), 0

    def held(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        result = original(*arguments, **options)
        count += 1
        if count == calls:
            (Path(folder) / f"held-{os.getpid()}").touch()
            while not (Path(folder) / "go").exists():
                time.sleep(0.01)
        return result

    setattr(owner, name, held)


if __name__ == "__main__":
    install()
    from worldvq.cli.main import main

    main()
