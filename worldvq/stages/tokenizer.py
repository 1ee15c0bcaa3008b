"""Training the VQ-VAE that turns frames into tokens."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldvq.config.env import refuse_images
from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.data.joined import JoinedSampler
from worldvq.files.differences import require_same
from worldvq.media.pictures import save_png
from worldvq.media.tiles import grid
from worldvq.models.loading import save_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.models.tokenizer_losses import make_tokenizer_loss
from worldvq.stages.experiment import ExperimentConfig, TokenizerSections, defaults
from worldvq.stages.heldout import heldout_batches
from worldvq.stages.start import start_from
from worldvq.training.config import TrainConfig
from worldvq.training.fit import fit
from worldvq.training.identity import begin_run
from worldvq.training.processes import make_accelerator
from worldvq.types import frames_from_model, frames_to_model

PICTURE_ROWS = 8


def train_tokenizer(
    config: ExperimentConfig,
    data: Path | Sequence[Path],
    out: Path,
    trackers: Sequence[str] = (),
    device: str = "auto",
    start: Path | None = None,
) -> Tokenizer:
    """Train the VQ-VAE on a dataset, or on several; resumes, or returns at once if it is done.

    The size of the frames is the datasets'; every frame of all of them is equally likely. With ``start`` the weights
    begin with those of a run or world, see :func:`~worldvq.stages.start.start_from`.

    Raises:
        UsageError: The config says another size, or datasets have different ones; ``out`` holds another run, a loss
            needs something that is not installed, or the device is not there.
    """
    stores = [EpisodeStore.open(path) for path in ([data] if isinstance(data, Path) else data)]
    first = stores[0]
    for store in stores[1:]:
        require_same(
            {"frame_size": first.meta.frame_size},
            {"frame_size": store.meta.frame_size},
            (f"{first.path} has", f"{store.path} has"),
            "one tokenizer takes frames of one size",
            "record one of them again",
        )
    if config.tokenizer_loss.motion:
        for store in stores:
            refuse_images(store.meta.env, store.path)
    config = config.for_frames(first.meta.frame_size, str(first.path))
    training = config.tokenizer_training
    main = make_accelerator(training.precision, device=device).is_main_process
    torch.manual_seed(training.seed)
    tokenizer = Tokenizer(config.tokenizer)
    started = start_from(start, tokenizer) if start else None
    model, loss = make_tokenizer_loss(tokenizer, config.tokenizer_loss)
    batches = JoinedSampler(stores, "train", training.clip_frames, training.batch_size, training.seed)
    heldout = heldout_batches(stores, training)
    picture = _reconstructions(stores, training, out) if heldout else None
    height, width = config.tokenizer.grid
    summary = f"tokenizer, {height * width} tokens a frame of {config.tokenizer.quantizer.num_codes} codes"
    inputs: dict[str, Any] = {"frame_size": first.meta.frame_size, "start": started}
    inputs |= {"env": first.meta.env.model_dump(mode="json"), "data": first.fingerprint()}
    if len(stores) > 1:
        inputs["env"] = [store.meta.env.model_dump(mode="json") for store in stores]
        inputs["data"] = [store.fingerprint() for store in stores]
    begin = functools.partial(
        begin_run, out, "tokenizer", config.sections(TokenizerSections), inputs, defaults(TokenizerSections)
    )
    fit(
        model,
        loss,
        batches,
        training,
        out,
        summary=summary,
        heldout=heldout,
        picture=picture,
        begin=begin,
        trackers=trackers,
        device=device,
    )
    if main:
        save_tokenizer(out, tokenizer)
    return tokenizer


def _reconstructions(
    stores: Sequence[EpisodeStore], training: TrainConfig, out: Path
) -> Callable[[torch.nn.Module, int], np.ndarray]:
    """Return the picture of a tokenizer's run: held-out frames over what comes back of them."""
    held = [store for store in stores if store.numbers("heldout")][:PICTURE_ROWS]
    each = math.ceil(PICTURE_ROWS / len(held))
    clips = [read_clips(store, heldout_clips(store, each, 1, training.seed), 1) for store in held]
    shown = torch.cat([clip.frames[:, 0] for clip in clips])  # (8 or a few more, H, W, 3)

    def picture(model: torch.nn.Module, step: int) -> np.ndarray:
        output = model(frames_to_model(shown).to(next(model.parameters()).device))
        drawn = grid(np.stack([shown.numpy(), frames_from_model(output.frames).cpu().numpy()]), scale=2)
        save_png(out / "pictures" / f"{step:08d}.png", drawn)
        return drawn

    return picture
