"""Does a dream last? Hundreds of frames on, with what real frames and their reconstructions score beside every number.

Nobody can know what is to be seen after 300 frames, so nothing is compared with what really came: only with what real
frames look like, at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.evaluation import metrics
from worldvq.types import TokenClip

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel

STEPS = (10, 50, 100, 300)
"""Imagined frames at which it is looked, each time at the ``WINDOW`` frames that end there."""
WINDOW = 10
SHOWN = (1, 10, 50, 100, 300)
"""Frames in the picture."""
NUM_SHOWN = 5
POOL = 3000
"""Real frames among which the nearest is looked for, at most."""
POOL_BYTES = 2**28
POOL_EPISODES = 256
"""Of so many episodes at most: a file is read whole, once, to check its hash."""
REFERENCE = 1000
"""Of them, those that the Fréchet distance compares with, at most."""


@dataclass(frozen=True)
class Pool:
    """Real frames to compare with.

    Attributes:
        frames: (P, H, W, 3) uint8.
        episodes: (P,) of which episode each is.
    """

    frames: np.ndarray
    episodes: np.ndarray


def long_dreams(
    world: WorldModel,
    store: EpisodeStore,
    count: int,
    context: int,
    seed: int,
    sampling: dict[str, Any],
    batch_size: int = 64,
) -> tuple[dict[str, Any], np.ndarray]:
    """Dream 300 frames from held-out contexts, and measure windows of them.

    Actions are those that were recorded; where an episode ends, those of another held-out episode go on.

    Args:
        world: The world.
        store: The dataset.
        count: Dreams, or as many as there are held-out windows.
        context: Real frames of each.
        seed: Of contexts, actions, pool and sampling.
        sampling: How the world is sampled.
        batch_size: Dreams at a time.

    Returns:
        The report, and frames (D, 1 + 5, H, W, 3) of a few dreams: the last context frame and those in ``SHOWN``.
        Each number has a ``mean`` and a 95 % interval over dreams ``ci95``:

        - ``ssim``: SSIM to the nearest (squared error) of ``pool_frames`` real frames of other episodes.
        - ``motion``: mean change of a pixel (0 to 255) from frame to frame.
        - ``entropy``: bits of the histogram of a window's tokens.
        - ``nats``: surprise of the world at the window's tokens, given those before. In a dream at temperature 1 its
          expectation is the entropy of what the world predicts.
        - ``fd_efflite0``: Fréchet distance to ``reference_frames`` real frames, or None without the extra.

        They stand under ``dream`` (a list, one a step in ``steps``), ``real`` and ``reconstruction``: the frames that
        really followed the contexts, and those through the tokenizer; equally many frames everywhere. ``drift`` is
        1 - SSIM at the last step / SSIM at the first one.

    Raises:
        UsageError: There is no held-out window, or only one episode.
    """
    ids = heldout_clips(store, count, context + WINDOW, seed, "context + 10")
    actions, borrowed = _actions(store, ids, context + STEPS[-1] - 1, seed)
    clip = read_clips(store, ids, context + WINDOW)
    pool = draw_pool(store, seed)
    reference = _features(pool.frames[:REFERENCE])
    known = world.tokenize(clip.frames, clip.sounds)  # (n, context + WINDOW, h, w)
    tokens = _dream(world, known[:, :context], actions, seed, sampling, batch_size)  # (n, context + 300, h, w)

    def measure(frames: np.ndarray, tokens: Tensor, actions: Tensor) -> dict[str, Any]:
        """Of frames (n, WINDOW, H, W, 3), and tokens (n, context + WINDOW, h, w) with the actions between them."""
        return _measure(world, frames, tokens, actions, ids[:, 0], pool, reference, context)

    real = measure(clip.frames[:, context:].numpy(), known, clip.actions[:, :-1])
    rebuilt = measure(world.render(known[:, context:]).numpy(), known, clip.actions[:, :-1])
    dreams = []
    for step in STEPS:
        window = tokens[:, step - WINDOW : context + step]
        taken = actions[:, step - WINDOW : context + step - 1]
        dreams.append(measure(world.render(window[:, context:]).numpy(), window, taken))
    ssim = np.stack([found.pop("per_dream") for found in (*dreams, real, rebuilt)])[[0, len(STEPS) - 1]]
    drawn = metrics.bootstrap_means(ssim.T)
    report = {
        "steps": list(STEPS),
        "window": WINDOW,
        "dreams": len(ids),
        "borrowed_actions": borrowed,
        "pool_frames": len(pool.frames),
        "reference_frames": min(REFERENCE, len(pool.frames)),
        "dream": dreams,
        "real": real,
        "reconstruction": rebuilt,
        "drift": {
            "mean": float(1 - ssim[1].mean() / ssim[0].mean()),
            "ci95": metrics.ci95(1 - drawn[:, 1] / drawn[:, 0]).tolist(),
        },
    }
    shown = world.render(tokens[:NUM_SHOWN, [context - 1 + step for step in SHOWN]]).numpy()
    return report, np.concatenate([clip.frames[:NUM_SHOWN, context - 1 : context].numpy(), shown], axis=1)


def _dream(
    world: WorldModel, known: Tensor, actions: Tensor, seed: int, sampling: dict[str, Any], batch_size: int
) -> Tensor:
    """Contexts (n, C, h, w) and what is imagined after them; of all that is long, only tokens are ever kept."""
    rows, parts = np.arange(len(known)), []
    for first in range(0, len(known), batch_size):
        part = slice(first, first + batch_size)
        parts.append(world.imagine_tokens(known[part], actions[part], seed, rows[part], **sampling).tokens)
    return torch.cat([known, torch.cat(parts)], dim=1)


def _actions(store: EpisodeStore, ids: np.ndarray, count: int, seed: int) -> tuple[Tensor, float]:
    """Actions (n, count, ...) from windows on, and what share of them another held-out episode lent."""
    numbers = np.array(store.numbers("heldout"))
    rng = np.random.default_rng(seed)
    rows, borrowed = [], 0
    for number, start in ids.tolist():
        taken = np.array(store.mapped(number).actions[start:])
        own = len(taken)
        others = numbers[numbers != number] if len(numbers) > 1 else numbers
        while len(taken) < count:
            taken = np.concatenate([taken, store.mapped(int(rng.choice(others))).actions])
        rows.append(taken[:count])
        borrowed += max(0, count - own)
    return torch.from_numpy(np.stack(rows)), borrowed / (count * len(ids))


def draw_pool(store: EpisodeStore, seed: int) -> Pool:
    """Draw real frames of all episodes, or of some where there are many; each frame as likely, in random order.

    Raises:
        UsageError: There is only one episode: a frame would have none to be compared with.
    """
    if len(store) < 2:
        raise UsageError(f"{store.path} has one episode: dreams are compared with real frames of others; record more")
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(store.numbers("all"))[:POOL_EPISODES].tolist()
    lengths = [(number, store.entry(number).num_frames) for number in numbers]
    ends = np.cumsum([length for _, length in lengths])
    size = int(np.prod(store.item_shape))
    places = rng.permutation(ends[-1])[: max(1, min(POOL, POOL_BYTES // size))]
    which = np.searchsorted(ends, places, side="right")
    frames, episodes = np.empty((len(places), *store.item_shape), np.uint8), np.empty(len(places), np.int64)
    for row, (place, index) in enumerate(zip(places, which, strict=True)):
        episodes[row], length = lengths[index]
        store.copy_window(int(episodes[row]), int(place - ends[index] + length), frames[row : row + 1])
    return Pool(frames, episodes)


def nearest(frames: np.ndarray, episodes: np.ndarray, pool: Pool, chunk: int = 512) -> np.ndarray:
    """Which of a pool's frames of other episodes lies nearest to each frame, by squared error.

    Args:
        frames: (n, H, W, 3) uint8.
        episodes: (n,) the episode of each, whose frames do not count.
        pool: The real frames.
        chunk: Frames of the pool at a time.
    """
    flat = torch.from_numpy(frames.reshape(len(frames), -1)).float() / 255 - 0.5
    best = torch.full((len(frames),), float("inf"))
    index = torch.zeros(len(frames), dtype=torch.int64)
    for first in range(0, len(pool.frames), chunk):
        part = slice(first, first + chunk)
        other = torch.from_numpy(pool.frames[part].reshape(len(pool.frames[part]), -1)).float() / 255 - 0.5
        distance = other.square().sum(1) - 2 * flat @ other.T  # less the square of the frame itself
        distance[torch.from_numpy(episodes[:, None] == pool.episodes[None, part])] = float("inf")
        value, place = distance.min(1)
        closer = value < best
        best[closer], index[closer] = value[closer], place[closer] + first
    return index.numpy()


def _measure(
    world: WorldModel,
    frames: np.ndarray,
    tokens: Tensor,
    actions: Tensor,
    episodes: np.ndarray,
    pool: Pool,
    reference: np.ndarray | None,
    context: int,
) -> dict[str, Any]:
    count, flat = len(frames), frames.reshape(-1, *frames.shape[2:])
    found = pool.frames[nearest(flat, np.repeat(episodes, WINDOW), pool)]
    ssim = metrics.ssim(flat, found).reshape(count, WINDOW).mean(1)
    change = np.abs(np.diff(frames.astype(np.int16), axis=1)).mean((1, 2, 3, 4))
    codes = tokens[:, context:].reshape(count, -1).numpy()
    entropy = np.array([np.log2(metrics.perplexity(np.bincount(row))) for row in codes])
    return {
        "per_dream": ssim,
        "ssim": metrics.mean_over_rows(ssim),
        "motion": metrics.mean_over_rows(change),
        "entropy": metrics.mean_over_rows(entropy),
        "nats": metrics.mean_over_rows(_surprise(world, tokens, actions, context)),
        "fd_efflite0": None if reference is None else _distance(_features(flat), reference, count),
    }


def _surprise(world: WorldModel, tokens: Tensor, actions: Tensor, context: int) -> np.ndarray:
    """Nats per token (n,) of the tokens after the context, as the world predicts them from those before."""
    count, length = tokens.shape[:2]
    padded = torch.cat([actions, actions[:, -1:]], dim=1)  # the action that leads out of a clip predicts nothing in it
    nothing = torch.zeros(count, length)
    clip = TokenClip(tokens, padded, nothing, nothing.bool(), nothing == 0, nothing == 0)
    return world.score(clip, context).nats.flatten(1).double().mean(1).numpy()


def _features(frames: np.ndarray) -> np.ndarray | None:
    try:
        return metrics.efflite0_features(frames)
    except UsageError:
        return None  # the protocol says so


def _distance(features: np.ndarray | None, reference: np.ndarray, count: int) -> dict[str, Any]:
    """Fréchet distance; its interval is from leaving out one dream at a time (jackknife).

    A bootstrap repeats frames, and fewer different frames alone raise the distance.
    """
    assert features is not None
    rows = features.reshape(count, -1, features.shape[1])
    whole = metrics.frechet_distance(features, reference)
    if count < 3:
        return {"mean": whole, "ci95": [float("nan")] * 2}
    left = [
        metrics.frechet_distance(np.delete(rows, row, axis=0).reshape(-1, features.shape[1]), reference)
        for row in range(count)
    ]
    half = 1.96 * np.sqrt((count - 1) * np.var(left))
    return {"mean": whole, "ci95": [float(whole - half), float(whole + half)]}
