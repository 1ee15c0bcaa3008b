"""An image model: tokenizer + image prior + the names of the classes. Draws pictures that nobody has taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from worldvq.config.yaml_loading import build
from worldvq.errors import CorruptFileError, UsageError, did_you_mean
from worldvq.files.atomic import write_together
from worldvq.files.differences import printable, require_same
from worldvq.files.reading import seal
from worldvq.files.weights import hash_module, module_bytes, require_hash
from worldvq.models.config import ImagePriorConfig, SamplingConfig, TokenizerConfig
from worldvq.models.image_prior import ImagePrior
from worldvq.models.loading import image_prior_size, load_checked, read_description, tokenizer_size
from worldvq.models.sampling import Drafts, Drawn, Pace, draw, draw_noise
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.devices import resolve_device
from worldvq.nn.noise import stream_keys

FORMAT_VERSION = 1
IMAGE_MODEL_FILE = "prior.json"
"""What a folder has that holds an image model."""
_MOST_NOISE = 2**24
"""Numbers of noise that are drawn at a time, 64 MB."""


class ImageModel:
    """What draws pictures: load, sample, render.

    Attributes:
        tokenizer: Frames to tokens and back.
        prior: Draws tokens.
        classes: What there is to be drawn, by number; one name where the prior knows of no classes.
        meta: JSON values that say what it was trained on, and how.
        device: Where it runs. Tensors that go in may be anywhere; what comes out is on the CPU.
    """

    def __init__(self, tokenizer: Tokenizer, prior: ImagePrior, classes: Sequence[str], meta: dict[str, Any]):
        require_same(
            {"grid": tokenizer.grid, "num_codes": tokenizer.num_codes, "classes": len(classes)},
            {"grid": prior.grid, "num_codes": prior.num_codes, "classes": prior.num_classes},
            ("the tokenizer has", "the prior expects"),
            "tokenizer and prior do not fit together",
            "train the prior on this tokenizer's tokens",
        )
        self.tokenizer, self.prior = tokenizer.eval(), prior.eval()
        self.classes, self.meta = tuple(classes), meta
        self.device = next(prior.parameters()).device
        self._paces: dict[int, Pace] = {}

    def number(self, name: str) -> int:
        """Return the number of a class.

        Raises:
            UsageError: There is none of this name; the known ones are listed.
        """
        if name in self.classes:
            return self.classes.index(name)
        known = ", ".join(printable(other) for other in self.classes[:20])
        more = f" and {len(self.classes) - 20} more" if len(self.classes) > 20 else ""
        raise UsageError(f"no class '{name}'{did_you_mean(name, self.classes)}: this prior knows {known}{more}")

    @torch.no_grad()
    def sample(self, labels: ArrayLike, row_seeds: ArrayLike, seed: int = 0, **sampling: Any) -> Drawn:
        """Draw one picture a row, as tokens.

        A row is a function of the seed, its own seed and its class: the same alone or among others.

        Args:
            labels: (B,) numbers of classes.
            row_seeds: (B,) integers.
            seed: Of all that is drawn.
            **sampling: ``temperature``, ``top_k``, ``top_p`` and ``method``, fields of
                :class:`~worldvq.models.config.SamplingConfig`.

        Returns:
            Tokens (B, h, w), and the passes (B,) that each row took.
        """
        config = build(SamplingConfig, sampling, "sampling")
        numbers, seeds = np.asarray(labels, np.int64), np.asarray(row_seeds, np.int64)
        keys = stream_keys(seed, seeds, numbers)
        rows = max(1, _MOST_NOISE // (self.prior.grid[0] * self.prior.grid[1] * self.prior.num_codes))
        parts = [
            self._draw(numbers[first : first + rows], keys[first : first + rows], config)
            for first in range(0, len(numbers), rows)
        ]
        tokens, passes = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        return Drawn(tokens, passes)

    def _draw(self, numbers: np.ndarray, keys: np.ndarray, config: SamplingConfig) -> Drawn:
        labels, batch = torch.from_numpy(numbers).to(self.device), len(numbers)
        cache = self.prior.prior.start(batch, self.prior.context(labels))
        forecast = self.prior.forecast(labels)
        # What is most probable at each place is a better first guess than what is drawn there (docs/log.md): it takes
        # the place of the frame before, which there is none of.
        drafts = Drafts(torch.ones(batch, dtype=torch.bool, device=self.device))
        pace, noise = self._paces.setdefault(batch, Pace()), draw_noise(self.prior.prior, keys, config)
        return draw(cache, forecast, forecast.argmax(-1), noise, config, drafts, pace)

    @torch.no_grad()
    def nats(self, tokens: Tensor, names: Sequence[str], batch_size: int = 64) -> Tensor:
        """Return minus log p of token grids (N, h, w) given the names (N,) of their classes: (N,) float64.

        Where the prior knows of no classes, the names are not looked at.

        Raises:
            UsageError: There is no such class.
        """
        numbers = [self.number(name) if len(self.classes) > 1 else 0 for name in names]
        labels, found = torch.tensor(numbers), []
        for rows in torch.arange(len(tokens)).split(batch_size):
            target = tokens[rows].to(self.device)
            logits = self.prior(target, labels[rows].to(self.device)).logits.double().log_softmax(-1)
            found.append(-logits.gather(-1, target[..., None]).sum((1, 2, 3)).cpu())
        return torch.cat(found)

    def save(self, folder: Path) -> None:
        """Write the model; a half-written one is none, and where the disk is full an older one stays."""
        description = {
            "format_version": FORMAT_VERSION,
            "tokenizer": self.tokenizer.config.model_dump(mode="json"),
            "tokenizer_hash": hash_module(self.tokenizer),
            "prior": self.prior.config.model_dump(mode="json"),
            "prior_hash": hash_module(self.prior),
            "classes": self.classes,
            "meta": self.meta,
        }
        write_together(
            {
                folder / "tokenizer.safetensors": module_bytes(self.tokenizer),
                folder / "prior.safetensors": module_bytes(self.prior),
                folder / IMAGE_MODEL_FILE: seal(description),
            }
        )

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> ImageModel:
        """Load a model that ``worldvq train prior`` or :meth:`save` left.

        Args:
            folder: Where it is.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

        Raises:
            UsageError: There is none here, or of another format.
            CorruptFileError: A file is damaged.
        """
        path = folder / IMAGE_MODEL_FILE
        missing = f"no image prior in {folder}: make one with `worldvq train prior --out {folder}`"
        data = read_description(path, (FORMAT_VERSION,), missing, "prior")
        where = resolve_device(device)
        try:
            config = build(TokenizerConfig, data["tokenizer"], str(path))
            prior_config = build(ImagePriorConfig, data["prior"], str(path))
            classes, meta = _names(data["classes"]), dict(data["meta"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(f"{path} is damaged: {error}") from None
        shape = (config.grid, config.quantizer.num_codes, len(classes))
        files = [folder / f"{name}.safetensors" for name in ("tokenizer", "prior")]
        tokenizer = load_checked(files[0], tokenizer_size(config), lambda: Tokenizer(config))
        size = image_prior_size(prior_config, *shape)
        prior = load_checked(files[1], size, lambda: ImagePrior(prior_config, *shape))
        for file, module in zip(files, (tokenizer, prior), strict=True):
            require_hash(module, data.get(f"{file.stem}_hash"), file, path)
        return cls(tokenizer.to(where), prior.to(where), classes, meta)


def _names(names: Any) -> list[str]:
    """Check names of classes; raises ValueError."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("classes is no list of names")
    if len(set(names)) < len(names):
        raise ValueError("two classes have one name")
    return names
