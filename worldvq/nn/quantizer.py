"""Vector quantization with an EMA codebook (van den Oord et al. 2017, eq. 1-3 and appendix A.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from worldvq.config import QuantizerConfig


class Quantized(NamedTuple):
    """What a quantizer returns.

    Attributes:
        z_q: (B, D, h, w) the nearest codes; gradients pass straight through to ``z_e`` (eq. 2 and section 3.2).
        tokens: (B, h, w) int64 indices of the nearest codes.
        commitment_loss: Scalar, mean squared distance of ``z_e`` to its fixed code: third term of eq. 3, without beta.
    """

    z_q: Tensor
    tokens: Tensor
    commitment_loss: Tensor


def _sum_over_processes(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


class VectorQuantizer(nn.Module):
    """Nearest-code quantizer whose codebook follows the encoder by exponential moving averages.

    All state lives in fp32 buffers that are updated in place, so a checkpoint holds everything and every
    process of a distributed run holds the same: the statistics are summed over processes before use.
    """

    codebook: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    unused_steps: Tensor
    initialized: Tensor

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.config = config
        size, dim = config.num_codes, config.code_dim
        self.register_buffer("codebook", torch.randn(size, dim) / dim**0.5)
        self.register_buffer("ema_count", torch.zeros(size))
        self.register_buffer("ema_sum", torch.zeros(size, dim))
        self.register_buffer("unused_steps", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    def nearest(self, z_e: Tensor) -> Tensor:
        """Return the index of the nearest code (eq. 1).

        Args:
            z_e: (..., D).

        Returns:
            (...) int64; of equally near codes, the first.
        """
        flat = z_e.float().reshape(-1, z_e.shape[-1])  # (N, D)
        # |z - e|^2 without |z|^2, which is the same for every code.
        distance = torch.addmm(self.codebook.square().sum(1), flat, self.codebook.T, alpha=-2.0)  # (N, K)
        return distance.argmin(1).view(z_e.shape[:-1])

    def lookup(self, tokens: Tensor) -> Tensor:
        """Return the codes (B, D, h, w) of tokens (B, h, w)."""
        return F.embedding(tokens, self.codebook).permute(0, 3, 1, 2)

    def forward(self, z_e: Tensor) -> Quantized:
        """Quantize encoder outputs (B, D, h, w); in training mode, also move the codebook."""
        z = z_e.permute(0, 2, 3, 1)  # (B, h, w, D)
        flat = z.detach().float().reshape(-1, z.shape[-1])  # (N, D)
        fresh = self._candidates(flat) if self.training else None
        if fresh is not None:
            self._initialize(fresh)
        tokens = self.nearest(z.detach())  # (B, h, w)
        z_q = self.lookup(tokens)  # (B, D, h, w); codes before this step's update, as in the paper
        commitment = F.mse_loss(z_e.float(), z_q)
        straight_through = z_e + (z_q - z_e).detach()
        if fresh is not None:
            self._update(flat, tokens.reshape(-1), fresh)
        return Quantized(straight_through, tokens, commitment)

    @torch.no_grad()
    def _candidates(self, flat: Tensor) -> Tensor:
        """Draw K encoder outputs (K, D) of the global batch, the same on every process.

        Drawn every step, needed or not: no process then waits to learn whether one is. Relies on equal seeds of
        torch's CPU generator on all processes, and on equal shares of the batch in order of rank.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        picks = torch.randint(len(flat) * world, (self.config.num_codes,)).to(flat.device) - rank * len(flat)
        mine = (picks >= 0) & (picks < len(flat))
        return _sum_over_processes(flat[picks.clamp(0, len(flat) - 1)] * mine[:, None])

    @torch.no_grad()
    def _initialize(self, fresh: Tensor) -> None:
        """Start from encoder outputs of the first batch: of random codes most would never be nearest."""
        for buffer, value in (
            (self.codebook, fresh),
            (self.ema_sum, fresh),
            (self.ema_count, torch.ones_like(self.ema_count)),
        ):
            buffer.copy_(torch.where(self.initialized, buffer, value))
        self.initialized.fill_(True)

    @torch.no_grad()
    def _update(self, flat: Tensor, tokens: Tensor, fresh: Tensor) -> None:
        """Appendix A.1: N <- gamma N + (1 - gamma) n, m <- gamma m + (1 - gamma) sum z, e = m / N."""
        size, dim = self.codebook.shape
        count = torch.zeros(size, device=flat.device).index_add_(0, tokens, torch.ones_like(flat[:, 0]))
        total = torch.zeros(size, dim, device=flat.device).index_add_(0, tokens, flat)
        both = _sum_over_processes(torch.cat([count[:, None], total], dim=1))
        count, total = both[:, 0], both[:, 1:]
        self.ema_count.lerp_(count, 1 - self.config.decay)
        self.ema_sum.lerp_(total, 1 - self.config.decay)
        # Laplace smoothing keeps a code that is rarely used where it is instead of dividing by nearly nothing.
        weight = self.ema_count.sum()
        smoothed = (self.ema_count + 1e-5) / (weight + size * 1e-5) * weight
        self.codebook.copy_(self.ema_sum / smoothed.clamp_min(1e-8)[:, None])
        self.unused_steps.add_(1).masked_fill_(count > 0, 0)
        dead = self.unused_steps >= self.config.revive_after  # (K,)
        one = self.ema_count.mean()
        self.codebook.copy_(torch.where(dead[:, None], fresh, self.codebook))
        self.ema_sum.copy_(torch.where(dead[:, None], fresh * one, self.ema_sum))
        self.ema_count.copy_(torch.where(dead, one, self.ema_count))
        self.unused_steps.masked_fill_(dead, 0)
