"""What ``worldvq data`` shows of a store: a table, a hash check, a contact sheet and a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from worldvq.data.episodes import EpisodeStore
from worldvq.data.shards import shard_indexes
from worldvq.data.sounds import SoundStore
from worldvq.data.tokens import TokenStore
from worldvq.errors import UsageError, plural
from worldvq.types import ActionSpace

SHEET_EPISODES, SHEET_FRAMES, SHEET_SIDE = 8, 12, 128
VIDEO_EPISODES, VIDEO_FRAMES, VIDEO_SIDE = 4, 300, 192
"""How many are drawn, and, where no scale is given, about how large, in pixels."""
SHOWN_LABELS = 20


def open_store(path: str | Path) -> EpisodeStore | TokenStore | SoundStore:
    """Open a dataset, a token store or a store of sounds, whichever the folder holds.

    Raises:
        UsageError: It is none of them.
    """
    kinds = (TokenStore, SoundStore)
    return next((kind for kind in kinds if (Path(path) / kind.meta_file).is_file()), EpisodeStore).open(path)


def info(path: str | Path) -> Table:
    """Describe a dataset, token store or store of sounds as a table of two columns.

    Raises:
        UsageError: The folder holds none of them.
        CorruptFileError: A file is missing or broken.
    """
    store = open_store(path)
    table = Table(title=str(path), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    if isinstance(store, SoundStore):
        rows = {"from": store.meta.source, "sounds": store.describe()}
        for name, text in (rows | _labels(store)).items():
            table.add_row(name, text)
        return table
    dataset = store.meta.dataset if isinstance(store, TokenStore) else store.meta
    height, width = dataset.frame_size
    options = ", ".join(f"{key}={value}" for key, value in dataset.env.kwargs.items())
    rows = {
        "environment": dataset.env.id + (f" ({options})" if options else ""),
        "frames": f"{store.num_frames:,} of {height}x{width}",
        "policy": f"{dataset.policy}, seed {dataset.seed}",
        "action space": _space(store.action_space),
    }
    if dataset.sound is not None:
        rate, samples = dataset.sound.rate, dataset.sound.samples
        rows["sound"] = f"{rate:,} samples/s, {samples:,} a step ({dataset.sound.steps_per_second:.4g} steps/s)"
    if isinstance(store, TokenStore):
        grid = "x".join(str(side) for side in store.meta.grid)
        rows["tokens"] = f"{grid} a frame, {store.meta.num_codes} codes, tokenizer {store.meta.tokenizer_hash[:12]}"
        if (heard := store.meta.sound) is not None:
            rows["tokens"] += f"; {heard.num_tokens} of them of sound, {heard.num_codes} codes"
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
    rows |= _labels(store)
    space = store.action_space
    if space.kind == "discrete":
        counts = sum(np.bincount(store.mapped(entry.number).actions, minlength=space.nvec[0]) for entry in entries)
        shares = np.asarray(counts) / np.sum(counts)
        rows["actions"] = ", ".join(f"{space.label(action)} {share:.1%}" for action, share in enumerate(shares))
    return rows


def _labels(store: EpisodeStore | TokenStore | SoundStore) -> dict[str, str]:
    """The row that names what episodes show, or who is heard."""
    if not (labels := sorted({entry.label for entry in store.entries} - {""})):
        return {}
    more = f" and {len(labels) - SHOWN_LABELS:,} more" if len(labels) > SHOWN_LABELS else ""
    return {"labels": f"{len(labels):,}: {', '.join(labels[:SHOWN_LABELS])}{more}"}


def _space(space: ActionSpace) -> str:
    if space.kind == "box":
        return f"box of {len(space.low)}: " + ", ".join(
            f"[{low:g}, {high:g}]" for low, high in zip(space.low, space.high, strict=True)
        )
    return f"{space.kind.replace('_', '-')} {' x '.join(str(n) for n in space.nvec)}"


def preview(path: str | Path, out: str | Path, fps: float = 15, scale: int | None = None) -> list[Path]:
    """Draw a contact sheet (PNG, a row an episode) and a video of a few episodes side by side (mp4).

    Under each frame stand the action that led into it, the reward of that step, and the sum of rewards so far.

    Args:
        path: The dataset.
        out: Folder of the two files.
        fps: Frames a second of the video.
        scale: Each pixel becomes so many in each direction; None draws frames about as large as said above.

    Returns:
        The two files.

    Raises:
        UsageError: The folder holds no dataset, or an empty one.
        RunError: A file is broken, or one cannot be written.
    """
    from worldvq.media.pictures import save_png  # drawing is needed nowhere else in data
    from worldvq.media.tiles import grid, scale_to
    from worldvq.media.videos import write_video

    store, out = EpisodeStore.open(path), Path(out)
    if not len(store):
        raise UsageError(f"{path} holds no episodes yet; record some with: {store.how_to_make}")
    numbers, size = _spread(store.numbers("all"), SHEET_EPISODES), store.meta.frame_size
    rows = []
    for number in numbers:
        first, *others = _spread(list(range(store.entry(number).num_frames)), SHEET_FRAMES)
        draw = _drawing(store, number, [first, *others], scale or scale_to(SHEET_SIDE, size))
        rows.append([draw(first, _label(store, number)), *(draw(index, f"frame {index}") for index in others)])
    sheet = save_png(out / "contact_sheet.png", grid(rows))

    shown = _spread(numbers, VIDEO_EPISODES)
    lengths = [min(store.entry(number).num_frames, VIDEO_FRAMES) for number in shown]

    def pictures() -> Iterator[np.ndarray]:
        large = scale or scale_to(VIDEO_SIDE, size)
        drawings = [_drawing(store, n, range(length), large) for n, length in zip(shown, lengths, strict=True)]
        for step in range(max(lengths)):
            tiles = []
            for number, draw, length in zip(shown, drawings, lengths, strict=True):
                index = min(step, length - 1)
                tile = draw(index, f"{_label(store, number)}, frame {index}")
                tiles.append(tile // (1 if step < length else 3))  # darkened: this episode is over
            yield grid([tiles])

    return [sheet, write_video(out / "preview.mp4", pictures(), fps)]


def _drawing(store: EpisodeStore, number: int, indices: Sequence[int], scale: int) -> Callable[[int, str], np.ndarray]:
    """Return a function that draws one of these frames of an episode, by its index, under a title; all get one size."""
    from worldvq.media.tiles import LINE, MIN_WIDTH, action_label, caption, enlarge, lines_needed, text, tile

    frames, mapped = store.frames(number), store.mapped(number)
    width = max(frames.shape[2] * scale, MIN_WIDTH)
    labels = {index: action_label(mapped.actions, store.action_space, index) for index in indices}
    num_lines, sums = lines_needed(labels.values(), width), np.cumsum(mapped.rewards)

    def draw(index: int, title: str) -> np.ndarray:
        reward = f"reward {mapped.rewards[index - 1]:.3g}, sum {sums[index - 1]:.3g}" if index else ""
        captions = text(reward, width, LINE), caption(labels[index], width, num_lines)
        return np.concatenate([text(title, width, LINE), tile(enlarge(frames[index], scale), width, captions)])

    return draw


def _label(store: EpisodeStore, number: int) -> str:
    heldout = number % store.heldout_every == store.heldout_every - 1
    return f"episode {number}" + (" (held out)" if heldout else "")


def _spread(values: list[int], count: int) -> list[int]:
    """At most ``count`` of the values, evenly spread, the first and the last among them."""
    if len(values) <= count:
        return values
    return [values[index] for index in np.linspace(0, len(values) - 1, count).round().astype(int)]
