"""Compressing the tokens of a store with a world's dynamics, and bringing them back."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from worldvq.compression.coder import decode, encode, groups, require_constriction, settings
from worldvq.compression.container import LEVEL, Compressed, Sizes, digest, read, to_bytes
from worldvq.data.compression import require_zstandard, zstandard
from worldvq.data.tokens import TokenStore
from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.atomic import write_atomic
from worldvq.files.differences import require_same
from worldvq.files.weights import hash_module
from worldvq.world.model import WorldModel


@dataclass(frozen=True)
class CompressReport:
    """What compressing came to.

    Attributes:
        num_episodes: Compressed.
        num_frames: In them.
        num_tokens: In those.
        first_bits: What first frames cost, log2 K bits a token.
        model_bits: Cross-entropy of all other tokens, minus log2 of what the dynamics gave them.
        sizes: Bytes of the file by what they hold.
        zstd: Bytes of the same tokens as zstd compresses them, by how they were laid out for it.
        seconds: That the coding took.
    """

    num_episodes: int
    num_frames: int
    num_tokens: int
    first_bits: float
    model_bits: float
    sizes: Sizes
    zstd: dict[str, int]
    seconds: float

    @property
    def cross_entropy(self) -> float:
        """Bits that all tokens should take."""
        return self.first_bits + self.model_bits


def compress(world: Path, tokens: Path, out: Path, episodes: str = "all") -> CompressReport:
    """Write the tokens of a store as one compressed file; nothing of it is there until all of it is.

    Args:
        world: Folder of a trained world.
        tokens: Token store of its tokenizer.
        out: The file.
        episodes: ``all``, ``train``, ``heldout``, or numbers with commas.

    Raises:
        UsageError: constriction or zstandard is missing, or the store does not fit the world.
        RunError: The disk is full.
    """
    require_constriction()
    require_zstandard()
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: give the name of a file, for instance {out / 'tokens.wvq'}")
    store = TokenStore.open(tokens)
    numbers = _choose(store, episodes)
    model = WorldModel.load(world, "cpu")
    require_same(
        {"tokenizer_hash": store.meta.tokenizer_hash, "action_space": store.action_space.to_json()},
        {"tokenizer_hash": hash_module(model.tokenizer), "action_space": model.action_space.to_json()},
        ("the tokens have", "the world has"),
        f"{tokens} does not fit {world}",
        f"make tokens with the world's tokenizer: {TokenStore.how_to_make}",
    )
    held = [store.mapped(number) for number in numbers]
    lengths, streams, bits, started = [len(one.tokens) for one in held], [], 0.0, time.monotonic()
    with _progress("compressing", sum(lengths)) as progress:
        for group in groups(lengths):
            rows = [held[index] for index in group]
            stream, cost = encode(model, [row.tokens for row in rows], [row.actions for row in rows], progress)
            streams.append(stream)
            bits += cost
    seconds, all_tokens = time.monotonic() - started, [one.tokens for one in held]
    kept = Compressed(
        settings=settings(model),
        store=store.meta,
        numbers=numbers,
        episodes=[store.recorded(number) for number in numbers],
        digests=[digest(one) for one in all_tokens],
        streams=streams,
    )
    data, sizes = to_bytes(kept)
    write_atomic(out, data)
    per_frame = math.prod(store.meta.grid)
    return CompressReport(
        num_episodes=len(numbers),
        num_frames=sum(lengths),
        num_tokens=sum(lengths) * per_frame,
        first_bits=len(numbers) * per_frame * math.log2(store.meta.num_codes),
        model_bits=bits,
        sizes=sizes,
        zstd=zstd_sizes(all_tokens, store.meta.num_codes),
        seconds=seconds,
    )


def decompress(world: Path, file: Path, out: Path) -> TokenStore:
    """Write the token store that a compressed file holds. All is decoded and checked before anything is written.

    Raises:
        UsageError: The file needs another world, version or CPU; or ``out`` holds something else.
        CorruptFileError: The file is damaged, or decodes to other tokens than were compressed.
        RunError: The disk is full; run again to continue.
    """
    compressed = read(file)
    TokenStore.refuse_strangers(out)
    model = WorldModel.load(world, "cpu")
    require_same(
        compressed.settings,
        settings(model),
        ("it was compressed with", "here is"),
        f"{file} cannot be decoded here",
        "take the world, the versions and the kind of CPU that it was compressed with",
    )
    lengths, tokens = [len(episode.frames) for episode in compressed.episodes], {}
    order = groups(lengths)
    if len(order) != len(compressed.streams) or compressed.store.grid != model.dynamics.grid:
        raise CorruptFileError(f"{file}: its streams are not those of its episodes")
    with _progress("decompressing", sum(lengths)) as progress:
        for group, stream in zip(order, compressed.streams, strict=True):
            actions = [compressed.episodes[index].actions for index in group]
            try:
                decoded = decode(model, stream, [lengths[index] for index in group], actions, progress)
            except ValueError as error:
                raise CorruptFileError(f"{file}: {error}") from None
            for index, one in zip(group, decoded, strict=True):
                if digest(one) != compressed.digests[index]:
                    raise CorruptFileError(
                        f"{file}: episode {compressed.numbers[index]} decodes to other tokens than were compressed: "
                        "this machine computes other probabilities than the one that compressed it; decode it there"
                    )
                tokens[index] = one
    with TokenStore.create(out, compressed.store) as store:
        for index in np.argsort(compressed.numbers).tolist():
            store.write(compressed.numbers[index], tokens[index], compressed.episodes[index])
    return TokenStore.open(out)


def _choose(store: TokenStore, episodes: str) -> list[int]:
    """Return the numbers of the episodes that were asked for.

    Raises:
        UsageError: There are none.
    """
    if episodes in ("all", "train", "heldout"):
        numbers = store.numbers(episodes)
    elif all(part.isdecimal() for part in episodes.split(",")):
        numbers = [store.entry(int(part)).number for part in dict.fromkeys(episodes.split(","))]
    else:
        raise UsageError(f"--episodes {episodes}: write all, train, heldout, or numbers as in 9,19")
    if not numbers:
        raise UsageError(f"{store.path} has no {episodes} episodes ({len(store)} in all)")
    return numbers


def zstd_sizes(tokens: list[np.ndarray], num_codes: int) -> dict[str, int]:
    """Return how many bytes zstd makes of the tokens of all episodes, by layout; one frame of zstd for all.

    Args:
        tokens: (T+1, h, w) of each episode.
        num_codes: K.
    """
    require_zstandard()
    assert zstandard is not None
    width = max(1, (num_codes - 1).bit_length())
    words = np.concatenate([one.reshape(-1) for one in tokens]).astype("<u2")
    by_place = np.concatenate([one.reshape(len(one), -1).T.reshape(-1) for one in tokens]).astype("<u2")
    bits = np.unpackbits(words.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - width :]
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    layouts = {
        "16 bits a token": words,
        f"{width} bits a token": np.packbits(bits),
        "16 bits, place by place": by_place,
    }
    return {name: len(compressor.compress(layout.tobytes())) for name, layout in layouts.items()}


@contextlib.contextmanager
def _progress(what: str, num_frames: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of frames on a terminal; yields what moves it."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=num_frames)
        yield lambda frames: bar.advance(task, frames)
