"""The command line: verbs that parse, call and print."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from worldvq import __version__
from worldvq.errors import RunError, StoppedError, UsageError, WorldVQError
from worldvq.preemption import StopAtOnce

HELP = """Train a video world model of a 3D environment, then dream in it.

The road: record -> train tokenizer -> tokenize -> train dynamics -> imagine / evaluate.
`worldvq demo` walks it all in about ten minutes on two CPU cores.
"""
INTERRUPTED = 130
app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
train_app = typer.Typer(help="Train a tokenizer, then the dynamics on its tokens.", no_args_is_help=True)
data_app = typer.Typer(help="Look at a dataset, check it, draw it.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", help="A YAML file, or a shipped one: maze, doom, dmlab, tiny.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="For instance tokenizer.width=64")
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0, help="0 takes the most probable token. Default: as the world's config says.")
]
TrackOption = Annotated[
    list[str] | None, typer.Option(help="Also log to tensorboard, wandb or trackio; may be given more than once.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]


def _runs(config: str) -> Path:
    """Folder of an experiment, unless said otherwise."""
    return Path("runs") / Path(config).stem


def _layout(config: str) -> Any:
    """Folders of an experiment: ``runs/NAME`` unless said otherwise."""
    from worldvq.pipeline import Layout

    return Layout(_runs(config))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"worldvq {__version__}")
        raise typer.Exit


@app.command("record")
def record_command(
    out: Annotated[Path, typer.Option(help="Folder of the dataset; an interrupted one is continued.")],
    env: Annotated[
        str | None,
        typer.Argument(
            help="A Gymnasium id, for instance worldvq/Maze-v0 or VizdoomMyWayHome-v1; left out, as OUT says."
        ),
    ] = None,
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="Take env and record from this YAML.")] = None,
    episodes: Annotated[int | None, typer.Option(help="Stop after this many episodes.")] = None,
    frames: Annotated[int | None, typer.Option(help="Stop at the first episode that reaches this many frames.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that play side by side. [default: 2]")] = None,
    policy: Annotated[
        str | None, typer.Option(help="random, held (random, each action kept a while), module:function or an SB3 zip.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Side of the stored frames, 64 or 84x84. [default: 64]")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same episodes, with any number of workers.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="i/N: record only every N-th episode, from the i-th on, beside others in the same OUT; "
            "`worldvq data merge OUT` ends it. [default: as RANK/WORLD_SIZE or a SLURM array say, else all]"
        ),
    ] = None,
    ray: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Record on the Ray cluster of RAY_ADDRESS, or one on this machine: this many actors, each with "
            "--workers processes. OUT must be on a file system that all machines share.",
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the environment and the policy that the dataset in OUT names.")
    ] = False,
) -> None:
    """Play an environment and store frames, actions and rewards.

    Example: worldvq record VizdoomMyWayHome-v1 --frames 50000 --out runs/doom/data env.frame_skip=4
    """
    from worldvq.lock import check_unlocked
    from worldvq.shard import Shard

    if episodes is not None and frames is not None:
        raise UsageError("give --episodes or --frames, not both")
    if ray and shard:
        raise UsageError("give --ray or --shard, not both: every actor is a shard of its own")
    part, source = (Shard.parse(shard), "--shard") if shard else (Shard(), "") if ray else Shard.from_environment()
    check_unlocked(out, shared=not part.is_whole)  # before the seconds that the imports below take
    from worldvq.config import ExperimentConfig, build, load_config
    from worldvq.config import override as apply
    from worldvq.data.record import record

    if env and "=" in env:  # no id: the first of the overrides
        env, overrides = None, [env, *(overrides or [])]
    base = load_config(config) if config else ExperimentConfig()
    if env is None:
        base = _as_recorded(base, out, trust)
        env = base.env.id
    elif not config or base.env.id != env:
        base = base.model_copy(update={"env": type(base.env)(size=base.env.size, frame_skip=base.env.frame_skip)})
    changes: dict[str, Any] = {"env.id": env}
    given = {"workers": workers, "policy": policy, "seed": seed}
    if episodes is not None or frames is not None:
        changes |= {"record.episodes": episodes, "record.frames": frames}
    changes |= {f"record.{key}": value for key, value in given.items() if value is not None}
    full = apply(base, changes, overrides or [])
    sides = {} if size is None else {"size": _parse_size(size)}  # of the frames alone: there is no tokenizer yet
    if not part.is_whole:
        print(f"shard {part} of {out} (from {source})", flush=True)
    settings = build(type(full.env), full.env.model_dump() | sides, "--size")
    if ray:
        from worldvq.data.ray import record_on_ray

        store = record_on_ray(settings, full.record, out, ray)
    else:
        store = record(settings, full.record, out, shard=part)
    print(f"{out}: {len(store.entries)} episodes, {sum(e.num_frames for e in store.entries)} frames")
    store.close()
    if not part.is_whole:
        print(f"when all {part.count} shards are done: worldvq data merge {out}")


def _as_recorded(base: Any, out: Path, trust: bool) -> Any:
    """Return the config with env and record as the dataset in ``out`` has them, if the user trusts it."""
    from worldvq.data.record import settings_of

    env, recorded = settings_of(out)
    code = f"the environment '{env.id}'" + (f" with {env.kwargs}" if env.kwargs else "")
    code += f" and the policy '{recorded.policy}'"
    if not trust:
        raise UsageError(f"{out} names {code}: running them runs code; add --trust to do so, or name the environment")
    print(f"as in {out}: {code}", flush=True)
    kept = {name: getattr(recorded, name) for name in ("policy", "hold", "seed", "heldout_every", "compression")}
    same = {"env": env, "record": base.record.model_copy(update=kept)}
    tokenizer = base.tokenizer.model_copy(update={"frame_size": env.size})
    return base.model_copy(update={**same, "tokenizer": tokenizer})


def _parse_size(text: str) -> list[int]:
    parts = text.lower().split("x")
    if not all(part.isdecimal() for part in parts) or len(parts) > 2:
        raise UsageError(f"--size {text}: write 64, or height x width as in 84x84")
    sides = [int(parts[0]), int(parts[-1])]
    if any(side % 4 for side in sides):
        raise UsageError(f"--size {text}: a tokenizer takes sides that divide by 4, for instance 64 or 84x84")
    return sides


@train_app.command("tokenizer")
def train_tokenizer_command(
    overrides: Overrides = None,
    config: ConfigOption = "maze",
    data: Annotated[Path | None, typer.Option(help="Dataset. [default: runs/CONFIG/data]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/CONFIG/tokenizer]")] = None,
    track: TrackOption = None,
) -> None:
    """Train the VQ-VAE that turns frames into tokens; run again to resume. Works under `accelerate launch`."""
    from worldvq.lock import check_unlocked

    folder: Path = out or _runs(config) / "tokenizer"
    check_unlocked(folder, shared=True)  # by every process at once; before the seconds that the imports below take
    from worldvq.config import load_config
    from worldvq.pipeline import train_tokenizer

    train_tokenizer(load_config(config, overrides or []), data or _layout(config).data, folder, track or [])
    print(f"tokenizer: {folder}")


@train_app.command("dynamics")
def train_dynamics_command(
    overrides: Overrides = None,
    config: ConfigOption = "maze",
    tokens: Annotated[Path | None, typer.Option(help="Token store. [default: runs/CONFIG/tokens]")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Trained tokenizer. [default: runs/CONFIG/tokenizer]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/CONFIG/dynamics]")] = None,
    world: Annotated[Path | None, typer.Option(help="Where the world goes. [default: OUT/../world]")] = None,
    track: TrackOption = None,
) -> None:
    """Train the action-conditioned dynamics on tokens and join it with its tokenizer into a world."""
    from worldvq.lock import check_unlocked

    folder: Path = out or _runs(config) / "dynamics"
    check_unlocked(folder, shared=True)  # by every process at once; before the seconds that the imports below take
    from worldvq.config import load_config
    from worldvq.pipeline import train_dynamics

    where = _layout(config)
    world = world or folder.parent / "world"
    settings = load_config(config, overrides or [])
    train_dynamics(settings, tokens or where.tokens, tokenizer or where.tokenizer, folder, world, track or [])
    print(f"dynamics: {folder}\nworld: {world}")


@app.command("tokenize")
def tokenize_command(
    tokenizer: Annotated[Path, typer.Option(help="Run folder of a trained tokenizer.")],
    data: Annotated[Path, typer.Option(help="Dataset.")],
    out: Annotated[Path, typer.Option(help="Folder of the token store.")],
    device: DeviceOption = "auto",
) -> None:
    """Turn every frame of a dataset into tokens, once, so that the dynamics trains on them alone.

    Run again to continue what was interrupted. Under `accelerate launch` processes share the work.
    """
    from worldvq.pipeline import tokenize
    from worldvq.processes import is_first_process

    store = tokenize(tokenizer, data, out, device)
    if is_first_process():
        print(f"{out}: tokens of {len(store.entries)} episodes")


@app.command("imagine")
def imagine_command(
    world: Annotated[Path, typer.Option(help="A trained world.")],
    data: Annotated[Path, typer.Option(help="Dataset whose held-out episodes give the contexts.")],
    out: Annotated[Path, typer.Option(help="rollout.mp4, .gif or .webm; a PNG strip is written beside it.")] = Path(
        "rollout.mp4"
    ),
    context: Annotated[int, typer.Option(min=1, help="Real frames at the start.")] = 6,
    frames: Annotated[int, typer.Option(min=1, help="Imagined frames.")] = 10,
    actions: Annotated[
        str,
        typer.Option(
            help="recorded, paper (all forward / all right), an action's name or number, or a .npy/.json file."
        ),
    ] = "recorded",
    clips: Annotated[int, typer.Option(min=1, help="Contexts, one row each.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the contexts and of the sampling.")] = 0,
    temperature: TemperatureOption = None,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    device: DeviceOption = "auto",
) -> None:
    """Imagine what follows held-out contexts and render it beside what really happened."""
    from worldvq.imagine import imagine

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
    ):
        print(path)


@app.command("evaluate")
def evaluate_command(
    world: Annotated[Path, typer.Option(help="A trained world.")],
    data: Annotated[Path, typer.Option(help="Dataset; only its held-out episodes are used.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json, plots, videos and index.html.")],
    context: Annotated[int, typer.Option(min=1)] = 6,
    horizon: Annotated[int, typer.Option(min=1, help="Imagined frames a clip.")] = 10,
    clips: Annotated[int, typer.Option(min=1)] = 256,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    seed: int = 0,
    temperature: TemperatureOption = None,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure imagined frames on held-out episodes, beside the yardsticks that make the numbers mean something.

    Run again to continue what was interrupted. Under `accelerate launch` processes share the work.
    """
    from worldvq.config import EvaluateConfig, build
    from worldvq.evaluate import evaluate
    from worldvq.models.world import WorldModel
    from worldvq.processes import is_first_process, local_device

    loaded = WorldModel.load(world, local_device(device))
    settings: dict[str, Any] = {"context": context, "horizon": horizon, "clips": clips, "batch_size": batch_size}
    settings["seed"] = seed
    settings["sampling"] = loaded.sampling_with({"temperature": temperature, "top_k": top_k, "top_p": top_p})
    report = evaluate(loaded, data, out, build(EvaluateConfig, settings, "evaluate"))
    if is_first_process():
        _print_report(report)
        print(f"{out / 'report.json'}\n{out / 'index.html'}")


