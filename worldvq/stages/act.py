"""Act in the dataset's own environment by planning in dreams of it, beside a policy that acts at random."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import worldvq
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError, plural
from worldvq.evaluation import metrics
from worldvq.evaluation.parts import Part, Parts, key_of
from worldvq.evaluation.protocol import check_fits
from worldvq.files.atomic import disk_errors, write_atomic
from worldvq.files.lock import Lock
from worldvq.media.pictures import acted_frames
from worldvq.media.videos import write_video
from worldvq.nn.memory import memory_errors
from worldvq.planning.control import Controller
from worldvq.planning.planners import Planner, cross_entropy, random_shooting
from worldvq.planning.rollout import dream_plans, forecast_plans
from worldvq.recording.players import random_action
from worldvq.recording.playing import episode_seed
from worldvq.stages.interventions import open_environment
from worldvq.types import ActionSpace
from worldvq.world.model import WorldModel

PLANNERS: dict[str, Planner] = {"shooting": random_shooting, "cem": cross_entropy}
FILMED = 600
"""Frames of the first episode that the video shows, at most."""
FPS = 6
QUIET = 10.0
"""Seconds between two lines on an episode in play, where there is no terminal for a bar."""
_USE = 7
"""Which of an episode's seeds: recordings use the first few, so these episodes are none that were recorded."""


@dataclass
class _Episode:
    """What was played.

    Attributes:
        rewards: Of each step.
        actions: Stored ones.
        frames: (H, W, 3) uint8; what really happened.
        dreamt: As many, what the plan had shown.
        ages: As many, steps since the plan was made.
    """

    rewards: list[float] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    dreamt: list[np.ndarray] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)

    def add(self, frame: np.ndarray, dreamt: np.ndarray, age: int) -> None:
        """Keep a frame of the film."""
        self.frames.append(frame)
        self.dreamt.append(dreamt)
        self.ages.append(age)


