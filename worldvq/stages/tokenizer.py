"""Training the VQ-VAE that turns frames into tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from worldvq.config.env import refuse_images
from worldvq.data.clips import ClipSampler, heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.media.pictures import save_png
from worldvq.media.tiles import grid
from worldvq.models.loading import save_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.models.tokenizer_losses import make_tokenizer_loss
from worldvq.stages.experiment import ExperimentConfig, TokenizerSections
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
    data: Path,
    out: Path,
    trackers: Sequence[str] = (),
    device: str = "auto",
    start: Path | None = None,
) -> Tokenizer:
    """Train the VQ-VAE on a dataset; resumes, or returns at once if it is done.

    The size of the frames is the dataset's. With ``start`` the weights begin with those of a run or world, see
    :func:`~worldvq.stages.start.start_from`.

    Raises:
        UsageError: The config says another size, ``out`` holds another run, or a loss needs something that is not
            installed, or the device is not there.
    """
    store = EpisodeStore.open(data)
    if config.tokenizer_loss.motion:
        refuse_images(store.meta.env, data)
    config = config.for_frames(store.meta.frame_size, str(data))
    training = config.tokenizer_training
    main = make_accelerator(training.precision, device=device).is_main_process
    torch.manual_seed(training.seed)
    tokenizer = Tokenizer(config.tokenizer)
    started = start_from(start, tokenizer) if start else None
    model, loss = make_tokenizer_loss(tokenizer, config.tokenizer_loss)
    batches = ClipSampler(store, "train", training.clip_frames, training.batch_size, training.seed)
    heldout = heldout_batches(store, training)
    picture = _reconstructions(store, training, out) if heldout else None
    height, width = config.tokenizer.grid
    summary = f"tokenizer, {height * width} tokens a frame of {config.tokenizer.quantizer.num_codes} codes"
    inputs = {"frame_size": store.meta.frame_size, "env": store.meta.env.model_dump(mode="json")}
    inputs |= {"data": store.fingerprint(), "start": started}
    begin = functools.partial(begin_run, out, "tokenizer", config.sections(TokenizerSections), inputs)
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
    store: EpisodeStore, training: TrainConfig, out: Path
) -> Callable[[torch.nn.Module, int], np.ndarray]:
    """Return the picture of a tokenizer's run: held-out frames over what comes back of them."""
    shown = read_clips(store, heldout_clips(store, PICTURE_ROWS, 1, training.seed), 1).frames[:, 0]  # (8, H, W, 3)

    def picture(model: torch.nn.Module, step: int) -> np.ndarray:
        output = model(frames_to_model(shown).to(next(model.parameters()).device))
        drawn = grid(np.stack([shown.numpy(), frames_from_model(output.frames).cpu().numpy()]), scale=2)
        save_png(out / "pictures" / f"{step:08d}.png", drawn)
        return drawn

    return picture
