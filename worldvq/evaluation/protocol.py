"""The held-out protocol: what imagined frames are worth, beside three yardsticks on the same clips.

- ``reconstruction``: the real frame through the tokenizer. The ceiling of anything made of its tokens.
- ``copy_last``: the last context frame, held still. What a model has to beat to be worth anything.
- ``shuffled_actions``: imagined from the same context with another clip's actions. The distance between it and
  ``imagined`` is what the actions control.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import worldvq
from worldvq.config.env import refuse_images
from worldvq.data.clips import heldout_clips, read_clips, spread_by_change
from worldvq.data.episodes import EpisodeStore
from worldvq.data.sharing import Processes
from worldvq.errors import UsageError, plural
from worldvq.evaluation import metrics
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.measures import compare, count_regions, score
from worldvq.evaluation.page import Rollouts, write_page
from worldvq.evaluation.parts import Part, Parts, key_of
from worldvq.evaluation.regions import small_region_recall
from worldvq.evaluation.report_files import REPORT, clips_of, finite, situations_of, write_report
from worldvq.evaluation.summary import summarize
from worldvq.files.atomic import disk_errors
from worldvq.files.differences import differences, require_same
from worldvq.files.lock import Lock
from worldvq.nn.devices import resolve_precision
from worldvq.nn.memory import memory_errors

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel

NUM_SHOWN = 4
"""Clips in the rollout video; see :func:`worldvq.data.clips.spread_by_change`."""

SHOWN = ("real", "reconstruction", "imagined", "actions")
"""What is kept of them."""


@dataclass(frozen=True)
class _Plan:
    """What is evaluated. Part i is batch i of the clips; it depends on nothing but this.

    Attributes:
        world: The world model.
        store: The dataset.
        config: The protocol.
        ids: (n, 2) episode and first frame of each clip.
        shown: Rows of ``ids`` that the video shows, in this order.
        horizons: Imagined frames at which the Fréchet distance looks; none without the extra.
        regions: Whether small changing regions are looked for; not without the extra.
        notes: For the reader of the report.
    """

    world: WorldModel
    store: EpisodeStore
    config: EvaluateConfig
    ids: np.ndarray
    shown: np.ndarray
    horizons: list[int]
    regions: bool
    notes: list[str]

    @property
    def num_frames(self) -> int:
        return self.config.context + self.config.horizon

    @property
    def num_parts(self) -> int:
        return math.ceil(len(self.ids) / self.config.batch_size)

    def key(self) -> str:
        """Hash of all that the numbers depend on."""
        about = {
            "world": self.world.hash(),
            "protocol": self.config.model_dump(mode="json"),
            "dataset": [self.store.meta.model_dump(mode="json"), [entry.sha256 for entry in self.store.entries]],
            "horizons": self.horizons,
            "regions": self.regions,
            "shown": self.shown.tolist(),
            "versions": _versions(),
        }
        return key_of(about)


def evaluate(
    world: WorldModel,
    data: Path,
    out: Path,
    config: EvaluateConfig,
    progress: bool = True,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a world on held-out clips; writes ``report.json``, ``clips.safetensors``, ``index.html`` and pictures.

    What a run that was ended has finished is kept in ``out``, and used by the next of the same world, protocol and
    dataset. Processes that were started together (``accelerate launch``) share the batches through that folder.

    Args:
        world: The world model.
        data: A recorded dataset with the frames and actions that the world knows.
        out: Folder of the report; made if it is missing.
        config: How many clips, how long, how sampled.
        progress: Show a progress bar and notes on stderr.
        more: What else the report is to hold: that of :func:`worldvq.stages.interventions.intervene`.

    Returns:
        The report, as in ``report.json``; in every process.

    Raises:
        UsageError: The dataset does not fit the world, or has no held-out windows that are long enough.
        RunError: Another run is writing to ``out``, or something cannot be written.
    """
    begun = time.monotonic()
    processes = Processes()
    console = Console(stderr=True, quiet=not (progress and processes.is_first))
    with EpisodeStore.open(data) as store, contextlib.ExitStack() as stack:
        plan = _plan(world, store, config)
        for note in plan.notes:
            console.print(f"note: {note}", highlight=False)
        parts = Parts(out, plan.key())
        if processes.is_first:
            with disk_errors(out):
                out.mkdir(parents=True, exist_ok=True)
            stack.callback(Lock(out).release)
            parts.prepare()
        processes.wait_for_first()
        missing = [number for number in range(processes.index, plan.num_parts, processes.count) if number not in parts]
        with memory_errors(
            f"fewer clips at once take less: evaluate.batch_size (--batch-size), now {config.batch_size}"
        ):
            for number, part in _collect(plan, missing, console):
                parts.write(number, part)
        processes.wait_for_others()
        if processes.is_first:
            _write(plan, parts.join(plan.num_parts), out, begun, more or {})
            parts.remove()
    processes.wait_for_first()
    report = json.loads((out / REPORT).read_text())
    processes.wait_for_others()  # the first one may keep the counters: it stays until all have read
    return report


