"""``worldvq act``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from worldvq.cli.options import DeviceOption, TrustOption
from worldvq.errors import plural

app = typer.Typer()


@app.command("act")
def act_command(
    world: Annotated[Path, typer.Option(help="A trained world.")],
    data: Annotated[Path, typer.Option(help="Its dataset, which says what environment is played.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json and act.mp4.")],
    episodes: Annotated[
        int, typer.Option(min=2, help="Episodes to plan, and as many at random on the same seeds.")
    ] = 20,
    planner: Annotated[
        str, typer.Option(help="shooting (the best of random plans) or cem (the cross-entropy method).")
    ] = "shooting",
    horizon: Annotated[int, typer.Option(min=1, help="Steps of a plan.")] = 8,
    every: Annotated[int, typer.Option(min=1, help="Steps of a plan that are taken before the next is made.")] = 2,
    candidates: Annotated[int, typer.Option(min=1, help="Plans that are dreamt for each.")] = 32,
    prior: Annotated[
        bool, typer.Option("--prior", help="Dream plans with the prior, not the forecast head: about half as fast.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the episodes and of the plans.")] = 0,
    trust: TrustOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Act in the real environment by planning in dreams of it, beside a policy that acts at random.

    Example: worldvq act --world runs/doom/world --data runs/doom/data --out runs/doom/act
    """
    from worldvq.stages.act import act

    report = act(
        world,
        data,
        out,
        episodes=episodes,
        planner=planner,
        horizon=horizon,
        every=every,
        candidates=candidates,
        prior=prior,
        seed=seed,
        trust=trust,
        device=device,
    )
    _print_report(report)
    print(f"{out / 'act.mp4'}\n{out / 'report.json'}")


def _print_report(report: dict[str, Any]) -> None:
    from worldvq.evaluation.decisions import verdict

    print(f"mean return of {plural(report['episodes'], 'episode')}, 95 % interval:")
    for name in ("planner", "random"):
        low, high = report[name]["ci95"]
        print(f"{name:8} {report[name]['mean']:.2f} ({low:.2f} to {high:.2f})")
    print(verdict("planning", "acting at random", report["difference"]))
