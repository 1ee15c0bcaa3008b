"""Recording with the environments of :mod:`worldvq_envs`: here the recorder is handed its adapter."""

from __future__ import annotations

from pathlib import Path

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.data.shard import Shard
from worldvq.recording import ray
from worldvq.recording import record as recorder
from worldvq.recording.config import RecordConfig

STREAM = "worldvq_envs.adapters:make_stream"


def record(
    env: EnvConfig,
    config: RecordConfig,
    out: Path,
    *,
    progress: bool = True,
    shard: Shard = Shard(),  # noqa: B008 (frozen)
) -> EpisodeStore:
    """Record a Gymnasium environment; see :func:`worldvq.recording.record.record`."""
    return recorder.record(env, config, out, stream=STREAM, progress=progress, shard=shard)


def record_on_ray(env: EnvConfig, config: RecordConfig, out: Path, actors: int) -> EpisodeStore:
    """Record a Gymnasium environment on a Ray cluster; see :func:`worldvq.recording.ray.record_on_ray`."""
    return ray.record_on_ray(env, config, out, actors, stream=STREAM)
