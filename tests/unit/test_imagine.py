"""Actions that people write, and the videos of `worldvq imagine`: exactly as long as asked, or nothing at all."""

import json
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from support.episodes import write
from support.tokenizers import tokenizer_config

from worldvq.data.episodes import EpisodeStore
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.media.videos import decode_times
from worldvq.models.config import DynamicsConfig, PriorConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.stages.imagine import imagine
from worldvq.types import ActionSpace, Episode
from worldvq.world.actions import find_action, read_actions
from worldvq.world.model import WorldModel

NAMED = ActionSpace("discrete", nvec=(4,), names=("noop", "MOVE_FORWARD", "TURN_LEFT", "TURN_RIGHT"))
PLAIN = ActionSpace("discrete", nvec=(4,))
MULTI = ActionSpace("multi_discrete", nvec=(2, 3, 2))
BOX = ActionSpace("box", low=(-1.0, 0.0), high=(1.0, float("inf")))
SIZE, CONTEXT, FRAMES = 16, 3, 4


@pytest.mark.parametrize(
    ("space", "text", "action"),
    [
        (NAMED, "TURN_LEFT", 2),
        (NAMED, "turn_left", 2),
        (NAMED, "Move_Forward", 1),
        (NAMED, "3", 3),
        (PLAIN, "0", 0),
        (MULTI, "0,2,1", [0, 2, 1]),
        (BOX, "-0.5,7", [-0.5, 7]),
        (BOX, "1,1e3", [1, 1000]),
    ],
)
def test_an_action_is_found(space, text, action):
    found = find_action(space, text)
    assert found.dtype == space.dtype and found.tolist() == action


@pytest.mark.parametrize(
    ("space", "text", "words"),
    [
        (NAMED, "turn_rigth", ["turn_rigth", "did you mean 'turn_right'", "MOVE_FORWARD"]),
        (NAMED, "4", ["'4'", "TURN_RIGHT"]),
        (NAMED, "-1", ["'-1'"]),
        (NAMED, "²", ["²"]),
        (NAMED, "", ["''"]),
        (NAMED, "go\nleft", ["'go\\nleft'"]),
        (PLAIN, "forward", ["forward", "0 to 3"]),
        (MULTI, "0,1", ["0,1", "3 numbers"]),
        (MULTI, "0,x,1", ["0,x,1"]),
        (MULTI, "0,3,1", ["0,3,1", "3.0", "(2, 3, 2)"]),
        (MULTI, "0,0.5,1", ["0,0.5,1", "0.5"]),
        (BOX, "0,-1", ["0,-1", "-1.0"]),
        (BOX, "\n2,1", ["\\n2,1", "2.0"]),
        (BOX, "nan,1", ["nan"]),
        (BOX, "0,inf", ["inf"]),
    ],
)
def test_an_action_that_is_not_there_is_named(space, text, words):
    with pytest.raises(UsageError) as caught:
        find_action(space, text)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("space", "rows", "expected"),
    [
        (NAMED, [0, 3, 2, 1], [0, 3, 2]),
        (NAMED, ["noop", "turn_right", "2"], [0, 3, 2]),
        (NAMED, ["noop", 3, 2], [0, 3, 2]),
        (MULTI, [[0, 2, 1]] * 4, [[0, 2, 1]] * 3),
        (MULTI, ["0,2,1"] * 3, [[0, 2, 1]] * 3),
        (BOX, [[-0.5, 3], [1, 0], [0, 9]], [[-0.5, 3], [1, 0], [0, 9]]),
    ],
)
def test_actions_from_a_file(tmp_path, space, rows, expected):
    (tmp_path / "a.json").write_text(json.dumps(rows))
    paths = [tmp_path / "a.json"]
    if not any(isinstance(row, str) for row in rows):
        np.save(tmp_path / "a.npy", np.array(rows))
        paths.append(tmp_path / "a.npy")
    for path in paths:
        actions = read_actions(path, space, 3)
        assert actions.dtype == space.dtype and actions.tolist() == expected


