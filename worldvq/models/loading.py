"""Models out of files that nobody vouches for: nothing large is built before the file was found to hold it.

What a model takes is known for certain once it was built without memory, on the meta device. That imports torch's
compiler, which takes a second, so a bound on its size is asked first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from worldvq.config.yaml_loading import build
from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.atomic import write_together
from worldvq.files.reading import read_sealed, seal
from worldvq.files.weights import check_header, hash_module, load_module, module_bytes, require_hash
from worldvq.models.config import DynamicsConfig, ImagePriorConfig, SoundTokenizerConfig, TokenizerConfig, WaveNetConfig
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.symlog import NUM_BINS
from worldvq.types import ActionSpace

M = TypeVar("M", bound=nn.Module)
SPARE = 32 * 2**20
"""Bytes that a model may take beyond twice its file: tables that are not in it, and what building them takes."""
WEIGHTS_HASH = "weights_hash"


def tokenizer_size(config: TokenizerConfig) -> int:
    """Return an upper bound of the number of elements of a tokenizer."""
    width, dim, codes = config.width, config.quantizer.code_dim, config.quantizer.num_codes
    blocks = config.encoder_blocks + config.decoder_blocks
    ends = 8 * width**2 + (500 + 10 * dim) * width
    if config.architecture == "strided":
        ends += 2 * 4 * 16 * width**2  # both halves, as if for the most halvings
    return blocks * (10 * width**2 + 2 * width) + ends + 4 * codes * (dim + 1) + 1000


def dynamics_size(config: DynamicsConfig, grid: tuple[int, int], num_codes: int, space: ActionSpace) -> int:
    """Return an upper bound of the number of elements of a dynamics model."""
    positions, choices = grid[0] * grid[1], sum(space.nvec) + len(space.low)
    width, inner = config.width, config.prior.width
    tables = (2 * num_codes + 3 * positions + choices + 20 + NUM_BINS) * (width + inner) + 4 * num_codes
    blocks = 40 * (config.num_blocks * width**2 + config.prior.num_blocks * inner**2)
    blocks += (12 * width + 2 * positions + 20) * width  # recall
    if config.merge > 1:
        blocks += (2 * config.merge**2 + 8) * width**2 + 20 * width
    return tables + blocks + 4 * width**2 + width * inner + positions**2 + 1000


def image_prior_size(config: ImagePriorConfig, grid: tuple[int, int], num_codes: int, num_classes: int) -> int:
    """Return an upper bound of the number of elements of an image prior."""
    positions, width = grid[0] * grid[1], config.width
    tables = (3 * num_codes + 3 * positions + num_classes + 20) * width + 4 * num_codes
    return tables + 40 * config.num_blocks * width**2 + width**2 + positions**2 + 1000


def sound_tokenizer_size(config: SoundTokenizerConfig, num_speakers: int) -> int:
    """Return an upper bound of the number of elements of a tokenizer of sound."""
    width, dim, codes = config.width, config.quantizer.code_dim, config.quantizer.num_codes
    encoder = sum(2 * stride * width**2 + width for stride in config.strides)
    if config.features == "mfcc":
        encoder += (4 * width + 50) * width * (len(config.strides) + 2)
    ends = (4 * dim + num_speakers + 2) * width + dim + 4 * codes * (dim + 2)
    return encoder + ends + wavenet_size(config.decoder, 256, width) + 1000


def sound_prior_size(config: WaveNetConfig, num_codes: int, num_speakers: int) -> int:
    """Return an upper bound of the number of elements of a prior over the codes of a sound."""
    return wavenet_size(config, num_codes, config.width) + num_speakers * config.width + 1000


def wavenet_size(config: WaveNetConfig, num_codes: int, context_dim: int) -> int:
    """Return an upper bound of the number of elements of a WaveNet."""
    width, skip = config.width, config.skip_width
    layers = config.num_stacks * config.stack_layers * (7 * width + skip) * width
    return layers + (num_codes + context_dim + 2) * width + (skip + num_codes + 1) * (skip + 1)


def read_description(path: Path, formats: Sequence[int], missing: str, what: str) -> dict[str, Any]:
    """Read the sealed description of a model, its ``format_version`` included.

    Args:
        path: Its file.
        formats: Those that this version reads.
        missing: What to say where there is no such file.
        what: The model, for messages.

    Raises:
        UsageError: There is no such file, or it is of another format.
        CorruptFileError: It is damaged.
    """
    if not path.is_file():
        raise UsageError(missing)
    data = read_sealed(path)
    version = data.get("format_version")
    if version not in formats:
        reads = f"format{'s' * (len(formats) > 1)} {' and '.join(map(str, formats))}"
        raise UsageError(
            f"{path} is of format {version}, this version of worldvq reads {reads}: use the version that wrote it, or "
            f"train the {what} again"
        )
    return data


def load_checked(path: Path, size: int, make: Callable[[], M]) -> M:
    """Build a module and fill it from its file.

    Args:
        path: Its weights.
        size: Upper bound of its elements. Where they might take far more memory than the file, it is built without any
            first.
        make: Builds it.

    Raises:
        UsageError: There is no such file.
        CorruptFileError: The file is damaged, holds another model, or one that takes far more memory; names it.
    """
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    most = 2 * path.stat().st_size + SPARE
    if 4 * size > most:
        with torch.device("meta"):
            module = make()
        check_header(path, module)
        taken = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        if taken > most:
            raise CorruptFileError(
                f"{path} is of a model that takes {taken:,} bytes, of a file of this size at most {most:,} are built: "
                "make one with fewer levels, or a smaller grid"
            )
    module = make()
    load_module(path, module)
    return module


def load_tokenizer(folder: Path, device: torch.device | str = "cpu") -> Tokenizer:
    """Load the tokenizer that a training run left in its folder.

    Raises:
        UsageError: There is none.
        CorruptFileError: A file is damaged or does not fit the other.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"no trained tokenizer in {folder}: make one with `worldvq train tokenizer --out {folder}`")
    description = read_sealed(path)
    expected = description.pop(WEIGHTS_HASH, None)  # from before it was there: not checked
    try:
        config = build(TokenizerConfig, description, str(path))
    except UsageError as error:
        raise CorruptFileError(str(error)) from None
    weights = folder / "tokenizer.safetensors"
    tokenizer = load_checked(weights, tokenizer_size(config), lambda: Tokenizer(config))
    if expected is not None:
        require_hash(tokenizer, expected, weights, path)
    return tokenizer.to(device).eval()


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write what :func:`load_tokenizer` reads."""
    description = {**tokenizer.config.model_dump(mode="json"), WEIGHTS_HASH: hash_module(tokenizer)}
    weights = module_bytes(tokenizer)
    write_together({folder / "tokenizer.safetensors": weights, folder / "tokenizer.json": seal(description)})
