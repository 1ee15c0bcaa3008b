"""What does not fit is one line that says what was seen and what to do, and nothing is written."""

import numpy as np
import pytest
from support.command_line import run
from support.own_videos import folder_of_videos, frames_of, write_lossless

HEADER = "episode,step,action\n"
GOOD = HEADER + "a,0,1\na,1,0\na,2,1\nb,0,0\nb,1,0\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    folder_of_videos(folder, (4, 3))
    return folder


def refused(source, out, *arguments):
    result = run("data", "import", "videos", source, "--out", out, *arguments)
    assert result.returncode in (1, 2) and len(result.stderr.splitlines()) == 1, result.stderr
    assert not out.exists()
    return result.stderr.removeprefix("worldvq: error: ").strip()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "b,2,0\nb,3,0\n", "has 4 actions for 'b.mkv', which has 3 frames: 2 are needed, action t leads from"),
        (HEADER + "a,0,1\nb,0,0\nb,1,0\n", "has 1 actions for 'a.mkv', which has 4 frames: 3 are needed"),
        (HEADER + "b,0,0\nb,1,0\n", "has no actions for the video 'a': add them, or take it out of the folder"),
        (GOOD + "bb,0,0\n", "names the episode 'bb', of which there is no video (did you mean 'b'?)"),
        (GOOD.replace("a,2,1", "a,3,1"), "has no step 2 of 'a.mkv': steps count the kept frames 0, 1, 2"),
        (GOOD.replace("a,2,1", "a,1,1"), "has the step 1 twice of 'a.mkv'"),
        (GOOD.replace("a,2,1", "a,x,1"), "line 4: a step is a whole number from 0, got 'x'"),
        (GOOD.replace("a,2,1", "a,2"), "line 4: 2 cells under 3 columns"),
        (GOOD.replace("a,0,1", "a,0,"), "has no action for step 0 of 'a.mkv': action t leads from frame t to f"),
        (GOOD.replace("a,2,1", "a,2,-1"), "choices count from 0, got -1: real actions have --low and --high"),
        (GOOD.replace("a,2,1", "a,2,inf"), "an action is no finite float32: inf"),
        (GOOD.replace("a,2,1", "a,2,go"), "actions are names or numbers, but '1' stands among names"),
        (GOOD.replace("action", "time"), "unknown column 'time'"),
        (GOOD.replace("step", "done"), "unknown column 'done'"),
        (GOOD.replace("episode", "name"), "one column 'episode' has to name the video, got the columns name, st"),
        (GOOD.replace(",action", ",step"), "columns need names, each its own; got episode, step, step"),
        ("episode,step\na,0\n", "no column 'action'"),
        (HEADER, "holds no rows of actions"),
        ("", "columns need names, each its own; got an empty file"),
        ("episode,action,reward\na,0,1\na,0,nan\na,0,1\nb,0,1\nb,0,1\n", "the reward of step 1 of 'a.mkv' is nan"),
        ("episode,action,reward\na,0,1\na,0,1e39\na,0,1\nb,0,1\nb,0,1\n", "the reward of step 1 of 'a.mkv' is 1e+39"),
        ("episode,action,reward\na,0,high\n", "line 2: a reward is a number, got 'high'"),
        ("episode,action,rewrd\na,0,1\n", "unknown column 'rewrd' (did you mean 'reward'?)"),
        ("episode,x,y,rewrd\na,0,1,1\n", "unknown column 'rewrd' (did you mean 'reward'?)"),
        ("episode,action,terminated\na,0,1\na,0,0\na,0,0\nb,0,0\nb,0,1\n", "'a.mkv' is terminated at step 0"),
        ("episode,action,terminated\na,0,2\n", "line 2: terminated, truncated, interrupted are 0 or 1, got 2"),
        ("episode,u,v\na,x,1\na,x,1\na,x,1\nb,x,1\nb,x,1\n", "names are for a single column 'action'"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit(source, tmp_path, text, said):
    table = tmp_path / "t.csv"
    table.write_text(text)
    assert said in refused(source, tmp_path / "d", "--actions", table)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"episode": "a"}', 'line 1: a line is an episode: {"episode": "NAME", "actions": [...]}'),
        ('{"episode": "a", "actions": [0, 1, NaN]}', "line 1: not valid JSON (NaN is no number)"),
        ('{"episode": "a", "actions": [0], "reward": [1]}', "unknown key 'reward' (did you mean 'rewards'?)"),
        ('{"episode": "a", "actions": [0, 1], "rewards": [1]}', "line 1: 2 actions need as many rewards"),
        ('{"episode": "a", "actions": [{"x": 1}]}', "an action is a number, a name, or a list of numbers"),
        ('{"episode": "a", "actions": [[1, 2], [1]]}', "actions of 1 and 2 parts: all need the same"),
        ('{"episode": "a", "actions": [0]}\n{"episode": "a", "actions": [0]}', "line 2: the episode 'a' stands twice"),
        ("", "holds no episodes"),
    ],
)  # fmt: skip
def test_lines_that_do_not_fit(source, tmp_path, text, said):
    table = tmp_path / "t.jsonl"
    table.write_text(text)
    assert said in refused(source, tmp_path / "d", "--actions", table)


