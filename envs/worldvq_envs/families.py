"""What some families of environments need beyond Gymnasium; every quirk stands here and nowhere else."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
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
        prefix: How the ids begin; one way or several.
        module: Import that registers them with Gymnasium.
        install: What ``pip install`` needs to be given.
        note: What to do about an id of which nobody knows, where that is not to install something.
        environ: Variables that must be set before the import.
        observation_key: The image of a Dict observation that holds several.
        litters: It writes files into the working directory.
    """

    prefix: str | tuple[str, ...] = ""
    module: str = ""
    install: str = ""
    note: str = ""
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
        has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if sys.platform == "linux" and not has_display:
            os.environ.setdefault("MUJOCO_GL", "egl")  # or MuJoCo, whoever uses it, ends in an error of GLFW's
        if not self.module or ":" in config.id:  # gymnasium imports it
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

    def audio_rate(self, env: gymnasium.Env) -> Any:
        """Return how many samples of sound a second there are, None where nobody says."""
        return env.unwrapped.metadata.get("audio_rate")

    def has_frame(self, env: gymnasium.Env) -> bool:
        """Say whether the observation just made shows the environment."""
        return True


_RATES = 11_025, 22_050, 44_100
"""Of ViZDoom's sound."""


def _require_openal() -> None:
    """Refuse to record silence where ViZDoom would find no OpenAL."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libopenal.so.1")
        except OSError:
            raise UsageError(
                "env.audio_key: ViZDoom's sound needs OpenAL, without which all is silent: install libopenal1 (apt), "
                "openal-soft (dnf, conda), or leave env.audio_key out"
            ) from None


class _VizDoom(Family):
    """ViZDoom.

    - 160x120 renders five times faster than its default 320x240; a resolution it does not know is ignored silently.
    - Its own ``frame_skip`` adds the rewards up and renders only the last frame: four times faster than four steps.
    - The observation after the last step of an episode is all zeros.
    - It creates ``_vizdoom/`` and ``_vizdoom.ini`` in the working directory.
    - Its sound comes through OpenAL, without a sound card; where that library is missing all is silent, and it says so
      nowhere. With effects (``snd_efx``) an assertion in OpenAL 1.19 ends the engine.
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
        if config.audio_key is not None:
            _require_openal()
            kwargs.setdefault("audio_buffer_enabled", True)
            if config.audio_rate not in (None, *_RATES):
                makes = ", ".join(map(str, _RATES))
                raise UsageError(f"env.audio_rate {config.audio_rate}: ViZDoom makes {makes} samples a second")
            kwargs["audio_sampling_rate"] = f"SR_{config.audio_rate or _RATES[0]}"
            kwargs["game_args"] = f"{kwargs.get('game_args', '')} +snd_efx 0".strip()
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

    def audio_rate(self, env: gymnasium.Env) -> Any:
        return env.unwrapped.game.get_audio_sampling_rate()  # type: ignore[attr-defined]

    def has_frame(self, env: gymnasium.Env) -> bool:
        return env.unwrapped.state is not None  # type: ignore[attr-defined]


class _MuJoCo(Family):
    """Environments on MuJoCo, which draw a frame of any size: the size that is stored, where nothing is cut off it."""

    def kwargs(self, config: EnvConfig) -> tuple[dict[str, Any], int]:
        kwargs, repeat = super().kwargs(config)
        if config.crop is None and not kwargs.keys() & {"width", "height"}:
            kwargs |= {"height": config.size[0], "width": config.size[1]}
        return kwargs, repeat


_MUJOCO = ("Ant-", "HalfCheetah-", "Hopper-", "Humanoid-", "HumanoidStandup-", "InvertedDoublePendulum-")
_MUJOCO = (*_MUJOCO, "InvertedPendulum-", "Pusher-", "Reacher-", "Swimmer-", "Walker2d-")
_ROBOTICS = ("Fetch", "HandManipulate", "HandReach", "AdroitHand", "AntMaze_", "PointMaze_", "FrankaKitchen-")
_HIGHWAY = ("highway-", "merge-v", "roundabout-v", "parking-", "intersection-", "racetrack-", "exit-v", "two-way-v")
_OLD_GYM = "its package speaks old Gym: install it and shimmy, or wrap it in a module of your own that registers it"
_FAMILIES = (
    _VizDoom("Vizdoom", "vizdoom.gymnasium_wrapper", "worldvq[vizdoom]", observation_key="screen", litters=True),
    Family("MiniWorld-", "miniworld", "miniworld", environ={"PYGLET_HEADLESS": "1"}),
    Family(("MiniGrid-", "BabyAI-"), "minigrid", "minigrid"),
    Family("ALE/", "ale_py", "ale-py"),
    Family(("CarRacing", "LunarLander", "BipedalWalker"), install="worldvq[box2d]"),
    Family(("CartPole-", "MountainCar", "Pendulum-", "Acrobot-"), install="gymnasium[classic-control]"),
    Family(("FrozenLake", "Taxi-", "CliffWalking", "Blackjack-"), install="gymnasium[toy-text]"),
    _MuJoCo(_MUJOCO, install="gymnasium[mujoco]"),
    Family(_ROBOTICS, "gymnasium_robotics", "gymnasium-robotics"),
    Family("dm_control/", "shimmy", "shimmy[dm-control]"),
    Family("Meta-World/", "metaworld", "metaworld"),
    Family(_HIGHWAY, "highway_env", "highway-env"),
    Family("miniwob/", "miniwob", "miniwob"),
    Family("PyFlyt/", "PyFlyt.gym_envs", "PyFlyt"),
    Family(("procgen", "Crafter", "SuperMarioBros", "MineRL"), note=_OLD_GYM),
)


def find_family(env_id: str) -> Family:
    """Return the row for an id; the base :class:`Family` where nothing special is known."""
    name = env_id.rpartition(":")[2]
    return next((family for family in _FAMILIES if name.startswith(family.prefix)), Family())
