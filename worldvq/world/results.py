"""What a world answers: imagined frames, and how well recorded ones were predicted."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Imagined(NamedTuple):
    """N imagined frames of B worlds.

    Attributes:
        tokens: (B, N, h, w) int64.
        rewards: (B, N) predicted reward of the transition into each imagined frame.
        termination: (B, N) probability that this transition ended the task.
        passes: (B, N) passes through the prior that each frame took; h*w where it was drawn token by token.
    """

    tokens: Tensor
    rewards: Tensor
    termination: Tensor
    passes: Tensor


class Scores(NamedTuple):
    """How well recorded clips are predicted, teacher-forced, for frames ``context`` … T - 1.

    Attributes:
        nats: (B, N, h, w) negative log-likelihood of each token of what is seen given all frames before, in nats.
        rewards: (B, N) predicted reward of the transition into each frame.
        rewards_true: (B, N) recorded.
        termination: (B, N) predicted probability that this transition ended the task.
        termination_true: (B, N) recorded, bool.
        mask: (B, N) True where the frame exists.
        sound_nats: (B, N, A) likewise as ``nats``, of what is heard; A is 0 in a world without sound.
    """

    nats: Tensor
    rewards: Tensor
    rewards_true: Tensor
    termination: Tensor
    termination_true: Tensor
    mask: Tensor
    sound_nats: Tensor
