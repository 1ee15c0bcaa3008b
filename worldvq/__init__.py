"""worldvq: video world models of 3D environments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldvq.registration import register_envs

__version__ = "0.1.0"
__all__ = ["EpisodeStore", "WorldModel", "__version__"]

register_envs()

if TYPE_CHECKING:
    from worldvq.data.episodes import EpisodeStore
    from worldvq.world.model import WorldModel


def __getattr__(name: str) -> Any:
    """Import the heavy names on first use, so that importing worldvq stays cheap."""
    if name == "WorldModel":
        from worldvq.world.model import WorldModel

        return WorldModel
    if name == "EpisodeStore":
        from worldvq.data.episodes import EpisodeStore

        return EpisodeStore
    raise AttributeError(f"module 'worldvq' has no attribute '{name}'")
