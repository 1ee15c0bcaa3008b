"""Fuzz every reader of files with atheris: whatever the bytes, a reader returns or raises an error that names the file.

python tools/fuzz.py --seconds 600                          # all readers, in total
python tools/fuzz.py --reader episode --seconds 60          # one of them
python tools/fuzz.py --reader episode --input crash-1234    # once more what was found

Hashes that stand in other files are made to fit the mutated bytes: whoever changes a file can change them too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

try:
    import atheris
except ImportError:
    sys.exit("fuzz.py needs atheris (Linux on x86_64, Python 3.11 to 3.13): pip install atheris")

with atheris.instrument_imports(include=["worldvq", "yaml"]):
    import numpy as np
    import torch
    import yaml

    from worldvq import claims
    from worldvq.checkpoint import Checkpoints, load_module, save_module
    from worldvq.config import (
        DynamicsConfig,
        EnvConfig,
        ExperimentConfig,
        OptimizerConfig,
        PriorConfig,
        QuantizerConfig,
        TokenizerConfig,
        dump_yaml,
        load_config,
    )
    from worldvq.data.episodes import DatasetMeta, EpisodeStore
    from worldvq.data.files import IndexEntry, read_index
    from worldvq.data.tokens import TokenMeta, TokenStore
    from worldvq.errors import WorldVQError
    from worldvq.imagine import read_actions
    from worldvq.models.dynamics import Dynamics
    from worldvq.models.loading import load_tokenizer, save_tokenizer
    from worldvq.models.tokenizer import Tokenizer
    from worldvq.models.world import WorldModel
    from worldvq.optimizers import make_optimizer
    from worldvq.parts import Parts
    from worldvq.reading import read_json, seal
    from worldvq.tracking import read_metrics
    from worldvq.types import ActionSpace, Episode

FOUND = 77
"""Exit code where something escaped, as libFuzzer has it."""


class Reader(NamedTuple):
    """A file that is mutated, and what reads it."""

    file: Path
    read: Callable[[bytes], object]
    others: tuple[bytes, ...] = ()
    """Seeds besides the file itself."""


def readers(root: Path) -> dict[str, Reader]:
    """Make a small valid file of every kind below ``root``."""
    torch.set_num_threads(1)
    space = ActionSpace("discrete", (4,), names=("noop", "forward", "left", "right"))
    config = TokenizerConfig(
        frame_size=(16, 16),
        width=8,
        encoder_blocks=0,
        decoder_blocks=0,
        quantizer=QuantizerConfig(num_codes=8, code_dim=2),
    )
    tokenizer = Tokenizer(config)
    prior = PriorConfig(width=8, num_blocks=1, num_heads=2)
    dynamics = Dynamics(
        DynamicsConfig(context_frames=2, width=8, num_blocks=1, num_heads=2, prior=prior), config.grid, 8, space
    )
    return {
        **_stores(root, space),
        **_models(root, tokenizer, dynamics),
        **_runs(root, tokenizer),
        **_lists(root, space),
    }


def _stores(root: Path, space: ActionSpace) -> dict[str, Reader]:
    rng = np.random.default_rng(0)
    frames, actions = rng.integers(0, 9, (20, 16, 16, 3), np.uint8), rng.integers(0, 4, 19)
    episode = Episode(frames, actions, rng.normal(size=19).astype(np.float32), True, False, meta={"level": 1})
    found: dict[str, Reader] = {}
    for compression in ("none", "zstd"):
        folder = root / f"data-{compression}"
        meta = DatasetMeta(
            env=EnvConfig(size=(16, 16)),
            action_space=space.to_json(),
            frame_size=(16, 16),
            policy="random",
            compression=compression,
        )
        with EpisodeStore.create(folder, meta) as store:
            store.commit(0, episode)
            store.commit(1, episode)
        name = "episode" if compression == "none" else f"episode_{compression}"
        found[name] = Reader(folder / "episodes/000000.safetensors", _read_episode(EpisodeStore, folder))
    index = (folder / "index.jsonl").read_bytes()
    bare = re.sub(rb',"crc32":"\w+"', b"", index)
    found["index"] = Reader(folder / "index.jsonl", lambda _: read_index(folder / "index.jsonl"), (bare, index[:-1]))
    plain = json.dumps(meta.model_dump(mode="json")).encode()
    found["dataset"] = Reader(folder / "dataset.json", lambda _: EpisodeStore.open(folder).verify(), (plain,))
    tokens = root / "tokens"
    described = TokenMeta(tokenizer_hash="f" * 64, dataset=meta, num_codes=8, grid=(2, 2))
    with TokenStore.create(tokens, described) as store:
        store.write(0, rng.integers(0, 8, (20, 2, 2)), episode)
    found["tokens"] = Reader(tokens / "episodes/000000.safetensors", _read_episode(TokenStore, tokens))
    plain = json.dumps(described.model_dump(mode="json")).encode()
    found["token_store"] = Reader(tokens / "tokens.json", lambda _: TokenStore.open(tokens).verify(), (plain,))
    return found


def _read_episode(kind: type[EpisodeStore] | type[TokenStore], folder: Path) -> Callable[[bytes], object]:
    """Read episode 0 of a store whose index says that these are its bytes."""
    with kind.open(folder) as store:
        meta, entry = store.meta, store.entry(0)

    def read(data: bytes) -> None:
        listed: IndexEntry = entry.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
        with kind(folder, meta, [listed]) as store:
            for problem in store.verify():
                assert str(folder) in problem, problem
            store.read(0)

    return read


def _models(root: Path, tokenizer: Tokenizer, dynamics: Dynamics) -> dict[str, Reader]:
    alone, world, weights = root / "tokenizer", root / "world", root / "weights.safetensors"
    save_tokenizer(alone, tokenizer)
    WorldModel(tokenizer, dynamics, {"env_id": "Toy-v0", "sampling": {}}).save(world)
    save_module(weights, tokenizer)
    unsealed = [re.sub(rb',\s*"checksum": "\w+"', b"", path.read_bytes()) for path in (alone / "tokenizer.json",)]
    bare = re.sub(rb',\s*"(checksum|\w+_hash)": "\w+"', b"", (world / "world.json").read_bytes())
    return {
        "tokenizer": Reader(alone / "tokenizer.json", lambda _: load_tokenizer(alone), tuple(unsealed)),
        "world": Reader(world / "world.json", lambda _: WorldModel.load(world, "cpu").sampling_with({}), (bare,)),
        "weights": Reader(weights, lambda _: load_module(weights, tokenizer)),
    }


def _runs(root: Path, tokenizer: Tokenizer) -> dict[str, Reader]:
    run, experiment = root / "run", ExperimentConfig()
    claims.claim(run, experiment, "tokenizer", {"frame_size": [64, 64]})
    optimizer = make_optimizer(tokenizer, OptimizerConfig())
    for parameter in tokenizer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    checkpoints = Checkpoints(run / "checkpoints", 2)
    checkpoints.save(3, tokenizer, optimizer)
    saved = run / "checkpoints/step_00000003"
    manifest = read_json(saved / "manifest.json")
    del manifest["checksum"]

    def restore(name: str) -> Callable[[bytes], object]:
        def read(data: bytes) -> None:
            hashes = manifest["files"] | {name: hashlib.sha256(data).hexdigest()}
            (saved / "manifest.json").write_bytes(seal(manifest | {"files": hashes}))
            checkpoints.read_newest(tokenizer, optimizer)

        return read

    metrics, parts = run / "metrics.jsonl", Parts(root, "0" * 64)
    metrics.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    parts.write(0, {"error": np.zeros((2, 3)), "shown": np.zeros((2, 4), np.uint8)})
    return {
        "config": Reader(root / "config.yaml", lambda _: load_config(root / "config.yaml"), _configs()),
        "run_config": Reader(run / "config.yaml", lambda _: claims.check_same_run(run, "a: 1", "tokenizer")),
        "run_inputs": Reader(
            run / "inputs.json", lambda _: claims.claim(run, experiment, "tokenizer", {"frame_size": [64, 64]})
        ),
        "manifest": Reader(saved / "manifest.json", lambda _: checkpoints.read_newest(tokenizer, optimizer)),
        "checkpoint": Reader(saved / "model.safetensors", restore("model.safetensors")),
        "optimizer": Reader(saved / "optimizer.safetensors", restore("optimizer.safetensors")),
        "metrics": Reader(metrics, lambda _: read_metrics(metrics)),
        "part": Reader(next(root.glob(".parts-*/*.safetensors")), lambda _: 0 in parts),
    }


def _configs() -> tuple[bytes, ...]:
    config = ExperimentConfig()
    return (dump_yaml(config).encode(), yaml.safe_dump({"a": [1, {"b": None}]}).encode(), b"env: {size: [1e1, 0]}")


def _lists(root: Path, space: ActionSpace) -> dict[str, Reader]:
    listed, array, report = root / "actions.json", root / "actions.npy", root / "report.json"
    listed.write_text('["noop", "forward", 2, 3]')
    np.save(array, np.array([0, 1, 2, 3]))
    report.write_text('{"psnr": [1.5, null], "world": {"hash": "ab"}}')
    return {
        "actions_json": Reader(listed, lambda _: read_actions(listed, space, 2)),
        "actions_npy": Reader(array, lambda _: read_actions(array, space, 2)),
        "report": Reader(report, lambda _: read_json(report)),
    }


def run_once(reader: Reader, root: Path, data: bytes) -> None:
    """Put the bytes in the file's place and read it; raises what must not be raised."""
    reader.file.write_bytes(data)
    try:
        reader.read(data)
    except WorldVQError as error:
        assert str(root) in str(error) and "\n" not in str(error), (
            f"it does not name the file, or not in a line: {error}"
        )


