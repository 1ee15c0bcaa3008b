"""Checkpoints of training runs: model and optimizer, with a manifest of hashes, whole or not there."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldvq.errors import CorruptFileError
from worldvq.files.atomic import disk_errors, sync_folder, write_atomic
from worldvq.files.reading import read_sealed, seal
from worldvq.files.weights import check_fit, gather_tensors, layout_of, layout_of_tensors, parse_tensors, to_bytes
from worldvq.training.optimizers import state_layout


class Checkpoint(NamedTuple):
    """What one holds, every tensor whole and on the CPU.

    Attributes:
        step: Updates done.
        model: The model's ``state_dict``.
        optimizer: The optimizer's state, by ``index.key`` of the parameter (:func:`state_layout`).
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def gather_checkpoint(step: int, module: nn.Module, optimizer: torch.optim.Optimizer, keep: bool = True) -> Checkpoint:
    """Gather a checkpoint. Where the model is sharded all processes must call it; those that don't keep it get none."""
    state = optimizer.state_dict()["state"]
    flat = {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}
    return Checkpoint(step, gather_tensors(module.state_dict(), keep), gather_tensors(flat, keep))


def fill_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state of a :class:`Checkpoint`; each process takes its part where it is sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        p = parameters[int(index)]
        if hasattr(p, "device_mesh") and key != "step":
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Checkpoints:
    """The checkpoints of one training run: ``step_00001000`` folders, each with a manifest of hashes.

    A folder of that name is whole: it is written under another one, flushed and renamed, and renamed again before it
    is deleted. Names with a dot in front are work in progress, or what a crash left of it.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def clean(self) -> None:
        """Remove what a crash left; for the one process that writes."""
        with disk_errors(self.folder):
            for path in self.folder.glob(".step_*.old"):
                final = path.with_name(path.name[1:].removesuffix(".old"))
                if not final.exists():  # stopped between moving it away and putting the new one in its place
                    path.replace(final)
            for path in [*self.folder.glob(".step_*.old"), *self.folder.glob(".step_*.tmp")]:
                shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Gather and write a checkpoint."""
        self.write(gather_checkpoint(step, module, optimizer))

    def write(self, checkpoint: Checkpoint) -> None:
        """Stage, flush, rename; then delete all but the newest ``keep``.

        Raises:
            RunError: The disk is full or cannot be written to; the checkpoints before are as they were.
        """
        final = self._path(checkpoint.step)
        staged, old = (self.folder / f".{final.name}.{suffix}" for suffix in ("tmp", "old"))
        files = {
            "model.safetensors": to_bytes(checkpoint.model),
            "optimizer.safetensors": to_bytes(checkpoint.optimizer),
        }
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        manifest = {"step": checkpoint.step, "files": hashes}
        self.clean()
        try:
            for name, data in files.items():
                write_atomic(staged / name, data)
            write_atomic(staged / "manifest.json", seal(manifest))
            with disk_errors(final):
                if final.exists():
                    final.replace(old)
                staged.replace(final)
                sync_folder(self.folder)
                sync_folder(self.folder.parent)
        except BaseException:
            self.clean()
            raise
        shutil.rmtree(old, ignore_errors=True)
        for step in self.steps()[: -self.keep]:
            doomed = self.folder / f".{self._path(step).name}.tmp"
            with disk_errors(self._path(step)):
                self._path(step).replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending; other names, and folders without a manifest, are none."""
        names = [re.fullmatch(r"step_([0-9]{8,15})", path.name) for path in self.folder.glob("step_*")]
        steps = [int(name[1]) for name in names if name and (self.folder / name[0] / "manifest.json").is_file()]
        return sorted(step for step in steps if (self._path(step) / "manifest.json").is_file())

    def read_newest(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> Checkpoint | None:
        """Read the newest checkpoint, or None where there is none, and check that it fits; changes neither argument.

        Raises:
            CorruptFileError: A file is damaged or of another model; names it, and what to do.
        """
        steps = self.steps()
        if not steps:
            return None
        step = steps[-1]
        before = f"continue from step {steps[-2]}" if len(steps) > 1 else "start over"
        way_out = f"delete {self._path(step)} to {before}"
        hashes = _read_manifest(self._path(step), step, way_out)
        model, state = (_read_hashed(self._path(step) / name, digest, way_out) for name, digest in hashes.items())
        check_fit(self._path(step) / "model.safetensors", layout_of(module), layout_of_tensors(model), way_out)
        layout, path = state_layout(optimizer), self._path(step) / "optimizer.safetensors"
        indices = {name.split(".")[0] for name in state}
        check_fit(
            path,
            {name: kind for name, kind in layout.items() if name.split(".")[0] in indices},
            layout_of_tensors(state),
            way_out,
        )
        return Checkpoint(step, model, state)

    def read_weights(self) -> dict[str, Tensor]:
        """Read the model of the newest checkpoint, of which there is one.

        Raises:
            CorruptFileError: A file is damaged; names it.
        """
        step = self.steps()[-1]
        folder, way_out = self._path(step), "copy it here again"
        name, digest = next(iter(_read_manifest(folder, step, way_out).items()))
        return _read_hashed(folder / name, digest, way_out)

    def load_newest(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Fill module and optimizer from the newest checkpoint; returns its step, 0 where there is none.

        Raises:
            CorruptFileError: As :meth:`read_newest`; module and optimizer are left as they were.
        """
        newest = self.read_newest(module, optimizer)
        if newest is None:
            return 0
        module.load_state_dict(newest.model)
        fill_optimizer(optimizer, newest.optimizer)
        return newest.step


def _read_hashed(path: Path, digest: str, way_out: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read ({error.strerror}): {way_out}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise CorruptFileError(f"{path} is damaged: {way_out}")
    return parse_tensors(path, data, way_out)


def _read_manifest(folder: Path, step: int, way_out: str) -> dict[str, str]:
    """Hashes of the two files of a checkpoint, the model's first."""
    path = folder / "manifest.json"
    try:
        manifest: Any = read_sealed(path)
        hashes = {name: manifest["files"][name] for name in ("model.safetensors", "optimizer.safetensors")}
        if type(manifest["step"]) is int and manifest["step"] == step and len(manifest["files"]) == len(hashes):
            return hashes
    except (CorruptFileError, KeyError, TypeError):
        pass
    raise CorruptFileError(f"{path} is damaged: {way_out}")
