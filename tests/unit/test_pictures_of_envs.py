"""What environments show is looked at: every form of it comes out as the same picture, and what is none is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.picture_env import KINDS, SIDE, grey, picture
from worldvq_envs.adapters import make_stream
from worldvq_envs.fitting import fit_frame
from worldvq_envs.images import layout_of
from worldvq_envs.stream import LIMIT

from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError

ID = "support.picture_env:Picture-v0"
GOOD = [kind for kind in KINDS if kind not in ("vector", "codes", "table", "far")]


def config(**kwargs) -> EnvConfig:
    ours = {key: kwargs.pop(key) for key in tuple(kwargs) if key in EnvConfig.model_fields}
    return EnvConfig(id=ID, kwargs=kwargs, **{"size": (SIDE, SIDE), **ours})


def frames(settings: EnvConfig, steps=3) -> list[np.ndarray]:
    stream = make_stream(settings)
    shown = [stream.reset(3)] + [stream.step(0)[0] for _ in range(steps)]
    stream.close()
    return shown


@pytest.mark.parametrize("kind", GOOD)
def test_every_form_of_a_picture_gives_that_picture(kind):
    for step, frame in enumerate(frames(config(kind=kind))):
        assert frame.dtype == np.uint8 and frame.shape == (SIDE, SIDE, 3)
        assert np.abs(frame.astype(int) - picture(step)).max() <= (1 if "signed" in kind else 0)


def test_a_stack_of_grey_frames_gives_the_newest():
    assert layout_of((4, SIDE, SIDE)).pick(np.stack([grey(i) for i in range(4)]))[..., 0].tolist() == grey(3).tolist()
    assert layout_of((SIDE, SIDE, 2)).pick(np.stack([grey(0), grey(1)], -1))[..., 0].tolist() == grey(1).tolist()


@pytest.mark.parametrize("render", ["bytes", "unit", "list", "first", "rgba"])
def test_every_form_of_a_render_gives_that_picture(render):
    for step, frame in enumerate(frames(config(kind="vector", render=render))):
        np.testing.assert_array_equal(frame, picture(step))


def test_codes_and_tables_are_no_pictures_unless_they_are_asked_for():
    for kind in ("codes", "table"):
        np.testing.assert_array_equal(frames(config(kind=kind))[2], picture(2))  # rendered
    asked = frames(config(kind="codes", source="observation"))
    np.testing.assert_array_equal(asked[2][..., 0], picture(2)[..., 0] // 32)
    assert frames(config(kind="table", source="observation", size=(9, 9)))[1].shape == (9, 9, 3)


def test_the_source_can_be_chosen():
    inverted = {"wrappers": ("support.picture_env:Inverted",)}
    np.testing.assert_array_equal(frames(config(**inverted))[1], 255 - picture(1))
    np.testing.assert_array_equal(frames(config(source="render", **inverted))[1], picture(1))
    with pytest.raises(UsageError, match=r"env\.source observation: .* holds no image"):
        make_stream(config(kind="vector", source="observation"))
    with pytest.raises(UsageError, match=r"env\.wrappers: 'support\.picture_env:Nothing' cannot be put around it"):
        make_stream(config(wrappers=("support.picture_env:Nothing",)))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"kind": "far"}, ["values from 0 to", "0 to 255, 0 to 1 or -1 to 1", "env.source=render"]),
        ({"kind": "vector", "render": "none"}, ["render() gave nothing"]),
    ],
)
def test_what_is_no_picture_is_refused_by_name(kwargs, words):
    with pytest.raises(UsageError) as caught:
        make_stream(config(**kwargs)).reset(0)
    assert [word for word in (*words, ID) if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("wrong", "words"), [("shape", "before it was [32, 32, 3]"), ("bright", "before they were 0 to 1")]
)
def test_a_picture_that_changes_its_form_is_a_fault(wrong, words):
    stream = make_stream(config(kind="unit", bad={20: wrong}, length=40))
    stream.reset(0)
    for _ in range(19):
        stream.step(0)
    with pytest.raises(ValueError) as caught:
        stream.step(0)
    assert words in str(caught.value) and not isinstance(caught.value, UsageError)


def test_what_is_recorded_is_said():
    stream = make_stream(config(kind="nested", size=(16, 16)))
    stream.reset(0)
    lines = stream.describe()
    assert lines[0].startswith("observation 's.cam', 32x32 RGB, uint8 from 0 to 255")
    assert lines[0].endswith("stored as 16x16") and f"{LIMIT:,} steps (env.max_steps)" in lines[1]
    stream = make_stream(config(kind="codes", source="observation", size=(16, 64), max_steps=5))
    stream.reset(0)
    squashed, faint = stream.describe()[1:]
    assert "32x32 is squashed to 16x64: env.fit=pad" in squashed and "hardly anything is to be seen" in faint


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    target=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    fit=st.sampled_from(["pad", "crop"]),
)
def test_pad_and_crop_keep_proportions(size, target, fit):
    """Of a white image: what is white afterwards has its proportions, and touches two sides."""
    image = np.full((*size, 3), 255, np.uint8)
    frame = fit_frame(image, EnvConfig(size=target, fit=fit))
    assert frame.shape == (*target, 3)
    white = frame[..., 0] / 255
    if fit == "crop":
        assert white.min() > 0.99
        return
    scale = min(target[0] / size[0], target[1] / size[1])
    high, wide = scale * size[0], scale * size[1]
    assert white.sum() == pytest.approx(high * wide, abs=max(high, wide) + 1)  # up to half a pixel at both ends


def test_an_episode_without_an_end_is_cut():
    stream = make_stream(config(length=None, max_steps=7))
    stream.reset(0)
    assert [stream.step(0)[3] for _ in range(7)] == [False] * 6 + [True]
    assert make_stream(config(length=None)).limit == LIMIT
