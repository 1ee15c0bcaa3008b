"""Several writers of one store, each of its own episodes, and the merging of what they listed.

A :class:`~worldvq.data.shard.Shard` writes the files of its episodes beside those of the others and lists them in an
index of its own; merging rewrites nothing but the index. So recording scales over machines without a coordinator.
"""

from __future__ import annotations

import re
from pathlib import Path

from worldvq.data.episode_files import IndexEntry, read_index
from worldvq.data.shard import INDEX, Shard
from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.atomic import disk_errors, write_atomic
from worldvq.files.lock import Lock

_INDEX_OF_SHARD = re.compile(r"index\.(\d+)-of-(\d+)\.jsonl")


def shard_indexes(folder: Path) -> dict[Path, Shard]:
    """Return the indexes of shards in a folder that are not merged yet."""
    found = {}
    for path in sorted(folder.glob("index.*-of-*.jsonl")):
        match = _INDEX_OF_SHARD.fullmatch(path.name)
        if match and int(match[1]) < int(match[2]):
            found[path] = Shard(int(match[1]), int(match[2]))
    return found


def merge_shards(folder: Path) -> int:
    """List in ``index.jsonl`` what the shards listed, in order of number; no episode is read or moved.

    Returns:
        How many shards were merged.

    Raises:
        RunError: A shard is still being written to, or the disk is full; the indexes are as before.
        CorruptFileError: An index is damaged, two list different episodes under one number, or a file is missing.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    lock = Lock(folder)
    try:
        for stale in (*folder.glob(".*.tmp"), *folder.glob("episodes/.*.tmp")):  # nobody writes: a killed shard left it
            stale.unlink(missing_ok=True)
        shards = shard_indexes(folder)
        entries: dict[int, IndexEntry] = {}
        for path in (folder / INDEX, *shards):
            for entry in read_index(path)[0]:
                if entries.setdefault(entry.number, entry) != entry:
                    raise CorruptFileError(f"{path}: episode {entry.number} is another one than in the other indexes")
                if not (folder / entry.file).is_file():
                    raise CorruptFileError(f"{folder / entry.file}: missing; {path.name} lists it: copy it here too")
        if shards or list(entries) != sorted(entries):  # what was merged in the middle may have been continued since
            write_atomic(folder / INDEX, b"".join(entries[number].to_line() for number in sorted(entries)))
            with disk_errors(folder):
                for path, shard in shards.items():
                    path.unlink()
                    (folder / shard.lock_name).unlink(missing_ok=True)
        return len(shards)
    finally:
        lock.release()