def test_arrays_that_do_not_fit(source, tmp_path):
    given = (source, tmp_path / "d", "--actions", tmp_path)
    np.save(tmp_path / "a.npy", np.zeros(3, np.int64))
    assert f"no actions for the video 'b': no {tmp_path / 'b.npy'}" in refused(*given)
    np.save(tmp_path / "b.npy", np.array(["x", "y"], object))
    assert "it holds object, not numbers; nothing is unpickled" in refused(*given)
    np.save(tmp_path / "b.npy", np.zeros((2, 1, 1)))
    assert "actions are (T,) or (T, parts), these are [2, 1, 1]" in refused(*given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--actions", "nowhere.csv"], "no such table of actions: nowhere.csv"),
        (["--actions", "t.xlsx"], "t.xlsx: a table of actions is a .csv or .jsonl file, or a folder with a NAME.npy"),
        (["--fit", "stretch"], "--fit stretch: squash, pad, crop"),
        (["--low=x"], "--low x: write a number, or numbers with commas between"),
        (["--num-actions", "1"], "--num-actions 1 is for one column of 0 and up, got the action 1"),
        (["--action-names", "x,x"], "2 actions need as many names, each its own; got x, x"),
        (["--action-names", "x"], "no action '1': there are x"),
        (["--low=1", "--high=0"], "bounds of an action the wrong way round: 1 to 0"),
        (["--low=0", "--high=0.5"], "the action 1 lies outside box ((0.0,), (0.5,))"),
        (["--low=0,0"], "bounds are one number for all 1 parts of an action, or 1 numbers"),
        (["--every", "4"], "a.mkv has 1 frame (4 before one of 4 is kept): an episode needs two"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(source, tmp_path, options, said):
    (tmp_path / "t.csv").write_text(GOOD)
    given = options if "--actions" in options else ["--actions", tmp_path / "t.csv", *options]
    assert said in refused(source, tmp_path / "d", *given)


def test_folders_that_do_not_fit(source, tmp_path):
    assert f"no such folder of videos: {tmp_path / 'v'}" in refused(tmp_path / "v", tmp_path / "d")
    folder = tmp_path / "v"
    folder.mkdir()
    assert "holds no videos: none of its files ends in .mp4, .webm, .gif" in refused(folder, tmp_path / "d")
    write_lossless(folder / "a.mkv", frames_of(3))
    write_lossless(folder / "a.avi", frames_of(3))
    assert "holds a.avi and a.mkv: two episodes of one name; rename one" in refused(folder, tmp_path / "d")
    (folder / "a.avi").unlink()
    (folder / "b.mp4").write_bytes(b"no video")
    said = refused(folder, tmp_path / "d")
    assert "b.mp4 does not decode" in said and "mend it (ffmpeg -i b.mp4 new.mp4) or take it away" in said
    (folder / "b.mp4").unlink()
    write_lossless(folder / "b.mkv", frames_of(1))
    assert "b.mkv has 1 frame: an episode needs two" in refused(folder, tmp_path / "d")


def test_a_dataset_of_videos_cannot_be_recorded_on(source, tmp_path):
    assert run("data", "import", "videos", source, "--out", tmp_path / "d").returncode == 0
    for arguments in ([], ["--trust"], [f"videos:{source.name}"]):
        result = run("record", *arguments, "--out", tmp_path / "d", "--episodes", 5)
        assert result.returncode == 2
        assert "are videos, which nobody can play: add yours to the folder and import it again" in result.stderr
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    result = run("data", "import", "videos", source, "--out", tmp_path / "x")
    assert result.returncode == 2 and "holds other files and no dataset" in result.stderr
