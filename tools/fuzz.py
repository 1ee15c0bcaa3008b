"""Fuzz every reader of files with atheris: whatever the bytes, a reader returns or raises an error that names the file.

python tools/fuzz.py --seconds 600                          # all readers, in total
python tools/fuzz.py --reader episode --seconds 60          # one of them
python tools/fuzz.py --reader episode --input crash-1234    # once more what was found

Hashes that stand in other files are made to fit the mutated bytes: whoever changes a file can change them too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("fuzz.py needs atheris (Linux on x86_64, Python 3.11 to 3.13): pip install atheris")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
with atheris.instrument_imports(include=["worldvq", "yaml"]):  # type: ignore[attr-defined]
    from support.readers import Reader, readers

FOUND = 77
"""Exit code where something escaped, as libFuzzer has it."""


def try_once(name: str, reader: Reader, root: Path, found: Path, data: bytes) -> None:
    """Read the bytes; keep them if something escapes."""
    try:
        reader.check(root, data)
    except BaseException:
        (found / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
        raise


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
            limits = [f"-max_total_time={seconds}", "-max_len=16384", "-timeout=60", "-rss_limit_mb=2048"]
            arguments = [sys.argv[0], *limits, f"-artifact_prefix={found}/{name}-", str(corpus)]
            atheris.Setup(arguments, functools.partial(try_once, name, reader, root, found))
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
            known[chosen[0]].check(Path(folder), arguments.input.read_bytes())
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
