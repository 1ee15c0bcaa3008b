"""The stages of the road as functions: each reads folders, writes a folder, and does nothing if its work is done."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

import worldvq
from worldvq.checkpoint import hash_module
from worldvq.claims import claim
from worldvq.config import EvaluateConfig, ExperimentConfig, TrainConfig
from worldvq.data.clips import ClipSampler, heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.data.record import record
from worldvq.data.shards import merge_shards, shard_indexes
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.differences import require_same
from worldvq.errors import CorruptFileError, UsageError
from worldvq.evaluate import evaluate
from worldvq.imagine import imagine
from worldvq.losses import dynamics_loss
from worldvq.models.dynamics import Dynamics
from worldvq.models.loading import load_tokenizer, save_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.models.world import WorldModel, resolve_device
from worldvq.processes import Processes, local_device
from worldvq.ranks import make_accelerator
from worldvq.reading import read_json
from worldvq.render import grid, save_png
from worldvq.shard import Shard
from worldvq.tokenizer_losses import make_tokenizer_loss
from worldvq.train import fit
from worldvq.types import frames_from_model, frames_to_model

STREAM = "envs.adapters:make_stream"
PICTURE_ROWS = 8
MAX_REPORT = 64 * 2**20
"""Bytes of a report; it grows with the horizon."""


def train_tokenizer(config: ExperimentConfig, data: Path, out: Path, trackers: Sequence[str] = ()) -> Tokenizer:
    """Train the VQ-VAE on a dataset; resumes, or returns at once if it is done.

    Raises:
        UsageError: The dataset's frames have another size than the config's, ``out`` holds another run, or a loss
            needs something that is not installed.
    """
    store = EpisodeStore.open(data)
    require_same(
        {"frame_size": store.meta.frame_size},
        {"frame_size": config.tokenizer.frame_size},
        f"{data} does not fit the config",
        f"set tokenizer.frame_size and env.size to {list(store.meta.frame_size)}, or record again",
        ("there", "in the config's tokenizer"),
    )
    training = config.tokenizer_training
    main = make_accelerator(training.precision).is_main_process
    torch.manual_seed(training.seed)
    tokenizer = Tokenizer(config.tokenizer)
    model, loss = make_tokenizer_loss(tokenizer, config.tokenizer_loss)
    batches = ClipSampler(store, "train", training.clip_frames, training.batch_size, training.seed)
    shown = read_clips(store, heldout_clips(store, PICTURE_ROWS, 1, training.seed), 1).frames[:, 0]  # (8, H, W, 3)

    def picture(model: torch.nn.Module, step: int) -> np.ndarray:
        output = model(frames_to_model(shown).to(next(model.parameters()).device))
        drawn = _grid([shown, frames_from_model(output.frames).cpu()])
        save_png(out / "pictures" / f"{step:08d}.png", drawn)
        return drawn

    height, width = config.tokenizer.grid
    summary = f"tokenizer, {height * width} tokens a frame of {config.tokenizer.quantizer.num_codes} codes"
    inputs = {"frame_size": store.meta.frame_size, "env": store.meta.env.model_dump(mode="json")}
    taken = functools.partial(claim, out, config, "tokenizer", inputs)
    fit(model, loss, batches, training, out, summary=summary, picture=picture, claim=taken, trackers=trackers)
    if main:
        save_tokenizer(out, tokenizer)
    return tokenizer


def _grid(rows: list[torch.Tensor]) -> np.ndarray:
    """Picture of rows (N, H, W, 3) under each other."""
    return grid(np.stack([row.numpy() for row in rows]), scale=2)


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
    require_same(
        {"frame_size": store.meta.frame_size},
        {"frame_size": model.config.frame_size},
        f"{data} does not fit {tokenizer}",
        "take the dataset that the tokenizer was trained on, or another one of its size",
        ("there", "of the tokenizer"),
    )
    meta = TokenMeta(tokenizer_hash=hash_module(model), dataset=store.meta, num_codes=model.num_codes, grid=model.grid)
    if processes.is_first:
        if shard_indexes(out):  # of a run that was ended, perhaps of other processes
            merge_shards(out)
        TokenStore.create(out, meta).close()
    processes.follow_first()
    shard = Shard(processes.index, processes.count)
    with TokenStore.create(out, meta, shard) as tokens:
        _tokenize_missing(model, store, tokens, shard)
    processes.gather()
    if processes.is_first:
        merge_shards(out)
    processes.follow_first()
    tokens = TokenStore.open(out)
    processes.gather()  # the first one may keep the counters: it stays until all have read
    return tokens


def _tokenize_missing(model: Tokenizer, store: EpisodeStore, tokens: TokenStore, shard: Shard) -> None:
    """Write the tokens of this shard's episodes that have none yet."""
    console = Console(stderr=True)
    device = next(model.parameters()).device
    missing = [number for number in store.numbers("all") if shard.owns(number) and number not in tokens]
    for number in track(missing, "tokenizing", console=console, disable=shard.index > 0 or not console.is_terminal):
        episode = store.read(number)
        frames = torch.from_numpy(np.array(episode.frames))
        with torch.no_grad():
            parts = [model.encode(frames_to_model(part.to(device))).cpu() for part in frames.split(256)]
        tokens.write(number, torch.cat(parts).numpy(), episode)


