"""What the fields of a config are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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


class Config(BaseModel):
    """A section: frozen, with no keys but its own and no number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
