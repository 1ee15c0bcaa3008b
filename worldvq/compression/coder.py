"""Entropy coding of tokens with a world's dynamics: every token costs about minus log2 of its probability, in bits.

A range coder (Martin 1979) needs the same probabilities on both sides, to the last bit. So encoding and decoding are
one walk (:func:`_walk`): episodes side by side as rows of a batch, frame by frame, token by token in raster order, with
the streaming caches of a dream. Encoding could compute all tokens of a clip in parallel, but then other shapes would be
multiplied, which rounds differently. What else rounding depends on is fixed (one thread, fp32, a CPU) or recorded
(:func:`settings`).

The first frame of an episode has no past to be predicted from: its tokens are coded as equally probable, log2 K bits
each.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import worldvq
from worldvq.errors import UsageError, plural
from worldvq.models.dynamics import Dynamics
from worldvq.models.priors.contract import GridCache
from worldvq.world.actions import stored_actions
from worldvq.world.model import WorldModel

try:
    import constriction
except ImportError:
    constriction = None

ROWS = 64
"""Episodes coded side by side. More would hardly be faster on one thread, and mean more that is lost to damage."""
MAX_CODES = 2**16
"""The coder's probabilities are multiples of 2^-24 and none is 0: what it gives away grows with the number of codes."""

Code = Callable[[int, int, np.ndarray | None], np.ndarray]
"""From frame, place in raster order and the probabilities (b, K) float32 of that token in the first b rows, None where
all are equal, to the tokens (b,) themselves, which it writes or reads."""


def require_constriction() -> None:
    """Raise a UsageError with the pip command where constriction is not installed."""
    if constriction is None:
        raise UsageError("compressing tokens needs the constriction package: pip install 'worldvq[codec]'")


