"""The worked example of docs/your_environment.md is run as it stands there, with fewer frames."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from worldvq.data.episodes import EpisodeStore

PAGE = (Path(__file__).parents[2] / "docs" / "your_environment.md").read_text()


@pytest.fixture
def commands(tmp_path):
    """The commands of the page, in a folder that holds its module."""
    program, shell = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.S) for kind in ("python", "sh"))
    assert program and shell
    (tmp_path / "my_world.py").write_text(program[1])
    lines = shell[1].replace("\\\n", " ").replace("4000", "600").strip().splitlines()
    return [shlex.split(line) for line in lines]


def test_the_example_works_as_it_stands(tmp_path, commands):
    record, preview, demo = commands
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    texts = []
    for words in (record, preview, demo):
        assert words[0] == "worldvq"
        command = [sys.executable, "-m", "worldvq", *words[1:]]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        texts.append(done.stdout)
    said = re.search(r"```\n(recording .*?)\n```", PAGE)
    assert said and said[1] in texts[0]
    store = EpisodeStore.open(tmp_path / "runs/ball/data")
    assert store.num_frames == 600 and store.action_space.names == ("stay", "left", "right")
    assert (store.read(0).frames[:, :10] == 0).all()  # padded
    assert (np.diff(store.read(0).actions) != 0).any()
    assert (tmp_path / "runs/ball-tiny/rollout.mp4").stat().st_size > 1000