@app.command("demo")
def demo_command(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Everything goes below this folder; run again to continue.")] = Path(
        "runs/demo"
    ),
    config: ConfigOption = "maze",
) -> None:
    """Record, train, evaluate and render: the whole road, about ten minutes on two CPU cores.

    With --config doom it does the same for a real world (an hour and a half).
    """
    from worldvq.config import load_config
    from worldvq.pipeline import run_all

    settings = load_config(config, overrides or [])
    report = run_all(settings, out, lambda text: print(f"== {text}", flush=True))
    _print_report(report)
    table = Table("stage", "seconds", title="time")
    for name, seconds in report["stage_seconds"].items():
        table.add_row(name, f"{seconds:.0f}")
    Console().print(table)
    for name in ("data", "tokenizer", "dynamics", "world", "report/report.json", "report/index.html", "rollout.mp4"):
        print(out / name)


def _print_report(report: dict[str, Any]) -> None:
    """A short table: means over the horizon."""
    title = f"{report['num_clips']} held-out clips, context {report['context']}, horizons 1-{report['horizon']}"
    table = Table("frames", "PSNR, dB", "SSIM", title=title)
    for name in ("reconstruction", "imagined", "copy_last", "shuffled_actions"):
        means = [sum(report[key][name]["mean"]) / report["horizon"] for key in ("psnr", "ssim")]
        table.add_row(name.replace("_", " "), f"{means[0]:.2f}", f"{means[1]:.3f}")
    Console().print(table)
    print(
        f"{report['nats_per_token']:.3f} nats/token, {report['bits_per_frame']:.0f} bits/frame, "
        f"codebook perplexity {report['perplexity']:.0f}"
    )


