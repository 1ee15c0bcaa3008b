"""Who holds a folder is told by name, and nobody who does not hold it."""

import os

import pytest

from worldvq.errors import RunError
from worldvq.files.lock import NAME, Lock, check_unlocked


def test_the_owner_is_told(tmp_path):
    lock = Lock(tmp_path)
    for shared in (False, True):
        with pytest.raises(RunError, match=rf"process {os.getpid()} on .* is writing to it"):
            Lock(tmp_path, shared=shared)
    lock.release()
    check_unlocked(tmp_path)


def test_shards_share_and_nobody_is_told_the_owner_that_was_there_before_them(tmp_path):
    (tmp_path / NAME).write_text("process 123 on nowhere (since 2001-01-01 00:00:00)\n")  # as a killed one leaves it
    shards = [Lock(tmp_path, shared=True) for _ in range(2)]
    with pytest.raises(RunError, match=r": another process is writing to it"):
        Lock(tmp_path)
    for shard in shards:
        shard.release()
    Lock(tmp_path).release()


def test_what_a_dead_owner_leaves_is_nobodys(tmp_path):
    (tmp_path / NAME).write_text("process 123 on nowhere (since 2001-01-01 00:00:00)\n" * 3)
    lock = Lock(tmp_path)
    assert (tmp_path / NAME).read_text().startswith(f"process {os.getpid()} on ")
    assert (tmp_path / NAME).read_text().count("process") == 1
    lock.release()
