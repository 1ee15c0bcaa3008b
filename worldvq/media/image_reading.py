"""Reading images that others made, whatever way their pixels are kept, as RGB of 8 bits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from worldvq.errors import CorruptFileError, one_line
from worldvq.files.reading import open_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""What is taken for an image in a folder; what it is in truth its first bytes say."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow knows more, some of which start other programs."""
MAX_PIXELS = 2**26
"""Of one image, 8192x8192: more are not decoded, as a file of a few kilobytes may say that it has a billion."""
BACKGROUND = (255, 255, 255)
"""What is seen through transparent pixels."""


class ReadImage(NamedTuple):
    """What was in a file.

    Attributes:
        pixels: (H, W, 3) uint8.
        transparent: Whether it had an alpha channel or a transparent colour, behind which is now ``BACKGROUND``.
    """

    pixels: np.ndarray
    transparent: bool


def read_image(path: Path) -> ReadImage:
    """Read one image, turned as its EXIF orientation says; of an animation the first picture.

    16 bits become 8 by scaling, palettes, grey and CMYK become RGB, transparent pixels show ``BACKGROUND``. Colour
    profiles are not applied.

    Raises:
        CorruptFileError: It is no image, is cut short, has more than ``MAX_PIXELS`` pixels, or has values of which
            nobody knows the range (32 bits, floating point).
    """
    with open_file(path, follow=False) as (file, _), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is wrong, and of sizes, which are looked at here
        try:
            with Image.open(file, formats=_FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ValueError(f"it says that it has {width}x{height} pixels, at most {MAX_PIXELS:,} are decoded")
                return _as_rgb(ImageOps.exif_transpose(image))
        except Image.DecompressionBombError:
            reason = f"it says that it has more than {MAX_PIXELS:,} pixels, which are not decoded"
        except Image.UnidentifiedImageError:
            reason = f"no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
        except Exception as error:  # on a broken file the decoders raise errors of many types
            reason = one_line(error) or type(error).__name__
    raise CorruptFileError(f"{path}: not a whole image ({reason})")


def _as_rgb(image: Image.Image) -> ReadImage:
    if image.mode == "F":
        raise ValueError("floating point, of which the range is not known: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # grey of 16 bits; convert() would cut off what is over 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32 bits, of which the range is not known: save it with 8 or 16 bits")
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=2)
        clear = image.info.get("transparency")  # a value of 16 bits, which convert() would not look for either
        if clear is not None:
            pixels[values == clear] = BACKGROUND
        return ReadImage(pixels, clear is not None)
    if not image.has_transparency_data:
        return ReadImage(np.array(image.convert("RGB")), False)
    behind = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return ReadImage(np.array(Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")), True)