def train_dynamics(
    config: ExperimentConfig, tokens: Path, tokenizer: Path, out: Path, world: Path, trackers: Sequence[str] = ()
) -> WorldModel:
    """Train the dynamics on tokens, then join it with its tokenizer into a world.

    Raises:
        UsageError: The tokens were made by another tokenizer, or ``out`` holds another run.
    """
    store = TokenStore.open(tokens)
    vqvae = load_tokenizer(tokenizer)
    made = {"tokenizer_hash": store.meta.tokenizer_hash, "grid": store.meta.grid, "num_codes": store.meta.num_codes}
    made |= {"frame_size": store.meta.dataset.frame_size}
    require_same(
        made,
        {
            "tokenizer_hash": hash_module(vqvae),
            "grid": vqvae.grid,
            "num_codes": vqvae.num_codes,
            "frame_size": vqvae.config.frame_size,
        },
        f"{tokens} was made by another tokenizer than {tokenizer}",
        "run `worldvq tokenize` again into a new folder",
        ("there", "of the tokenizer"),
    )
    training = config.dynamics_training
    main = make_accelerator(training.precision).is_main_process
    torch.manual_seed(training.seed)
    model = Dynamics(config.dynamics, vqvae.grid, vqvae.num_codes, store.action_space)
    model.initialize_embeddings(vqvae.quantizer.codebook)
    batches = ClipSampler(store, "train", training.clip_frames, training.batch_size, training.seed)
    joined = WorldModel(vqvae, model, _world_meta(store.meta, config.evaluate))
    height, width = vqvae.grid
    summary = f"dynamics, {height * width} tokens a frame, clips of {training.clip_frames} frames"
    picture = _imagined_strip(joined, store, config.evaluate, training, out)
    taken = functools.partial(claim, out, config, "dynamics", made | {"action_space": store.action_space.to_json()})
    model = fit(
        model, dynamics_loss, batches, training, out, summary=summary, picture=picture, claim=taken, trackers=trackers
    )
    assert isinstance(model, Dynamics)
    joined = WorldModel(vqvae.to(next(model.parameters()).device), model, joined.meta)
    if main:
        joined.save(world)
    return joined


def _world_meta(meta: TokenMeta, protocol: EvaluateConfig) -> dict[str, Any]:
    dataset = meta.dataset.model_dump(mode="json")
    return {
        "dataset": dataset,
        "env_id": meta.dataset.env.id,
        "sampling": protocol.sampling.model_dump(mode="json"),
        "versions": {"worldvq": worldvq.__version__},
    }


def _imagined_strip(
    world: WorldModel, store: TokenStore, protocol: EvaluateConfig, training: TrainConfig, out: Path
) -> Callable[[torch.nn.Module, int], np.ndarray] | None:
    """Return the picture of a dynamics run: decoded true tokens over imagined ones, for a few held-out clips."""
    length = protocol.context + protocol.horizon
    try:
        clip = read_clips(store, heldout_clips(store, PICTURE_ROWS // 2, length, training.seed), length)
    except UsageError:  # held-out episodes are shorter than that: training goes on without pictures
        return None

    def picture(model: torch.nn.Module, step: int) -> np.ndarray:
        device = next(model.parameters()).device
        here = WorldModel(world.tokenizer.to(device), model, world.meta)  # type: ignore[arg-type]
        imagined = here.imagine_tokens(clip.tokens[:, : protocol.context], clip.actions[:, :-1], seed=training.seed)
        true = here.render(clip.tokens)
        dreamt = true.clone()
        dreamt[:, protocol.context :] = here.render(imagined.tokens)
        rows = [row for pair in zip(true, dreamt, strict=True) for row in pair]
        drawn = _grid(rows)
        save_png(out / "pictures" / f"{step:08d}.png", drawn)
        return drawn

    return picture


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything of one experiment lies."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        """Return ``root/name`` for the known folders."""
        if name not in ("data", "tokens", "tokenizer", "dynamics", "world", "report"):
            raise AttributeError(name)
        return self.root / name


def run_all(config: ExperimentConfig, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Record, train the tokenizer, tokenize, train the dynamics, evaluate, render; each stage only if it is missing.

    Returns:
        The report, with ``stage_seconds`` of what ran now.
    """
    where = Layout(out)
    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        say(f"{name} ...")
        begun = time.monotonic()
        result = work()
        seconds[name] = round(time.monotonic() - begun, 1)
        return result

    stage("record", lambda: record(config.env, config.record, where.data, stream=STREAM).close())
    stage("train tokenizer", lambda: train_tokenizer(config, where.data, where.tokenizer))
    stage("tokenize", lambda: tokenize(where.tokenizer, where.data, where.tokens))
    stage("train dynamics", lambda: train_dynamics(config, where.tokens, where.tokenizer, where.dynamics, where.world))
    stage("evaluate", lambda: _evaluate_once(where, config.evaluate))
    report = read_json(where.report / "report.json", MAX_REPORT)
    stage("render", lambda: _render(where, config.evaluate))
    return {**report, "stage_seconds": seconds}


def _evaluate_once(where: Layout, config: EvaluateConfig) -> None:
    """Evaluate, unless the report of this very world and protocol is there."""
    world = WorldModel.load(where.world)
    path = where.report / "report.json"
    with contextlib.suppress(CorruptFileError, KeyError, TypeError):
        report = read_json(path, MAX_REPORT)
        if report["protocol"] == config.model_dump(mode="json") and report["world"]["hash"] == world.hash():
            return
    evaluate(world, where.data, where.report, config)


def _render(where: Layout, config: EvaluateConfig) -> None:
    """Write ``rollout.mp4`` and its strip and, where actions have the names it needs, the figure of the paper."""

    def write(name: str, actions: str) -> None:
        out, sampling = where.root / name, config.sampling.model_dump()
        imagine(where.world, where.data, out, config.context, config.horizon, actions, 4, config.seed, sampling)

    write("rollout.mp4", "recorded")
    with contextlib.suppress(UsageError):
        write("paper.png", "paper")


__all__ = ["Layout", "run_all", "tokenize", "train_dynamics", "train_tokenizer"]
