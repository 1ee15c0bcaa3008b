"""The probe of scene codes: it learns what a code says, is asked on other frames, and plays what was recorded."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from worldvq_envs.adapters import make_stream

from worldvq.config.env import EnvConfig
from worldvq.recording.config import RecordConfig
from worldvq.recording.playing import play

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "probe_scene.py"))


def test_it_finds_what_codes_say_and_no_more():
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, 8, (1200, 3)))
    said = (codes[:, 0] + 8 * codes[:, 2]) % 3  # of two codes, not of one alone
    told = codes[:, 1] // 2
    noise = torch.from_numpy(rng.integers(0, 4, 1200))
    shares = []
    for labels, classes in ((told, 4), (said, 3), (noise, 4)):
        predict = TOOL["probe"](codes[:800], labels[:800], 8, classes)
        shares.append(float((predict(codes[800:]) == labels[800:]).float().mean()))
    assert shares[0] == 1 and 0.3 < shares[1] < 0.8 and shares[2] < 0.4, shares


def test_labels_are_those_of_the_frames_that_were_recorded():
    config = EnvConfig(id="worldvq/Maze-v0", kwargs={"max_steps": 30}, size=(16, 16))
    stream = make_stream(config)
    episode = play(stream, RecordConfig(seed=3, policy="random"), 0)
    rows = TOOL["replay"](stream, episode, TOOL["maze_labels"])
    assert len(rows) == len(episode.frames) and len({row["heading"] for row in rows}) > 3
    env = stream.env.unwrapped
    _, info = env.reset(seed=episode.seed)
    for row, action in zip(rows, [*episode.actions, None], strict=True):
        x, y = np.floor(info["position"]).astype(int)
        assert (row["heading"], row["cell"]) == (info["heading"], 11 * y + x)
        if action is not None:
            info = env.step(int(action))[-1]
    wrong = np.array(episode.frames)
    wrong[5] = 255 - wrong[5]
    with pytest.raises(SystemExit, match="shows another frame 5"):
        TOOL["replay"](stream, type(episode)(**{**vars(episode), "frames": wrong}), TOOL["maze_labels"])
