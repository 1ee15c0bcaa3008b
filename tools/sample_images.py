"""Natural pictures without a download: crops of the samples that scikit-image ships, a folder a picture.

    python tools/sample_images.py --out samples
    worldvq data import images samples/train --out runs/samples/data
    worldvq data import images samples/heldout --out runs/samples/heldout --heldout-every 1

What is held out shares no pixel with what is trained on: of every picture the right-hand quarter, at least a crop
wide, is kept for ``heldout``, and crops for ``train`` end to the left of it. There crops overlap and each also stands
mirrored; held-out ones do not overlap as much and are not mirrored. Nothing is drawn at random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageOps

PICTURES = (
    *("astronaut", "brick", "camera", "cat", "cell", "coffee", "coins", "grass", "gravel"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "motorcycle", "retina", "rocket"),
)


def main(
    out: Annotated[Path, typer.Option(help="Where the folders train and heldout go.")],
    size: Annotated[int, typer.Option(min=8, help="Side of a crop.")] = 128,
    stride: Annotated[int, typer.Option(min=1, help="Pixels from a crop to the next one, of those to train on.")] = 32,
) -> None:
    """Write crops of the pictures as PNG files."""
    counts = {"train": 0, "heldout": 0}
    for name, picture in pictures().items():
        height, width = picture.shape[:2]
        border = width - max(width // 4, size)
        for part, left, right, step in (("train", 0, border, stride), ("heldout", border, width, size // 2)):
            folder = out / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for y in range(0, height - size + 1, step):
                for x in range(left, right - size + 1, step):
                    crop = Image.fromarray(picture[y : y + size, x : x + size])
                    crop.save(folder / f"{y:04d}_{x:04d}.png")
                    if part == "train":
                        ImageOps.mirror(crop).save(folder / f"{y:04d}_{x:04d}_mirrored.png")
                    counts[part] += 1 + (part == "train")
    print(f"{out}: {counts['train']:,} crops of {size}x{size} to train on, {counts['heldout']:,} held out")


def pictures() -> dict[str, np.ndarray]:
    """Return the samples that need no download, (H, W) or (H, W, 3) uint8, by name; those over 1000 pixels halved."""
    try:
        from skimage import data
    except ImportError:
        raise SystemExit("tools/sample_images.py cuts the samples of scikit-image: pip install scikit-image") from None
    found = {}
    for name in PICTURES:
        picture = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
        image = Image.fromarray(picture)
        found[name] = np.asarray(image.reduce(2) if max(image.size) > 1000 else image)
    return found


if __name__ == "__main__":
    typer.run(main)
