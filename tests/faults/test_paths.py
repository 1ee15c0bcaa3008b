"""Folders whose names are no UTF-8, as old disks and archives have them: the whole road runs in one."""

import os
import subprocess
import sys

import pytest
from support import programs
from support.command_line import COMMAND, succeed
from support.fault_tools import SMALL

from worldvq.errors import UsageError
from worldvq.training.tracking import check_trackers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")


def test_the_whole_road_in_a_folder_whose_name_is_no_utf8(tmp_path):
    root = tmp_path / os.fsdecode(b"r\xff")
    succeed("demo", "--config", "tiny", "--out", root, *SMALL)
    succeed("data", "verify", root / "data")
    succeed("data", "preview", root / "data", "--out", root / "preview")
    succeed("data", "export", root / "data", "--out", root / "videos")
    succeed("data", "import", "videos", root / "videos", "--out", root / "again")
    dream = ["imagine", "--world", root / "world", "--data", root / "again", "--out", root / "dream.mp4"]
    done = subprocess.run(
        [*COMMAND, *map(str, dream)], capture_output=True, check=False, timeout=600, env=programs.environment()
    )
    assert done.returncode == 0, done.stderr
    assert os.fsencode(root / "dream.mp4") in done.stdout and (root / "dream.mp4").stat().st_size > 1000


def test_a_tracker_that_takes_no_such_folder_is_refused(tmp_path):
    pytest.importorskip("tensorboard")
    check_trackers(["tensorboard"], tmp_path)
    with pytest.raises(UsageError, match="TensorBoard takes paths in UTF-8 only"):
        check_trackers(["tensorboard"], tmp_path / os.fsdecode(b"r\xff"))
