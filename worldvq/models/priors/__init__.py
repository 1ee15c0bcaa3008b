"""Autoregressive models over a token grid: the contract, and one file a prior."""

from __future__ import annotations

from worldvq.models.config import PriorConfig
from worldvq.models.priors.contract import Prior
from worldvq.models.priors.pixelcnn import PixelCNN
from worldvq.models.priors.transformer import TransformerPrior


def make_prior(config: PriorConfig, grid: tuple[int, int], num_codes: int, context_dim: int = 0) -> Prior:
    """Return the prior of a config, with random weights."""
    kinds: dict[str, type[Prior]] = {"transformer": TransformerPrior, "pixelcnn": PixelCNN}
    return kinds[config.kind](config, grid, num_codes, context_dim)  # type: ignore[call-arg]
