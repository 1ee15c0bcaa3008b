"""What a codebook is told."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from worldvq.config.fields import Config, Fraction, NonNegativeFloat, PositiveInt, Size


class QuantizerConfig(Config):
    """The codebook of the VQ-VAE, and how it is learned."""

    kind: Literal["ema", "sgd", "fsq"] = "sgd"
    """``sgd``: codes by gradient (van den Oord et al. 2017, eq. 3); ``ema``: by moving averages (appendix A.1 there);
    ``fsq``: fixed, finite scalar quantization (Mentzer et al. 2023). docs/tokenizers.md compares them."""
    num_codes: Annotated[int, Field(gt=0, le=2**24)] = 512
    """Codes in the codebook: how many values a token has."""
    code_dim: Size = 32
    """Numbers in a code."""
    commitment_cost: NonNegativeFloat = 0.25
    """Weight of the loss that draws encoder outputs to their codes."""
    decay: Fraction = 0.99
    """``ema`` only: how much of a code's moving average is kept at a step."""
    revive_after: PositiveInt = 20
    """A code unused for about this many steps is replaced by an encoder output of the batch."""
    levels: Annotated[tuple[Annotated[int, Field(ge=3, le=2**16)], ...], Field(max_length=64)] = ()
    """``fsq`` only: levels of each dimension; they give ``num_codes``, their product, and ``code_dim``, their number.
    Not 2: bounded so that 0 is the middle of a level, a dimension of two levels would hardly leave that one."""
    initialize: Literal["batch", "kmeans"] = "batch"
    """Codes start at encoder outputs of the first batch, or at its means by Lloyd's iterations."""
    cosine: bool = False
    """Encoder outputs and codes have unit length, and the nearest code is the one at the smallest angle."""
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    """How the encoder learns through the code: copied, or by the rotation trick (Fifty et al. 2024)."""

    @model_validator(mode="before")
    @classmethod
    def _levels_give_sizes(cls, data: Any) -> Any:
        levels = data.get("levels") if isinstance(data, dict) else None
        if not isinstance(levels, list | tuple) or not levels or not all(isinstance(level, int) for level in levels):
            return data
        if len(levels) > 64 or max(levels) > 2**16:  # left to the fields, before their product is taken
            return data
        return {"num_codes": math.prod(levels), "code_dim": len(levels), **data}

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> QuantizerConfig:
        unused = {
            "ema": ("levels",),
            "sgd": ("levels", "decay"),
            "fsq": ("commitment_cost", "decay", "revive_after", "initialize", "cosine", "gradient"),
        }
        for name in unused[self.kind]:
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                raise ValueError(f"{name} {value} means nothing to kind {self.kind}: leave it out, or {default}")
        if self.kind != "fsq":
            return self
        if not self.levels:
            raise ValueError("kind fsq needs levels, for instance levels [8, 8, 8] for 512 codes")
        size, dim = math.prod(self.levels), len(self.levels)
        if (self.num_codes, self.code_dim) != (size, dim):
            raise ValueError(
                f"levels {self.levels} make {size} codes of {dim} dimensions: set num_codes {size} and code_dim {dim}, "
                f"or leave both out (got {self.num_codes} and {self.code_dim})"
            )
        return self
