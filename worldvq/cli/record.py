"""``worldvq record``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from worldvq.cli.options import Overrides, PortOption, given, parse_size
from worldvq.cli.play import require_play
from worldvq.errors import UsageError, plural

app = typer.Typer()


@app.command("record")
def record_command(
    out: Annotated[Path, typer.Option(help="Folder of the dataset; an interrupted one is continued.")],
    env: Annotated[
        str | None,
        typer.Argument(
            help="A Gymnasium id, for instance worldvq/Maze-v0, VizdoomMyWayHome-v1, package:Id or ./file.py:Id; left "
            "out, as the config or else OUT says."
        ),
    ] = None,
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="Take env and record from this YAML.")] = None,
    episodes: Annotated[int | None, typer.Option(help="Stop after this many episodes.")] = None,
    frames: Annotated[int | None, typer.Option(help="Stop at the first episode that reaches this many frames.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that play side by side. Default: 2.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="retrace (random, each action kept a while, as long as frames change, half of it undone; the "
            "default), held (nothing undone), random, human (you, in a page), module:function, ./file.py:function or "
            "an SB3 zip."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Side of the stored frames, or height x width: 64, 48x64. Default: 64.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same episodes, with any number of workers.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="i/N: record only every N-th episode, from the i-th on, beside others in the same OUT; "
            "`worldvq data merge OUT` ends it. Default: as RANK/WORLD_SIZE or a SLURM array say, else all."
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
    port: PortOption = 7860,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the environment and the policy that the dataset in OUT names.")
    ] = False,
) -> None:
    """Play an environment and store frames, actions and rewards.

    Example: worldvq record VizdoomMyWayHome-v1 --frames 50000 --out runs/doom/data env.frame_skip=4
    """
    from worldvq.data.shard import Shard
    from worldvq.files.lock import check_unlocked

    if episodes is not None and frames is not None:
        raise UsageError("give --episodes or --frames, not both")
    if ray and shard:
        raise UsageError("give --ray or --shard, not both: every actor is a shard of its own")
    part, source = (Shard.parse(shard), "--shard") if shard else (Shard(), "") if ray else Shard.from_environment()
    check_unlocked(out, shared=not part.is_whole)  # before the seconds that the imports below take
    from worldvq.config.code import search_last
    from worldvq.recording.policies import HUMAN
    from worldvq.stages.experiment import override as apply
    from worldvq.stages.record import record, record_on_ray

    search_last(Path.cwd())  # environments, wrappers and policies of one's own; `python -m` does it, a script does not
    base, env, overrides = _begin(env, overrides or [], config, out, trust)
    changes: dict[str, Any] = {"env.id": env}
    options = {"record.workers": workers, "record.policy": policy, "record.seed": seed, "env.size": size}
    changes |= given(options | {"record.episodes": episodes, "record.frames": frames}, overrides)
    if size:
        changes["env.size"] = parse_size(size)
    if episodes is not None or frames is not None:
        changes |= {"record.episodes": episodes, "record.frames": frames}
    full = apply(base, changes, overrides)
    if not part.is_whole:
        print(f"shard {part} of {out} (from {source})", flush=True)
    if full.record.policy == HUMAN:
        if ray or not part.is_whole:
            raise UsageError("--policy human plays on this machine alone: leave --ray and --shard out")
        require_play()
        from worldvq.stages.play import record_by_hand

        return record_by_hand(full.env, full.record, out, port)
    args = full.env, full.record, out
    store = record_on_ray(*args, ray) if ray else record(*args, shard=part)
    print(f"{out}: {plural(len(store), 'episode')}, {plural(store.num_frames, 'frame')}")
    store.close()
    if not part.is_whole:
        print(f"when all {part.count} shards are done: worldvq data merge {out}")


def _begin(
    env: str | None, overrides: list[str], config: str | None, out: Path, trust: bool
) -> tuple[Any, str, list[str]]:
    """Find out what is to be played.

    Returns:
        The config without options and overrides, the id of the environment, and the overrides.
    """
    from worldvq.models.config import TokenizerConfig
    from worldvq.stages.experiment import ExperimentConfig, load_config

    if env and "=" in env:  # no id: the first of the overrides
        env, overrides = None, [env, *overrides]
    base = load_config(config) if config else ExperimentConfig()
    base = base.model_copy(update={"tokenizer": TokenizerConfig()})  # nothing is tokenized yet: any size will do
    for text in overrides:
        env = text.removeprefix("env.id=") if text.startswith("env.id=") else env
    if env is None and "id" not in base.env.model_fields_set:
        base = _as_recorded(base, out, trust)
    env = env or str(base.env.id)
    if base.env.id == env or "id" not in base.env.model_fields_set:
        return base, env, overrides
    own = {"kwargs", "observation_key", "action_names", "crop"}  # what another environment need not understand
    if left := sorted(own & base.env.model_fields_set):
        print(f"{config}: {', '.join(f'env.{key}' for key in left)} left out, of '{base.env.id}' alone", flush=True)
    kept = {key: getattr(base.env, key) for key in base.env.model_fields_set - own}
    return base.model_copy(update={"env": type(base.env)(**kept)}), env, overrides


def _as_recorded(base: Any, out: Path, trust: bool) -> Any:
    """Return the config with env and record as the dataset in ``out`` has them, if the user trusts it."""
    from worldvq.recording.record import settings_of

    env, recorded = settings_of(out)
    code = f"the environment '{env.id}'" + (f" with {env.kwargs}" if env.kwargs else "")
    code += f" and the policy '{recorded.policy}'"
    if not trust:
        raise UsageError(f"{out} names {code}: running them runs code; add --trust to do so, or name the environment")
    print(f"as in {out}: {code}", flush=True)
    kept = {
        name: getattr(recorded, name) for name in ("policy", "hold", "undo", "seed", "heldout_every", "compression")
    }
    return base.model_copy(update={"env": env, "record": base.record.model_copy(update=kept)})
