"""Quantizers: encoder outputs become codes of a codebook. One contract, three ways to get the codes."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldvq.nn.codebook import (
    count_and_sum,
    draw_rows,
    full_precision,
    k_means,
    nearest_code,
    rotation,
    straight_through,
)
from worldvq.nn.config import QuantizerConfig

KMEANS_ITERATIONS = 10


class Quantized(NamedTuple):
    """What a quantizer returns.

    Attributes:
        z_q: (B, D, h, w) float32 codes, with a gradient for ``z_e``.
        tokens: (B, h, w) int64 indices of the codes.
        loss: Scalar to be added to the reconstruction error; its weights are in it.
    """

    z_q: Tensor
    tokens: Tensor
    loss: Tensor


class Quantizer(nn.Module, ABC):
    """The contract: a codebook (num_codes, code_dim), and the way to it and back.

    Whatever the precision of the model around it, a quantizer computes in float32.
    """

    codebook: Tensor

    @abstractmethod
    def nearest(self, z_e: Tensor) -> Tensor:
        """Return the tokens (...) int64 of encoder outputs (..., D)."""

    def lookup(self, tokens: Tensor) -> Tensor:
        """Return the codes (B, D, h, w) of tokens (B, h, w)."""
        return F.embedding(tokens, self.codebook).permute(0, 3, 1, 2)

    @abstractmethod
    def forward(self, z_e: Tensor) -> Quantized:
        """Quantize encoder outputs (B, D, h, w); in training mode, a learned codebook may move."""


Pass = tuple[Tensor, Tensor]
"""Rows (N, D) that a quantizer was given in a forward pass, and their tokens (N,)."""


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """Return the quantizer of a config."""
    kinds = {"ema": EMAQuantizer, "sgd": SGDQuantizer, "fsq": FiniteScalarQuantizer}
    return kinds[config.kind](config)


class VectorQuantizer(Quantizer):
    """The nearest of learned codes (van den Oord et al. 2017, eq. 1-3); how they are learned is up to subclasses.

    All state is float32, in buffers or parameters that are updated in place, so a checkpoint holds everything and
    every process of a distributed run holds the same: statistics are summed over processes before use.

    With ``cosine`` encoder outputs and codes have unit length, so that the nearest code is the one at the smallest
    angle (Yu et al. 2022, section 3.1).
    """

    unused_steps: Tensor
    initialized: Tensor

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.config = config
        self.register_buffer("unused_steps", torch.zeros(config.num_codes, dtype=torch.int64))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self._passes: list[Pass] | None = None
        self._seen_initialized = False  # spares a look at the device every step; the buffer is what counts

    def _unit(self, x: Tensor) -> Tensor:
        """Vectors (..., D) at unit length where angles decide, else as they are."""
        return F.normalize(x, dim=-1) if self.config.cosine else x

    def _random_codes(self) -> Tensor:
        """Codes (K, D) before the first batch."""
        return self._unit(torch.randn(self.config.num_codes, self.config.code_dim) / self.config.code_dim**0.5)

    def _nearest(self, z: Tensor) -> Tensor:
        return nearest_code(z.reshape(-1, z.shape[-1]), self.codebook.detach()).view(z.shape[:-1])

    def nearest(self, z_e: Tensor) -> Tensor:
        """Return the index of the nearest code (eq. 1).

        Args:
            z_e: (..., D).

        Returns:
            (...) int64; of equally near codes, the first.
        """
        with full_precision(z_e):
            return self._nearest(self._unit(z_e.detach().float()))

    def forward(self, z_e: Tensor) -> Quantized:
        """Quantize encoder outputs (B, D, h, w); in training mode, also start, move and revive codes.

        Within :func:`as_one_pass` that is left to its end.
        """
        with full_precision(z_e):
            z = self._unit(z_e.float().permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, D, h, w)
            last = z.detach().permute(0, 2, 3, 1)  # (B, h, w, D)
            rows = last.reshape(-1, last.shape[-1])  # (N, D)
            at_once = self.training and self._passes is None
            # Drawn every step, needed or not: no process then waits to learn whether they are.
            drawn = draw_rows([rows], self.config.num_codes) if at_once else None  # (K, D), ()
            if drawn is not None:
                self._initialize(rows, *drawn)
            tokens = self._nearest(last)  # (B, h, w)
            z_q = self.lookup(tokens)  # (B, D, h, w); codes before this step's update, as in the paper
            loss = self._loss(z, z_q)
            passed = (rotation if self.config.gradient == "rotation" else straight_through)(z, z_q.detach())
            if drawn is not None:
                self._learn(rows, tokens.reshape(-1), *drawn)
            elif self.training and self._passes is not None:
                self._passes.append((rows, tokens.reshape(-1)))
            return Quantized(passed, tokens, loss)

    def initialize(self, passes: Sequence[Pass]) -> None:
        """Start the codes from what all processes saw in these passes, unless they were started before."""
        rows = [rows for rows, _ in passes]
        with full_precision(rows[0]):
            self._initialize(torch.cat(rows), *draw_rows(rows, self.config.num_codes))

    def learn(self, passes: Sequence[Pass]) -> None:
        """Move and revive codes by what all processes saw in these passes, as if it had been one pass of one process.

        Up to the rounding of sums: wherever a row was seen, it counts the same.
        """
        rows, tokens = ([*column] for column in zip(*passes, strict=True))
        with full_precision(rows[0]):
            self._learn(torch.cat(rows), torch.cat(tokens), *draw_rows(rows, self.config.num_codes))

    @torch.no_grad()
    def _initialize(self, rows: Tensor, fresh: Tensor, finite: Tensor) -> None:
        """Start from encoder outputs of the first batch, or their k-means: random codes would mostly stay unused.

        Like ``_learn``, does nothing for a batch that is not all ``finite`` (() bool); nobody waits to learn of it.
        """
        if self.config.initialize == "kmeans" and not self._seen_initialized:
            self._seen_initialized = bool(self.initialized)
            if not self._seen_initialized:
                fresh = k_means(rows, fresh, KMEANS_ITERATIONS, self.config.cosine)
        self._replace((~self.initialized & finite).expand(len(fresh)), fresh)
        self.initialized.logical_or_(finite)

    def _revive(self, count: Tensor, fresh: Tensor, finite: Tensor) -> None:
        """Replace codes that nothing was nearest to for ``revive_after`` steps; ``count`` (K,) is this step's use."""
        unused = torch.where(count > 0, 0, self.unused_steps + 1)  # (K,)
        dead = unused >= self.config.revive_after  # (K,)
        self._replace(dead & finite, fresh)
        self.unused_steps.copy_(torch.where(finite, unused.masked_fill(dead, 0), self.unused_steps))

    @abstractmethod
    def _replace(self, which: Tensor, codes: Tensor) -> None:
        """Put codes (K, D) where ``which`` (K,) is true."""

    @abstractmethod
    def _loss(self, z: Tensor, z_q: Tensor) -> Tensor:
        """Second and third term of eq. 3, weighted."""

    @abstractmethod
    def _learn(self, rows: Tensor, tokens: Tensor, fresh: Tensor, finite: Tensor) -> None:
        """Update what is not learned by gradients from rows (N, D) and their tokens (N,)."""


