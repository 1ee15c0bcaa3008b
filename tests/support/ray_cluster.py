"""Records on a Ray cluster of two nodes on this machine, and takes a node away in the middle of it."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve()
PATH = [str(folder) for folder in (HERE.parents[2], HERE.parents[1])]
sys.path[:0] = PATH
os.environ["PYTHONPATH"] = os.pathsep.join(PATH)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from test_kill import settings_of  # noqa: E402

from worldvq.config.env import EnvConfig  # noqa: E402
from worldvq.errors import UsageError  # noqa: E402
from worldvq.recording.config import RecordConfig  # noqa: E402
from worldvq.stages.record import record_on_ray  # noqa: E402


def lines(out: Path) -> list[int]:
    return [path.read_bytes().count(b"\n") for path in sorted(out.glob("index.*-of-2.jsonl"))]


def main(out: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)
    arguments = settings_of(40, pause=0.02)
    env, config = EnvConfig(**arguments["env"]), RecordConfig(**{**arguments["config"], "frames": None, "workers": 1})

    def take_away() -> None:
        while len(lines(out)) < 2 or min(lines(out)) < 2:
            time.sleep(0.02)
        print("taking a node away at", lines(out), flush=True)
        cluster.remove_node(node, allow_graceful=False)

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
    main(Path(sys.argv[1]))
