"""A folder of images as a dataset, so that every stage that looks at single frames takes them like recorded ones.

Images of one class stand together in episodes of up to 64; they do not follow each other, and what needs frames that
do refuses such a dataset (:func:`worldvq.config.env.refuse_images`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

from worldvq.config.env import IMAGES, EnvConfig
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.data.formats.exported import counted
from worldvq.data.formats.folders import Source, find_classes
from worldvq.data.formats.videos import NO_ACTION
from worldvq.errors import CorruptFileError, RunError, UsageError, plural
from worldvq.files.differences import printable
from worldvq.files.lock import check_unlocked
from worldvq.media.fit import Fit, fit_image
from worldvq.media.image_reading import IMAGE_SUFFIXES, read_image
from worldvq.types import Episode

GROUP, LEAST = 64, 3
"""Most images of an episode, and the least where a class has as many: two that can be read have to be left."""
NAMED = 20
"""Of what cannot be read, how many files are named in the output; each episode's meta names all of its own."""
_WAY_OUT = "import into another folder"


@dataclass(frozen=True)
class Group:
    """The images of an episode, all of one class."""

    label: str
    images: list[Source]


@dataclass
class Said:
    """What is counted while images are read."""

    unreadable: int = 0
    transparent: int = 0
    enlarged: int = 0
    lost: list[int] = field(default_factory=list)
    """Episodes of which too little can be read."""


def import_images(
    folder: Path,
    out: Path,
    *,
    size: tuple[int, int] = (128, 128),
    fit: Fit = "crop",
    heldout_every: int = 10,
    compression: Literal["none", "zstd"] = "none",
    progress: bool = True,
) -> EpisodeStore:
    """Make a dataset of a folder of images and of the folders in it, or continue one.

    The name of the first folder level is an image's class. Which image goes into which episode depends on the names
    alone, so an import that was interrupted goes on where it stopped.

    Args:
        folder: Holds the images (``IMAGE_SUFFIXES``), at any depth. Hidden files and symbolic links are left out.
        out: Folder of the dataset.
        size: Height and width of a stored frame.
        fit: How an image of another shape is made to fit.
        heldout_every: Of each class one image in so many is held out; 1 holds out all, for a folder that is for
            evaluation only.
        compression: Of the stored frames.
        progress: Show a progress bar on a terminal.

    Returns:
        The store, open for reading and writing.

    Raises:
        UsageError: There are no images, or ``out`` holds something else; nothing was written.
        RunError: None of the images can be read, or the disk is full. Committed episodes stay.
    """
    EpisodeStore.refuse_strangers(out)
    check_unlocked(out)
    classes = find_classes(folder, "image", IMAGE_SUFFIXES)
    groups = make_groups(classes, heldout_every)
    digest = _digest(groups)
    _check_before(out, folder, digest)
    height, width = size
    done = {"squash": "squashed to", "pad": "fitted with black bars into", "crop": "cut to the middle of the shape of"}
    print(f"images are {done[fit]} {height}x{width}; made smaller by whole factors or antialiased bilinear", flush=True)
    meta = DatasetMeta(
        env=EnvConfig(id=_env_id(folder), kwargs={"files": digest}, size=size, fit=fit),
        action_space=NO_ACTION.to_json(),
        frame_size=size,
        policy="images",
        heldout_every=heldout_every,
        compression=compression,
        versions={name: metadata.version(name) for name in ("worldvq", "numpy", "pillow")},
    )
    store, said = EpisodeStore.create(out, meta), Said()
    try:
        for number, group in counted(list(enumerate(groups)), "importing", progress):
            if number not in store and (episode := _read_group(folder, number, group, size, fit, said)):
                store.commit(number, episode)
        if not len(store):
            raise RunError(f"{folder}: no image can be read; delete {out} to import into it again")
    except BaseException:
        store.close()
        raise
    _say(said, size)
    return store


# ------------------------------------------------------------------------------------------------ which images


