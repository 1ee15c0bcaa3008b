"""The prior over the codes of a sound: a WaveNet that is told who speaks, and draws rows of codes of any length."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from worldvq.models.config import SamplingConfig, WaveNetConfig
from worldvq.models.priors.wavenet import WaveNet
from worldvq.models.sampling import draw_noise, sequential
from worldvq.nn.initialize import start_like_codes
from worldvq.nn.noise import stream_keys


class SoundPrior(nn.Module):
    """A WaveNet over codes (B, n); its context is a vector of the speaker, the same at every place."""

    def __init__(self, config: WaveNetConfig, num_codes: int, num_speakers: int):
        super().__init__()
        self.config, self.num_codes = config, num_codes
        self.speaker = nn.Embedding(num_speakers, config.width)
        self.prior = WaveNet(config, (1, 1), num_codes, context_dim=config.width)

    def initialize_embeddings(self, codebook: Tensor) -> None:
        """Start token embeddings as random projections of the codes (K, D), so that like codes start alike."""
        start_like_codes(self.prior.embed.weight, codebook)

    def _context(self, speakers: Tensor, length: int) -> Tensor:
        return self.speaker(speakers)[:, None, None].expand(-1, 1, length, -1)

    def forward(self, tokens: Tensor, speakers: Tensor) -> Tensor:
        """Return logits (B, n, K) of tokens (B, n) of speakers (B,) int64; none sees its own token or a later one."""
        return self.prior(tokens[:, None], self._context(speakers, tokens.shape[1]))[:, 0]

    @torch.no_grad()
    def draw(self, speakers: Tensor, length: int, seed: int, row_seeds: np.ndarray, sampling: SamplingConfig) -> Tensor:
        """Draw tokens (B, length): a row is a function of its speaker, the seed and its own seed alone.

        Args:
            speakers: (B,) int64.
            length: Tokens of each row.
            seed: Same seed, same rows.
            row_seeds: (B,) int64.
            sampling: Temperature and truncation.
        """
        keys = stream_keys(seed, row_seeds, np.zeros_like(row_seeds))
        cache = self.prior.start(len(speakers), self._context(speakers, length))
        return sequential(
            cache, (len(speakers), 1, length), draw_noise(self.prior, keys, sampling, length), sampling
        ).tokens[:, 0]
