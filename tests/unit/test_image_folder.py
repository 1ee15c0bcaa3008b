"""A folder of images becomes a dataset: whatever way pixels are kept, whatever else lies there, and after any stop."""

import hashlib
import io
import math
import os
import struct
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from worldvq.data.episodes import EpisodeStore
from worldvq.data.formats import images as module
from worldvq.data.formats.images import GROUP, LEAST, Source, import_images, make_groups
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.media.image_reading import MAX_PIXELS, read_image

HEIGHT, WIDTH = 24, 36


def picture(seed=0, height=HEIGHT, width=WIDTH):
    """Flat tiles of 4x4, so that JPEG hardly changes them."""
    tiles = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return tiles.repeat(4, 0).repeat(4, 1)[:height, :width]


def folder_of(root, classes, size=(16, 16)):
    """Images a/0.png, a/1.png, ...; "" lies in the folder itself. Returns them by path."""
    made = {}
    for number, (label, count) in enumerate(classes.items()):
        for index in range(count):
            path = Path(label) / f"{index}.png"
            made[str(path)] = picture(1000 * number + index, *size)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(made[str(path)]).save(root / path)
    return made


# ------------------------------------------------------------------------------------------------ one image


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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_says(width, height):
    """A PNG of a few bytes whose header says that it is this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def bad_files(folder):
    """Files that are no whole images, each with words of why."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cut.png", "cut.jpg", "cut.webp"):
        Image.fromarray(picture(5, 120, 120)).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpeg").write_text("<html>404 Not Found</html>")
    (folder / "giant.png").write_bytes(png_that_says(100_000, 100_000))
    (folder / "large.png").write_bytes(png_that_says(8193, 8192))
    (folder / "crc.png").write_bytes(png_that_says(9, 9)[:30] + b"!!!" + png_that_says(9, 9)[33:])
    (folder / "script.tif").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(np.full((9, 9), 70_000, np.int32)).save(folder / "bits32.tif")
    Image.fromarray(np.zeros((9, 9), np.float32)).save(folder / "float.tif")
    words = {"cut.png": "", "cut.jpg": "", "cut.webp": "", "empty.jpg": "", "text.jpeg": "no JPEG", "crc.png": ""}
    words |= {"giant.png": f"{MAX_PIXELS:,}", "large.png": "8193x8192", "script.tif": "no JPEG"}
    return words | {"bits32.tif": "8 or 16 bits", "float.tif": "8 or 16 bits"}


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


# ------------------------------------------------------------------------------------------------ which episode


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(["", "a", "b", "c", "d"]), st.integers(1, 700), min_size=1), st.integers(1, 12))
def test_every_image_is_in_one_episode_of_its_class(counts, every):
    classes = {label: [Source(f"{label}/{n}", n) for n in range(count)] for label, count in sorted(counts.items())}
    if sum(counts.values()) == 1:
        with pytest.raises(UsageError, match="one image"):
            make_groups(classes, every)
        return
    groups = make_groups(classes, every)
    assert all(2 <= len(group.images) <= GROUP for group in groups)
    placed = Counter(image.path for group in groups for image in group.images)
    alone = {label for label, count in counts.items() if count == 1}
    lost = {f"{label}/{n}" for label, count in counts.items() for n in range(count)} - set(placed)
    assert set(placed.values()) == {1}
    # Only one that has nobody to be with, not even another that is alone, is in none.
    without = counts.get("", 0) + len(alone - {""})
    assert len(lost) == (without == 1)
    for label, count in counts.items():
        held = {True: 0, False: 0}
        for number, group in enumerate(groups):
            if group.label == label:
                held[number % every == every - 1] += len(group.images)
        if label and label not in alone:
            assert sum(held.values()) == count
            assert {image.path.split("/")[0] for g in groups if g.label == label for image in g.images} == {label}
        if label and count >= LEAST * every:  # of every class that is large enough one image in so many
            assert count / every - GROUP / every - 1 <= held[True] <= count / every + GROUP / every + 1
            assert held[True] > 0 and (every == 1 or held[False] > 0)
    assert make_groups(dict(reversed(classes.items())), every) == groups


