"""People's own videos become datasets, and datasets videos; actions, rewards and endings are the same afterwards."""

import csv
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command_line import run
from support.own_videos import folder_of_videos, frames_of, write_lossless

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.data.formats import videos
from worldvq.data.formats.action_values import SpaceOptions
from worldvq.data.formats.exported import export_videos
from worldvq.data.formats.videos import import_videos
from worldvq.errors import UsageError
from worldvq.media.videos import write_video
from worldvq.types import ActionSpace, Episode

SPACES = [
    ActionSpace("discrete", (5,)),
    ActionSpace("discrete", (3,), names=("left", "go, then stop", "2")),
    ActionSpace("multi_discrete", (4, 2)),
    ActionSpace("multi_discrete", (2, 2), names=("jump", "left")),
    ActionSpace("box", low=(-1.0,), high=(1.0,)),
    ActionSpace("box", low=(-1.0, 0.0, float("-inf")), high=(1.0, 0.5, float("inf"))),
]
ENDINGS = ({"terminated": True}, {"truncated": True}, {"interrupted": True})


def make_dataset(folder, space, lengths, size, rng):
    meta = DatasetMeta(
        env=EnvConfig(id="Some/World-v0", size=size),
        action_space=space.to_json(),
        frame_size=size,
        policy="x",
        heldout_every=3,
    )
    with EpisodeStore.create(folder, meta) as store:
        for number, steps in enumerate(lengths):
            if space.kind == "box":
                low, high = np.maximum(space.low, -9), np.minimum(space.high, 9)
                actions = rng.uniform(low, high, (steps, *space.shape)).astype(np.float32)
            else:
                nvec = space.nvec if space.shape else space.nvec[0]
                actions = rng.integers(0, nvec, (steps, *space.shape))
            ending = {"terminated": False, "truncated": False} | ENDINGS[number % 3]
            rewards = rng.normal(size=steps).astype(np.float32)
            store.commit(number, Episode(frames_of(steps + 1, *size, seed=number), actions, rewards, **ending))


