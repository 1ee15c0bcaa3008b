"""How often what is heard in reality is heard in the dream: onsets of sound, step by step, beside shuffled actions.

An onset is a step at least twice as loud as the one before it, and louder than the threshold (RMS, of full scale).
Dreams get the recorded actions, or those of another clip; their onsets are held against those of what was recorded.
Those of the dream of another clip say what is met by chance. Where one sound comes at a beat of its own and hides
another, ``--beat`` leaves its steps out.

    python tools/hear_dreams.py --world runs/shots/world --data runs/shots/data
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.world.model import WorldModel


def onsets(samples: np.ndarray, step: int, threshold: float) -> np.ndarray:
    """Return in which steps (B, T - 1) of sounds (B, T * step) int16 something begins; the first has none before it."""
    loud = np.sqrt(np.square(samples.reshape(len(samples), -1, step) / 2**15).mean(-1))
    return (loud[:, 1:] > threshold) & (loud[:, 1:] > 2 * loud[:, :-1])


def near(found: np.ndarray, slack: int) -> np.ndarray:
    """Return which steps have one within ``slack`` steps."""
    padded = np.pad(found, ((0, 0), (slack, slack)))
    return np.any([padded[:, i : i + found.shape[1]] for i in range(2 * slack + 1)], axis=0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--context", type=int, default=6, help="Frames that are recorded.")
    parser.add_argument("--horizon", type=int, default=20, help="Frames that are dreamt.")
    parser.add_argument("--threshold", type=float, default=0.02, help="Of loudness, RMS, of full scale.")
    parser.add_argument(
        "--beat",
        type=int,
        nargs=3,
        default=(1, 0, 0),
        metavar=("PERIOD", "FIRST", "LAST"),
        help="Count steps whose number in the episode is FIRST to LAST, modulo PERIOD. Default: all.",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=None, help="Of the tokens. Default: the world's own.")
    arguments = parser.parse_args()
    world, store = WorldModel.load(arguments.world, "cpu"), EpisodeStore.open(arguments.data)
    context, length = arguments.context, arguments.context + arguments.horizon
    period, first, last = arguments.beat
    clips = heldout_clips(store, arguments.clips, length, arguments.seed)
    clips[:, 1] -= clips[:, 1] % period
    clips = np.unique(clips, axis=0)
    counted = np.isin(np.arange(context - 1, length - 1) % period, range(first, last + 1))
    clip = read_clips(store, clips, length)
    assert clip.sounds is not None
    step, tokens = world.engine.samples, world.tokenize(clip.frames, clip.sounds)
    actions = clip.actions[:, :-1]
    shuffled = actions.clone()
    shuffled[:, context - 1 :] = actions.roll(1, 0)[:, context - 1 :]
    sampling = world.sampling_with({"temperature": arguments.temperature})
    known = clip.sounds[:, 1:context].flatten(1)

    def heard(all_tokens: torch.Tensor) -> np.ndarray:
        samples = world.hear(all_tokens[:, 1:], known, arguments.seed)
        return onsets(samples[:, (context - 2) * step :], step, arguments.threshold) & counted

    def dream(taken: torch.Tensor) -> torch.Tensor:
        imagined = world.imagine_tokens(tokens[:, :context], taken, arguments.seed, **sampling).tokens
        return torch.cat([tokens[:, :context], imagined], dim=1)

    real = onsets(clip.sounds[:, context - 1 :].flatten(1).numpy(), step, arguments.threshold) & counted
    steps = len(real) * counted.sum()
    print(f"{len(real)} clips, {steps:,} steps, onsets in {real.sum()} of them; heard in the same step, +-1")
    print("| | of the real onsets heard | of those heard, real | onsets in |\n|---|---|---|---|")
    dreamt = heard(dream(actions))
    rows = {"codec": heard(tokens), "dream": dreamt, "shuffled actions": heard(dream(shuffled))}
    for name, found in {**rows, "the dream of another clip": np.roll(dreamt, len(dreamt) // 2, axis=0)}.items():
        recall = [near(found, slack)[real].mean() for slack in (0, 1)]
        precision = [near(real, slack)[found].mean() for slack in (0, 1)]
        cells = ("{:.0%}, {:.0%}".format(*values) for values in (recall, precision))
        print(f"| {name} | {' | '.join(cells)} | {found.sum() / steps:.1%} |", flush=True)


if __name__ == "__main__":
    main()
