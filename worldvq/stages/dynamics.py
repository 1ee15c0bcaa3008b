"""Training the action-conditioned dynamics on tokens, and joining it with its tokenizer into a world."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import worldvq
from worldvq.config.env import refuse_images
from worldvq.config.yaml_loading import read_yaml
from worldvq.data.clips import RewardedClipSampler, heldout_clips, read_clips
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.errors import UsageError, plural
from worldvq.evaluation.config import EvaluateConfig
from worldvq.media.pictures import save_png
from worldvq.media.tiles import grid
from worldvq.models.dynamics import Dynamics
from worldvq.models.layout import SoundTokens
from worldvq.models.loading import load_tokenizer
from worldvq.models.losses import dynamics_loss
from worldvq.stages.experiment import DynamicsSections, ExperimentConfig, defaults
from worldvq.stages.heldout import heldout_batches
from worldvq.stages.start import start_from
from worldvq.stages.tokens import open_tokens
from worldvq.training.config import TrainConfig
from worldvq.training.fit import fit
from worldvq.training.identity import begin_run
from worldvq.training.processes import make_accelerator
from worldvq.world.codec import SoundCodec
from worldvq.world.model import WorldModel

PICTURE_CLIPS = 4


def train_dynamics(
    config: ExperimentConfig,
    tokens: Path,
    tokenizer: Path,
    out: Path,
    world: Path,
    trackers: Sequence[str] = (),
    device: str = "auto",
    start: Path | None = None,
    sound: Path | None = None,
) -> WorldModel:
    """Train the dynamics on tokens, then join it with its tokenizer into a world.

    Tokens of sound need their codec, ``sound``, which becomes part of the world. With ``start`` the weights begin with
    those of a run or world, see :func:`~worldvq.stages.start.start_from`.

    Raises:
        UsageError: The tokens are of single images, or made by another tokenizer, ``out`` holds another run, or the
            device is not there.
    """
    vqvae = load_tokenizer(tokenizer)
    codec = None if sound is None else SoundCodec.load(sound, "cpu")
    store, made = open_tokens(tokens, tokenizer, vqvae, codec)
    refuse_images(store.meta.dataset.env, tokens)
    training = config.dynamics_training
    main = make_accelerator(training.precision, device=device).is_main_process
    torch.manual_seed(training.seed)
    heard = store.meta.sound and SoundTokens(store.meta.sound.num_tokens, store.meta.sound.num_codes)
    model = Dynamics(config.dynamics, vqvae.grid, vqvae.num_codes, store.action_space, heard)
    codebooks = [vqvae.quantizer.codebook, *([codec.tokenizer.quantizer.codebook] if codec else [])]
    model.initialize_embeddings(*codebooks)
    started = start_from(start, model, made["tokenizer_hash"] if main else None) if start else None
    batches = RewardedClipSampler(
        store, "train", training.clip_frames, training.batch_size, training.seed, training.rewarded_fraction
    )
    joined = WorldModel(vqvae, model, _world_meta(store.meta, config, tokenizer), codec)
    height, width = vqvae.grid
    of_sound = f" and {heard.num_tokens} of sound" if heard else ""
    summary = f"dynamics, {height * width} tokens a frame{of_sound}, clips of {plural(training.clip_frames, 'frame')}"
    picture = _imagined_strip(joined, store, config.evaluate, training, out)
    inputs = {**made, "action_space": store.action_space.to_json(), "tokens": store.fingerprint(), "start": started}
    begin = functools.partial(
        begin_run, out, "dynamics", config.sections(DynamicsSections), inputs, defaults(DynamicsSections)
    )
    model = fit(
        model,
        dynamics_loss,
        batches,
        training,
        out,
        summary=summary,
        heldout=heldout_batches([store], training),
        picture=picture,
        begin=begin,
        trackers=trackers,
        device=device,
    )
    assert isinstance(model, Dynamics)
    joined = WorldModel(vqvae.to(next(model.parameters()).device), model, joined.meta, codec)
    if main:
        joined.save(world)
    return joined


def _world_meta(meta: TokenMeta, config: ExperimentConfig, tokenizer: Path) -> dict[str, Any]:
    run = tokenizer / "config.yaml"  # a folder that holds nothing but the tokenizer has none
    training = (read_yaml(run) if run.is_file() else {}) | config.sections(DynamicsSections)
    return {
        "dataset": meta.dataset.model_dump(mode="json"),
        "env_id": meta.dataset.env.id,
        "sampling": config.evaluate.sampling.model_dump(mode="json"),
        "training": {name: section for name, section in training.items() if name not in ("tokenizer", "dynamics")},
        "versions": {"worldvq": worldvq.__version__},
    }


def _imagined_strip(
    world: WorldModel, store: TokenStore, protocol: EvaluateConfig, training: TrainConfig, out: Path
) -> Callable[[torch.nn.Module, int], np.ndarray] | None:
    """Return the picture of a dynamics run: decoded true tokens over imagined ones, for a few held-out clips."""
    length = protocol.context + protocol.horizon
    try:
        clip = read_clips(store, heldout_clips(store, PICTURE_CLIPS, length, training.seed), length)
    except UsageError:  # held-out episodes are shorter than that: training goes on without pictures
        return None

    def picture(model: torch.nn.Module, step: int) -> np.ndarray:
        device = next(model.parameters()).device
        here = WorldModel(world.tokenizer.to(device), model, world.meta, world.codec)  # type: ignore[arg-type]
        imagined = here.imagine_tokens(clip.tokens[:, : protocol.context], clip.actions[:, :-1], seed=training.seed)
        true = here.render(clip.tokens)
        dreamt = true.clone()
        dreamt[:, protocol.context :] = here.render(imagined.tokens)
        rows = [row for pair in zip(true, dreamt, strict=True) for row in pair]
        drawn = grid(np.stack([row.numpy() for row in rows]), scale=2)
        save_png(out / "pictures" / f"{step:08d}.png", drawn)
        return drawn

    return picture
