"""Videos hold exactly the frames that were given, or nothing; pictures are drawn where they should be."""

import re
import resource
import stat
import subprocess
import sys

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from worldvq.errors import RunError, UsageError
from worldvq.media import pictures, tiles
from worldvq.media.videos import VIDEO_SUFFIXES, Sound, decode_sound, probe_video, write_video
from worldvq.types import ActionSpace

FORWARD_TURN = ActionSpace("discrete", nvec=(2,), names=("forward", "turn"))


def moving_square(num_frames: int, height: int, width: int) -> np.ndarray:
    frames = np.full((num_frames, height, width, 3), (40, 90, 160), np.uint8)
    for t in range(num_frames):
        left = (2 * t) % (width // 2)
        frames[t, height // 4 : height // 2, left : left + width // 3] = (220, 60, 40)
    return frames


def decode(path, height: int, width: int) -> np.ndarray:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    raw = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 64, 64), (2, 33, 47), (17, 48, 31), (61, 16, 16)])
def test_frame_count_and_size_are_exact(tmp_path, suffix, num_frames, height, width):
    path = tmp_path / "new" / f"clip{suffix}"
    frames = moving_square(num_frames, height, width)
    assert write_video(path, iter(frames), fps=15, expected=num_frames) == path
    even = suffix == ".mp4"
    assert probe_video(path) == (num_frames, height + (even and height % 2), width + (even and width % 2))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize(("rate", "samples"), [(2_000, 96), (11_025, 1_260)])
def test_sound_is_as_long_as_the_picture_and_stays_where_it_was(tmp_path, suffix, rate, samples):
    """Silence, a tone of 400 Hz, silence; decoded by ffmpeg at the sound's own rate."""
    wave = 0.5 * np.sin(2 * np.pi * 400 * np.arange(12 * samples) / rate)
    wave[: 4 * samples] = wave[8 * samples :] = 0
    sound = Sound(np.rint(wave * 2**15).astype(np.int16), rate)
    path = write_video(tmp_path / f"v{suffix}", moving_square(12, 32, 48), fps=rate / samples, sound=sound)
    assert probe_video(path) == (12, 32, 48)
    found = decode_sound(path, rate)
    assert abs(len(found) - 12 * samples) / rate < 0.03
    steps = found[: 11 * samples].reshape(11, samples) / 2**15
    level = np.sqrt((steps**2).mean(1))
    assert level[5:7] == pytest.approx(0.5 / 2**0.5, rel=0.1) and max(level[:3].max(), level[9:].max()) < 0.05
    spectrum = np.abs(np.fft.rfft(steps[5:7].ravel() * np.hanning(2 * samples)))
    assert np.argmax(spectrum) * rate / (2 * samples) == pytest.approx(400, abs=rate / samples)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_gif_is_silent_and_a_sound_that_comes_out_too_short_is_refused(tmp_path, monkeypatch):
    sound = Sound(np.zeros(2_000, np.int16), 8_000)
    assert probe_video(write_video(tmp_path / "v.gif", moving_square(2, 16, 16), fps=8, sound=sound))[0] == 2
    with pytest.raises(RunError, match="does not decode"):
        decode_sound(tmp_path / "v.gif")
    monkeypatch.setattr("worldvq.media.videos.decode_sound", lambda path: np.zeros(4_800, np.int16))
    with pytest.raises(RunError, match=r"wrote 0\.100 s of sound instead of 0\.250"):
        write_video(tmp_path / "v.mp4", moving_square(2, 16, 16), fps=8, sound=sound)
    assert [file.name for file in tmp_path.iterdir()] == ["v.gif"]


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_still_frames_are_kept(tmp_path, suffix):
    path = write_video(tmp_path / f"still{suffix}", [moving_square(1, 32, 32)[0]] * 9, fps=10)
    assert probe_video(path)[0] == 9
    if suffix == ".gif":
        with Image.open(path) as image:
            assert image.info["loop"] == 0
            durations = []
            for index in range(image.n_frames):
                image.seek(index)
                durations.append(image.info["duration"])
        assert sum(durations) == 900


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_colours_and_order_survive(tmp_path, suffix):
    frames = moving_square(12, 64, 64)
    path = write_video(tmp_path / f"clip{suffix}", frames, scale=2)
    decoded = decode(path, 128, 128)[:, ::2, ::2]
    assert np.abs(decoded.astype(int) - frames).mean() < 4
    assert np.abs(decoded[:, :8, :8].astype(int) - (40, 90, 160)).max() < 12
    errors = [[np.abs(a.astype(int) - b).mean() for b in frames[:8]] for a in decoded[:8]]
    assert np.argmin(errors, axis=1).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("a.avi", np.zeros((2, 8, 8, 3), np.uint8), "must end in"),
        ("a.mp4", [], "no frames"),
        ("a.mp4", np.zeros((2, 8, 8, 3), np.float32), "uint8"),
        ("a.mp4", np.zeros((2, 8, 8), np.uint8), "uint8"),
        ("a.mp4", [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "change size"),
    ],
)
def test_wrong_requests_are_refused_and_leave_nothing(tmp_path, name, frames, message):
    with pytest.raises(UsageError, match=message):
        write_video(tmp_path / name, frames)
    assert list(tmp_path.iterdir()) == []


