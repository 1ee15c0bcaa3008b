"""Quantizers side by side: each trains a config's tokenizer for the same time, then rebuilds held-out frames.

    python tools/compare_tokenizers.py --data runs/doom/data --config doom --seconds 180 --out runs/tokenizers
    python tools/compare_tokenizers.py ... --only ema,fsq tokenizer.width=48

The learning rate warms up by steps and falls to zero over the seconds, so that every variant ends its own schedule
however fast it is. Variants take turns of a few seconds; OMP_NUM_THREADS decides on how many threads. Writes table.md,
table.json and sheet.png (real frames, then one row a variant).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from race import Entrant, place, race
from torch import Tensor

from worldvq.data.clips import ClipSampler, heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.evaluation.metrics import psnr, squared_error, ssim
from worldvq.files.atomic import write_atomic
from worldvq.media.pictures import save_png
from worldvq.media.tiles import BACKGROUND, draw_label, grid
from worldvq.models.losses import tokenizer_loss
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.stages.experiment import ExperimentConfig, load_config
from worldvq.types import frames_from_model, frames_to_model

VARIANTS: dict[str, dict[str, Any]] = {
    "ema": {"kind": "ema"},
    "ema+kmeans": {"kind": "ema", "initialize": "kmeans"},
    "ema+rotation": {"kind": "ema", "gradient": "rotation"},
    "ema+cosine": {"kind": "ema", "cosine": True},
    "sgd": {"kind": "sgd"},
    "sgd+kmeans+rotation": {"kind": "sgd", "initialize": "kmeans", "gradient": "rotation"},
    "fsq": {"kind": "fsq", "levels": (8, 8, 8)},
}
NUM_SHOWN = 8
BATCH = 256


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of the table; ``psnr`` (dB) is that of the mean squared error over all held-out pixels."""

    variant: str
    psnr: float
    ssim: float
    perplexity: float
    dead_codes: int
    num_codes: int
    images_per_second: float
    steps: int


def quantizer_config(base: QuantizerConfig, options: dict[str, Any]) -> QuantizerConfig:
    """A variant's quantizer: sizes and constants of the config's, where the kind has them."""
    shared = {"ema": {"num_codes", "code_dim", "commitment_cost", "revive_after", "decay"}, "fsq": set()}
    shared["sgd"] = shared["ema"] - {"decay"}
    return QuantizerConfig(**base.model_dump(include=shared[options["kind"]]), **options)


def enter(config: ExperimentConfig, options: dict[str, Any], store: EpisodeStore) -> Entrant:
    """A new tokenizer with a variant's quantizer."""
    training = config.tokenizer_training
    quantizer = quantizer_config(config.tokenizer.quantizer, options)
    torch.manual_seed(training.seed)
    model = Tokenizer(config.tokenizer.model_copy(update={"quantizer": quantizer}))
    batches = ClipSampler(store, "train", training.clip_frames, training.batch_size, training.seed)
    return Entrant(model, tokenizer_loss, batches, training)