def fuzz(name: str, reader: Reader, root: Path, seconds: int, found: Path) -> int:
    """Fuzz one reader in a process of its own; returns its exit code, 0 where nothing escaped."""
    corpus = root / "corpus" / name
    corpus.mkdir(parents=True)
    seeds = [*([reader.file.read_bytes()] if reader.file.exists() else []), *reader.others]
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    log = root / f"{name}.log"
    child = os.fork()
    if child == 0:
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            limits = [f"-max_total_time={seconds}", "-max_len=16384", "-timeout=10", "-rss_limit_mb=2048"]
            arguments = [sys.argv[0], *limits, f"-artifact_prefix={found}/{name}-", str(corpus)]
            atheris.Setup(arguments, lambda data: run_once(reader, root, data))
            atheris.Fuzz()  # ends the process, if all goes well
        except BaseException:
            traceback.print_exc()
        os._exit(FOUND)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = log.read_text(errors="replace")
    done = re.search(r"Done (\d+) (?:runs )?in (\d+) second", text)
    runs = done[1] if done else (re.findall(r"^#(\d+)", text, re.MULTILINE) or ["0"])[-1]
    print(f"{name:14s} {int(runs):9,} executions{'' if code == 0 else '  FAILED'}", flush=True)
    if code:
        print("\n".join(line for line in text.splitlines() if not line.startswith(("#", "INFO")))[-3000:])
    return code


def main() -> None:
    """Print one line a reader; exit code 1 if anything escaped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="in total")
    parser.add_argument("--reader", action="append", help="only this one; may be repeated")
    parser.add_argument("--input", type=Path, help="read this file once instead of fuzzing")
    parser.add_argument("--found", type=Path, default=Path("fuzz"), help="where inputs that escape are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        known = readers(Path(folder))
        chosen = arguments.reader or list(known)
        if unknown := set(chosen) - known.keys():
            sys.exit(f"no reader {', '.join(unknown)}: one of {', '.join(known)}")
        if arguments.input:
            run_once(known[chosen[0]], Path(folder), arguments.input.read_bytes())
            print("nothing escaped")
            return
        arguments.found.mkdir(parents=True, exist_ok=True)
        each = max(1, arguments.seconds // len(chosen))
        failed = [name for name in chosen if fuzz(name, known[name], Path(folder), each, arguments.found)]
        with contextlib.suppress(OSError):
            arguments.found.rmdir()
    if failed:
        sys.exit(f"escaped from {', '.join(failed)}: python tools/fuzz.py --reader NAME --input {arguments.found}/FILE")


if __name__ == "__main__":
    main()
