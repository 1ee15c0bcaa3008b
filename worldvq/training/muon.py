"""Muon (Jordan et al. 2024), which orthogonalizes matrices of one shape at once, and shares them over processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial of degree five that is iterated: the steepest at zero that comes near one everywhere."""
EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum (Nesterov's), made orthogonal, and scaled as AdamW's steps are (Liu et al. 2025, eq. 4).

    Its steps are those of ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``. Where there are several processes, all
    must hold the same gradients; each makes a share of the matrices orthogonal and is sent the others.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; all processes together."""
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            if not matrices:
                continue
            gradients = [p.grad for p in matrices]
            for p in matrices:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in matrices]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
            whole = [(u.full_tensor() if hasattr(u, "full_tensor") else u).bfloat16() for u in updates]  # type: ignore[attr-defined]
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            for p, direction in zip(matrices, orthogonalize_shared(whole), strict=True):
                p.add_(_placed_like(direction, p), alpha=-0.2 * group["lr"] * max(p.shape) ** 0.5)


def orthogonalize_shared(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Orthogonalize bfloat16 matrices, which all processes hold; each process does its share and gets the rest."""
    count = dist.get_world_size() if dist.is_initialized() else 1
    shares = _shares([(matrix.shape[0], matrix.shape[1]) for matrix in matrices], count)
    mine = orthogonalize([matrices[index] for index in shares[dist.get_rank() if count > 1 else 0]])
    if count == 1:
        return mine
    lengths = [[matrices[index].numel() for index in share] for share in shares]
    longest = max(sum(length) for length in lengths)
    packed = torch.cat([matrices[0].new_empty(0), *(matrix.flatten() for matrix in mine)])
    packed = F.pad(packed, (0, longest - len(packed)))
    gathered = [torch.empty_like(packed) for _ in shares]
    dist.all_gather(gathered, packed)
    results = list(matrices)
    for share, length, flat in zip(shares, lengths, gathered, strict=True):
        for index, part in zip(share, flat[: sum(length)].split(length), strict=True):
            results[index] = part.view_as(matrices[index])
    return results


def _shares(shapes: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    """Deal out matrices, ascending in each share: the costliest first, each to whom has the least to do so far."""
    costs = [min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in shapes]
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(shapes)), key=lambda index: -costs[index]):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += costs[index]
    return [sorted(share) for share in shares]


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Bring all singular values of bfloat16 matrices near one, by the iteration of Newton and Schulz.

    Those of one shape are done as one batch. On a CPU each comes out as it would alone, to the bit.
    """
    a, b, c = COEFFICIENTS
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    of_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(wide):
        of_shape.setdefault(matrix.shape, []).append(index)
    for indices in of_shape.values():
        x = torch.stack(
            [wide[index] / wide[index].norm().clamp(min=EPSILON) for index in indices]
        )  # (n, rows, columns)
        for _ in range(ITERATIONS):
            gram = x @ x.mT  # (n, rows, rows)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        for index, result in zip(indices, x.unbind(), strict=True):
            wide[index] = result if matrices[index].shape == result.shape else result.T
    return wide


def _placed_like(whole: Tensor, p: Tensor) -> Tensor:
    """The part of a whole matrix that this process holds of p, where that is sharded."""
    if not hasattr(p, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)  # type: ignore[attr-defined]