def _plan(world: WorldModel, store: EpisodeStore, config: EvaluateConfig) -> _Plan:
    """Choose the clips, and say what falls short."""
    check_fits(world, store)
    config = settled(config, world)
    ids = heldout_clips(store, config.clips, config.context + config.horizon, config.seed)
    if len(ids) < 2:
        raise UsageError(f"{store.path} has {len(ids)} held-out window for evaluate.clips, two are needed: record more")
    notes = []
    if len(ids) < config.clips:
        notes.append(
            f"the held-out episodes have {plural(len(ids), 'window')}, evaluate.clips = {config.clips} were asked for"
        )
    horizons = sorted({1, math.ceil(config.horizon / 2), config.horizon})
    try:
        metrics.efflite0_features(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    except UsageError as error:
        notes.append(str(error))
        horizons = []
    looks = True
    try:
        small_region_recall(*[torch.zeros(1, 8, 8, 3, dtype=torch.uint8)] * 3)
    except UsageError as error:
        notes.append(str(error))
        looks = False
    shown = spread_by_change(store, ids, config.context + config.horizon, NUM_SHOWN)
    return _Plan(world, store, config, ids, shown, horizons, looks, notes)


def _write(plan: _Plan, collected: Part, out: Path, begun: float, more: dict[str, Any]) -> None:
    """Write the report and its page."""
    config = plan.config
    report = summarize(collected, config, plan.horizons)
    tests, situations = situations_of(more)
    report |= {
        **tests,
        "env_id": plan.store.meta.env.id,
        "data": str(plan.store.path),
        "dataset": {**plan.store.meta.model_dump(mode="json"), **plan.store.fingerprint()},
        "world": _describe(plan.world),
        "num_clips": len(plan.ids),
        "num_episodes": len(np.unique(plan.ids[:, 0])),
        "seeds": {"clips": config.seed, "shuffle": config.seed, "sampling": config.seed, "bootstrap": 0},
        "protocol": config.model_dump(mode="json"),
        "versions": _versions(),
        "notes": plan.notes,
        "seconds": round(time.monotonic() - begun, 2),
    }
    report = finite(report)
    order = np.searchsorted(np.sort(plan.shown), plan.shown)  # they were collected in the order of the rows
    real, rebuilt, imagined, actions = (collected[f"shown/{name}"][order] for name in SHOWN)
    write_page(out, report, Rollouts(real, rebuilt, imagined, actions, plan.world.action_space, config.context))
    hashes = [plan.store.entry(int(number)).sha256 for number in plan.ids[:, 0]]
    write_report(out, report, clips_of(collected, plan.ids, hashes, config.context, order) | situations)


def _versions() -> dict[str, str]:
    return {
        "worldvq": worldvq.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def check_fits(world: WorldModel, store: EpisodeStore) -> None:
    """Refuse a dataset of other frames, actions or sounds than the world's; where one has no sound, that is silence.

    Raises:
        UsageError: Names every field that differs, and both values; or it holds single images.
    """
    refuse_images(store.meta.env, store.path)
    held: dict[str, Any] = {"frame_size": store.meta.frame_size, "action_space": store.action_space.to_json()}
    expected: dict[str, Any] = {"frame_size": world.frame_size, "action_space": world.action_space.to_json()}
    if store.meta.sound and world.sound_format:
        held["sound"], expected["sound"] = store.meta.sound.model_dump(), world.sound_format.model_dump()
    require_same(
        held,
        expected,
        ("the dataset has", "the world expects"),
        f"{store.path} does not fit the world",
        "take a dataset of the world's environment, recorded with its env.size",
    )
    here, trained_on = store.meta.model_dump(mode="json"), world.meta.get("dataset")
    who = ("the dataset has", "the world was trained with")
    if isinstance(trained_on, dict) and not differences(here, trained_on, who, ("versions", "heldout_every")):
        require_same(
            {"heldout_every": here["heldout_every"]},
            {"heldout_every": trained_on.get("heldout_every")},
            who,
            f"{store.path} holds out episodes that the world was trained on",
            "set record.heldout_every back (`worldvq record` plays nothing again), or train on the new split",
        )


def settled(config: EvaluateConfig, world: WorldModel) -> EvaluateConfig:
    """Return the protocol as its report has it: with the precision that ``auto`` comes to where the world is."""
    precision = resolve_precision(config.sampling.precision, world.device)
    return config.model_copy(update={"sampling": config.sampling.model_copy(update={"precision": precision})})


def sampling_of(config: EvaluateConfig) -> dict[str, Any]:
    """Return how to sample, the same way every time: what is faster today may round a tie otherwise tomorrow."""
    sampling = config.sampling.model_dump()
    return sampling | ({"method": "predictive"} if sampling["method"] == "auto" else {})


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


def _collect(plan: _Plan, numbers: list[int], console: Console) -> Iterator[tuple[int, Part]]:
    """Run the protocol over batches of clips; yields each batch's number and what :func:`summarize` takes of it."""
    if not numbers:
        return
    world, config, num_clips = plan.world, plan.config, len(plan.ids)
    context = config.context
    all_actions = _read_actions(plan.store, plan.ids, plan.num_frames, config.batch_size)
    partner = _derangement(num_clips, config.seed)
    sampling = sampling_of(config)
    for number in track(numbers, "evaluating", console=console, transient=True, disable=not console.is_terminal):
        rows = np.arange(number * config.batch_size, min((number + 1) * config.batch_size, num_clips))
        clip = read_clips(plan.store, plan.ids[rows], plan.num_frames)
        tokens = world.tokenize(clip.frames, clip.sounds)
        actions = clip.actions[:, :-1]
        swapped = actions.clone()
        swapped[:, context - 1 :] = all_actions[partner[rows], context - 1 : -1]
        begun = time.monotonic()
        # The same seeds for both: the noise is shared, what differs is what the actions did. Each clip has its own.
        imagined = world.imagine_tokens(tokens[:, :context], actions, config.seed, rows, **sampling)
        seconds = time.monotonic() - begun
        shuffled = world.imagine_tokens(tokens[:, :context], swapped, config.seed, rows, **sampling)
        real = clip.frames[:, context:]
        rebuilt = world.render(tokens)
        frames = {
            "imagined": world.render(imagined.tokens),
            "reconstruction": rebuilt[:, context:],
            "copy_last": clip.frames[:, context - 1 : context].expand_as(real),
            "shuffled_actions": world.render(shuffled.tokens),
        }
        part = compare(real, frames, plan.horizons) | score(world, tokens, clip, context)
        part |= count_regions(clip.frames[:, context - 1 :], frames) if plan.regions else {}
        part |= {"passes": imagined.passes.numpy(), "imagine_seconds": np.array([seconds])}
        chosen = np.isin(rows, plan.shown)
        arrays = (clip.frames, rebuilt, frames["imagined"], clip.actions)
        yield number, part | {f"shown/{k}": a.numpy()[chosen] for k, a in zip(SHOWN, arrays, strict=True)}


def _describe(world: WorldModel) -> dict[str, Any]:
    return {
        "hash": world.hash(),
        "frame_size": list(world.frame_size),
        "grid": list(world.tokenizer.grid),
        "num_codes": int(world.tokenizer.num_codes),
        **world.description(),
    }
