"""Programs of their own, and where they find worldvq, worldvq_envs and what tests share."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT, ROOT / "envs", ROOT / "tests")


def environment(**changes: object) -> dict[str, str]:
    """The environment of this process with changes, in which Python finds what this process does."""
    found = {"PYTHONPATH": os.pathsep.join(map(str, FOLDERS))}
    return {**os.environ, **found, **{name: str(value) for name, value in changes.items()}}