@torch.inference_mode()
def rebuild(model: Tokenizer, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (N, h, w) of frames (N, H, W, 3) uint8, and the frames made from them."""
    device = next(model.parameters()).device
    tokens = [model.encode(frames_to_model(part.to(device))) for part in frames.split(BATCH)]
    rebuilt = [frames_from_model(model.decode(part)).cpu() for part in tokens]
    return torch.cat(tokens).cpu(), torch.cat(rebuilt)


def measure(variant: str, model: Tokenizer, real: Tensor, tokens: Tensor, rebuilt: Tensor, **rates: Any) -> Result:
    """Compare held-out frames (N, H, W, 3) with what came back."""
    count = np.bincount(tokens.flatten().numpy(), minlength=model.num_codes)
    used = count[count > 0] / count.sum()
    return Result(
        variant=variant,
        psnr=float(psnr(squared_error(real, rebuilt).mean())),
        ssim=float(ssim(real, rebuilt).mean()),
        perplexity=float(np.exp(-(used * np.log(used)).sum())),
        dead_codes=int((count == 0).sum()),
        num_codes=model.num_codes,
        **rates,
    )


def table(results: list[Result], about: str) -> str:
    """Results as Markdown."""
    lines = [about, "", "| quantizer | PSNR (dB) | SSIM | perplexity | codes never used | images/s | steps |"]
    lines.append("|---|---|---|---|---|---|---|")
    for r in results:
        lines.append(
            f"| {r.variant} | {r.psnr:.2f} | {r.ssim:.4f} | {r.perplexity:.0f} of {r.num_codes} | {r.dead_codes} | "
            f"{r.images_per_second:.0f} | {r.steps} |"
        )
    return "\n".join(lines) + "\n"


def sheet(rows: dict[str, Tensor]) -> np.ndarray:
    """Picture of labelled rows of frames (n, H, W, 3), enlarged to at least 96 pixels."""
    drawn = []
    for name, frames in rows.items():
        factor = max(1, -(-96 // frames.shape[1]))
        large = frames.numpy().repeat(factor, axis=1).repeat(factor, axis=2)
        blank = np.full((large.shape[1] - 22, 150, 3), BACKGROUND, np.uint8)
        drawn.append([draw_label(blank, name, align="left"), *large])
    return grid(drawn)


def publish(
    out: Path, about: str, config: ExperimentConfig, results: Sequence[Any], table: str, rows: dict[str, Tensor]
) -> None:
    """Write table.json, table.md and sheet.png below ``out``, and print the table."""
    found = {"about": about, "config": config.model_dump(mode="json"), "results": [vars(r) for r in results]}
    write_atomic(out / "table.json", json.dumps(found, indent=1).encode())
    write_atomic(out / "table.md", table.encode())
    save_png(out / "sheet.png", sheet(rows))
    print("\n" + table)


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a recorded dataset")
    parser.add_argument("--config", default="doom", help="YAML file or the name of one that ships with worldvq")
    parser.add_argument("--seconds", type=float, default=180.0, help="training time of each variant")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the picture")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, with commas (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=2048, help="held-out frames to measure on")
    parser.add_argument("override", nargs="*", help="key.path=value")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        parser.error(f"--only {unknown[0]}: there are {', '.join(VARIANTS)}")
    config = load_config(arguments.config, arguments.override)
    training = config.tokenizer_training
    with EpisodeStore.open(arguments.data) as store:
        if store.meta.frame_size != config.tokenizer.frame_size:
            parser.error(f"--data holds frames of {store.meta.frame_size}, not {config.tokenizer.frame_size}")
        ids = heldout_clips(store, arguments.frames, 1, training.seed)
        real = read_clips(store, ids, 1).frames[:, 0]  # (N, H, W, 3)
        about = (
            f"{store.meta.env.id}, {config.tokenizer.grid[0]}x{config.tokenizer.grid[1]} tokens a frame, "
            f"{arguments.seconds:g} s of training each on {place(training)}, {len(real)} held-out frames."
        )
        print(about, flush=True)
        entrants = {name: enter(config, VARIANTS[name], store) for name in names}
        race(entrants, arguments.seconds)
    shown = np.linspace(0, len(real) - 1, min(NUM_SHOWN, len(real))).round().astype(int)
    results: list[Result] = []
    rows = {"real": real[shown]}
    for name, entrant in entrants.items():
        tokenizer = cast(Tokenizer, entrant.model)
        tokens, rebuilt = rebuild(tokenizer, real)
        rates = {"images_per_second": entrant.frames_per_second, "steps": entrant.steps}
        results.append(measure(name, tokenizer, real, tokens, rebuilt, **rates))
        rows[name] = rebuilt[shown]
    publish(arguments.out, about, config, results, table(results, about), rows)


if __name__ == "__main__":
    main()
