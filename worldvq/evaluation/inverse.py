"""Can one tell from two frames what was done between them? In a dream as in reality, if the dream obeys.

A small network learns on pairs of real frames of training episodes which action led from one to the other (inverse
dynamics). Then it looks at held-out clips and at what was imagined of them under the same actions. Nothing has to be
played, so this works for people's own videos too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError, plural
from worldvq.evaluation import metrics
from worldvq.evaluation.action_classes import Factor, factors_of
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.protocol import sampling_of
from worldvq.types import frames_to_model

if TYPE_CHECKING:
    from worldvq.world.model import WorldModel

KINDS = ("real", "reconstruction", "imagined")
"""Pairs of real frames, the same through the tokenizer, and imagined ones."""
STEPS, BATCH, LEARNING_RATE = 1000, 64, 2e-3
"""Of learning: about a minute of one core with frames of ``SIDE``."""
SIDE = 64
"""Larger frames are shrunk to it."""
VALIDATION_EVERY, VALIDATION_PAIRS = 10, 2000
"""Of the training episodes, one in so many only shows whether the network has learnt; at most so many of its pairs."""


def inverse_dynamics(world: WorldModel, store: EpisodeStore, config: EvaluateConfig) -> dict[str, Any]:
    """Learn to tell actions from pairs of real frames, and tell those of imagined ones.

    Clips, actions and imagined frames are those of :func:`worldvq.evaluation.protocol.evaluate`. The frame before the
    first imagined one is the last of the context, through the tokenizer. Pairs whose real frames are identical, so that
    the action did nothing, are left out of all kinds.

    Args:
        world: The world.
        store: The dataset.
        config: The protocol.

    Returns:
        The numbers of :func:`score`; ``training``: pairs and macro-F1 on training episodes that were kept apart;
        ``left_out``: held-out pairs that do not change; ``cuts``: where numbers were cut into classes.

    Raises:
        UsageError: The dataset has no actions to tell apart, too few episodes, or nothing changes in any pair.
    """
    numbers = store.numbers("train")
    if len(numbers) < 2:
        raise UsageError(
            f"{store.path}: telling actions takes two training episodes, one of them to see whether it was learnt, and "
            f"there is {plural(len(numbers), 'episode')}: record more"
        )
    factors = factors_of(store.action_space, np.concatenate([store.mapped(number).actions for number in numbers]))
    if not factors:
        raise UsageError(f"{store.path}: all actions of the training episodes are one and the same: nothing to tell")
    network, training = _learn(store, factors, config.seed)
    ids = heldout_clips(store, config.clips, config.context + config.horizon, config.seed)
    collected = [_tell_clips(world, store, config, network, factors, ids, rows) for rows in _batches(ids, config)]
    truth, changed = (np.concatenate([part[name] for part in collected]) for name in ("truth", "changed"))
    if not changed.any():
        raise UsageError(f"{store.path}: no action of the held-out clips changes a frame: nothing to tell")
    guesses = {kind: np.concatenate([part[kind] for part in collected]) for kind in KINDS}
    return {
        "clips": len(ids),
        "pairs": int(changed.sum()),
        "left_out": int((~changed).sum()),
        "cuts": [factor.cut for factor in factors if factor.cut],
        "training": training,
        **score(factors, truth, changed, guesses),
    }


def _batches(ids: np.ndarray, config: EvaluateConfig) -> Iterator[np.ndarray]:
    """Rows of the clips that are imagined at a time."""
    for first in range(0, len(ids), config.batch_size):
        yield np.arange(first, min(first + config.batch_size, len(ids)))


def _tell_clips(
    world: WorldModel,
    store: EpisodeStore,
    config: EvaluateConfig,
    network: nn.Module,
    factors: Sequence[Factor],
    ids: np.ndarray,
    rows: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return ``truth`` and what is told of each of ``KINDS``, (B, H, factors); ``changed`` (B, H): pairs that did."""
    context = config.context
    clip = read_clips(store, ids[rows], context + config.horizon)
    tokens = world.tokenize(clip.frames, clip.sounds)
    dream = world.imagine_tokens(
        tokens[:, :context], clip.actions[:, :-1], config.seed, rows, **sampling_of(config)
    ).tokens
    real, rebuilt = clip.frames[:, context - 1 :], world.render(tokens[:, context - 1 :])
    frames = {
        "real": real,
        "reconstruction": rebuilt,
        "imagined": torch.cat([rebuilt[:, :1], world.render(dream)], dim=1),
    }
    actions = clip.actions[:, context - 1 : -1].numpy()  # (B, H, ...)
    told = {kind: _tell(network, factors, values[:, :-1], values[:, 1:]) for kind, values in frames.items()}
    return {"truth": _classes(factors, actions), "changed": _changed(real[:, :-1], real[:, 1:]).numpy(), **told}


