"""Folders of files that others made: which ones there are, and of what class the folder makes them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from worldvq.data.episode_files import MAX_LABEL
from worldvq.errors import UsageError, plural
from worldvq.files.differences import printable


class Source(NamedTuple):
    """A file of a folder: where it lies below it, and how many bytes it has."""

    path: str
    num_bytes: int


def find_classes(
    folder: Path, what: str, suffixes: tuple[str, ...], of: tuple[str, str] = ("class", "classes")
) -> dict[str, list[Source]]:
    """Find the files of every class; the name of the first folder level is the class of a file, "" is none.

    Hidden files and symbolic links are left out. Prints what is found and what is not.

    Args:
        folder: Holds the files, at any depth.
        what: One of them, for messages: ``image``.
        suffixes: What their names end in, in lower case.
        of: A class, and several, for messages.

    Raises:
        UsageError: There is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise UsageError(f"no such folder of {what}s: {folder}")
    left_out: Counter[str] = Counter()
    classes: dict[str, list[Source]] = {}
    for entry in _walk(folder, suffixes, left_out):
        path = Path(entry.path).relative_to(folder)
        label = printable(path.parts[0])[:MAX_LABEL] if len(path.parts) > 1 else ""
        classes.setdefault(label, []).append(Source(str(path), entry.stat().st_size))
    count = sum(len(files) for files in classes.values())
    rest = ", ".join(f"{kind} {number:,}" for kind, number in sorted(left_out.items()))
    if not count:
        raise UsageError(
            f"{folder} holds no {what}s: none of its files ends in {', '.join(suffixes)}"
            + (f" (left out: {rest})" if rest else "")
        )
    named = sum(bool(label) for label in classes)
    among = f" of {named:,} {of[named != 1]}" if named else ""
    print(f"{plural(count, what)}{among} in {folder}" + (f" (left out: {rest})" if rest else ""), flush=True)
    return dict(sorted(classes.items()))


def _walk(folder: Path, suffixes: tuple[str, ...], left_out: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """Yield the files below a folder, in any order, and count what else is there."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        left_out["folders that cannot be listed"] += 1
        return
    for entry in entries:
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif entry.is_symlink():
            left_out["symbolic links"] += 1
        elif entry.is_dir():
            yield from _walk(Path(entry.path), suffixes, left_out)
        elif entry.is_file() and entry.name.lower().endswith(suffixes):
            yield entry
        else:
            left_out["other files"] += 1
