"""Training the prior over the codes of sounds, and joining it with its codec into what draws sound."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import worldvq
from worldvq.data.sounds import CodeSampler, Sounds
from worldvq.files.weights import hash_module
from worldvq.models.losses import sound_prior_loss
from worldvq.models.sound_prior import SoundPrior
from worldvq.nn.devices import local_device
from worldvq.stages.experiment import ExperimentConfig, SoundPriorSections, defaults
from worldvq.stages.heldout import with_heldout
from worldvq.stages.sound import open_codec
from worldvq.training.fit import fit
from worldvq.training.identity import begin_run
from worldvq.training.processes import make_accelerator
from worldvq.world.codec import SoundCodec
from worldvq.world.sound_model import SoundModel


def train_sound_prior(
    config: ExperimentConfig, codec: Path, data: Path, out: Path, trackers: Sequence[str] = (), device: str = "auto"
) -> SoundModel:
    """Train a prior over the codes of sounds, and leave it in ``out``, its codec beside it.

    The sounds are coded first, in memory.

    Raises:
        UsageError: The sounds do not fit the codec, ``out`` holds another run, or the device is not there.
    """
    model, sounds = open_codec(codec, data, local_device(device))
    training = config.sound_prior_training
    main = make_accelerator(training.precision, device=device).is_main_process
    tokens = code(model, sounds, training.crop_tokens)
    torch.manual_seed(training.seed)
    prior = SoundPrior(config.sound_prior, model.tokenizer.num_codes, len(model.speakers))
    prior.initialize_embeddings(model.tokenizer.quantizer.codebook.cpu())
    pieces = (training.crop_tokens, training.batch_size, training.seed, model.speakers)
    sections = config.sections(SoundPriorSections)
    inputs = {"codec_hash": hash_module(model.tokenizer), "data": sounds.fingerprint(), "speakers": model.speakers}
    trained = fit(
        prior,
        sound_prior_loss,
        CodeSampler(sounds, tokens, "train", *pieces),
        training,
        out,
        summary=f"prior over codes of sound, {model.rate / model.hop:g} a second",
        heldout=CodeSampler(sounds, tokens, "heldout", *pieces) if with_heldout([sounds]) else None,
        begin=functools.partial(begin_run, out, "sound_prior", sections, inputs, defaults(SoundPriorSections)),
        trackers=trackers,
        device=device,
    )
    assert isinstance(trained, SoundPrior)
    meta = {"data": sounds.fingerprint(), "versions": {"worldvq": worldvq.__version__}}
    joined = SoundModel(model, trained, meta)
    if main:
        joined.save(out)
    return joined


def code(model: SoundCodec, sounds: Sounds, least: int) -> dict[int, np.ndarray]:
    """Return the codes (n,) of every sound; one of fewer than ``least`` codes is followed by silence before."""
    tokens = {}
    for number in sounds.numbers():
        model.speaker(sounds.label(number))  # refused before a second is spent
    for number in sounds.numbers():
        samples = sounds.samples(number)
        missing = max(0, least * model.hop - len(samples))
        tokens[number] = model.encode(np.pad(samples, (0, missing))[None])[0].numpy()
    return tokens
