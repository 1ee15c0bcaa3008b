"""What players are worth: a dynamics model of each one's recording, tested alike on a recording that none has made.

    python tools/compare_players.py --config maze --players held retrace retrace+held retrace:400000 --out runs/players

A player is a policy (`worldvq record`), with `@HOLD` another `record.hold` and with `:FRAMES` another number of frames
than ``--frames``; with `+` clips of two recordings in turns, half of the frames by each; `explore` is `retrace` that
undoes nothing. Tokenizer and situations are the same for all, training takes ``--seconds`` each, in turns. The test
recording is by `retrace`, of another seed. Prints and writes a Markdown table. The same players again keep recordings,
tokenizer and tokens.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from ladder import below_ceiling
from race import Entrant, place, race

from worldvq.data.clips import RewardedClipSampler
from worldvq.data.tokens import TokenStore
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.protocol import evaluate
from worldvq.models.dynamics import Dynamics
from worldvq.models.loading import load_tokenizer
from worldvq.models.losses import dynamics_loss
from worldvq.stages.experiment import ExperimentConfig, load_config
from worldvq.stages.interventions import intervene
from worldvq.stages.record import record
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.world.model import WorldModel

TEST_SEED, TEST_FRAMES = 999, 12_000
STEPS = (1, 2, 4, 8)
Report = dict[str, Any]


class InTurns:
    """Batches of several recordings, one after the other."""

    def __init__(self, parts: list[RewardedClipSampler]):
        self.parts = parts

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        """Read the batch of a step."""
        return self.parts[step % len(self.parts)].batch(step // len(self.parts), rank, world)


def recordings(player: str, frames: int) -> list[tuple[str, int]]:
    """Return policies and frames of the recordings of a player."""
    name, _, count = player.rpartition(":")
    if not count.isdigit():
        name, count = player, str(frames)
    policies = name.split("+")
    return [(policy, int(count) // len(policies)) for policy in policies]


def prepare(config: ExperimentConfig, root: Path, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], Path]:
    """Record, train the one tokenizer on all recordings, tokenize; returns the folders of tokens."""
    test = {"policy": "retrace", "frames": TEST_FRAMES, "seed": TEST_SEED, "heldout_every": 2}
    record(config.env, config.record.model_copy(update=test), root / "test").close()
    data = {}
    for policy, frames in sorted(wanted):
        name, _, hold = policy.rpartition("@")
        if not hold.isdigit():
            name, hold = policy, str(config.record.hold)
        given = {"policy": name.replace("explore", "retrace"), "frames": frames, "hold": int(hold)}
        if name == "explore":
            given["undo"] = {}
        data[policy, frames] = root / "data" / f"{policy.replace('/', '_')}_{frames}"
        record(config.env, config.record.model_copy(update=given), data[policy, frames]).close()
    train_tokenizer(config, list(data.values()), root / "tokenizer")
    tokens = {}
    for key, folder in data.items():
        tokens[key] = root / "tokens" / folder.name
        tokenize(root / "tokenizer", folder, tokens[key]).close()
    return tokens


def entrant(config: ExperimentConfig, root: Path, folders: list[Path]) -> Entrant:
    """Return an untrained model of recordings."""
    stores, training = [TokenStore.open(folder) for folder in folders], config.dynamics_training
    meta = stores[0].meta
    torch.manual_seed(training.seed)
    model = Dynamics(config.dynamics, meta.grid, meta.num_codes, stores[0].action_space)
    model.initialize_embeddings(load_tokenizer(root / "tokenizer").quantizer.codebook)
    sizes = (training.clip_frames, training.batch_size, training.seed, training.rewarded_fraction)
    batches = InTurns([RewardedClipSampler(store, "train", *sizes) for store in stores])
    return Entrant(model, dynamics_loss, cast(Any, batches), training)


def test(config: ExperimentConfig, root: Path, name: str, model: Dynamics, situations: int, clips: int) -> Report:
    """Return the report of a model."""
    tokenizer = load_tokenizer(root / "tokenizer", next(model.parameters()).device)
    world = WorldModel(tokenizer, model, {"sampling": config.evaluate.sampling.model_dump()})
    world.save(root / "worlds" / name)
    protocol = EvaluateConfig(clips=clips, sampling=config.evaluate.sampling)
    out = root / "reports" / name
    asked = {"branches": True, "returns": True, "situations": situations, "trust": True}
    return evaluate(world, root / "test", out, protocol, more=intervene(world, root / "test", out, protocol, **asked))


def table(reports: dict[str, Report]) -> str:
    """Return a Markdown table, a column a player."""
    k = " / ".join(map(str, STEPS))
    rows = {"nats a token": [f"{report['nats_per_token']:.3f}" for report in reports.values()]}
    retrieval = [report["counterfactual"]["retrieval"]["mean"] for report in reports.values()]
    rows[f"retrieval, step {k}"] = [" / ".join(f"{found[h - 1]:.2f}" for h in STEPS) for found in retrieval]
    for dream, title in (("psnr", "there and back"), ("shown", "back, the way there shown")):
        below = [below_ceiling(report, dream) for report in reports.values()]
        for pair in sorted(set.intersection(*({pair for pair, _ in found} for found in below))):
            rows[f"{title}, {pair}, k = {k}: dB under the ceiling"] = [
                " / ".join(f"{found[pair, n]:.1f}" if (pair, n) in found else "–" for n in STEPS) for found in below
            ]
    lines = [["", *reports], ["---"] * (1 + len(reports)), *([name, *cells] for name, cells in rows.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Record, train, test and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="maze", help="environment, models and training")
    parser.add_argument(
        "--players", nargs="+", default=["held", "explore", "retrace", "retrace+held"], help="see above"
    )
    parser.add_argument("--frames", type=int, default=48_000, help="frames of each player, in all")
    parser.add_argument("--seconds", type=float, default=300.0, help="training time of each dynamics model")
    parser.add_argument("--situations", type=int, default=16, help="held-out situations that are forked")
    parser.add_argument("--clips", type=int, default=64, help="held-out clips, for nats a token")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("override", nargs="*", help="key.path=value")
    arguments = parser.parse_args()
    config, root = load_config(arguments.config, arguments.override), arguments.out
    config = config.for_frames(config.env.size, "env.size")
    wanted = {player: recordings(player, arguments.frames) for player in arguments.players}
    tokens = prepare(config, root, {each for parts in wanted.values() for each in parts})
    models = {name: entrant(config, root, [tokens[part] for part in parts]) for name, parts in wanted.items()}
    race(models, arguments.seconds)
    sizes = (arguments.situations, arguments.clips)
    reports = {name: test(config, root, name, cast(Dynamics, e.model), *sizes) for name, e in models.items()}
    steps = ", ".join(f"{name} {each.steps}" for name, each in models.items())
    said = f"{arguments.config}: {arguments.seconds:g} s each on {place(config.dynamics_training)}; steps: {steps}.\n\n"
    said += table(reports)
    print(said)
    (root / "table.md").write_text(said)


if __name__ == "__main__":
    main()
