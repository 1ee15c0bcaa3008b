"""Does a dream remember? There and back: the last frame is one that the context has shown.

Turn right k times and left k times: whoever remembers what was there before reaches the tokenizer's ceiling. Nothing
has to be foreseen, so nothing but memory is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from worldvq.evaluation import metrics
from worldvq.evaluation.branches import Player, Situation, plans_of, play_on
from worldvq.evaluation.counterfactual import imagine_branches

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel

FAR = 8
"""Steps there, at most."""
TRIED = 8
"""Situations in which it is tried what undoes what."""
LONGEST_TURN = 48
LEAST = 4
"""Situations below which a number says nothing."""


@dataclass
class _Walk:
    """A way that comes back: what is played, and the situations in which it does."""

    name: str
    steps: int
    actions: np.ndarray
    turn: int
    situations: list[Situation] = field(default_factory=list)
    farthest: list[np.ndarray] = field(default_factory=list)


def there_and_back(
    world: WorldModel,
    player: Player,
    situations: Sequence[Situation],
    seed: int,
    sampling: dict[str, Any],
    batch_size: int = 64,
) -> dict[str, Any]:
    """Walk and return in every situation where the environment itself comes back to the same frame.

    What undoes what is found by trying (:func:`find_returns`). A way counts in a situation where its last real frame is
    the one that it began with, and its turning point shows another.

    Args:
        world: The world.
        player: The environment.
        situations: Where ways begin.
        seed: Of the sampling.
        sampling: How the world is sampled.
        batch_size: Ways imagined at a time.

    Returns:
        ``pairs``: for every pair ``there``, ``back`` and ``steps`` (1 … 8): ``psnr`` of the last imagined frame (mean,
        ci95) against the real one, ``ceiling`` (the real one through the tokenizer), ``not_returned`` (what the turning
        point's frame would score) and the number of ``situations``. ``turns``: likewise for what closes a circle.
    """
    names, actions = plans_of(world.action_space)
    pairs, turns = find_returns(player, situations, actions)
    report: dict[str, Any] = {"pairs": [], "turns": []}
    for there, back in pairs:
        walks = []
        for steps in range(1, FAR + 1):
            plan = np.stack([actions[there]] * steps + [actions[back]] * steps)
            walks.append(_walk(player, situations, _Walk(f"{names[there]}, {names[back]}", steps, plan, steps)))
        scores = [_score(world, walk, seed, sampling, batch_size) for walk in walks if len(walk.situations) >= LEAST]
        if scores:
            report["pairs"].append({"there": names[there], "back": names[back], "ways": scores})
    for action, steps in turns:
        plan = np.stack([actions[action]] * steps)
        walk = _walk(player, situations, _Walk(names[action], steps, plan, steps // 2))
        if len(walk.situations) >= LEAST:
            report["turns"].append({"action": names[action], **_score(world, walk, seed, sampling, batch_size)})
    return report


def find_returns(
    player: Player, situations: Sequence[Situation], actions: np.ndarray
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Find by trying which action undoes which, and which closes a circle.

    Args:
        player: The environment.
        situations: Of which the first ``TRIED`` are tried.
        actions: (P, ...) what may be played.

    Returns:
        Pairs (there, back), where in most situations in which ``there`` changes the frame ``back`` brings it back; and
        pairs (action, steps) likewise, of which ``steps`` is the least that does and is more than two.
    """
    tried = situations[:TRIED]
    pairs, turns = [], []
    for there, action in enumerate(actions):
        runs = [(s, play_on(player, s, np.stack([action] * LONGEST_TURN))) for s in tried]
        lengths = [_period(run, s.frames[-1]) for s, run in runs if run is not None]
        known = [length for length in lengths if length]
        if known and len(known) * 2 > len(lengths) and len(set(known)) == 1:
            turns.append((there, known[0]))
        for back, other in enumerate(actions):
            if there != back and _undoes(player, tried, action, other):
                pairs.append((there, back))
    return pairs, turns


def _period(run: np.ndarray, first: np.ndarray) -> int:
    """After how many steps, more than two, a run shows the first frame again; 0 where it does not or never left it."""
    if np.array_equal(run[0], first):
        return 0
    again = [step for step, frame in enumerate(run, start=1) if step > 2 and np.array_equal(frame, first)]
    return again[0] if again else 0


def _undoes(player: Player, situations: Sequence[Situation], there: np.ndarray, back: np.ndarray) -> bool:
    moved = returned = 0
    for situation in situations:
        run = play_on(player, situation, np.stack([there, back]))
        if run is not None and not np.array_equal(run[0], situation.frames[-1]):
            moved += 1
            returned += np.array_equal(run[1], situation.frames[-1])
    return moved > 0 and 2 * returned > moved


def _walk(player: Player, situations: Sequence[Situation], walk: _Walk) -> _Walk:
    for situation in situations:
        run = play_on(player, situation, walk.actions)
        first = situation.frames[-1]
        if run is not None and np.array_equal(run[-1], first) and not np.array_equal(run[walk.turn - 1], first):
            walk.situations.append(situation)
            walk.farthest.append(run[walk.turn - 1])
    return walk


def _score(world: WorldModel, walk: _Walk, seed: int, sampling: dict[str, Any], batch_size: int) -> dict[str, Any]:
    true = np.stack([situation.frames[-1] for situation in walk.situations])
    contexts = [situation.frames for situation in walk.situations]
    plans = [np.concatenate([situation.between, walk.actions]) for situation in walk.situations]
    rows = np.arange(len(true))
    dreamt = imagine_branches(world, contexts, plans, rows, seed, sampling, batch_size)[:, -1]
    rebuilt = world.render(world.tokenize(true[None]))[0].numpy()
    error = metrics.squared_error(true, dreamt)
    away = metrics.squared_error(true, np.stack(walk.farthest))
    return {
        "steps": walk.steps,
        "situations": len(true),
        "psnr": {
            "mean": float(metrics.psnr(error.mean())),
            "ci95": metrics.ci95(metrics.psnr(metrics.bootstrap_means(error))).tolist(),
        },
        "ceiling": float(metrics.psnr(metrics.squared_error(true, rebuilt).mean())),
        "not_returned": float(metrics.psnr(away.mean())),
    }
