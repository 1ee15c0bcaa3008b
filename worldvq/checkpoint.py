"""Weights and configs on disk: safetensors and YAML, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from worldvq.atomic import sync_folder, write_atomic
from worldvq.errors import CorruptFileError, UsageError


def save_module(path: Path, module: nn.Module) -> None:
    """Write a module's parameters and buffers as one safetensors file."""
    write_atomic(path, _to_bytes(module.state_dict()))


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UsageError: It does not exist.
        CorruptFileError: It is no safetensors file.
    """
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    try:
        return load_tensors(path.read_bytes())
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None


def load_module(path: Path, module: nn.Module) -> None:
    """Fill a module from :func:`save_module`'s file.

    Raises:
        CorruptFileError: The file's names or shapes are not the module's.
    """
    _fill(path, module, read_tensors(path))


def _fill(path: Path, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    expected = {name: value.shape for name, value in module.state_dict().items()}
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected or tensors[name].shape != expected[name]:
            found = list(tensors[name].shape) if name in tensors else "nothing"
            wanted = list(expected[name]) if name in expected else "nothing"
            raise CorruptFileError(f"{path} does not fit this model: {name} is {found} there, {wanted} here")
    module.load_state_dict(tensors)


def hash_module(module: nn.Module) -> str:
    """Return the SHA-256 of a module's names, shapes and contents, as hex."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one training run: ``step_00001000`` folders, each with a manifest of hashes."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    def save(self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Stage, flush, rename; then delete all but the newest ``keep``."""
        final = self.folder / f"step_{step:08d}"
        staged = self.folder / f".step_{step:08d}.tmp"
        shutil.rmtree(staged, ignore_errors=True)
        files = {
            "model.safetensors": _to_bytes(module.state_dict()),
            "optimizer.safetensors": _to_bytes(_flatten(optimizer)),
        }
        manifest = {"step": step, "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
        try:
            for name, data in files.items():
                write_atomic(staged / name, data)
            write_atomic(staged / "manifest.json", json.dumps(manifest, indent=1).encode())
            shutil.rmtree(final, ignore_errors=True)
            staged.replace(final)
            sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step_{old:08d}")

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*"))

    def load_newest(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Fill module and optimizer from the newest checkpoint; returns its step, 0 where there is none.

        Raises:
            CorruptFileError: A file is damaged or of another model; names it.
        """
        steps = self.steps()
        if not steps:
            return 0
        folder = self.folder / f"step_{steps[-1]:08d}"
        manifest = _read_manifest(folder)
        for name, digest in manifest["files"].items():
            file = folder / name
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                raise CorruptFileError(f"{file} is damaged: delete {folder} to continue from the checkpoint before it")
        _fill(folder / "model.safetensors", module, read_tensors(folder / "model.safetensors"))
        _unflatten(optimizer, read_tensors(folder / "optimizer.safetensors"))
        return steps[-1]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        if set(manifest["files"]) == {"model.safetensors", "optimizer.safetensors"}:
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise CorruptFileError(f"{path} is missing or damaged: delete {folder} to continue from the checkpoint before it")


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