@pytest.mark.parametrize(
    ("space", "rows", "words"),
    [
        (NAMED, [0, 1], ["[2]", "[3]"]),
        (NAMED, [], ["[0]", "[3]"]),
        (NAMED, [[0], [1], [2]], ["[3, 1]", "[3]"]),
        (NAMED, [0, 1, 4], ["4"]),
        (NAMED, [0, -1, 1], ["-1"]),
        (NAMED, [0, 0.5, 1], ["0.5"]),
        (NAMED, [0, float("nan"), 1], ["n"]),
        (MULTI, [[0, 1]] * 3, ["[3, 2]", "[3, 3]"]),
        (MULTI, [[0, 3, 1]] * 3, ["3", "(2, 3, 2)"]),
        (BOX, [[0, 1], [2, 1], [0, 0]], ["2"]),
        (PLAIN, [True, False, True], ["bool"]),
    ],
)
def test_actions_that_do_not_fit_are_named(tmp_path, space, rows, words):
    (tmp_path / "a.json").write_text(json.dumps(rows))
    np.save(tmp_path / "a.npy", np.array(rows))
    for path in tmp_path.iterdir():
        with pytest.raises((UsageError, CorruptFileError)) as caught:  # JSON has no NaN
            read_actions(path, space, 3)
        assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b"\x80\x04\x95\x0b\0\0\0\0\0\0\0]\x94(K\x01K\x02K\x03e."),
        ("a.npy", b""),
        ("a.npy", b"PK\x03\x04 a zip"),
        ("a.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<i8' "),
        ("a.json", b"[1, 2"),
        ("a.json", b'{"0": 1}'),
        ("a.json", b"[[1], [2, 3]]"),
        ("a.json", b"7"),
        ("a.json", b"\xff\xfe"),
        ("a.json", b"[" * 100_000),
    ],
)
def test_files_that_hold_no_actions_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptFileError, match=f"{name} cannot be read as actions"):
        read_actions(tmp_path / name, NAMED, 1)


def test_a_pickle_in_a_numpy_file_is_never_run(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"an": "object"}], object), allow_pickle=True)
    with pytest.raises(CorruptFileError, match=r"a\.npy.*object, not numbers; nothing is unpickled"):
        read_actions(tmp_path / "a.npy", NAMED, 1)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none\.npy"):
        read_actions(tmp_path / "none.npy", NAMED, 1)


