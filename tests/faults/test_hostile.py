"""Files made to harm: nothing in them runs."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from support.episodes import make_episode, make_meta
from support.readers import readers

from worldvq.data.episodes import EpisodeStore

ROOT = Path(__file__).resolve().parents[2]


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
