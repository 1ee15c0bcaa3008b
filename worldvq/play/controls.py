"""What the page shows of an action space: names, sliders, and what is done when nothing is pressed."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldvq.types import UNBOUNDED, ActionSpace

IDLE = ("noop", "no_op", "none", "nothing", "idle", "stay", "still", "wait")
"""Names of actions that do nothing."""


def idle_action(space: ActionSpace) -> Any:
    """Return the action of who presses nothing, as JSON has it; None where every action does something."""
    if space.kind == "discrete":
        return next((index for index, name in enumerate(space.names) if name.lower() in IDLE), None)
    if space.kind == "multi_discrete":
        return [0] * len(space.nvec)
    return [float(np.clip(0, low, high)) for low, high in zip(space.low, space.high, strict=True)]


def sliders(space: ActionSpace) -> list[list[float]]:
    """Return lowest and highest number of each slider; -1 and 1 beyond the idle one where there is no bound."""
    pairs = []
    for low, high in zip(space.low, space.high, strict=True):
        has_low, has_high = low > -UNBOUNDED, high < UNBOUNDED
        bottom = low if has_low else min(-1.0, high - 1 if has_high else -1.0)
        pairs.append([bottom, high if has_high else max(1.0, bottom + 1)])
    return pairs
