"""Every reader of files, each on a small valid file: what the corruption tests damage and tools/fuzz.py mutates."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
import yaml

from worldvq.compression import container
from worldvq.config.env import EnvConfig
from worldvq.config.yaml_loading import dump_yaml
from worldvq.data.episode_files import IndexEntry, read_index
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.errors import WorldVQError
from worldvq.evaluation.parts import Parts
from worldvq.evaluation.report_files import CLIPS, REPORT, read_report, write_report
from worldvq.files.reading import read_json, seal
from worldvq.files.weights import hash_module, load_module, save_module
from worldvq.models.config import (
    DynamicsConfig,
    ImagePriorConfig,
    PriorConfig,
    SceneConfig,
    ScenePriorConfig,
    SceneQuantizerConfig,
    TokenizerConfig,
)
from worldvq.models.dynamics import Dynamics
from worldvq.models.image_prior import ImagePrior
from worldvq.models.loading import load_tokenizer, save_tokenizer
from worldvq.models.scene import SceneModel
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.stages.experiment import ExperimentConfig, TokenizerSections, load_config
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.config import OptimizerConfig
from worldvq.training.identity import begin_run
from worldvq.training.optimizers import make_optimizer
from worldvq.training.tracking import read_metrics
from worldvq.types import ActionSpace, Episode
from worldvq.world.actions import read_actions
from worldvq.world.images import ImageModel
from worldvq.world.model import WorldModel
from worldvq.world.scenes import Scenes

NAMES = [
    *("episode", "episode_zstd", "index", "dataset", "tokens", "token_store", "compressed"),
    *("tokenizer", "tokenizer_weights", "world", "world_dynamics", "images", "images_prior"),
    *("weights", "config", "run_config", "run_inputs", "manifest", "checkpoint"),
    *("optimizer", "metrics", "part", "actions_json", "actions_npy", "report", "clips"),
    *("scene", "scene_weights"),
]


class Reader(NamedTuple):
    """A file, and what reads it.

    Attributes:
        file: What is damaged.
        read: Reads it where the hashes that stand in other files are made to fit the bytes that are given.
        others: Other contents that are valid too.
        value: Reads it as it stands beside its other files; returns something that tells contents apart. None where
            people write the file, or where nothing depends on it: damage can leave something else that is valid.
    """

    file: Path
    read: Callable[[bytes], object]
    others: tuple[bytes, ...] = ()
    value: Callable[[], object] | None = None

    def check(self, root: Path, data: bytes) -> None:
        """Put the bytes in the file's place and read it; whatever it raises names a file below ``root``, in a line."""
        self.file.write_bytes(data)
        try:
            self.read(data)
        except WorldVQError as error:
            problem = f"it does not name the file, or not in a line: {error}"
            assert str(root) in str(error) and "\n" not in str(error), problem


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
        **_images(root / "prior", tokenizer),
        **_scenes(root, tokenizer),
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
        found[name] = _episode(EpisodeStore, folder)
    index = (folder / "index.jsonl").read_bytes()
    bare = re.sub(rb',"crc32":"\w+"', b"", index)
    found["index"] = Reader(
        folder / "index.jsonl",
        lambda _: read_index(folder / "index.jsonl"),
        (bare, index[:-1]),
        lambda: EpisodeStore.open(folder).entries,
    )
    plain = json.dumps(meta.model_dump(mode="json")).encode()
    found["dataset"] = Reader(
        folder / "dataset.json",
        lambda _: EpisodeStore.open(folder).verify(),
        (plain,),
        lambda: EpisodeStore.open(folder).meta,
    )
    tokens = root / "tokens"
    described = TokenMeta(tokenizer_hash="f" * 64, dataset=meta, num_codes=8, grid=(2, 2))
    with TokenStore.create(tokens, described) as store:
        store.write(0, rng.integers(0, 8, (20, 2, 2)), episode)
    found["tokens"] = _episode(TokenStore, tokens)
    plain = json.dumps(described.model_dump(mode="json")).encode()
    found["token_store"] = Reader(
        tokens / "tokens.json",
        lambda _: TokenStore.open(tokens).verify(),
        (plain,),
        lambda: TokenStore.open(tokens).meta,
    )
    found["compressed"] = _compressed(root / "tokens.wvq", TokenStore.open(tokens))
    return found


