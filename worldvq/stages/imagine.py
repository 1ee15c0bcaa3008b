"""Imagine what follows held-out contexts, under recorded or chosen actions, and render it beside reality."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldvq.data.clips import heldout_clips, read_clips, spread_by_change
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.protocol import check_fits
from worldvq.media.pictures import paper_figure, save_png, save_rollout
from worldvq.media.videos import Sound
from worldvq.types import ActionSpace, Clip
from worldvq.world.actions import find_action, read_actions
from worldvq.world.model import WorldModel

PAPER = (("forward",), ("turn_right", "look_right", "right"))
"""The two rows of the figure of the VQ-VAE paper: what the name of the action ends with, best first."""
SILENT_FPS = 6
CANDIDATES = EvaluateConfig().clips
"""Of so many held-out clips some are shown: those that an evaluation scores, unless it was told otherwise."""


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
    fps: float | None = None,
    scale: int | None = None,
) -> list[Path]:
    """Write the rollout video and its strip, or the paper's figure.

    In a world with sound the video has that of its first clip: what was recorded for as long as frames are given, and
    then what is dreamt. The sound between two frames is heard while the first of them is shown.

    Args:
        world_folder: A trained world.
        data: Dataset whose held-out episodes give the contexts.
        out: Video file; its suffix chooses the format. ``paper`` writes a PNG.
        context: Real frames given.
        num_frames: Imagined frames.
        actions: ``recorded``, ``paper``, an action's name or number, or a file.
        num_clips: Contexts: of CANDIDATES held-out clips those that :func:`spread_by_change` chooses.
        seed: Of the contexts and of the sampling.
        sampling: ``temperature``, ``top_k``, ``top_p``; what is missing or None is the world's own.
        device: See :meth:`WorldModel.load`.
        fps: Frames a second of the video; None is 6 or, in a world with sound, as many as were recorded in a second.
        scale: Pixels of the video a pixel of a frame; see :func:`worldvq.media.pictures.rollout_frames`.

    Returns:
        What was written.

    Raises:
        UsageError: Something does not fit; nothing was written.
    """
    world = WorldModel.load(world_folder, device)
    sampling = world.sampling_with(sampling)
    store = EpisodeStore.open(data)
    check_fits(world, store)
    fps = _frames_per_second(world, fps)
    # With recorded actions the whole window must exist; otherwise the context is enough.
    length = context + num_frames if actions == "recorded" else context
    setting = "--context + --frames" if actions == "recorded" else "--context"
    ids = heldout_clips(store, max(num_clips, CANDIDATES), length, seed, setting)
    clip = read_clips(store, ids[spread_by_change(store, ids, length, num_clips)], length)
    if actions == "paper":
        return [_paper(world, clip, out, num_frames, seed, sampling, scale)]
    taken = clip.actions[:, : context + num_frames - 1]
    if actions != "recorded":
        taken = torch.cat(
            [clip.actions[:, : context - 1], _chosen(world.action_space, actions, num_frames, len(taken))], 1
        )
    tokens = world.tokenize(clip.frames, clip.sounds)
    imagined = world.imagine_tokens(tokens[:, :context], taken, seed, **sampling).tokens
    real = clip.frames.numpy() if actions == "recorded" else None  # else what was imagined stands alone
    rebuilt, dreamt, acted = (part.numpy() for part in (world.render(tokens), world.render(imagined), taken))
    sound = _heard(world, clip, torch.cat([tokens[:1, :context], imagined[:1]], dim=1), context, seed)
    return list(save_rollout(out, real, rebuilt, dreamt, acted, world.action_space, context, fps, scale, sound))


def _frames_per_second(world: WorldModel, fps: float | None) -> float:
    """Return the frames a second of a video of a world."""
    if world.sound_format is None:
        return SILENT_FPS if fps is None else fps
    real = world.sound_format.steps_per_second
    if fps is not None and not math.isclose(fps, real, rel_tol=1e-3):
        raise UsageError(f"--fps {fps:g}: sound and picture go together at {real:.4g} frames a second: leave --fps out")
    return real


def _heard(world: WorldModel, clip: Clip, tokens: torch.Tensor, context: int, seed: int) -> Sound | None:
    """Return the sound of the first clip, tokens (1, T, h, w): as recorded between the given frames, then as dreamt."""
    if world.sound_format is None or clip.sounds is None:
        return None
    known = clip.sounds[:1, 1:context].flatten(1)
    samples = world.hear(tokens[:, 1:], known, seed)[0]
    last = np.zeros(world.sound_format.samples, np.int16)  # the last frame is shown, too
    return Sound(np.concatenate([samples, last]), world.sound_format.rate)


def _chosen(space: ActionSpace, actions: str, num_frames: int, batch: int) -> torch.Tensor:
    """Actions of the imagined steps, (B, N, ...)."""
    if Path(actions).suffix in (".npy", ".json"):
        steps = read_actions(Path(actions), space, num_frames)
    else:
        steps = np.repeat(find_action(space, actions)[None], num_frames, axis=0)
    return torch.from_numpy(steps)[None].expand(batch, *steps.shape)


def _paper(
    world: WorldModel, clip: Clip, out: Path, num_frames: int, seed: int, sampling: dict[str, Any], scale: int | None
) -> Path:
    """One context; all forward in the first row, all turn right in the second (van den Oord et al. 2017, figure 7)."""
    space = world.action_space
    names = [name.lower() for name in space.names] if space.kind == "discrete" else []
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
        taken, heard = torch.cat([before, steps], 1), None if clip.sounds is None else clip.sounds[:1]
        rows[str(name)] = world.imagine(frames, taken, seed=seed, sounds=heard, **sampling)[0].numpy()
    return save_png(out.with_suffix(".png"), paper_figure(frames[0].numpy(), rows, scale))
