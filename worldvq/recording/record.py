"""Parallel recording: worker processes play whole episodes and write them, the parent lists them in order.

Episode n is a pure function of (seed, n), so the same seed gives the same dataset with any number of workers or shards,
and an interrupted recording continues with the next number. An environment that fails, hangs or kills its process costs
the rest of one episode, which is kept as interrupted, and nothing else.
"""

from __future__ import annotations

import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from worldvq.config.env import IMPORTED, EnvConfig, SoundFormat
from worldvq.config.yaml_loading import build
from worldvq.data.episode_files import IndexEntry, file_name, read_index
from worldvq.data.episodes import DatasetMeta, EpisodeStore, write_episode
from worldvq.data.shard import Shard
from worldvq.errors import RunError, UsageError, plural
from worldvq.files.lock import check_unlocked
from worldvq.recording.config import RecordConfig
from worldvq.recording.playing import episode_seed, play, undo_steps
from worldvq.recording.policies import check_policy
from worldvq.recording.undo import Undo, completed, describe_undo
from worldvq.recording.workers import Failure, Job, Pool
from worldvq.types import ActionSpace

ATTEMPTS = 3
"""How often an episode may fail before its first transition."""
FAILED_EPISODES = 5
"""After how many interrupted episodes in a row recording ends: the environment is broken."""

__all__ = ["episode_seed", "play", "record", "settings_of"]


def record(
    env: EnvConfig,
    config: RecordConfig,
    out: Path,
    *,
    stream: str,
    progress: bool = True,
    shard: Shard = Shard(),  # noqa: B008 (frozen)
) -> EpisodeStore:
    """Record a dataset, or continue one.

    Args:
        env: What to play.
        config: How much, by whom. With ``frames``, the episode that reaches the count is truncated there.
        out: Folder of the dataset.
        stream: ``module:function`` that builds a :class:`~worldvq.recording.policies.Stream` from ``env``.
        progress: Say what is recorded, and show a progress bar.
        shard: Record only this shard's episodes, or its share of the frames; others record theirs into the same folder.

    Returns:
        The store, open for reading and writing.

    Raises:
        UsageError: The environment or policy cannot be used, or ``out`` holds another dataset; nothing was written.
        RunError: The environment keeps failing, the disk is full, or somebody else is recording into ``out``.
            Committed episodes stay.
    """
    _refuse_imported(env, out)
    check_policy(config.policy)
    if config.frames is None and config.episodes is None:
        raise UsageError("nothing to record: set record.frames or record.episodes")
    check_unlocked(out, shared=not shard.is_whole)
    pool = Pool(stream, env, config, out)
    try:
        action_space = pool.probe()

        def say_lines() -> None:
            for line in pool.lines if progress else ():
                print(f"recording '{env.id}': {line}", flush=True)
            pool.lines.clear()

        say_lines()
        if config.policy == "retrace":
            _know_undo(pool, config, out, say_lines)
            say_lines()
        meta = describe_dataset(env, config, action_space, pool.undo, pool.sound_format)
        store = EpisodeStore.create(out, meta, shard)
        try:
            try:
                if _reached(store, config, shard) < _target(config, shard):
                    with _progress(config, store, shard, progress) as advance:
                        _fill(store, pool, config, shard, advance)
            finally:
                pool.close()
                _remove_unlisted(store, shard)
        except BaseException:
            store.close()
            raise
        return store
    finally:
        pool.close()


def _know_undo(pool: Pool, config: RecordConfig, out: Path, say_lines: Callable[[], None]) -> None:
    """Have the pool know which action undoes which: as it was given, as the dataset has it, or by trying."""
    if pool.undo is None:
        pool.undo = _undo_in(out)
    if pool.undo is None:
        pool.lines.append(f"trying which action undoes which, in {undo_steps(config):,} steps at most")
        say_lines()  # a slow environment takes a while
        pool.find_undo()
        found = _undo_in(out)  # of another shard, which was faster
        pool.undo = pool.undo if found is None else found
    pool.undo = completed(pool.undo or {})
    pool.lines.append(describe_undo(pool.undo))


def _undo_in(out: Path) -> Undo | None:
    return EpisodeStore.read_meta(out).undo if (out / EpisodeStore.meta_file).is_file() else None


