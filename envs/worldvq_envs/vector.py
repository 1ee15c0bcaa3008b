"""What our vector environments share: seeds, modes of autoreset, and infos as Gymnasium has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium.vector import AutoresetMode

from worldvq.errors import UsageError


def seeds_of(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """Return a seed for each environment; an int gives environment i the seed ``seed + i``.

    Raises:
        UsageError: There are not as many seeds as environments.
    """
    if seed is None or isinstance(seed, int | np.integer):
        return [None if seed is None else int(seed) + env for env in range(num_envs)]
    if len(seed) != num_envs:
        raise UsageError(f"{len(seed)} seeds for {num_envs} environments: give one each, or a single number")
    return list(seed)


def autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Return ``NextStep`` or ``SameStep`` as Gymnasium's enumeration.

    Raises:
        UsageError: It is neither.
    """
    modes = {known.value: known for known in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)}
    value = getattr(mode, "value", mode)
    if value not in modes:
        raise UsageError(f"autoreset_mode {value!r}: choose one of {', '.join(modes)}")
    return modes[value]  # type: ignore[index]


def with_masks(info: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return an info (E, ...) as Gymnasium has it: zeros and False in the masks where an environment is not chosen.

    Args:
        info: Of all environments.
        chosen: (E,) bool, those that it holds for.
    """
    kept = {
        name: np.where(chosen.reshape(-1, *[1] * (value.ndim - 1)), value, np.zeros((), value.dtype))
        for name, value in info.items()
    }
    return kept | {f"_{name}": chosen.copy() for name in info}


def final_info(frames: np.ndarray, info: dict[str, np.ndarray], ended: np.ndarray) -> dict[str, np.ndarray | dict]:
    """Return what the step that ends an episode showed, for environments that reset in that same step.

    Args:
        frames: (E, ...), before any was reset.
        info: (E, ...) likewise.
        ended: (E,) bool, those that are reset.
    """
    final = np.full(len(ended), None, object)
    for env in np.flatnonzero(ended):
        final[env] = frames[env].copy()
    return {"final_obs": final, "_final_obs": ended, "final_info": with_masks(info, ended), "_final_info": ended}
