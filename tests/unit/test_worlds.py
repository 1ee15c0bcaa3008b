"""Real 3D environments walk the whole road: record, tokenizer, tokens, dynamics, imagination."""

from __future__ import annotations

import json
import math
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from worldvq_envs.adapters import make_stream

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.stages.dynamics import train_dynamics
from worldvq.stages.experiment import ExperimentConfig, load_config
from worldvq.stages.record import record
from worldvq.stages.tokenizer import train_tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.types import ActionSpace
from worldvq.world.model import WorldModel

WORLDS = {
    "my_way_home": (
        "vizdoom",
        EnvConfig(id="VizdoomMyWayHome-v1"),
        ActionSpace(
            "discrete", (6,), names=("NOOP", "MOVE_RIGHT", "MOVE_LEFT", "MOVE_FORWARD", "TURN_RIGHT", "TURN_LEFT")
        ),
    ),
    "health_gathering": (  # it ends by itself, so its last observation is not there
        "vizdoom",
        EnvConfig(id="VizdoomHealthGathering-v1", kwargs={"episode_timeout": 200}),
        ActionSpace("discrete", (4,), names=("NOOP", "MOVE_FORWARD", "TURN_RIGHT", "TURN_LEFT")),
    ),
    "multi_binary": (
        "vizdoom",
        EnvConfig(id="VizdoomMyWayHome-MultiBinary-v1"),
        ActionSpace(
            "multi_discrete",
            (2,) * 5,
            names=("TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD", "MOVE_LEFT", "MOVE_RIGHT"),
        ),
    ),
    "multi_discrete": (
        "vizdoom",
        EnvConfig(id="VizdoomBasic-v1", kwargs={"max_buttons_pressed": 0, "use_multi_binary_action_space": False}),
        ActionSpace("multi_discrete", (2, 2, 2), names=("MOVE_LEFT", "MOVE_RIGHT", "ATTACK")),
    ),
    "car_racing": (
        "Box2D",
        EnvConfig(id="CarRacing-v3", max_steps=40),
        ActionSpace("box", low=(-1, 0, 0), high=(1, 1, 1)),
    ),
}


def tiny(env: EnvConfig) -> ExperimentConfig:
    config = load_config(
        "tiny",
        [
            "tokenizer.frame_size=[32, 32]",
            "env.size=[32, 32]",
            "env.frame_skip=4",
            "record={episodes: 4, heldout_every: 2, workers: 1, hold: 4}",
            "tokenizer_training={steps: 5, batch_size: 8, log_every: 1}",
            "dynamics_training={steps: 5, batch_size: 2, clip_frames: 6, log_every: 1}",
        ],
    )
    settings = {"id": env.id, "kwargs": env.kwargs, "max_steps": env.max_steps or 60}
    return config.model_copy(update={"env": config.env.model_copy(update=settings)})


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


def left_running(folder: Path) -> list[str]:
    """Processes whose working directory lies in a folder: ViZDoom's engines run in their own."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(str(folder)) and process.pid != os.getpid():
                found.append(process.name())
    return found


def check_frames(store: EpisodeStore, env: EnvConfig) -> None:
    """The frames are pictures of something that moves."""
    assert store.numbers("train") == [0, 2] and store.numbers("heldout") == [1, 3]
    assert store.verify() == []
    for number in store.numbers():
        episode = store.read(number)
        assert episode.frames.std(axis=(1, 2, 3)).min() > 5  # none is blank, the last one included
        assert (np.abs(np.diff(episode.frames.astype(int), axis=0)).mean(axis=(1, 2, 3)) > 0.1).mean() > 0.5
        assert np.isfinite(episode.rewards).all()
        if "episode_timeout" in env.kwargs:  # 200 tics by 4, of which the first few pass before the first frame
            assert 40 < len(episode) < 50 and episode.truncated
        else:
            assert len(episode) == env.max_steps if episode.truncated else episode.terminated
    assert len({episode.tobytes() for episode in map(store.frames, store.numbers())}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_the_whole_road(tmp_path, monkeypatch, name):
    package, env, action_space = WORLDS[name]
    pytest.importorskip(package)
    config = tiny(env)
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))  # for the workers
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    data, tokens, tokenizer, dynamics, world = (
        tmp_path / part for part in ("data", "tokens", "tokenizer", "dynamics", "world")
    )
    with record(config.env, config.record, data, progress=False) as store:
        check_frames(store, config.env)
        assert store.action_space == action_space
    assert not list((tmp_path / "here").iterdir()), "the environment litters the working directory"
    assert not [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("worldvq")]
    assert not left_running(tmp_path / "tmp"), "an engine outlived the recording"

    train_tokenizer(config, data, tokenizer)
    assert tokenize(tokenizer, data, tokens, device="cpu").num_frames == store.num_frames
    train_dynamics(config, tokens, tokenizer, dynamics, world)
    for run in (tokenizer, dynamics):
        assert len(losses(run)) == 5 and all(map(math.isfinite, losses(run)))

    model = WorldModel.load(world, device="cpu")
    assert model.action_space == action_space
    episode = EpisodeStore.open(data).read(1)
    frames, actions = torch.from_numpy(episode.frames[None, :3]), torch.from_numpy(episode.actions[None, :4])
    imagined = model.imagine(frames, actions)
    assert imagined.shape == (1, 2, 32, 32, 3) and imagined.dtype == torch.uint8


def test_vizdoom_shows_what_its_own_screen_shows(monkeypatch, tmp_path):
    """At the engine's own size a frame is the screen, pixel for pixel; the last step of an episode has none."""
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    config = EnvConfig(id="VizdoomMyWayHome-v1", size=(120, 160), frame_skip=4, kwargs={"episode_timeout": 40})
    stream = make_stream(config)
    stream.reset(3)
    game = stream.env.unwrapped.game
    ended, last, tic = False, None, game.get_episode_time()
    while not ended:
        frame, _, terminated, truncated = stream.step(1)
        ended = terminated or truncated
        if stream.has_frame:
            np.testing.assert_array_equal(frame, game.get_state().screen_buffer)
            assert game.get_episode_time() == tic + 4
            last, tic = frame, game.get_episode_time()
    assert not stream.has_frame and game.is_episode_finished()
    np.testing.assert_array_equal(frame, last)
    stream.close()
    assert not list(tmp_path.iterdir())