@settings(max_examples=10, deadline=None)
@given(
    space=st.sampled_from(SPACES),
    lengths=st.lists(st.integers(1, 39), min_size=1, max_size=2),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_there_and_back(space, lengths, size, seed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "data", space, lengths, size, np.random.default_rng(seed))
        export_videos(folder / "data", folder / "videos")
        import_videos(folder / "videos", folder / "again").close()
        first, second = EpisodeStore.open(folder / "data"), EpisodeStore.open(folder / "again")
        assert second.action_space == space
        assert (second.heldout_every, second.meta.frame_size) == (3, size)
        for number in range(len(lengths)):
            before, after = first.read(number), second.read(number)
            assert np.array_equal(before.actions, after.actions) and before.actions.dtype == after.actions.dtype
            assert np.array_equal(before.rewards, after.rewards)
            for ending in ("terminated", "truncated", "interrupted"):
                assert getattr(before, ending) == getattr(after, ending)
            error = np.abs(before.frames.astype(float) - after.frames)
            assert error.mean() < 6  # tiles of any colours are the worst there is; a slip would give 85
            assert error.mean((1, 2, 3)).max() < 12


def write_csv(path, rows, columns=("episode", "step", "action")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def actions_of(lengths, value=lambda episode, step: (episode + step) % 3):
    return [
        (name, t, value(e, t)) for e, (name, n) in enumerate(zip("abcdefg", lengths, strict=False)) for t in range(n)
    ]


def test_frames_and_actions_are_those_that_were_given(tmp_path):
    frames = folder_of_videos(tmp_path / "v", (4, 6, 3))
    rows = actions_of((3, 5, 2))
    table = write_csv(tmp_path / "t.csv", rows[::-1])  # in any order
    with import_videos(tmp_path / "v", tmp_path / "d", table, size=(16, 24)) as store:
        assert store.action_space == ActionSpace("discrete", (3,))
        for number, (name, pictures) in enumerate(frames.items()):
            episode = store.read(number)
            assert np.array_equal(episode.frames, pictures)
            assert episode.actions.tolist() == [action for key, _, action in rows if key == name]
            assert (episode.truncated, episode.terminated, episode.rewards.any()) == (True, False, False)
            assert episode.meta["video"] == f"{name}.mkv" and episode.meta["fps"] == pytest.approx(10)
        assert store.verify() == []
        assert store.meta.env.id == "videos:v"


@pytest.mark.parametrize("kind", ["jsonl", "npy", "csv of files", "semicolons"])
def test_other_tables_say_the_same(tmp_path, kind):
    folder_of_videos(tmp_path / "v", (4, 3))
    table = tmp_path / "t.csv"
    if kind == "jsonl":
        table = tmp_path / "t.jsonl"
        table.write_text(
            '{"episode": "a", "actions": [2, 0, 1], "rewards": [0, 0.5, 1], "terminated": true}\n'
            '{"episode": "b.mkv", "actions": [1, 1]}\n'
        )
    elif kind == "npy":
        table = None
        np.save(tmp_path / "v" / "a.npy", np.array([2, 0, 1], np.uint8))
        np.save(tmp_path / "v" / "b.npy", np.array([[1], [1]]))
    else:
        text = "\ufefffile,action,reward,terminated\na.mkv,2,0,\na.mkv,0,0.5,\na.mkv,1,1,True\nb.mkv,1,,\nb.mkv,1,,\n"
        table.write_text(text.replace(",", ";") if kind == "semicolons" else text)
    with import_videos(tmp_path / "v", tmp_path / "d", table) as store:
        first, second = store.read(0), store.read(1)
    assert first.actions.tolist() == [2, 0, 1] and second.actions.tolist() == [1, 1]
    if kind != "npy":
        assert first.rewards.tolist() == [0, 0.5, 1] and first.terminated and second.truncated


@pytest.mark.parametrize(
    ("columns", "row", "options", "space"),
    [
        (("action",), (["jump", "run"]), {}, ActionSpace("discrete", (2,), names=("jump", "run"))),
        (("action",), (["b", "a"]), {"names": ("b", "a", "c")}, ActionSpace("discrete", (3,), names=("b", "a", "c"))),
        (("action",), ([0, 1]), {"num_actions": 9}, ActionSpace("discrete", (9,))),
        (("action",), (["0.0", "1.0"]), {"num_actions": 2}, ActionSpace("discrete", (2,))),
        (("action_0", "action_1"), ([0, 4], [1, 0]), {}, ActionSpace("multi_discrete", (2, 5))),
        (("action_a", "action_b"), ([0, 4], [1, 0]), {}, ActionSpace("multi_discrete", (2, 5), names=("a", "b"))),
        (("u", "v"), ([-0.5, 1], [0.25, 0]), {}, ActionSpace("box", low=(-0.5, 0), high=(0.25, 1), names=("u", "v"))),
        (("action",), ([-1, 1]), {"low": (-1,), "high": (2,)}, ActionSpace("box", low=(-1,), high=(2,))),
        (("0", "1"), ([0, 1], [1, 0]), {"low": (-1,), "high": (1, 2)}, ActionSpace("box", low=(-1, -1), high=(1, 2))),
    ],
)  # fmt: skip
def test_kinds_of_actions(tmp_path, columns, row, options, space):
    folder_of_videos(tmp_path / "v", (3,))
    cells = [value if isinstance(value, list) else [value] for value in row]
    rows = [("a", step, *values) for step, values in enumerate(cells)]
    table = write_csv(tmp_path / "t.csv", rows, ("episode", "step", *columns))
    with import_videos(tmp_path / "v", tmp_path / "d", table, options=SpaceOptions(**options)) as store:
        assert store.action_space == space
        actions = store.read(0).actions
    if space.kind == "discrete" and space.names:
        assert [[space.names[action]] for action in actions] == cells
    else:
        assert np.array_equal(actions.reshape(len(cells), -1), np.array(cells, np.float64))


def test_an_action_for_the_last_frame_leads_nowhere_and_is_left_out(tmp_path, capsys):
    folder_of_videos(tmp_path / "v", (4, 3))
    rows = [
        ("a", 0, 1, 1, 0),
        ("a", 1, 0, 0, 0),
        ("a", 2, 1, 2, 0),
        ("a", 3, "", 4, 1),
        ("b", 0, 1, 0, 0),
        ("b", 1, 0, 0, 0),
    ]
    table = write_csv(tmp_path / "t.csv", rows, ("episode", "step", "action", "reward", "terminated"))
    with import_videos(tmp_path / "v", tmp_path / "d", table) as store:
        episode = store.read(0)
        assert episode.actions.tolist() == [1, 0, 1]
        assert episode.rewards.tolist() == [1, 0, 6]  # as of ViZDoom, which shows no last frame either
        assert episode.terminated
        assert store.action_space.nvec == (2,)
    assert "as many actions as frames in 1 of 2 videos" in capsys.readouterr().out


def test_one_frame_of_three(tmp_path):
    frames = folder_of_videos(tmp_path / "v", (8,))["a"]
    table = write_csv(tmp_path / "t.csv", actions_of((2,)))
    with import_videos(tmp_path / "v", tmp_path / "d", table, size=(16, 24), every=3) as store:
        assert np.array_equal(store.read(0).frames, frames[::3])
    write_csv(table, actions_of((7,)))
    with pytest.raises(UsageError, match="one for each of 8 frames, but of every 3 one is kept: give the 2 actions"):
        import_videos(tmp_path / "v", tmp_path / "e", table, every=3)


def test_without_actions_there_is_one(tmp_path, capsys):
    folder_of_videos(tmp_path / "v", (4, 3))
    with import_videos(tmp_path / "v", tmp_path / "d") as store:
        assert store.action_space == videos.NO_ACTION and store.read(0).actions.tolist() == [0, 0, 0]
    said = capsys.readouterr().out
    assert "2 videos of 16x24 at 10 fps -> 7 frames of 64x64" in said
    assert "pictures are squashed: 16x24 is another shape than 64x64" in said
    assert "can only watch" in said


# ------------------------------------------------------------------------------------------------ continuing


def test_an_import_that_was_interrupted_goes_on_and_is_the_same_byte_for_byte(tmp_path, monkeypatch):
    folder_of_videos(tmp_path / "v", (4, 6, 3, 5))
    table = write_csv(tmp_path / "t.csv", actions_of((3, 5, 2, 4)))
    import_videos(tmp_path / "v", tmp_path / "whole", table).close()
    whole, read = files(tmp_path / "whole"), []

    def stop_at_the_third(path, *args):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(path.name)
        return real(path, *args)

    real = videos.read_video
    monkeypatch.setattr(videos, "read_video", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        import_videos(tmp_path / "v", tmp_path / "d", table)
    assert len(EpisodeStore.open(tmp_path / "d")) == 2
    read.clear()
    import_videos(tmp_path / "v", tmp_path / "d", table).close()
    assert read == ["c.mkv", "d.mkv"]
    assert files(tmp_path / "d") == whole


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_videos_may_be_added_at_the_end_and_nothing_may_have_changed(tmp_path):
    folder_of_videos(tmp_path / "v", (4, 3))
    table, out = tmp_path / "t.csv", tmp_path / "d"
    import_videos(tmp_path / "v", out, write_csv(table, actions_of((3, 2)))).close()
    write_lossless(tmp_path / "v" / "c.mkv", frames_of(5))
    import_videos(tmp_path / "v", out, write_csv(table, actions_of((3, 2, 4)))).close()
    held = files(out)

    write_csv(table, actions_of((3, 2, 4), lambda episode, step: step % 3))
    with pytest.raises(UsageError, match=r"says other things of b\.mkv than when it was imported: actions: .* has \[1"):
        import_videos(tmp_path / "v", out, table)
    write_csv(table, actions_of((3, 2, 4)))
    with pytest.raises(UsageError, match=r"env\.fit: the dataset has 'squash', you ask for 'crop'"):
        import_videos(tmp_path / "v", out, table, fit="crop")
    write_lossless(tmp_path / "v" / "b.mkv", frames_of(3, 16, 24, seed=77))
    with pytest.raises(UsageError, match=r"b\.mkv has changed since it was imported as episode 1"):
        import_videos(tmp_path / "v", out, table)
    (tmp_path / "v" / "b.mkv").unlink()
    write_csv(table, [row for row in actions_of((3, 2, 4)) if row[0] != "b"])
    with pytest.raises(UsageError, match=r"episode 1 was imported from b\.mkv, which is now c\.mkv"):
        import_videos(tmp_path / "v", out, table)
    (tmp_path / "v").rename(tmp_path / "w")
    with pytest.raises(UsageError, match="holds a dataset of 'videos:v', not of the videos in"):
        import_videos(tmp_path / "w", out, table)
    assert files(out) == held


def test_an_export_goes_on_and_keeps_to_its_dataset(tmp_path):
    rng, data, out = np.random.default_rng(0), tmp_path / "data", tmp_path / "v"
    make_dataset(data, SPACES[0], (3, 4, 5), (16, 16), rng)
    export_videos(data, out)
    whole, times = files(out), {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    (out / "actions.csv").unlink()
    (out / "000001.mp4").write_bytes((out / "000001.mp4").read_bytes()[:-300])
    export_videos(data, out)
    assert files(out) == whole
    now = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    assert {name for name in now if now[name] != times[name]} == {"000001.mp4"}

    with pytest.raises(UsageError, match="scale: the export has 4, you ask for 2"):
        export_videos(data, out, scale=2)
    make_dataset(tmp_path / "other", SPACES[0], (3, 4, 5), (16, 16), rng)
    with pytest.raises(UsageError, match="is the export of something else: digest"):
        export_videos(tmp_path / "other", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000000.mp4").write_bytes(b"mine")
    with pytest.raises(UsageError, match="holds other files and no export"):
        export_videos(data, tmp_path / "mine")
    make_dataset(tmp_path / "odd", SPACES[0], (3,), (15, 16), rng)
    with pytest.raises(UsageError, match="15x16 need an even --scale"):
        export_videos(tmp_path / "odd", tmp_path / "x", scale=3)
    assert files(out) == whole and files(tmp_path / "mine") == {"000000.mp4": b"mine"}


def test_the_example_of_the_docs(tmp_path, monkeypatch):
    blocks = (Path(__file__).resolve().parents[2] / "docs" / "videos.md").read_text().split("```")[1::2]
    command = next(line for block in blocks for line in block.splitlines() if "import videos" in line)
    table, said = (next(block for block in blocks if word in block) for word in ("episode,step", "-> 6 frames"))
    monkeypatch.chdir(tmp_path)
    for name, length in (("kitchen", 4), ("hall", 2)):
        write_video(Path("clips") / f"{name}.mp4", frames_of(length, 720, 1280), fps=30)
    Path("clips/actions.csv").write_text(table.removeprefix("csv\n"))
    result = run(*command.split()[1:])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(said.removeprefix("\n"))
    episode = EpisodeStore.open("runs/mine/data").read(1)
    assert (episode.actions.tolist(), episode.rewards.tolist(), episode.terminated) == ([1, 0, 0], [0, 0, 1], True)
