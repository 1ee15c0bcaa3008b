"""What scene codes bring back, as sheets of pictures: reconstructions, samples given codes, codes that are swapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldvq.errors import UsageError, plural
from worldvq.evaluation import metrics
from worldvq.evaluation.scene_codes import measure
from worldvq.files.differences import require_same
from worldvq.files.weights import hash_module
from worldvq.media.pictures import save_png
from worldvq.media.tiles import sheet
from worldvq.models.scene import bits_of
from worldvq.stages.scene_source import Source
from worldvq.world.scenes import Scenes

MEASURED = 2048
"""Held-out frames, at most, that numbers are of: spread evenly."""
NEAREST = 2


class Sheet(NamedTuple):
    """A picture that was written, and what is to be said of it."""

    path: Path
    lines: list[str]


def reconstruct(
    scene: Path,
    data: Path | None,
    tokens: Path | None,
    out: Path,
    *,
    count: int,
    temperature: float,
    seed: int,
    without: Path | None = None,
    device: str = "auto",
) -> Sheet:
    """Draw held-out frames over what the tokenizer and what the codes bring back; measure the codes.

    Args:
        scene: A trained scene model.
        data: A dataset; or
        tokens: a token store.
        out: A PNG.
        count: Frames that are drawn, spread evenly over the held-out ones.
        temperature: Of the draws.
        seed: Of frames and draws.
        without: A scene model of 0 codes, trained on the same tokens, to compare with.
        device: Where it runs.

    Raises:
        UsageError: Something does not fit; nothing was written.
    """
    scenes = Scenes.load(scene, device)
    source = Source(scenes, data, tokens)
    other = _unconditional(without, scenes, device) if without else None
    measured = source.tokens(source.heldout(MEASURED, seed))
    found = measure(scenes, measured)
    lines = _measured(found, scenes)
    if other:
        lines.append(_compared(other, measured, found["nats_per_token"]))
    ids = source.heldout(count, seed)
    shown = source.tokens(ids)
    codes = scenes.encode(shown)
    drawn = [scenes.draw(codes, seed + again, temperature=temperature) for again in range(2)]
    bits = f"{bits_of(scenes.model.config):g} bits"
    rows = [("original", source.frames(ids))] if source.has_frames else []
    rows += [("tokenizer", scenes.render(shown))]
    rows += [(bits, scenes.render(drawn[0].tokens)), ("drawn again", scenes.render(drawn[1].tokens))]
    if source.has_frames:
        names = [name for name, _ in rows[1:3]]
        errors = [metrics.squared_error(frames, rows[0][1]).mean() for _, frames in rows[1:3]]
        pairs = zip(names, metrics.psnr(np.array(errors)), strict=True)
        lines.append(
            f"PSNR of the {plural(len(ids), 'frame')} shown: " + ", ".join(f"{n} {db:.2f} dB" for n, db in pairs)
        )
    lines.append(_passes(drawn[0].passes, scenes))
    path = save_png(out, sheet([_label(row) for row in codes], [(name, list(frames)) for name, frames in rows]))
    return Sheet(path, lines)


def sample(
    scene: Path,
    data: Path | None,
    tokens: Path | None,
    out: Path,
    *,
    codes: str | None,
    count: int,
    rows: int,
    temperature: float,
    seed: int,
    device: str = "auto",
) -> Sheet:
    """Draw samples given codes: those given, or those of held-out frames, which is their empirical joint distribution.

    Where there is a dataset or a token store, the training frames that are nearest by code stand beside them.

    Args:
        scene: A trained scene model.
        data: A dataset; or
        tokens: a token store; may be missing where codes are given.
        out: A PNG.
        codes: As ``12,400,7``; None draws rows of codes.
        count: Samples of each.
        rows: How many different codes are drawn.
        temperature: Of the draws.
        seed: Of all that is drawn.
        device: Where it runs.

    Raises:
        UsageError: Something does not fit; nothing was written.
    """
    scenes = Scenes.load(scene, device)
    source = Source(scenes, data, tokens) if data or tokens or codes is None else None
    begun: list[list[np.ndarray]] = []
    if codes is not None:
        given = scenes.check_codes(parse_codes(codes))
        begun, headings = [[]], []
    else:
        assert source is not None
        ids = source.heldout(rows, seed)
        given = scenes.encode(source.tokens(ids))
        begun, headings = [[frame] for frame in source.frames(ids)], ["has these codes"]
    drawn = scenes.draw(given.repeat_interleave(count, 0), seed, temperature=temperature)
    frames = scenes.render(drawn.tokens)
    shown = [begun[row] + list(frames[row * count : (row + 1) * count]) for row in range(len(given))]
    headings += ["drawn"] * count
    if source is not None:
        for row, nearest in zip(shown, source.nearest(given, NEAREST, seed), strict=True):
            row += list(nearest)
        headings += ["nearest by code"] * NEAREST
    path = save_png(out, sheet(headings, [(_label(row), frames) for row, frames in zip(given, shown, strict=True)]))
    return Sheet(path, [_passes(drawn.passes, scenes)])


def edit(
    scene: Path,
    data: Path | None,
    tokens: Path | None,
    out: Path,
    *,
    between: tuple[str | None, str | None],
    temperature: float,
    seed: int,
    device: str = "auto",
) -> Sheet:
    """Swap one code between two frames: each frame, what its codes bring back, and with each code of the other frame.

    All draws of a row have the same noise: what differs comes from the code.

    Args:
        scene: A trained scene model.
        data: A dataset; or
        tokens: a token store.
        out: A PNG.
        between: The two frames, as EPISODE:FRAME; None chooses among the held-out ones.
        temperature: Of the draws.
        seed: Of frames and draws.
        device: Where it runs.

    Raises:
        UsageError: Something does not fit; nothing was written.
    """
    scenes = Scenes.load(scene, device)
    if not scenes.num_codes_per_frame:
        raise UsageError(f"{scene} has no codes (scene.num_codes_per_frame 0): there are none to swap")
    source = Source(scenes, data, tokens)
    chosen = source.heldout(2, seed)
    ids = np.array(
        [parse_frame(text) if text else row.tolist() for text, row in zip(between, chosen[[0, -1]], strict=True)]
    )
    codes = scenes.encode(source.tokens(ids))
    frames, count = source.frames(ids), scenes.num_codes_per_frame
    rows, passes = [], []
    for own, other in ((0, 1), (1, 0)):
        swapped = codes[own].repeat(count + 1, 1)  # (n + 1, n), the first with its own codes alone
        swapped[torch.arange(1, count + 1), torch.arange(count)] = codes[other]
        drawn = [scenes.draw(row[None], seed, temperature=temperature) for row in swapped]
        brought = [scenes.render(one.tokens)[0] for one in drawn]
        passes += [one.passes for one in drawn]
        rows.append([frames[own], *brought])
    for row, nearest in zip(rows, source.nearest(codes, NEAREST, seed), strict=True):
        row += list(nearest)
    headings = ["frame", "its codes", *(f"code {number + 1} swapped" for number in range(count))]
    headings += ["nearest by code"] * NEAREST
    path = save_png(out, sheet(headings, [(_label(row), shown) for row, shown in zip(codes, rows, strict=True)]))
    names = [f"{number}:{frame}" for number, frame in ids.tolist()]
    lines = [f"frame {name}: codes {_label(row)}" for name, row in zip(names, codes, strict=True)]
    return Sheet(path, [*lines, _passes(torch.cat(passes), scenes)])


def parse_codes(text: str) -> Tensor:
    """Return codes (1, n) as ``--codes`` says them, 12,400,7."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise UsageError(f"--codes {text}: write the numbers of the codes of a frame, as in 12,400,7")
    return torch.tensor([int(part) for part in parts], dtype=torch.int64)[None]


