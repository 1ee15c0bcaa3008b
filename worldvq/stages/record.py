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
    store = recorder.record(env, as_before(config, out), out, stream=STREAM, progress=progress, shard=shard)
    return _checked(store) if shard.is_whole else store


def record_on_ray(env: EnvConfig, config: RecordConfig, out: Path, actors: int) -> EpisodeStore:
    """Record a Gymnasium environment on a Ray cluster; see :func:`worldvq.recording.ray.record_on_ray`."""
    return _checked(ray.record_on_ray(env, as_before(config, out), out, actors, stream=STREAM))


def as_before(config: RecordConfig, out: Path) -> RecordConfig:
    """Return the config that goes on as the dataset which it continues, where it does not say otherwise itself.

    That is what is held out and, of a dataset from when ``held`` was the default, who plays.
    """
    if not (out / EpisodeStore.meta_file).is_file():
        return config
    meta = EpisodeStore.read_meta(out)
    before = {"heldout_every": meta.heldout_every}
    if meta.policy.split(" ")[0] == "held":
        before["policy"] = "held"
    return config.model_copy(update={key: before[key] for key in before.keys() - config.model_fields_set})


def _checked(store: EpisodeStore) -> EpisodeStore:
    """Say now, not hours later, that training or evaluating will lack episodes."""
    if problem := store.split_problem():
        print(f"warning: {problem}", flush=True)
    return store
