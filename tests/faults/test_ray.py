"""A Ray cluster of two nodes that loses one: the dataset is the one that a single recorder makes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import programs
from support.fault_tools import hashes, processes_with, shared_memory, wait_until

from worldvq.stages.record import record

pytest.importorskip("ray")
MARK = "WORLDVQ_RAY_TEST"


def test_a_cluster_that_loses_a_node_records_the_same_dataset(tmp_path):
    from support.ray_cluster import settings

    out, gate, before = tmp_path / "cluster", tmp_path / "gate", shared_memory()
    # Ray gives its workers a niceness of 15: beside two busy processes they would take minutes to import anything.
    mark = {MARK: tmp_path, "RAY_worker_niceness": 0}
    environment = programs.environment(RAY_USAGE_STATS_ENABLED=0, **mark)
    command = [sys.executable, str(programs.ROOT / "tests/support/ray_cluster.py"), str(out), str(gate)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "taking a node away" in done.stdout and "another goes on" in done.stdout, done.stdout
    assert "refused: there is no environment 'Absent-v0'" in done.stdout, done.stdout
    assert "refused: --workers 99: no machine" in done.stdout, done.stdout
    assert not (tmp_path / "refused").exists()
    record(*settings(gate), tmp_path / "alone").close()
    assert hashes(out) == hashes(tmp_path / "alone")
    assert wait_until(lambda: not processes_with(MARK, str(tmp_path)))
    assert {name for name in shared_memory() - before if "toy" in name} == set()
