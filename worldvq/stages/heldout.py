"""What a training run is measured on as it goes."""

from __future__ import annotations

from worldvq.data.clips import ClipSampler
from worldvq.data.episodes import EpisodeStore
from worldvq.data.sharing import is_first_process
from worldvq.data.tokens import TokenStore
from worldvq.training.config import TrainConfig


def heldout_batches(store: EpisodeStore | TokenStore, training: TrainConfig) -> ClipSampler | None:
    """Return batches of held-out episodes; where there are none, say so and return None."""
    if store.numbers("heldout"):
        return ClipSampler(store, "heldout", training.clip_frames, training.batch_size, training.seed)
    if is_first_process():
        print(
            f"{store.path} has no held-out episodes ({len(store)} in all, 1 in {store.heldout_every} is held out): "
            f"training shows no held-out loss and no pictures",
            flush=True,
        )
    return None