def test_fewer_frames_than_expected_fail(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"older")
    with pytest.raises(RunError, match="2 frames where 3"):
        write_video(tmp_path / "a.mp4", moving_square(2, 16, 16), expected=3)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.mp4", b"older")]


def test_folder_that_cannot_be_made_fails(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"a\.mp4: cannot write"):
        write_video(tmp_path / "file" / "a.mp4", moving_square(2, 16, 16))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_full_disk_fails_and_leaves_nothing(tmp_path, suffix):
    frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(RunError, match=rf"a{suffix}: the file would grow over the limit of 20,000 bytes"):
            write_video(tmp_path / f"a{suffix}", frames)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("script", ["echo no such encoder >&2; exit 1", "cat > /dev/null; exit 0", "exit 3"])
def test_broken_encoder_fails_and_leaves_nothing(tmp_path, monkeypatch, script):
    fake = tmp_path / "ffmpeg"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    with pytest.raises(RunError, match="cannot write the video"):
        write_video(tmp_path / "out" / "a.mp4", moving_square(200, 64, 64))
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_ffmpeg_names_the_way_out(tmp_path, monkeypatch):
    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(RunError, match="pip install imageio-ffmpeg"):
        write_video(tmp_path / "a.mp4", moving_square(2, 16, 16))


def test_interruption_leaves_nothing(tmp_path):
    def frames():
        yield from moving_square(3, 16, 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", frames())
    assert list(tmp_path.iterdir()) == []


def rollout(num_clips=2, num_frames=7, context=3):
    real = np.stack([moving_square(num_frames, 32, 32) for _ in range(num_clips)])
    actions = np.zeros((num_clips, num_frames), np.int64)
    return real, real // 2, real[:, context:] // 3, actions, FORWARD_TURN, context


def test_label_stands_above_the_frame():
    frame = moving_square(1, 32, 64)[0]
    labelled = tiles.draw_label(frame, "turn")
    np.testing.assert_array_equal(labelled[-32:], frame)
    assert labelled[:-32].max() > 150  # there is text


def test_grid_places_and_enlarges():
    frames = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3)
    picture = tiles.grid(frames, gap=1, scale=2)
    assert picture.shape == (2 * 8 + 3, 3 * 8 + 4, 3)
    np.testing.assert_array_equal(picture[10:18:2, 19:27:2], frames[1, 2])


def shows(frame, picture):
    windows = np.lib.stride_tricks.sliding_window_view(frame, picture.shape)[:, :, 0]
    return bool((windows == picture).all(axis=(-1, -2, -3)).any())


def test_rollout_frames_show_every_picture():
    arguments = rollout()
    real, rebuilt, imagined, *_ = arguments
    frames = list(pictures.rollout_frames(*arguments, scale=1))
    assert len(frames) == 7 and len({frame.shape for frame in frames}) == 1

    for t in (0, 2, 3, 6):
        assert shows(frames[t], real[1, t]) and shows(frames[t], rebuilt[1, t])
        if t >= 3:
            assert shows(frames[t], imagined[1, t - 3])
    in_context, in_dream = (frames[t].reshape(-1, 3) for t in (2, 3))
    assert (in_context == pictures.CONTEXT).all(1).any() and (in_dream == pictures.IMAGINED).all(1).any()
    assert not (in_dream == pictures.CONTEXT).all(1).any()


def test_labels_name_the_action_into_the_frame():
    space, actions = FORWARD_TURN, np.array([1, 0, 1])
    assert [tiles.action_label(actions, space, t) for t in range(4)] == [["start"], ["turn"], ["forward"], ["turn"]]
    assert tiles.action_label(actions, ActionSpace("discrete", nvec=(2,)), 1) == ["action 1"]


