"""Turning every frame of a dataset into tokens, once, so that the dynamics trains on them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from worldvq.data.episodes import EpisodeStore
from worldvq.data.shard import Shard
from worldvq.data.shards import merge_shards, shard_indexes
from worldvq.data.sharing import Processes
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.files.differences import require_same
from worldvq.files.weights import hash_module
from worldvq.models.loading import load_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.devices import local_device, resolve_device
from worldvq.types import as_tensor


def tokenize(tokenizer: Path, data: Path, out: Path, device: str = "auto") -> TokenStore:
    """Turn every frame of a dataset into tokens; continues where it stopped.

    Processes that were started together (``accelerate launch``) take turns with the episodes, each into a shard of the
    store. The result is that of one process, and any number of processes can continue what another one began.

    Raises:
        UsageError: No tokenizer, no dataset, or frames of another size.
        RunError: Another run is writing to ``out``, or something cannot be written.
    """
    processes = Processes()
    model = load_tokenizer(tokenizer, resolve_device(local_device(device)))
    store = EpisodeStore.open(data)
    store.check_frame_size(model.config.frame_size, str(tokenizer))
    meta = TokenMeta(tokenizer_hash=hash_module(model), dataset=store.meta, num_codes=model.num_codes, grid=model.grid)
    if processes.is_first:
        if shard_indexes(out):  # of a run that was ended, perhaps of other processes
            merge_shards(out)
        TokenStore.create(out, meta).close()
    processes.wait_for_first()
    shard = Shard(processes.index, processes.count)
    with TokenStore.create(out, meta, shard) as tokens:
        _tokenize_missing(model, store, tokens, shard)
    processes.wait_for_others()
    if processes.is_first:
        merge_shards(out)
    processes.wait_for_first()
    tokens = TokenStore.open(out)
    processes.wait_for_others()  # the first one may keep the counters: it stays until all have read
    return tokens


def open_tokens(tokens: Path, tokenizer: Path, model: Tokenizer) -> tuple[TokenStore, dict[str, Any]]:
    """Open a token store that a tokenizer made.

    Args:
        tokens: Folder of the store.
        tokenizer: Folder of the tokenizer, for messages.
        model: What is in it.

    Returns:
        The store, and what both have: ``tokenizer_hash``, ``grid``, ``num_codes`` and ``frame_size``.

    Raises:
        UsageError: There is no such store, or another tokenizer made it.
    """
    store = TokenStore.open(tokens)
    made = {"tokenizer_hash": store.meta.tokenizer_hash, "grid": store.meta.grid, "num_codes": store.meta.num_codes}
    made |= {"frame_size": store.meta.dataset.frame_size}
    require_same(
        made,
        {
            "tokenizer_hash": hash_module(model),
            "grid": model.grid,
            "num_codes": model.num_codes,
            "frame_size": model.config.frame_size,
        },
        ("the tokens have", "the tokenizer has"),
        f"{tokens} was made by another tokenizer than {tokenizer}",
        "run `worldvq tokenize` again into a new folder",
    )
    return store, made


def _tokenize_missing(model: Tokenizer, store: EpisodeStore, tokens: TokenStore, shard: Shard) -> None:
    """Write the tokens of this shard's episodes that have none yet."""
    console = Console(stderr=True)
    missing = [number for number in store.numbers("all") if shard.owns(number) and number not in tokens]
    for number in track(missing, "tokenizing", console=console, disable=shard.index > 0 or not console.is_terminal):
        episode = store.read(number)
        tokens.write(number, model.tokenize(as_tensor(episode.frames)).numpy(), episode)
