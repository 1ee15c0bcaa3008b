"""Pictures as files: whole ones, and all kinds of broken ones."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from worldvq.media.image_reading import MAX_PIXELS

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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, colour, data, *chunks):
    """A PNG written by hand: colour type 0 is grey, 2 RGB; each row of data begins with a 0; chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_that_says(width, height):
    """A PNG of a few bytes whose header says that it is this large."""
    return png(width, height, 8, 2, b"\0" * 99)


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
