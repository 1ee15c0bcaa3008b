"""Tokenizers small enough to train in a test."""

from __future__ import annotations

from typing import Any

import torch

from worldvq.models.config import TokenizerConfig
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig


def tokenizer_config(quantizer: QuantizerConfig | None = None, **changes: Any) -> TokenizerConfig:
    """Frames of 16x16, grids of 4x4, one block a half."""
    sizes = {"frame_size": (16, 16), "downsample": 4, "width": 8, "encoder_blocks": 1, "decoder_blocks": 1}
    quantizer = quantizer or QuantizerConfig(kind="ema", num_codes=16, code_dim=4, revive_after=2)
    return TokenizerConfig(**{**sizes, "quantizer": quantizer, **changes})


def make_tokenizer(*arguments: Any, **changes: Any) -> Tokenizer:
    """The same weights at every call; arguments as of :func:`tokenizer_config`."""
    torch.manual_seed(1)
    return Tokenizer(tokenizer_config(*arguments, **changes))
