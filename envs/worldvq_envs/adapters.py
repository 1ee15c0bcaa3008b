"""Any Gymnasium environment as a stream of frames and actions.

A frame comes from the observation where that holds an image, or else from ``render()``. What cannot be turned into
frames and actions is refused by :func:`make_stream`, before anything is recorded.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from worldvq.config.code import import_module, import_named
from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError, did_you_mean, one_line
from worldvq_envs.actions import short_space
from worldvq_envs.families import Family, find_family
from worldvq_envs.images import Picture, pictures_in
from worldvq_envs.stream import FrameStream


def make_stream(config: EnvConfig) -> FrameStream:
    """Build the environment of ``config`` and adapt it.

    Raises:
        UsageError: Unknown id, missing package, wrong keyword, or spaces that cannot be adapted.
    """
    family = find_family(config.id)
    family.prepare(config)
    kwargs, repeat = family.kwargs(config)
    env = _make(config, kwargs)
    try:
        picture = _find_picture(env, config, family) if config.source != "render" else None
        chosen = picture is not None and (config.source or config.observation_key or not _renders(env))
        rendering = None if chosen else lambda: _make_rendering(env, config, kwargs)
        stream = FrameStream(env, config, picture, family, repeat, rendering)
    except BaseException:
        env.close()
        raise
    if config.audio_key is not None:
        try:
            stream.listen()
        except BaseException:
            stream.close()
            raise
    return stream


def _make(config: EnvConfig, kwargs: dict[str, Any]) -> gymnasium.Env:
    env_id = config.id
    if ".py:" in env_id:  # gymnasium knows module:Id
        module, _, env_id = env_id.rpartition(":")
        import_module(module)
    try:
        # Without the checker, which inspects every step and costs as much as a small environment.
        env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv:
        raise UsageError(_unknown(env_id)) from None
    except gymnasium.error.DependencyNotInstalled as error:
        install = find_family(env_id).install
        hint = f': pip install "{install}"' if install else ""
        raise UsageError(f"'{env_id}' needs a package that is not installed: {one_line(error)}{hint}") from None
    except Exception as error:
        given = f" with env.kwargs {kwargs}" if kwargs else ""
        problem = one_line(error) or "it says no more; --debug shows where"
        raise UsageError(f"'{env_id}'{given} cannot be built: {type(error).__name__}: {problem}") from error
    for path in config.wrappers:
        env = _wrap(env, path)
    return env


def _unknown(env_id: str) -> str:
    """Say that there is no such environment, and where there may be one."""
    module, _, name = env_id.rpartition(":")
    if module:
        where = {known: spec.entry_point for known, spec in gymnasium.registry.items()}
        ids = [known for known, made in where.items() if str(getattr(made, "__module__", made)).startswith(module)]
        listed = ", ".join(sorted(ids)[:10]) + (" ..." if len(ids) > 10 else "")
        return f"there is no environment '{env_id}'{did_you_mean(name, ids)}: {module} registers {listed or 'none'}"
    hint = did_you_mean(name, gymnasium.registry)
    note = find_family(env_id).note
    if not hint and not note:
        note = "where a module registers it, name that too, as in package:Id or ./file.py:Id"
    return f"there is no environment '{env_id}'{hint}: {note or 'set env.id to a Gymnasium id'}"


def _wrap(env: gymnasium.Env, path: str) -> gymnasium.Env:
    """Put the wrapper ``module:Name`` around an environment."""
    try:
        return import_named(path)(env)
    except Exception as error:
        env.close()
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"env.wrappers: '{path}' cannot be put around it ({problem}): write module:Name") from None


def _renders(env: gymnasium.Env) -> bool:
    return env.render_mode == "rgb_array" or "rgb_array" in (env.metadata.get("render_modes") or [])


def _make_rendering(env: gymnasium.Env, config: EnvConfig, kwargs: dict[str, Any]) -> gymnasium.Env:
    """Return an environment whose ``render()`` gives an image; ``env`` is closed where a new one is needed."""
    if env.render_mode == "rgb_array":
        return env
    if not _renders(env) or "render_mode" in kwargs:
        modes = list(env.metadata.get("render_modes") or [])
        raise UsageError(
            f"'{config.id}' shows no image: its observation space is {short_space(env.observation_space)} and it "
            f"renders {modes}, not rgb_array; set env.observation_key or env.kwargs to what gives pixels"
        )
    env.close()
    return _make(config, {**kwargs, "render_mode": "rgb_array"})


def _find_picture(env: gymnasium.Env, config: EnvConfig, family: Family) -> Picture | None:
    """Return the picture in the observations, or None where there is none."""
    space, key = env.observation_space, config.observation_key
    found = pictures_in(space, forced=config.source == "observation" or key is not None)
    names = [name for name in found if name]
    if key is not None and key not in found:
        if not names:
            raise UsageError(
                f"env.observation_key '{key}': '{config.id}' observes {short_space(space)}, not a Dict with images; "
                "leave it out"
            )
        raise UsageError(f"env.observation_key '{key}': '{config.id}' has the images {names} in {short_space(space)}")
    if key is None:
        key = family.observation_key if family.observation_key in found else None
    if key is None and len(found) > 1:
        raise UsageError(f"'{config.id}' observes several images, {names}: set env.observation_key to one of them")
    if not found:
        if config.source == "observation":
            seen = short_space(space)
            raise UsageError(f"env.source observation: '{config.id}' observes {seen}, which holds no image")
        return None
    return found[key] if key is not None else next(iter(found.values()))