def describe_dataset(
    env: EnvConfig,
    config: RecordConfig,
    action_space: ActionSpace,
    undo: Undo | None = None,
    sound: SoundFormat | None = None,
) -> DatasetMeta:
    """Return what a dataset says it was recorded from."""
    kinds = {"held": f"held {config.hold} while frames change", "retrace": f"retrace {config.hold}"}
    names = ("worldvq", "gymnasium", "numpy", *(("vizdoom",) if "izdoom" in env.id else ()))
    return DatasetMeta(
        env=env,
        action_space=action_space.to_json(),
        frame_size=env.size,
        seed=config.seed,
        # The name says how: what the older `held N` recorded, which dropped no action, is not continued by this one.
        policy=kinds.get(config.policy, config.policy),
        undo=undo if config.policy == "retrace" else None,
        heldout_every=config.heldout_every,
        compression=config.compression,
        sound=sound,
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in names}},
    )


def settings_of(out: Path) -> tuple[EnvConfig, RecordConfig]:
    """Return what a dataset was recorded with, so that it can be continued.

    Whoever made the dataset chose what these settings import and run: ask before doing so.

    Raises:
        UsageError: There is no dataset.
    """
    meta = EpisodeStore.open(out).meta
    _refuse_imported(meta.env, out)
    policy, *words = meta.policy.split(" ")
    kept = {"policy": policy, "hold": words[0]} if policy in ("held", "retrace") and words else {"policy": meta.policy}
    kept |= {"undo": meta.undo}
    kept |= {"seed": meta.seed, "heldout_every": meta.heldout_every, "compression": meta.compression}
    return meta.env, build(RecordConfig, kept, str(out / EpisodeStore.meta_file))


def _refuse_imported(env: EnvConfig, out: Path) -> None:
    if env.id.startswith(IMPORTED):
        again = "add yours to the folder and import it again" if env.kind == "videos" else "import a folder of them"
        raise UsageError(
            f"'{env.id}' are {env.kind}, which nobody can play: {again} "
            f"(worldvq data import {env.kind} FOLDER --out {out}), or record an environment into another folder"
        )


