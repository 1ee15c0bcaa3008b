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
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)
    env, config = settings(gate)

    def take_away() -> None:
        assert wait_until(lambda: len(lines(out)) == 2 and min(lines(out)) >= 2)
        print("taking a node away at", lines(out), flush=True)
        raylet = node.all_processes["raylet"][0].process.pid
        workers = psutil.Process(raylet).children()
        cluster.remove_node(node, allow_graceful=False)
        # An actor lives on until it notices that its node is gone: it is not to finish its shard in that time.
        assert wait_until(lambda: not any(is_running(process.pid) for process in workers))
        gate.touch()

    spoiler = threading.Thread(target=take_away)
    spoiler.start()
    # One actor to a node: each asks for one CPU, and the head gets the second one only when the other node is gone.
    record_on_ray(env, config, out, 2).close()
    spoiler.join()
    for wrong, changes in (("Absent-v0", {}), (env.id, {"workers": 99})):
        try:
            record_on_ray(EnvConfig(id=wrong), config.model_copy(update=changes), out.with_name("refused"), 1)
        except UsageError as error:
            print("refused:", error)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