def act(
    world_folder: Path,
    data: Path,
    out: Path,
    *,
    episodes: int,
    planner: str,
    horizon: int,
    every: int,
    candidates: int,
    prior: bool,
    seed: int,
    trust: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Play episodes by model-predictive control and at random, on the same seeds; writes ``report.json``, ``act.mp4``.

    Episodes that were played before an interruption are not played again.

    Args:
        world_folder: A trained world.
        data: Its dataset, which says what the environment is.
        out: Folder of report and video.
        episodes: How many, of each.
        planner: A name of ``PLANNERS``.
        horizon: Steps of a plan.
        every: Steps of it that are taken.
        candidates: Plans that are dreamt for each.
        prior: Dream plans with the prior instead of the forecast head.
        seed: Of the episodes and of the plans.
        trust: Run code that the dataset names.
        device: See :meth:`WorldModel.load`.

    Returns:
        The report: ``planner`` and ``random`` with ``mean``, ``ci95``, ``returns`` and ``steps``, their paired
        ``difference``, and how it was played.

    Raises:
        UsageError: Something does not fit, or the environment cannot be built; nothing was written.
    """
    if planner not in PLANNERS:
        raise UsageError(f"there is no planner '{planner}': {' or '.join(PLANNERS)}")
    if every > horizon:
        raise UsageError(f"--every {every}: a plan of --horizon {horizon} has no more steps than that")
    world = WorldModel.load(world_folder, device)
    with EpisodeStore.open(data) as store:
        check_fits(world, store)
        stream = open_environment(store.meta.env, store.path, trust)
    rollout = dream_plans if prior else forecast_plans
    controller = Controller(
        world, horizon=horizon, every=every, candidates=candidates, planner=PLANNERS[planner], rollout=rollout
    )
    settings = {"planner": planner, "horizon": horizon, "every": every, "candidates": candidates, "prior": prior}
    about = {"env_id": stream.config.id, "world": world.hash(), "settings": settings, "seed": seed}
    parts = Parts(out, key_of({**about, "env": stream.config.model_dump(mode="json"), "version": worldvq.__version__}))
    begun = time.monotonic()
    try:
        with memory_errors(f"fewer plans at once take less: --candidates, now {candidates}"), disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            lock = Lock(out)
            try:
                parts.prepare()
                count = plural(episodes, "episode")
                print(f"playing {count} of '{about['env_id']}', each planned and at random", flush=True)
                played = _play_all(stream, controller, episodes, seed, out / "act.mp4", parts)
                report = {**about, **compare(*played), "seconds": round(time.monotonic() - begun, 1)}
                write_atomic(out / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
                parts.remove()
            finally:
                lock.release()
    finally:
        stream.close()
    return report


def compare(returns: np.ndarray, steps: np.ndarray) -> dict[str, Any]:
    """Returns of planning and at random with 95 % bootstrap intervals, and of their difference, seed by seed.

    Args:
        returns: (E, 2), of each episode, planned and at random.
        steps: (E, 2) likewise.
    """
    report: dict[str, Any] = {"episodes": len(returns)}
    for way, name in enumerate(("planner", "random")):
        listed = {"returns": returns[:, way].tolist(), "steps": steps[:, way].tolist()}
        report[name] = {**metrics.mean_over_rows(returns[:, way]), **listed}
    return {**report, "difference": metrics.mean_over_rows(returns[:, 0] - returns[:, 1])}


def _play_all(
    stream: Any, controller: Controller, episodes: int, seed: int, video: Path, parts: Parts
) -> tuple[np.ndarray, np.ndarray]:
    """Play every seed both ways, those that were not played before; returns and steps (E, 2)."""
    played: list[Part] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console, last = Console(stderr=True), time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("planning", total=episodes)

        def say(words: str) -> None:
            nonlocal last
            bar.update(task, description=words)
            if not console.is_terminal and time.monotonic() - last >= QUIET:
                last = time.monotonic()
                print(words, flush=True)

        for number in range(episodes):
            make = functools.partial(_both_ways, stream, controller, number, seed, None if number else video, say)
            played.append(parts.ensure(number, make))
            bar.advance(task)
            means = np.concatenate([part["returns"] for part in played]).mean(0)
            if not console.is_terminal:
                print(f"episode {number + 1}/{episodes}: mean return {means[0]:.2f}, random {means[1]:.2f}", flush=True)
    joined = parts.join(episodes)
    return joined["returns"], joined["steps"]


def _both_ways(
    stream: Any, controller: Controller, number: int, seed: int, video: Path | None, say: Callable[[str], None]
) -> Part:
    """Play an episode by planning and at random; ``returns`` and ``steps`` (1, 2). Films the first where asked to."""
    seeds = episode_seed(seed, number, _USE), episode_seed(seed, number, _USE + 1)
    rng = np.random.default_rng(seeds[1])
    say(f"episode {number + 1}, at random")
    at_random = _play(stream, seeds[0], functools.partial(random_action, stream.action_space, rng))
    planned = _control(stream, controller, seeds[0], video is not None, lambda now: say(f"episode {number + 1}, {now}"))
    if video:
        _film(planned, stream.action_space, video)
    both = planned.rewards, at_random.rewards
    returns, steps = [sum(rewards) for rewards in both], [len(rewards) for rewards in both]
    return {"returns": np.array([returns], np.float64), "steps": np.array([steps], np.int64)}


def _play(stream: Any, seed: int, policy: Callable[[], np.ndarray]) -> _Episode:
    """Play an episode blindly."""
    episode = _Episode()
    stream.reset(seed)
    done = False
    while not done:
        _, reward, terminated, truncated = stream.step(policy())
        episode.rewards.append(reward)
        done = terminated or truncated
    return episode


def _control(stream: Any, controller: Controller, seed: int, film: bool, say: Callable[[str], None]) -> _Episode:
    """Play an episode by planning; where it is filmed, keep what happened and what was dreamt of it."""
    episode, shown = _Episode(), np.empty(0)
    frame = stream.reset(seed)
    controller.begin(frame, seed)
    if film:
        episode.add(frame, frame, 0)
    done = False
    while not done:
        action = stream.as_played(controller.act())
        film = film and len(episode.frames) < FILMED
        if film and controller.taken == 1:
            shown = controller.dreamt()
        frame, reward, terminated, truncated = stream.step(action)
        controller.see(action, frame)
        episode.rewards.append(reward)
        if film and stream.has_frame:
            episode.actions.append(action)
            episode.add(frame, shown[controller.taken - 1], controller.taken)
        done = terminated or truncated
        say(f"step {len(episode.rewards)}, return {sum(episode.rewards):g}")
    return episode


def _film(episode: _Episode, space: ActionSpace, video: Path) -> None:
    steps = len(episode.actions)
    frames = acted_frames(episode.frames, episode.dreamt, episode.ages, episode.actions, episode.rewards[:steps], space)
    write_video(video, frames, fps=FPS, expected=steps + 1)