def test_long_actions_are_broken_between_their_parts_and_all_there():
    """Between name and value no line ends, and no line is wider than the frame."""
    names = ("steering wheel", "gas", "brake", "look_up", "look_right", "jump")
    space = ActionSpace("box", low=(-1.0,) * 6, high=(1.0,) * 6, names=names)
    lines = tiles.wrap(space.label_parts(np.linspace(-1, 1, 6)), 150)
    assert " ".join(lines) == space.label(np.linspace(-1, 1, 6)) and 2 < len(lines) <= tiles.MAX_LINES
    assert all(re.fullmatch(r"(.*?[+-]\d\.\d\d( |$))+", line) for line in lines), lines
    buttons = ActionSpace("multi_discrete", nvec=(2,) * 6, names=names)
    assert "".join(tiles.wrap(buttons.label_parts([1, 1, 0, 1, 1, 1]), 90)) == buttons.label([1, 1, 0, 1, 1, 1])
    drawn = tiles.caption(space.label_parts(np.linspace(-1, 1, 6)), 150, len(lines))
    assert drawn.shape == (len(lines) * tiles.LINE, 150, 3)
    heights = drawn.reshape(len(lines), tiles.LINE, 150, 3).max(axis=(1, 2, 3))
    assert (heights > 150).all()  # text in each
    np.testing.assert_array_equal(drawn[:, :2], np.broadcast_to(tiles.BACKGROUND, drawn[:, :2].shape))
    assert len(tiles.wrap(["+0.12 "] * 500, 150)) == tiles.MAX_LINES


@pytest.mark.parametrize("num_clips", [1, 2, 4, 5])
def test_what_nothing_real_follows_stands_alone(num_clips):
    """No place is kept for what is not there: under chosen actions two thirds of every frame were black."""
    _, rebuilt, imagined, actions, space, context = rollout(num_clips)
    frames = list(pictures.rollout_frames(None, rebuilt[:, :context], imagined, actions, space, context, scale=4))
    assert len(frames) == 7 and len({frame.shape for frame in frames}) == 1
    for t, frame in enumerate(frames):
        expected = (rebuilt if t < context else imagined)[-1, t if t < context else t - context]
        assert shows(frame, expected.repeat(4, 0).repeat(4, 1))
        covered = num_clips * (4 * 32) ** 2 / (frame.shape[0] * frame.shape[1])
        assert covered > (0.5 if num_clips != 5 else 0.45), covered
        assert not (frame == 0).all(-1).any()
    picture = pictures.strip(None, rebuilt[0, :context], imagined[0], actions[0], space, context)
    assert shows(picture, imagined[0, -1].repeat(4, 0).repeat(4, 1))
    assert picture.shape[0] < 2 * 4 * 32 < pictures.strip(*(a[0] for a in rollout()[:4]), space, context).shape[0]
    with pytest.raises(UsageError, match="do not fit"):
        next(pictures.rollout_frames(None, rebuilt, imagined, actions, space, context))


def test_scale_is_whole_and_else_frames_are_legible():
    """A frame of 48x64 is drawn three times as large, as one of 64x64 is."""
    real = np.zeros((1, 3, 48, 64, 3), np.uint8) + np.arange(64, dtype=np.uint8)[:, None]
    arguments = real, real, real[:, 2:], np.zeros((1, 3), np.int64), FORWARD_TURN, 2
    for scale, drawn in ((None, 3), (1, 1), (5, 5)):
        first = next(pictures.rollout_frames(*arguments, scale=scale))
        assert shows(first, real[0, 0].repeat(drawn, 0).repeat(drawn, 1))
        assert not shows(first, real[0, 0].repeat(drawn + 1, 0).repeat(drawn + 1, 1)[: drawn * 48])


def test_rollout_of_wrong_lengths_is_refused():
    real, rebuilt, imagined, actions, space, context = rollout()
    with pytest.raises(UsageError, match="do not fit"):
        next(pictures.rollout_frames(real, rebuilt, imagined[:, 1:], actions, space, context))
    with pytest.raises(UsageError, match="need 6 actions"):
        next(pictures.rollout_frames(real, rebuilt, imagined, actions[:, :5], space, context))


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_save_rollout_writes_video_and_strip(tmp_path, suffix):
    video, picture = pictures.save_rollout(tmp_path / f"dream{suffix}", *rollout(), scale=2)
    assert probe_video(video)[0] == 7
    with Image.open(picture) as image:
        assert image.width > image.height


def test_paper_figure_has_a_row_an_action():
    frames = moving_square(5, 32, 32)
    one = pictures.paper_figure(frames[:3], {"forward": frames})
    two = pictures.paper_figure(frames[:3], {"forward": frames, "turn right": frames})
    assert two.shape[1] == one.shape[1] and two.shape[0] > 1.5 * one.shape[0]
    with pytest.raises(UsageError, match="at least one row"):
        pictures.paper_figure(frames, {})


def test_save_png_round_trip_and_failure(tmp_path):
    picture = moving_square(1, 20, 30)[0]
    with Image.open(pictures.save_png(tmp_path / "a" / "b.png", picture)) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)
    with pytest.raises(RunError, match="cannot write"):
        pictures.save_png(tmp_path / "a" / "b.png" / "c.png", picture)
