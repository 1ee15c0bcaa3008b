"""Does the motion term keep small moving things? One tokenizer a weight, trained in turns for the same time each.

    worldvq record VizdoomTakeCover-v1 --frames 20000 --out runs/cover/data env.frame_skip=4
    python tools/compare_losses.py --data runs/cover/data --config doom --seconds 180 --weights 0 1 --out runs/losses

Measured on frames of held-out episodes: PSNR, SSIM and the recall of small changing regions
(worldvq.evaluation.regions), which speaks where the camera mostly stands still. In VizdoomTakeCover-v1 it does, and
monsters throw fireballs.

Frames are drawn in clips of two, half as many clips as the config says, so that every weight sees the same frames.
Writes table.md, table.json and sheet.png (real frames, then one row a weight).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from compare_tokenizers import NUM_SHOWN, publish, rebuild
from race import Entrant, place, race
from torch import Tensor

from worldvq.data.clips import ClipSampler, heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.evaluation.metrics import psnr, squared_error, ssim
from worldvq.evaluation.regions import small_region_recall
from worldvq.models.tokenizer import Tokenizer
from worldvq.models.tokenizer_losses import make_tokenizer_loss
from worldvq.stages.experiment import ExperimentConfig, load_config, override


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of the table; ``psnr`` (dB) is that of the mean squared error over all held-out pixels."""

    motion: float
    recalled: int
    regions: int
    psnr: float
    ssim: float
    frames_per_second: float
    steps: int


def in_pairs(config: ExperimentConfig) -> ExperimentConfig:
    """The config with clips of at least two frames, and about as many frames a step as before."""
    training = config.tokenizer_training
    frames = max(2, training.clip_frames)
    clips = max(1, training.batch_size * training.clip_frames // frames)
    return override(config, {"tokenizer_training.clip_frames": frames, "tokenizer_training.batch_size": clips})


def enter(config: ExperimentConfig, weight: float, store: EpisodeStore) -> tuple[Tokenizer, Entrant]:
    """A new tokenizer, with this weight of the motion term."""
    training = config.tokenizer_training
    torch.manual_seed(training.seed)
    tokenizer = Tokenizer(config.tokenizer)
    losses = config.tokenizer_loss.model_copy(update={"motion": weight})
    model, loss_function = make_tokenizer_loss(tokenizer, losses)
    batches = ClipSampler(store, "train", training.clip_frames, training.batch_size, training.seed)
    return tokenizer, Entrant(model, loss_function, batches, training)


def measure(weight: float, clips: Tensor, rebuilt: Tensor, entrant: Entrant) -> Result:
    """Compare the middle frames of clips (N, 3, H, W, 3) with what came back of them, (N, H, W, 3)."""
    previous, real, following = clips.unbind(1)
    recalled, regions = small_region_recall(previous, real, rebuilt, following)
    quality = float(psnr(squared_error(real, rebuilt).mean())), float(ssim(real, rebuilt).mean())
    return Result(weight, recalled, regions, *quality, entrant.frames_per_second, entrant.steps)


def table(results: list[Result], about: str) -> str:
    """Results as Markdown."""
    head = "| motion weight | recall of small changing regions | PSNR (dB) | SSIM | frames/s in training | steps |"
    lines = [about, "", head, "|---|---|---|---|---|---|"]
    for r in results:
        lines.append(
            f"| {r.motion:g} | {r.recalled / max(1, r.regions):.3f} ({r.recalled} of {r.regions}) | {r.psnr:.2f} | "
            f"{r.ssim:.4f} | {r.frames_per_second:.0f} | {r.steps} |"
        )
    return "\n".join(lines) + "\n"


def worth_showing(clips: Tensor) -> np.ndarray:
    """Indices of a few clips (N, 3, H, W, 3), spread over those in which small things move."""
    found = [small_region_recall(a[None], b[None], b[None], c[None])[1] for a, b, c in clips]
    moving = np.flatnonzero(found) if any(found) else np.arange(len(clips))
    return moving[np.linspace(0, len(moving) - 1, min(NUM_SHOWN, len(moving))).round().astype(int)]


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a recorded dataset")
    parser.add_argument("--config", default="doom", help="YAML file or the name of one that ships with worldvq")
    parser.add_argument("--seconds", type=float, default=180.0, help="training time of each weight")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0], help="of tokenizer_loss.motion")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the picture")
    parser.add_argument("--frames", type=int, default=2048, help="held-out frames to measure on")
    parser.add_argument("override", nargs="*", help="key.path=value")
    arguments = parser.parse_args()
    config = in_pairs(load_config(arguments.config, arguments.override))
    training = config.tokenizer_training
    with EpisodeStore.open(arguments.data) as store:
        if store.meta.frame_size != config.tokenizer.frame_size:
            parser.error(f"--data holds frames of {store.meta.frame_size}, not {config.tokenizer.frame_size}")
        # A clip is the measured frame between its neighbours in time.
        clips = read_clips(store, heldout_clips(store, arguments.frames, 3, training.seed), 3).frames  # (N, 3, H, W, 3)
        real, shown = clips[:, 1], worth_showing(clips)
        about = (
            f"{store.meta.env.id}, {config.tokenizer.grid[0]}x{config.tokenizer.grid[1]} tokens a frame, "
            f"{arguments.seconds:g} s of training each on {place(training)}, {len(real)} held-out frames."
        )
        print(about, flush=True)
        runs = {weight: enter(config, weight, store) for weight in arguments.weights}
        race({f"{weight:g}": entrant for weight, (_, entrant) in runs.items()}, arguments.seconds)
    results: list[Result] = []
    rows = {"real": real[shown]}
    for weight, (tokenizer, entrant) in runs.items():
        _, rebuilt = rebuild(tokenizer, real)
        results.append(measure(weight, clips, rebuilt, entrant))
        rows[f"motion {weight:g}"] = rebuilt[shown]
    publish(arguments.out, about, config, results, table(results, about), rows)


if __name__ == "__main__":
    main()