@data_app.command("info")
def info_command(data: Annotated[Path, typer.Argument(help="Folder of a dataset.")]) -> None:
    """Print what a dataset holds."""
    from worldvq.data.inspect import info

    Console().print(info(data))


@data_app.command("verify")
def verify_command(data: Annotated[Path, typer.Argument(help="Folder of a dataset or token store.")]) -> None:
    """Hash every file against the index; names what is broken."""
    from worldvq.data.inspect import open_store

    with open_store(data) as store:
        problems = store.verify()
    for problem in problems:
        print(problem)
    if problems:
        raise RunError(f"{data}: {len(problems)} of {len(store.entries)} episodes are broken")
    print(f"{data}: {len(store.entries)} episodes, all as committed")


@data_app.command("merge")
def merge_command(
    data: Annotated[Path, typer.Argument(help="Folder with the shards of a dataset or token store.")],
) -> None:
    """List in one index what shards have recorded; no episode is read or moved. Shards may be continued afterwards."""
    from worldvq.lock import check_unlocked

    check_unlocked(data)
    from worldvq.data.inspect import open_store
    from worldvq.data.shards import merge_shards

    count = merge_shards(data)
    with open_store(data) as store:
        print(f"{data}: {count} shards merged, {len(store)} episodes, {store.num_frames} frames")


