"""Sheets of samples of an image prior, and what they are worth beside frames of the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from worldvq.data.episodes import EpisodeStore
from worldvq.evaluation.metrics import psnr
from worldvq.evaluation.samples import fd_of_samples, heldout_frames, nearest_frames
from worldvq.files.differences import require_same
from worldvq.media.pictures import save_png
from worldvq.media.sheets import sample_sheet
from worldvq.world.images import ImageModel


class SampleReport(NamedTuple):
    """What was drawn, and what it is worth.

    Attributes:
        passes: (n,) passes through the prior that each sample of the sheet took.
        positions: Tokens of a frame: the passes that one after the other takes.
        nearest: Median PSNR in dB between ``samples``, or ``reconstructions`` of as many held-out frames, and the
            training frames nearest to them; empty without data.
        fd: See :func:`worldvq.evaluation.samples.fd_of_samples`; empty where it was not asked for.
        fd_frames: Frames of each set of ``fd``.
    """

    passes: np.ndarray
    positions: int
    nearest: dict[str, float]
    fd: dict[str, float]
    fd_frames: int


def sample(
    prior: Path,
    out: Path,
    *,
    labels: Sequence[str] = (),
    per_class: int = 8,
    seed: int = 0,
    data: Sequence[Path] = (),
    num_fd: int = 0,
    sampling: dict[str, Any],
    device: str = "auto",
    scale: int | None = None,
) -> SampleReport:
    """Draw a sheet of samples, a row a class; with data, the nearest training frame beside each.

    Args:
        prior: A trained image prior.
        out: PNG.
        labels: Classes to be drawn; all where there are none.
        per_class: Samples of each.
        seed: Of all that is drawn.
        data: Datasets that the prior's tokens are of.
        num_fd: Samples that are compared with as many held-out frames; 0 leaves that out. Needs ``data``.
        sampling: Fields of SamplingConfig.
        device: See :meth:`ImageModel.load`.
        scale: Pixels of the sheet a pixel of a frame.

    Raises:
        UsageError: There is no such class, or the data do not fit; nothing was written.
    """
    model = ImageModel.load(prior, device)
    numbers = [model.number(name) for name in dict.fromkeys(labels)] or list(range(len(model.classes)))
    stores = [EpisodeStore.open(path) for path in data]
    for store in stores:
        require_same(
            {"frame_size": store.meta.frame_size},
            {"frame_size": model.tokenizer.config.frame_size},
            (f"{store.path} has", "the prior draws"),
            "the dataset does not fit the prior",
            "give the datasets that it was trained on",
        )
    drawn = model.sample(np.repeat(numbers, per_class), np.tile(np.arange(per_class), len(numbers)), seed, **sampling)
    frames = model.tokenizer.render(drawn.tokens)
    near, fd, fd_frames, shown = {}, {}, 0, None
    if stores:
        held = heldout_frames(stores, model, numbers, max(num_fd, -(-len(frames) // 2)))
        if num_fd:
            fd, fd_frames = fd_of_samples(model, held, seed, sampling), len(held.labels[0])
        others = model.tokenizer.render(model.tokenizer.tokenize(held.frames.flatten(0, 1)[: len(frames)]))
        found = nearest_frames(stores, torch.cat([frames, others]))
        decibels = psnr(found.errors)
        near = {"samples": decibels[: len(frames)], "reconstructions": decibels[len(frames) :]}
        shown = found.frames[: len(frames)]
    names = [model.classes[number] for number in numbers]
    rows, beside = (
        None if every is None else dict(zip(names, np.split(every, len(names)), strict=True))
        for every in (frames.numpy(), shown)
    )
    assert rows is not None
    save_png(out, sample_sheet(rows, beside, scale))
    height, width = model.prior.grid
    medians = {name: float(np.median(values)) for name, values in near.items()}
    return SampleReport(drawn.passes.numpy(), height * width, medians, fd, fd_frames)
