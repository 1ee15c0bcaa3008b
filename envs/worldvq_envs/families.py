"""What some families of environments need beyond Gymnasium; every quirk stands here and nowhere else."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium

from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError


@dataclass(frozen=True)
class Family:
    """A family of environment ids. The base class is an environment without quirks.

    Attributes:
        prefix: How the ids begin.
        module: Import that registers them with Gymnasium.
        install: What ``pip install`` needs to be given.
        environ: Variables that must be set before the import.
        observation_key: The image of a Dict observation that holds several.
        litters: It writes files into the working directory.
    """

    prefix: str = ""
    module: str = ""
    install: str = ""
    environ: dict[str, str] = field(default_factory=dict)
    observation_key: str | None = None
    litters: bool = False

    def prepare(self, config: EnvConfig) -> None:
        """Import what registers the ids.

        Raises:
            UsageError: The package is not installed.
        """
        for name, value in self.environ.items():
            os.environ.setdefault(name, value)
        if not self.module:
            return
        try:
            importlib.import_module(self.module)
        except ImportError as error:
            missing = f"'{config.id}' needs {self.module.partition('.')[0]}, which cannot be imported ({error})"
            raise UsageError(f'{missing}: pip install "{self.install}"') from None

    def kwargs(self, config: EnvConfig) -> tuple[dict[str, Any], int]:
        """Return the keywords for ``gymnasium.make``, and how often each action must be repeated around it."""
        return dict(config.kwargs), config.frame_skip

    def action_names(self, env: gymnasium.Env) -> tuple[str, ...]:
        """Return the names of its actions where no convention gives them, or ()."""
        return ()

    def has_frame(self, env: gymnasium.Env) -> bool:
        """Say whether the observation just made shows the environment."""
        return True


class _VizDoom(Family):
    """ViZDoom.

    - 160x120 renders five times faster than its default 320x240; a resolution it does not know is ignored silently.
    - Its own ``frame_skip`` adds the rewards up and renders only the last frame: four times faster than four steps.
    - The observation after the last step of an episode is all zeros.
    - It creates ``_vizdoom/`` and ``_vizdoom.ini`` in the working directory.
    """

    def kwargs(self, config: EnvConfig) -> tuple[dict[str, Any], int]:
        kwargs = {"screen_resolution": "RES_160X120", **config.kwargs}
        resolution = kwargs["screen_resolution"]
        if isinstance(resolution, str) and not resolution.startswith("RES_"):
            raise UsageError(
                f"env.kwargs.screen_resolution '{resolution}': ViZDoom would ignore it; write RES_{resolution}"
            )
        if "frame_skip" in kwargs and config.frame_skip != 1:
            raise UsageError("env.frame_skip and env.kwargs.frame_skip are both set; for ViZDoom they are the same")
        kwargs.setdefault("frame_skip", config.frame_skip)
        for name, value in kwargs.items():  # the engine starts in another directory: see FrameStream.reset
            if isinstance(value, str) and name.endswith(("_path", "_file")) and Path(value).exists():
                kwargs[name] = str(Path(value).resolve())
        return kwargs, 1

    def action_names(self, env: gymnasium.Env) -> tuple[str, ...]:
        game: Any = env.unwrapped
        buttons = [button.name for button in game.game.get_available_buttons()]
        deltas, binary = buttons[: game.num_delta_buttons], buttons[game.num_delta_buttons :]
        if not game.max_buttons_pressed:  # a choice a button, then a number for each that is not just pressed
            return (*binary, *deltas)
        chosen = [[name for name, down in zip(binary, row, strict=True) if down] for row in game.button_map]
        return tuple("+".join(names) or "NOOP" for names in chosen)

    def has_frame(self, env: gymnasium.Env) -> bool:
        return env.unwrapped.state is not None  # type: ignore[attr-defined]


_FAMILIES = (
    _VizDoom("Vizdoom", "vizdoom.gymnasium_wrapper", "worldvq[vizdoom]", observation_key="screen", litters=True),
    Family("MiniWorld-", "miniworld", "miniworld", environ={"PYGLET_HEADLESS": "1"}),
    Family("ALE/", "ale_py", "ale-py"),
    Family("CarRacing", install="worldvq[box2d]"),
)


def find_family(env_id: str) -> Family:
    """Return the row for an id; the base :class:`Family` where nothing special is known."""
    name = env_id.rpartition(":")[2]
    return next((family for family in _FAMILIES if name.startswith(family.prefix)), Family())
