"""Does a dream remember? There and back: the last frame is one that the context has shown.

Turn right k times and left k times: whoever remembers what was there before reaches the tokenizer's ceiling. Nothing
has to be foreseen, so nothing but memory is measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from worldvq.evaluation import metrics
from worldvq.evaluation.branches import Player, Situation, plans_of, play_on
from worldvq.evaluation.counterfactual import imagine_branches
from worldvq.evaluation.report_files import BY_SITUATION

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel

FAR = 8
"""Steps there, at most."""
DETOUR = 2
"""Steps of each leg of a walk of four legs."""
TRIED = 16
"""Situations in which it is tried what undoes what."""
SHARE = 1 / 8
"""Of those in which an action changes the frame, in which the one that undoes it has to bring it back: not all, as one
slides along walls (a maze: half), or has not come to rest (ViZDoom: a quarter)."""
LONGEST_TURN = 48
NEAR = 2.0
"""A dream has come back where its squared error is at most so many times the tokenizer's: within 3 dB."""
LEAST = 4
"""Situations below which a number says nothing."""


@dataclass
class _Walk:
    """A way that comes back, and the situations in which it does.

    Attributes:
        kind: ``pair``, ``nested``, ``around`` or ``turn``; see :func:`there_and_back`.
        legs: (action's number, steps) one after the other.
        turn: Steps until the turning point.
        rows: Which situations these are.
        situations: Where the environment comes back to the same frame.
        there: Its frames (turn, H, W, 3) up to the turning point there.
    """

    kind: str
    legs: list[tuple[int, int]]
    turn: int
    rows: list[int] = field(default_factory=list)
    situations: list[Situation] = field(default_factory=list)
    there: list[np.ndarray] = field(default_factory=list)


def there_and_back(
    world: WorldModel,
    player: Player,
    situations: Sequence[Situation],
    seed: int,
    sampling: dict[str, Any],
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, Any]:
    """Walk and return in every situation where the environment itself comes back to the same frame.

    What undoes what is found by trying (:func:`find_returns`). A way counts in a situation where its last real frame is
    the one that it began with, and every leg of it leads to another frame. Kinds of ways:

    - ``pair``: an action k times, then k times the one that undoes it, k = 1 … 8.
    - ``nested``: two actions, then what undoes them, the last one first: back by the way one came.
    - ``around``: two actions, then what undoes them, the first one first: back by another way.
    - ``turn``: one action until the circle is closed.

    Args:
        world: The world.
        player: The environment.
        situations: Where ways begin.
        seed: Of the sampling.
        sampling: How the world is sampled.
        batch_size: Ways imagined at a time.
        progress: Show a progress bar on stderr.

    Returns:
        ``undoes``: pairs of names; ``ways``: of each ``kind``, ``name``, ``steps`` (of a leg), the number of
        ``situations``, ``psnr`` (mean, ci95) of the last imagined frame against the real one, ``ceiling`` (that of the
        real one through the tokenizer), ``not_returned`` (what the real frame at the turning point would score),
        ``turning_point`` (PSNR of the imagined frame there: a dream that does not move comes back too) and ``shown``
        (mean, ci95; where the way there was shown for real and only the way back is imagined: where one may slide along
        a wall or not, a dream that draws the other of the two on its way there is right not to come back); and
        ``returned`` and ``returned_shown`` (mean, ci95), the share of the dreams, of either kind, that come back
        (``NEAR``): a few that do not make most of a PSNR.
        ``by_situation``: the squared errors ``error`` and ``ceiling`` behind the PSNRs, arrays (ways, S) with NaN where
        a way does not count.
    """
    names, actions = plans_of(world.action_space)
    console = Console(stderr=True, quiet=not progress)
    pairs, turns = find_returns(player, situations, actions)
    report: dict[str, Any] = {"undoes": [[names[there], names[back]] for there, back in pairs], "ways": []}
    errors = []
    for walk in track(_walks(pairs, turns), "there and back", console=console):
        plan = np.concatenate([np.stack([actions[number]] * steps) for number, steps in walk.legs])
        _play(player, situations, walk, plan)
        if len(walk.situations) >= LEAST:
            name = ", ".join(f"{names[number]} × {steps}" for number, steps in walk.legs)
            about = {"kind": walk.kind, "name": name, "steps": walk.legs[0][1]}
            score, error = _score(world, walk, plan, seed, sampling, batch_size)
            report["ways"].append(about | score)
            errors.append(np.full((2, len(situations)), np.nan))
            errors[-1][:, walk.rows] = error
    error, ceiling = np.reshape(errors, (-1, 2, len(situations))).swapaxes(0, 1)
    places = np.stack([situation.place for situation in situations])
    return report | {BY_SITUATION: {"situations": places, "error": error, "ceiling": ceiling}}


