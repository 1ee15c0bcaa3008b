"""Attention to whole frames: what came right before, or right after, the last time one saw this and did that."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldvq.nn.attention import RingCache, ring_ages
from worldvq.nn.matrix import Matrix

SHARPNESS = 8.0
"""Initial factor of the cosine between two frames."""


class Recall(nn.Module):
    """An induction head (Olsson et al. 2022) over frames instead of tokens, once for each direction of time.

    Attention over time at one position finds an earlier frame by what stands at that position, of which there is much
    alike. Here frames are compared as wholes, and all positions share the weights. The query is the newest frame and
    the action taken in it. A head that looks *back* scores frame u by how alike the newest frame is to frame u + 1 and
    how the action relates to the one that led there: who undoes a step comes back to u. A head that looks *forward*
    scores frame u by frame u - 1 and the action that led out of it: who does the same again comes to u again. A score
    of its own stands for no frame at all.
    """

    def __init__(self, width: int, num_heads: int, length: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads  # of each direction
        inner = 2 * width
        self.describe = Matrix(width, inner)
        self.place = nn.Parameter(torch.randn(length, inner))  # what stands where: a random projection to begin with
        self.value = Matrix(width, inner)
        self.out = Matrix(inner, width)
        self.ask, self.led = nn.Linear(width, inner), nn.Linear(width, inner)
        self.sharpness = nn.Parameter(torch.full((2 * num_heads, 1, 1), SHARPNESS))
        self.nothing = nn.Parameter(torch.full((2 * num_heads, 1, 1), SHARPNESS / 2))

    def forward(self, frames: Tensor, actions: Tensor, window: int) -> Tensor:
        """Recall within clips.

        Args:
            frames: (B, T, N, width), embedded.
            actions: (B, T, width), embedded; ``[:, t]`` leads out of frame t.
            window: Frames that are remembered, the newest included.

        Returns:
            (B, T, N, width), to be added to the frames.
        """
        steps = frames.shape[1]
        there = torch.ones(steps, steps, dtype=torch.bool, device=frames.device).tril().triu(1 - window)
        described, place = self._description(frames), torch.arange(steps, device=frames.device)
        ends = place == steps - 1, place == 0
        return self._recall(described, actions, described, actions, self._values(frames), there, ends)

    def _values(self, frames: Tensor) -> Tensor:
        """What each head would recall of frames (B, s, N, width): (B, 2 heads, s, N head_dim)."""
        return self.value(frames).unflatten(-1, (2 * self.num_heads, self.head_dim)).permute(0, 3, 1, 2, 4).flatten(3)

    def _description(self, frames: Tensor) -> Tensor:
        """A unit vector a head of frames (..., N, width): (..., 2 heads, head_dim)."""
        whole = (self.describe(frames) * self.place).mean(-2)
        return F.normalize(self._heads(whole), dim=-1)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (2 * self.num_heads, self.head_dim))

    def _recall(
        self,
        newest: Tensor,
        taken: Tensor,
        known: Tensor,
        led: Tensor,
        values: Tensor,
        there: Tensor,
        ends: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Recall for frames t, each with the frames s that are there.

        Args:
            newest: (B, t, 2 heads, D) descriptions of those that ask.
            taken: (B, t, width) actions out of them.
            known: (B, s, 2 heads, D) descriptions, in order of time; the first may stand anywhere, as in a ring.
            led: (B, s, width) actions out of them.
            values: (B, 2 heads, s, N D).
            there: (t, s) or (B, 1, t, s) bool.
            ends: (s,) bool each, which of the frames s is the newest, and which the oldest.
        """
        alike = torch.einsum("bthd,bshd->bhts", newest, known) * self.sharpness
        scale = self.head_dim**-0.5
        related = torch.einsum("bthd,bshd->bhts", self._heads(self.ask(taken)), self._heads(self.led(led))) * scale
        heads, (last, first) = self.num_heads, ends
        # Scores of frames u: all but the newest one, by u + 1; all but the oldest one, by u - 1.
        back = alike[:, :heads].roll(-1, -1) + related[:, :heads]
        back = back.masked_fill(~(there & there.roll(-1, -1)) | last, -torch.inf)
        forward = (alike[:, heads:] + related[:, heads:]).roll(1, -1)
        forward = forward.masked_fill(~(there & there.roll(1, -1)) | first, -torch.inf)
        nothing = self.nothing.expand(len(alike), -1, alike.shape[2], 1)
        weights = torch.cat([torch.cat([back, forward], 1), nothing], -1).softmax(-1)[..., :-1]  # (B, 2 heads, t, s)
        recalled = (weights.to(values.dtype) @ values).unflatten(-1, (-1, self.head_dim))  # (B, 2 heads, t, N, D)
        return self.out(recalled.permute(0, 2, 3, 1, 4).flatten(-2))


class RecallRing(RingCache):
    """Descriptions and actions, and values, of the last frames: (B, 1, size, 3 width), (B, 2 heads, size, N D)."""

    @classmethod
    def for_frames(cls, batch: int, size: int, recall: Recall, like: Tensor) -> RecallRing:
        """Return a ring of zeros for a layer and its N places, on the device and of the type of ``like``."""
        length, inner = recall.place.shape
        heads, width = 2 * recall.num_heads, recall.ask.in_features
        keys, values = (batch, 1, size, inner + width), (batch, heads, size, length * recall.head_dim)
        return cls(like.new_zeros(keys), like.new_zeros(values))

    def recall(self, recall: Recall, frame: Tensor, action: Tensor, clock: Tensor, seen: Tensor) -> Tensor:
        """Recall for one new frame; equals the last step of the layer itself.

        Args:
            recall: The layer this ring belongs to.
            frame: (B, N, width).
            action: (B, width), out of it.
            clock: (1,) int64, frames written so far.
            seen: (B,) int64, frames of its own that each row has seen before this one.

        Returns:
            (B, N, width), to be added to the frame.
        """
        size = self.keys.shape[2]
        ages, slot = ring_ages(clock, size)
        newest = recall._description(frame)  # (B, 2 heads, D)
        entry = torch.cat([newest.flatten(1), action], -1)
        self.keys.index_copy_(2, slot, entry[:, None, None].to(self.keys.dtype))
        self.values.index_copy_(2, slot, recall._values(frame[:, None]).to(self.values.dtype))
        known, led = self.keys[:, 0].split([newest[0].numel(), action.shape[-1]], -1)
        there = (ages <= seen[:, None])[:, None, None]  # (B, 1, 1, size)
        ends = ages == 0, ages == size - 1
        asked, taken = newest[:, None].to(self.keys.dtype), action[:, None].to(self.keys.dtype)
        with torch.autocast(frame.device.type, enabled=False):  # one question a frame: casting the ring takes longer
            return recall._recall(asked, taken, recall._heads(known), led, self.values, there, ends)[:, 0]
