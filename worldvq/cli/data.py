"""``worldvq data info|verify|preview|merge|import|speech|export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from worldvq.cli.options import ScaleOption, parse_size
from worldvq.errors import RunError, UsageError, plural

app = typer.Typer()
data_app = typer.Typer(help="Look at a dataset, check it, draw it, make one of videos.", no_args_is_help=True)
import_app = typer.Typer(help="Make a dataset of something else.", no_args_is_help=True)
app.add_typer(data_app, name="data")
data_app.add_typer(import_app, name="import")


@data_app.command("info")
def info_command(data: Annotated[Path, typer.Argument(help="Folder of a dataset.")]) -> None:
    """Print what a dataset holds."""
    from worldvq.data.inspect import info

    Console().print(info(data))


@data_app.command("verify")
def verify_command(
    data: Annotated[Path, typer.Argument(help="Folder of a dataset, token store or store of sounds.")],
) -> None:
    """Hash every file against the index; names what is broken."""
    from worldvq.data.inspect import open_store

    with open_store(data) as store:
        problems = store.verify()
    for problem in problems:
        print(problem)
    if problems:
        raise RunError(f"{data}: {len(problems)} of {plural(len(store), 'episode')} broken")
    print(f"{data}: {plural(len(store), 'episode')}, all as committed")


@data_app.command("merge")
def merge_command(
    data: Annotated[Path, typer.Argument(help="Folder with the shards of a dataset or token store.")],
) -> None:
    """List in one index what shards have recorded; no episode is read or moved. Shards may be continued afterwards."""
    from worldvq.files.lock import check_unlocked

    check_unlocked(data)
    from worldvq.data.inspect import open_store
    from worldvq.data.shards import merge_shards

    count = merge_shards(data)
    with open_store(data) as store:
        merged = ", ".join([plural(len(store), "episode"), plural(store.num_frames, "frame")])
        print(f"{data}: {plural(count, 'shard')} merged, {merged}")
        if problem := store.split_problem():
            print(f"warning: {problem}")


@data_app.command("preview")
def preview_command(
    data: Annotated[Path, typer.Argument(help="Folder of a dataset.")],
    out: Annotated[Path | None, typer.Option(help="Where the pictures go. Default: DATA-preview.")] = None,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames a second of the video.")] = 15,
    scale: ScaleOption = None,
) -> None:
    """Draw a contact sheet (PNG) and a video of a few episodes, under each frame what led to it: action and reward.

    Example: worldvq data preview runs/car/data
    """
    from worldvq.data.inspect import preview

    for path in preview(data, out or data.with_name(data.name + "-preview"), fps, scale):
        print(path)


@import_app.command("videos")
def import_videos_command(
    folder: Annotated[Path, typer.Argument(help="Folder of mp4, webm, gif, mov, avi or mkv files, one an episode.")],
    out: Annotated[Path, typer.Option(help="Folder of the dataset; an interrupted import is continued.")],
    actions: Annotated[
        Path | None,
        typer.Option(
            help="A .csv or .jsonl table, or a folder with NAME.npy for every video: action t leads from frame t to "
            "frame t + 1. Default: actions.csv or NAME.npy in FOLDER, if there; else no actions."
        ),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Side of the stored frames, 64 or 48x64. Default: 64.")] = None,
    fit: Annotated[str, typer.Option(help="Where shapes differ: squash, pad (black bars) or crop.")] = "squash",
    every: Annotated[int, typer.Option(min=1, help="Keep one of so many frames; actions are those between them.")] = 1,
    num_actions: Annotated[
        int | None, typer.Option(min=1, help="Choices there are. Default: those that occur.")
    ] = None,
    action_names: Annotated[
        str | None, typer.Option(help="Of the choices, in order: left,right,fire. Default: as in the table, sorted.")
    ] = None,
    low: Annotated[
        str | None,
        typer.Option(help="Lower bounds of real actions, --low=-1 or --low=-1,0. Default: least that occurs."),
    ] = None,
    high: Annotated[str | None, typer.Option(help="Upper bounds. Default: most that occurs.")] = None,
    heldout_every: Annotated[
        int | None, typer.Option(min=2, help="Every so many-th episode is for evaluation only. Default: 10.")
    ] = None,
) -> None:
    """Make a dataset of videos and a table of actions.

    Example: worldvq data import videos clips --actions clips.csv --out runs/mine/data
    """
    from worldvq.data.formats.action_values import SpaceOptions
    from worldvq.data.formats.videos import import_videos
    from worldvq.media.fit import FITS
    from worldvq.recording.config import RecordConfig

    if fit not in FITS:
        raise UsageError(f"--fit {fit}: {', '.join(FITS)}")
    names = tuple(name.strip() for name in action_names.split(",")) if action_names else ()
    store = import_videos(
        folder,
        out,
        actions,
        size=parse_size(size) if size else None,
        fit=fit,
        every=every,
        options=SpaceOptions(num_actions, names, _numbers("--low", low), _numbers("--high", high)),
        heldout_every=heldout_every,
        compression=RecordConfig().compression,
    )
    with store:
        heldout, frames = store.numbers("heldout"), plural(store.num_frames, "frame")
        print(f"{out}: {plural(len(store), 'episode')}, {frames}, {len(heldout)} held out")
        if not heldout and len(store) > 1:
            print(f"nothing is held out to evaluate on: --heldout-every {len(store)} holds out one episode")


@import_app.command("images")
def import_images_command(
    folder: Annotated[Path, typer.Argument(help="Folder of images, at any depth; its folders are the classes.")],
    out: Annotated[Path, typer.Option(help="Folder of the dataset; an interrupted import is continued.")],
    size: Annotated[str, typer.Option(help="Side of the stored frames, 128 or 96x128.")] = "128",
    fit: Annotated[
        str, typer.Option(help="Where shapes differ: crop (the middle), squash or pad (black bars).")
    ] = "crop",
    heldout_every: Annotated[
        int, typer.Option(min=1, help="Of each class one image in so many is for evaluation only; 1: all of them.")
    ] = 10,
    compression: Annotated[
        str, typer.Option(help="none, or zstd, which loses nothing; needs the zstd extra.")
    ] = "none",
) -> None:
    """Make a dataset of a folder of images, for a tokenizer and models of single frames.

    Example: worldvq data import images ImageNet/train --out runs/imagenet128/data
    """
    from worldvq.data.formats.images import import_images
    from worldvq.media.fit import FITS

    if fit not in FITS:
        raise UsageError(f"--fit {fit}: {', '.join(FITS)}")
    if compression not in ("none", "zstd"):
        raise UsageError(f"--compression {compression}: none or zstd")
    sides = parse_size(size)
    with import_images(folder, out, size=sides, fit=fit, heldout_every=heldout_every, compression=compression) as store:
        heldout = sum(store.entry(number).num_frames for number in store.numbers("heldout"))
        print(f"{out}: {plural(len(store), 'episode')}, {plural(store.num_frames, 'image')}, {heldout:,} held out")


@import_app.command("sounds")
def import_sounds_command(
    folder: Annotated[Path, typer.Argument(help="Folder of sounds, at any depth; its folders are the speakers.")],
    out: Annotated[Path, typer.Option(help="Folder of the store; an interrupted import is continued.")],
    rate: Annotated[int, typer.Option(help="Samples a second, to which all are brought.")] = 16_000,
    heldout_every: Annotated[int, typer.Option(min=2, help="One sound in so many is for evaluation only.")] = 10,
) -> None:
    """Make a store of a folder of sounds (WAV, FLAC, Ogg, MP3, ...), for a codec of sound; needs the audio extra.

    Example: worldvq data import sounds recordings --out runs/mine/data
    """
    from worldvq.data.formats.sounds import import_sounds

    with import_sounds(folder, out, rate=rate, heldout_every=heldout_every) as store:
        print(f"{out}: {store.describe()}")


@data_app.command("speech")
def speech_command(
    out: Annotated[Path, typer.Option(help="Folder of the store; an interrupted corpus is continued.")],
    sentences: Annotated[int, typer.Option(min=1, max=100_000, help="How many there shall be.")] = 600,
    rate: Annotated[int, typer.Option(min=1000, max=48_000, help="Samples a second.")] = 16_000,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the sentences.")] = 0,
    heldout_every: Annotated[int, typer.Option(min=2, help="One sentence in so many is for evaluation only.")] = 10,
) -> None:
    """Make a corpus of speech: sentences of a small grammar, read by voices of festival, with their phones.

    Needs the audio extra and the Debian packages festival, festvox-kallpc16k, festvox-kdlpc16k, festvox-us-slt-hts.

    Example: worldvq data speech --out runs/speech/data
    """
    from worldvq.data.formats.speech import make_speech

    with make_speech(out, sentences=sentences, rate=rate, seed=seed, heldout_every=heldout_every) as store:
        print(f"{out}: {store.describe()}")


@data_app.command("export")
def export_command(
    data: Annotated[Path, typer.Argument(help="Folder of a dataset.")],
    out: Annotated[Path, typer.Option(help="Folder of the videos and the table; an interrupted export is continued.")],
    fps: Annotated[float, typer.Option(min=0.1, help="Frames a second.")] = 15,
    scale: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels of the video a pixel of a frame. Default: 4, from 97 pixels on 2."),
    ] = None,
) -> None:
    """Write a dataset as mp4 videos and actions.csv, which `data import videos` reads again."""
    from worldvq.data.formats.exported import TABLE, export_videos

    count = len(export_videos(data, out, fps, scale))
    print(f"{out}: {plural(count, 'video')} and {TABLE}")
    print(f"as a dataset again: worldvq data import videos {out} --out DIR")


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{option} {text}: write a number, or numbers with commas between") from None
