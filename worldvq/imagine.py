"""Imagine what follows held-out contexts, under recorded or chosen actions, and render it beside reality."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import CorruptFileError, UsageError, did_you_mean
from worldvq.evaluate import check_fits
from worldvq.models.world import WorldModel
from worldvq.reading import open_file, read_json
from worldvq.render import paper_figure, save_png, save_rollout
from worldvq.types import ActionSpace, Clip

PAPER = (("forward",), ("turn_right", "look_right", "right"))
"""The two rows of the figure of the VQ-VAE paper: what the name of the action ends with, best first."""


def find_action(space: ActionSpace, name: str) -> np.ndarray:
    """Return the stored action of a name or number, for instance ``forward``, ``TURN_RIGHT``, ``3``, ``0,1,0``.

    Raises:
        UsageError: There is none; the names are listed.
    """
    if space.kind == "discrete":
        names = {option.lower(): index for index, option in enumerate(space.names)}
        index = names.get(name.lower(), int(name) if name.isdecimal() else -1)
        if not 0 <= index < space.nvec[0]:
            options = ", ".join(space.names) or f"0 to {space.nvec[0] - 1}"
            hint = did_you_mean(name.lower(), names)
            raise UsageError(f"no action '{name}'{hint}: recorded, paper, a .npy or .json file, or one of {options}")
        return np.asarray(index, space.dtype)
    try:
        action = np.array([float(part) for part in name.split(",")])
    except ValueError:
        action = np.empty(0)
    if action.shape != space.shape:
        raise UsageError(f"--actions {name}: write {space.shape[0]} numbers with commas between, recorded, or a file")
    return _checked(action[None], space, f"--actions {name}")[0]


def read_actions(path: Path, space: ActionSpace, num_steps: int) -> np.ndarray:
    """Read ``num_steps`` actions from a .npy array or a .json list.

    Raises:
        UsageError: No such file, too few, or out of range.
        CorruptFileError: The file cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"no such file of actions: {path}")
    try:
        actions = _read_list(path, space) if path.suffix == ".json" else _read_array(path)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except Exception as error:  # on a broken header numpy raises errors of many types
        problem = str(error).removeprefix(f"{path}: ")
        raise CorruptFileError(f"{path} cannot be read as actions: {problem}") from None
    if actions.shape[:1] < (num_steps,) or actions.shape[1:] != space.shape:
        raise UsageError(f"{path}: actions {list(actions.shape)}, but {[num_steps, *space.shape]} are needed")
    return _checked(actions[:num_steps], space, str(path))


def _read_list(path: Path, space: ActionSpace) -> np.ndarray:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError("it holds no list")
    return np.asarray([find_action(space, row) if isinstance(row, str) else row for row in rows])


def _read_array(path: Path) -> np.ndarray:
    """Read a .npy file of numbers; memory is taken only once the file was seen to be as long as it says."""
    with open_file(path) as (file, size):
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format {version} is not read")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.kind not in "iufb":
            raise ValueError(f"it holds {dtype}, not numbers; nothing is unpickled")
        count, left = math.prod(shape), size - file.tell()
        if count < 0 or count * dtype.itemsize != left:
            raise ValueError(f"{list(shape)} {dtype} are not its {left:,} bytes")
        return np.frombuffer(file.read(), dtype, count).reshape(shape, order="F" if fortran else "C")


def _checked(actions: np.ndarray, space: ActionSpace, source: str) -> np.ndarray:
    """Return actions in the stored dtype, if all are within the space."""
    low = np.array(space.low) if space.kind == "box" else 0
    high = np.array(space.high) if space.kind == "box" else np.array(space.nvec).reshape(space.shape) - 1
    if actions.dtype.kind not in "iuf":
        raise UsageError(f"{source}: actions are numbers, these are {actions.dtype}")
    wrong = ~np.isfinite(actions) | (actions < low) | (actions > high)
    if space.kind != "box":
        wrong |= actions != np.round(actions)
    if wrong.any():
        bounds = space.nvec or (space.low, space.high)
        raise UsageError(f"{source}: the action {actions[wrong][0]} lies outside {space.kind} {bounds}")
    return actions.astype(space.dtype)


