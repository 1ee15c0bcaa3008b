"""Weights of modules as safetensors files, written whole or not at all, and checked before they are read."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from worldvq.errors import CorruptFileError, one_line
from worldvq.files.atomic import write_atomic
from worldvq.files.differences import difference, join
from worldvq.files.headers import Header, parse_header, read_header
from worldvq.files.reading import is_utf8

Layout = Mapping[str, tuple[torch.Size, torch.dtype | None]]
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_DTYPES |= {"BOOL": torch.bool}


def save_module(path: Path, module: nn.Module) -> None:
    """Write a module's parameters and buffers as one safetensors file."""
    write_atomic(path, module_bytes(module))


def module_bytes(module: nn.Module) -> bytes:
    """Return what :func:`save_module` writes."""
    return to_bytes(gather_tensors(module.state_dict()))


def gather_tensors(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Tensors on the CPU, sharded ones (FSDP) gathered: then every process must call this, and may drop them."""
    gathered = {}
    for name, value in sorted(tensors.items()):  # gathered in the same order everywhere
        one = value.full_tensor() if hasattr(value, "full_tensor") else value  # type: ignore[operator]
        if keep:
            gathered[name] = one.detach().cpu().contiguous()
    return gathered


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as a safetensors file."""
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
        return load_file(path) if is_utf8(path) else load_tensors(path.read_bytes())


def check_header(path: Path, module: nn.Module) -> None:
    """Raise CorruptFileError unless a file holds tensors of a module's names, shapes and types; reads no tensor."""
    way_out = "copy the file here again that was saved with this model"
    check_fit(path, layout_of(module), _found(read_header(path)), way_out)


def _found(header: Header) -> Layout:
    return {name: (torch.Size(slot.shape), _DTYPES.get(slot.dtype)) for name, slot in header.slots.items()}


def parse_tensors(path: Path, data: bytes, way_out: str) -> dict[str, Tensor]:
    """Return the tensors of a file that was read; raises CorruptFileError that names it and the way out."""
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
        raise CorruptFileError(f"{path} is damaged: {one_line(error)}{way_out and f': {way_out}'}") from None


def layout_of(module: nn.Module) -> Layout:
    """Return shape and type of everything that a module saves, by name."""
    return {name: (value.shape, value.dtype) for name, value in module.state_dict().items()}


def layout_of_tensors(tensors: Mapping[str, Tensor]) -> Layout:
    """Return shape and type of tensors, by name."""
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}


def check_fit(path: Path, expected: Layout, found: Layout, way_out: str) -> None:
    """Raise CorruptFileError with everything that differs, and the way out."""
    names = [name for name in sorted(expected.keys() | found.keys()) if found.get(name) != expected.get(name)]
    if names:
        who = ("the file has", "the model has")
        lines = [difference(name, _describe(found.get(name)), _describe(expected.get(name)), who) for name in names]
        raise CorruptFileError(f"{path} does not fit this model: {join(lines)}: {way_out}")


def _describe(tensor: tuple[torch.Size, torch.dtype | None] | None) -> str:
    return f"{list(tensor[0])} {str(tensor[1]).removeprefix('torch.')}" if tensor else "nothing"


def hash_module(module: nn.Module) -> str:
    """Return the SHA-256 of a module's names, shapes and contents, as hex."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def require_hash(module: nn.Module, expected: object, weights: Path, description: Path) -> None:
    """Raise CorruptFileError unless a module read from ``weights`` has the hash that its description states."""
    if expected != hash_module(module):
        raise CorruptFileError(f"{weights} is damaged: its hash is not the one in {description}")