def test_images_of_a_class_are_not_in_the_order_of_their_names():
    (first, *_) = make_groups({"a": [Source(f"a/{n:04d}", 1) for n in range(600)]}, 10)
    numbers = [int(image.path[2:]) for image in first.images]
    assert max(numbers) > 500 and min(numbers) < 100 and numbers != sorted(numbers)


# ------------------------------------------------------------------------------------------------ a folder


def test_a_folder_becomes_a_dataset(tmp_path, capsys):
    made = folder_of(tmp_path / "f", {"cat": 30, "dog/small": 5, "": 4})
    with import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)) as store:
        assert store.verify() == [] and store.num_frames == 39 and len(store) == 1 + 10 + 1
        seen = Counter()
        for number in store.numbers():
            episode = store.read(number)
            for frame, name in zip(episode.frames, episode.meta["images"], strict=True):
                assert np.array_equal(frame, made[name])
                expected = name.split("/")[0] if "/" in name else ""
                assert episode.meta["label"] == expected and store.label(number) == (expected or "images:f")
                seen[name] += 1
            assert episode.truncated and not episode.actions.any() and not episode.rewards.any()
        assert seen == Counter(made.keys())
        assert store.action_space.nvec == (1,)
    assert "39 images of 2 classes in" in capsys.readouterr().out


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_other_shapes_are_made_to_fit(tmp_path, fit, capsys):
    (tmp_path / "f").mkdir()
    whole = picture(1, 32, 64)
    for name in "ab":
        Image.fromarray(whole).save(tmp_path / "f" / f"{name}.png")
    Image.fromarray(picture(2, 8, 8)).save(tmp_path / "f" / "small.png")
    with import_images(tmp_path / "f", tmp_path / "d", size=(16, 16), fit=fit) as store:
        frames = dict(zip(store.mapped(0).meta["images"], store.frames(0), strict=True))
    if fit == "crop":  # the middle 32x32, each 2x2 one pixel
        expected = whole[:, 16:48].reshape(16, 2, 16, 2, 3).mean((1, 3))
    elif fit == "squash":
        expected = whole.reshape(16, 2, 16, 4, 3).mean((1, 3))
    else:  # 8x16 between bars
        expected = np.pad(whole.reshape(8, 4, 16, 4, 3).mean((1, 3)), ((4, 4), (0, 0), (0, 0)))
    assert np.abs(frames["a.png"] - expected).max() <= 1
    assert "1 image smaller than 16x16, enlarged" in capsys.readouterr().out


def test_what_cannot_be_read_is_named_and_the_rest_is_there(tmp_path, capsys):
    made = folder_of(tmp_path / "f", {"a": 20})
    bad = bad_files(tmp_path / "f" / "a")
    Image.fromarray(np.dstack([picture(), picture()[..., 0]])).save(tmp_path / "f" / "a" / "alpha.png")
    (tmp_path / "f" / "notes.txt").write_text("hello")
    (tmp_path / "f" / ".hidden.png").write_bytes(b"")
    (tmp_path / "f" / ".cache").mkdir()
    (tmp_path / "f" / "link.png").symlink_to(tmp_path / "f" / "a" / "0.png")
    (tmp_path / "f" / "again").symlink_to(tmp_path / "f")
    with import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)) as store:
        kept = [name for number in store.numbers() for name in store.mapped(number).meta["images"]]
        named = {name for number in store.numbers() for name in store.mapped(number).meta.get("unreadable", {})}
    out = capsys.readouterr().out
    assert "(left out: hidden 2, other files 1, symbolic links 2)" in out
    lost = [line for line in out.splitlines() if line.startswith("left out, as fewer than two")]
    assert set(kept) <= {*made, "a/alpha.png"} and (len(kept) == 21 or lost)
    assert named <= {f"a/{name}" for name in bad}
    assert all(f"left out: a/{name}: not a whole image" in out for name in bad)
    assert f"{len(bad)} images cannot be read, left out" in out and "1 image with transparent parts" in out


