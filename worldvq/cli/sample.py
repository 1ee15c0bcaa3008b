"""``worldvq sample``: pictures that an image prior draws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worldvq.cli.options import DeviceOption, ScaleOption
from worldvq.errors import UsageError

app = typer.Typer()


@app.command("sample")
def sample_command(
    prior: Annotated[Path, typer.Option(help="A trained image prior.")],
    out: Annotated[Path, typer.Option(help="PNG of the sheet: a row a class.")],
    label: Annotated[
        list[str] | None, typer.Option(help="Class to be drawn; may be given more than once. Default: all.")
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, max=1024, help="Samples of each class.")] = 8,
    seed: Annotated[int, typer.Option(help="Same seed, same samples.")] = 0,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Dataset that the prior was trained on; may be given more than once. Beside each sample stands the "
            "training frame nearest to it in pixels."
        ),
    ] = None,
    fd: Annotated[
        int,
        typer.Option(
            min=0,
            help="With --data, compare so many samples with as many held-out frames (FD-EffLite0); 0 leaves it out.",
        ),
    ] = 0,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most probable token.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among so many most probable tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw among the most probable tokens that have this probability together, above 0 to 1."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="predictive, sequential or auto, which takes the faster: all draw the same tokens.")
    ] = "predictive",
    scale: ScaleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw a sheet of single frames, with the nearest training frames beside them if you like.

    Example: worldvq sample --prior runs/maze/prior --out samples.png --data runs/maze/data --fd 500
    """
    if fd and not data:
        raise UsageError(f"--fd {fd} compares samples with held-out frames: give --data")
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: a sheet is a PNG, give a name that ends in .png")
    from worldvq.stages.sample import sample

    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "method": method}
    report = sample(
        prior,
        out,
        labels=label or [],
        per_class=per_class,
        seed=seed,
        data=data or [],
        num_fd=fd,
        sampling=settings,
        device=device,
        scale=scale,
    )
    print(out)
    passes = report.passes
    print(f"{passes.mean():.1f} passes a grid of {report.positions} tokens ({method}), at most {passes.max()}")
    if report.nearest:
        each = ", ".join(f"{name} {value:.1f}" for name, value in report.nearest.items())
        print(f"PSNR to the nearest training frame, median in dB: {each}")
    if report.fd:
        each = ", ".join(f"{name} {value:.2f}" for name, value in report.fd.items())
        print(f"FD-EffLite0 to {report.fd_frames} held-out frames, of as many: {each}")
