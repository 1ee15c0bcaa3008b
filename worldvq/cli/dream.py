"""``worldvq imagine``, ``worldvq evaluate``, ``worldvq compare`` and ``worldvq demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from worldvq.cli.options import (
    ConfigOption,
    DeviceOption,
    Overrides,
    ScaleOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TrustOption,
)
from worldvq.errors import UsageError, plural

app = typer.Typer()


@app.command("imagine")
def imagine_command(
    world: Annotated[Path, typer.Option(help="A trained world.")],
    data: Annotated[Path, typer.Option(help="Dataset whose held-out episodes give the contexts.")],
    out: Annotated[Path, typer.Option(help="rollout.mp4, .gif or .webm; a PNG strip is written beside it.")] = Path(
        "rollout.mp4"
    ),
    context: Annotated[int, typer.Option(min=1, help="Real frames that the model is given at the start.")] = 6,
    frames: Annotated[int, typer.Option(min=1, help="Frames to imagine after them.")] = 10,
    actions: Annotated[
        str,
        typer.Option(
            help="recorded, paper (all forward / all right), an action's name or number, or a .npy/.json file."
        ),
    ] = "recorded",
    clips: Annotated[
        int,
        typer.Option(min=1, help="Contexts, spread from those in which much changes to those in which little does."),
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the contexts and of the sampling.")] = 0,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Frames a second of the video. Default: 6, and with sound as many as were recorded."
        ),
    ] = None,
    scale: ScaleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Imagine what follows held-out contexts and render it beside what really happened.

    Example: worldvq imagine --world runs/demo/world --data runs/demo/data --actions forward --frames 30 --out walk.mp4
    """
    from worldvq.stages.imagine import imagine

    for path in imagine(
        world,
        data,
        out,
        context,
        frames,
        actions,
        clips,
        seed,
        {"temperature": temperature, "top_k": top_k, "top_p": top_p},
        device,
        fps,
        scale,
    ):
        print(path)


