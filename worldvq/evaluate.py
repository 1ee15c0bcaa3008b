"""The held-out protocol: what imagined frames are worth, beside three yardsticks on the same clips.

- ``reconstruction``: the real frame through the tokenizer. The ceiling of anything made of its tokens.
- ``copy_last``: the last context frame, held still. What a model has to beat to be worth anything.
- ``shuffled_actions``: imagined from the same context with another clip's actions. The distance between it and
  ``imagined`` is what the actions control.
"""

from __future__ import annotations

import json
import math
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import worldvq
from worldvq import metrics
from worldvq.atomic import write_atomic
from worldvq.config import EvaluateConfig
from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.report import Rollouts, write_page
from worldvq.scores import Collected, summarize
from worldvq.types import ActionSpace, TokenClip

if TYPE_CHECKING:
    from worldvq.models.world import WorldModel

NUM_SHOWN = 4
"""Clips in the rollout video."""


def evaluate(world: WorldModel, data: Path, out: Path, config: EvaluateConfig, progress: bool = True) -> dict[str, Any]:
    """Score a world on held-out clips; writes ``report.json``, ``index.html``, ``rollout.mp4`` and ``strip.png``.

    Args:
        world: The world model.
        data: A recorded dataset with the frames and actions that the world knows.
        out: Folder of the report; made if it is missing.
        config: How many clips, how long, how sampled.
        progress: Show a progress bar and notes on stderr.

    Returns:
        The report, as in ``report.json``.

    Raises:
        UsageError: The dataset does not fit the world, or has no held-out windows that are long enough.
    """
    begun = time.monotonic()
    console = Console(stderr=True, quiet=not progress)
    with EpisodeStore.open(data) as store:
        check_fits(world, store)
        ids = heldout_clips(store, config.clips, config.context + config.horizon, config.seed)
        if len(ids) < 2:
            raise UsageError(f"{data} has {len(ids)} held-out window for evaluate.clips, two are needed: record more")
        notes = []
        if len(ids) < config.clips:
            notes.append(
                f"the held-out episodes have {len(ids)} windows, evaluate.clips = {config.clips} were asked for"
            )
        horizons = sorted({1, math.ceil(config.horizon / 2), config.horizon})
        try:
            metrics.efflite0_features(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
        except UsageError as error:
            notes.append(str(error))
            horizons = []
        for note in notes:
            console.print(f"note: {note}", highlight=False)
        collected = _collect(world, store, ids, config, horizons, console)
        env_id = store.meta.env.id
    report = summarize(collected, config, horizons)
    report |= {
        "env_id": env_id,
        "data": str(data),
        "world": _describe(world),
        "num_clips": len(ids),
        "num_episodes": len(np.unique(ids[:, 0])),
        "seeds": {"clips": config.seed, "shuffle": config.seed, "sampling": config.seed, "bootstrap": 0},
        "protocol": config.model_dump(mode="json"),
        "versions": {
            "worldvq": worldvq.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "notes": notes,
        "seconds": round(time.monotonic() - begun, 2),
    }
    report = _finite(report)
    real, rebuilt, imagined, actions = (np.stack(column) for column in zip(*collected.shown, strict=True))
    write_page(out, report, Rollouts(real, rebuilt, imagined, actions, world.action_space, config.context))
    write_atomic(out / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
    return report


def check_fits(world: WorldModel, store: EpisodeStore) -> None:
    """Refuse a dataset of other frames or actions than the world's.

    Raises:
        UsageError: Names the field and both values.
    """
    if tuple(store.meta.frame_size) != tuple(world.frame_size):
        raise UsageError(
            f"{store.path}: frame_size is {tuple(store.meta.frame_size)}, the world's is {tuple(world.frame_size)}: "
            "take a dataset recorded with the world's env.size"
        )
    for name in ("kind", "nvec", "low", "high", "names"):
        theirs, ours = getattr(store.action_space, name), getattr(world.action_space, name)
        if theirs != ours:
            raise UsageError(
                f"{store.path}: action_space.{name} is {theirs!r}, the world's is {ours!r}: "
                "take a dataset of the environment that the world was trained on"
            )


def _derangement(size: int, seed: int) -> np.ndarray:
    """For each clip another one, by one random cycle through all of them."""
    order = np.random.default_rng(seed).permutation(size)
    partner = np.empty(size, np.int64)
    partner[order] = np.roll(order, -1)
    return partner


def _read_actions(store: EpisodeStore, ids: np.ndarray, num_frames: int, batch_size: int) -> Tensor:
    """Actions (n, T, ...) of all clips; small, whatever the frames take."""
    parts = range(0, len(ids), batch_size)
    return torch.cat([read_clips(store, ids[i : i + batch_size], num_frames).actions for i in parts])


def _collect(
    world: WorldModel,
    store: EpisodeStore,
    ids: np.ndarray,
    config: EvaluateConfig,
    horizons: list[int],
    console: Console,
) -> Collected:
    """Run the protocol over all clips, batch by batch."""
    collected = Collected()
    context, num_frames = config.context, config.context + config.horizon
    all_actions = _read_actions(store, ids, num_frames, config.batch_size)
    partner = _derangement(len(ids), config.seed)
    shown = set(np.linspace(0, len(ids) - 1, min(NUM_SHOWN, len(ids))).round().astype(int).tolist())
    sampling = config.sampling.model_dump()
    if sampling["method"] == "auto":  # what is faster today may round a tie otherwise than what was faster yesterday
        sampling["method"] = "predictive"
    starts = range(0, len(ids), config.batch_size)
    for number, start in enumerate(
        track(starts, "evaluating", console=console, transient=True, disable=not console.is_terminal)
    ):
        rows = np.arange(start, min(start + config.batch_size, len(ids)))
        clip = read_clips(store, ids[rows], num_frames)
        tokens = world.tokenize(clip.frames)
        actions = clip.actions[:, :-1]
        swapped = actions.clone()
        swapped[:, context - 1 :] = all_actions[partner[rows], context - 1 : -1]
        begun = time.monotonic()
        # The same seed for both: the noise is shared, what differs is what the actions did.
        seed = config.seed + number
        imagined = world.imagine_tokens(tokens[:, :context], actions, seed=seed, **sampling)
        collected.imagine_seconds += time.monotonic() - begun
        collected.passes.append(imagined.passes.numpy())
        shuffled = world.imagine_tokens(tokens[:, :context], swapped, seed=seed, **sampling)
        real = clip.frames[:, context:]
        rebuilt = world.render(tokens)
        frames = {
            "imagined": world.render(imagined.tokens),
            "reconstruction": rebuilt[:, context:],
            "copy_last": clip.frames[:, context - 1 : context].expand_as(real),
            "shuffled_actions": world.render(shuffled.tokens),
        }
        _compare(collected, real, frames, horizons)
        _score(collected, world, tokens, clip, context)
        for row in shown.intersection(rows.tolist()):
            arrays = (clip.frames, rebuilt, frames["imagined"], clip.actions)
            collected.shown.append(tuple(array[row - start].numpy() for array in arrays))
    return collected


def _compare(collected: Collected, real: Tensor, frames: dict[str, Tensor], horizons: list[int]) -> None:
    """Squared error and SSIM (B, N) of every yardstick, and features at the horizons of the Fréchet distance."""
    batch, horizon = real.shape[:2]
    flat = real.flatten(0, 1)
    for name, fake in frames.items():
        other = fake.flatten(0, 1)
        collected.error[name].append(metrics.squared_error(flat, other).reshape(batch, horizon))
        collected.ssim[name].append(metrics.ssim(flat, other).reshape(batch, horizon))
    if not horizons:
        return
    index = [h - 1 for h in horizons]
    for name, fake in {"real": real, **frames}.items():
        # copy_last is one frame at every horizon: look at it once.
        chosen = fake[:, :1] if name == "copy_last" else fake[:, index]
        found = metrics.efflite0_features(chosen.flatten(0, 1)).reshape(batch, chosen.shape[1], -1)
        collected.features[name].append(np.broadcast_to(found, (batch, len(index), found.shape[-1])))


def _score(collected: Collected, world: WorldModel, tokens: Tensor, clip: Any, context: int) -> None:
    """Teacher-forced likelihood, reward and termination of recorded transitions; use of the codebook."""
    token_clip = TokenClip(tokens, clip.actions, clip.rewards, clip.terminated, clip.mask, clip.action_mask)
    scores = world.score(token_clip, context)
    mask = scores.mask.bool()
    collected.nats.append(scores.nats[mask].double().numpy())  # (frames, h, w)
    for name in ("rewards", "rewards_true", "termination", "termination_true"):
        collected.scores.setdefault(name, []).append(getattr(scores, name)[mask].double().numpy())
    num_codes = int(world.tokenizer.num_codes)
    collected.counts = collected.counts + np.bincount(tokens.flatten().numpy(), minlength=num_codes)


def _describe(world: WorldModel) -> dict[str, Any]:
    space: ActionSpace = world.action_space
    return {
        "hash": world.hash(),
        "frame_size": list(world.frame_size),
        "grid": list(world.tokenizer.grid),
        "num_codes": int(world.tokenizer.num_codes),
        "action_space": space.to_json(),
        "meta": world.meta,
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN: what could not be computed (say, a precision without positives) becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
