"""What one player does: the moments it has been through, the branches that it compares, and the real environment."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldvq.errors import UsageError
from worldvq.media.videos import write_video
from worldvq.play.real import Outcome, Real
from worldvq.play.rows import Rows, Stepped
from worldvq.play.starts import Openings
from worldvq.types import ActionSpace
from worldvq.world.actions import stored_actions
from worldvq.world.dream import Dream

UNDO_BYTES = 256 * 2**20
"""What one player's past dreams may take: 64 steps where the doom config's network remembers 16 frames and recalls."""
MOST_MOMENTS = 1800
"""Frames that are remembered for a clip."""
CLIP_HEIGHT = 256
"""Pixels of a clip, about."""
GAP = 4
"""Pixels between dream and reality in a clip."""
_ENCODER = ThreadPoolExecutor(1, "worldvq-encoder")


@dataclass(frozen=True)
class Moment:
    """A frame, and what there is to say of it.

    Attributes:
        steps: Since play began.
        dream: One row, as it was then; None where undo no longer reaches, or there is no dream.
        frame: (H, W, 3) uint8 of the dream; None where there is none.
        real: Where the real environment was; None where there is none.
        reward: Predicted, of the step into it.
        total: Of all steps since play began.
        end: Predicted probability that the step into it ended the task.
        passes: Through the prior.
        entropy: (h, w) nats a token, if asked for.
    """

    steps: int
    dream: Dream | None
    frame: np.ndarray | None
    real: Outcome | None
    reward: float = 0.0
    total: float = 0.0
    end: float = 0.0
    passes: int = 0
    entropy: np.ndarray | None = None

    def after(self, step: Stepped, row: int, dream: Dream | None, real: Outcome | None = None) -> Moment:
        """Return the moment that a row of a step leads to."""
        reward = float(step.rewards[row])
        return Moment(
            self.steps + 1,
            dream,
            step.frames[row],
            real,
            reward,
            self.total + reward,
            float(step.ends[row]),
            int(step.passes[row]),
            None if step.entropy is None else step.entropy[row],
        )


class Game:
    """One player. Its methods wait for the thread of :class:`Rows`, and are called one after the other.

    Attributes:
        now: The moment that is shown.
        overlay: Whether moments say how unsure each token was.
    """

    def __init__(self, rows: Rows, space: ActionSpace, openings: Openings | None, real: Real | None):
        """Begin nothing yet.

        Args:
            rows: What computes.
            space: What an action is.
            openings: Where dreams begin; None plays the real environment alone.
            real: None dreams alone.
        """
        self._rows, self._space, self._openings, self._real = rows, space, openings, real
        self._start, self._begun = 0, -1
        self._temperature: float | None = None
        self._past: deque[Moment] = deque(maxlen=MOST_MOMENTS)
        self._branches: list[list[Moment]] = []
        self.overlay = False

    @property
    def now(self) -> Moment:
        """The moment that is shown."""
        return self._past[-1]

    @property
    def undoable(self) -> int:
        """How many steps undo can go back."""
        return max(0, sum(moment.dream is not None for moment in self._past) - 1)

    async def begin(self, start: int | None = None) -> None:
        """Begin at a start, or once more where it was begun, with other luck; alone, the real one's next episode.

        Raises:
            UsageError: There is no such start.
        """
        start = self._start if start is None else start
        openings = self._openings
        if openings is not None and not start < len(openings.starts):
            raise UsageError(f"there is no start {start}, only 0 to {len(openings.starts) - 1}")
        self._start, self._begun, self._branches = start, self._begun + 1, []
        if openings is None:
            assert self._real is not None
            moment = Moment(0, None, None, await self._rows.call(self._real.begin_next))
        else:
            moment = Moment(0, *await self._rows.call(openings.begin, start, self._begun), None)
            if self._real is not None:
                chosen = openings.starts[start]
                moment = replace(moment, real=await self._rows.call(self._real.begin, chosen.seed, chosen.path))
        self._past.clear()
        self._past.append(moment)

    def set_temperature(self, value: float) -> None:
        """Draw tokens at this temperature from now on."""
        self._temperature = value

    def _dream(self) -> Dream | None:
        """Return the row that is shown, at the temperature that is set."""
        dream, set_to = self.now.dream, self._temperature
        if dream is not None and set_to not in (None, dream.sampling.temperature):
            dream = dream.fork([0])
            dream.sampling = dream.sampling.model_copy(update={"temperature": set_to})
        return dream

    async def act(self, action: Any) -> None:
        """Take one step.

        Raises:
            UsageError: There is no such action.
        """
        taken = self._checked([action])
        now, dream, self._branches = self.now, self._dream(), []
        if dream is None:
            self._remember(replace(now, steps=now.steps + 1, real=await self._act_for_real(taken)))
            return
        step, real = await asyncio.gather(
            self._rows.step(dream, taken, self.overlay), self._act_for_real(taken), return_exceptions=True
        )
        for failed in (step, real):
            if isinstance(failed, BaseException):
                raise failed
        self._remember(now.after(step, 0, step.dream, real))  # type: ignore[union-attr, arg-type]

    async def _act_for_real(self, taken: torch.Tensor) -> Outcome | None:
        return None if self._real is None else await self._rows.call(self._real.act, taken[0].numpy())

    async def undo(self, steps: int) -> None:
        """Go back, as far as is remembered."""
        self._branches = []
        for _ in range(min(steps, self.undoable)):
            self._past.pop()
        if self._real is not None and self._openings is not None:
            self._past[-1] = replace(self.now, real=await self._rows.call(self._real.rewind, self.now.steps))

    async def what_if(self, actions: list[Any], steps: int) -> AsyncIterator[list[Moment]]:
        """Fork here and hold each of some actions; yields a moment a branch, step by step.

        Raises:
            UsageError: There is no such action, or no dream to fork.
        """
        taken, now, dream = self._checked(actions), self.now, self._dream()
        if dream is None:
            raise UsageError("the real environment cannot be forked: only a dream can")
        dream, self._branches = dream.fork([0] * len(actions)), []
        branches: list[list[Moment]] = [[] for _ in actions]
        for _ in range(steps):
            step = await self._rows.step(dream, taken, self.overlay)
            dream = step.dream
            for row, branch in enumerate(branches):
                branch.append((branch[-1] if branch else now).after(step, row, dream.fork([row])))
            yield [branch[-1] for branch in branches]
        self._branches, self._branch_actions = branches, taken

    async def take(self, branch: int) -> None:
        """Go on in a branch of the last :meth:`what_if`.

        Raises:
            UsageError: There is no such branch.
        """
        if not branch < len(self._branches):
            raise UsageError("there is no such branch: ask what would be first")
        moments, self._branches = self._branches[branch], []
        for moment in moments:
            self._remember(replace(moment, real=await self._act_for_real(self._branch_actions[branch : branch + 1])))

    def set_recording(self, on: bool) -> None:
        """Keep the real episodes that end from now on, or no longer.

        Raises:
            UsageError: There is no real environment.
        """
        if self._real is None:
            raise UsageError("what is dreamt is not recorded: start the page with --real and --record DIR")
        self._real.recording = on

    async def clip(self, fps: float) -> bytes:
        """Return what was played since the beginning as an mp4; dream and reality side by side."""
        frames = [_side_by_side(moment) for moment in self._past]
        return await asyncio.get_running_loop().run_in_executor(_ENCODER, _encode, frames, fps)

    async def close(self) -> None:
        """Let go of everything; a recorded episode in play is kept as interrupted."""
        self._past.clear()
        if self._real is not None:
            await self._rows.call(self._real.close)

    def _checked(self, actions: list[Any]) -> torch.Tensor:
        shape = self._space.shape
        if any(np.shape(action) != shape for action in actions):
            raise UsageError(f"an action here is {f'a list of {shape[0]} numbers' if shape else 'one number'}")
        return stored_actions(np.array(actions), self._space, (len(actions),), "the page")

    def _remember(self, moment: Moment) -> None:
        """Append a moment; of those that undo no longer reaches, only pictures stay."""
        self._past.append(moment)
        if moment.dream is not None:
            depth = max(1, min(UNDO_BYTES // num_bytes(moment.dream), MOST_MOMENTS))
            old = len(self._past) - 2 - depth
            if old >= 0 and self._past[old].dream is not None:
                self._past[old] = replace(self._past[old], dream=None)


def num_bytes(dream: Dream) -> int:
    """Return what a dream remembers, in bytes."""
    rings = [*dream.state.caches, *([dream.state.recalled] if dream.state.recalled else [])]
    return sum(part.numel() * part.element_size() for ring in rings for part in (ring.keys, ring.values))


def _side_by_side(moment: Moment) -> np.ndarray:
    """A frame of a clip, (H, W, 3) uint8."""
    parts = [frame for frame in (moment.frame, moment.real and moment.real.frame) if frame is not None]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([parts[0], np.zeros((len(parts[0]), GAP, 3), np.uint8), parts[1]], 1)


def _encode(frames: list[np.ndarray], fps: float) -> bytes:
    """Return an mp4 of frames (H, W, 3) uint8, enlarged without blur."""
    with tempfile.TemporaryDirectory(prefix="worldvq-") as folder:
        path = write_video(Path(folder) / "clip.mp4", frames, fps, math.ceil(CLIP_HEIGHT / len(frames[0])))
        return path.read_bytes()
