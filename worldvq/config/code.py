"""Code that a config names: ``module:name``, or ``./file.py:name``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from worldvq.errors import UsageError, one_line


def import_named(path: str) -> Any:
    """Import ``module:name``, or ``file.py:name``, whose folder other modules are then found in too, last of all.

    Raises:
        UsageError: The module or the name is not there, or the file's name is that of another module.
    """
    module, _, name = path.rpartition(":")
    try:
        return getattr(import_module(module), name)
    except UsageError:
        raise
    except Exception as error:  # whatever the module does when it is imported
        raise UsageError(
            f"'{path}' cannot be imported ({type(error).__name__}: {one_line(error)}): write module:name, "
            "importable from here, or ./file.py:name"
        ) from None


def import_module(name: str) -> Any:
    """Import a module by its name or its file; see :func:`import_named`."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    file = Path(name).resolve()
    if not file.is_file():
        raise UsageError(f"no such file: {name}")
    search_last(file.parent)
    module = importlib.import_module(file.stem)
    found = getattr(module, "__file__", None)
    if found is None or not file.samefile(found):
        raise UsageError(f"{name}: another module has the name '{file.stem}': rename the file")
    return module


def search_last(folder: Path) -> None:
    """Let modules be imported from a folder too; last, so that its files hide no package that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
