"""Scene codes as one holds them: a tokenizer, the second-stage model on its tokens, and what they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldvq.config.yaml_loading import build
from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.atomic import write_together
from worldvq.files.differences import require_same
from worldvq.files.reading import seal
from worldvq.files.weights import hash_module, module_bytes, require_hash
from worldvq.models.config import SamplingConfig, SceneConfig
from worldvq.models.loading import load_checked, load_tokenizer, read_description, save_tokenizer
from worldvq.models.sampling import Drawn
from worldvq.models.scene import SceneModel, scene_size
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.devices import resolve_device

FORMAT_VERSION = 1
SCENE_FILE = "scene.json"
"""What a folder has that holds a scene model."""
AT_ONCE = 64
"""Frames that go through the networks at a time."""


class Scenes:
    """Frames to a few codes and back.

    Attributes:
        tokenizer: Frames to tokens and back.
        model: Tokens to codes and back.
        meta: JSON values that say what the dataset was.
        device: Where it runs. Tensors that go in may be anywhere; what comes out is on the CPU.
    """

    def __init__(self, tokenizer: Tokenizer, model: SceneModel, meta: dict[str, Any]):
        require_same(
            {"grid": tokenizer.grid, "num_codes": tokenizer.num_codes},
            {"grid": model.grid, "num_codes": model.num_codes},
            ("the tokenizer has", "the scene model expects"),
            "tokenizer and scene model do not fit together",
            "train the scene model on this tokenizer's tokens",
        )
        self.tokenizer, self.model, self.meta = tokenizer.eval(), model.eval(), meta
        self.device = model.start.device

    @property
    def num_codes_per_frame(self) -> int:
        """Codes of a frame."""
        return self.model.config.num_codes_per_frame

    def tokenize(self, frames: Tensor) -> Tensor:
        """Return the tokens (N, h, w) int64 of frames (N, H, W, 3) uint8.

        Raises:
            UsageError: They are of another size.
        """
        require_same(
            {"frame_size": tuple(frames.shape[1:3])},
            {"frame_size": self.tokenizer.config.frame_size},
            ("the dataset has", "the scene model expects"),
            "these frames do not fit this scene model",
            "take the dataset that it was trained on, or another one of its size",
        )
        return self.tokenizer.tokenize(frames)

    def render(self, tokens: Tensor) -> np.ndarray:
        """Return the frames (N, H, W, 3) uint8 of tokens (N, h, w)."""
        return self.tokenizer.render(tokens).numpy()

    @torch.no_grad()
    def encode(self, tokens: Tensor) -> Tensor:
        """Return the codes (N, n) int64 of tokens (N, h, w)."""
        return torch.cat([self.model.encode(part.to(self.device)) for part in tokens.split(AT_ONCE)]).cpu()

    @torch.no_grad()
    def nats(self, tokens: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each frame's tokens (N, h, w) cost given codes (N, n): nats a token of the prior, of the head."""
        pairs = zip(tokens.split(AT_ONCE), codes.split(AT_ONCE), strict=True)
        parts = [self.model.nats(some.to(self.device), given.to(self.device)) for some, given in pairs]
        prior, forecast = (torch.cat([one.mean((1, 2)) for one in column]).cpu() for column in zip(*parts, strict=True))
        return prior, forecast

    def draw(self, codes: Tensor, seed: int = 0, **sampling: Any) -> Drawn:
        """Draw token grids given codes (N, n).

        Args:
            codes: Rows of codes.
            seed: Same seed, same grids; a row depends on its codes, its place and the seed alone.
            **sampling: Fields of :class:`~worldvq.models.config.SamplingConfig`.
        """
        config = build(SamplingConfig, sampling, "sampling")
        rows, parts = np.arange(len(codes)), []
        for part in np.split(rows, range(AT_ONCE, len(codes), AT_ONCE)):
            parts.append(self.model.draw(codes[part].to(self.device), seed, config, part))
        return Drawn(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))

    def check_codes(self, codes: Tensor) -> Tensor:
        """Return codes (N, n), all of which there are.

        Raises:
            UsageError: There are more or fewer of them a frame, or one is not below the size of its codebook.
        """
        count, size = self.num_codes_per_frame, self.model.config.quantizer.num_codes
        if codes.shape[1] != count or codes.min() < 0 or codes.max() >= size:
            shown = ",".join(str(code) for code in codes[0].tolist())
            raise UsageError(f"codes {shown}: this scene model takes {count} a frame, each from 0 to {size - 1}")
        return codes

    def save(self, folder: Path) -> None:
        """Write the scene model with its tokenizer; a half-written one is none."""
        save_tokenizer(folder, self.tokenizer)
        description = {
            "format_version": FORMAT_VERSION,
            "scene": self.model.config.model_dump(mode="json"),
            "scene_hash": hash_module(self.model),
            "tokenizer_hash": hash_module(self.tokenizer),
            "meta": self.meta,
        }
        weights = module_bytes(self.model)
        write_together({folder / "scene.safetensors": weights, folder / SCENE_FILE: seal(description)})

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Scenes:
        """Load what ``worldvq scene train`` or :meth:`save` left.

        Raises:
            UsageError: There is none here, or one of another format.
            CorruptFileError: A file is damaged, or does not fit the others.
        """
        path, weights = folder / SCENE_FILE, folder / "scene.safetensors"
        missing = f"no trained scene model in {folder}: make one with `worldvq scene train --out {folder}`"
        data = read_description(path, (FORMAT_VERSION,), missing, "scene model")
        where = resolve_device(device)
        tokenizer = load_tokenizer(folder)
        try:
            config, meta = build(SceneConfig, data["scene"], str(path)), dict(data["meta"])
            scene_hash, tokenizer_hash = data["scene_hash"], data["tokenizer_hash"]
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(f"{path} is damaged: {error}") from None
        shape = (config, tokenizer.grid, tokenizer.num_codes)
        model = load_checked(weights, scene_size(*shape), lambda: SceneModel(*shape))
        require_hash(model, scene_hash, weights, path)
        require_hash(tokenizer, tokenizer_hash, folder / "tokenizer.safetensors", path)
        return cls(tokenizer.to(where), model.to(where), meta)
