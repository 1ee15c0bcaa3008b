"""What an evaluation leaves for programs: ``report.json``, of means and intervals, and the numbers of each clip.

``clips.safetensors`` lies beside it, so that another report on the same clips can be set against this one
(:mod:`worldvq.evaluation.comparison`). The report holds its hash, and the two are replaced together.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from worldvq.errors import CorruptFileError, UsageError
from worldvq.evaluation.parts import Part
from worldvq.files.atomic import write_together
from worldvq.files.reading import open_file, read_json
from worldvq.files.weights import parse_tensors

REPORT, CLIPS = "report.json", "clips.safetensors"
MAX_REPORT = 64 * 2**20
"""Bytes of a report; it grows with the horizon."""
BY_SITUATION = "by_situation"
"""Key under which a test that plays situations returns arrays of one row a situation."""
_TRANSITIONS = ("rewards", "rewards_true", "termination", "termination_true")
_KEPT = ("error/", "ssim/", "regions/")


@dataclass(frozen=True)
class Evaluation:
    """A report, read again.

    Attributes:
        folder: Where it lies.
        report: Its ``report.json``.
        clips: Arrays by name, see :func:`clips_of`.
    """

    folder: Path
    report: dict[str, Any]
    clips: Part


def clips_of(collected: Part, ids: np.ndarray, hashes: Sequence[str], context: int, order: np.ndarray) -> Part:
    """Return what is kept of n clips and N imagined frames.

    Args:
        collected: As :func:`worldvq.evaluation.summary.summarize` takes it, with those clips that are ``shown``.
        ids: (n, 2) episode and first frame of each clip.
        hashes: SHA-256 of the file of each clip's episode, as hex.
        context: Frames that were given.
        order: In which order the clips are shown.

    Returns:
        ``ids``; ``episodes`` (n, 32), the hashes; ``error/NAME``, ``ssim/NAME`` (n, N) and ``regions/NAME`` (n, N - 1);
        ``nats`` a token, ``rewards``, ``termination`` and what was recorded of both, (n, N); and of the clips that are
        shown ``shown/real`` (B, T, H, W, 3), ``shown/seen``, what the model was given and then imagined, and
        ``shown/actions``.
    """
    num_clips = len(ids)
    kept = {name: array for name, array in collected.items() if name.startswith(_KEPT)}
    kept |= {name: collected[name].reshape(num_clips, -1) for name in _TRANSITIONS}
    real, rebuilt, imagined, actions = (
        collected[f"shown/{name}"][order] for name in ("real", "reconstruction", "imagined", "actions")
    )
    return kept | {
        "ids": ids,
        "episodes": np.array([list(bytes.fromhex(text)) for text in hashes], np.uint8),
        "nats": collected["nats"].mean((1, 2)).reshape(num_clips, -1),
        "shown/real": real,
        "shown/seen": np.concatenate([rebuilt[:, :context], imagined], axis=1),
        "shown/actions": actions,
    }


def situations_of(tests: dict[str, Any]) -> tuple[dict[str, Any], Part]:
    """Split what tests found into what goes into the report, and arrays ``TEST/NAME`` of one row a situation."""
    report: dict[str, Any] = {}
    kept: Part = {}
    for test, found in tests.items():
        report[test] = {key: value for key, value in found.items() if key != BY_SITUATION}
        kept |= {f"{test}/{name}": array for name, array in found.get(BY_SITUATION, {}).items()}
    return report, kept


def write_report(out: Path, report: dict[str, Any], clips: Part) -> None:
    """Write ``clips.safetensors`` and ``report.json``, which is there only if the other one is.

    Raises:
        RunError: They cannot be written.
    """
    data = save({name: np.ascontiguousarray(array) for name, array in clips.items()})
    report = {**report, "clips": {"file": CLIPS, "sha256": hashlib.sha256(data).hexdigest()}}
    write_together({out / CLIPS: data, out / REPORT: to_json(report)})


def read_report(path: Path) -> Evaluation:
    """Read what :func:`write_report` wrote.

    Args:
        path: The folder, or its ``report.json``.

    Raises:
        UsageError: There is none, or one that kept nothing of its clips.
        CorruptFileError: A file is damaged, or the two are not of one evaluation.
    """
    folder = path.parent if path.name == REPORT else path
    file, again = folder / REPORT, f"run `worldvq evaluate --out {folder}` again"
    if not file.is_file():
        raise UsageError(f"no report in {folder} (no {REPORT}): make one with `worldvq evaluate --out {folder}`")
    report = read_json(file, MAX_REPORT)
    if not isinstance(report, dict) or not isinstance(report.get("protocol"), dict):
        raise CorruptFileError(f"{file}: not the report of an evaluation: {again}")
    if not isinstance(report.get("clips"), dict):
        raise UsageError(f"{file} is of an older worldvq, which kept no numbers of single clips: {again}")
    with open_file(folder / CLIPS) as (opened, size):
        data = opened.read(size)
    if hashlib.sha256(data).hexdigest() != report["clips"].get("sha256"):
        raise CorruptFileError(
            f"{folder / CLIPS} is damaged, or of another evaluation than {REPORT} beside it: {again}"
        )
    tensors = parse_tensors(folder / CLIPS, data, again)
    try:
        return Evaluation(folder, report, {name: tensor.numpy() for name, tensor in tensors.items()})
    except TypeError as error:  # a type that NumPy lacks
        raise CorruptFileError(f"{folder / CLIPS}: {error}: {again}") from None


def finite(value: Any) -> Any:
    """Return JSON values without NaN: what could not be computed (say, a precision without positives) becomes null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(report: dict[str, Any]) -> bytes:
    """Return a report, :func:`finite` already, as people and programs read it."""
    return json.dumps(report, indent=1, allow_nan=False).encode()