def settings(world: WorldModel) -> dict[str, str]:
    """Return what has to be the same for a stream to be decoded: weights, libraries, and the kind of CPU."""
    require_constriction()
    return {
        "world": world.hash(),
        "worldvq": worldvq.__version__,
        "torch": torch.__version__,
        "constriction": importlib.metadata.version("constriction"),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def groups(lengths: Sequence[int]) -> list[list[int]]:
    """Return which episodes are coded side by side, longest first, so that rows of a group end at about the same time.

    Args:
        lengths: Frames of each episode.

    Returns:
        Indices into ``lengths``, at most ``ROWS`` a group.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + ROWS] for start in range(0, len(order), ROWS)]


def encode(
    world: WorldModel,
    tokens: Sequence[np.ndarray],
    actions: Sequence[np.ndarray],
    progress: Callable[[int], None] = lambda frames: None,
) -> tuple[np.ndarray, float]:
    """Encode the tokens of a group of episodes as one stream.

    Args:
        world: On the CPU.
        tokens: (T+1, h, w) integers of each episode, longest first.
        actions: (T, ...) of each episode.
        progress: Told how many frames were coded since it was last called.

    Returns:
        The stream, (words,) uint32, and the cross-entropy in bits: the sum of minus log2 of what the dynamics gave each
        token but those of first frames.

    Raises:
        UsageError: constriction is missing, or something does not fit the world.
    """
    _check(world, [len(one) for one in tokens])
    rows = _padded(tokens).reshape(len(tokens), len(tokens[0]), -1)  # (B, T+1, h w)
    coder = _library().queue.RangeEncoder()
    family, uniform = _models(world)
    bits = 0.0

    def code(frame: int, place: int, probabilities: np.ndarray | None) -> np.ndarray:
        nonlocal bits
        if probabilities is None:
            known = rows[:, frame, place]
            coder.encode(known.astype(np.int32), uniform)
            return known
        known = rows[: len(probabilities), frame, place]
        coder.encode(known.astype(np.int32), family, probabilities)
        chosen = probabilities[np.arange(len(known)), known].astype(np.float64)
        bits -= float(np.log2(np.maximum(chosen, np.finfo(np.float32).tiny)).sum())
        return known

    _walk(world.dynamics, _taken(world, actions), [len(one) for one in tokens], code, progress)
    return coder.get_compressed(), bits


def decode(
    world: WorldModel,
    stream: np.ndarray,
    lengths: Sequence[int],
    actions: Sequence[np.ndarray],
    progress: Callable[[int], None] = lambda frames: None,
) -> list[np.ndarray]:
    """Decode what :func:`encode` returned; without a hash nobody can tell whether it is what was encoded.

    Args:
        world: The same one.
        stream: (words,) uint32.
        lengths: Frames T+1 of each episode, in the order in which they were encoded.
        actions: (T, ...) of each episode.
        progress: See :func:`encode`.

    Returns:
        The tokens (T+1, h, w) of each episode.

    Raises:
        UsageError: See :func:`encode`.
        ValueError: The coder finds that this is no stream of these probabilities.
    """
    _check(world, lengths)
    coder = _library().queue.RangeDecoder(stream)
    family, uniform = _models(world)

    def code(frame: int, place: int, probabilities: np.ndarray | None) -> np.ndarray:
        try:
            if probabilities is None:
                return coder.decode(uniform, len(lengths))
            return coder.decode(family, probabilities)
        except AssertionError as error:  # what the coder raises on streams that no encoder wrote
            raise ValueError(str(error)) from None

    tokens = _walk(world.dynamics, _taken(world, actions), lengths, code, progress)
    return [row[:length].astype(np.uint16) for row, length in zip(tokens.numpy(), lengths, strict=True)]


@torch.no_grad()
def _walk(
    dynamics: Dynamics, actions: Tensor, lengths: Sequence[int], code: Code, progress: Callable[[int], None]
) -> Tensor:
    """Go through all tokens of B episodes in the order in which they are coded.

    Args:
        dynamics: What gives the probabilities.
        actions: (B, T, ...), padded.
        lengths: Frames of each row, falling.
        code: Writes or reads the tokens of a place.
        progress: Told the number of frames that were coded.

    Returns:
        The tokens (B, T+1, h, w) int64, zeros after the end of a row.
    """
    places = math.prod(dynamics.grid)
    tokens = torch.zeros(len(lengths), lengths[0], places, dtype=torch.int64)
    with _one_thread():
        state = dynamics.start(len(lengths))
        for frame in range(lengths[0]):
            active = sum(length > frame for length in lengths)
            if active < len(state.ages):
                state = state.select(torch.arange(active))
            current, cache = torch.zeros(active, places, dtype=torch.int64), None
            if frame:
                before = tokens[:active, frame - 1].unflatten(1, dynamics.grid)
                output = dynamics.observe(before, actions[:active, frame - 1].clone(), state)
                cache = dynamics.prior.start(active, output.context[:, 0])
            for place in range(places):
                known = code(frame, place, None if cache is None else _probabilities(cache, current, place))
                current[:, place] = torch.from_numpy(known.astype(np.int64))
            tokens[:active, frame] = current
            progress(active)
    return tokens.unflatten(2, dynamics.grid)


def _probabilities(cache: GridCache, tokens: Tensor, place: int) -> np.ndarray:
    """Return the probabilities (b, K) float32 of the token at a place, given those before it."""
    return cache.logits(tokens, place, place + 1)[:, 0].float().softmax(-1).numpy()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Multiply in fp32 on one thread: how work is shared among threads changes how sums are rounded."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def _library() -> Any:
    """Return what constriction has for coding streams."""
    require_constriction()
    return constriction.stream  # type: ignore[union-attr]


def _models(world: WorldModel) -> tuple[Any, Any]:
    """Return the coder's models of tokens whose probabilities are given, and of those that are equally probable."""
    model = _library().model
    return model.Categorical(perfect=False), model.Uniform(world.dynamics.num_codes)


def _check(world: WorldModel, lengths: Sequence[int]) -> None:
    codes = world.dynamics.num_codes
    if not 2 <= codes <= MAX_CODES:
        raise UsageError(f"this world has {plural(codes, 'code')}; tokens of 2 to {MAX_CODES:,} codes can be coded")
    if world.device.type != "cpu":
        raise UsageError(f"this world is on {world.device}; tokens are coded on the CPU: load it with device cpu")
    assert list(lengths) == sorted(lengths, reverse=True), lengths


def _padded(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays that differ in their first axis as one, filled with zeros."""
    padded = np.zeros((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def _taken(world: WorldModel, actions: Sequence[np.ndarray]) -> Tensor:
    """Check the actions of all rows; returns them as one tensor (B, T, ...)."""
    checked = [stored_actions(one, world.action_space, (len(one),), "an episode").numpy() for one in actions]
    return torch.from_numpy(_padded(checked))
