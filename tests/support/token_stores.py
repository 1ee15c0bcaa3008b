"""Token stores that fit the worlds of support/worlds.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support.worlds import CODES, HEIGHT, WIDTH
from worldvq.config.env import EnvConfig
from worldvq.data.episodes import DatasetMeta
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.files.weights import hash_module
from worldvq.types import ActionSpace, Episode
from worldvq.world.model import WorldModel


def random_actions(space: ActionSpace, steps: int, rng: np.random.Generator) -> np.ndarray:
    """(steps, ...) within the space."""
    if space.kind == "box":
        return rng.uniform(-1, 1, (steps, *space.shape)).astype(np.float32)
    factors = [rng.integers(0, choices, steps) for choices in space.nvec]
    return factors[0] if space.kind == "discrete" else np.stack(factors, -1)


def random_tokens(world: WorldModel, frames: int, rng: np.random.Generator) -> np.ndarray:
    """(frames, h, w); half of all frames repeat the one before."""
    tokens = rng.integers(0, CODES, (frames, *world.tokenizer.grid), np.uint16)
    for index in range(1, frames):
        if rng.random() < 0.5:
            tokens[index] = tokens[index - 1]
    return tokens


def describe(world: WorldModel) -> TokenMeta:
    """What a store of the world's tokens says of itself."""
    space = world.action_space.to_json()
    env = EnvConfig(id="Toy-v0", size=(HEIGHT, WIDTH))
    dataset = DatasetMeta(env=env, action_space=space, frame_size=(HEIGHT, WIDTH), policy="random", heldout_every=3)
    tokenizer = world.tokenizer
    return TokenMeta(tokenizer_hash=hash_module(tokenizer), dataset=dataset, num_codes=CODES, grid=tokenizer.grid)


def fill(path: Path, world: WorldModel, lengths: Sequence[int], seed: int = 0, first: int = 0) -> TokenStore:
    """Write episodes of so many frames each, numbered from ``first``, and open the store for reading."""
    rng, space = np.random.default_rng(seed), world.action_space
    with TokenStore.create(path, describe(world)) as store:
        for number, frames in enumerate(lengths, first):
            steps = frames - 1
            ending = {"terminated": number % 3 == 0, "truncated": number % 3 == 1, "interrupted": number % 3 == 2}
            episode = Episode(
                frames=np.zeros((frames, 0, 0, 3), np.uint8),
                actions=random_actions(space, steps, rng),
                rewards=rng.normal(size=steps).astype(np.float32),
                seed=number - 1,
                meta={"level": number, "name": "ä\n"} | ({"label": f"room {number}"} if number % 2 else {}),
                **ending,
            )
            store.write(number, random_tokens(world, frames, rng), episode)
    return TokenStore.open(path)
