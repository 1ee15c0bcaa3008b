"""Whatever a file claims to hold, reading it takes no more memory than what is there."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import resource
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from support.episodes import fill, make_meta
from support.readers import readers

from worldvq.data.clips import read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError, WorldVQError
from worldvq.files.weights import load_module
from worldvq.models.config import TokenizerConfig
from worldvq.models.loading import load_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.memory import keep_freed_memory
from worldvq.stages.experiment import load_config
from worldvq.types import ActionSpace
from worldvq.world.actions import read_actions
from worldvq.world.model import WorldModel

SPARE = 64 * 2**20
"""Bytes that a reader may take besides twice its file."""


def _give_back() -> None:
    """Hand what was freed back to the system: tests before may have trained, which keeps it and would hide growth."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # of malloc.h, as they are to begin with
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(trim_threshold, 2**17)
        libc.malloc_trim(0)


def growth(use) -> tuple[int, str]:
    """Bytes by which a forked process grows at most while it does something, and the error that ended it."""
    into, out = os.pipe()
    child = os.fork()
    if child == 0:
        gc.collect()  # garbage of the tests before, if it went in the middle of this, would hide growth
        _give_back()
        Path("/proc/self/clear_refs").write_text("5")  # and so would a peak that is no more
        before, message = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, ""
        try:
            use()
        except WorldVQError as error:
            message = str(error)
        except BaseException as error:
            message = f"ESCAPED {type(error).__name__}: {error}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        os.write(out, json.dumps([grown, message[:2000]]).encode())
        os._exit(0)
    os.close(out)
    with os.fdopen(into, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    grown, message = json.loads(text)
    return grown, message


def zeros(size: int, states_size: bool = True) -> bytes:
    """``size`` zeros, compressed."""
    zstandard = pytest.importorskip("zstandard")
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=states_size)
    work = compressor.compressobj(size=size if states_size else -1)
    piece = bytes(2**24)
    parts = [work.compress(piece[: min(len(piece), size - begin)]) for begin in range(0, size, len(piece))]
    return b"".join([*parts, work.flush()])


def compressed_store(folder: Path, side: int, num_frames: int, chunks: list[bytes]) -> Path:
    """A store whose index and headers are right about a file with these chunks."""
    import hashlib

    from safetensors.numpy import save

    from worldvq.data.episode_files import IndexEntry

    meta = make_meta().model_copy(update={"compression": "zstd", "frame_size": (side, side)})
    steps = num_frames - 1
    about = {"number": 0, "seed": 0, "terminated": True, "truncated": False, "interrupted": False, "meta": {}}
    data = save(
        {
            "actions": np.zeros(steps, np.int64),
            "rewards": np.zeros(steps, np.float32),
            "frames_zstd": np.frombuffer(b"".join(chunks), np.uint8),
            "chunk_ends": np.cumsum([len(chunk) for chunk in chunks]).astype(np.int64),
        },
        {"episode": json.dumps(about)},
    )
    EpisodeStore.create(folder, meta).close()
    entry = IndexEntry(
        number=0,
        file="episodes/000000.safetensors",
        sha256=hashlib.sha256(data).hexdigest(),
        num_frames=num_frames,
        seed=0,
        episode_return=0.0,
        terminated=True,
        truncated=False,
        interrupted=False,
    )
    (folder / entry.file).write_bytes(data)
    (folder / "index.jsonl").write_bytes(entry.to_line())
    return folder


def read_all(folder: Path) -> None:
    """Open, verify and read; raises the first problem."""
    store = EpisodeStore.open(folder)
    for problem in store.verify():
        raise UsageError(problem)
    store.read(0)


def hostile_stores(root: Path) -> dict[str, tuple]:
    """Stores that claim to hold more than there is: name to (what to do, bytes of the file, part of the error)."""
    claims_much = b'{"frames":{"dtype":"U8","shape":[1000000,1000,1000,3],"data_offsets":[0,3000000000000]}}'
    headers = {
        "a terabyte": (len(claims_much).to_bytes(8, "little") + claims_much, "does not fit bytes"),
        "an endless header": ((2**60).to_bytes(8, "little") + b"{}", "cut short"),
        "a long header": ((2**21).to_bytes(8, "little") + b"[" * 2**21, "at most"),
        "many lists": ((2**20).to_bytes(8, "little") + (b"[" + b"[]," * 2**19)[: 2**20], "not valid JSON"),
        "deep lists": ((2**20).to_bytes(8, "little") + b"[" * 2**20, "not valid JSON"),
    }
    found = {}
    for name, (data, words) in headers.items():
        folder = fill(root / name, 1).path
        (folder / "episodes/000000.safetensors").write_bytes(data)
        found[name] = (lambda folder=folder: EpisodeStore.open(folder).read(0), len(data), words)
    gib = 2**30
    bombs = {
        "a bomb that is larger than its frames": (64, 17, [zeros(gib), zeros(64 * 64 * 3)], "states"),
        "a bomb that states no size": (64, 16, [zeros(gib, states_size=False)], "states"),
        "frames of many gigabytes": (4096, 32, [zeros(16 * 4096**2 * 3)] * 2, "no recording does"),
    }
    for name, (side, num_frames, chunks, words) in bombs.items():
        folder = compressed_store(root / name, side, num_frames, chunks)
        found[name] = (lambda folder=folder: read_all(folder), sum(map(len, chunks)), words)
    wide = fill(root / "wide", 1).path
    description = json.loads((wide / "dataset.json").read_text()) | {"frame_size": [4096, 4096]}
    del description["checksum"]
    (wide / "dataset.json").write_text(json.dumps(description))
    batch = np.zeros((64, 2), np.int64)
    found["a batch of frames that are not there"] = (
        lambda: read_clips(EpisodeStore.open(wide), batch, 16),
        (wide / "episodes/000000.safetensors").stat().st_size,
        "frames should be",
    )
    # As large as frames can be and still be read: checking it takes no more than any other.
    chunks = [zeros(16 * 4096**2 * 3)]
    folder = compressed_store(root / "large", 4096, 16, chunks)
    found["large frames, verified"] = (lambda: EpisodeStore.open(folder).verify(), len(chunks[0]), "")
    lines = root / "lines"
    fill(lines, 1)
    (lines / "index.jsonl").write_bytes(b'{"number":' + b"1" * 2**25 + b"}\n")
    found["an endless line"] = (lambda: EpisodeStore.open(lines), 2**25, "neither a line")
    described = fill(root / "described", 1).path
    (described / "dataset.json").write_bytes(b'{"env": "' + b"x" * 2**23 + b'"}')
    found["a long description"] = (lambda: EpisodeStore.open(described), 2**23, "at most")
    return found


