"""Are the objects there? The truth from the environment: the same frame with and without each of them.

An object is as large as the number of pixels that differ between the two, and kept where a reconstruction or a dream,
over these pixels, is nearer to the frame with it than to the one without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from worldvq.evaluation import metrics
from worldvq.evaluation.branches import Player, Situation
from worldvq.evaluation.counterfactual import imagine_branches

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel

STEPS = (1, 4, 8)
"""Imagined frames at which it is looked."""
SIZES = {"12-24": (12, 25), "25-59": (25, 60), "60 and more": (60, None), "25 and more": (25, None)}
"""Pixels of objects: from, and below."""
SMALLEST = 12


class ObjectPlayer(Player, Protocol):
    """An environment that knows its objects."""

    def frames_without_objects(self) -> np.ndarray:
        """Return the last frame as it is, and then without each object, (1 + K, H, W, 3) uint8.

        Row k is the same object throughout an episode; where it is not in view, the frame is as it is.

        Raises:
            UsageError: The environment cannot, or shows other frames than it is recorded with.
        """
        ...


@dataclass(frozen=True)
class Sight:
    """An object in view.

    Attributes:
        row: Of the situation.
        step: Imagined frames until then; 0 is the last frame of the context.
        seen: Whether a frame of the context shows it, in at least ``SMALLEST`` pixels.
        pixels: (H, W) bool, where it shows.
        present: (n, 3) int32, the colours of these pixels.
        absent: (n, 3) int32, what they would be without it.
    """

    row: int
    step: int
    seen: bool
    pixels: np.ndarray
    present: np.ndarray
    absent: np.ndarray

    @property
    def size(self) -> int:
        """Number of its pixels."""
        return len(self.present)

    def kept(self, frame: np.ndarray) -> bool:
        """Whether a frame (H, W, 3) is nearer to the one with it than to the one without it."""
        shown = frame[self.pixels].astype(np.int32)
        return bool(np.square(shown - self.present).sum() < np.square(shown - self.absent).sum())


def object_recall(
    world: WorldModel,
    player: ObjectPlayer,
    situations: Sequence[Situation],
    futures: Sequence[np.ndarray],
    seed: int,
    sampling: dict[str, Any],
    batch_size: int = 64,
) -> dict[str, Any]:
    """Look for objects in reconstructions of held-out frames, and in dreams of them.

    Args:
        world: The world.
        player: The environment.
        situations: Where dreams begin; the last frame and those at ``STEPS`` are looked at.
        futures: Actions (8, ...) that were played after each.
        seed: Of the sampling.
        sampling: How the world is sampled.
        batch_size: Dreams at a time.

    Returns:
        ``reconstruction``: recall by size (``mean``, ``ci95`` over situations, ``count``). ``dream``: one entry a step
        in ``steps``; of objects ``seen`` in the context and of those ``unseen``, which nobody can know, by size: that
        of the ``dream``, and on the same objects that of the ``reconstruction`` and of ``copy_last``, the last context
        frame.
    """
    found = [look(player, row, *given) for row, given in enumerate(zip(situations, futures, strict=True))]
    sights = [sight for _, part in found for sight in part]
    real = np.stack([frames for frames, _ in found])  # (S, 1 + steps, H, W, 3)
    rebuilt = world.render(world.tokenize(real)).numpy()
    dreamt = imagine_branches(world, situations, futures, np.arange(len(futures)), seed, sampling, batch_size)
    dreamt = dreamt[:, [step - 1 for step in STEPS]]
    return {
        "situations": len(situations),
        "frames": len(situations) * (1 + len(STEPS)),
        "steps": list(STEPS),
        **score_sights(sights, real[:, 0], rebuilt, dreamt),
    }


def look(player: ObjectPlayer, row: int, situation: Situation, future: np.ndarray) -> tuple[np.ndarray, list[Sight]]:
    """Play a situation and what followed; return frames (1 + steps, H, W, 3) and the objects in view in them."""
    frame, played = player.reset(situation.seed), len(situation.actions)
    frames, sights = [], []
    seen: np.ndarray | None = None
    for time, action in enumerate([*situation.actions, *future, None]):
        step = time - played
        if step > -len(situation.frames) and (step <= 0 or step in STEPS):
            shown = player.frames_without_objects()
            masks = (shown[1:] != shown[:1]).any(-1)  # (K, H, W)
            if step <= 0:
                in_view = masks.sum((1, 2)) >= SMALLEST
                seen = in_view if seen is None else seen | in_view
            if step >= 0:
                assert seen is not None
                frames.append(frame)
                for mask, without, known in zip(masks, shown[1:], seen, strict=True):
                    if mask.sum() >= SMALLEST:
                        colours = (image[mask].astype(np.int32) for image in (shown[0], without))
                        sights.append(Sight(row, step, bool(known), mask, *colours))
        if action is not None:
            frame = player.step(action)[0]
    return np.stack(frames), sights


def score_sights(sights: Sequence[Sight], last: np.ndarray, rebuilt: np.ndarray, dreamt: np.ndarray) -> dict[str, Any]:
    """Which objects are kept; see :func:`object_recall`.

    Args:
        sights: All objects in view.
        last: (S, H, W, 3) uint8, the last frames of the contexts.
        rebuilt: (S, 1 + steps, H, W, 3), they and those at ``STEPS`` through the tokenizer.
        dreamt: (S, steps, H, W, 3).
    """
    order = {step: index for index, step in enumerate((0, *STEPS))}

    def rates(chosen: list[Sight], kept: list[bool]) -> dict[str, Any]:
        by_size = {}
        for name, (least, below) in SIZES.items():
            hits, counts = np.zeros((2, len(last)))
            for sight, hit in zip(chosen, kept, strict=True):
                if least <= sight.size and (below is None or sight.size < below):
                    hits[sight.row] += hit
                    counts[sight.row] += 1
            by_size[name] = metrics.rate(hits, counts)
        return by_size

    def compare(chosen: list[Sight]) -> dict[str, Any]:
        return {
            "dream": rates(chosen, [s.kept(dreamt[s.row, order[s.step] - 1]) for s in chosen]),
            "reconstruction": rates(chosen, [s.kept(rebuilt[s.row, order[s.step]]) for s in chosen]),
            "copy_last": rates(chosen, [s.kept(last[s.row]) for s in chosen]),
        }

    return {
        "reconstruction": rates(list(sights), [s.kept(rebuilt[s.row, order[s.step]]) for s in sights]),
        "dream": [
            {
                "seen": compare([s for s in sights if s.step == step and s.seen]),
                "unseen": compare([s for s in sights if s.step == step and not s.seen]),
            }
            for step in STEPS
        ],
    }
