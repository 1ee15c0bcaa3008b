"""The file that compressed tokens are kept in: a safetensors file, whose bounds are checked before memory is taken.

Its metadata are one sealed record, ``tokens``: format, settings, what the token store was, and a hash of what follows.
Tensors hold the streams of the coder and, compressed with zstd, actions, rewards and descriptions of the episodes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from safetensors.numpy import save

from worldvq.config.fields import NonNegativeInt
from worldvq.data.compression import require_zstandard, zstandard
from worldvq.data.episode_files import Record, load_json
from worldvq.data.tokens import TokenMeta
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.files.headers import MAX_HEADER, parse_header
from worldvq.files.reading import open_file, parse_json, seal
from worldvq.types import ActionSpace, Episode

KEY = "tokens"
LEVEL = 19
MAX_EXPANSION = 1000
"""What decodes to more than ``MAX_EXPANDED`` bytes may not be more than so many times what is kept of it."""
MAX_EXPANDED = 2**30
DIGEST = 8
"""Bytes of an episode's hash: they tell a mistake, and an enemy can make a whole file anyway."""


class Description(Record):
    """What a file of compressed tokens says of itself."""

    format_version: Literal[1] = 1
    settings: dict[str, str]
    """As :func:`worldvq.compression.coder.settings` gives them."""
    store: TokenMeta
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of all tensors, one after the other."""


class _About(Record):
    """One line of the episodes' descriptions."""

    number: NonNegativeInt
    num_frames: int = Field(ge=2, lt=2**31)
    seed: int = Field(ge=-(2**63), lt=2**64)
    terminated: bool
    truncated: bool
    interrupted: bool
    meta: dict[str, Any]