def parse_frame(text: str) -> list[int]:
    """Return episode and frame as ``--first`` says them, 12:30."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise UsageError(f"frame {text}: write the numbers of episode and frame, as in 12:30")
    return [int(part) for part in parts]


def _unconditional(folder: Path, scenes: Scenes, device: str) -> Scenes:
    other = Scenes.load(folder, device)
    require_same(
        {"num_codes_per_frame": other.num_codes_per_frame, "tokenizer_hash": hash_module(other.tokenizer)},
        {"num_codes_per_frame": 0, "tokenizer_hash": hash_module(scenes.tokenizer)},
        (f"{folder} has", "a comparison needs"),
        "--without is no scene model to compare with",
        "train one on the same tokens with scene.num_codes_per_frame=0",
    )
    return other


def _label(codes: Tensor) -> str:
    return " ".join(str(code) for code in codes.tolist()) or "no codes"


def _measured(found: dict[str, Any], scenes: Scenes) -> list[str]:
    length = scenes.model.grid[0] * scenes.model.grid[1]
    lines = [
        f"{plural(found['frames'], 'held-out frame')}: {found['bits']:g} bits a frame in "
        f"{plural(scenes.num_codes_per_frame, 'code')}, {plural(length, 'token')} a frame"
    ]
    if scenes.num_codes_per_frame:
        entropies = ", ".join(f"{bits:.2f}" for bits in found["entropies"])
        most = np.log2(scenes.model.config.quantizer.num_codes)
        lines.append(
            f"entropy of each code: {entropies} of {most:g} bits; {found['distinct']} different frames by code"
        )
    alone = "the codes" if scenes.num_codes_per_frame else "its place"
    line = f"nats/token: {found['nats_per_token']:.4f}; given {alone} alone: {found['forecast']:.4f}"
    if scenes.num_codes_per_frame:
        line += f"; with another frame's codes: {found['other_codes']:.4f}"
    lines.append(line)
    return lines


def _compared(other: Scenes, tokens: Tensor, nats: float) -> str:
    base = float(other.nats(tokens, other.encode(tokens))[0].mean())
    return f"nats/token without codes: {base:.4f}; with them {100 * (1 - nats / base):.1f} % lower"


def _passes(passes: Tensor, scenes: Scenes) -> str:
    length, mean = scenes.model.grid[0] * scenes.model.grid[1], float(passes.double().mean())
    return f"{length} tokens drawn in {mean:.1f} passes, {100 * mean / length:.0f} % of the positions"