def find_returns(
    player: Player, situations: Sequence[Situation], actions: np.ndarray
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Find by trying which action undoes which, and which closes a circle.

    Args:
        player: The environment.
        situations: Of which the first ``TRIED`` are tried.
        actions: (P, ...) what may be played.

    Returns:
        Pairs (there, back), where in some situations (``SHARE``) in which ``there`` changes the frame ``back`` brings
        it back to the bit; and pairs (action, steps), where in most situations ``steps`` is the least, more than two,
        after which the frame is as it was.
    """
    tried = situations[:TRIED]
    pairs, turns = [], []
    for there, action in enumerate(actions):
        runs = [(s, play_on(player, s, np.stack([action] * LONGEST_TURN))) for s in tried[: TRIED // 2]]
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
    return returned >= 2 and returned >= SHARE * moved


def _walks(pairs: list[tuple[int, int]], turns: list[tuple[int, int]]) -> list[_Walk]:
    """All ways to try. Of two pairs that are each other's reverse, one leads the walks of four legs."""
    walks = [_Walk("pair", [(a, k), (b, k)], k) for a, b in pairs for k in range(1, FAR + 1)]
    leading = [(a, b) for a, b in pairs if a < b or (b, a) not in pairs]
    for a, undo_a in leading:
        for b, undo_b in leading:
            if not {a, undo_a} & {b, undo_b}:
                walks.append(_Walk("nested", [(one, DETOUR) for one in (a, b, undo_b, undo_a)], 2 * DETOUR))
                if a < b:
                    walks.append(_Walk("around", [(one, DETOUR) for one in (a, b, undo_a, undo_b)], 2 * DETOUR))
    return walks + [_Walk("turn", [(action, steps)], steps // 2) for action, steps in turns]


def _play(player: Player, situations: Sequence[Situation], walk: _Walk, plan: np.ndarray) -> None:
    """Find the situations in which a way comes back, and every leg of it leads somewhere else."""
    ends = np.cumsum([steps for _, steps in walk.legs]) if len(walk.legs) > 1 else [walk.turn]
    for row, situation in enumerate(situations):
        run = play_on(player, situation, plan)
        if run is None or not np.array_equal(run[-1], situation.frames[-1]):
            continue
        corners = [situation.frames[-1], *(run[end - 1] for end in ends)]
        if all(not np.array_equal(one, other) for one, other in itertools.pairwise(corners)):
            walk.rows.append(row)
            walk.situations.append(situation)
            walk.there.append(run[: walk.turn])


def _score(
    world: WorldModel, walk: _Walk, plan: np.ndarray, seed: int, sampling: dict[str, Any], batch_size: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Return what the report says of a way; and squared errors (2, n) of what was imagined, and of the ceiling."""
    first = np.stack([situation.frames[-1] for situation in walk.situations])
    farthest = np.stack([frames[-1] for frames in walk.there])
    given = world, walk.situations, [plan] * len(first), np.arange(len(first)), seed, sampling, batch_size
    dreamt, back = imagine_branches(*given), imagine_branches(*given, shown=walk.there)
    rebuilt = world.render(world.tokenize(first[None]))[0].numpy()
    error, error_back, ceiling = (
        metrics.squared_error(first, frames) for frames in (dreamt[:, -1], back[:, -1], rebuilt)
    )

    def psnr(other: np.ndarray, true: np.ndarray) -> float:
        return float(metrics.psnr(metrics.squared_error(true, other).mean()))

    came, came_shown = (one <= NEAR * ceiling for one in (error, error_back))
    score = {
        "situations": len(first),
        "psnr": _interval(error),
        "shown": _interval(error_back),
        "returned": metrics.mean_over_rows(came),
        "returned_shown": metrics.mean_over_rows(came_shown),
        "ceiling": float(metrics.psnr(ceiling.mean())),
        "not_returned": psnr(farthest, first),
        "turning_point": psnr(dreamt[:, walk.turn - 1], farthest),
    }
    return score, np.stack([error, ceiling])


def _interval(error: np.ndarray) -> dict[str, Any]:
    """PSNR of the mean of squared errors (n,), and its bootstrap interval."""
    drawn = metrics.psnr(metrics.bootstrap_means(error))
    return {"mean": float(metrics.psnr(error.mean())), "ci95": metrics.ci95(drawn).tolist()}
