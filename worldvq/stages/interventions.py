"""The tests of a dream beyond the protocol: those that play the environment, and those that take long.

Where nothing can be played, a network that tells actions from frames says whether a dream obeys.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import worldvq
from worldvq.config.code import import_named, search_last
from worldvq.config.env import IMPORTED, EnvConfig
from worldvq.data.episodes import EpisodeStore
from worldvq.errors import UsageError, plural
from worldvq.evaluation.branches import CannotForkError, Situation, find_situations
from worldvq.evaluation.config import EvaluateConfig
from worldvq.evaluation.counterfactual import counterfactual
from worldvq.evaluation.decisions import SITUATIONS as DECISIONS
from worldvq.evaluation.decisions import decisions
from worldvq.evaluation.interventions_page import branches_picture
from worldvq.evaluation.inverse import inverse_dynamics
from worldvq.evaluation.lasting_page import dreams_picture
from worldvq.evaluation.long_dreams import STEPS, long_dreams
from worldvq.evaluation.memory import there_and_back
from worldvq.evaluation.objects import object_recall
from worldvq.evaluation.parts import Parts, key_of
from worldvq.evaluation.protocol import check_fits, sampling_of
from worldvq.media.pictures import save_png
from worldvq.nn.memory import memory_errors
from worldvq.stages.record import STREAM
from worldvq.world.model import WorldModel

HORIZON = 8
"""Steps of a branch."""
SITUATIONS = 48
"""Situations of a test, where nothing else is said; of decisions ``DECISIONS``."""


def intervene(
    world: WorldModel,
    data: Path,
    out: Path,
    config: EvaluateConfig,
    *,
    branches: bool,
    returns: bool,
    inverse: bool = False,
    objects: bool = False,
    decide: bool = False,
    situations: int | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Act in held-out situations, for real and in the dream; writes ``branches.png``.

    Args:
        world: The world.
        data: A dataset; its environment is played.
        out: Folder of the picture.
        config: Context, seed, sampling and batch size.
        branches: Test whether the dream obeys (:mod:`worldvq.evaluation.counterfactual`); where the dataset cannot be
            played on, ``inverse`` instead.
        returns: Test whether it remembers (:mod:`worldvq.evaluation.memory`).
        inverse: Test whether what was done can be told from it (:mod:`worldvq.evaluation.inverse`); plays nothing.
        objects: Test whether it shows what is there (:mod:`worldvq.evaluation.objects`).
        decide: Test whether its decisions are good ones (:mod:`worldvq.evaluation.decisions`).
        situations: In how many situations; None has ``SITUATIONS``, but for decisions as many as these take.
        trust: Run code that the dataset names: a module, wrappers, keywords.

    Returns:
        ``counterfactual``, ``memory``, ``inverse``, ``objects`` and ``decisions``, for the report of
        :func:`worldvq.evaluation.protocol.evaluate`.

    Raises:
        UsageError: The dataset does not fit the world, names code that is not trusted, has no actions to tell apart,
            its environment does not know its ``objects``, or does not come to the same frames again and these or
            ``returns`` alone were asked for.
    """
    report: dict[str, Any] = {}
    with (
        EpisodeStore.open(data) as store,
        memory_errors(f"fewer clips at once take less: --batch-size, now {config.batch_size}"),
    ):
        check_fits(world, store)
        if branches or returns or objects or decide:
            try:
                report = _play(world, store, out, config, branches, returns, objects, decide, situations, trust)
            except CannotForkError as error:
                if not branches or objects or decide:
                    raise
                lost = "--counterfactual and --memory" if returns else "--counterfactual"
                print(f"{error}: --inverse instead of {lost}", flush=True)
                inverse = True
        if inverse:
            report["inverse"] = inverse_dynamics(world, store, config)
    return report


