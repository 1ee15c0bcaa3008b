"""Records on a Ray cluster of two nodes on this machine, and takes a node away in the middle of it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from support.fault_tools import is_running, wait_until
from support.zygote import toy_recording
from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError
from worldvq.recording.config import RecordConfig
from worldvq.stages.record import record_on_ray


def settings(gate: Path) -> tuple[EnvConfig, RecordConfig]:
    """What is recorded; no process plays more than three episodes before there is such a file."""
    arguments = toy_recording(40, gate=str(gate))
    return EnvConfig(**arguments["env"]), RecordConfig(**{**arguments["config"], "frames": None, "workers": 1})


def lines(out: Path) -> list[int]:
    return [path.read_bytes().count(b"\n") for path in sorted(out.glob("index.*-of-2.jsonl"))]


def main(out: Path, gate: Path) -> None:
    # One CPU a node, and one an actor: each has a node of its own, and the one that is lost leaves a place for nobody.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)
    env, config = settings(gate)

    recording = threading.Thread(target=lambda: record_on_ray(env, config, out, 2).close(), daemon=True)
    recording.start()
    assert wait_until(lambda: len(lines(out)) == 2 and min(lines(out)) >= 2, seconds=400)
    print("taking a node away at", lines(out), flush=True)
    children = psutil.Process(node.all_processes["raylet"][0].process.pid).children()
    actors = [child for child in children if "_Recorder" in " ".join(child.cmdline())]
    assert len(actors) == 1
    cluster.remove_node(node, allow_graceful=False)
    # An actor lives on until it notices that its node is gone: it is not to finish its shard in that time.
    assert wait_until(lambda: not any(is_running(process.pid) for process in actors), seconds=400)
    cluster.add_node(num_cpus=1)  # Ray wants this done by the main thread
    gate.touch()
    recording.join()
    for wrong, changes in (("Absent-v0", {}), (env.id, {"workers": 99})):
        try:
            record_on_ray(EnvConfig(id=wrong), config.model_copy(update=changes), out.with_name("refused"), 1)
        except UsageError as error:
            print("refused:", error)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
