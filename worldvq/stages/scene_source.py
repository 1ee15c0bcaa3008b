"""Frames of a dataset or a token store, for what looks at scene codes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from worldvq.data.clips import ClipSampler, heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.data.tokens import TokenStore
from worldvq.errors import UsageError
from worldvq.files.differences import require_same
from worldvq.files.weights import hash_module
from worldvq.types import Clip
from worldvq.world.scenes import Scenes

COMPARED = 4096
"""Frames of the training split, at random, among which the nearest by code are looked for."""
AT_ONCE = 256
"""Frames that are read at a time."""


class Source:
    """Frames of a dataset or a token store, as tokens; and as they were, or as the tokenizer brings them back."""

    def __init__(self, scenes: Scenes, data: Path | None, tokens: Path | None) -> None:
        """Open one of the two.

        Raises:
            UsageError: Both or none are given, or it does not fit.
        """
        if (data is None) == (tokens is None):
            raise UsageError("give --data, a dataset, or --tokens, a token store, and not both")
        self.scenes, self.has_frames = scenes, data is not None
        self.store: EpisodeStore | TokenStore = EpisodeStore.open(data) if data else TokenStore.open(tokens)  # type: ignore[arg-type]
        if isinstance(self.store, TokenStore):
            require_same(
                {"tokenizer_hash": self.store.meta.tokenizer_hash},
                {"tokenizer_hash": hash_module(scenes.tokenizer)},
                ("the tokens have", "the scene model has"),
                f"{tokens} was made by another tokenizer than the scene model's",
                "give the dataset itself, with --data, or the tokens that the model was trained on",
            )

    def heldout(self, count: int, seed: int) -> np.ndarray:
        """Return episode and frame (n, 2) of at most ``count`` held-out frames, spread evenly."""
        return heldout_clips(self.store, count, 1, seed)

    def tokens(self, ids: np.ndarray) -> Tensor:
        """Return the tokens (n, h, w) of frames (n, 2)."""
        console, parts = Console(stderr=True), []
        some_ids = np.array_split(ids, -(-len(ids) // AT_ONCE))
        for some in track(some_ids, "reading frames", console=console, disable=not console.is_terminal):
            clip = read_clips(self.store, some, 1)
            parts.append(self.scenes.tokenize(clip.frames[:, 0]) if isinstance(clip, Clip) else clip.tokens[:, 0])
        return torch.cat(parts)

    def frames(self, ids: np.ndarray) -> np.ndarray:
        """Return frames (n, H, W, 3) uint8: originals of a dataset, reconstructions of a token store."""
        if isinstance(self.store, EpisodeStore):
            return read_clips(self.store, ids, 1).frames[:, 0].numpy()
        return self.scenes.render(self.tokens(ids))

    def nearest(self, codes: Tensor, count: int, seed: int) -> list[np.ndarray]:
        """Return the training frames (count, H, W, 3) whose codes are nearest to each row of codes (N, n)."""
        ids = np.unique(ClipSampler(self.store, "train", 1, COMPARED, seed).ids(0), axis=0)
        there, where = self.scenes.encode(self.tokens(ids)), self.scenes.device
        distances = self.scenes.model.code_distances(codes.to(where), there.to(where))  # (N, n)
        places = distances.topk(min(count, len(ids)), largest=False).indices.cpu().numpy()
        return [self.frames(ids[row]) for row in places]
