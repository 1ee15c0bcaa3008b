"""What the fields of a config are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0, lt=2**63)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63)]
Side = Annotated[int, Field(gt=0, le=4096)]
"""Pixels of a frame along one axis."""
Size = Annotated[int, Field(gt=0, le=2**16)]
"""Channels, codes, choices: what the size of a model depends on. A file cannot ask for more memory than that gives."""
Depth = Annotated[int, Field(ge=0, le=128)]
"""Blocks or layers."""
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _sides(value: Any) -> Any:
    """Read ``64`` and ``48x64`` as height and width; what else there is, is left to the type."""
    text = str(value).lower() if isinstance(value, str | int) and not isinstance(value, bool) else None
    if text is None:
        return value
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError("write 64, or height x width as in 48x64")
    return int(sides[0]), int(sides[-1])


FrameSize = Annotated[tuple[Side, Side], BeforeValidator(_sides)]
"""Height and width of a frame in pixels: ``[48, 64]``, ``48x64``, or ``64`` for both."""


class Config(BaseModel):
    """A section: frozen, with no keys but its own and no number that is not finite.

    The text below a field describes it (``worldvq config explain``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