def _play(
    world: WorldModel,
    store: EpisodeStore,
    out: Path,
    config: EvaluateConfig,
    branches: bool,
    returns: bool,
    objects: bool,
    decide: bool,
    count: int | None,
    trust: bool,
) -> dict[str, Any]:
    """Run those tests that play the dataset's environment."""
    report: dict[str, Any] = {}
    stream = open_environment(store.meta.env, store.path, trust)
    try:
        if objects:
            stream.reset(0)
            stream.frames_without_objects()  # says so now where it cannot
        most = count or (DECISIONS if decide else SITUATIONS)
        print(f"playing '{store.meta.env.id}' in {most} held-out situations", flush=True)
        every = find_situations(store, stream, config.context, most, config.seed)
        found = every[: count or SITUATIONS]
        given = (config.seed, sampling_of(config), config.batch_size)
        if branches:
            report["counterfactual"], frames = counterfactual(world, stream, found, HORIZON, *given)
            plans = report["counterfactual"]["plans"]
            save_png(out / "branches.png", branches_picture(plans, *frames))
        if returns:
            report["memory"] = there_and_back(world, stream, found, *given)
        if objects:
            report["objects"] = object_recall(world, stream, *_with_futures(store, found), *given)
        if decide:
            report["decisions"] = _decide(world, store, stream, out, every, config)
    finally:
        stream.close()
    return report


def _decide(
    world: WorldModel, store: EpisodeStore, stream: Any, out: Path, situations: list[Situation], config: EvaluateConfig
) -> dict[str, Any]:
    """Run the test of decisions, which takes long: what each situation gave is kept until all are done."""
    sampling = sampling_of(config)
    about = {
        "world": world.hash(),
        "data": store.fingerprint(),
        "situations": [situation.place.tolist() for situation in situations],
        "given": [config.seed, config.context, sampling],
        "version": worldvq.__version__,
    }
    parts = Parts(out, key_of(about), "decisions")
    parts.prepare()
    found = decisions(world, stream, situations, config.seed, sampling, parts=parts)
    parts.remove()
    return found


def open_environment(env: EnvConfig, data: Path, trust: bool) -> Any:
    """Build the environment of a dataset.

    Raises:
        CannotForkError: There is none.
        UsageError: It is code that the dataset names, and not trusted.
    """
    if env.id.startswith(IMPORTED):
        raise CannotForkError(f"'{env.id}' are {env.kind}, which nobody can play")
    build = environment_of(env, data, trust)
    try:
        return build()
    except UsageError as error:
        raise CannotForkError(str(error)) from None


def environment_of(env: EnvConfig, data: Path, trust: bool) -> partial[Any]:
    """Return what builds the environment of a dataset.

    Raises:
        UsageError: It is code that the dataset names, and not trusted.
    """
    _check_trust(env, data, trust)
    search_last(Path.cwd())
    return partial(import_named(STREAM), env)


def dream_long(world: WorldModel, data: Path, out: Path, config: EvaluateConfig, dreams: int) -> dict[str, Any]:
    """Dream hundreds of frames (:mod:`worldvq.evaluation.long_dreams`); writes ``long_dreams.png``.

    Args:
        world: The world.
        data: A dataset.
        out: Folder of the picture.
        config: Context, seed, sampling and batch size.
        dreams: How many.

    Returns:
        ``long``, for the report of :func:`worldvq.evaluation.protocol.evaluate`.

    Raises:
        UsageError: The dataset does not fit the world, or has too little in it.
    """
    with EpisodeStore.open(data) as store:
        check_fits(world, store)
        print(f"dreaming {plural(dreams, 'time')} {STEPS[-1]} frames", flush=True)
        given = (config.context, config.seed, sampling_of(config), config.batch_size)
        with memory_errors(f"fewer dreams at once take less: --batch-size, now {config.batch_size}"):
            report, frames = long_dreams(world, store, dreams, *given)
        save_png(out / "long_dreams.png", dreams_picture(frames))
    return {"long": report}


def _with_futures(store: EpisodeStore, found: list[Situation]) -> tuple[list[Situation], list[np.ndarray]]:
    """Leave out situations that too little follows; return the others, and the actions played after each."""
    pairs = []
    for situation in found:
        start = len(situation.actions)
        actions = np.array(store.mapped(situation.number).actions[start : start + HORIZON])
        if len(actions) == HORIZON:
            pairs.append((situation, actions))
    if not pairs:
        raise UsageError(f"{store.path}: no situation goes on for {HORIZON} steps")
    return [situation for situation, _ in pairs], [actions for _, actions in pairs]


def _check_trust(env: EnvConfig, data: Path, trust: bool) -> None:
    """Refuse to run what a dataset names beyond an id of an installed package, unless the user trusts it."""
    names_code = ":" in env.id or env.wrappers or (env.kwargs and not env.id.startswith("worldvq/"))
    if names_code and not trust:
        more = f" with {env.kwargs or list(env.wrappers)}" if env.kwargs or env.wrappers else ""
        raise UsageError(f"{data} names the environment '{env.id}'{more}: playing it runs code; add --trust to do so")
