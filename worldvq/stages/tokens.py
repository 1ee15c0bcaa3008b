"""Turning every frame of a dataset into tokens, once, so that the dynamics trains on them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from worldvq.data.episodes import EpisodeStore
from worldvq.data.heard import tokens_of_step
from worldvq.data.shard import Shard
from worldvq.data.shards import merge_shards, shard_indexes
from worldvq.data.sharing import Processes
from worldvq.data.tokens import SoundTokenMeta, TokenMeta, TokenStore
from worldvq.errors import UsageError
from worldvq.files.differences import require_same
from worldvq.files.weights import hash_module
from worldvq.models.layout import SoundTokens, TokenLayout
from worldvq.models.loading import load_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.devices import local_device, resolve_device
from worldvq.types import as_tensor, heard_before
from worldvq.world.codec import SoundCodec


def tokenize(tokenizer: Path, data: Path, out: Path, device: str = "auto", sound: Path | None = None) -> TokenStore:
    """Turn every frame of a dataset into tokens, with ``sound``, a codec of it, all that is heard too; can continue.

    Processes that were started together (``accelerate launch``) take turns with the episodes, each into a shard of the
    store. The result is that of one process, and any number of processes can continue what another one began.

    Raises:
        UsageError: No tokenizer, no dataset, or frames of another size; no codec, no sound, or of another rate.
        RunError: Another run is writing to ``out``, or something cannot be written.
    """
    processes = Processes()
    model = load_tokenizer(tokenizer, resolve_device(local_device(device)))
    store = EpisodeStore.open(data)
    store.check_frame_size(model.config.frame_size, str(tokenizer))
    codec = None if sound is None else SoundCodec.load(sound, local_device(device))
    made = None if codec is None or sound is None else _sound_tokens(codec, sound, store)
    layout = TokenLayout(model.grid, model.num_codes, made and SoundTokens(made.num_tokens, made.num_codes))
    meta = TokenMeta(
        tokenizer_hash=hash_module(model),
        dataset=store.meta,
        num_codes=layout.num_codes,
        grid=layout.grid,
        sound=made,
    )
    if processes.is_first:
        if shard_indexes(out):  # of a run that was ended, perhaps of other processes
            merge_shards(out)
        TokenStore.create(out, meta).close()
    processes.wait_for_first()
    shard = Shard(processes.index, processes.count)
    with TokenStore.create(out, meta, shard) as tokens:
        _tokenize_missing(model, codec, layout, store, tokens, shard)
    processes.wait_for_others()
    if processes.is_first:
        merge_shards(out)
    processes.wait_for_first()
    tokens = TokenStore.open(out)
    processes.wait_for_others()  # the first one may keep the counters: it stays until all have read
    return tokens


def _sound_tokens(codec: SoundCodec, folder: Path, store: EpisodeStore) -> SoundTokenMeta:
    """Return how what is heard in a dataset becomes tokens.

    Raises:
        UsageError: Nothing is heard, or codec and sound do not fit together.
    """
    sound = store.meta.sound
    if sound is None:
        raise UsageError(f"{store.path} was recorded without sound: leave --sound out, or record with env.audio_key")
    require_same(
        {"rate": sound.rate},
        {"rate": codec.rate},
        ("the dataset has", "the codec expects"),
        f"{store.path} does not fit {folder}",
        "train the codec on this dataset",
    )
    num_tokens = tokens_of_step(sound, codec.hop, store.path)
    codes = codec.tokenizer.num_codes
    return SoundTokenMeta(codec_hash=hash_module(codec.tokenizer), num_tokens=num_tokens, num_codes=codes)


def open_tokens(
    tokens: Path, tokenizer: Path, model: Tokenizer, codec: SoundCodec | None = None
) -> tuple[TokenStore, dict[str, Any]]:
    """Open a token store that a tokenizer made.

    Args:
        tokens: Folder of the store.
        tokenizer: Folder of the tokenizer, for messages.
        model: What is in it.
        codec: What made the tokens of its sound, if it holds any.

    Returns:
        The store, and what both have: ``tokenizer_hash``, ``grid``, ``num_codes`` and ``frame_size``; ``codec_hash``
        where there is sound.

    Raises:
        UsageError: There is no such store, another tokenizer or codec made it, or it holds sound and no codec is given.
    """
    store = TokenStore.open(tokens)
    sound = store.meta.sound
    if sound is not None and codec is None:
        raise UsageError(
            f"{tokens} holds the tokens of sound: give its codec with --sound, where there is such an option, or make "
            "tokens without sound (worldvq tokenize without --sound)"
        )
    made = {"tokenizer_hash": store.meta.tokenizer_hash, "grid": store.meta.grid, "num_codes": store.meta.num_codes}
    made |= {"frame_size": store.meta.dataset.frame_size}
    here = {"tokenizer_hash": hash_module(model), "frame_size": model.config.frame_size}
    if codec is not None:
        made["codec_hash"], here["codec_hash"] = sound and sound.codec_hash, hash_module(codec.tokenizer)
    layout = TokenLayout(model.grid, model.num_codes, sound and SoundTokens(sound.num_tokens, sound.num_codes))
    require_same(
        made,
        here | {"grid": layout.grid, "num_codes": layout.num_codes},
        ("the tokens have", "the tokenizer has"),
        f"{tokens} was made by another tokenizer than {tokenizer}",
        "run `worldvq tokenize` again into a new folder",
    )
    return store, made


def _tokenize_missing(
    model: Tokenizer,
    codec: SoundCodec | None,
    layout: TokenLayout,
    store: EpisodeStore,
    tokens: TokenStore,
    shard: Shard,
) -> None:
    """Write the tokens of this shard's episodes that have none yet."""
    console = Console(stderr=True)
    missing = [number for number in store.numbers("all") if shard.owns(number) and number not in tokens]
    for number in track(missing, "tokenizing", console=console, disable=shard.index > 0 or not console.is_terminal):
        episode = store.read(number)
        seen, heard = model.tokenize(as_tensor(episode.frames)), None
        if codec is not None and episode.sounds is not None:
            heard = codec.encode(heard_before(episode.sounds))
        tokens.write(number, layout.join(seen, heard).numpy(), episode)
