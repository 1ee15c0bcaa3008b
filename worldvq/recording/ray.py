"""Recording on a Ray cluster: every actor is a shard, so nothing is coordinated but who plays which.

An actor that is lost, with its machine or without, is replaced; its shard goes on after the last episode it committed.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.data.shard import Shard
from worldvq.errors import RunError, UsageError, WorldVQError, one_line, plural
from worldvq.files.lock import check_unlocked
from worldvq.recording.config import RecordConfig
from worldvq.recording.record import record

LOSSES = 3
"""How often in a row the actor of a shard may be lost without an episode in between."""
LOCK_SECONDS = 60.0
"""How long a new actor waits for the one before it to be really gone."""


class _Recorder:
    """What an actor does: record its shard with its own worker processes."""

    def record(self, env: EnvConfig, config: RecordConfig, out: Path, stream: str, shard: Shard) -> int:
        """Record; returns how many episodes the shard holds."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                check_unlocked(out, shard.lock_name)
                break
            except RunError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        with record(env, config, out, stream=stream, progress=False, shard=shard) as store:
            return len(store)


def record_on_ray(
    env: EnvConfig,
    config: RecordConfig,
    out: Path,
    actors: int,
    *,
    stream: str,
    progress: bool = True,
) -> EpisodeStore:
    """Record a dataset, or continue one, on the Ray cluster of ``RAY_ADDRESS``, or one that is started here.

    Args:
        env: What to play.
        config: As for :func:`~worldvq.recording.record.record`; every actor starts ``config.workers`` processes.
        out: Folder of the dataset, on a file system that all machines share.
        actors: How many; each is given ``config.workers`` CPUs.
        stream: See :func:`~worldvq.recording.record.record`.
        progress: Show a line now and then.

    Returns:
        The merged store, open for reading.

    Raises:
        UsageError: Ray is not installed, or what an actor refused.
        RunError: What an actor failed with, or an actor is lost again and again. Committed episodes stay.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise UsageError('--ray needs Ray: pip install "worldvq[ray]"') from None
    check_unlocked(out)
    if not ray.is_initialized():
        ray.init(log_to_driver=True, include_dashboard=False)
    most = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    if most < config.workers:  # or its actors would wait for ever
        raise UsageError(f"--workers {config.workers}: no machine of the Ray cluster has more than {most:g} CPUs")
    remote: Any = ray.remote(num_cpus=config.workers, max_restarts=0)(_Recorder)
    out = out.resolve()
    shards = [Shard(index, actors) for index in range(actors)]
    losses = dict.fromkeys(shards, 0)
    counts = {shard: _committed(out, shard) for shard in shards}
    handles: dict[Shard, Any] = {}
    tasks: dict[Any, Shard] = {}

    def start(shard: Shard) -> None:
        handles[shard] = remote.remote()
        tasks[handles[shard].record.remote(env, config, out, stream, shard)] = shard

    try:
        for shard in shards:
            start(shard)
        while tasks:
            done, _ = ray.wait(list(tasks), timeout=5.0)
            for task in done:
                shard = tasks.pop(task)
                try:
                    ray.get(task)
                    ray.kill(handles.pop(shard))  # where there are more actors than CPUs, others wait for its place
                except ray.exceptions.RayTaskError as error:
                    raise _own(error) from None
                except ray.exceptions.RayError as error:
                    committed = _committed(out, shard)
                    losses[shard] = losses[shard] + 1 if committed == counts[shard] else 1
                    counts[shard] = committed
                    if losses[shard] > LOSSES:
                        raise RunError(f"{out}: the actor of shard {shard} was lost {LOSSES} times: {error}") from None
                    kept = plural(committed, "episode")
                    print(f"worldvq: the actor of shard {shard} was lost after {kept}; another goes on")
                    start(shard)
            if progress:
                episodes = sum(_committed(out, shard) for shard in shards)
                Console(stderr=True).print(
                    f"recording on Ray: {plural(episodes, 'episode')} by {plural(actors, 'actor')}", highlight=False
                )
    finally:
        for handle in handles.values():
            ray.kill(handle)
    return EpisodeStore.merge(out)


def _committed(out: Path, shard: Shard) -> int:
    """Episodes that a shard has listed and that are not merged."""
    path = out / shard.index_name
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _own(error: Any) -> WorldVQError:
    """The actor's own error, as it would have been raised here."""
    cause = error.cause
    return cause if isinstance(cause, WorldVQError) else RunError(f"an actor failed: {one_line(cause)}")