def make_groups(classes: dict[str, list[Source]], heldout_every: int) -> list[Group]:
    """Say which images make which episode; episode n is held out when n % heldout_every == heldout_every - 1.

    A class makes a multiple of ``heldout_every`` episodes of equal length where it has images enough, so that one image
    in ``heldout_every`` of it is held out. Within it images are ordered by a hash of their paths: as good as drawn, the
    same on every machine, and not all of one kind where the names are numbered by what they show. A class of one image,
    which is no episode, joins the images without a class.

    Args:
        classes: Images by label; "" is none.
        heldout_every: One episode in so many is held out.

    Raises:
        UsageError: There is only one image.
    """
    alone = [label for label, images in classes.items() if label and len(images) == 1]
    pooled = {label: images for label, images in classes.items() if label not in alone}
    if alone:
        pooled[""] = [*pooled.get("", []), *(classes[label][0] for label in alone)]
        print(f"classes of one image, which are kept without a class: {_first(alone)}", flush=True)
    if len(pooled.get("", [])) == 1:
        print(f"left out, as it is alone without a class: {pooled.pop('')[0].path}", flush=True)
    groups = []
    for label, images in sorted(pooled.items()):
        images = sorted(images, key=lambda image: hashlib.sha256(os.fsencode(image.path)).digest())
        whole = len(images) >= LEAST * heldout_every  # else too few to hold out an episode of every class
        rounds = math.ceil(len(images) / (heldout_every * GROUP))
        count = heldout_every * rounds if whole else max(1, len(images) // LEAST)
        ends = [len(images) * part // count for part in range(count + 1)]
        groups += [Group(label, images[begin:end]) for begin, end in itertools.pairwise(ends)]
    if not groups:
        raise UsageError("there is one image, a dataset needs two")
    return groups


def _digest(groups: list[Group]) -> str:
    """What tells this division into episodes, of files of these names and sizes, from any other."""
    listed = hashlib.sha256()
    for group in groups:
        listed.update(f"{group.label}\0{len(group.images)}\n".encode())
        for image in group.images:
            listed.update(os.fsencode(image.path) + f"\0{image.num_bytes}\n".encode())
    return listed.hexdigest()[:16]


def _env_id(folder: Path) -> str:
    return f"{IMAGES}{printable(folder.resolve().name)}"


def _check_before(out: Path, folder: Path, digest: str) -> None:
    """Refuse to continue a dataset of other images; the rest of its description the store compares itself."""
    if not (out / EpisodeStore.meta_file).is_file():
        return
    env = EpisodeStore.read_meta(out).env
    if env.id != _env_id(folder):
        raise UsageError(f"{out} holds a dataset of '{env.id}', not of the images in {folder}: {_WAY_OUT}")
    if env.kwargs.get("files") != digest:
        raise UsageError(
            f"{out}: the images in {folder} are not those that it was begun with (names, sizes and --heldout-every "
            f"decide which episode an image is in): {_WAY_OUT}"
        )


# ------------------------------------------------------------------------------------------------ reading them


def _read_group(folder: Path, number: int, group: Group, size: tuple[int, int], fit: Fit, said: Said) -> Episode | None:
    """Read the images of an episode; None where fewer than two can be read."""
    frames, names, unreadable = [], [], {}
    for image in group.images:
        name = printable(image.path)
        try:
            pixels, transparent = read_image(folder / image.path)
        except CorruptFileError as error:
            unreadable[name] = printable(str(error).removeprefix(f"{folder / image.path}: "))
            said.unreadable += 1
            if said.unreadable <= NAMED:
                print(f"left out: {name}: {unreadable[name]}", flush=True)
            continue
        said.transparent += transparent
        said.enlarged += pixels.shape[0] < size[0] or pixels.shape[1] < size[1]
        frames.append(fit_image(pixels, size, fit))
        names.append(name)
    if len(frames) < 2:
        said.lost.append(number)
        return None
    steps = len(frames) - 1
    meta = {"label": group.label, "images": names} | ({"unreadable": unreadable} if unreadable else {})
    actions, rewards = np.zeros(steps, np.int64), np.zeros(steps, np.float32)
    return Episode(np.stack(frames), actions, rewards, terminated=False, truncated=True, meta=meta)


def _say(said: Said, size: tuple[int, int]) -> None:
    if said.unreadable:
        print(f"{plural(said.unreadable, 'image')} cannot be read, left out", flush=True)
    if said.lost:
        print(f"left out, as fewer than two of their images can be read: episodes {_first(said.lost)}", flush=True)
    if said.transparent:
        print(f"{plural(said.transparent, 'image')} with transparent parts, which are white now", flush=True)
    if said.enlarged:
        print(f"{plural(said.enlarged, 'image')} smaller than {size[0]}x{size[1]}, enlarged", flush=True)


def _first(values: list) -> str:
    more = f" and {len(values) - NAMED:,} more" if len(values) > NAMED else ""
    return ", ".join(map(str, values[:NAMED])) + more
