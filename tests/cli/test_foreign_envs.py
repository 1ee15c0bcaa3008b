"""A project may have a package ``envs`` of its own, and work in its folder: ours has another name and works there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import programs

from worldvq.data.episodes import EpisodeStore

MINE = {"empty": "", "raising": "raise ImportError('this is the envs of somebody else')"}
MAKE = "import gymnasium, worldvq; gymnasium.make('worldvq/Maze-v0').reset(seed=0)"
RECORDERS = {
    "script": [str(Path(sys.executable).with_name("worldvq"))],
    "module": [sys.executable, "-m", "worldvq"],
}


@pytest.fixture(params=MINE)
def project(request, tmp_path):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text(MINE[request.param])
    return tmp_path


def call(project, *command):
    """Run a program in a project that is the first place where Python looks."""
    path = os.pathsep.join(map(str, (project, *programs.FOLDERS)))
    given = programs.environment(PYTHONPATH=path)
    return subprocess.run(command, cwd=project, env=given, capture_output=True, text=True, timeout=600, check=False)


def test_the_maze_is_made(project):
    done = call(project, sys.executable, "-c", MAKE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("project", ["raising"], indirect=True)
def test_it_is_recorded(project, recorder):
    words = ["record", "worldvq/Maze-v0", "--out", "data", "--frames", "60", "--workers", "2"]
    done = call(project, *RECORDERS[recorder], *words)
    assert done.returncode == 0, done.stderr
    store = EpisodeStore.open(project / "data")
    assert store.num_frames >= 60 and store.verify() == []


def test_theirs_stays_theirs(project):
    done = call(project, sys.executable, "-c", f"{MAKE}; import envs; print(envs.__file__)")
    if (project / "envs" / "__init__.py").read_text():
        assert done.returncode == 1 and "the envs of somebody else" in done.stderr
    else:
        assert done.stdout.strip() == str(project / "envs" / "__init__.py"), done.stderr
