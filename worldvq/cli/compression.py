"""``worldvq compress``, ``worldvq decompress`` and ``worldvq likelihood``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from worldvq.cli.options import DeviceOption
from worldvq.errors import plural

if TYPE_CHECKING:
    from worldvq.stages.compress import CompressReport

app = typer.Typer()

WorldOption = Annotated[Path, typer.Option(help="A trained world.")]


@app.command("compress")
def compress_command(
    world: WorldOption,
    tokens: Annotated[Path, typer.Option(help="Token store that the world's tokenizer made.")],
    out: Annotated[Path, typer.Option(help="The file; written when all is coded, over one that is there.")],
    episodes: Annotated[str, typer.Option(help="all, train, heldout, or numbers as in 9,19.")] = "all",
) -> None:
    """Entropy-code a token store with the dynamics' own probabilities, and say how small it gets.

    Nothing is lost: `worldvq decompress` with the same world, versions and kind of CPU brings the store back. It
    runs on one thread of the CPU.

    Example: worldvq compress --world runs/demo/world --tokens runs/demo/tokens --episodes heldout --out heldout.wvq
    """
    from worldvq.stages.compress import compress

    _print(compress(world, tokens, out, episodes))
    print(out)


@app.command("decompress")
def decompress_command(
    world: WorldOption,
    file: Annotated[Path, typer.Argument(help="What `worldvq compress` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the token store.")],
) -> None:
    """Bring back the token store that `worldvq compress` made smaller, after checking every episode's hash.

    Example: worldvq decompress --world runs/demo/world heldout.wvq --out runs/demo/heldout_tokens
    """
    from worldvq.stages.compress import decompress

    store = decompress(world, file, out)
    print(f"{out}: tokens of {plural(len(store), 'episode')}")


@app.command("likelihood")
def likelihood_command(
    world: Annotated[Path, typer.Option(help="A trained world, or a tokenizer's run folder: then without dynamics.")],
    data: Annotated[Path, typer.Option(help="Dataset; held-out frames are scored, training frames fit the scale.")],
    fit_on: Annotated[
        Path | None, typer.Option(help="Dataset whose training frames fit the scale instead, where DATA has none.")
    ] = None,
    prior: Annotated[
        Path | None, typer.Option(help="Image prior of the same tokenizer, for the tokens of single frames.")
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Held-out clips, or as many as there are.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the clips.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Bound how probable held-out frames are, in bits per dimension, beside lossless picture formats.

    The likelihood of a frame given its tokens is a discretised logistic around what the decoder says, whose scale is
    fitted on training frames. To that come the bits of the tokens.

    Example: worldvq likelihood --world runs/demo/world --data runs/demo/data
    """
    from worldvq.evaluation.likelihood import JPEG_XL, measure_likelihood
    from worldvq.models.loading import load_tokenizer
    from worldvq.nn.devices import resolve_device
    from worldvq.world.images import ImageModel
    from worldvq.world.model import WorldModel

    alone = (world / "tokenizer.json").is_file()
    model = load_tokenizer(world, resolve_device(device)) if alone else WorldModel.load(world, device)
    images = ImageModel.load(prior, device) if prior else None
    found = measure_likelihood(model, data, clips, seed, fit_on, images)
    scale = " ".join(f"{channel:.2f}" for channel in found.scale)
    table = Table("bits per dimension", "given tokens", "tokens", "in all", title=plural(found.num_frames, "frame"))
    for name, bits in found.priors.items():
        total = f"{found.reconstruction + bits:.3f}"
        table.add_row(f"this model; {name}", f"{found.reconstruction:.3f}", f"{bits:.3f}", total)
    for name, bits in found.lossless.items():
        table.add_row(name, "", "", f"{bits:.3f}")
    Console().print(table)
    print(f"PSNR {found.psnr:.2f} dB; scale of the logistic (red, green, blue) {scale} of 255")
    if JPEG_XL not in found.lossless:
        print(f"{JPEG_XL} needs pillow-jxl-plugin: pip install 'worldvq[jxl]'")


def _print(report: CompressReport) -> None:
    """Sizes beside what the model says they should be."""
    sizes, tokens, ideal = report.sizes, report.num_tokens, report.cross_entropy / 8
    title = f"{plural(report.num_episodes, 'episode')}, {plural(report.num_frames, 'frame')}"
    table = Table("", "bytes", "bits a token", "of the cross-entropy", title=f"{title}, {plural(tokens, 'token')}")
    rows = {"cross-entropy, first frames": report.first_bits / 8, "cross-entropy, all": ideal}
    rows |= {"tokens, coded": sizes.streams}
    rows |= {f"tokens, zstd of {layout}": size for layout, size in report.zstd.items()}
    rows |= {"actions": sizes.actions, "rewards": sizes.rewards, "descriptions": sizes.descriptions}
    rows |= {"the whole file": sizes.total}
    for name, size in rows.items():
        table.add_row(name, f"{size:,.0f}", f"{8 * size / tokens:.3f}", f"{100 * size / ideal:.2f} %")
    Console().print(table)
    print(
        f"tokens: {100 * (sizes.streams / ideal - 1):+.2f} % against their cross-entropy, "
        f"{100 * (1 - sizes.streams / min(report.zstd.values())):.1f} % smaller than the best of zstd; "
        f"{report.num_tokens / report.seconds:,.0f} tokens/s"
    )
