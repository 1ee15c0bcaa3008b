"""Training the second-stage VQ-VAE on tokens: from the grid of a frame to a few codes, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import worldvq
from worldvq.data.clips import ClipSampler, heldout_clips, read_clips
from worldvq.data.tokens import TokenStore
from worldvq.media.pictures import save_png
from worldvq.media.tiles import grid
from worldvq.models.loading import load_tokenizer
from worldvq.models.losses import scene_loss
from worldvq.models.scene import SceneModel, bits_of
from worldvq.models.tokenizer import Tokenizer
from worldvq.stages.experiment import ExperimentConfig, SceneSections, defaults
from worldvq.stages.heldout import heldout_batches
from worldvq.stages.tokens import open_tokens
from worldvq.training.config import TrainConfig
from worldvq.training.fit import fit
from worldvq.training.identity import begin_run
from worldvq.training.processes import make_accelerator
from worldvq.world.scenes import Scenes

PICTURE_FRAMES = 8


def train_scene(
    config: ExperimentConfig,
    tokens: Path,
    tokenizer: Path,
    out: Path,
    trackers: Sequence[str] = (),
    device: str = "auto",
) -> Scenes:
    """Train a scene model on tokens; resumes, or returns at once if it is done. ``out`` then holds all that it needs.

    Raises:
        UsageError: The tokens were made by another tokenizer, ``out`` holds another run, or the device is not there.
    """
    vqvae = load_tokenizer(tokenizer)
    store, made = open_tokens(tokens, tokenizer, vqvae)
    training = config.scene_training
    main = make_accelerator(training.precision, device=device).is_main_process
    torch.manual_seed(training.seed)
    model = SceneModel(config.scene, vqvae.grid, vqvae.num_codes)
    model.initialize_embeddings(vqvae.quantizer.codebook)
    batches = ClipSampler(store, "train", training.clip_frames, training.batch_size, training.seed)
    heldout = heldout_batches([store], training)
    meta = {
        "dataset": store.meta.dataset.model_dump(mode="json"),
        "training": config.sections(SceneSections)["scene_training"],
        "versions": {"worldvq": worldvq.__version__},
    }
    height, width = vqvae.grid
    inputs = {**made, "tokens": store.fingerprint()}
    fit(
        model,
        scene_loss,
        batches,
        training,
        out,
        summary=f"scene codes, {bits_of(config.scene):g} bits a frame of {height * width} tokens",
        heldout=heldout,
        picture=_brought_back(store, vqvae, training, out) if heldout else None,
        begin=functools.partial(
            begin_run, out, "scene", config.sections(SceneSections), inputs, defaults(SceneSections)
        ),
        trackers=trackers,
        device=device,
    )
    scenes = Scenes(vqvae.to(model.start.device), model, meta)
    if main:
        scenes.save(out)
    return scenes


def _brought_back(
    store: TokenStore, tokenizer: Tokenizer, training: TrainConfig, out: Path
) -> Callable[[torch.nn.Module, int], np.ndarray]:
    """Return the picture of a run: held-out frames, decoded from their tokens, over what is drawn given their codes."""
    shown = read_clips(store, heldout_clips(store, PICTURE_FRAMES, 1, training.seed), 1).tokens[:, 0]  # (8, h, w)

    def picture(model: torch.nn.Module, step: int) -> np.ndarray:
        assert isinstance(model, SceneModel)
        scenes = Scenes(tokenizer.to(model.start.device), model, {})
        drawn = scenes.draw(scenes.encode(shown), training.seed).tokens
        both = grid(np.stack([scenes.render(shown), scenes.render(drawn)]), scale=2)
        save_png(out / "pictures" / f"{step:08d}.png", both)
        return both

    return picture