def hostile_models(root: Path) -> dict[str, tuple]:
    """Models whose config asks for terabytes."""
    found: dict[str, tuple] = {}
    made = readers(root)
    for name, change in (
        ("tokenizer", {"width": 65_536, "encoder_blocks": 128}),
        ("tokenizer", {"quantizer": {"num_codes": 2**24, "code_dim": 65_536}}),
        ("tokenizer", {"quantizer": {"kind": "fsq", "levels": [255] * 3}}),
    ):
        folder = root / f"model {len(found)}"
        shutil.copytree(made[name].file.parent, folder)
        description = json.loads(made[name].file.read_text()) | change
        del description["checksum"]
        (folder / "tokenizer.json").write_text(json.dumps(description))
        found[f"{name} {change}"] = (lambda folder=folder: load_tokenizer(folder), 10_000, "does not fit this model")
    for number, (section, change) in enumerate(
        (
            ("dynamics", {"width": 65_536, "num_blocks": 128}),
            ("action_space", {"kind": "multi_discrete", "nvec": [2**20] * 100, "low": [], "high": [], "names": []}),
            ("tokenizer", {"frame_size": [4096, 4096]}),
        )
    ):
        folder = root / f"world {number}"
        shutil.copytree(made["world"].file.parent, folder)
        description = json.loads(made["world"].file.read_text())
        del description["checksum"]
        description[section] |= change
        (folder / "world.json").write_text(json.dumps(description))
        found[f"world {section}"] = (lambda folder=folder: WorldModel.load(folder, "cpu"), 10_000, "does not fit this")
    weights = root / "claims.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    module = Tokenizer(TokenizerConfig(frame_size=(16, 16), width=8))
    found["weights of terabytes"] = (lambda: load_module(weights, module), 200, "does not fit bytes")
    return found


def hostile_lists(root: Path) -> dict[str, tuple]:
    """Actions and configs that would grow while they are read."""
    space = ActionSpace("discrete", (4,))
    header = str({"descr": "<i8", "fortran_order": False, "shape": (10**12,)}).encode().ljust(117) + b"\n"
    (root / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(800))
    (root / "a.json").write_bytes(b"[" + b"[]," * (2**20 // 3 - 5) + b"[]]")
    (root / "b.json").write_bytes(b"[" + b"1," * 2**23 + b"1]")
    laughs = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    laughs += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    (root / "laughs.yaml").write_text("\n".join(laughs))
    (root / "deep.yaml").write_text("[" * 100_000)
    (root / "long.yaml").write_text("a: 1\n" * 2**21)
    return {
        "an array of terabytes": (lambda: read_actions(root / "a.npy", space, 2), 1000, "are not its"),
        "actions that are lists": (lambda: read_actions(root / "a.json", space, 2), 2**20, ""),
        "a long list": (lambda: read_actions(root / "b.json", space, 2), 2**24, "at most"),
        "a billion laughs": (lambda: load_config(root / "laughs.yaml"), 1000, "anchors"),
        "a deep config": (lambda: load_config(root / "deep.yaml"), 100_000, "deeper than 32"),
        "a long config": (lambda: load_config(root / "long.yaml"), 10 * 2**20, "at most"),
    }


@pytest.mark.parametrize("corpus", [hostile_stores, hostile_models, hostile_lists])
def test_memory_is_bounded_by_the_file(tmp_path, corpus):
    """Each in a process of its own, forked from this one, whose peak is measured."""
    grown = {}
    for name, (use, size, words) in corpus(tmp_path).items():
        grown[name], message = growth(use)
        assert "ESCAPED" not in message, f"{name}: {message}"
        assert words in message, f"{name}: {message!r}"
        assert grown[name] <= 2 * size + SPARE, f"{name}: {grown[name] / 2**20:.0f} MiB for {size / 2**20:.1f} MiB"
    assert len(grown) >= 6


def test_the_memory_of_a_process_is_measured():
    """Where memory is taken, it is seen, even where this process keeps what it frees: the test above can fail."""
    keep_freed_memory()
    np.ones(2**28, np.uint8)
    assert growth(lambda: np.ones(2**28, np.uint8).sum())[0] > 2**28
    assert growth(lambda: None)[0] < SPARE
