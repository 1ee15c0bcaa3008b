"""A Ray cluster of two nodes that loses one: the dataset is the one that a single recorder makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.fault_tools import hashes, processes_with, shared_memory, wait_until
from test_kill import settings_of

from worldvq.config.env import EnvConfig
from worldvq.recording.config import RecordConfig
from worldvq.stages.record import record

pytest.importorskip("ray")


def test_a_cluster_that_loses_a_node_records_the_same_dataset(tmp_path):
    out, before = tmp_path / "cluster", shared_memory()
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "WORLDVQ_RAY_TEST": str(tmp_path)}
    script = Path(__file__).parents[1] / "support" / "ray_cluster.py"
    command = [sys.executable, str(script), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "taking a node away" in done.stdout and "another goes on" in done.stdout, done.stdout
    assert "refused: there is no environment 'Absent-v0'" in done.stdout, done.stdout
    assert "refused: --workers 99: no machine" in done.stdout, done.stdout
    assert not (tmp_path / "refused").exists()
    arguments = settings_of(40, pause=0.02)
    config = RecordConfig(**{**arguments["config"], "frames": None})
    record(EnvConfig(**arguments["env"]), config, tmp_path / "alone").close()
    assert hashes(out) == hashes(tmp_path / "alone")
    assert wait_until(lambda: not processes_with("WORLDVQ_RAY_TEST", str(tmp_path)), 10)
    assert {name for name in shared_memory() - before if "toy" in name} == set()
