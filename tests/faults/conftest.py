"""What several files of fault tests look at, made once: a whole road, and things that fit each other or don't."""

import subprocess

import pytest
from support.command_line import COMMAND
from support.fault_tools import SMALL, Watch
from support.mismatch import make_all


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


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Data, a tokenizer, its tokens, dynamics and a world that fit each other; and some that don't. Only to be read."""
    root = tmp_path_factory.mktemp("mismatch")
    make_all(root)
    return root
