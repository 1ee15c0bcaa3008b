"""What a training run is measured on as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from worldvq.data.episodes import EpisodeStore
from worldvq.data.joined import JoinedSampler
from worldvq.data.sharing import is_first_process
from worldvq.data.sounds import Sounds
from worldvq.data.tokens import TokenStore
from worldvq.training.config import TrainConfig

S = TypeVar("S", EpisodeStore, TokenStore)
H = TypeVar("H", bound=EpisodeStore | TokenStore | Sounds)


def heldout_batches(stores: Sequence[S], training: TrainConfig) -> JoinedSampler | None:
    """Return batches of the held-out episodes of stores; where there are none, say so and return None."""
    held = with_heldout(stores)
    if not held:
        return None
    return JoinedSampler(held, "heldout", training.clip_frames, training.batch_size, training.seed)


def with_heldout(stores: Sequence[H]) -> list[H]:
    """Return the stores that hold episodes out; say which do not."""
    held = [store for store in stores if store.numbers("heldout")]
    for store in stores:
        if store not in held and is_first_process():
            print(
                f"{store.path} has no held-out episodes ({len(store)} in all, 1 in {store.heldout_every} is held out): "
                f"{'the held-out loss is without it' if held else 'training shows no held-out loss and no pictures'}",
                flush=True,
            )
    return held
