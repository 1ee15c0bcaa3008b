"""A codec of sound as one holds it: the VQ-VAE, its rate, and the names of the speakers that it can speak as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from worldvq.config.yaml_loading import build
from worldvq.errors import CorruptFileError, UsageError, did_you_mean
from worldvq.files.atomic import write_together
from worldvq.files.reading import seal
from worldvq.files.weights import hash_module, module_bytes, require_hash
from worldvq.models.config import SamplingConfig, SoundTokenizerConfig
from worldvq.models.loading import load_checked, read_description, sound_tokenizer_size
from worldvq.models.sampling import draw_next, draw_noise
from worldvq.models.sound import SoundTokenizer
from worldvq.nn.devices import resolve_device
from worldvq.nn.mulaw import compress, expand
from worldvq.nn.noise import stream_keys
from worldvq.types import as_tensor, samples_from_model, samples_to_model

FORMAT_VERSION = 1
CODEC_FILE = "sound.json"
"""What a folder has that holds a codec of sound."""
WEIGHTS = "sound.safetensors"
AT_ONCE = 256
"""Rows that are encoded at a time."""
PART = 1024
"""Samples whose noise is drawn at a time: a megabyte of it a row."""


class SoundCodec:
    """Sound to tokens and back.

    Attributes:
        tokenizer: The VQ-VAE.
        rate: Samples a second.
        speakers: Names, by number.
        meta: JSON values that say what it was trained on.
        device: Where it runs. Tensors that go in may be anywhere; what comes out is on the CPU.
    """

    def __init__(self, tokenizer: SoundTokenizer, rate: int, speakers: Sequence[str], meta: dict[str, Any]):
        self.tokenizer, self.rate, self.speakers, self.meta = tokenizer.eval(), rate, list(speakers), meta
        self.device = tokenizer.speaker.weight.device

    @property
    def hop(self) -> int:
        """Samples that a token stands for."""
        return self.tokenizer.config.hop

    def speaker(self, name: str) -> int:
        """Return the number of a speaker.

        Raises:
            UsageError: There is none of this name.
        """
        if name not in self.speakers:
            raise UsageError(
                f"no speaker '{name}'{did_you_mean(name, self.speakers)}: {', '.join(self.speakers) or 'none'}"
            )
        return self.speakers.index(name)

    @torch.no_grad()
    def encode(self, samples: ArrayLike | Tensor) -> Tensor:
        """Return the tokens (B, n) int64 of sounds (B, N) int16; the last token may stand for less than a hop."""
        waveform = samples_to_model(as_tensor(samples))
        waveform = torch.nn.functional.pad(waveform, (0, -waveform.shape[1] % self.hop))
        parts = [self.tokenizer.encode(part.to(self.device)).cpu() for part in waveform.split(AT_ONCE)]
        return torch.cat(parts)

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        speakers: ArrayLike | Tensor,
        seed: int = 0,
        row_seeds: ArrayLike | None = None,
        known: ArrayLike | Tensor | None = None,
        **sampling: Any,
    ) -> np.ndarray:
        """Draw sounds (B, n * hop) int16 of tokens (B, n), said by speakers (B,), one sample after the other.

        Args:
            tokens: Rows of tokens; many rows take little longer than one.
            speakers: Numbers of speakers.
            seed: Same seed, same sounds; a row depends on its tokens, its speaker, its own seed and the seed alone.
            row_seeds: (B,) int64; 0 … B - 1 where they are left out.
            known: (B, m) int16, the first samples, which stay as they are: what is drawn goes on from them.
            **sampling: Fields of :class:`~worldvq.models.config.SamplingConfig`.
        """
        config = build(SamplingConfig, sampling, "sampling")
        rows = np.arange(len(tokens)) if row_seeds is None else np.asarray(row_seeds)
        cache = self.tokenizer.start(tokens.to(self.device), as_tensor(speakers).to(self.device))
        classes = torch.zeros(len(tokens), tokens.shape[1] * self.hop, dtype=torch.int64, device=self.device)
        begun = torch.zeros(len(tokens), 0, dtype=torch.int16) if known is None else as_tensor(known).cpu()
        start = begun.shape[1]
        if start:
            classes[:, :start] = compress(samples_to_model(begun.to(self.device)))
            cache.logits(classes, 0, start)
        for first in range(start, classes.shape[1], PART):
            count = min(PART, classes.shape[1] - first)
            keys = stream_keys(seed, rows, np.full_like(rows, (first - start) // PART))
            draw_next(cache, classes, first, draw_noise(self.tokenizer.decoder, keys, config, count), count, config)
        return np.concatenate([begun.numpy(), samples_from_model(expand(classes[:, start:])).cpu().numpy()], axis=1)

    def save(self, folder: Path) -> None:
        """Write the codec; a half-written one is none, and where the disk is full an older one stays."""
        write_together(self.files(folder))

    def files(self, folder: Path) -> dict[Path, bytes]:
        """Return what :meth:`load` reads in a folder."""
        description = {
            "format_version": FORMAT_VERSION,
            "sound": self.tokenizer.config.model_dump(mode="json"),
            "sound_hash": hash_module(self.tokenizer),
            "rate": self.rate,
            "speakers": self.speakers,
            "meta": self.meta,
        }
        return {folder / WEIGHTS: module_bytes(self.tokenizer), folder / CODEC_FILE: seal(description)}

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> SoundCodec:
        """Load what ``worldvq train sound`` or :meth:`save` left.

        Raises:
            UsageError: There is none here, or one of another format.
            CorruptFileError: A file is damaged.
        """
        folder = Path(folder)
        path, weights = folder / CODEC_FILE, folder / WEIGHTS
        missing = f"no trained codec of sound in {folder}: make one with `worldvq train sound --out {folder}`"
        data = read_description(path, (FORMAT_VERSION,), missing, "codec")
        where = resolve_device(device)
        try:
            config, meta = build(SoundTokenizerConfig, data["sound"], str(path)), dict(data["meta"])
            rate, speakers, expected = int(data["rate"]), [str(name) for name in data["speakers"]], data["sound_hash"]
            if rate < 1 or not speakers:
                raise ValueError(f"rate {rate}, {len(speakers)} speakers")
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(f"{path} is damaged: {error}") from None
        size = sound_tokenizer_size(config, len(speakers))
        tokenizer = load_checked(weights, size, lambda: SoundTokenizer(config, len(speakers), rate))
        require_hash(tokenizer, expected, weights, path)
        return cls(tokenizer.to(where), rate, speakers, meta)
