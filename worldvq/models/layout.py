"""What is seen and what is heard as one grid of tokens, so that whatever predicts frames predicts their sound as well.

Under the h rows of a frame's tokens stand as many rows as the tokens of its sound take, those heard since the frame
before it. Codes of sound are numbered after those of frames. Which codes can stand at a place is fixed: logits of all
others are taken down, so that none is drawn, none costs a nat, and the places that are left over always hold code 0.
Without sound the grid is the frame's, and nothing is taken down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldvq.models.priors.contract import GridCache, Prior

NEVER = -1e9
"""Logit of what cannot be: finite, as 0 times minus infinity is no number."""


class SoundTokens(NamedTuple):
    """What is heard in a step, in tokens.

    Attributes:
        num_tokens: A, of a step.
        num_codes: How many different ones there are.
    """

    num_tokens: int
    num_codes: int


@dataclass(frozen=True)
class TokenLayout:
    """Where in a grid the tokens of a frame and of its sound stand.

    Attributes:
        frame: Height and width (h, w) of a frame in tokens.
        num_frame_codes: How many codes a frame's tokens have.
        sound: Of the sound, if there is any.
    """

    frame: tuple[int, int]
    num_frame_codes: int
    sound: SoundTokens | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width (H, w) of all tokens."""
        height, width = self.frame
        return height + (-(-self.sound.num_tokens // width) if self.sound else 0), width

    @property
    def num_codes(self) -> int:
        """Size K of the vocabulary of both."""
        return self.num_frame_codes + (self.sound.num_codes if self.sound else 0)

    def join(self, frame: Tensor, sound: Tensor | None) -> Tensor:
        """Return tokens (..., H, w) of a frame (..., h, w) and its sound (..., A)."""
        if self.sound is None or sound is None:
            assert self.sound is sound is None, "sound where there is none, or none where there is some"
            return frame
        height, width = self.frame
        below = frame.new_zeros(*frame.shape[:-2], (self.grid[0] - height) * width)
        below[..., : sound.shape[-1]] = sound + self.num_frame_codes
        return torch.cat([frame, below.unflatten(-1, (-1, width))], dim=-2)

    def seen(self, tokens: Tensor) -> Tensor:
        """Return the frame's tokens (..., h, w) of tokens (..., H, w)."""
        return tokens[..., : self.frame[0], :]

    def heard(self, tokens: Tensor) -> Tensor:
        """Return the sound's tokens (..., A), as its tokenizer numbers them, of tokens (..., H, w)."""
        assert self.sound is not None
        below = tokens[..., self.frame[0] :, :].flatten(-2)[..., : self.sound.num_tokens]
        return below - self.num_frame_codes

    def impossible(self) -> Tensor:
        """Return which codes cannot stand at a place, (H, w, K) bool."""
        frame = torch.zeros(*self.frame, dtype=torch.int64)
        if self.sound is None:
            return torch.zeros(*self.frame, self.num_codes, dtype=torch.bool)
        kinds = self.join(frame, torch.zeros(self.sound.num_tokens, dtype=torch.int64))  # (H, w): of sound where not 0
        codes = torch.arange(self.num_codes)
        wrong = (codes >= self.num_frame_codes) != (kinds > 0)[..., None]
        rest = torch.zeros_like(kinds, dtype=torch.bool)
        rest[self.frame[0] :] = kinds[self.frame[0] :] == 0
        return torch.where(rest[..., None], codes > 0, wrong)


class Possible(nn.Module):
    """Logits (..., H, w, K) with those of impossible codes taken down."""

    def __init__(self, layout: TokenLayout):
        super().__init__()
        self.register_buffer("impossible", layout.impossible(), persistent=False)
        self.impossible: Tensor

    def forward(self, logits: Tensor) -> Tensor:
        """Take them down."""
        return logits.masked_fill(self.impossible, NEVER)


class PossiblePrior(Prior):
    """A prior that gives impossible codes no probability."""

    def __init__(self, prior: Prior, layout: TokenLayout):
        super().__init__()
        self.prior = prior
        self.grid, self.num_codes = prior.grid, prior.num_codes
        self.possible = Possible(layout)

    @property
    def embed(self) -> nn.Embedding:  # type: ignore[override]
        """That of the prior."""
        return self.prior.embed

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Return logits (B, H, w, K); see :meth:`Prior.forward`."""
        return self.possible(self.prior(tokens, context))

    def start(self, batch: int, context: Tensor | None = None) -> GridCache:
        """Return an empty cache; see :meth:`Prior.start`."""
        return _PossibleCache(self.prior.start(batch, context), self.possible.impossible.flatten(0, 1))


class _PossibleCache:
    def __init__(self, cache: GridCache, impossible: Tensor):
        self.cache, self.impossible, self.device = cache, impossible, cache.device

    def logits(self, tokens: Tensor, first: int, last: int) -> Tensor:
        return self.cache.logits(tokens, first, last).masked_fill(self.impossible[first:last], NEVER)

    def keep(self, rows: Tensor) -> None:
        self.cache.keep(rows)