@data_app.command("preview")
def preview_command(
    data: Annotated[Path, typer.Argument(help="Folder of a dataset.")],
    out: Annotated[Path | None, typer.Option(help="Where the pictures go. [default: DATA-preview]")] = None,
) -> None:
    """Draw a contact sheet (PNG) and a video of a few episodes."""
    from worldvq.data.inspect import preview

    for path in preview(data, out or data.with_name(data.name + "-preview")):
        print(path)


def _run(arguments: list[str]) -> int:
    try:
        code = app(arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer has swallowed the KeyboardInterrupt
            raise KeyboardInterrupt
    except StoppedError as stop:
        print(f"worldvq: {stop}", file=sys.stderr)
        return stop.exit_code
    except WorldVQError as error:
        print(f"worldvq: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("worldvq: interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        if _is_click_usage(error):
            message = " ".join(error.format_message().splitlines())  # type: ignore[attr-defined]
            if message:  # without a command typer has printed the help instead
                print(f"worldvq: error: {message}", file=sys.stderr)
            return 2
        print(
            f"worldvq: error: {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)",
            file=sys.stderr,
        )
        return 1
    return 0


def _run_in_the_open(arguments: list[str]) -> int:
    """As :func:`_run`, but errors keep their traceback."""
    try:
        app(arguments)
    except StoppedError as stop:
        traceback.print_exc()
        return stop.exit_code
    return 0


def _is_click_usage(error: Exception) -> bool:
    """Typer carries its own click or the installed one, depending on its version: both errors look like this."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def main(arguments: list[str] | None = None) -> None:
    """Entry point. ``--debug`` anywhere shows the traceback of an error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    os.environ.setdefault("ACCELERATE_LOG_LEVEL", "error")
    runner = _run_in_the_open if debug else _run
    with StopAtOnce():
        sys.exit(runner(arguments))


if __name__ == "__main__":
    main()
