"""Weights and configs on disk: safetensors and YAML, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from worldvq.atomic import disk_errors, sync_folder, write_atomic
from worldvq.differences import join
from worldvq.errors import CorruptFileError
from worldvq.optimizers import state_layout
from worldvq.reading import read_sealed, seal
from worldvq.tensors import Header, parse_header, read_header

Layout = Mapping[str, tuple[torch.Size, torch.dtype | None]]
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_DTYPES |= {"BOOL": torch.bool}


def save_module(path: Path, module: nn.Module) -> None:
    """Write a module's parameters and buffers as one safetensors file."""
    write_atomic(path, module_bytes(module))


def module_bytes(module: nn.Module) -> bytes:
    """Return what :func:`save_module` writes."""
    return _to_bytes(_whole(module.state_dict()))


def _whole(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Tensors on the CPU, those that are sharded (FSDP) whole: then every process must call this, and may drop them."""
    whole = {}
    for name, value in sorted(tensors.items()):  # gathered in the same order everywhere
        gathered = value.full_tensor() if hasattr(value, "full_tensor") else value  # type: ignore[operator]
        if keep:
            whole[name] = gathered.detach().cpu().contiguous()
    return whole


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return save_tensors(dict(tensors))


def load_module(path: Path, module: nn.Module) -> None:
    """Fill a module from :func:`save_module`'s file.

    Raises:
        CorruptFileError: The file is missing or damaged, or its names, shapes or types are not the module's, which is
            left as it was.
    """
    check_header(path, module)
    module.load_state_dict(read_tensors(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Map a safetensors file.

    Raises:
        CorruptFileError: It is missing, or is no safetensors file.
    """
    with _damaged(path, ""):
        read_header(path)
        return load_file(path)


def check_header(path: Path, module: nn.Module) -> None:
    """Raise CorruptFileError unless a file holds tensors of a module's names, shapes and types; reads no tensor."""
    _check_fit(path, _layout(module), _found(read_header(path)))


def _found(header: Header) -> Layout:
    return {name: (torch.Size(slot.shape), _DTYPES.get(slot.dtype)) for name, slot in header.slots.items()}


def _parse(path: Path, data: bytes, way_out: str) -> dict[str, Tensor]:
    with _damaged(path, way_out):
        parse_header(io.BytesIO(data), len(data), path)
        return load_tensors(data)


@contextlib.contextmanager
def _damaged(path: Path, way_out: str) -> Iterator[None]:
    """Turn what safetensors and torch raise on a broken file into an error that names it."""
    try:
        yield
    except CorruptFileError as error:
        raise CorruptFileError(f"{error}{way_out and f': {way_out}'}") from None
    # Beyond what safetensors checks: a type that torch lacks, sizes that it cannot hold.
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, AssertionError) as error:
        problem = " ".join(str(error).split())
        raise CorruptFileError(f"{path} is damaged: {problem}{way_out and f': {way_out}'}") from None


def _layout(module: nn.Module) -> Layout:
    return {name: (value.shape, value.dtype) for name, value in module.state_dict().items()}


def _layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}


def _check_fit(path: Path, expected: Layout, found: Layout) -> None:
    """Raise CorruptFileError with everything that differs."""
    names = [name for name in sorted(expected.keys() | found.keys()) if found.get(name) != expected.get(name)]
    if names:
        lines = [
            f"{name} is {_describe(found.get(name))} there, {_describe(expected.get(name))} here" for name in names
        ]
        raise CorruptFileError(f"{path} does not fit this model: {join(lines)}")


def _describe(tensor: tuple[torch.Size, torch.dtype | None] | None) -> str:
    return f"{list(tensor[0])} {str(tensor[1]).removeprefix('torch.')}" if tensor else "nothing"


def hash_module(module: nn.Module) -> str:
    """Return the SHA-256 of a module's names, shapes and contents, as hex."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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


def take(step: int, module: nn.Module, optimizer: torch.optim.Optimizer, keep: bool = True) -> Checkpoint:
    """Gather a checkpoint. Where the model is sharded all processes must call it; those that don't keep it get none."""
    state = optimizer.state_dict()["state"]
    flat = {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}
    return Checkpoint(step, _whole(module.state_dict(), keep), _whole(flat, keep))


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
        self.write(take(step, module, optimizer))

    def write(self, checkpoint: Checkpoint) -> None:
        """Stage, flush, rename; then delete all but the newest ``keep``.

        Raises:
            RunError: The disk is full or cannot be written to; the checkpoints before are as they were.
        """
        final = self._path(checkpoint.step)
        staged, old = (self.folder / f".{final.name}.{suffix}" for suffix in ("tmp", "old"))
        files = {
            "model.safetensors": _to_bytes(checkpoint.model),
            "optimizer.safetensors": _to_bytes(checkpoint.optimizer),
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
        _check_fit(self._path(step) / "model.safetensors", _layout(module), _layout_of(model))
        layout, path = state_layout(optimizer), self._path(step) / "optimizer.safetensors"
        indices = {name.split(".")[0] for name in state}
        _check_fit(
            path, {name: kind for name, kind in layout.items() if name.split(".")[0] in indices}, _layout_of(state)
        )
        return Checkpoint(step, model, state)

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
    return _parse(path, data, way_out)


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
