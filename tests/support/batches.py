"""What models are trained on in tests: every batch is a function of its step."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldvq.types import Clip, TokenClip


class Batches:
    """Random frames as a function of the step; ranks take slices of the same global batch."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.seen: list[int] = []

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        frames = np.random.default_rng(step).integers(0, 256, (self.batch_size, 1, 16, 16, 3), dtype=np.uint8)
        share = self.batch_size // world
        frames = torch.from_numpy(frames[rank * share : (rank + 1) * share])
        self.seen.append(step)
        yes, zeros = torch.ones(share, 1, dtype=torch.bool), torch.zeros(share, 1)
        return Clip(frames, zeros.long(), zeros, zeros.bool(), yes, yes)

    def ids(self, step: int) -> np.ndarray:
        return np.array([(row, step) for row in range(self.batch_size)])


class Noted(Batches):
    """Batches that note what each process takes of them, and kill their process before the n-th (counted from 0)."""

    def __init__(self, batch_size: int, notes: Path, kill_at: int | None = None):
        super().__init__(batch_size)
        self.notes, self.kill_at, self.count = notes, kill_at, -1  # -1: the pass that is timed

    def ids(self, step: int) -> np.ndarray:
        return np.random.default_rng(step + 1000).integers(0, 10**6, (self.batch_size, 2))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        clip = super().batch(step, rank, world)
        if self.count >= 0:
            share = self.batch_size // world
            mine = self.ids(step)[rank * share : (rank + 1) * share].tolist()
            with self.notes.open("a") as file:
                file.write(json.dumps([step, rank, world, mine]) + "\n")
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        return clip


class Scenes(Batches):
    """Frames with something to learn: each is one of a few colours with a disc of another one."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Clip:
        random = np.random.default_rng(step)
        colours = np.random.default_rng(0).integers(0, 256, (12, 3))
        back, front = colours[random.integers(0, 12, (2, self.batch_size))]
        centre, radius = random.uniform(3, 13, (self.batch_size, 2)), random.uniform(2, 6, self.batch_size)
        y, x = np.mgrid[:16, :16]
        inside = np.hypot(y - centre[:, :1, None], x - centre[:, 1:, None]) < radius[:, None, None]  # (B, 16, 16)
        frames = np.where(inside[..., None], front[:, None, None], back[:, None, None]).astype(np.uint8)[:, None]
        share = slice(rank * self.batch_size // world, (rank + 1) * self.batch_size // world)
        yes = torch.ones(self.batch_size, 1, dtype=torch.bool)[share]
        return Clip(torch.from_numpy(frames)[share], yes.long(), yes.float(), ~yes, yes, yes)


class TokenBatches(Batches):
    """Random tokens as a function of the step."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TokenClip:
        random = np.random.default_rng(step)
        tokens, actions = (
            random.integers(0, 16, (self.batch_size, 4, 4, 4)),
            random.integers(0, 3, (self.batch_size, 4)),
        )
        share = slice(rank * self.batch_size // world, (rank + 1) * self.batch_size // world)
        yes = torch.ones(self.batch_size, 4, dtype=torch.bool)[share]
        tokens, actions = torch.from_numpy(tokens)[share], torch.from_numpy(actions)[share]
        return TokenClip(tokens, actions, yes.float(), ~yes, yes, yes)


class Held(Noted):
    """Batches that wait at a step, if one is given, until there is a file ``go`` beside the notes."""

    def __init__(self, batch_size: int, notes: Path, held_at: int | None):
        super().__init__(batch_size, notes)
        self.held_at, self.go = held_at, notes.with_name("go")

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        clip = super().batch(step, rank, world)
        while self.count and step == self.held_at and not self.go.exists():
            time.sleep(0.01)
        return clip
