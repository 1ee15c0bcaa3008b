"""A process that has imported everything and forks on request, so that hundreds of processes can be started and killed.

Each line of its input is JSON: ``[function, arguments]`` starts ``function(**arguments)`` in a child of its own session
and answers with the child's process id; ``["wait", pid]`` answers with its exit status once it has ended.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from support import programs
from support.toy_env import ID, SIZE

HERE = Path(__file__).resolve()
LENGTH = 12


def toy_recording(episodes: int, **changes: Any) -> dict[str, Any]:
    """Arguments of :func:`play`: short episodes of the toy environment."""
    env = {"id": ID, "size": SIZE, "kwargs": {"length": LENGTH, "pause": 0.001, **changes}}
    config = {"episodes": episodes, "workers": 2, "policy": "random", "seed": 3, "timeout": 60.0}
    return {"env": env, "config": config}


class Zygote:
    """The other end: start it once, fork often."""

    def __init__(self, log: Path, **environment: str):
        self.log = log
        given = programs.environment(**environment)
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=given,
            )

    def _ask(self, *request: Any) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.log.read_text()[-3000:]
        return int(answer)

    def start(self, function: str, **arguments: Any) -> int:
        """Start a function of this file in a process of its own; returns its id."""
        return self._ask(function, arguments)

    def wait(self, pid: int) -> int:
        """Wait for it; returns its exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(self._ask("wait", pid))

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(120)
        self.process.stdout.close()


def play(out: str, env: dict, config: dict, shard: str = "0/1") -> None:
    """Record."""
    from worldvq.config.env import EnvConfig
    from worldvq.data.shard import Shard
    from worldvq.recording.config import RecordConfig
    from worldvq.stages.record import record

    settings = RecordConfig(**{"frames": None, **config})
    record(EnvConfig(**env), settings, Path(out), progress=False, shard=Shard.parse(shard)).close()


def main() -> None:
    import worldvq.stages.record  # noqa: F401

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.robust_server", "worldvq.recording.playing", "support.toy_env"])
    multiprocessing.forkserver.ensure_running()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        if name == "wait":
            answer = os.waitpid(arguments, 0)[1]
        else:
            answer = os.fork()
            if answer == 0:
                os.setsid()
                # The server is this process's; its children use it, and cannot ask how it is.
                multiprocessing.forkserver._forkserver.ensure_running = lambda: None
                multiprocessing.forkserver.ensure_running = lambda: None
                multiprocessing.current_process()._config["tempdir"] = None
                os.dup2(2, 1)
                code = 1
                try:
                    globals()[name](**arguments)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
