"""Work in parts that are kept until all are done: a run that was ended goes on with the parts that are missing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from worldvq.errors import CorruptFileError
from worldvq.files.atomic import disk_errors, remove_stale, write_atomic

Part = dict[str, np.ndarray]
"""What one part of the work gathered: arrays by name. Parts are joined along the first axis."""


def key_of(about: dict[str, Any]) -> str:
    """Hash what parts depend on, JSON values: their key."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


class Parts:
    """Files of finished parts, in a hidden folder that is named after what the work depends on."""

    def __init__(self, out: Path, key: str, work: str = "parts"):
        """Name the folder; nothing is read or made.

        Args:
            out: Where the result of the work goes.
            key: A hash of everything that the parts depend on. Parts under another key are never read.
            work: What tells it from other work that goes to the same place.
        """
        self._out, self._work, self._folder = out, work, out / f".{work}-{key[:16]}"

    def prepare(self) -> None:
        """Remove what belongs to other work, and what a writer that was killed left half-written."""
        with disk_errors(self._folder):
            for folder in self._out.glob(f".{self._work}-*"):
                if folder != self._folder:
                    shutil.rmtree(folder)
            for folder in (self._out, self._folder):
                remove_stale(folder)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.safetensors"

    def __contains__(self, number: int) -> bool:
        """Whether a part is there and undamaged."""
        return self._read(number) is not None

    def write(self, number: int, part: Part) -> None:
        """Keep a part.

        Raises:
            RunError: It cannot be written.
        """
        part = {name: np.ascontiguousarray(array) for name, array in part.items()}
        write_atomic(self._path(number), save(part, {"sha256": _digest(part)}))

    def _read(self, number: int) -> Part | None:
        """Return a part, or None if it is missing or damaged."""
        try:
            with safe_open(self._path(number), "numpy") as file:
                digest = (file.metadata() or {}).get("sha256")
                part = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        except (OSError, SafetensorError):
            return None
        return part if _digest(part) == digest else None

    def ensure(self, number: int, make: Callable[[], Part]) -> Part:
        """Return a part: the one that is there, or else the one that is made now, and kept.

        Raises:
            RunError: It cannot be written.
        """
        part = self._read(number)
        if part is None:
            part = make()
            self.write(number, part)
        return part

    def join(self, count: int) -> Part:
        """Return all parts, in order, as one.

        Raises:
            CorruptFileError: One is missing or damaged, though it was written.
        """
        parts = []
        for number in range(count):
            part = self._read(number)
            if part is None:
                raise CorruptFileError(f"{self._path(number)}: missing or damaged; run the same command again")
            parts.append(part)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def remove(self) -> None:
        """Remove all parts: the work is done."""
        with disk_errors(self._folder):
            shutil.rmtree(self._folder)


def _digest(part: Part) -> str:
    return hashlib.sha256(save(part)).hexdigest()
