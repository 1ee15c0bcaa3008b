"""The image prior of the VQ-VAE paper: an autoregressive model over the tokens of single frames, given their class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldvq.models.config import ImagePriorConfig
from worldvq.models.priors import make_prior
from worldvq.nn.initialize import start_as_embeddings, start_like_codes


class ImagePrediction(NamedTuple):
    """What a teacher-forced pass over single frames says.

    Attributes:
        logits: (B, h, w, K) of every token, given those before it.
        forecast: (B, h, w, K) of every token alone, given its place and the class.
    """

    logits: Tensor
    forecast: Tensor


class ImagePrior(nn.Module):
    """A prior over single token grids. Where there are several classes, the class is its context at every position.

    Attributes:
        num_classes: 1 is one that knows of no classes.
        prior: What draws the tokens.
    """

    def __init__(self, config: ImagePriorConfig, grid: tuple[int, int], num_codes: int, num_classes: int = 1):
        super().__init__()
        self.config = config
        self.grid = grid
        self.num_codes = num_codes
        self.num_classes = num_classes
        several = num_classes > 1
        self.embed_class = nn.Embedding(num_classes, config.width) if several else None
        self.prior = make_prior(config, grid, num_codes, context_dim=config.width if several else 0)
        self.place = nn.Parameter(0.02 * torch.randn(*grid, config.width))
        self.forecast_head = nn.Linear(config.width, num_codes)
        start_as_embeddings(self)

    def initialize_embeddings(self, codebook: Tensor) -> None:
        """Start token embeddings as random projections of the codes (K, D), so that like codes start alike."""
        start_like_codes(self.prior.embed.weight, codebook)

    def context(self, labels: Tensor) -> Tensor | None:
        """Return what the prior is told of classes (B,) int64: (B, h, w, D), the same at every place; None for one."""
        if self.embed_class is None:
            return None
        return self.embed_class(labels)[:, None, None].expand(-1, *self.grid, -1)

    def forecast(self, labels: Tensor) -> Tensor:
        """Return the logits (B, h, w, K) of every token alone, given its place and the class (B,) int64."""
        context = self.context(labels)
        place = self.place.expand(len(labels), -1, -1, -1)
        return self.forecast_head(place if context is None else place + context)

    def forward(self, tokens: Tensor, labels: Tensor) -> ImagePrediction:
        """Predict every token of whole frames in parallel, teacher-forced.

        Args:
            tokens: (B, h, w) int64.
            labels: (B,) int64, numbers of classes; not looked at where there is one.
        """
        return ImagePrediction(self.prior(tokens, self.context(labels)), self.forecast(labels))