def save_world(folder, space=NAMED, size=SIZE):
    quantizer = QuantizerConfig(num_codes=8, code_dim=4)
    sizes = {"frame_size": (size, size), "downsample": 8, "encoder_blocks": 0, "decoder_blocks": 0}
    tokenizer = Tokenizer(tokenizer_config(quantizer, **sizes))
    prior = PriorConfig(width=16, num_blocks=1, num_heads=2)
    config = DynamicsConfig(context_frames=3, width=16, num_blocks=1, num_heads=2, prior=prior)
    WorldModel(tokenizer, Dynamics(config, tokenizer.grid, 8, space), {"env_id": "Toy-v0"}).save(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagine")
    torch.manual_seed(0)
    save_world(root / "world")
    record(root / "data", NAMED)
    return root


def record(folder, space):
    """Episodes of 9 frames; every second one is held out."""
    rng, episodes = np.random.default_rng(0), []
    for _ in range(4):
        frames = rng.integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
        episodes.append(Episode(frames, rng.integers(0, 4, 8), np.zeros(8, np.float32), False, True))
    write(folder, space, episodes)


def run(folders, out, actions="recorded", context=CONTEXT, frames=FRAMES, clips=2, world="world", **sampling):
    return imagine(folders / world, folders / "data", out, context, frames, actions, clips, 0, sampling, "cpu")


def decode(path):
    """All frames of a video, by ffmpeg alone."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    show = subprocess.run([*command, "-f", "image2pipe", "-c:v", "ppm", "-"], capture_output=True, check=True).stdout
    width, height = (int(side) for side in show.split(b"\n", 2)[1].split())
    size = len(f"P6\n{width} {height}\n255\n") + width * height * 3
    assert len(show) % size == 0
    return np.stack(
        [
            np.frombuffer(show[i : i + size][-width * height * 3 :], np.uint8).reshape(height, width, 3)
            for i in range(0, len(show), size)
        ]
    )


def window(store, number, start):
    return store.read(number).frames[start : start + CONTEXT + FRAMES].astype(float)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webm"])
@pytest.mark.parametrize("actions", ["recorded", "turn_right", "a.json"])
def test_a_rollout_holds_exactly_the_frames_asked_for(folders, tmp_path, suffix, actions):
    if actions == "a.json":
        actions = str(tmp_path / actions)
        (tmp_path / "a.json").write_text(json.dumps(["noop", "turn_left", 3, 3]))
    out = tmp_path / "new" / f"rollout{suffix}"
    written = run(folders, out, actions)
    assert written == [out, out.with_suffix(".png")] and sorted(out.parent.iterdir()) == sorted(written)
    video = decode(out)
    assert len(video) == CONTEXT + FRAMES and video.std() > 1
    with Image.open(written[1]) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > picture.height


def test_chosen_actions_need_no_more_than_a_context(folders, tmp_path):
    assert len(decode(run(folders, tmp_path / "long.mp4", "0", context=6, frames=20, clips=1)[0])) == 26
    with pytest.raises(
        UsageError, match=r"no held-out episode has 26 frames.* 9: set --context \+ --frames to at most"
    ):
        run(folders, tmp_path / "never.mp4", "recorded", context=6, frames=20)
    with pytest.raises(UsageError, match=r"no held-out episode has 10 frames.* 9: set --context to at most that"):
        run(folders, tmp_path / "never.mp4", "0", context=10)
    assert not (tmp_path / "never.mp4").exists()


def test_frames_a_second_and_scale_are_as_asked_for(folders, tmp_path):
    out = tmp_path / "slow.mp4"
    arguments = folders / "world", folders / "data", out, CONTEXT, FRAMES, "recorded", 1, 0, {}, "cpu"
    imagine(*arguments, fps=2, scale=8)
    decoded = decode_times(out)
    assert np.diff(decoded.times) == pytest.approx(0.5) and decoded.size[1] > 3 * SIZE * 8
    imagine(*arguments, fps=2, scale=16)
    assert decode_times(out).size[1] - decoded.size[1] == 3 * SIZE * 8


def test_the_rollout_is_of_the_heldout_clips(folders, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr("worldvq.stages.imagine.save_rollout", lambda *given: shown.update(enumerate(given)) or ())
    run(folders, tmp_path / "rollout.mp4")
    real, taken, length = shown[1], shown[4], CONTEXT + FRAMES
    with EpisodeStore.open(folders / "data") as store:
        every = [(number, start) for number in (1, 3) for start in range(9 - length + 1)]  # episodes of 9 frames
        every.sort(key=lambda clip: -np.abs(np.diff(window(store, *clip), axis=0)).mean())
        assert len(every) == 6
        for row, (number, start) in enumerate((every[1], every[4])):  # the middles of the halves
            episode = store.read(number)
            assert np.array_equal(real[row], episode.frames[start : start + CONTEXT + FRAMES])
            assert np.array_equal(taken[row], episode.actions[start : start + CONTEXT + FRAMES - 1])


def test_the_papers_figure_is_one_picture(folders, tmp_path):
    written = run(folders, tmp_path / "paper.mp4", "paper")
    assert written == [tmp_path / "paper.png"] == list(tmp_path.iterdir())
    with Image.open(written[0]) as picture:
        assert picture.format == "PNG" and picture.width > (CONTEXT + FRAMES) * SIZE


@pytest.mark.parametrize("names", [(), ("forward", "back", "left", "jump")])
def test_the_papers_figure_needs_its_actions(tmp_path, names):
    space = ActionSpace("discrete", nvec=(4,), names=names)
    save_world(tmp_path / "world", space)
    record(tmp_path / "data", space)
    with pytest.raises(UsageError, match=r"called forward and right.* (back|none)"):
        run(tmp_path, tmp_path / "out" / "paper.mp4", "paper")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"out": "rollout.xyz"}, UsageError, r"rollout\.xyz.*\.mp4"),
        ({"out": "rollout"}, UsageError, "rollout"),
        ({"actions": "jump"}, UsageError, "jump"),
        ({"actions": "none.npy"}, UsageError, r"none\.npy"),
        ({"context": 9}, UsageError, "13 frames"),
        ({"top_p": 2}, UsageError, "top_p = 2"),
        ({"world": "nowhere"}, UsageError, "nowhere"),
        ({"space": NAMED, "size": 24}, UsageError, "frame_size: the dataset has 16x16, the world expects 24x24"),
        (
            {"space": ActionSpace("discrete", nvec=(5,))},
            UsageError,
            r"nvec: the dataset has \[4\], the world expects \[5\]",
        ),
        ({"space": BOX}, UsageError, "kind: the dataset has 'discrete', the world expects 'box'"),
        ({"no ffmpeg": True}, RunError, "ffmpeg"),
    ],
)
def test_an_error_leaves_nothing_behind(folders, tmp_path, monkeypatch, change, error, word):
    out = tmp_path / "new" / change.pop("out", "rollout.mp4")
    if change.pop("no ffmpeg", False):
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    if "space" in change:
        change["world"] = tmp_path / "other"
        save_world(tmp_path / "other", change.pop("space"), change.pop("size", SIZE))
    with pytest.raises(error, match=word):
        run(folders, out, **change)
    assert not out.parent.exists() or not list(out.parent.iterdir())
