"""Any environment as a stream: nothing is turned, shifted or lost, and what cannot be adapted is refused by name."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.toy_env import ACTIONS, ID, SIZE, UNSTORABLE, decode, flat
from worldvq_envs.adapters import make_stream
from worldvq_envs.families import find_family
from worldvq_envs.fitting import fit_frame

from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError
from worldvq.types import ActionSpace

STORABLE = [kind for kind in ACTIONS if kind not in UNSTORABLE]


def toy(size=SIZE, **settings) -> EnvConfig:
    ours = {key: settings.pop(key) for key in tuple(settings) if key in EnvConfig.model_fields}
    return EnvConfig(id=ID, size=size, kwargs=settings, **ours)


def refusal(config: EnvConfig) -> str:
    with pytest.raises(UsageError) as info:
        make_stream(config).reset(0)
    assert "\n" not in str(info.value)
    return str(info.value)


# ------------------------------------------------------------------------------------------------ frames


@pytest.mark.parametrize(
    "observation", ["image", "first", "grey", "grey_last", "float", "float_first", "dict", "vector", "board"]
)
def test_every_observation_kind_gives_the_picture(observation):
    stream = make_stream(toy(observation=observation, length=3))
    frames = [stream.reset(5)] + [stream.step(action)[0] for action in (4, 0, 2)]  # kept past the next step
    stream.close()
    assert [decode(frame, 0)[1] for frame in frames] == [0, 1, 2, 3]
    assert [decode(frame)[2].tolist() for frame in frames[1:]] == [[4], [0], [2]]
    assert len({decode(frame)[0] for frame in frames}) == 1
    assert stream.has_frame


def test_observation_key_chooses_among_images():
    stream = make_stream(toy(observation="two", observation_key="right"))
    stream.reset(0)
    assert decode(stream.step(3)[0])[1:] == (1, [3])
    assert not make_stream(toy(observation="two", observation_key="left")).reset(0).any()


def test_the_seed_decides_the_episode():
    stream = make_stream(toy())
    first, second, again = (decode(stream.reset(seed))[0] for seed in (1, 2, 1))
    assert first == again != second


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(8, 150), st.integers(8, 150)),
    target=st.tuples(st.integers(4, 100), st.integers(4, 100)),
    crop=st.none() | st.tuples(*[st.integers(0, 3)] * 4),
    seed=st.integers(0, 1000),
)
def test_crop_and_resize_as_pillow(size, target, crop, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    top, bottom, left, right = crop or (0, 0, 0, 0)
    box = (left, top, size[1] - right, size[0] - bottom)
    expected = Image.fromarray(image).crop(box).resize(target[::-1], Image.Resampling.BILINEAR)
    frame = fit_frame(image, EnvConfig(size=target, crop=crop))
    assert frame.shape == (*target, 3) and frame.dtype == np.uint8 and frame.flags.c_contiguous
    assert np.abs(frame.astype(int) - np.asarray(expected).astype(int)).max() <= 2


def test_crop_takes_top_bottom_left_right():
    image = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    frame = fit_frame(image, EnvConfig(size=(7, 5), crop=(1, 2, 3, 4)))
    np.testing.assert_array_equal(frame, image[1:8, 3:8])


def test_a_frame_of_the_right_size_is_copied_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    frame = fit_frame(image, EnvConfig(size=(16, 24)))
    np.testing.assert_array_equal(frame, image)
    assert not np.shares_memory(frame, image)


# ------------------------------------------------------------------------------------------------ actions


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("discrete", ActionSpace("discrete", (5,))),
        ("discrete_offset", ActionSpace("discrete", (5,))),
        ("multi_discrete", ActionSpace("multi_discrete", (3, 2, 7))),
        ("multi_binary", ActionSpace("multi_discrete", (2, 2, 2, 2))),
        ("multi_binary_grid", ActionSpace("multi_discrete", (2,) * 6)),
        ("box", ActionSpace("box", low=(-1.5, 0), high=(0.5, 2))),
        ("box_grid", ActionSpace("box", low=(-1,) * 4, high=(1,) * 4)),
    ],
)
def test_action_space_as_it_is_stored(kind, expected):
    assert make_stream(toy(action=kind)).action_space == expected


@pytest.mark.parametrize("kind", STORABLE)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_actions_go_there_and_back(kind, seed):
    stream = make_stream(toy(action=kind))
    space = ACTIONS[kind]
    space.seed(seed)
    theirs = space.sample()
    stored = stream.to_stored_action(theirs)
    assert stored.shape == stream.action_space.shape and stored.dtype == stream.action_space.dtype
    if stream.action_space.kind != "box":
        assert (stored >= 0).all() and (stored < np.array(stream.action_space.nvec).reshape(stored.shape)).all()
    back = stream.to_env_action(stored)
    assert space.contains(back)
    np.testing.assert_allclose(flat(back), flat(theirs), rtol=1e-7 if stream.action_space.kind == "box" else 0)
    np.testing.assert_array_equal(stream.to_stored_action(back), stored)


# ------------------------------------------------------------------------------------------------ time


def test_frame_skip_adds_rewards_and_stops_at_the_end():
    stream = make_stream(toy(length=6, frame_skip=4))
    stream.reset(0)
    frame, *rest = stream.step(1)
    assert decode(frame)[1] == 4 and rest == [1 + 2 + 3 + 4, False, False]
    frame, *rest = stream.step(2)
    assert decode(frame)[1:] == (6, [2]) and rest == [5 + 6, True, False]


@pytest.mark.parametrize(
    ("ending", "max_steps", "flags"),
    [
        ("terminated", None, (True, False)),
        ("truncated", None, (False, True)),
        ("both", None, (False, True)),  # a time-out that reports both is truncated
        ("terminated", 5, (True, False)),  # the task ends in the step in which the limit is reached
        ("terminated", 9, (True, False)),
    ],
)
def test_how_an_episode_ends(ending, max_steps, flags):
    stream = make_stream(toy(length=5, ending=ending, max_steps=max_steps))
    stream.reset(0)
    results = [stream.step(0)[2:] for _ in range(5)]
    assert results == [(False, False)] * 4 + [flags]


def test_max_steps_truncates_and_counts_skipped_steps():
    stream = make_stream(toy(length=100, frame_skip=3, max_steps=4))
    for _ in range(2):  # and counts afresh after a reset
        stream.reset(0)
        results = [stream.step(0) for _ in range(4)]
        assert [result[2:] for result in results] == [(False, False)] * 3 + [(False, True)]
        assert decode(results[-1][0])[1] == 12


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "CarRacng-v3"}, ["'CarRacng-v3'", "did you mean 'CarRacing-v3'", "env.id"]),
        ({"id": "CarRacing-v99"}, ["'CarRacing-v99'", "env.id"]),
        ({"id": "nowhere_at_all:Toy-v0"}, ["'nowhere_at_all:Toy-v0'", "No module named"]),
        ({"lenght": 3}, ["'support.toy_env:Toy-v0'", "{'lenght': 3}", "unexpected keyword"]),
        ({"observation": "blind"}, ["Box(-inf, inf, (3,)", "['ansi']", "rgb_array", "env.observation_key"]),
        ({"observation": "vector", "render_mode": "ansi"}, ["Box(-inf, inf, (3,)", "rgb_array", "env.kwargs"]),
        ({"observation": "two"}, ["['left', 'right']", "set env.observation_key"]),
        ({"observation": "dict", "observation_key": "speed"}, ["env.observation_key 'speed'", "['picture']"]),
        ({"observation": "image", "observation_key": "left"}, ["env.observation_key 'left'", "leave it out"]),
        ({"action": "text"}, ["Text(1, 3", "env.kwargs", "wrap it"]),
        ({"action": "nested_text"}, ["Text(1, 3", "its part 'words.0'"]),
        ({"action": "large"}, ["4,294,967,296 choices are too many"]),
        ({"crop": (9, 7, 0, 0)}, ["env.crop (9, 7, 0, 0)", "16x24"]),
        ({"crop": (0, 0, 0, 24)}, ["env.crop (0, 0, 0, 24)", "16x24"]),
    ],
)
def test_refusals_name_what_was_seen_and_what_to_set(changes, words):
    changes = dict(changes)
    env_id = changes.pop("id", ID)
    message = refusal(toy(**changes).model_copy(update={"id": env_id}))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("env_id", "module", "install"),
    [
        ("VizdoomMyWayHome-v1", "vizdoom.gymnasium_wrapper", 'pip install "worldvq[vizdoom]"'),
        ("MiniWorld-Maze-v0", "miniworld", 'pip install "miniworld"'),
        ("ALE/Breakout-v5", "ale_py", 'pip install "ale-py"'),
    ],
)
def test_a_missing_package_is_refused_with_the_pip_line(monkeypatch, env_id, module, install):
    monkeypatch.setenv("PYGLET_HEADLESS", "1")  # MiniWorld sets it; here it is put back
    monkeypatch.setitem(sys.modules, module, None)
    message = refusal(EnvConfig(id=env_id))
    assert f"'{env_id}' needs {module.split('.')[0]}" in message and message.endswith(install)


def test_box2d_missing_is_refused_with_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    message = refusal(EnvConfig(id="CarRacing-v3"))
    assert "'CarRacing-v3' needs a package" in message and message.endswith('pip install "worldvq[box2d]"')


def test_vizdoom_keywords_that_it_would_ignore_are_refused():
    config = EnvConfig(id="VizdoomMyWayHome-v1", kwargs={"screen_resolution": "160X120"})
    with pytest.raises(UsageError, match=r"screen_resolution '160X120'.*write RES_160X120$"):
        find_family(config.id).kwargs(config)
    config = EnvConfig(id="VizdoomMyWayHome-v1", kwargs={"frame_skip": 2}, frame_skip=4)
    with pytest.raises(UsageError, match=r"env.frame_skip and env.kwargs.frame_skip"):
        find_family(config.id).kwargs(config)


@pytest.mark.parametrize(
    ("display", "chosen", "expected"), [("", "", "egl"), ("", "osmesa", "osmesa"), (":0", "", None)]
)
@pytest.mark.skipif(sys.platform != "linux", reason="where there are machines without a display")
def test_mujoco_draws_without_a_display_unless_told_how(monkeypatch, display, chosen, expected):
    for name, value in (("DISPLAY", display), ("WAYLAND_DISPLAY", ""), ("MUJOCO_GL", chosen)):
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.setenv(name, "x")  # so that what is set below is put back
            monkeypatch.delenv(name)
    find_family("HalfCheetah-v5").prepare(EnvConfig(id="HalfCheetah-v5"))
    assert os.environ.get("MUJOCO_GL") == expected


def test_mujoco_draws_what_is_stored_unless_something_is_cut_off():
    config = EnvConfig(id="HalfCheetah-v5", size=(48, 64), frame_skip=3)
    family = find_family(config.id)
    assert family.kwargs(config) == ({"height": 48, "width": 64}, 3)
    assert family.kwargs(config.model_copy(update={"crop": (0, 8, 0, 0)})) == ({}, 3)
    own = config.model_copy(update={"kwargs": {"width": 640}})
    assert family.kwargs(own) == ({"width": 640}, 3)