def _target(config: RecordConfig, shard: Shard) -> int:
    """How many episodes, or else frames, this shard records."""
    if config.episodes is not None:
        return shard.share(config.episodes)
    assert config.frames is not None
    return -(-config.frames // shard.count)


def _reached(store: EpisodeStore, config: RecordConfig, shard: Shard) -> int:
    return sum(_worth(entry, config) for entry in store.entries if shard.owns(entry.number))


def _worth(entry: IndexEntry, config: RecordConfig) -> int:
    """How far an episode brings a recording: one episode, or else its frames."""
    return 1 if config.episodes is not None else entry.num_frames


def _fill(store: EpisodeStore, pool: Pool, config: RecordConfig, shard: Shard, advance: Any) -> None:
    """Hand out numbers, commit results in order of number until the target is reached, throw away what is over."""
    missing = (n for n in count(shard.index, shard.count) if n not in store)
    jobs: deque[Job] = deque()  # given back by a worker that was replaced, or to be begun again
    turns: deque[int] = deque()  # numbers in the order in which they are committed
    waiting: dict[int, tuple[IndexEntry, str]] = {}
    reached, target, in_a_row = _reached(store, config, shard), _target(config, shard), 0
    for _ in range(min(config.workers, config.episodes or config.workers) - 1):
        pool.start()
    while reached < target:
        while pool.idle:
            job = jobs.popleft() if jobs else Job(next(missing))
            if config.episodes is not None and job.number >= config.episodes:
                break
            if job.attempt == 0 and job.number not in turns:
                turns.append(job.number)
            pool.give(job)
        for result in pool.results():
            if isinstance(result, Job):
                jobs.append(result)
            elif isinstance(result, IndexEntry):
                waiting[result.number] = result, ""
            else:
                _take_failure(result, store, config, jobs, waiting)
        while turns and reached < target:
            cut = _cut(turns[0], waiting, pool, store, config, target - reached)
            if cut is None and turns[0] not in waiting:
                break
            entry, error = (cut, "") if cut else waiting[turns[0]]
            waiting.pop(turns.popleft(), None)
            store.append(entry)
            reached += _worth(entry, config)
            in_a_row = in_a_row + 1 if entry.interrupted else 0
            if in_a_row >= FAILED_EPISODES:
                raise RunError(f"{in_a_row} episodes in a row failed, all kept in {store.path}; the last: {error}")
        playing = 0 if config.episodes is not None else sum(spool.num_frames() for spool in pool.in_play().values())
        advance(store, reached, playing)


def _cut(
    number: int, waiting: dict[int, Any], pool: Pool, store: EpisodeStore, config: RecordConfig, left: int
) -> IndexEntry | None:
    """Truncate the next episode, played or in play, where the frames that were asked for are reached, and write it.

    Only once one frame more is there: the reward of the last transition is final then. None where it is not longer.
    """
    if config.episodes is not None:
        return None
    most = max(left, 2)  # one transition
    if number in waiting:
        entry = waiting[number][0]
        return store.truncate(entry, most) if entry.num_frames > most else None
    spool = pool.in_play().get(number)
    if spool is None or spool.num_frames() <= most:
        return None
    episode = pool.cut(number, most)
    return write_episode(store.path, number, episode, config.compression) if episode else None


def _take_failure(
    failure: Failure, store: EpisodeStore, config: RecordConfig, jobs: deque[Job], waiting: dict[int, Any]
) -> None:
    """Keep what was played of an episode that failed, or have it begun once more."""
    job, episode = failure.job, failure.episode
    error = f"'{store.meta.env.id}', episode {job.number}, seed {failure.seed}: {failure.error}"
    if episode is not None:
        entry = write_episode(store.path, job.number, episode, config.compression)
        waiting[job.number] = entry, error
        outcome = (
            f"interrupted after {plural(len(episode), 'step')}" if episode.interrupted else "was over all the same"
        )
    elif job.attempt + 1 < ATTEMPTS:
        jobs.appendleft(Job(job.number, job.attempt + 1))
        outcome = "begun again"
    else:
        raise RunError(f"{error} (before the first step, {ATTEMPTS} times); committed episodes are safe")
    print(f"worldvq: {error}; {outcome}, its worker is replaced", file=sys.stderr, flush=True)


def _remove_unlisted(store: EpisodeStore, shard: Shard) -> None:
    """Remove files that are finished or half-written but not committed, from the first number that is missing on."""
    # What is committed stands on disk; the store in memory may not know, as Ctrl-C can come right after.
    listed = {entry.number for entry in (*read_index(store.path / shard.index_name)[0], *store.entries)}
    first = next(n for n in count(shard.index, shard.count) if n not in listed)
    for file in (store.path / "episodes").iterdir():
        name = file.name.removeprefix(".").partition(".")[0]
        if not name.isdecimal() or not shard.owns(number := int(name)):
            continue
        unlisted = number >= first and number not in listed
        if file.suffix == ".tmp" or (unlisted and file == store.path / file_name(number)):
            file.unlink(missing_ok=True)


@contextmanager
def _progress(config: RecordConfig, store: EpisodeStore, shard: Shard, show: bool) -> Iterator[Any]:
    """Yield a function that shows how far the store is: a bar on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    numbers = TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    columns = (TextColumn("recording"), BarColumn(bar_width=12), TextColumn("ETA"), TimeRemainingColumn(), numbers)
    bar = Progress(*columns, console=console, expand=True)
    task = bar.add_task("record", total=_target(config, shard), text="starting workers")
    begun, before, last = time.monotonic(), store.num_frames, time.monotonic()

    def advance(store: EpisodeStore, reached: int, playing: int) -> None:
        nonlocal last
        frames = store.num_frames + playing  # of all episodes in play, of which the last may be cut or not be needed
        rate = (frames - before) / (time.monotonic() - begun)
        text = f"{plural(len(store), 'episode')}, {plural(frames, 'frame')}, {rate:,.0f} frames/s"
        bar.update(task, completed=min(reached + playing, _target(config, shard)), text=text)
        if show and not console.is_terminal and time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"recording: {text}", flush=True)

    if show and console.is_terminal:
        bar.start()
    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
