"""A run folder belongs to one config and one set of inputs; what it was made from stands in it and is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldvq.config.yaml_loading import dump_yaml, read_yaml
from worldvq.errors import UsageError
from worldvq.files.atomic import write_atomic
from worldvq.files.differences import differences, join, require_same
from worldvq.files.reading import read_sealed, seal
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.config import FREE

INPUTS = "inputs.json"
"""What a run folder was fed with."""
_RUNS = ("that run had", "this one has")


def begin_run(
    out: Path, what: str, config: dict[str, Any], inputs: dict[str, Any], defaults: dict[str, Any] | None = None
) -> None:
    """Write what decides a run, or check that the run being continued has the same.

    The settings in :data:`~worldvq.training.config.FREE` may differ: the run goes on with the new ones, and says so.

    Args:
        out: The run folder.
        what: What is trained, for messages: ``tokenizer``, ``dynamics``.
        config: The sections that decide the run, as JSON values; they become ``config.yaml``.
        inputs: What the run is fed with, as JSON values; becomes ``inputs.json``. ``start`` is the hash of the weights
            that it starts from; None is every start, once there is a checkpoint.
        defaults: The sections where nothing is given: what a run was trained with whose version did not know a key yet.

    Raises:
        UsageError: ``out`` holds another run, names everything that differs; or it has more steps than are asked for.
            Nothing was written.
        CorruptFileError: ``inputs.json`` is damaged.
    """
    steps = Checkpoints(out / "checkpoints", keep=2).steps()
    news = _compare_configs(out, what, config, defaults or {}, steps)
    path = out / INPUTS
    if path.exists():  # runs from before it was written have none
        there = read_sealed(path)
        if steps and inputs.get("start") is None:
            inputs = {**inputs, "start": there.get("start")}
        here = {key: inputs.get(key) for key in there}  # an older run has not written all of them
        problem = f"{out} holds a {what} model trained on something else"
        require_same(there, here, _RUNS, problem, "give another --out, or what that run was trained on")
    write_atomic(out / "config.yaml", dump_yaml(config).encode())
    write_atomic(path, seal(inputs))
    if news:
        print(f"{out} goes on from step {steps[-1]} with other settings: {join(news)}", flush=True)


def _compare_configs(
    out: Path, what: str, config: dict[str, Any], defaults: dict[str, Any], steps: list[int]
) -> list[str]:
    """Refuse to continue a run with another config; returns what differs of that which may."""
    path = out / "config.yaml"
    if not path.exists():
        return []
    there = _completed(read_yaml(path), config, defaults)
    problem = f"{out} holds a {what} model trained with another config"
    way_out = f"give another --out (--from {out} starts from its weights, if the sizes are the same)"
    require_same(there, config, _RUNS, problem, way_out, ignore=FREE)
    asked = config[f"{what}_training"]["steps"]
    if steps and steps[-1] > asked:
        raise UsageError(
            f"{out} holds a {what} model of {steps[-1]} steps, {what}_training.steps asks for {asked}: give as many or "
            "more, or another --out"
        )
    return differences(there, config, ("it had", "it has")) if steps else []


def _completed(there: Any, here: dict[str, Any], defaults: dict[str, Any]) -> Any:
    """Return a run's config with the keys that it lacks and this one has, at their defaults."""
    if not isinstance(there, dict):
        return there
    missing = {key: defaults[key] for key in here.keys() & defaults.keys() - there.keys()}
    nested = {
        key: _completed(value, here[key], defaults[key])
        for key, value in there.items()
        if isinstance(here.get(key), dict) and isinstance(defaults.get(key), dict)
    }
    return {**there, **missing, **nested}
