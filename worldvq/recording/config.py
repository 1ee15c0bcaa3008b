"""What a recording is told."""

from __future__ import annotations

from typing import Literal

from worldvq.config.fields import Config, NonNegativeInt, PositiveFloat, PositiveInt


class RecordConfig(Config):
    """How much is recorded, by whom, and which episodes are held out."""

    frames: PositiveInt | None = 20_000
    """Stop at this many frames, over all episodes; the episode in play is truncated."""
    episodes: PositiveInt | None = None
    """Stop after this many episodes; overrides ``frames``."""
    workers: PositiveInt = 2
    """Processes that play side by side; how many changes nothing in what is recorded."""
    policy: str = "retrace"
    """``retrace`` (random actions, each kept for a while, as long as frames change, and about half of them undone),
    ``held`` (nothing is undone), ``random``, ``human`` (you, in a page), ``module:function``, ``./file.py:function`` or
    a path to a SB3 zip."""
    hold: PositiveInt = 8
    """Longest number of steps for which ``retrace`` and ``held`` keep an action; one that changes nothing they drop at
    once."""
    undo: dict[str, str] | Literal["negated"] | None = None
    """For ``retrace``, which action undoes which: ``{look_left: look_right}``, which holds both ways; ``negated`` for
    actions that are numbers; ``{}`` for none. Not given, it is found by trying, once for a dataset."""
    seed: NonNegativeInt = 0
    """Of the environment and the policy: the same seed gives the same dataset."""
    heldout_every: PositiveInt = 10
    """Episode n is held out when n % heldout_every == heldout_every - 1. A dataset that is there may be given another
    number, which records nothing again; not given, it keeps its own."""
    compression: Literal["none", "zstd"] = "none"
    """``zstd`` loses nothing and saves space (ViZDoom takes 37 %, the maze 14 %); a tokenizer reads its frames at a
    twentieth of the speed or less, which by calculation counts on a GPU alone (docs/results.md). It needs the ``zstd``
    extra."""
    timeout: PositiveFloat = 60.0
    """Seconds that an environment may take to be built, reset or stepped; then its worker is killed and replaced."""
