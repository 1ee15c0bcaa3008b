"""Every stored frame once and in order, whatever the container says of rates and counts."""

import itertools

import numpy as np
import pytest
from moviepy import VideoFileClip
from PIL import Image, ImageSequence
from support.own_videos import ffmpeg, frames_of, write_lossless

from worldvq.errors import RunError
from worldvq.media.fit import FITS, fit_image
from worldvq.media.video_reading import frame_rate, is_steady, read_video
from worldvq.media.videos import decode_times, write_video


def read(path, **kwargs):
    return np.stack(read_video(path, decode_times(path), **kwargs))


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mov"])
@pytest.mark.parametrize(("count", "height", "width"), [(2, 16, 24), (31, 17, 9)])
def test_frames_are_those_that_another_library_wrote(tmp_path, suffix, count, height, width):
    frames = frames_of(count, height, width)
    path = write_lossless(tmp_path / f"a{suffix}", frames, fps=30)
    assert np.array_equal(read(path), frames)
    assert frame_rate(decode_times(path)) == pytest.approx(30, rel=0.01)


def test_every_other_frame(tmp_path):
    frames = frames_of(7)
    path = write_lossless(tmp_path / "a.mkv", frames)
    assert np.array_equal(read(path, every=3), frames[::3])


@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("fps", [7, 60])
def test_frames_of_a_gif_are_those_that_pillow_reads(tmp_path, count, fps):
    path = write_video(tmp_path / "a.gif", frames_of(count), fps=fps)
    with Image.open(path) as image:
        expected = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    assert len(expected) == count
    assert np.array_equal(read(path), expected)


def test_frames_at_changing_times_are_neither_repeated_nor_dropped(tmp_path):
    frames = frames_of(30)
    ffmpeg("-i", write_lossless(tmp_path / "a.mkv", frames, 30), "-c:v", "libx264rgb", "-qp", 0, tmp_path / "a.mp4")
    slower = "setpts=if(lt(N\\,10)\\,N\\,2*N-10)/30/TB"
    ffmpeg(
        "-i", tmp_path / "a.mp4", "-vf", slower, "-fps_mode", "vfr", "-c:v", "libx264rgb", "-qp", 0, tmp_path / "b.mp4"
    )
    assert is_steady(decode_times(tmp_path / "a.mp4")) and not is_steady(decode_times(tmp_path / "b.mp4"))
    assert np.array_equal(read(tmp_path / "b.mp4"), frames)


def test_sound_and_a_turned_phone(tmp_path):
    frames = frames_of(12)
    ffmpeg("-i", write_lossless(tmp_path / "a.mkv", frames, 12), "-c:v", "libx264rgb", "-qp", 0, tmp_path / "a.mp4")
    sound = ("-f", "lavfi", "-i", "sine=duration=1")
    ffmpeg(*sound, "-display_rotation", 90, "-i", tmp_path / "a.mp4", "-c:v", "copy", tmp_path / "b.mp4")
    assert len(decode_times(tmp_path / "b.mp4").times) == 12
    assert np.array_equal(read(tmp_path / "b.mp4"), np.rot90(frames, axes=(1, 2)))


def test_broken_files_and_playlists_are_refused(tmp_path):
    video = write_video(tmp_path / "a.mp4", frames_of(20))
    (tmp_path / "b.mp4").write_bytes(video.read_bytes()[:-500])
    (tmp_path / "c.mp4").write_bytes(b"")
    (tmp_path / "d.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    for name in "bcd":
        with pytest.raises(RunError, match=rf"{name}\.mp4 does not decode"):
            decode_times(tmp_path / f"{name}.mp4")


def test_a_file_that_does_not_say_how_long_it_is(tmp_path):
    """Browsers record such files; moviepy does not open them."""
    source = write_lossless(tmp_path / "a.mkv", frames_of(9))
    ffmpeg("-i", source, "-c", "copy", "-live", 1, "-f", "matroska", tmp_path / "live.mkv")
    with pytest.raises(OSError, match="Duration: N/A"):
        VideoFileClip(str(tmp_path / "live.mkv"), audio=False)
    assert np.array_equal(read(tmp_path / "live.mkv"), frames_of(9))


# ------------------------------------------------------------------------------------------------ fitting


def test_whole_factors_are_averages():
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    means = image.reshape(4, 3, 10, 2, 3).mean((1, 3))
    assert np.abs(fit_image(image, (4, 10)).astype(float) - means).max() <= 0.5 + 1e-6
    assert np.array_equal(fit_image(image.repeat(3, 0).repeat(3, 1), (12, 20)), image)


def test_pad_keeps_the_shape_and_crop_keeps_the_middle():
    image = np.full((10, 30, 3), 200, np.uint8)
    image[:, :10], image[:, 20:] = (255, 0, 0), (0, 0, 255)
    padded = fit_image(image, (30, 30), "pad")
    assert (padded[:10] == 0).all() and (padded[20:] == 0).all()
    assert np.array_equal(padded[10:20], image)
    assert (fit_image(image, (5, 5), "crop") == 200).all()
    assert fit_image(image, (7, 9), "squash").shape == (7, 9, 3)


@pytest.mark.parametrize("fit", FITS)
def test_any_shape_fits_any_other(fit):
    for size, shape in itertools.product([(1, 1), (3, 40), (40, 3), (13, 17)], [(1, 1), (2, 31), (31, 2), (13, 17)]):
        fitted = fit_image(np.full((*shape, 3), 9, np.uint8), size, fit)
        assert fitted.shape == (*size, 3) and fitted.dtype == np.uint8
        assert (fitted == 9).all() or (fit == "pad" and (fitted == 9).any())
