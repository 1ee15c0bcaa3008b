"""H.264 of the same frames at the same PSNR: what a video codec makes of what `worldvq compress` makes small.

    worldvq compress --world runs/maze/world --tokens runs/maze/tokens --episodes heldout --out heldout.wvq
    python tools/compare_h264.py --world runs/maze/world --data runs/maze/data --file heldout.wvq

Takes the episodes that the file holds, measures the PSNR of the tokenizer's reconstructions, and searches the constant
rate factor of x264 (preset veryslow; one stream of all episodes, the frames of each one after another, without a
container) whose PSNR on RGB is nearest to it, with 4:2:0 and with 4:4:4 chroma. Prints sizes, and the size between the
two nearest factors at the very PSNR, interpolated in log bytes.
"""

from __future__ import annotations

import argparse
import math
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from worldvq.compression.container import read
from worldvq.data.episodes import EpisodeStore
from worldvq.world.model import WorldModel

WORST, BEST = 51, 0
"""Constant rate factors of x264."""


def psnr(error: float) -> float:
    """Of the mean squared error of values from 0 to 255, in dB."""
    return 10 * math.log10(255**2 / error) if error else math.inf


def ffmpeg(arguments: list[str], data: bytes) -> bytes:
    """What ffmpeg writes to its standard output when it is given ``data``."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", *arguments, "-"]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def encode(frames: np.ndarray, crf: int, chroma: str) -> tuple[int, float]:
    """Bytes and PSNR (dB) of frames (N, H, W, 3) uint8 as one H.264 stream."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size]
    x264 = ["-c:v", "libx264", "-preset", "veryslow", "-crf", str(crf), "-pix_fmt", chroma, "-threads", "1"]
    stream = ffmpeg([*raw, "-r", "30", "-i", "-", *x264, "-f", "h264"], frames.tobytes())
    decoded = ffmpeg(["-f", "h264", "-i", "-", "-f", "rawvideo", "-pix_fmt", "rgb24"], stream)
    back = np.frombuffer(decoded, np.uint8).reshape(frames.shape)
    return len(stream), psnr(float(((back.astype(np.float32) - frames) ** 2).mean(dtype=np.float64)))


def nearest(frames: np.ndarray, target: float, chroma: str) -> list[tuple[int, int, float]]:
    """The two neighbouring factors between which the PSNR lies, as (factor, bytes, PSNR); found by halving."""
    low, high = BEST, WORST
    found = {crf: encode(frames, crf, chroma) for crf in (low, high)}
    while high - low > 1:
        middle = (low + high) // 2
        found[middle] = encode(frames, middle, chroma)
        low, high = (middle, high) if found[middle][1] >= target else (low, middle)
    return [(crf, *found[crf]) for crf in (low, high)]


def between(pair: list[tuple[int, int, float]], target: float) -> float:
    """Bytes at the very PSNR, interpolated in log bytes; the nearer end where it lies outside."""
    (_, larger, better), (_, smaller, worse) = pair
    share = min(1.0, max(0.0, (target - worse) / (better - worse)))
    return math.exp(share * math.log(larger) + (1 - share) * math.log(smaller))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="a trained world")
    parser.add_argument("--data", type=Path, required=True, help="the dataset that the tokens were made of")
    parser.add_argument("--file", type=Path, required=True, help="what worldvq compress wrote")
    arguments = parser.parse_args()
    compressed, world = read(arguments.file), WorldModel.load(arguments.world, "cpu")
    store, error = EpisodeStore.open(arguments.data), 0.0
    episodes = [np.array(store.frames(number)) for number in compressed.numbers]
    for frames in episodes:
        back = world.render(world.tokenize(frames[None])).numpy()[0]
        error += float(((back.astype(np.float32) - frames) ** 2).sum(dtype=np.float64))
    frames = np.concatenate(episodes)
    target, pixels = psnr(error / frames.size), frames[..., 0].size
    print(f"{len(episodes)} episodes, {len(frames)} frames; the tokenizer brings them back at {target:.2f} dB\n")
    print("| | PSNR, dB | bytes | bits a pixel |\n|---|---|---|---|")
    tokens = sum(stream.nbytes for stream in compressed.streams)
    print(f"| tokens, coded | {target:.2f} | {tokens:,} | {8 * tokens / pixels:.4f} |")
    for chroma in ("yuv420p", "yuv444p"):
        pair = nearest(frames, target, chroma)
        for crf, size, quality in pair:
            print(f"| H.264 {chroma}, crf {crf} | {quality:.2f} | {size:,} | {8 * size / pixels:.4f} |")
        size = between(pair, target)
        print(f"| H.264 {chroma}, between | {target:.2f} | {size:,.0f} | {8 * size / pixels:.4f} |")


if __name__ == "__main__":
    main()
