"""Episodes and datasets that tests are about, or need."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.types import ActionSpace, Episode

SPACES = {
    "discrete": ActionSpace("discrete", (5,)),
    "multi_discrete": ActionSpace("multi_discrete", (3, 2)),
    "box": ActionSpace("box", low=(-1.0, float("-inf")), high=(1.0, float("inf"))),
}


def make_meta(kind: str = "discrete", size: tuple[int, int] = (6, 8), **changes: Any) -> DatasetMeta:
    settings = {"policy": "random", "heldout_every": 3, "versions": {"worldvq": "0"}} | changes
    return DatasetMeta(env=EnvConfig(), action_space=SPACES[kind].to_json(), frame_size=size, **settings)


def make_episode(
    seed: int = 0,
    steps: int = 20,
    kind: str = "discrete",
    size: tuple[int, int] = (6, 8),
    samples: int | None = None,
    **ending: bool,
) -> Episode:
    rng, space = np.random.default_rng(seed), SPACES[kind]
    actions = rng.integers(0, 2, (steps, *space.shape)) if kind != "box" else rng.normal(size=(steps, 2))
    return Episode(
        frames=rng.integers(0, 256, (steps + 1, *size, 3), np.uint8),
        actions=actions.astype(space.dtype),
        rewards=rng.normal(size=steps).astype(np.float32),
        seed=seed,
        meta={"level": seed, "name": "ä"},
        sounds=None if samples is None else rng.integers(-(2**15), 2**15, (steps, samples), np.int16),
        **({"terminated": False, "truncated": True} | ending),
    )


def fill(path: Path, num_episodes: int = 4, **changes: Any) -> EpisodeStore:
    """Record some episodes and open the store for reading."""
    with EpisodeStore.create(path, make_meta(**changes)) as store:
        for number in range(num_episodes):
            store.commit(number, make_episode(number))
    return EpisodeStore.open(path)


def write(path: Path, space: ActionSpace, episodes: Iterable[Episode], **settings: Any) -> EpisodeStore:
    """Write episodes, numbered from 0, and open the store for reading.

    Args:
        path: Where to.
        space: Of their actions.
        episodes: At least one.
        settings: Of the :class:`DatasetMeta`.
    """
    episodes = list(episodes)
    size = episodes[0].frames.shape[1:3]
    settings = {"env": EnvConfig(id="Toy-v0", size=size), "policy": "random", "heldout_every": 2, **settings}
    with EpisodeStore.create(path, DatasetMeta(action_space=space.to_json(), frame_size=size, **settings)) as store:
        for number, episode in enumerate(episodes):
            store.commit(number, episode)
    return EpisodeStore.open(path)


def plain_episode(shade: int, size: int, length: int = 12) -> Episode:
    """Frames of one shade of grey; the first action of a discrete space all the time."""
    frames, steps = np.full((length, size, size, 3), shade, np.uint8), length - 1
    return Episode(frames, np.zeros(steps, np.int64), np.zeros(steps, np.float32), terminated=False, truncated=True)


def assert_same(one: Episode, other: Episode) -> None:
    for name in ("frames", "actions", "rewards"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert (one.sounds is None) == (other.sounds is None)
    if one.sounds is not None:
        np.testing.assert_array_equal(one.sounds, other.sounds)
    for name in ("terminated", "truncated", "interrupted", "seed", "meta"):
        assert getattr(one, name) == getattr(other, name)
