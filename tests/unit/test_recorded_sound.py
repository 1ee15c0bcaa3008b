"""Sound beside frames: every action's samples stand beside it, however it is recorded; what is no sound is refused."""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing

import numpy as np
import pytest
from support.tone_env import ID, PITCHES, RATE, SAMPLES, SIZE, pitches
from worldvq_envs.adapters import make_stream
from worldvq_envs.sounds import mono

from worldvq.config.env import EnvConfig, SoundFormat
from worldvq.data.episodes import EpisodeStore
from worldvq.data.inspect import info
from worldvq.errors import UsageError
from worldvq.play.real import Real, Takes
from worldvq.recording.config import RecordConfig
from worldvq.recording.record import describe_dataset, play
from worldvq.stages.record import record


def tone(kind: str = "int16", key: str = "sound.ear", skip: int = 1, rate: int | None = None, **kwargs) -> EnvConfig:
    return EnvConfig(id=ID, size=SIZE, audio_key=key, audio_rate=rate, frame_skip=skip, kwargs={"kind": kind, **kwargs})


def run(env: EnvConfig, out, **changes) -> EpisodeStore:
    config = RecordConfig(**{"frames": None, "episodes": 4, "workers": 1, "policy": "random", **changes})
    record(env, config, out, progress=False).close()
    assert not multiprocessing.active_children()
    return EpisodeStore.open(out)


@pytest.mark.parametrize(
    ("kind", "key"), [("int16", "sound.ear"), ("float", "sound.ear"), ("stereo", "sound.ear"), ("observation", "ear")]
)
@pytest.mark.parametrize("skip", [1, 3])
def test_what_is_heard_stands_beside_the_action_that_caused_it(kind, key, skip):
    stream = make_stream(tone(kind, key, skip, length=12 * skip))
    assert stream.sound_format == SoundFormat(rate=RATE, samples=skip * SAMPLES)
    episode = play(stream, RecordConfig(policy="random"), 3)
    assert episode.sounds is not None and episode.sounds.shape == (12, skip * SAMPLES)
    assert len(set(episode.actions)) == len(PITCHES)
    np.testing.assert_array_equal(pitches(episode.sounds), episode.actions)
    # From step to step and over skipped ones it goes on without a jump: no sample is lost or heard twice.
    jump = 0.5 * 2**15 * 2 * np.pi * max(PITCHES) / RATE
    assert np.abs(np.diff(episode.sounds.ravel().astype(int))).max() <= jump + 2


def test_after_the_end_there_is_silence():
    stream = make_stream(tone(skip=3, length=4))
    episode = play(stream, RecordConfig(policy="random"), 0)
    assert episode.sounds is not None and len(episode.sounds) == 2
    assert episode.sounds[1, :SAMPLES].any() and not episode.sounds[1, SAMPLES:].any()


def test_workers_and_where_it_is_cut_change_nothing(tmp_path):
    one = run(tone(), tmp_path / "one")
    two = run(tone(), tmp_path / "two", workers=2)
    cut = run(tone(), tmp_path / "cut", episodes=None, frames=30)
    assert one.meta == two.meta and one.verify() == two.verify() == cut.verify() == []
    assert [entry.sha256 for entry in one.entries] == [entry.sha256 for entry in two.entries]
    assert cut.num_frames == 30 and cut.entry(1).truncated
    for number, steps in ((0, 20), (1, 8)):
        whole, part = one.read(number), cut.read(number)
        assert whole.sounds is not None and part.sounds is not None
        np.testing.assert_array_equal(part.sounds, whole.sounds[:steps])
        np.testing.assert_array_equal(pitches(part.sounds), part.actions)
    rows = info(tmp_path / "one").columns[1]._cells
    assert f"2,000 samples/s, {SAMPLES} a step (20.83 steps/s)" in rows


def test_what_a_person_plays_is_heard_too(tmp_path):
    stream = make_stream(tone(length=3))
    meta = describe_dataset(stream.config, RecordConfig(policy="human"), stream.action_space, sound=stream.sound_format)
    with EpisodeStore.create(tmp_path / "d", meta) as store:
        player = Real(lambda: stream, Takes(store, lambda number: number), recording=True)
        player.begin_next()
        for action in (2, 0, 1):
            player.act(np.array(action))
        sounds = store.read(0).sounds
        assert sounds is not None and pitches(sounds).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (tone("missing"), "env.audio_key 'sound.ear' is neither in the observation nor in info of a step.*silent"),
        (tone("int16", "sound"), r"gave object\[\]: a sound is int16 or float"),
        (tone("text"), "a sound is int16 or float"),
        (tone("nan"), "samples that are not finite"),
        (tone(rate=None).model_copy(update={"kwargs": {"rate": None}}), "set env.audio_rate"),
        (tone("changing"), "gave 95 samples in a step and 96 before"),
    ],
)
def test_what_is_no_sound_is_refused_in_one_line(tmp_path, env, words):
    with pytest.raises(UsageError, match=words) as raised:
        run(env, tmp_path / "d")
    assert "\n" not in str(raised.value)
    assert not EpisodeStore.open(tmp_path / "d").entries if (tmp_path / "d").exists() else True


def test_the_config_may_say_the_rate():
    assert make_stream(tone(rate=4_000)).sound_format == SoundFormat(rate=4_000, samples=SAMPLES)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_become_their_mean(channels):
    rng = np.random.default_rng(0)
    whole = rng.integers(-(2**15), 2**15, (50, channels), np.int16)
    mean = sum(whole[:, channel].astype(int) for channel in range(channels)) / channels
    assert np.abs(mono(whole, "x") - mean).max() <= 0.5
    assert np.abs(mono(whole / 2**15, "x") - mean).max() <= 1
    assert mono(np.float32([2, -2, 0]), "x").tolist() == [2**15 - 1, -(2**15), 0]


def test_an_episode_with_sound_has_as_much_of_it_as_actions():
    episode = play(make_stream(tone(length=5)), RecordConfig(policy="random"), 0)
    assert episode.sounds is not None
    for wrong in (episode.sounds[1:], episode.sounds.astype(np.int32), episode.sounds[0]):
        with pytest.raises(ValueError, match="sounds must be int16"):
            dataclasses.replace(episode, sounds=wrong)


def test_vizdoom_is_heard_when_it_shoots(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    env = EnvConfig(id="VizdoomBasic-v1", size=(32, 32), frame_skip=4, audio_key="audio")
    try:
        ctypes.CDLL("libopenal.so.1")
    except OSError:
        with pytest.raises(UsageError, match=r"needs OpenAL.*libopenal1"):
            make_stream(env)
        return
    stream = make_stream(env)
    assert stream.sound_format == SoundFormat(rate=11_025, samples=1260)
    aside, shoot = (stream.action_space.names.index(name) for name in ("MOVE_RIGHT", "ATTACK"))
    loud = []
    for action in (aside, shoot):
        stream.reset(0)
        sounds = []
        for taken in (aside, action, aside, aside):  # a shot is heard one step after its button
            assert stream.step(taken)[2:] == (False, False) and stream.sound is not None
            sounds.append(np.abs(stream.sound.astype(int)).max())
        loud.append(max(sounds))
    stream.close()
    assert loud[0] < 100 < 10_000 < loud[1]
