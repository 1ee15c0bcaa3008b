"""Videos as people have them: written by imageio or ffmpeg, without loss, so that frames can be compared."""

import subprocess

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np


def frames_of(count, height=16, width=24, seed=0):
    """Frames of flat tiles, all different, so that a slip by one frame is seen."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, (count, -(-height // 4), -(-width // 4), 3), np.uint8)
    return tiles.repeat(4, 1).repeat(4, 2)[:, :height, :width]


def write_lossless(path, frames, fps=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"codec": "ffv1", "pixelformat": "bgr0", "macro_block_size": 1, "ffmpeg_log_level": "error"}
    imageio.mimwrite(path, list(frames), format="FFMPEG", fps=fps, **options)
    return path


def ffmpeg(*arguments):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def folder_of_videos(folder, lengths=(4, 6, 3), **kwargs):
    """Videos a, b, c, ... of so many frames; returns their frames."""
    names = "abcdefghij"[: len(lengths)]
    frames = {
        name: frames_of(length, seed=seed, **kwargs)
        for seed, (name, length) in enumerate(zip(names, lengths, strict=True))
    }
    for name, pictures in frames.items():
        write_lossless(folder / f"{name}.mkv", pictures)
    return frames