def _classes(factors: Sequence[Factor], actions: np.ndarray) -> np.ndarray:
    """Class of every factor, (..., factors) int64."""
    return np.stack([factor.classes(actions) for factor in factors], axis=-1)


def _changed(before: Tensor, after: Tensor) -> Tensor:
    """Whether two frames (..., H, W, 3) differ, (...) bool."""
    return (before != after).flatten(-3).any(-1)


class InverseNetwork(nn.Module):
    """Four strided convolutions over two frames on top of each other, and a layer that knows where things moved."""

    def __init__(self, num_outputs: int):
        super().__init__()
        widths = (6, 32, 64, 64, 64)
        layers: list[nn.Module] = []
        for level, (width, wider) in enumerate(itertools.pairwise(widths)):
            size = 3 if level else 5
            layers += [nn.Conv2d(width, wider, size, stride=2, padding=size // 2), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * widths[-1], 128), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Linear(128, num_outputs))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return logits (B, outputs) from frames (B, H, W, 3) uint8."""
        return self.body(torch.cat([_shrink(before), _shrink(after)], dim=1))


def _shrink(frames: Tensor) -> Tensor:
    """Frames (B, H, W, 3) uint8 as (B, 3, h, w) in [-1, 1], no side of which is over ``SIDE``."""
    images = frames_to_model(frames)
    longest = max(images.shape[2:])
    if longest <= SIDE:
        return images
    height, width = (max(1, round(side * SIDE / longest)) for side in images.shape[2:])
    return F.interpolate(images, (height, width), mode="area")


def _learn(store: EpisodeStore, factors: Sequence[Factor], seed: int) -> tuple[InverseNetwork, dict[str, Any]]:
    """Train a network on pairs of training episodes, on the CPU; with it, how well it does on those kept apart."""
    numbers = store.numbers("train")
    apart = numbers[::VALIDATION_EVERY]
    pairs, others = (_pairs_of(store, some) for some in (sorted(set(numbers) - set(apart)), apart))
    print(f"learning to tell actions from {plural(len(pairs), 'pair')} of real frames", flush=True)
    sizes = [factor.num_classes for factor in factors]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = InverseNetwork(sum(sizes))
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    rng = np.random.default_rng(seed)
    console = Console(stderr=True)
    for step in track(range(STEPS), "learning", console=console, transient=True, disable=not console.is_terminal):
        before, after, truth = _read(store, factors, pairs[rng.integers(len(pairs), size=BATCH)])
        if not len(truth):
            continue
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50, (STEPS - step) / STEPS * 2)
        logits = network(before, after).split(sizes, dim=1)
        wanted = torch.from_numpy(truth)
        loss = torch.stack([F.cross_entropy(part, wanted[:, n]) for n, part in enumerate(logits)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    spread = np.unique(np.linspace(0, len(others) - 1, VALIDATION_PAIRS).astype(np.int64))
    before, after, truth = _read(store, factors, others[spread])
    guesses = _tell(network, factors, before, after)
    counts = _counts(factors, truth[:, None], np.ones((len(truth), 1), bool), guesses[:, None]).sum(0)
    reached = float(macro_f1(counts).mean()) if len(truth) else float("nan")
    return network, {"steps": STEPS, "pairs": len(pairs), "validation_pairs": len(truth), "macro_f1": reached}


def _pairs_of(store: EpisodeStore, numbers: Sequence[int]) -> np.ndarray:
    """Episode and first frame (n, 2) of all pairs of neighbouring frames."""
    lengths = [store.entry(number).num_frames - 1 for number in numbers]
    return np.stack([np.repeat(numbers, lengths), np.concatenate([np.arange(n) for n in lengths])], axis=1)


def _read(store: EpisodeStore, factors: Sequence[Factor], ids: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
    """Frames before and after, and classes (n, factors), of those pairs that change."""
    clip = read_clips(store, ids, 2)
    before, after = clip.frames.unbind(1)
    keep = _changed(before, after)
    return before[keep], after[keep], _classes(factors, clip.actions[:, 0].numpy())[keep.numpy()]


@torch.inference_mode()
def _tell(network: nn.Module, factors: Sequence[Factor], before: Tensor, after: Tensor) -> np.ndarray:
    """Most probable class of every factor, (..., factors), between frames (..., H, W, 3)."""
    sizes, shape = [factor.num_classes for factor in factors], before.shape[:-3]
    flat = (frames.reshape(-1, *frames.shape[-3:]).split(256) for frames in (before, after))
    told = [
        torch.stack([part.argmax(1) for part in network(*chunk).split(sizes, dim=1)], dim=-1)
        for chunk in zip(*flat, strict=True)
    ]
    return torch.cat(told).reshape(*shape, len(sizes)).numpy()


def score(
    factors: Sequence[Factor], truth: np.ndarray, changed: np.ndarray, guesses: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Macro-F1 of guessed actions, beside that of guessing blindly.

    Args:
        factors: What an action is told by.
        truth: (n, H, factors) classes.
        changed: (n, H), the pairs that count.
        guesses: Of each kind, (n, H, factors).

    Returns:
        ``actions``: every action that occurs, with its factor and number of pairs. ``chance``: macro-F1 of always
        guessing the best one action (``constant``), and of guessing each at random as often as it occurs (``random``),
        which no other way of guessing blindly exceeds. Of each kind ``macro_f1`` over all steps and ``by_step`` with
        95 % bootstraps over clips, and ``by_action`` in the order of ``actions``. The macro-F1 of several factors is
        the mean over them.
    """
    counts = {kind: _counts(factors, truth, changed, told) for kind, told in guesses.items()}
    occurs = next(iter(counts.values())).sum((0, 1))[..., 1]  # (factors, classes) pairs
    shown = [(f, c) for f, factor in enumerate(factors) for c in range(factor.num_classes) if occurs[f, c]]
    report: dict[str, Any] = {
        "actions": [
            {"factor": factors[f].name, "action": factors[f].labels[c], "pairs": int(occurs[f, c])} for f, c in shown
        ],
        "chance": _chance(occurs),
    }
    for kind, values in counts.items():
        drawn = metrics.bootstrap_means(values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
        total, by_class = values.sum(0), f1(values.sum((0, 1)))
        report[kind] = {
            "macro_f1": {
                "mean": float(macro_f1(total.sum(0)).mean()),
                "ci95": metrics.ci95(macro_f1(drawn.sum(1)).mean(-1)).tolist(),
            },
            "by_step": {
                "mean": macro_f1(total).mean(-1).tolist(),
                "ci95": metrics.ci95(macro_f1(drawn).mean(-1)).tolist(),
            },
            "by_action": [float(by_class[f, c]) for f, c in shown],
        }
    return report


def _counts(factors: Sequence[Factor], truth: np.ndarray, counted: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Of each clip, step, factor and class how often it was told rightly, done, and told: (n, H, factors, C, 3).

    A factor with fewer classes than another has some that never occur.
    """
    classes = np.arange(max(factor.num_classes for factor in factors))
    done, said = ((values[..., None] == classes) & counted[..., None, None] for values in (truth, told))
    return np.stack([done & said, done, said], axis=-1).astype(np.float64)


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 = 2 TP / (done + told) from counts (..., 3); NaN where a class was not done."""
    right, done, said = np.moveaxis(counts, -1, 0)
    return np.where(done > 0, 2 * right / np.maximum(done + said, 1e-12), np.nan)


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that were done at all: (...) from counts (..., C, 3); NaN where none was."""
    values = f1(counts)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(-1) / known.sum(-1)


def _chance(occurs: np.ndarray) -> dict[str, float]:
    """Macro-F1 of guessing without looking, mean over factors, from how often each class occurs (factors, C)."""
    num_classes = (occurs > 0).sum(-1)
    most = occurs.max(-1) / occurs.sum(-1)
    return {
        "constant": float((2 * most / (1 + most) / num_classes).mean()),
        "random": float((1 / num_classes).mean()),
    }
