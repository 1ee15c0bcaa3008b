"""What comes back of frames that are only tokens: originals above reconstructions, and what both are worth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.evaluation import metrics
from worldvq.media.pictures import STRIP_SIDE, save_png
from worldvq.media.tiles import FAINT, LINE, MIN_WIDTH, caption, enlarge, grid, scale_to, text, tile
from worldvq.models.loading import load_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.devices import resolve_device
from worldvq.nn.memory import memory_errors
from worldvq.world.model import WORLD_FILE, WorldModel

BATCH = 64
"""Frames in one pass."""
_MARGIN = 110


@dataclass(frozen=True)
class Reconstructed:
    """What the held-out frames of a dataset are worth after they were tokens.

    Attributes:
        num_frames: How many there are.
        psnr: Of the mean squared error over all of them, dB.
        ssim: Mean over frames.
        tokens: Of a frame.
        bits: Of a frame as it is kept: tokens x log2 of the number of codes.
        entropy: Of a token, bits, by how often each code is used: what coding each token by itself could reach.
        raw_bits: Of a frame as pixels of 24 bits.
        picture: Where the picture is.
    """

    num_frames: int
    psnr: float
    ssim: float
    tokens: int
    bits: float
    entropy: float
    raw_bits: int
    picture: Path


def reconstruct(
    tokenizer: Path, data: Path, out: Path, num_frames: int = 8, seed: int = 0, device: str = "auto"
) -> Reconstructed:
    """Draw held-out frames above what comes back of their tokens, and measure that on all held-out frames.

    Args:
        tokenizer: Run folder of a trained tokenizer, or a world.
        data: Dataset; only its held-out episodes are used.
        out: The picture, a PNG.
        num_frames: Frames in the picture, spread evenly over the held-out episodes.
        seed: Of their choice.
        device: See :func:`~worldvq.nn.devices.resolve_device`.

    Raises:
        UsageError: There is no tokenizer, no held-out episode, or frames have another size.
        RunError: The picture cannot be written, or memory runs out.
    """
    model = _tokenizer_of(tokenizer, resolve_device(device))
    store = EpisodeStore.open(data)
    store.check_frame_size(model.config.frame_size, str(tokenizer))
    ids = heldout_clips(store, num_frames, 1, seed)  # before the long part: it refuses a dataset that holds out nothing
    errors, similar, counts = [], [], np.zeros(model.num_codes, np.int64)
    with memory_errors("take a machine or device with more memory"):
        for frames in _heldout_frames(store):
            tokens, rebuilt = _through(model, frames)
            errors.append(metrics.squared_error(frames, rebuilt))
            similar.append(metrics.ssim(frames, rebuilt))
            counts += np.bincount(tokens.reshape(-1), minlength=model.num_codes)
        shown = read_clips(store, ids, 1).frames[:, 0].numpy()  # (n, H, W, 3)
        picture = sheet(shown, _through(model, shown)[1], [store.label(number) for number, _ in ids.tolist()])
    height, width = model.grid
    return Reconstructed(
        num_frames=sum(map(len, errors)),
        psnr=float(metrics.psnr(np.concatenate(errors).mean())),
        ssim=float(np.concatenate(similar).mean()),
        tokens=height * width,
        bits=height * width * math.log2(model.num_codes),
        entropy=math.log2(metrics.perplexity(counts)),
        raw_bits=math.prod(model.config.frame_size) * 24,
        picture=save_png(out, picture),
    )


def _tokenizer_of(folder: Path, device: torch.device) -> Tokenizer:
    """Load the tokenizer of a run folder, or that of a world."""
    if (folder / WORLD_FILE).is_file():
        return WorldModel.load(folder, str(device)).tokenizer
    return load_tokenizer(folder, device)


def _heldout_frames(store: EpisodeStore) -> Iterator[np.ndarray]:
    """Yield all held-out frames, (n, H, W, 3) uint8, at most ``BATCH`` at a time."""
    console = Console(stderr=True)
    numbers = store.numbers("heldout")
    for number in track(numbers, "reconstructing", console=console, disable=not console.is_terminal, transient=True):
        frames = store.frames(number)
        for start in range(0, len(frames), BATCH):
            yield np.array(frames[start : start + BATCH])


def _through(model: Tokenizer, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens (n, h, w) and what comes back of frames (n, H, W, 3) uint8."""
    tokens = model.tokenize(torch.from_numpy(frames))
    return tokens.numpy(), model.render(tokens).numpy()


def sheet(originals: np.ndarray, rebuilt: np.ndarray, labels: list[str]) -> np.ndarray:
    """Draw originals (n, H, W, 3) uint8 under their labels, and below them reconstructions, each over its PSNR."""
    size = originals.shape[1:3]
    scale = scale_to(STRIP_SIDE, size)
    width = max(size[1] * scale, MIN_WIDTH)
    errors = metrics.psnr(metrics.squared_error(originals, rebuilt))
    titles = [text("", _MARGIN, LINE), *(text(label, width, LINE) for label in labels)]
    rows = [titles]
    for name, frames in (("original", originals), ("reconstruction", rebuilt)):
        height = size[0] * scale
        beside = np.concatenate([text("", _MARGIN, max(height // 2 - 12, 1)), text(name, _MARGIN, 24, align="right")])
        rows.append([beside, *(tile(enlarge(frame, scale), width, []) for frame in frames)])
    rows.append([text("", _MARGIN, LINE), *(caption([f"{error:.1f} dB"], width, color=FAINT) for error in errors)])
    return grid(rows, gap=4)