def test_an_import_goes_on_where_it_stopped(tmp_path, monkeypatch):
    folder_of(tmp_path / "f", {"a": 33, "b": 33, "": 3})
    (tmp_path / "f" / "a" / "0.png").write_bytes(b"broken")
    with import_images(tmp_path / "f", tmp_path / "whole", size=(16, 16)) as store:
        whole = store.fingerprint()
    commit, count = EpisodeStore.commit, 0

    def stop(self, number, episode):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return commit(self, number, episode)

    monkeypatch.setattr(EpisodeStore, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        import_images(tmp_path / "f", tmp_path / "d", size=(16, 16))
    monkeypatch.undo()
    assert len(EpisodeStore.open(tmp_path / "d")) == 7
    read = []
    monkeypatch.setattr(module, "read_image", lambda path: read.append(path) or read_image(path))
    with import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)) as store:
        assert store.fingerprint() == whole
    assert 0 < len(read) < 50
    read.clear()
    import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)).close()
    assert not read


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "a" / "0.png").unlink(), "are not those that it was begun with"),
        (lambda folder: (folder / "a" / "0.png").rename(folder / "a" / "x.png"), "are not those that it was begun"),
        (lambda folder: Image.fromarray(picture(9, 40, 40)).save(folder / "a" / "0.png"), "are not those"),
        (lambda folder: folder.rename(folder.with_name("g")), "holds a dataset of 'images:f', not of the images in"),
    ],
)
def test_other_images_are_refused(tmp_path, change, words):
    folder_of(tmp_path / "f", {"a": 6})
    import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)).close()
    before = hashlib.sha256((tmp_path / "d" / "index.jsonl").read_bytes()).hexdigest()
    change(tmp_path / "f")
    folder = tmp_path / "f" if (tmp_path / "f").exists() else tmp_path / "g"
    with pytest.raises(UsageError, match=words) as caught:
        import_images(folder, tmp_path / "d", size=(16, 16))
    assert "import into another folder" in str(caught.value)
    assert hashlib.sha256((tmp_path / "d" / "index.jsonl").read_bytes()).hexdigest() == before


def test_another_size_is_refused(tmp_path):
    folder_of(tmp_path / "f", {"a": 6})
    import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)).close()
    with pytest.raises(UsageError, match="frame_size: the dataset has 16x16, you ask for 32x32"):
        import_images(tmp_path / "f", tmp_path / "d", size=(32, 32))


def test_folders_without_images(tmp_path):
    with pytest.raises(UsageError, match="no such folder of images"):
        import_images(tmp_path / "gone", tmp_path / "d")
    (tmp_path / "f" / "a").mkdir(parents=True)
    (tmp_path / "f" / "a" / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"holds no images: none .* \(left out: other files 1\)"):
        import_images(tmp_path / "f", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    (tmp_path / "f" / "a.png").write_bytes(b"")
    (tmp_path / "f" / "b.png").write_bytes(b"")
    with pytest.raises(RunError, match="no image can be read; delete"):
        import_images(tmp_path / "f", tmp_path / "d")


def test_compressed_frames_are_the_same(tmp_path):
    folder_of(tmp_path / "f", {"a": 6})
    plain = import_images(tmp_path / "f", tmp_path / "d", size=(16, 16))
    packed = import_images(tmp_path / "f", tmp_path / "z", size=(16, 16), compression="zstd")
    with plain, packed:
        assert packed.meta.compression == "zstd"
        for number in plain.numbers():
            assert np.array_equal(plain.frames(number), packed.frames(number))


def test_names_that_are_no_text(tmp_path):
    folder = tmp_path / "f" / os.fsdecode(b"\xff\xfe")
    folder.mkdir(parents=True)
    for index in range(3):
        Image.fromarray(picture(index)).save(folder / os.fsdecode(b"%d\xff.png" % index))
    with import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)) as store:
        assert store.num_frames == 3 and store.label(0) == "\\udcff\\udcfe"
        assert store.verify() == []
