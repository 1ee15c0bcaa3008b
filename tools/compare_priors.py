"""Priors after the same training time: ``python tools/compare_priors.py --root runs/doom --seconds 600 --out DIR``.

Trains the dynamics of a config with each prior on the tokens of ``--root`` (a folder with data, tokenizer and tokens),
in turns, then evaluates each on held-out episodes and times its dreams. Prints and writes a Markdown table; the report
of each, with its rollouts, lies below ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from bench import CONTEXT, dream_inputs
from race import Entrant, place, race

from worldvq.data.clips import ClipSampler
from worldvq.data.tokens import TokenStore
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.protocol import evaluate
from worldvq.files.weights import hash_module
from worldvq.models.dynamics import Dynamics
from worldvq.models.loading import load_tokenizer
from worldvq.models.losses import dynamics_loss
from worldvq.stages.experiment import ExperimentConfig, load_config, override
from worldvq.world.model import WorldModel

PRIORS: dict[str, dict[str, Any]] = {
    "transformer": {"dynamics.prior.kind": "transformer", "dynamics.prior.num_blocks": 2},
    "pixelcnn": {"dynamics.prior.kind": "pixelcnn", "dynamics.prior.num_blocks": 3},
}
STEPS = 40


def dreams_per_second(world: WorldModel, method: str, data: Path) -> float:
    """Frames a second of one dream, tokens only, on held-out contexts."""
    clip = dream_inputs(world, data, 1)
    sampling = world.sampling_with({"method": method})
    dream = world.start(clip.frames[:, :CONTEXT], clip.actions[:, : CONTEXT - 1], **sampling)
    actions = clip.actions[:, CONTEXT - 1 :].unbind(1)
    dream.step_tokens(actions[0])
    begun = time.perf_counter()
    for action in actions[1 : STEPS + 1]:
        dream.step_tokens(action)
    return STEPS / (time.perf_counter() - begun)


def train(config: ExperimentConfig, root: Path, seconds: float) -> dict[str, Entrant]:
    """Train a dynamics model with each prior."""
    store = TokenStore.open(root / "tokens")
    tokenizer = load_tokenizer(root / "tokenizer")
    if store.meta.tokenizer_hash != hash_module(tokenizer):
        raise SystemExit(f"{root / 'tokens'} was made by another tokenizer than {root / 'tokenizer'}")
    codebook = tokenizer.quantizer.codebook
    entrants = {}
    for name, changes in PRIORS.items():
        varied = override(config, changes)
        training = varied.dynamics_training
        torch.manual_seed(training.seed)
        model = Dynamics(varied.dynamics, store.meta.grid, store.meta.num_codes, store.action_space)
        model.initialize_embeddings(codebook)
        batches = ClipSampler(store, "train", training.clip_frames, training.batch_size, training.seed)
        entrants[name] = Entrant(model, dynamics_loss, batches, training)
    race(entrants, seconds)
    return entrants


def main() -> None:
    """Train, evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with data, tokenizer and tokens")
    parser.add_argument("--config", default="doom")
    parser.add_argument("--seconds", type=float, default=600.0, help="training time of each prior")
    parser.add_argument("--clips", type=int, default=128, help="held-out clips to evaluate on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("override", nargs="*", help="key.path=value")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.override)
    entrants = train(config, arguments.root, arguments.seconds)
    lines = [
        f"{arguments.config}: {arguments.seconds:g} s of training each on {place(config.dynamics_training)}.",
        "",
        "| prior | parameters | frames/s in training | nats/token | imagined over copy last (dB) | "
        "passes/frame | tokens of frames/s, predictive | sequential |",
        "|---|---|---|---|---|---|---|---|",
    ]
    data = arguments.root / "data"
    for name, entrant in entrants.items():
        sampling = config.evaluate.sampling.model_dump()
        dynamics = cast(Dynamics, entrant.model)
        tokenizer = load_tokenizer(arguments.root / "tokenizer", next(dynamics.parameters()).device)
        world = WorldModel(tokenizer, dynamics, {"sampling": sampling})
        protocol = EvaluateConfig(clips=arguments.clips, sampling=config.evaluate.sampling)
        report = evaluate(world, data, arguments.out / name, protocol)
        gain = report["gains"]["psnr"]["over_copy_last"]["mean"]
        speed = [dreams_per_second(world, method, data) for method in ("predictive", "sequential")]
        lines.append(
            f"| {name} | {sum(p.numel() for p in entrant.model.parameters()) / 1e6:.2f} M | "
            f"{entrant.frames_per_second:.0f} | {report['nats_per_token']:.3f} | {gain:+.2f} | "
            f"{report['passes_per_frame']:.1f} of {world.dynamics.grid[0] * world.dynamics.grid[1]} | "
            f"{speed[0]:.1f} | {speed[1]:.1f} |"
        )
    table = "\n".join(lines) + "\n"
    print(table)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.md").write_text(table)
    rows = {name: {"steps": each.steps, "seconds": each.seconds} for name, each in entrants.items()}
    (arguments.out / "table.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
