"""Opening the page (:mod:`worldvq.play`): on a world, beside the real environment, or on that alone to record it."""

from __future__ import annotations

import secrets
import socket
from functools import partial
from pathlib import Path

import numpy as np

from worldvq.config.code import import_named
from worldvq.config.env import IMPORTED, EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError, plural
from worldvq.evaluation.branches import plans_of
from worldvq.evaluation.protocol import check_fits
from worldvq.play.real import Real, Stream, Takes
from worldvq.play.server import Table, listen, serve
from worldvq.play.starts import Openings, Start, find_starts
from worldvq.recording.config import RecordConfig
from worldvq.recording.policies import HUMAN
from worldvq.recording.record import describe_dataset, episode_seed
from worldvq.stages.interventions import environment_of
from worldvq.stages.record import STREAM, as_before
from worldvq.world.model import WorldModel

LOCAL = "127.0.0.1"


def play(
    world_folder: Path,
    data: Path | None,
    *,
    real: bool = False,
    record: Path | None = None,
    context: int | None = None,
    host: str = LOCAL,
    port: int = 7860,
    device: str = "auto",
    trust: bool = False,
) -> None:
    """Serve the page of a world until Ctrl-C.

    Args:
        world_folder: A trained world.
        data: Dataset whose held-out episodes give the starting contexts; None looks beside the world.
        real: Play the dataset's environment beside the dream.
        record: Folder of the dataset that real episodes are kept in; None keeps none.
        context: Frames of a context; None takes as many as the world remembers.
        host: Address to listen on; any but ``127.0.0.1`` asks players for a token, which is printed.
        port: Where; 0 takes a free one.
        device: See :meth:`WorldModel.load`.
        trust: Run code that the dataset names: a module, wrappers, keywords.

    Raises:
        UsageError: Something does not fit, or cannot be had; nothing was written.
    """
    _check_host(host)
    if record is not None and not real:
        raise UsageError(f"--record {record} keeps what is played for real: add --real")
    world = WorldModel.load(world_folder, device)
    data = data or world_folder.parent / "data"
    if not (data / EpisodeStore.meta_file).is_file():
        raise UsageError(f"no dataset in {data} to begin in: give the one that the world was made of with --data DIR")
    with EpisodeStore.open(data) as store:
        check_fits(world, store)
        env, sound = store.meta.env, store.meta.sound
        starts = find_starts(store, context, world.dynamics.config.context_frames)
    table = Table(env.id, world.action_space, world.frame_size, Openings(world, starts), plans_of(world.action_space))
    if real:
        table.open_real = _environment(env, data, trust)
        _prove(table.open_real, starts[0], env)
    with listen(host, port) as listening:
        store = None
        try:
            if record is not None:
                config = as_before(RecordConfig(policy=HUMAN), record)
                meta = describe_dataset(env, config, world.action_space, sound=sound)
                store = EpisodeStore.create(record, meta)
                table.takes = Takes(store, lambda number: episode_seed(meta.seed, number))
            _serve(table, listening, host)
        finally:
            if store is not None:
                store.close()


def record_by_hand(env: EnvConfig, config: RecordConfig, out: Path, port: int) -> None:
    """Serve the page of a real environment, and keep what is played, until Ctrl-C or there is enough.

    Raises:
        UsageError: The environment cannot be played, or ``out`` holds another dataset; nothing was written.
    """
    if env.id.startswith(IMPORTED):
        raise UsageError(f"'{env.id}' are {env.kind}, which nobody can play")
    config = as_before(config, out)
    stream = import_named(STREAM)(env)
    try:
        stream.reset(episode_seed(config.seed, 0))
        lines, space = stream.describe(), stream.action_space
        meta = describe_dataset(env, config, space, sound=stream.sound_format)
    finally:
        stream.close()
    for line in lines:
        print(f"recording '{env.id}': {line}", flush=True)
    with listen(LOCAL, port) as listening, EpisodeStore.create(out, meta) as store:
        seed_of = partial(episode_seed, config.seed)
        takes = Takes(store, seed_of, config.episodes, config.frames)
        if not takes.enough:
            table = Table(env.id, space, env.size, open_real=partial(import_named(STREAM), env), takes=takes)
            _serve(table, listening, LOCAL)
        print(f"{out}: {plural(len(store), 'episode')}, {plural(store.num_frames, 'frame')}")


def _environment(env: EnvConfig, data: Path, trust: bool) -> partial[Stream]:
    """Return what builds the environment of a dataset."""
    if env.id.startswith(IMPORTED):
        raise UsageError(f"'{env.id}' are {env.kind}, which nobody can play: leave --real out")
    return environment_of(env, data, trust)


def _prove(open_stream: partial[Stream], start: Start, env: EnvConfig) -> None:
    """Refuse an environment that does not come to the frames of a start again: dream and reality would begin apart."""
    real = Real(open_stream)
    try:
        frame = real.begin(start.seed, start.path).frame
    finally:
        real.close()
    if not np.array_equal(frame, start.frames[-1]):
        raise UsageError(
            f"'{env.id}', played again with its seed and actions, shows other frames than were recorded: it cannot "
            "stand beside the dream; leave --real out"
        )


def _check_host(host: str) -> None:
    if host in ("", "0.0.0.0", "::", "*"):
        raise UsageError(f"--host '{host}' is every address: name the one that people type, for instance 192.168.1.20")


def _serve(table: Table, listening: socket.socket, host: str) -> None:
    token = None if host == LOCAL else secrets.token_urlsafe(24)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
    print(f"play at {address} (Ctrl-C ends it)", flush=True)
    serve(table, listening, token, host)
