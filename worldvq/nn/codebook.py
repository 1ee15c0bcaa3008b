"""What the quantizers share: functions of encoder outputs (N, D) and codes (K, D) that know no module.

Sums run over all processes, so every process computes the same codes. Callers keep autocast out
(:func:`full_precision`): in half precision the nearest of many codes is often another one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def full_precision(x: Tensor) -> torch.autocast:
    """Return a context that switches autocast off on the device of ``x``."""
    return torch.autocast(x.device.type, enabled=False)


def _sum_over_processes(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def nearest_code(rows: Tensor, codebook: Tensor) -> Tensor:
    """Return the index (N,) int64 of the code (K, D) nearest to each row (N, D); of equally near codes, the first."""
    # |z - e|^2 without |z|^2, which is the same for every code.
    distance = torch.addmm(codebook.square().sum(1), rows, codebook.T, alpha=-2.0)  # (N, K)
    return distance.argmin(1)


def count_and_sum(rows: Tensor, tokens: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many rows of the global batch took each code, and their sum.

    Args:
        rows: (N, D) encoder outputs of this process.
        tokens: (N,) their codes.
        num_codes: K.

    Returns:
        Counts (K,) and sums (K, D), both float32 and equal on all processes.
    """
    count = torch.zeros(num_codes, device=rows.device).index_add_(0, tokens, torch.ones_like(rows[:, 0]))
    total = torch.zeros(num_codes, rows.shape[1], device=rows.device).index_add_(0, tokens, rows)
    both = _sum_over_processes(torch.cat([count[:, None], total], dim=1))
    return both[:, 0], both[:, 1:]


def draw_rows(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Draw rows of the global batch with replacement, the same on every process.

    Relies on equal seeds of torch's CPU generator on all processes, and on equal shares of the batch in order of rank.

    Returns:
        Rows (number, D), and whether the whole global batch is finite (() bool): both equal on all processes.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    picks = torch.randint(len(rows) * world, (number,)).to(rows.device) - rank * len(rows)
    mine = (picks >= 0) & (picks < len(rows))
    drawn = torch.where(mine[:, None], rows[picks.clamp(0, len(rows) - 1)], 0.0)
    # One exchange for both: NaN where a row is not finite, else 0, in a row of its own.
    shared = _sum_over_processes(torch.cat([drawn, (rows - rows).sum(0, keepdim=True)]))  # (number + 1, D)
    return shared[:-1], shared[-1].isfinite().all()


def k_means(rows: Tensor, means: Tensor, iterations: int, unit: bool) -> Tensor:
    """Lloyd's iterations over the global batch; a mean that is nearest to nothing stays where it is.

    Args:
        rows: (N, D) encoder outputs of this process.
        means: (K, D) first means, equal on all processes.
        iterations: How often the means move.
        unit: Rows and means have unit length (spherical k-means).

    Returns:
        (K, D), equal on all processes.
    """
    for _ in range(iterations):
        count, total = count_and_sum(rows, nearest_code(rows, means), len(means))
        moved = total / count.clamp_min(1)[:, None]
        moved = F.normalize(moved, dim=1) if unit else moved
        means = torch.where(count[:, None] > 0, moved, means)
    return means


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """Value of ``codes``; the gradient passes unchanged to ``z`` (van den Oord et al. 2017, section 3.2)."""
    return z + (codes - z).detach()


def rotation(z: Tensor, codes: Tensor) -> Tensor:
    """Value of ``codes``; the gradient passes to ``z`` as if it had been rotated and scaled onto them.

    The rotation trick of Fifty et al. 2024, section 4: q = c R z with c = |q| / |z| and
    R = I - 2 r r' + 2 q' z'^T for unit vectors z', q' and r = (z' + q') / |z' + q'|; c and R are constants.

    Args:
        z: (B, D, ...) encoder outputs.
        codes: (B, D, ...) the codes they took.
    """
    fixed, codes = z.detach(), codes.detach()
    length = fixed.norm(dim=1, keepdim=True).clamp_min(1e-6)  # (B, 1, ...); a zero has no direction to turn from
    code_length = codes.norm(dim=1, keepdim=True)
    z_unit, code_unit = fixed / length, codes / code_length.clamp_min(1e-6)
    r = F.normalize(z_unit + code_unit, dim=1)
    turned = z - 2 * r * (r * z).sum(1, keepdim=True) + 2 * code_unit * (z_unit * z).sum(1, keepdim=True)
    turned = turned * (code_length / length)
    return codes + (turned - turned.detach())  # exactly the codes: rounding must not part training from decoding