def imagine(
    world_folder: Path,
    data: Path,
    out: Path,
    context: int,
    num_frames: int,
    actions: str,
    num_clips: int,
    seed: int,
    sampling: dict[str, Any],
    device: str = "auto",
) -> list[Path]:
    """Write the rollout video and its strip, or the paper's figure.

    Args:
        world_folder: A trained world.
        data: Dataset whose held-out episodes give the contexts.
        out: Video file; its suffix chooses the format. ``paper`` writes a PNG.
        context: Real frames given.
        num_frames: Imagined frames.
        actions: ``recorded``, ``paper``, an action's name or number, or a file.
        num_clips: Contexts.
        seed: Of the contexts and of the sampling.
        sampling: ``temperature``, ``top_k``, ``top_p``; what is missing or None is the world's own.
        device: See :meth:`WorldModel.load`.

    Returns:
        What was written.

    Raises:
        UsageError: Something does not fit; nothing was written.
    """
    world = WorldModel.load(world_folder, device)
    sampling = world.sampling_with(sampling)
    store = EpisodeStore.open(data)
    check_fits(world, store)
    # With recorded actions the whole window must exist; otherwise the context is enough.
    length = context + num_frames if actions == "recorded" else context
    clip = read_clips(store, heldout_clips(store, num_clips, length, seed), length)
    if actions == "paper":
        return [_paper(world, clip, out, num_frames, seed, sampling)]
    taken = clip.actions[:, : context + num_frames - 1]
    if actions != "recorded":
        taken = torch.cat(
            [clip.actions[:, : context - 1], _chosen(world.action_space, actions, num_frames, len(taken))], 1
        )
    imagined = world.imagine(clip.frames[:, :context], taken, seed=seed, **sampling)
    real = clip.frames
    if actions != "recorded":  # nothing real to show: what was imagined stands alone
        real = torch.cat([clip.frames, torch.zeros_like(imagined)], 1)
    reconstruction = world.render(world.tokenize(clip.frames))
    if actions != "recorded":
        reconstruction = torch.cat([reconstruction, torch.zeros_like(imagined)], 1)
    arrays = [part.numpy() for part in (real, reconstruction, imagined, taken)]
    return list(save_rollout(out, arrays[0], arrays[1], arrays[2], arrays[3], world.action_space, context))


def _chosen(space: ActionSpace, actions: str, num_frames: int, batch: int) -> torch.Tensor:
    """Actions of the imagined steps, (B, N, ...)."""
    if Path(actions).suffix in (".npy", ".json"):
        steps = read_actions(Path(actions), space, num_frames)
    else:
        steps = np.repeat(find_action(space, actions)[None], num_frames, axis=0)
    return torch.from_numpy(steps)[None].expand(batch, *steps.shape)


def _paper(world: WorldModel, clip: Clip, out: Path, num_frames: int, seed: int, sampling: dict[str, Any]) -> Path:
    """One context; all forward in the first row, all turn right in the second (van den Oord et al. 2017, figure 7)."""
    names = [name.lower() for name in world.action_space.names]
    chosen = [next((n for end in ends for n in names if n.endswith(end)), None) for ends in PAPER]
    if None in chosen:
        raise UsageError(
            "--actions paper needs actions called forward and right, this world has "
            f"{', '.join(names) or 'none with names'}"
        )
    frames, before = clip.frames[:1], clip.actions[:1, : clip.frames.shape[1] - 1]
    rows = {}
    for name in chosen:
        steps = _chosen(world.action_space, str(name), num_frames, 1)
        rows[str(name)] = world.imagine(frames, torch.cat([before, steps], 1), seed=seed, **sampling)[0].numpy()
    return save_png(out.with_suffix(".png"), paper_figure(frames[0].numpy(), rows))
