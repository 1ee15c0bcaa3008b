"""What samples of an image prior are worth: how near they are to frames that it was trained on, and how far off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError
from worldvq.evaluation.metrics import efflite0_features, frechet_distance, squared_error
from worldvq.world.images import ImageModel

_CHUNK = 256  # frames compared at a time


class Nearest(NamedTuple):
    """The training frame nearest to each of N frames, in pixels.

    Attributes:
        frames: (N, H, W, 3) uint8.
        errors: (N,) mean squared error, of pixels in [0, 1].
    """

    frames: np.ndarray
    errors: np.ndarray


def nearest_frames(stores: Sequence[EpisodeStore], frames: Tensor) -> Nearest:
    """Find the training frame of stores that is nearest to each of frames (N, H, W, 3) uint8, by squared error."""
    wanted = frames.flatten(1).float() / 255 - 0.5  # (N, D); around 0, where products of fp32 are finest
    best = torch.full((len(frames),), torch.inf)
    found = torch.zeros_like(frames)
    episodes = [(store, number) for store in stores for number in store.numbers("train")]
    console = Console(stderr=True)
    hidden = not console.is_terminal
    for store, number in track(episodes, "nearest frames", console=console, transient=True, disable=hidden):
        for part in torch.from_numpy(np.array(store.frames(number))).split(_CHUNK):
            known = part.flatten(1).float() / 255 - 0.5  # (n, D)
            distance = torch.addmm(known.square().sum(1), wanted, known.T, alpha=-2.0)  # (N, n), without |wanted|^2
            least, index = distance.min(1)
            nearer = least < best
            best[nearer], found[nearer] = least[nearer], part[index[nearer]]
    return Nearest(found.numpy(), squared_error(frames, found))


class HeldOut(NamedTuple):
    """Held-out frames with their classes, in two halves that interleave: one to compare with, the other as a yardstick.

    Attributes:
        frames: (2, n, H, W, 3) uint8.
        labels: (2, n) int64, numbers of classes.
    """

    frames: Tensor
    labels: np.ndarray


def heldout_frames(stores: Sequence[EpisodeStore], model: ImageModel, classes: Sequence[int], count: int) -> HeldOut:
    """Choose held-out frames of some classes, spread evenly over stores and episodes.

    Args:
        stores: Where they are; those that hold nothing out are left out.
        model: Knows the numbers of the classes.
        classes: Numbers of those that are wanted.
        count: Frames of each half, at most.

    Raises:
        UsageError: There are fewer than two of each.
    """
    parts, labels = [], []
    several = len(model.classes) > 1
    held = [store for store in stores if store.numbers("heldout")]
    for store in held:
        ids = heldout_clips(store, -(-2 * count // len(held)), 1)
        found = [model.number(store.label(number)) if several else 0 for number in ids[:, 0].tolist()]
        keep = np.isin(found, classes)
        if keep.any():
            parts.append(read_clips(store, ids[keep], 1).frames[:, 0])
            labels.append(np.array(found)[keep])
    frames = torch.cat(parts) if parts else torch.empty(0)
    number = min(count, len(frames) // 2)
    if number < 2:
        raise UsageError(
            f"{', '.join(str(store.path) for store in stores)}: {len(frames)} held-out frames of these classes, 4 at "
            "least are needed to compare samples with: give other data, or leave --data out"
        )
    places = np.linspace(0, len(frames) - 1, 2 * number).round().astype(np.int64)
    halves = places[::2], places[1::2]
    numbers = np.concatenate(labels)
    return HeldOut(torch.stack([frames[half] for half in halves]), np.stack([numbers[half] for half in halves]))


def fd_of_samples(model: ImageModel, held: HeldOut, seed: int, sampling: dict[str, Any]) -> dict[str, float]:
    """Return FD-EffLite0 to the first half of held-out frames: of samples, and of what the second half gives.

    A sample of its class stands for each frame of the second half, so that all sets hold as much of each class.

    Returns:
        ``samples``, ``reconstructions``, ``held-out frames``.

    Raises:
        UsageError: The ``metrics`` extra is not installed.
    """
    reference = efflite0_features(held.frames[0])
    # Many rows at a time: there one token after the other takes far fewer operations, and the tokens are the same.
    one_by_one = sampling | {"method": "sequential"}
    drawn = model.sample(held.labels[1], np.arange(len(held.labels[1])), seed, **one_by_one)
    sets = {
        "samples": model.tokenizer.render(drawn.tokens),
        "reconstructions": model.tokenizer.render(model.tokenizer.tokenize(held.frames[1])),
        "held-out frames": held.frames[1],
    }
    return {name: frechet_distance(reference, efflite0_features(frames)) for name, frames in sets.items()}
