"""Linear layers within a network, told apart from those at its ends."""

from __future__ import annotations

from torch import nn


class Matrix(nn.Linear):
    """A linear map from features to features, without a bias: what Muon can train.

    What reads an input or writes an output is a plain ``nn.Linear``.
    """

    def __init__(self, in_width: int, out_width: int):
        super().__init__(in_width, out_width, bias=False)
