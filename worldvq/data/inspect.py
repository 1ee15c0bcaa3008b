"""What ``worldvq data`` shows of a store: a table, a hash check, a contact sheet and a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.table import Table

from worldvq.data.episodes import EpisodeStore
from worldvq.data.shards import shard_indexes
from worldvq.data.tokens import TokenStore
from worldvq.errors import UsageError, plural
from worldvq.types import ActionSpace

SHEET_EPISODES, SHEET_FRAMES = 8, 12
VIDEO_EPISODES, VIDEO_FRAMES = 4, 300
VIDEO_SIDE = 192
"""About how large an episode is drawn in the video, in pixels."""


def open_store(path: str | Path) -> EpisodeStore | TokenStore:
    """Open a dataset or a token store, whichever the folder holds.

    Raises:
        UsageError: It is neither.
    """
    return (TokenStore if (Path(path) / TokenStore.meta_file).is_file() else EpisodeStore).open(path)


def info(path: str | Path) -> Table:
    """Describe a dataset or token store as a table of two columns.

    Raises:
        UsageError: The folder holds neither.
        CorruptFileError: A file is missing or broken.
    """
    store = open_store(path)
    dataset = store.meta.dataset if isinstance(store, TokenStore) else store.meta
    table = Table(title=str(path), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    height, width = dataset.frame_size
    options = ", ".join(f"{key}={value}" for key, value in dataset.env.kwargs.items())
    rows = {
        "environment": dataset.env.id + (f" ({options})" if options else ""),
        "frames": f"{store.num_frames:,} of {height}x{width}",
        "policy": f"{dataset.policy}, seed {dataset.seed}",
        "action space": _space(store.action_space),
    }
    if isinstance(store, TokenStore):
        grid = "x".join(str(side) for side in store.meta.grid)
        rows["tokens"] = f"{grid} a frame, {store.meta.num_codes} codes, tokenizer {store.meta.tokenizer_hash[:12]}"
    rows |= _episode_rows(store)
    if waiting := shard_indexes(store.path):
        rows["not merged"] = f"{plural(len(waiting), 'shard')}: worldvq data merge {store.path}"
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _episode_rows(store: EpisodeStore | TokenStore) -> dict[str, str]:
    """Rows of the table that describe the episodes."""
    entries = store.entries
    if not entries:
        return {"episodes": "none"}
    lengths = [entry.num_frames for entry in entries]
    returns = [entry.episode_return for entry in entries]
    endings = [
        f"{sum(getattr(entry, name) for entry in entries)} {name}"
        for name in ("terminated", "truncated", "interrupted")
    ]
    heldout = store.numbers("heldout")
    frames = sum(store.entry(number).num_frames for number in heldout)
    size = sum((store.path / entry.file).stat().st_size for entry in entries if (store.path / entry.file).is_file())
    rows = {
        "episodes": f"{len(entries)}: {', '.join(endings)}",
        "held out": f"{plural(len(heldout), 'episode')}, {plural(frames, 'frame')} (1 in {store.heldout_every})",
        "frames an episode": f"{min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.1f}",
        "return": f"{min(returns):.3g} to {max(returns):.3g}, mean {np.mean(returns):.3g}",
        "on disk": f"{size / 2**20:.1f} MiB",
    }
    space = store.action_space
    if space.kind == "discrete":
        counts = sum(np.bincount(store.mapped(entry.number).actions, minlength=space.nvec[0]) for entry in entries)
        shares = np.asarray(counts) / np.sum(counts)
        rows["actions"] = ", ".join(f"{space.label(action)} {share:.1%}" for action, share in enumerate(shares))
    return rows


def _space(space: ActionSpace) -> str:
    if space.kind == "box":
        return f"box of {len(space.low)}: " + ", ".join(
            f"[{low:g}, {high:g}]" for low, high in zip(space.low, space.high, strict=True)
        )
    return f"{space.kind.replace('_', '-')} {' x '.join(str(n) for n in space.nvec)}"


def preview(path: str | Path, out: str | Path) -> list[Path]:
    """Draw a contact sheet (PNG, a row an episode) and a video of a few episodes side by side (mp4).

    Returns:
        The two files, in the folder ``out``.

    Raises:
        UsageError: The folder holds no dataset, or an empty one.
        RunError: A file is broken, or one cannot be written.
    """
    from worldvq.media.pictures import draw_label, grid, save_png, write_video  # drawing is needed nowhere else in data

    store, out = EpisodeStore.open(path), Path(out)
    if not len(store):
        raise UsageError(f"{path} holds no episodes yet; record some with: {store.how_to_make}")
    numbers = _spread(store.numbers("all"), SHEET_EPISODES)
    rows = []
    for number in numbers:
        frames = store.frames(number)
        factor = _factor(frames, 96)
        picked = _spread(list(range(len(frames))), SHEET_FRAMES)
        labels = [_label(store, number), *(f"frame {index}" for index in picked[1:])]
        rows.append(
            [draw_label(_enlarge(frames[i], factor), text, height=18) for i, text in zip(picked, labels, strict=True)]
        )
    sheet = save_png(out / "contact_sheet.png", grid(rows))

    shown = _spread(numbers, VIDEO_EPISODES)

    def pictures() -> Iterator[np.ndarray]:
        episodes = [store.frames(number)[:VIDEO_FRAMES] for number in shown]
        for step in range(max(len(frames) for frames in episodes)):
            tiles = []
            for number, frames in zip(shown, episodes, strict=True):
                frame = _enlarge(frames[min(step, len(frames) - 1)], _factor(frames, VIDEO_SIDE))
                if step >= len(frames):
                    frame = frame // 3  # darkened: this episode is over
                tiles.append(draw_label(frame, _label(store, number)))
            yield grid([tiles])

    return [sheet, Path(write_video(out / "preview.mp4", pictures(), fps=15))]


def _label(store: EpisodeStore, number: int) -> str:
    heldout = number % store.heldout_every == store.heldout_every - 1
    return f"episode {number}" + (" (held out)" if heldout else "")


def _spread(values: list[int], count: int) -> list[int]:
    """At most ``count`` of the values, evenly spread, the first and the last among them."""
    if len(values) <= count:
        return values
    return [values[index] for index in np.linspace(0, len(values) - 1, count).round().astype(int)]


def _factor(frames: np.ndarray, side: int) -> int:
    return max(1, round(side / max(frames.shape[1:3])))


def _enlarge(frame: np.ndarray, factor: int) -> np.ndarray:
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)
