"""What draws sound that nobody has made: a codec, and a prior over its codes that is told who speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldvq.config.yaml_loading import build
from worldvq.errors import CorruptFileError
from worldvq.files.atomic import write_together
from worldvq.files.reading import seal
from worldvq.files.weights import hash_module, module_bytes
from worldvq.models.config import SamplingConfig, WaveNetConfig
from worldvq.models.loading import load_checked, read_description, sound_prior_size
from worldvq.models.sound_prior import SoundPrior
from worldvq.world.codec import SoundCodec

FORMAT_VERSION = 1
SOUND_MODEL_FILE = "sound_prior.json"
"""What a folder has that holds such a prior."""
WEIGHTS = "sound_prior.safetensors"


class SoundModel:
    """A codec and a prior over its codes.

    Attributes:
        codec: Codes to sound.
        prior: Draws codes.
        meta: JSON values that say what it was trained on.
    """

    def __init__(self, codec: SoundCodec, prior: SoundPrior, meta: dict[str, Any]):
        self.codec, self.prior, self.meta = codec, prior.eval(), meta

    def sample(self, speakers: np.ndarray, seconds: float, seed: int = 0, **sampling: Any) -> tuple[Tensor, np.ndarray]:
        """Draw sounds of speakers (B,).

        Args:
            speakers: Numbers of speakers.
            seconds: Of each, up to a token.
            seed: Same seed, same sounds; a row depends on its speaker, its place and the seed alone.
            **sampling: Fields of :class:`~worldvq.models.config.SamplingConfig`, of codes and samples.

        Returns:
            Tokens (B, n) and samples (B, n * hop) int16.
        """
        length = max(1, round(seconds * self.codec.rate / self.codec.hop))
        rows, config = np.arange(len(speakers)), build(SamplingConfig, sampling, "sampling")
        numbers = torch.from_numpy(np.asarray(speakers, np.int64)).to(self.codec.device)
        tokens = self.prior.draw(numbers, length, seed, rows, config).cpu()
        return tokens, self.codec.decode(tokens, numbers, seed, **sampling)

    def save(self, folder: Path) -> None:
        """Write the prior with its codec; a half-written one is none."""
        description = {
            "format_version": FORMAT_VERSION,
            "sound_prior": self.prior.config.model_dump(mode="json"),
            "prior_hash": hash_module(self.prior),
            "codec_hash": hash_module(self.codec.tokenizer),
            "meta": self.meta,
        }
        prior = {folder / WEIGHTS: module_bytes(self.prior), folder / SOUND_MODEL_FILE: seal(description)}
        write_together(self.codec.files(folder) | prior)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> SoundModel:
        """Load what ``worldvq train sound-prior`` or :meth:`save` left.

        Raises:
            UsageError: There is none here, or one of another format.
            CorruptFileError: A file is damaged, or does not fit the others.
        """
        folder = Path(folder)
        path, weights = folder / SOUND_MODEL_FILE, folder / WEIGHTS
        missing = f"no prior over codes of sound in {folder}: make one with `worldvq train sound-prior --out {folder}`"
        data = read_description(path, (FORMAT_VERSION,), missing, "prior")
        codec = SoundCodec.load(folder, device)
        try:
            config, meta = build(WaveNetConfig, data["sound_prior"], str(path)), dict(data["meta"])
            hashes = data["prior_hash"], data["codec_hash"]
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(f"{path} is damaged: {error}") from None
        shape = (config, codec.tokenizer.num_codes, len(codec.speakers))
        prior = load_checked(weights, sound_prior_size(*shape), lambda: SoundPrior(*shape))
        if hashes != (hash_module(prior), hash_module(codec.tokenizer)):
            raise CorruptFileError(f"{weights} or the codec beside it is damaged: their hashes are not those in {path}")
        return cls(codec, prior.to(codec.device), meta)
