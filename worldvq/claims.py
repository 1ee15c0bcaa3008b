"""A run folder belongs to one config and one set of inputs; what it was made from stands in it and is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldvq.atomic import write_atomic
from worldvq.config import ExperimentConfig, dump_yaml, parse_yaml
from worldvq.differences import differences, join, require_same
from worldvq.errors import UsageError
from worldvq.reading import read_sealed, seal
from worldvq.yaml_loading import read_yaml


def claim(out: Path, config: ExperimentConfig, what: str, inputs: dict[str, Any]) -> None:
    """Write what decides a run, or check that the run being continued has the same.

    Args:
        out: The run folder.
        config: The part of it that decides the run becomes ``config.yaml``.
        what: ``tokenizer`` or ``dynamics``.
        inputs: What the run is fed with, as JSON values; becomes ``inputs.json``.

    Raises:
        UsageError: ``out`` holds another run; names everything that differs. Nothing was written.
        CorruptFileError: ``inputs.json`` is damaged.
    """
    extra = {"tokenizer_loss"} if what == "tokenizer" else set()
    text = dump_yaml(config, include={what, f"{what}_training"} | extra)
    check_same_run(out, text, what)
    path = out / "inputs.json"
    if path.exists():  # runs from before it was written have none
        start = f"{out} holds a {what} trained on something else"
        require_same(read_sealed(path), inputs, start, "give another --out, or delete that folder", ("there", "now"))
    write_atomic(out / "config.yaml", text.encode())
    write_atomic(path, seal(inputs))


def check_same_run(out: Path, text: str, what: str) -> None:
    """Refuse to continue a run folder with another config.

    Raises:
        UsageError: ``config.yaml`` in ``out`` is there and differs; names every key that does, with both values.
    """
    path = out / "config.yaml"
    if not path.exists():
        return
    lines = differences(read_yaml(path), parse_yaml(text, "config"), ("there", "now"))
    if lines:
        raise UsageError(
            f"{out} holds a {what} trained with another config: {join(lines)}: give another --out, or delete that "
            "folder"
        )
