"""What a recording is told."""

from __future__ import annotations

from typing import Literal

from worldvq.config.fields import Config, NonNegativeInt, PositiveFloat, PositiveInt


class RecordConfig(Config):
    """How much is recorded, by whom, and which episodes are held out."""

    frames: PositiveInt | None = 20_000
    episodes: PositiveInt | None = None
    """Stop after this many episodes; overrides ``frames``."""
    workers: PositiveInt = 2
    policy: str = "held"
    """``random``, ``held`` (random, each action kept for a while, as long as frames change), ``module:function``,
    ``./file.py:function`` or a path to a SB3 zip."""
    hold: PositiveInt = 8
    """Longest number of steps for which ``held`` keeps an action; one that changes nothing it drops at once."""
    seed: NonNegativeInt = 0
    heldout_every: PositiveInt = 10
    """Episode n is held out when n % heldout_every == heldout_every - 1. A dataset that is there may be given another
    number, which records nothing again; not given, it keeps its own."""
    compression: Literal["none", "zstd"] = "none"
    timeout: PositiveFloat = 60.0
    """Seconds that an environment may take to be built, reset or stepped; then its worker is killed and replaced."""