@dataclass(frozen=True)
class Compressed:
    """Episodes whose tokens are compressed, group by group.

    Attributes:
        settings: Those under which they were coded.
        store: What the token store was.
        numbers: Of the episodes.
        episodes: All of them but their tokens, as :meth:`worldvq.data.tokens.TokenStore.recorded` gives them.
        digests: See :func:`digest`, of the tokens of each.
        streams: Of the coder, (words,) uint32 each; ``groups`` of the episodes' lengths says which are in which.
    """

    settings: dict[str, str]
    store: TokenMeta
    numbers: list[int]
    episodes: list[Episode]
    digests: list[bytes]
    streams: list[np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """Bytes of a file by what they hold: the streams of tokens, actions and rewards, and all that describes them."""

    streams: int
    actions: int
    rewards: int
    descriptions: int

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return self.streams + self.actions + self.rewards + self.descriptions


def digest(tokens: np.ndarray) -> bytes:
    """Hash the tokens of an episode."""
    return hashlib.sha256(np.ascontiguousarray(tokens, "<i4").tobytes()).digest()[:DIGEST]


def to_bytes(compressed: Compressed) -> tuple[bytes, Sizes]:
    """Return the file, and what takes how much of it.

    Raises:
        UsageError: zstandard is not installed.
        RunError: The description of the dataset is too long.
    """
    require_zstandard()
    lines = [_line(number, one) for number, one in zip(compressed.numbers, compressed.episodes, strict=True)]
    arrays = {
        "actions": _pack(b"".join(_little(episode.actions) for episode in compressed.episodes)),
        "digests": np.frombuffer(b"".join(compressed.digests), np.uint8),
        "episodes": _pack(b"".join(lines)),
        "rewards": _pack(b"".join(_little(episode.rewards) for episode in compressed.episodes)),
        "stream_ends": np.cumsum([len(stream) for stream in compressed.streams], dtype=np.int64),
        "streams": np.concatenate(compressed.streams).astype("<u4").view(np.uint8),
    }
    description = Description(settings=compressed.settings, store=compressed.store, sha256=_hash(arrays))
    text = seal(description.model_dump(mode="json")).decode()
    if len(text) > MAX_HEADER // 4:
        raise RunError(f"what describes the dataset takes {len(text):,} bytes; at most {MAX_HEADER // 4:,} can be kept")
    data = save(arrays, {KEY: text})
    streams, actions, rewards = (arrays[name].nbytes for name in ("streams", "actions", "rewards"))
    return data, Sizes(streams, actions, rewards, len(data) - streams - actions - rewards)


def _line(number: int, episode: Episode) -> bytes:
    about = {name: getattr(episode, name) for name in ("seed", "terminated", "truncated", "interrupted", "meta")}
    return json.dumps({"number": number, "num_frames": len(episode.frames), **about}).encode() + b"\n"


def _little(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _pack(data: bytes) -> np.ndarray:
    assert zstandard is not None
    return np.frombuffer(zstandard.ZstdCompressor(level=LEVEL).compress(data), np.uint8)


def _hash(arrays: dict[str, np.ndarray]) -> str:
    hashed = hashlib.sha256()
    for name in sorted(arrays):
        hashed.update(f"{name} {arrays[name].nbytes} ".encode())
        hashed.update(arrays[name].data)
    return hashed.hexdigest()


# ------------------------------------------------------------------------------------------------ reading


def read(path: Path) -> Compressed:
    """Read and check a file of compressed tokens, but for the tokens themselves.

    Raises:
        UsageError: There is no such file, it is of another kind or format, or zstandard is not installed.
        CorruptFileError: It is damaged, cut short, or claims more than it can hold.
    """
    require_zstandard()
    if not path.is_file():
        raise UsageError(f"no file of compressed tokens: {path}; worldvq compress makes one")
    with open_file(path) as (file, _):
        data = file.read()
    header = parse_header(io.BytesIO(data), len(data), path)
    if KEY not in header.metadata:
        raise UsageError(f"{path}: no compressed tokens; worldvq compress makes such a file")
    source = f"{path}, its description"
    version = parse_json(header.metadata[KEY].encode("utf-8", "replace"), source)
    if isinstance(version, dict) and version.get("format_version", 1) != 1:
        raise UsageError(f"{path} is of format {version['format_version']!r}, this version of worldvq reads format 1")
    description = load_json(Description, header.metadata[KEY].encode("utf-8", "replace"), source)
    expected = dict.fromkeys(("actions", "digests", "episodes", "rewards", "streams"), "U8") | {"stream_ends": "I64"}
    if {name: slot.dtype for name, slot in header.slots.items()} != expected:
        raise CorruptFileError(f"{path}: it does not hold the tensors of compressed tokens")
    raw = {
        name: np.frombuffer(data, np.uint8 if slot.dtype == "U8" else "<i8", slot.count, header.base + slot.begin)
        for name, slot in header.slots.items()
    }
    if _hash(raw) != description.sha256:
        raise CorruptFileError(f"{path} is damaged: its hash is not the one that it states; copy it here again")
    try:
        return _parse(description, raw, path)
    except (ValueError, OverflowError) as error:
        raise CorruptFileError(f"{path}: {error}") from None


def _parse(description: Description, raw: dict[str, np.ndarray], path: Path) -> Compressed:
    """Take a file apart whose hash is right; what it claims may be anything all the same."""
    lines = _unpack(raw["episodes"], None, "episodes").splitlines()
    abouts = [load_json(_About, line, f"{path}, episode {index}") for index, line in enumerate(lines)]
    numbers = [about.number for about in abouts]
    if not abouts or len(set(numbers)) != len(numbers) or raw["digests"].size != DIGEST * len(numbers):
        raise ValueError("the episodes that it lists cannot be")
    height, width = description.store.grid
    num_tokens = height * width * sum(about.num_frames for about in abouts)
    _check_expansion(num_tokens * description.store.dtype.itemsize, raw["streams"].size, "tokens")
    space = ActionSpace.from_json(description.store.dataset.action_space)
    steps = [about.num_frames - 1 for about in abouts]
    actions = _split(raw["actions"], space.dtype, space.shape, steps, "actions")
    rewards = _split(raw["rewards"], np.dtype(np.float32), (), steps, "rewards")
    episodes = [
        Episode(np.zeros((about.num_frames, 0, 0, 3), np.uint8), taken, paid, **about.model_dump(include=_ENDING))
        for about, taken, paid in zip(abouts, actions, rewards, strict=True)
    ]
    ends = [0, *raw["stream_ends"].tolist()]
    if sorted(ends) != ends or ends[-1] * 4 != raw["streams"].size:
        raise ValueError("the streams do not fill their place")
    words = raw["streams"].copy().view("<u4").astype(np.uint32, copy=False)
    streams = [words[begin:end] for begin, end in itertools.pairwise(ends)]
    digests = [raw["digests"][DIGEST * i : DIGEST * (i + 1)].tobytes() for i in range(len(numbers))]
    return Compressed(description.settings, description.store, numbers, episodes, digests, streams)


_ENDING = {"seed", "terminated", "truncated", "interrupted", "meta"}


def _split(
    packed: np.ndarray, dtype: np.dtype, shape: tuple[int, ...], steps: Sequence[int], what: str
) -> list[np.ndarray]:
    """Unpack the arrays (T, *shape) of all episodes."""
    flat = np.frombuffer(_unpack(packed, sum(steps) * int(np.prod(shape, dtype=int)) * dtype.itemsize, what), dtype)
    return np.split(flat.reshape(-1, *shape), np.cumsum(steps[:-1]))


def _unpack(packed: np.ndarray, size: int | None, what: str) -> bytes:
    """Decompress what states that it has ``size`` bytes, where that is known.

    Raises:
        ValueError: It states another size, cannot be decoded, or would take far more memory than the file has bytes.
    """
    assert zstandard is not None
    data = packed.tobytes()
    try:
        stated = zstandard.get_frame_parameters(data).content_size
        if size is not None and stated != size:
            raise ValueError(f"the {what} state {stated:,} bytes, {size:,} are needed")
        _check_expansion(stated, len(data), what)
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(f"the {what} cannot be decoded ({error})") from None


def _check_expansion(size: int, kept: int, what: str) -> None:
    if size > max(MAX_EXPANDED, MAX_EXPANSION * kept):
        raise ValueError(f"{kept:,} bytes of {what} claim to be {size:,}")
