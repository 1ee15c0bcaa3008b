"""What the quantizers share: functions of encoder outputs (N, D) and codes (K, D) that know no module.

Sums run over all processes, so every process computes the same codes. Callers keep autocast out
(:func:`full_precision`): in half precision the nearest of many codes is often another one.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def draw_rows(passes: Sequence[Tensor], number: int) -> tuple[Tensor, Tensor]:
    """Draw rows of the global batch with replacement, the same on every process.

    The global batch is what all processes saw in their first pass, in order of rank, then in the second one, and so on.
    Relies on equal seeds of torch's CPU generator, and on as many passes, on all processes.

    Args:
        passes: (N_i, D) rows of this process in each of its passes; passes and processes may differ in N_i.
        number: How many to draw.

    Returns:
        Rows (number, D), and whether the whole global batch is finite (() bool): both equal on all processes.
    """
    places, total = _places(passes)
    picks = random_words(number).to(total.device) % total.clamp_min(1)
    # One row more, at the place -1 that is never drawn: what is not here finds that one, or another row's place.
    rows = F.pad(torch.cat(list(passes)), (0, 0, 0, 1))  # (N + 1, D)
    found = torch.searchsorted(places, picks)
    mine = F.pad(places, (0, 1), value=-1)[found] == picks
    drawn = torch.where(mine[:, None], rows[found], 0.0)
    # One exchange for both: NaN where a row is not finite, else 0, in a row of its own.
    shared = _sum_over_processes(torch.cat([drawn, (rows - rows).sum(0, keepdim=True)]))  # (number + 1, D)
    return shared[:-1], shared[-1].isfinite().all()


def _places(passes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Place (N,) of each row of this process in the global batch, ascending, and the size of that (); both int64."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = passes[0].device
    counts = torch.zeros(len(passes), world, dtype=torch.int64)
    counts[:, rank] = torch.tensor([len(rows) for rows in passes])
    counts = _sum_over_processes(counts.to(device))
    ends = counts.flatten().cumsum(0)
    begins = (ends - counts.flatten()).view_as(counts)[:, rank]  # (passes,)
    places = [begin + torch.arange(len(rows), device=device) for begin, rows in zip(begins, passes, strict=True)]
    return torch.cat(places), ends[-1]


def random_words(number: int) -> Tensor:
    """Random words (number,) int64 below 2^32 of torch's CPU generator.

    They are what ``torch.randint(n, (number,))`` takes modulo n: for an n that only the device knows, and that nobody
    has to wait for.
    """
    pairs = torch.empty(-(-number // 2), dtype=torch.int64).random_(-(2**63), None).view(torch.int32).view(-1, 2)
    return pairs.flip(1).flatten()[:number].long() & 0xFFFFFFFF


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
    return codes.detach() + (z - z.detach())  # exactly the codes, as `rotation` is


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
