"""Files made to harm: nothing in them runs, nothing is written outside their folder, and none takes much memory."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.episodes import fill, make_episode, make_meta
from support.fault_tools import hashes
from support.readers import NAMES, readers

from worldvq.data.clips import read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.data.shard import Shard
from worldvq.data.shards import merge_shards
from worldvq.errors import UsageError, WorldVQError
from worldvq.files.atomic import write_atomic
from worldvq.files.lock import Lock
from worldvq.files.weights import load_module
from worldvq.models.config import TokenizerConfig
from worldvq.models.loading import load_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.stages.experiment import load_config
from worldvq.types import ActionSpace
from worldvq.world.actions import read_actions
from worldvq.world.model import WorldModel

ROOT = Path(__file__).resolve().parents[2]

# ------------------------------------------------------------------------------------------------ nothing runs


def payloads(canary: Path) -> dict[str, bytes]:
    """Bytes that make a file appear if they are unpickled, evaluated or imported."""
    command = f"touch {canary}"
    pickled = b"cposix\nsystem\n(V" + command.encode() + b"\ntR."
    framed = b"\x80\x04cposix\nsystem\n\x8c" + bytes([len(command)]) + command.encode() + b"\x85R."
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:  # as torch.save writes it
        file.writestr("model/data.pkl", pickled)
        file.writestr("../../outside", b"")
    header = str({"descr": "|O", "fortran_order": False, "shape": (4,)}).encode().ljust(117) + b"\n"
    objects = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + framed
    code = f"__import__('os').system('{command}')"
    hidden = json.dumps({"__class__": code, "__reduce__": ["os.system", command], "kind": code}).encode()
    return {
        "pickle": pickled,
        "framed pickle": framed,
        "zip": archive.getvalue(),
        "object array": objects,
        "yaml": f"env: !!python/object/apply:os.system ['{command}']\n".encode(),
        "yaml name": b"env: !!python/name:antigravity\n",
        "code": code.encode(),
        "json": hidden,
        "safetensors": len(hidden).to_bytes(8, "little") + hidden,
    }


def test_the_payloads_would_do_harm(tmp_path):
    """Where they are run, they work: the test below can fail."""
    for name in ("pickle", "framed pickle"):
        canary = tmp_path / "canary"
        program = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
        subprocess.run([sys.executable, "-c", program], input=payloads(canary)[name], check=True)
        assert canary.exists()
        canary.unlink()


def test_nothing_in_a_file_runs():
    with tempfile.TemporaryDirectory() as folder:
        root, canary = Path(folder) / "files", Path(folder) / "canary"
        root.mkdir()
        found = readers(root)
        before = {path for path in Path(folder).rglob("*") if path.parent != root}
        for reader in found.values():
            good = reader.file.read_bytes() if reader.file.exists() else reader.others[0]
            for data in payloads(canary).values():
                reader.check(root, data)
                reader.check(root, good + data)
                assert not canary.exists()
            reader.file.write_bytes(good)
        assert {path for path in Path(folder).rglob("*") if path.parent != root} == before


def test_numbers_and_nesting_that_break_parsers_are_named():
    values = ["NaN", "-Infinity", "1e999", "9" * 5000, "1" + "0" * 400, "[" * 60_000, '{"a":' * 900 + "1" + "}" * 900]
    values += ['"\\ud800"', "true", "-0.0", "1e-999", '{"a": 1, "a": 2}']
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for reader in readers(root).values():
            good = reader.file.read_bytes() if reader.file.suffix in (".json", ".jsonl") else b""
            for value in values:
                reader.check(root, value.encode())
                for key in json.loads(good) if reader.file.suffix == ".json" and good[:1] == b"{" else ():
                    text = json.dumps({**json.loads(good), key: "HERE"}).replace('"HERE"', value)
                    reader.check(root, text.encode())


def test_an_environment_of_a_dataset_is_not_imported_to_look_at_it(tmp_path, monkeypatch):
    """Its id names a module that leaves a trace; open, read, verify and draw never import it."""
    from support.command_line import run

    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    meta = make_meta()
    meta = meta.model_copy(update={"env": meta.env.model_copy(update={"id": "evil:Env-v0"}), "policy": "evil:policy"})
    with EpisodeStore.create(tmp_path / "d", meta) as store:
        store.commit(0, make_episode(0))
    for command in (("info",), ("verify",), ("preview", "--out", tmp_path / "preview")):
        assert run("data", command[0], tmp_path / "d", *command[1:]).returncode == 0
    assert not (tmp_path / "canary").exists() and "evil" not in sys.modules


BANNED = {
    "import pickle": "TID251",
    "import cPickle": "TID251",
    "import dill": "TID251",
    "import cloudpickle": "TID251",
    "import joblib": "TID251",
    "import shelve": "TID251",
    "import marshal": "TID251",
    "from pickle import loads": "TID251",
    "torch.load('x')": "TID251",
    "torch.load('x', weights_only=True)": "TID251",
    "torch.save(1, 'x')": "TID251",
    "numpy.load('x', allow_pickle=True)": "TID251",
    "yaml.load('x', yaml.Loader)": "S506",
    "yaml.load('x', yaml.SafeLoader)": "TID251",
    "yaml.unsafe_load('x')": "TID251",
    "yaml.full_load('x')": "TID251",
    "os.system('ls')": "TID251",
    "os.popen('ls')": "TID251",
    "eval('1')": "S307",
    "exec('1')": "S102",
}


@pytest.mark.parametrize("folder", ["worldvq", "worldvq/data", "envs", "tests", "tests/unit", "tools"])
def test_the_linter_refuses_what_runs_data(folder):
    text = "import os\n\nimport numpy\nimport torch\nimport yaml\n\n" + "\n".join(BANNED) + "\n"
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json"]
    command += ["--stdin-filename", str(ROOT / folder / "new_file.py"), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stderr
    found = {(problem["location"]["row"], problem["code"]) for problem in json.loads(done.stdout)}
    lines = text.splitlines()
    for banned, code in BANNED.items():
        assert (lines.index(banned) + 1, code) in found, f"{banned!r} gets past {code}"


# ------------------------------------------------------------------------------------------------ nothing outside


@pytest.fixture
def outside(tmp_path):
    """A folder that nothing may touch."""
    folder = tmp_path / "outside"
    fill(folder, 2)
    (folder / "secret").write_text("do not show or change")
    return folder


@pytest.mark.parametrize("name", ["dataset.json", "index.jsonl", "index.0-of-2.jsonl", "episodes", ".lock"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_store_whose_parts_are_links_is_refused(tmp_path, outside, name, dangling):
    folder = fill(tmp_path / "d", 2).path
    target = outside / ("nothing" if dangling else "secret" if name == ".lock" else name)
    if name == "index.0-of-2.jsonl" and not dangling:
        shutil.copy(folder / "index.jsonl", target)
    if (folder / name).is_dir():
        shutil.rmtree(folder / name)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    before = hashes(outside)
    uses = [
        lambda: EpisodeStore.create(folder, make_meta()),
        lambda: EpisodeStore.create(folder, make_meta(), Shard(0, 2)),
        lambda: EpisodeStore.open(folder),
        lambda: merge_shards(folder),
        lambda: Lock(folder).release(),
    ]
    for number, use in enumerate(uses):
        refused = None
        try:
            use()
        except WorldVQError as error:
            refused = error
        if number < 3 or (number == 4 and name == ".lock"):
            assert refused is not None
            assert name in str(refused) or (name == "dataset.json" and dangling)
        assert hashes(outside) == before and not (outside / "nothing").exists()


def test_an_episode_that_is_a_link_is_refused(tmp_path, outside):
    """Even where it points to the very same bytes: who knows what is there tomorrow."""
    folder, before = fill(tmp_path / "d", 2).path, hashes(outside)
    for target in (outside / "episodes" / "000001.safetensors", Path("/etc/passwd"), Path("/dev/zero"), folder):
        file = folder / "episodes" / "000001.safetensors"
        file.unlink()
        file.symlink_to(target)
        with EpisodeStore.open(folder) as store, pytest.raises(WorldVQError, match=r"000001.*symbolic link"):
            store.read(1)
        (problem,) = store.verify()
        assert "symbolic link" in problem and "root:" not in problem
    file.unlink()
    os.mkfifo(file)  # nobody writes to it: opening it as other files are would wait for ever
    with pytest.raises(WorldVQError, match=r"000001.*not a regular file"):
        EpisodeStore.open(folder).read(1)
    assert hashes(outside) == before


def test_links_under_temporary_names_are_removed_and_not_followed(tmp_path, outside):
    folder, before = fill(tmp_path / "d", 2).path, hashes(outside)
    for place in (folder, folder / "episodes"):
        (place / ".000002.safetensors.1.tmp").symlink_to(outside / "secret")
    mine = folder / "episodes" / f".000002.safetensors.{os.getpid()}.tmp"
    mine.symlink_to(outside / "secret")
    with EpisodeStore.create(folder, make_meta()) as store:
        mine.symlink_to(outside / "secret")
        store.commit(2, make_episode(2))
        assert store.verify() == []
    assert hashes(outside) == before and not list(folder.rglob("*.tmp"))
    (tmp_path / f".a.{os.getpid()}.tmp").symlink_to(outside / "secret")
    write_atomic(tmp_path / "a", b"new")
    assert hashes(outside) == before and (tmp_path / "a").read_bytes() == b"new"
    (tmp_path / "b").symlink_to(outside / "secret")
    write_atomic(tmp_path / "b", b"new")  # takes the link's place
    assert hashes(outside) == before and not (tmp_path / "b").is_symlink()


def test_a_link_to_a_whole_store_is_fine(tmp_path):
    fill(tmp_path / "d", 2)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    with EpisodeStore.create(tmp_path / "link", make_meta()) as store:
        store.commit(2, make_episode(2))
    assert EpisodeStore.open(tmp_path / "link").verify() == [] and len(EpisodeStore.open(tmp_path / "d")) == 3


# ------------------------------------------------------------------------------------------------ memory

SPARE = 40 * 2**20
"""Bytes that a reader may take besides twice its file."""


def growth(use) -> tuple[int, str]:
    """Bytes by which a forked process grows at most while it does something, and the error that ended it."""
    into, out = os.pipe()
    child = os.fork()
    if child == 0:
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
        assert words in message and (message or not words), f"{name}: {message!r}"
        assert grown[name] <= 2 * size + SPARE, f"{name}: {grown[name] / 2**20:.0f} MiB for {size / 2**20:.1f} MiB"
    assert len(grown) >= 6


def test_the_memory_of_a_process_is_measured():
    """Where memory is taken, it is seen: the test above can fail."""
    assert growth(lambda: np.ones(2**28, np.uint8).sum())[0] > 2**28
    assert growth(lambda: None)[0] < SPARE


def test_all_readers_are_among_those_that_are_damaged():
    """A new file that is read somewhere belongs into tests/readers.py."""
    assert {"episode", "index", "dataset", "tokens", "world", "checkpoint", "config"} <= set(NAMES)
