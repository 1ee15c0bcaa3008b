"""Clips per second that one process on one thread reads from a store, raw and compressed, and the size of each.

python tools/bench_clips.py --data data/doom      # the frames of a recorded dataset
python tools/bench_clips.py                       # made-up textured rooms that a camera turns in
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from worldvq.config.env import EnvConfig
from worldvq.data.clips import ClipSampler
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.types import ActionSpace, Episode


def textured_episode(rng: np.random.Generator, num_frames: int = 500, size: int = 64) -> Episode:
    """A camera that turns over a panorama of textured walls under a plain ceiling; every surface is shaded."""
    panorama = rng.integers(40, 200, (24, 64, 3)).repeat(2, axis=0).repeat(16, axis=1)  # (48, 1024, 3) blocks
    panorama = panorama + rng.integers(-6, 7, (*panorama.shape[:2], 1))
    speed = np.repeat(rng.integers(-6, 7, num_frames // 8 + 1), 8)[:num_frames]
    frames = np.full((num_frames, size, size, 3), 90, np.uint8)
    for index, angle in enumerate(np.cumsum(speed)):
        columns = (np.arange(size) + angle) % panorama.shape[1]
        frames[index, 8:56] = panorama[:, columns]
    actions = rng.integers(0, 3, num_frames - 1)
    return Episode(frames, actions, np.zeros(num_frames - 1, np.float32), terminated=False, truncated=True)


def clips_per_second(store: EpisodeStore, clip_frames: int, seconds: float) -> list[float]:
    """Rates of five rounds after one that warms up."""
    sampler = ClipSampler(store, "all", clip_frames, batch_size=64, seed=0)
    rates, step = [], 0
    for _ in range(6):
        begin, clips = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds / 6:
            clips += len(sampler.batch(step).mask)
            step += 1
        rates.append(clips / (time.perf_counter() - begin))
    return rates[1:]


def main() -> None:
    """Print one line a kind of store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="recorded dataset; without it frames are made up")
    parser.add_argument("--episodes", type=int, default=40, help="at most this many")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each kind of store")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data:
            source = EpisodeStore.open(arguments.data)
            episodes = [source.read(number) for number in source.numbers("all")[: arguments.episodes]]
            meta = source.meta
        else:
            rng = np.random.default_rng(0)
            episodes = [textured_episode(rng) for _ in range(arguments.episodes)]
            space = ActionSpace("discrete", (3,))
            meta = DatasetMeta(env=EnvConfig(), action_space=space.to_json(), frame_size=(64, 64), policy="none")
        raw = sum(episode.frames.nbytes for episode in episodes)
        print(f"{sum(len(e.frames) for e in episodes):,} frames {meta.frame_size}, {raw / 2**20:.0f} MiB")
        for compression in ("none", "zstd"):
            made = meta.model_copy(update={"compression": compression})
            with EpisodeStore.create(Path(folder) / compression, made) as store:
                begin = time.perf_counter()
                for number, episode in enumerate(episodes):
                    store.commit(number, episode)
                written = sum(len(e.frames) for e in episodes) / (time.perf_counter() - begin)
                size = sum(file.stat().st_size for file in (store.path / "episodes").iterdir()) / raw
                print(f"{compression:5s} {size:6.1%} of the raw frames, written at {written:,.0f} frames/s")
                for clip_frames in (1, 16):  # single frames are what a tokenizer trains on
                    rates = clips_per_second(store, clip_frames, arguments.seconds / 2)
                    spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
                    print(f"      {statistics.median(rates):8,.0f} clips/s of {clip_frames} (median; {spread})")


if __name__ == "__main__":
    main()