@app.command("evaluate")
def evaluate_command(
    world: Annotated[Path, typer.Option(help="A trained world.")],
    data: Annotated[Path, typer.Option(help="Dataset; only its held-out episodes are used.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json, plots, videos and index.html.")],
    context: Annotated[int, typer.Option(min=1, help="Real frames at the start of a clip.")] = 6,
    horizon: Annotated[int, typer.Option(min=1, help="Imagined frames a clip.")] = 10,
    clips: Annotated[int, typer.Option(min=1, help="Held-out clips, or as many as there are.")] = 256,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Clips at a time: memory and speed; less where memory is short.")
    ] = 64,
    seed: Annotated[int, typer.Option(help="Of the clips and of the sampling.")] = 0,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    counterfactual: Annotated[
        bool,
        typer.Option(
            "--counterfactual",
            help="Also fork held-out situations, hold every action for real and in the dream, compare; where the "
            "environment cannot be played, --inverse instead.",
        ),
    ] = False,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Also walk there and back, and see whether the dream comes back to what it was shown."
        ),
    ] = False,
    inverse: Annotated[
        bool,
        typer.Option(
            "--inverse",
            help="Also let a small network learn from real frames what was done, and tell it from imagined ones.",
        ),
    ] = False,
    objects: Annotated[
        bool,
        typer.Option(
            "--objects", help="Also ask the environment which objects are in view, and look whether they are kept."
        ),
    ] = False,
    decisions: Annotated[
        bool,
        typer.Option(
            "--decisions",
            help="Also let the dream pick among plans in held-out situations, and see what its picks really pay.",
        ),
    ] = False,
    situations: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Held-out situations of --counterfactual, --memory, --objects and --decisions. Default: 48, and 100 "
            "for --decisions.",
        ),
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="Also dream 300 frames, and see what becomes of them.")] = False,
    dreams: Annotated[int, typer.Option(min=2, help="Dreams of --long.")] = 16,
    trust: TrustOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure imagined frames on held-out episodes, beside the yardsticks that make the numbers mean something.

    Run again to continue what was interrupted. Under `accelerate launch` processes share the work.

    Example: worldvq evaluate --world runs/demo/world --data runs/demo/data --out runs/demo/report
    """
    from worldvq.config.yaml_loading import build
    from worldvq.data.sharing import is_first_process
    from worldvq.evaluation.config import EvaluateConfig
    from worldvq.evaluation.protocol import evaluate
    from worldvq.nn.devices import local_device
    from worldvq.world.model import WorldModel

    loaded = WorldModel.load(world, local_device(device))
    settings: dict[str, Any] = {"context": context, "horizon": horizon, "clips": clips, "batch_size": batch_size}
    settings["seed"] = seed
    settings["sampling"] = loaded.sampling_with({"temperature": temperature, "top_k": top_k, "top_p": top_p})
    protocol = build(EvaluateConfig, settings, "evaluate")
    more: dict[str, Any] = {}
    if (counterfactual or memory or inverse or objects or decisions or long) and is_first_process():
        from worldvq.stages.interventions import dream_long, intervene

        tests = {"branches": counterfactual, "returns": memory, "inverse": inverse, "objects": objects}
        tests["decide"] = decisions
        if any(tests.values()):
            more |= intervene(loaded, data, out, protocol, **tests, situations=situations, trust=trust)
        if long:
            more |= dream_long(loaded, data, out, protocol, dreams)
    report = evaluate(loaded, data, out, protocol, more=more)
    if is_first_process():
        _print_report(report)
        print(f"{out / 'report.json'}\n{out / 'index.html'}")


@app.command("compare")
def compare_command(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT REPORT...", help="Folders of `worldvq evaluate`.")],
    out: Annotated[Path, typer.Option(help="Folder for compare.json, compare.mp4 and index.html.")],
) -> None:
    """Set evaluations of the same clips side by side: each against the first, with paired intervals.

    Example: worldvq compare runs/a/report runs/b/report --out runs/a_b
    """
    from worldvq.evaluation.comparison import compare_reports
    from worldvq.evaluation.comparison_page import COMPARISON, config_lines, legend, measure_rows, notes

    comparison = compare_reports(reports, out)
    header, rows = measure_rows(comparison)
    table = Table(*header, title=f"the same {plural(comparison['num_clips'], 'held-out clip')}")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    config = config_lines(comparison) or ["nothing differs in config: the same weights, sampled the same way"]
    print("\n".join([*legend(comparison), *config, *notes(comparison)]))
    for name in ("compare.mp4", "index.html", COMPARISON):
        print(out / name)


@app.command("demo")
def demo_command(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Everything goes below this folder; run again to continue.")] = Path(
        "runs/demo"
    ),
    config: ConfigOption = "maze",
    minutes: Annotated[
        int | None, typer.Option(help="Take the best preset for so many minutes of two CPU cores, instead of --config.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Record, train, evaluate and render: the whole road, about ten minutes on two CPU cores.

    With --minutes 60 the same maze gets a larger model and more data, in a folder of its own (--out). With --config
    doom it does the same for a real world (an hour and a half). Run again to continue.

    Example: worldvq demo --config maze --out runs/mine record.frames=20000
    """
    from worldvq.stages.experiment import load_config, preset
    from worldvq.stages.road import run_all

    if minutes is not None and config != "maze":
        raise UsageError(f"--minutes {minutes} and --config {config}: give one of them")
    settings = load_config(config if minutes is None else preset(minutes), overrides or [])
    report = run_all(settings, out, lambda text: print(f"== {text}", flush=True), device)
    _print_report(report)
    table = Table("stage", "seconds", title="time")
    for name, seconds in report["stage_seconds"].items():
        table.add_row(name, f"{seconds:.0f}")
    Console().print(table)
    for name in ("data", "tokenizer", "dynamics", "world", "report/report.json", "report/index.html", "rollout.mp4"):
        print(out / name)


def _print_report(report: dict[str, Any]) -> None:
    """A short table: means over the horizon."""
    from worldvq.evaluation import interventions_page, lasting_page

    title = (
        f"{plural(report['num_clips'], 'held-out clip')}, context {report['context']}, horizons 1-{report['horizon']}"
    )
    table = Table("frames", "PSNR, dB", "SSIM", title=title)
    for name in ("reconstruction", "imagined", "copy_last", "shuffled_actions"):
        means = [sum(report[key][name]["mean"]) / report["horizon"] for key in ("psnr", "ssim")]
        table.add_row(name.replace("_", " "), f"{means[0]:.2f}", f"{means[1]:.3f}")
    Console().print(table)
    for value, meaning in [*interventions_page.cards(report), *lasting_page.cards(report)]:
        print(f"{value} {meaning}")
    for line in interventions_page.verdicts(report):
        print(line)
    print(
        f"{report['nats_per_token']:.3f} nats/token, {report['bits_per_frame']:.0f} bits/frame, "
        f"codebook perplexity {report['perplexity']:.0f}"
    )
