"""A whole road of the smallest size, walked once for all fault tests, by a process that is watched."""

import subprocess

import pytest
from support.command_line import COMMAND
from support.fault_tools import SMALL, Watch


@pytest.fixture(scope="session")
def road(tmp_path_factory):
    """What ``worldvq demo`` leaves: data, tokenizer, tokens, dynamics, world, report and rollout.mp4.

    Beside it ``demo.left`` holds what its process left behind, which should be nothing.
    """
    folder = tmp_path_factory.mktemp("road")
    out = folder / "demo"
    with Watch(folder / "tmp") as watch:
        command = [*COMMAND, "demo", "--config", "tiny", "--out", str(out), *SMALL]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=watch.environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (folder / "demo.left").write_text("\n".join(watch.left(out)))
    return out
