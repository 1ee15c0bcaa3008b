"""A run folder belongs to one config and one set of inputs; what it was made from stands in it and is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldvq.config.yaml_loading import dump_yaml, read_yaml
from worldvq.files.atomic import write_atomic
from worldvq.files.differences import require_same
from worldvq.files.reading import read_sealed, seal

_RUNS = ("that run had", "this one has")
_WAY_OUT = "give another --out, or delete that folder"


def claim(out: Path, what: str, config: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Write what decides a run, or check that the run being continued has the same.

    Args:
        out: The run folder.
        what: What is trained, for messages: ``tokenizer``, ``dynamics``.
        config: The sections that decide the run, as JSON values; they become ``config.yaml``.
        inputs: What the run is fed with, as JSON values; becomes ``inputs.json``.

    Raises:
        UsageError: ``out`` holds another run; names everything that differs. Nothing was written.
        CorruptFileError: ``inputs.json`` is damaged.
    """
    check_same_run(out, config, what)
    path = out / "inputs.json"
    if path.exists():  # runs from before it was written have none
        there = read_sealed(path)
        here = {key: inputs.get(key) for key in there}  # an older run has not written all of them
        problem = f"{out} holds a {what} trained on something else"
        require_same(there, here, _RUNS, problem, "give another --out, or what that run was trained on")
    write_atomic(out / "config.yaml", dump_yaml(config).encode())
    write_atomic(path, seal(inputs))


def check_same_run(out: Path, config: dict[str, Any], what: str) -> None:
    """Refuse to continue a run folder with another config.

    Raises:
        UsageError: ``config.yaml`` in ``out`` is there and differs; names every key that does, with both values.
    """
    path = out / "config.yaml"
    if path.exists():
        require_same(read_yaml(path), config, _RUNS, f"{out} holds a {what} trained with another config", _WAY_OUT)
