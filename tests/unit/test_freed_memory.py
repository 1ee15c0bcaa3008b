"""What a process frees it gets again without asking the system for new pages."""

import platform
import resource

import pytest
import torch
from support.training import finish, start

from worldvq.nn.memory import keep_freed_memory

LARGE = 2**26
"""Bytes; glibc by itself always gives blocks of this size back."""


def pages_of_large_blocks() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(LARGE, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def count_pages(out) -> None:
    counts = [pages_of_large_blocks()]
    keep_freed_memory()
    # A small block behind a large one leaves it too small for its like, aligned: then the heap grows, once.
    counts.append(min(pages_of_large_blocks() for _ in range(6)))
    out.write_text(" ".join(map(str, counts)))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_used_again(tmp_path):
    (job,) = start(1, tmp_path / "log", count_pages, tmp_path / "counts")
    assert finish([job]) == [0], job.log.read_text()
    without, kept = map(int, (tmp_path / "counts").read_text().split())
    huge_pages = 2**21  # a system may hand out pages as large as this
    assert without >= 4 * LARGE // huge_pages > 8 * kept
