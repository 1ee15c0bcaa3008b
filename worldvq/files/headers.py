"""Headers of safetensors files, checked against the file's size before anything is allocated for what they claim."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from worldvq.errors import CorruptFileError
from worldvq.files.reading import open_file, parse_json

MAX_HEADER = 2**20
"""Bytes of a header: an episode has a few hundred, the optimizer of the deepest model that a config allows 600,000."""
_ITEM_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2}
_ITEM_SIZES |= {"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}


@dataclass(frozen=True)
class Slot:
    """One tensor of a file: dtype as safetensors names it, shape, first byte after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds.

    Attributes:
        slots: Its tensors, by name.
        metadata: Its strings.
        base: Byte of the file at which the tensors begin.
    """

    slots: dict[str, Slot]
    metadata: dict[str, str]
    base: int


def parse_header(file: BinaryIO, size: int, path: Path) -> Header:
    """Read and check the header at the start of a file of ``size`` bytes.

    Raises:
        CorruptFileError: The header is malformed, or its tensors do not fill the file one after another.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise CorruptFileError(f"{path}: not a safetensors file, or cut short ({size:,} bytes)")
    if length > MAX_HEADER:
        raise CorruptFileError(f"{path}: its header has {length:,} bytes, at most {MAX_HEADER:,} are read")
    header = parse_json(file.read(length), f"{path}: wrong safetensors header")
    try:
        metadata = header.pop("__metadata__", {})
        slots = {name: _slot(slot, size - 8 - length) for name, slot in header.items()}
        end = 0
        for slot in sorted(slots.values(), key=lambda slot: (slot.begin, slot.count)):
            if slot.begin != end:
                raise ValueError("the tensors do not lie one after another")
            end += slot.count * _ITEM_SIZES[slot.dtype]
        if end != size - 8 - length:
            raise ValueError("the tensors do not fill the file")
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("the metadata are not strings")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path}: wrong safetensors header ({error})") from None
    return Header(slots, metadata, 8 + length)


def _slot(slot: dict[str, Any], size: int) -> Slot:
    item_size, shape = _ITEM_SIZES[slot["dtype"]], tuple(slot["shape"])
    begin, end = slot["data_offsets"]
    if len(shape) > 16 or not all(type(value) is int and 0 <= value < 2**63 for value in (begin, end, *shape)):
        raise ValueError("a wrong shape or offset")
    if end > size or end - begin != math.prod(shape) * item_size:
        raise ValueError(f"shape {shape} does not fit bytes {begin} to {end}")
    return Slot(slot["dtype"], shape, begin)


def read_header(path: Path) -> Header:
    """Read and check the header of a file; raises CorruptFileError that names it."""
    with open_file(path) as (file, size):
        return parse_header(file, size, path)
