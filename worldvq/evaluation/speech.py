"""What speech that was coded is worth: how far spectra are, who is heard, and which phonemes codes stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldvq.nn.codebook import k_means, nearest_code
from worldvq.nn.spectrograms import log_mel, mfcc_of_tokens
from worldvq.types import samples_to_model

QUIET = 50
"""Decibels below a sound's loudest frame under which a frame says nothing of who speaks."""
ITERATIONS = 25
"""Of k-means."""
MOST_ROWS = 100_000
"""Frames, at random, that k-means is given."""


def log_mel_distance(samples: np.ndarray, others: np.ndarray, rate: int) -> np.ndarray:
    """Return how far sounds (B, N) int16 are apart, (B,): the mean absolute difference of log-mel spectra in dB."""
    mel, other = (log_mel(_waveform(one), rate) for one in (samples, others))
    return (mel - other).abs().mean((1, 2)).numpy()


class SpeakerClassifier:
    """Says who speaks: a linear model of mean and deviation of a sound's log-mel spectrum, loudness taken out."""

    def __init__(self, samples: np.ndarray, speakers: np.ndarray, rate: int, num_speakers: int):
        """Fit it to real sounds.

        Args:
            samples: (M, N) int16.
            speakers: (M,) int64.
            rate: Samples a second.
            num_speakers: How many there are.
        """
        self.rate = rate
        features = self._features(samples)
        self.mean, self.deviation = features.mean(0), features.std(0).clamp_min(1e-3)
        self.weight = torch.zeros(features.shape[1] + 1, num_speakers, requires_grad=True)
        inputs, target = self._inputs(features), torch.from_numpy(np.asarray(speakers, np.int64))
        optimizer = torch.optim.LBFGS([self.weight], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(inputs @ self.weight, target) + 1e-3 * self.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[arg-type]
        self.weight = self.weight.detach()

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Return who is heard in sounds (M, N) int16, (M,) int64."""
        return (self._inputs(self._features(samples)) @ self.weight).argmax(1).numpy()

    def _features(self, samples: np.ndarray) -> Tensor:
        """(M, 2 * bands) of sounds (M, N); frames that are nearly silent do not count."""
        rows = []
        for part in _waveform(samples).split(64):
            mel = log_mel(part, self.rate)  # (M, frames, bands)
            level = mel.amax(2, keepdim=True)
            loud = (level > level.amax(1, keepdim=True) - QUIET).float()
            shape, share = mel - mel.mean(2, keepdim=True), loud / loud.sum(1, keepdim=True)
            mean = (shape * share).sum(1)
            variance = ((shape - mean[:, None]).square() * share).sum(1)
            rows.append(torch.cat([mean, variance.sqrt()], 1))
        return torch.cat(rows)

    def _inputs(self, features: Tensor) -> Tensor:
        scaled = (features - self.mean) / self.deviation
        return torch.cat([scaled, torch.ones(len(scaled), 1)], 1)


def phones_of_tokens(segments: Sequence[tuple[str, int]], num_tokens: int, hop: int) -> list[str]:
    """Return the phone that is spoken in the middle of each token; ``segments`` are phones and where they end."""
    ends = np.array([end for _, end in segments])
    middle = np.arange(num_tokens) * hop + hop // 2
    where = np.searchsorted(ends, middle, side="right").clip(max=len(ends) - 1)
    return [segments[place][0] for place in where]


def majority_accuracy(
    codes: np.ndarray, phones: np.ndarray, other_codes: np.ndarray, other_phones: np.ndarray, num_codes: int
) -> float:
    """Name every code by the phone that it most often stood for, and return how often that is right of others.

    Args:
        codes: (N,) int64.
        phones: (N,) int64, what was spoken.
        other_codes: (M,) on which it is measured.
        other_phones: (M,).
        num_codes: Size of the vocabulary; a code that was not seen is named as the most frequent phone.
    """
    num_phones = int(max(phones.max(), other_phones.max())) + 1
    counts = np.zeros((num_codes, num_phones), np.int64)
    np.add.at(counts, (codes, phones), 1)
    names = np.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())
    return float((names[other_codes] == other_phones).mean())


class Clusters:
    """K-means of MFCCs: what codes of speech are compared with, which nobody trained to draw sound."""

    def __init__(self, sounds: Sequence[np.ndarray], rate: int, hop: int, num_clusters: int, seed: int = 0):
        """Fit it to frames of sounds, one a token: the coefficients, each brought to a deviation of 1.

        Args:
            sounds: Each (N,) int16.
            rate: Samples a second.
            hop: Samples that a token stands for.
            num_clusters: As many as there are codes.
            seed: Of which frames are looked at, and where the means start.
        """
        self.rate, self.hop = rate, hop
        rows = torch.cat([self._rows(sound) for sound in sounds])
        self.mean, self.deviation = rows.mean(0), rows.std(0).clamp_min(1e-3)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:MOST_ROWS]
        rows = (rows[order] - self.mean) / self.deviation
        self.means = k_means(rows, rows[:num_clusters].clone(), ITERATIONS, unit=False)

    def __call__(self, sound: np.ndarray) -> np.ndarray:
        """Return the cluster (n,) int64 of each token of a sound (N,)."""
        return nearest_code((self._rows(sound) - self.mean) / self.deviation, self.means).numpy()

    def _rows(self, sound: np.ndarray) -> Tensor:
        """MFCCs (n, 13) around the middle of each token."""
        return mfcc_of_tokens(_waveform(sound)[None], self.rate, self.hop)[0]


def _waveform(samples: np.ndarray) -> Tensor:
    return samples_to_model(torch.from_numpy(np.array(samples)))
