"""Symmetric logarithm (Hafner et al. 2023, Mastering Diverse Domains through World Models, eq. 9)."""

from __future__ import annotations

from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|) (Hafner et al. 2023, eq. 9): rewards of any scale, near-identity for small ones."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()
