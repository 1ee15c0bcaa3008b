"""Training the VQ-VAE of sound: from samples to tokens, and back as any of its speakers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import worldvq
from worldvq.data.episodes import EpisodeStore
from worldvq.data.heard import EpisodeSounds
from worldvq.data.sounds import CropSampler, Sounds, SoundStore
from worldvq.evaluation.spectrograms import spectrogram_sheet
from worldvq.files.differences import require_same
from worldvq.media.pictures import save_png
from worldvq.models.losses import sound_loss
from worldvq.models.sound import SoundTokenizer
from worldvq.stages.experiment import ExperimentConfig, SoundSections, defaults
from worldvq.stages.heldout import with_heldout
from worldvq.training.fit import fit
from worldvq.training.identity import begin_run
from worldvq.training.processes import make_accelerator
from worldvq.types import samples_from_model
from worldvq.world.codec import SoundCodec

PICTURE_ROWS = 3


def open_sounds(path: Path, hop: int) -> Sounds:
    """Open what sound is trained on, in tokens of ``hop`` samples: a store of sounds, or a dataset with sound.

    Raises:
        UsageError: There is none, or the steps of a dataset do not divide into tokens.
        CorruptFileError: It is damaged.
    """
    if (path / EpisodeStore.meta_file).is_file():
        return EpisodeSounds(EpisodeStore.open(path), hop)
    return SoundStore.open(path)


def open_codec(codec: Path, data: Path, device: str) -> tuple[SoundCodec, Sounds]:
    """Open a trained codec and sounds that it takes.

    Raises:
        UsageError: One of them is not there, or the sounds are of another rate.
    """
    model = SoundCodec.load(codec, device)
    sounds = open_sounds(data, model.hop)
    require_same(
        {"rate": sounds.rate},
        {"rate": model.rate},
        ("the sounds have", "the codec expects"),
        f"{data} does not fit {codec}",
        "take the sounds that it was trained on, or import them at its rate",
    )
    return model, sounds


def train_sound(
    config: ExperimentConfig, data: Path, out: Path, trackers: Sequence[str] = (), device: str = "auto"
) -> SoundCodec:
    """Train the VQ-VAE of sound on sounds; resumes, or returns at once if it is done. ``out`` then holds the codec.

    Every place of every sound of the training split is equally likely to begin a piece.

    Raises:
        UsageError: There are no sounds, ``out`` holds another run, or the device is not there.
    """
    sounds, training = open_sounds(data, config.sound.hop), config.sound_training
    speakers = sorted({sounds.label(number) for number in sounds.numbers()})
    main = make_accelerator(training.precision, device=device).is_main_process
    trained = {sounds.label(number) for number in sounds.numbers("train")}
    if main and (missing := [name for name in speakers if name not in trained]):
        print(f"warning: every sound of {', '.join(missing)} is held out: nothing is learnt of it", flush=True)
    torch.manual_seed(training.seed)
    model = SoundTokenizer(config.sound, len(speakers), sounds.rate)
    pieces = (training.crop_samples, training.batch_size, training.seed, speakers)
    batches = CropSampler(sounds, "train", *pieces)
    heldout = CropSampler(sounds, "heldout", *pieces) if with_heldout([sounds]) else None
    sections = config.sections(SoundSections)
    inputs = {"rate": sounds.rate, "data": sounds.fingerprint(), "speakers": speakers}
    fit(
        model,
        sound_loss,
        batches,
        training,
        out,
        summary=f"codec of sound, {sounds.rate / config.sound.hop:g} tokens a second of "
        f"{config.sound.quantizer.num_codes} codes, {len(speakers)} speaker{'s' * (len(speakers) > 1)}",
        heldout=heldout,
        picture=_drawn_again(heldout, sounds.rate, speakers, out) if heldout else None,
        begin=functools.partial(begin_run, out, "sound", sections, inputs, defaults(SoundSections)),
        trackers=trackers,
        device=device,
    )
    meta = {"data": sounds.fingerprint(), "training": sections["sound_training"]}
    codec = SoundCodec(model, sounds.rate, speakers, meta | {"versions": {"worldvq": worldvq.__version__}})
    if main:
        codec.save(out)
    return codec


def _drawn_again(
    heldout: CropSampler, rate: int, speakers: Sequence[str], out: Path
) -> Callable[[torch.nn.Module, int], np.ndarray]:
    """Return the picture of a run: spectrograms of held-out pieces beside those of what is drawn from their codes."""
    crops = heldout.batch(0)
    real = samples_from_model(crops.waveforms[:PICTURE_ROWS]).numpy()
    numbers = crops.speakers[:PICTURE_ROWS]

    def picture(model: torch.nn.Module, step: int) -> np.ndarray:
        assert isinstance(model, SoundTokenizer)
        codec = SoundCodec(model, rate, speakers, {})
        again = codec.decode(codec.encode(real), numbers)
        rows = [(speakers[int(n)], [a, b]) for n, a, b in zip(numbers.tolist(), real, again, strict=True)]
        drawn = spectrogram_sheet(["real", "from its codes"], rows, rate)
        save_png(out / "pictures" / f"{step:08d}.png", drawn)
        return drawn

    return picture