@contextlib.contextmanager
def as_one_pass(model: nn.Module, use: Callable[[VectorQuantizer, list[Pass]], None]) -> Iterator[None]:
    """Let the quantizers of a model take all training passes within the block as one, on all processes.

    Codes stay as they are within the block. At its end every quantizer does ``VectorQuantizer.learn`` or
    ``VectorQuantizer.initialize``; if it raises, nothing.
    """
    quantizers = [module for module in model.modules() if isinstance(module, VectorQuantizer)]
    for quantizer in quantizers:
        quantizer._passes = []
    try:
        yield
        for quantizer in quantizers:
            if quantizer._passes:
                use(quantizer, quantizer._passes)
    finally:
        for quantizer in quantizers:
            quantizer._passes = None


class EMAQuantizer(VectorQuantizer):
    """Codes that follow the encoder by exponential moving averages (van den Oord et al. 2017, appendix A.1)."""

    ema_count: Tensor
    ema_sum: Tensor

    def __init__(self, config: QuantizerConfig):
        super().__init__(config)
        self.register_buffer("codebook", self._random_codes())
        self.register_buffer("ema_count", torch.zeros(config.num_codes))
        self.register_buffer("ema_sum", torch.zeros(config.num_codes, config.code_dim))

    def _loss(self, z: Tensor, z_q: Tensor) -> Tensor:
        return self.config.commitment_cost * F.mse_loss(z, z_q)

    def _replace(self, which: Tensor, codes: Tensor) -> None:
        weight = torch.where(self.initialized, self.ema_count.mean(), 1.0)
        self.codebook.copy_(torch.where(which[:, None], codes, self.codebook))
        self.ema_sum.copy_(torch.where(which[:, None], codes * weight, self.ema_sum))
        self.ema_count.copy_(torch.where(which, weight, self.ema_count))

    @torch.no_grad()
    def _learn(self, rows: Tensor, tokens: Tensor, fresh: Tensor, finite: Tensor) -> None:
        """N <- gamma N + (1 - gamma) n, m <- gamma m + (1 - gamma) sum z, e = m / N."""
        count, total = count_and_sum(rows, tokens, self.config.num_codes)
        finite = finite & total.isfinite().all()
        self.ema_count.lerp_(torch.where(finite, count, self.ema_count), 1 - self.config.decay)
        self.ema_sum.lerp_(torch.where(finite, total, self.ema_sum), 1 - self.config.decay)
        # Laplace smoothing keeps a code that is rarely used where it is instead of dividing by nearly nothing.
        weight = self.ema_count.sum()
        smoothed = (self.ema_count + 1e-5) / (weight + self.config.num_codes * 1e-5) * weight
        moved = self._unit(self.ema_sum / smoothed.clamp_min(1e-8)[:, None])
        self.codebook.copy_(torch.where(finite, moved, self.codebook))
        self._revive(count, fresh, finite)


