"""Dreams that begin from held-out contexts, are stepped together and end each for itself: behind both environments."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike

from worldvq.config.yaml_loading import build
from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError, did_you_mean
from worldvq.evaluation.protocol import check_fits
from worldvq.models.config import SamplingConfig
from worldvq.nn.noise import stream_keys
from worldvq.types import ActionSpace
from worldvq.world.dream import Dream
from worldvq.world.model import WorldModel

INFO = ("entropy", "tokens", "feature")
"""What ``info`` can hold of the newest frame: nats of each token (h, w), tokens (h, w), pooled features (D,)."""
_ENDINGS = 1
"""Seed of the noise that decides where episodes end; what tokens are drawn with has another."""
_LEAST_CONTEXT = 2


def gym_space(space: ActionSpace) -> spaces.Space:
    """Return the Gymnasium space of stored actions: Discrete, MultiDiscrete (of buttons too) or Box of float32."""
    if space.kind == "discrete":
        return spaces.Discrete(space.nvec[0])
    if space.kind == "multi_discrete":
        return spaces.MultiDiscrete(np.array(space.nvec))
    return spaces.Box(np.array(space.low, np.float32), np.array(space.high, np.float32))


@dataclass(frozen=True)
class DreamState:
    """Everything that decides what happens next in an environment; a copy, made by ``get_state``.

    Attributes:
        world: What dreams.
        dream: Its rows, one an environment.
        elapsed: (E,) int64, steps since the last reset.
        ended: (E,) bool, those that have to be reset.
        generators: States of the random generators, one an environment.
    """

    world: WorldModel
    dream: Dream
    elapsed: np.ndarray
    ended: np.ndarray
    generators: tuple[Mapping[str, Any], ...]


class DreamRows:
    """What the scalar and the vector environment share: the checked settings, and dreams that begin, step and end.

    Attributes:
        world: What dreams.
        dream: Its rows, one an environment; None before the first reset.
        observation_space: Of one environment.
        action_space: Likewise.
        elapsed: (E,) int64, steps since the last reset.
        ended: (E,) bool, those that have to be reset.
        frames: (E, H, W, 3) uint8, as last looked at.
    """

    def __init__(
        self,
        num_envs: int,
        world: Path | str | WorldModel,
        data: Path | str | EpisodeStore | None,
        context: int,
        horizon: int,
        info: Sequence[str],
        sampling: dict[str, Any] | None,
        device: str,
        render_mode: str | None,
    ) -> None:
        self.context = at_least("context", context, _LEAST_CONTEXT)
        self.horizon = at_least("horizon", horizon, 1)
        for name in (info,) if isinstance(info, str) else info:
            if name not in INFO:
                raise UsageError(f"info '{name}'{did_you_mean(name, INFO)}: choose among {', '.join(INFO)}")
        if render_mode not in (None, "rgb_array"):
            raise UsageError(f"render_mode {render_mode!r}: choose 'rgb_array' or None")
        self.names = (info,) if isinstance(info, str) else tuple(info)
        self.world = world if isinstance(world, WorldModel) else WorldModel.load(world, device)
        self.sampling = self.world.sampling_with(sampling or {})
        build(SamplingConfig, self.sampling, "sampling")  # refuses what is none of its settings
        self.store = EpisodeStore.open(Path(data)) if isinstance(data, str | Path) else data
        if self.store is not None:
            check_fits(self.world, self.store)
            # One frame more: a dream does not begin where the episode ended.
            self.windows = heldout_clips(self.store, sys.maxsize, self.context + 1, setting="context + 1")
        self.observation_space = spaces.Box(0, 255, (*self.world.frame_size, 3), np.uint8)
        self.action_space = gym_space(self.world.action_space)
        self.dream: Dream | None = None
        self.elapsed = np.zeros(num_envs, np.int64)
        self.ended = np.ones(num_envs, bool)
        self.frames: np.ndarray = np.empty(0)

    def begin(self, rows: np.ndarray, rngs: Sequence[np.random.Generator], options: dict[str, Any]) -> None:
        """Begin episodes in rows (n,); their generators decide where, unless that is given, and what is dreamt."""
        unknown = sorted(set(options) - {"frames", "actions", "sounds"})
        if unknown:
            raise UsageError(f"options {unknown}: a dream takes frames, the actions between them, and sounds")
        frames, actions, sounds = self._given(len(rows), options) if options else self._drawn(rngs)
        seeds = [int(rng.integers(2**63 - 1)) for rng in rngs]
        if self.dream is None or len(rows) == len(self.ended):  # afresh: the same seed is the same to the last bit
            self.dream = self.world.start(frames, actions, row_seeds=seeds, sounds=sounds, **self.sampling)
        else:
            self.dream.reset(rows, frames, actions, seeds, sounds)
        self.elapsed[rows], self.ended[rows] = 0, False

    def _drawn(self, rngs: Sequence[np.random.Generator]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return contexts (n, C, H, W, 3), actions (n, C - 1, ...) and what was heard (n, C, S), of held-out windows.

        All windows are equally likely.
        """
        if self.store is None:
            raise UsageError(
                "this dream has nothing to begin from: make it with data=DIR, a dataset of the world's environment, or "
                "call reset(options={'frames': (C, H, W, 3) uint8, 'actions': (C - 1, ...)})"
            )
        clip = read_clips(self.store, self.windows[[rng.integers(len(self.windows)) for rng in rngs]], self.context)
        return clip.frames, clip.actions[:, :-1], clip.sounds

    def _given(self, count: int, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Likewise, of options: one context an environment, or one for all."""
        if not {"frames", "actions"} <= set(options):
            raise UsageError("options: give frames (C, H, W, 3) uint8 together with the actions (C - 1, ...) between")
        frames, actions = np.asarray(options["frames"]), np.asarray(options["actions"])
        sounds = None if options.get("sounds") is None else np.asarray(options["sounds"])
        if frames.ndim == 4:
            frames = np.broadcast_to(frames, (count, *frames.shape))
            actions = np.broadcast_to(actions, (count, *actions.shape))
            sounds = sounds if sounds is None else np.broadcast_to(sounds, (count, *sounds.shape))
        if frames.ndim == 5 and frames.shape[1] < _LEAST_CONTEXT:
            raise UsageError(
                f"options: a context of {frames.shape[1]} frames is too short, a dream begins from {_LEAST_CONTEXT} "
                "or more"
            )
        if len(frames) != count:
            raise UsageError(f"options: {len(frames)} contexts for {count} environments: give one each, or one for all")
        return frames, actions, sounds

    def step(self, actions: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take actions (E, ...): rewards (E,) float64, terminated and truncated (E,) bool, never both."""
        assert self.dream is not None
        row_seeds, steps = self.dream.row_seeds, self.dream.steps.copy()
        step = self.dream.step_tokens(actions)
        keys = stream_keys(_ENDINGS, row_seeds, steps).view(np.uint64)[:, 0]
        terminated = (keys >> np.uint64(11)) * 2.0**-53 < step.termination.numpy()
        self.elapsed += 1
        truncated = (self.elapsed >= self.horizon) & ~terminated
        return step.rewards.double().numpy(), terminated, truncated

    def look(self) -> np.ndarray:
        """Decode the newest frames, (E, H, W, 3) uint8, and keep them for :meth:`render`."""
        assert self.dream is not None
        self.frames = self.dream.render().numpy()
        return self.frames.copy()

    def info(self) -> dict[str, np.ndarray]:
        """Return what was asked for, (E, ...)."""
        assert self.dream is not None
        found = {}
        for name in self.names:
            if name == "entropy":
                found[name] = self.dream.entropy().numpy()
            elif name == "tokens":
                found[name] = self.dream.tokens.cpu().numpy().copy()
            else:
                found[name] = self.dream.context.float().mean((1, 2)).cpu().numpy()
        return found

    def get_state(self, rngs: Sequence[np.random.Generator]) -> DreamState:
        """Return a copy of everything that decides what happens next."""
        if self.dream is None:
            raise UsageError("no episode has begun: call reset() before get_state()")
        rows = np.arange(len(self.ended))
        states = tuple(rng.bit_generator.state for rng in rngs)
        return DreamState(self.world, self.dream.fork(rows), self.elapsed.copy(), self.ended.copy(), states)

    def set_state(self, state: DreamState, rngs: Sequence[np.random.Generator]) -> None:
        """Inverse of :meth:`get_state`."""
        if len(state.ended) != len(self.ended):
            raise UsageError(f"the state is of {len(state.ended)} dreams, this environment has {len(self.ended)}")
        if state.world is not self.world and state.world.hash() != self.world.hash():
            raise UsageError("the state is of another world: set one that an environment of this world returned")
        self.dream = state.dream.fork(np.arange(len(state.ended)))
        self.elapsed, self.ended = state.elapsed.copy(), state.ended.copy()
        for rng, saved in zip(rngs, state.generators, strict=True):
            rng.bit_generator.state = saved

    def fork(self, rows: ArrayLike, row_seeds: ArrayLike | None) -> DreamRows:
        """Return copies of rows (n,), which go on by themselves."""
        if self.dream is None:
            raise UsageError("no episode has begun: call reset() before fork()")
        other = copy.copy(self)
        other.dream = self.dream.fork(rows, row_seeds)
        other.elapsed, other.ended = self.elapsed[rows], self.ended[rows]  # type: ignore[index]
        other.look()
        return other


def at_least(name: str, value: Any, least: int) -> int:
    """Return a whole number; refuse any other value, naming it."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} {value!r}: give a whole number of at least {least}")
    return int(value)
