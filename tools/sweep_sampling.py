"""PSNR of imagined frames by temperature and top-p, on clips of the TRAINING episodes.

How to sample is a choice, and choices are not made on the clips that evaluation uses:
``python tools/sweep_sampling.py --world runs/doom/world --data runs/doom/data``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from worldvq.data.clips import ClipSampler
from worldvq.data.episodes import EpisodeStore
from worldvq.evaluation.metrics import psnr, squared_error
from worldvq.types import Clip
from worldvq.world.model import WorldModel


def main() -> None:
    """Print one line a setting: dB, mean over horizons of the PSNR of the mean squared error over clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--context", type=int, default=6)
    parser.add_argument("--horizon", type=int, default=10)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.8, 0.6, 0.4, 0.0])
    parser.add_argument("--top-p", type=float, nargs="+", default=[1.0])
    arguments = parser.parse_args()
    world = WorldModel.load(arguments.world)
    length = arguments.context + arguments.horizon
    with EpisodeStore.open(arguments.data) as store:
        clip = ClipSampler(store, "train", length, arguments.clips, seed=1).batch(0)
        assert isinstance(clip, Clip)
    real = clip.frames[:, arguments.context :]
    tokens = world.tokenize(clip.frames[:, : arguments.context])

    def score(frames) -> float:
        error = squared_error(real.flatten(0, 1), frames.flatten(0, 1)).reshape(arguments.clips, -1)
        return float(np.mean(psnr(error.mean(0))))

    print(f"copy last: {score(clip.frames[:, arguments.context - 1 : arguments.context].expand_as(real)):.2f} dB")
    for temperature in arguments.temperatures:
        for top_p in arguments.top_p if temperature else [1.0]:
            drawn = world.imagine_tokens(tokens, clip.actions[:, :-1], temperature=temperature, top_p=top_p)
            print(
                f"temperature {temperature:g}, top-p {top_p:g}: {score(world.render(drawn.tokens)):.2f} dB", flush=True
            )


if __name__ == "__main__":
    main()