def _compressed(file: Path, store: TokenStore) -> Reader:
    """Tokens as a coder might have left them; ``read`` finds that the hash of what follows the header is right."""
    kept = container.Compressed(
        settings={"world": "f" * 64},
        store=store.meta,
        numbers=[0],
        episodes=[store.recorded(0)],
        digests=[container.digest(store.mapped(0).tokens)],
        streams=[np.arange(5, dtype=np.uint32)],
    )
    good, _ = container.to_bytes(kept)
    file.write_bytes(good)
    (stated,) = re.findall(rb'sha256\\": \\"(\w+)', good)

    def read(_: bytes) -> None:
        with mock.patch.object(container, "_hash", return_value=stated.decode()):
            container.read(file)

    return Reader(file, read, (), lambda: str(container.read(file)))


def _episode(kind: type[EpisodeStore] | type[TokenStore], folder: Path) -> Reader:
    """Episode 0 of a store; ``read`` has an index that says that the bytes are right."""
    with kind.open(folder) as store:
        meta, entry = store.meta, store.entry(0)

    def read(data: bytes) -> None:
        listed: IndexEntry = entry.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
        with kind(folder, meta, [listed]) as store:
            for problem in store.verify():
                assert str(folder) in problem, problem
            store.read(0)

    def value() -> str:
        with kind.open(folder) as store:
            held = store.read(0)
            return str(held if isinstance(held, Episode) else held["tokens"].tolist())

    return Reader(folder / entry.file, read, (), value)


def _models(root: Path, tokenizer: Tokenizer, dynamics: Dynamics) -> dict[str, Reader]:
    alone, world, weights = root / "tokenizer", root / "world", root / "weights.safetensors"
    save_tokenizer(alone, tokenizer)
    WorldModel(tokenizer, dynamics, {"env_id": "Toy-v0", "sampling": {}}).save(world)
    save_module(weights, tokenizer)
    sealed = re.compile(rb',\s*"(checksum|\w+_hash)": "\w+"')
    plain = sealed.sub(b"", (alone / "tokenizer.json").read_bytes())
    bare = sealed.sub(b"", (world / "world.json").read_bytes())

    def tokenizer_value() -> object:
        loaded = load_tokenizer(alone)
        return loaded.config, hash_module(loaded)

    def world_value() -> object:
        loaded = WorldModel.load(world, "cpu")
        return loaded.hash(), loaded.meta, loaded.action_space, loaded.dynamics.config, loaded.tokenizer.config

    return {
        "tokenizer": Reader(alone / "tokenizer.json", lambda _: load_tokenizer(alone), (plain,), tokenizer_value),
        "tokenizer_weights": Reader(
            alone / "tokenizer.safetensors", lambda _: load_tokenizer(alone), (), tokenizer_value
        ),
        "world": Reader(
            world / "world.json", lambda _: WorldModel.load(world, "cpu").sampling_with({}), (bare,), world_value
        ),
        "world_dynamics": Reader(
            world / "dynamics.safetensors", lambda _: WorldModel.load(world, "cpu"), (), world_value
        ),
        "weights": Reader(weights, lambda _: load_module(weights, tokenizer)),
    }


def _images(folder: Path, tokenizer: Tokenizer) -> dict[str, Reader]:
    config = ImagePriorConfig(width=8, num_blocks=1, num_heads=2)
    prior = ImagePrior(config, tokenizer.grid, tokenizer.num_codes, 2)
    ImageModel(tokenizer, prior, ("cat", "dog"), {"env_ids": ["Toy-v0"]}).save(folder)

    def value() -> object:
        loaded = ImageModel.load(folder, "cpu")
        both = hash_module(loaded.tokenizer), hash_module(loaded.prior)
        return both, loaded.classes, loaded.meta, loaded.prior.config, loaded.tokenizer.config

    return {
        "images": Reader(folder / "prior.json", lambda _: ImageModel.load(folder, "cpu").number("cat"), (), value),
        "images_prior": Reader(folder / "prior.safetensors", lambda _: ImageModel.load(folder, "cpu"), (), value),
    }


