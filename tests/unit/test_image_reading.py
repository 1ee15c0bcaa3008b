"""One image: whatever way pixels are kept, it is read as it is, or an error names its file."""

import io
import math
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.images import HEIGHT, WIDTH, bad_files, chunk, picture, png

from worldvq.errors import CorruptFileError
from worldvq.media.image_reading import read_image


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif", ".ppm"])
def test_what_loses_nothing_comes_back_as_it_was(tmp_path, suffix):
    Image.fromarray(picture()).save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    pixels, transparent = read_image(tmp_path / f"a{suffix}")
    assert np.array_equal(pixels, picture()) and pixels.dtype == np.uint8 and not transparent


def test_grey_of_8_and_of_16_bits(tmp_path):
    wide = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 65535 // (HEIGHT * WIDTH - 1)
    Image.fromarray(wide.astype(np.uint16)).save(tmp_path / "wide.png")
    Image.fromarray(wide.astype(np.uint16)).save(tmp_path / "wide.tif")
    Image.fromarray(picture()[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(picture()[..., 0] > 99).save(tmp_path / "one_bit.png")
    for name in ("wide.png", "wide.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name).pixels, np.rint(wide / 257)[..., None].repeat(3, -1))
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png").pixels, picture()[..., :1].repeat(3, -1))
    np.testing.assert_array_equal(
        read_image(tmp_path / "one_bit.png").pixels, (picture()[..., :1] > 99).repeat(3, -1) * 255
    )


def test_transparent_pixels_are_white(tmp_path):
    alpha = np.linspace(0, 255, WIDTH).round().astype(np.uint8)[None].repeat(HEIGHT, 0)
    rgba = np.dstack([picture(), alpha])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba[..., [0, 3]]).save(tmp_path / "la.png")
    share = alpha[..., None] / 255
    for name, colours in (("rgba.png", picture()), ("la.png", picture()[..., :1].repeat(3, -1))):
        pixels, transparent = read_image(tmp_path / name)
        assert transparent and np.abs(pixels - (colours * share + 255 * (1 - share))).max() <= 1.01


def test_palettes_with_and_without_a_transparent_colour(tmp_path):
    indices = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 4
    colours = np.array([[200, 10, 30], [0, 90, 255], [7, 7, 7], [255, 255, 0]], np.uint8)
    image = Image.new("P", (WIDTH, HEIGHT))
    image.putdata(indices.reshape(-1).tolist())
    image.putpalette(colours.tobytes())
    for name, options in (("p.png", {}), ("p.gif", {}), ("t.png", {"transparency": 2})):
        image.save(tmp_path / name, **options)
        expected = colours.copy()
        if options:
            expected[2] = 255
        pixels, transparent = read_image(tmp_path / name)
        np.testing.assert_array_equal(pixels, expected[indices])
        assert transparent == bool(options)


@pytest.mark.parametrize(("bits", "clear"), [(8, 77), (16, 0x4D00), (16, 0), (16, 65535)])
def test_a_grey_that_is_said_to_be_transparent_is_white(tmp_path, bits, clear):
    """The tRNS chunk (PNG 1.2, section 4.2.1.1), compared in all bits: the grey next to it stays."""
    near = clear - 1 if clear else 1
    greys = np.array([[clear, near, 0, 2**bits - 1], [near, clear, clear, 9]])
    data = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in greys)
    (tmp_path / "a.png").write_bytes(png(4, 2, bits, 0, data, chunk(b"tRNS", struct.pack(">H", clear))))
    pixels, transparent = read_image(tmp_path / "a.png")
    expected = np.where(greys == clear, 255, np.rint(greys * 255 / (2**bits - 1)))
    np.testing.assert_array_equal(pixels, expected[..., None].repeat(3, -1))
    assert transparent


def test_cmyk(tmp_path):
    colours = {"cyan": (255, 0, 0, 0), "key": (0, 0, 0, 255), "none": (0, 0, 0, 0)}
    expected = {"cyan": (0, 255, 255), "key": (0, 0, 0), "none": (255, 255, 255)}
    for name, ink in colours.items():
        Image.new("CMYK", (WIDTH, HEIGHT), ink).save(tmp_path / f"{name}.jpg", quality=100)
        assert np.abs(read_image(tmp_path / f"{name}.jpg").pixels.astype(int) - expected[name]).max() <= 3


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [  # what a camera has stored of a picture that is to be seen upright (EXIF 2.3, tag 274)
        (1, lambda seen: seen),
        (2, lambda seen: seen[:, ::-1]),
        (3, lambda seen: seen[::-1, ::-1]),
        (4, lambda seen: seen[::-1]),
        (5, lambda seen: seen.transpose(1, 0, 2)),
        (6, lambda seen: np.rot90(seen)),
        (7, lambda seen: seen[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda seen: np.rot90(seen, -1)),
    ],
)
def test_pictures_are_turned_as_their_orientation_says(tmp_path, orientation, stored):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored(picture()))).save(
        tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0
    )
    assert np.abs(read_image(tmp_path / "a.jpg").pixels.astype(int) - picture()).mean() < 2


def test_what_is_no_whole_image_is_one_line_that_names_it(tmp_path):
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(CorruptFileError, match="not a whole image") as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and words in str(caught.value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(tmp_path))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    st.floats(0.02, 1),
)
def test_damage_is_an_image_or_an_error_that_names_the_file(kind, flips, kept):
    buffer = io.BytesIO()
    Image.fromarray(picture(3, 12, 20)).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    for place, change in flips:
        data[int(place * len(data))] ^= change
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "damaged"
        path.write_bytes(data[: math.ceil(kept * len(data))])
        try:
            pixels, _ = read_image(path)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] == 3
        except CorruptFileError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            assert flips or kept < 1


def test_a_pipe_does_not_hold_it_up(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(CorruptFileError, match="not a regular file"):
        read_image(tmp_path / "pipe.png")