class SGDQuantizer(VectorQuantizer):
    """Codes learned by the gradient of the codebook loss (van den Oord et al. 2017, eq. 3).

    They are the weight of an ``nn.Embedding``, which optimizers spare from weight decay. The optimizer keeps its
    moments of a code that is revived: without a gradient for ``revive_after`` steps, little is left of them.
    """

    def __init__(self, config: QuantizerConfig):
        super().__init__(config)
        self.table = nn.Embedding.from_pretrained(self._random_codes(), freeze=False)

    @property
    def codebook(self) -> Tensor:  # type: ignore[override]
        """The codes (K, D), of unit length where angles decide: the optimizer's steps leave the sphere."""
        return self._unit(self.table.weight)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Return the codes (B, D, h, w) of tokens (B, h, w)."""
        # Not by way of `codebook`: its backward pass would need the table as it was, and _replace writes into it.
        return self._unit(self.table(tokens)).permute(0, 3, 1, 2)

    def _loss(self, z: Tensor, z_q: Tensor) -> Tensor:
        return F.mse_loss(z_q, z.detach()) + self.config.commitment_cost * F.mse_loss(z, z_q.detach())

    def _replace(self, which: Tensor, codes: Tensor) -> None:
        self.table.weight.copy_(torch.where(which[:, None], codes, self.table.weight))

    @torch.no_grad()
    def _learn(self, rows: Tensor, tokens: Tensor, fresh: Tensor, finite: Tensor) -> None:
        self._revive(count_and_sum(rows, tokens, self.config.num_codes)[0], fresh, finite)


class FiniteScalarQuantizer(Quantizer):
    """Each dimension is bounded and rounded to one of a few levels (Mentzer et al. 2023); nothing is learned.

    Codes lie in [-1, 1]: level l of L, counted from 0, at (l - L // 2) / (L // 2). The first dimension counts fastest.
    """

    codebook: Tensor
    half_width: Tensor
    basis: Tensor
    amplitude: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.config = config
        levels = torch.tensor(config.levels)  # (D,)
        half_width = levels // 2
        basis = torch.cumprod(torch.cat([torch.ones_like(levels[:1]), levels[:-1]]), 0)
        digits = torch.arange(config.num_codes)[:, None] // basis % levels  # (K, D)
        amplitude = (levels - 1) * (1 + 1e-3) / 2  # a little more than the outermost level, so that tanh reaches it
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)  # an even number of levels is not symmetric around one
        buffers = {
            "codebook": (digits - half_width) / half_width,
            "half_width": half_width,
            "basis": basis,
            "amplitude": amplitude,
            "offset": offset,
            "shift": torch.atanh(offset / amplitude),  # so that 0 goes to the middle of a level
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)  # the config says it all

    def _bound(self, z: Tensor) -> Tensor:
        """Squash (..., D) to where every level is one apart and rounding finds it (section 3.1 and appendix A.1)."""
        return torch.tanh(z + self.shift) * self.amplitude - self.offset

    def _tokens(self, bounded: Tensor) -> Tensor:
        # What is not a number gets some token, as from the other quantizers: the loss then says what is wrong.
        return ((bounded.nan_to_num().round().long() + self.half_width) * self.basis).sum(-1)

    def nearest(self, z_e: Tensor) -> Tensor:
        """Return the tokens (...) int64 of encoder outputs (..., D)."""
        with full_precision(z_e):
            return self._tokens(self._bound(z_e.detach().float()))

    def forward(self, z_e: Tensor) -> Quantized:
        """Quantize encoder outputs (B, D, h, w); rounding passes gradients straight through, and there is no loss."""
        with full_precision(z_e):
            bounded = self._bound(z_e.float().permute(0, 2, 3, 1))  # (B, h, w, D)
            tokens = self._tokens(bounded.detach())  # (B, h, w)
            scaled = (bounded / self.half_width).permute(0, 3, 1, 2)  # (B, D, h, w)
            z_q = self.lookup(tokens) + (scaled - scaled.detach())
            return Quantized(z_q, tokens, z_q.new_zeros(()))
