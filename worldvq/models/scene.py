"""Scene codes: a second VQ-VAE, from the token grid of a frame to a few global codes and back.

The talk on *Neural Discrete Representation Learning* (van den Oord, Vinyals, Kavukcuoglu 2017) shows what 27 bits bring
back of a frame of DeepMind Lab: 3 codes of 512, a PixelCNN that draws the grid given them, trained jointly. What
keeps the decoder from ignoring the codes: they are discrete and cost the loss nothing, so there is no KL term that a
posterior could collapse to please; codes that die are revived; and a prior of few layers sees few neighbours. A head
that names every token from the codes alone drafts samples. docs/scene.md has what each of these is worth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldvq.models.config import SamplingConfig, SceneConfig
from worldvq.models.priors import make_prior
from worldvq.models.sampling import Drawn, choose, draw_noise, predictive, sequential
from worldvq.nn.conv import ResidualBlock, down, up
from worldvq.nn.initialize import start_like_codes
from worldvq.nn.noise import stream_keys
from worldvq.nn.quantizer import Quantizer, make_quantizer

SMALLEST = 6
"""Side, at most, of the map that codes are read from and written to as a whole: so they can say what stands where."""


class SceneOutput(NamedTuple):
    """What a training pass gives.

    Attributes:
        logits: (B, h, w, K) of every token, given those before it and the codes.
        forecast: (B, h, w, K) of every token, given the codes alone.
        codes: (B, n) int64.
        quantizer_loss: Scalar to be added; its weights are in it.
    """

    logits: Tensor
    forecast: Tensor
    codes: Tensor
    quantizer_loss: Tensor


def resolutions(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of the maps between a token grid and the smallest one; an odd side is padded by one."""
    sizes = [grid]
    while max(sizes[-1]) > SMALLEST:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