def _scenes(root: Path, tokenizer: Tokenizer) -> dict[str, Reader]:
    folder, prior = root / "scene", ScenePriorConfig(width=8, num_blocks=1)
    quantizer = SceneQuantizerConfig(num_codes=4, code_dim=2)
    config = SceneConfig(num_codes_per_frame=2, width=4, quantizer=quantizer, prior=prior)
    Scenes(tokenizer, SceneModel(config, tokenizer.grid, tokenizer.num_codes), {"env_id": "Toy-v0"}).save(folder)

    def value() -> object:
        loaded = Scenes.load(folder, "cpu")
        return hash_module(loaded.model), hash_module(loaded.tokenizer), loaded.meta, loaded.model.config

    files = {"scene": folder / "scene.json", "scene_weights": folder / "scene.safetensors"}
    return {name: Reader(file, lambda _: Scenes.load(folder, "cpu"), (), value) for name, file in files.items()}


def _runs(root: Path, tokenizer: Tokenizer) -> dict[str, Reader]:
    run, experiment = root / "run", ExperimentConfig()
    begin_run(run, "tokenizer", experiment.sections(TokenizerSections), {"frame_size": [64, 64]})
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

    def saved_value() -> object:
        newest = checkpoints.read_newest(tokenizer, optimizer)
        return newest and [{name: value.tolist() for name, value in part.items()} for part in newest[1:]]

    def claimed() -> str:
        begin_run(run, "tokenizer", experiment.sections(TokenizerSections), {"frame_size": [64, 64]})
        return "the same run"

    metrics, parts = run / "metrics.jsonl", Parts(root, "0" * 64)
    metrics.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    parts.write(0, {"error": np.zeros((2, 3)), "shown": np.zeros((2, 4), np.uint8)})
    return {
        "config": Reader(root / "config.yaml", lambda _: load_config(root / "config.yaml"), _configs()),
        "run_config": Reader(run / "config.yaml", lambda _: claimed(), (), claimed),
        "run_inputs": Reader(run / "inputs.json", lambda _: claimed(), (), claimed),
        "manifest": Reader(
            saved / "manifest.json", lambda _: checkpoints.read_newest(tokenizer, optimizer), (), saved_value
        ),
        "checkpoint": Reader(saved / "model.safetensors", restore("model.safetensors"), (), saved_value),
        "optimizer": Reader(saved / "optimizer.safetensors", restore("optimizer.safetensors"), (), saved_value),
        "metrics": Reader(metrics, lambda _: read_metrics(metrics)),
        "part": Reader(next(root.glob(".parts-*/*.safetensors")), lambda _: 0 in parts),
    }


def _configs() -> tuple[bytes, ...]:
    config = ExperimentConfig()
    return (
        dump_yaml(config.model_dump(mode="json")).encode(),
        yaml.safe_dump({"a": [1, {"b": None}]}).encode(),
        b"env: {size: [1e1, 0]}",
    )


def _lists(root: Path, space: ActionSpace) -> dict[str, Reader]:
    listed, array, report = root / "actions.json", root / "actions.npy", root / "report.json"
    listed.write_text('["noop", "forward", 2, 3]')
    np.save(array, np.array([0, 1, 2, 3]))
    report.write_text('{"psnr": [1.5, null], "world": {"hash": "ab"}}')
    return {
        "actions_json": Reader(listed, lambda _: read_actions(listed, space, 2)),
        "actions_npy": Reader(array, lambda _: read_actions(array, space, 2)),
        "report": Reader(report, lambda _: read_json(report)),
        "clips": _clips(root / "evaluation"),
    }


def _clips(folder: Path) -> Reader:
    """What an evaluation keeps of its clips; ``read`` has a report that says that the bytes are right."""
    write_report(folder, {"protocol": {}}, {"ids": np.arange(6).reshape(3, 2), "nats": np.ones((3, 4))})
    file, report = folder / CLIPS, (folder / REPORT).read_bytes()

    def read(data: bytes) -> None:
        fits = json.loads(report) | {"clips": {"sha256": hashlib.sha256(data).hexdigest()}}
        (folder / REPORT).write_text(json.dumps(fits))
        read_report(folder)
        (folder / REPORT).write_bytes(report)

    return Reader(file, read, (), lambda: str(read_report(folder).clips))
