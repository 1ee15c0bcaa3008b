"""Wall time and peak memory of the whole demo, all its processes together: ``python tools/bench_demo.py --out DIR``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import psutil


def resident(process: psutil.Process) -> int:
    """Bytes of memory that a process and its children hold; pages that they share count for each."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def main() -> None:
    """Run the demo into a new folder, then print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("overrides", nargs="*", help="key.path=value, as for worldvq demo")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; the demo would only continue there")
    command = [sys.executable, "-m", "worldvq", "demo", "--out", str(arguments.out), *arguments.overrides]
    begun, peak = time.monotonic(), 0
    child = psutil.Popen(command)
    while child.poll() is None:
        try:
            peak = max(peak, resident(child))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    if child.wait():
        raise subprocess.CalledProcessError(child.returncode, command)
    print(f"demo: {(time.monotonic() - begun) / 60:.1f} min, {peak / 2**30:.2f} GiB of memory at its peak")


if __name__ == "__main__":
    main()