class SceneModel(nn.Module):
    """Encoder, a quantizer for each code, decoder to a feature map, and the prior that is given that map.

    With 0 codes the map is learned and the same for all frames: the very same prior without the codes, to compare.
    """

    def __init__(self, config: SceneConfig, grid: tuple[int, int], num_codes: int):
        super().__init__()
        self.config, self.grid, self.num_codes = config, grid, num_codes
        width, count, dim = config.width, config.num_codes_per_frame, config.quantizer.code_dim
        sizes = resolutions(grid)
        self.smallest = sizes[-1]
        cells = self.smallest[0] * self.smallest[1]
        self.quantizers: list[Quantizer] = nn.ModuleList(  # type: ignore[assignment]
            make_quantizer(config.quantizer) for _ in range(count)
        )
        halvings = len(sizes) - 1
        if count:
            self.embed = nn.Embedding(num_codes, width)
            self.encoder = nn.ModuleList(nn.Sequential(down(width, width, 2), *self._blocks()) for _ in range(halvings))
            self.to_codes = nn.Sequential(nn.ReLU(), nn.Linear(cells * width, count * dim))
            self.from_codes = nn.Linear(count * dim, cells * width, bias=False)
        self.start = nn.Parameter(0.02 * torch.randn(width, *self.smallest))
        self.decoder = nn.ModuleList(
            nn.Sequential(*self._blocks(), nn.ReLU(), up(width, width, 2, size=3)) for _ in range(halvings)
        )
        self.prior = make_prior(config.prior, grid, num_codes, context_dim=width)
        self.forecast = nn.Linear(width, num_codes)

    def _blocks(self) -> list[ResidualBlock]:
        return [ResidualBlock(self.config.width) for _ in range(self.config.num_blocks)]

    def initialize_embeddings(self, codebook: Tensor) -> None:
        """Start token embeddings as random projections of their codes (K, D), so that like codes start alike."""
        for embed in [self.prior.embed, *([self.embed] if self.quantizers else [])]:
            start_like_codes(embed.weight, codebook)

    def _features(self, tokens: Tensor) -> Tensor:
        """Encoder outputs (B, n, D) of tokens (B, h, w)."""
        x = self.embed(tokens).permute(0, 3, 1, 2)  # (B, width, h, w)
        for layer in self.encoder:
            x = layer(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))
        return self.to_codes(x.flatten(1)).unflatten(1, (len(self.quantizers), -1))

    def encode(self, tokens: Tensor) -> Tensor:
        """Return the codes (B, n) int64 of tokens (B, h, w)."""
        if not self.quantizers:
            return tokens.new_zeros(len(tokens), 0)
        parts = self._features(tokens).unbind(1)  # n times (B, D)
        return torch.stack([q.nearest(z) for q, z in zip(self.quantizers, parts, strict=True)], 1)

    def _decode(self, z_q: Tensor) -> Tensor:
        """Feature map (B, h, w, width) of the vectors (B, n * D) of the codes."""
        x = self.start.expand(len(z_q), -1, -1, -1)  # (B, width, h', w')
        if self.quantizers:
            x = x + self.from_codes(z_q).unflatten(1, x.shape[1:])
        sizes = resolutions(self.grid)[-2::-1]
        for layer, (height, width) in zip(self.decoder, sizes, strict=True):
            x = layer(x)[:, :, :height, :width]
        return x.permute(0, 2, 3, 1)

    def context(self, codes: Tensor) -> Tensor:
        """Return the feature map (B, h, w, width) of codes (B, n)."""
        vectors = [q.lookup(c[:, None, None]).flatten(1) for q, c in zip(self.quantizers, codes.unbind(1), strict=True)]
        return self._decode(torch.cat([*vectors, self.start.new_zeros(len(codes), 0)], dim=1))

    def forward(self, tokens: Tensor) -> SceneOutput:
        """Encode tokens (B, h, w), and predict each from those before it and the codes; codebooks move in training."""
        parts = self._features(tokens).unbind(1) if self.quantizers else ()
        passed = [q(z[:, :, None, None]) for q, z in zip(self.quantizers, parts, strict=True)]
        zeros = self.start.new_zeros(len(tokens), 0)
        context = self._decode(torch.cat([zeros, *(one.z_q.flatten(1) for one in passed)], 1))
        codes = torch.cat([tokens.new_zeros(len(tokens), 0), *(one.tokens.flatten(1) for one in passed)], 1)
        loss = torch.stack([zeros.sum(), *(one.loss for one in passed)]).sum()
        return SceneOutput(self.prior(tokens, context), self.forecast(F.relu(context)), codes, loss)

    def nats(self, tokens: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return negative log-likelihoods (B, h, w) of tokens given codes (B, n): the prior's, and the head's."""
        context = self.context(codes)
        both = self.prior(tokens, context), self.forecast(F.relu(context))
        prior, forecast = (F.cross_entropy(one.float().movedim(-1, 1), tokens, reduction="none") for one in both)
        return prior, forecast

    @torch.no_grad()
    def draw(self, codes: Tensor, seed: int, sampling: SamplingConfig, row_seeds: np.ndarray | None = None) -> Drawn:
        """Draw grids given codes (B, n): a row is a function of its codes, the seed and its own seed alone.

        Args:
            codes: (B, n) int64.
            seed: Same seed, same grids.
            sampling: With the method ``auto`` all tokens are drawn at once until they agree.
            row_seeds: (B,) int64; 0 … B - 1 where they are left out.
        """
        rows = np.arange(len(codes)) if row_seeds is None else row_seeds
        noise = draw_noise(self.prior, stream_keys(seed, rows, np.zeros_like(rows)), sampling)
        context = self.context(codes)
        cache = self.prior.start(len(codes), context)
        size = (len(codes), *self.grid)
        if sampling.method == "sequential":
            return sequential(cache, size, noise, sampling)
        guess = choose(self.forecast(F.relu(context)).flatten(1, 2), noise, sampling)
        return predictive(cache, guess.view(size), noise, sampling)

    def code_distances(self, codes: Tensor, others: Tensor) -> Tensor:
        """Return how far apart codes (B, n) and others (N, n) lie, (B, N): squared, summed over the codes."""
        distance = self.start.new_zeros(len(codes), len(others))
        for number, quantizer in enumerate(self.quantizers):
            book = quantizer.codebook.detach()
            distance = distance + torch.cdist(book[codes[:, number]], book[others[:, number]]).square()
        return distance


def scene_size(config: SceneConfig, grid: tuple[int, int], num_codes: int) -> int:
    """Return an upper bound of the number of elements of a scene model."""
    width, inner, quantizer = config.width, config.prior.width, config.quantizer
    sizes = resolutions(grid)
    positions, cells = grid[0] * grid[1], sizes[-1][0] * sizes[-1][1]
    level = 40 * width**2 + 5 * width + 2 * config.num_blocks * (10 * width**2 + 2 * width)
    ends = config.num_codes_per_frame * quantizer.code_dim * (2 * cells * width + 1) + cells * width
    codebooks = config.num_codes_per_frame * 4 * quantizer.num_codes * (quantizer.code_dim + 2)
    prior = (2 * num_codes + 3 * positions + width + 20) * inner + 40 * config.prior.num_blocks * inner**2
    return (len(sizes) - 1) * level + ends + codebooks + 2 * num_codes * (width + 1) + prior + positions**2 + 1000


def bits_of(config: SceneConfig) -> float:
    """Return how many bits the codes of a frame take."""
    return config.num_codes_per_frame * float(np.log2(config.quantizer.num_codes))
