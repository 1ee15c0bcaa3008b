"""What the page and the server say to each other.

The page sends JSON texts, each one of the types below; anything else ends the connection. The server sends binary
messages: four bytes with the length of a JSON header (little-endian), the header, and pictures as raw bytes.
"""

from __future__ import annotations

import json
import struct
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from worldvq.errors import UsageError

MOST_BRANCHES = 6
"""Actions that one "what if" compares."""
MOST_REASON = 120
"""Bytes that say why a connection is closed, of the 123 that a websocket has for it."""
MOST_NUMBERS = 256
"""Numbers of one action."""

Value = float | Annotated[list[float], Field(min_length=1, max_length=MOST_NUMBERS)]
"""A stored action: a number, or a list of them."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Act(_Message):
    """Take one step."""

    kind: Literal["act"]
    action: Value


class Begin(_Message):
    """Begin at one of the starting contexts."""

    kind: Literal["begin"]
    start: Annotated[int, Field(ge=0, lt=2**16)]


class Restart(_Message):
    """Begin once more where it was begun, with other luck; on the real environment alone, the next episode."""

    kind: Literal["restart"]


class Undo(_Message):
    """Go back some steps, or as far as is remembered."""

    kind: Literal["undo"]
    steps: Annotated[int, Field(ge=1, le=1000)]


class Temperature(_Message):
    """Draw tokens at this temperature from now on."""

    kind: Literal["temperature"]
    value: Annotated[float, Field(ge=0, le=4)]


class Overlay(_Message):
    """Say how unsure each token was, or no longer."""

    kind: Literal["overlay"]
    on: bool


class WhatIf(_Message):
    """Fork here, hold each of some actions for some steps, and show what comes of each."""

    kind: Literal["what_if"]
    actions: Annotated[list[Value], Field(min_length=1, max_length=MOST_BRANCHES)]
    steps: Annotated[int, Field(ge=1, le=32)]


class Take(_Message):
    """Go on in one of the branches of the last "what if"."""

    kind: Literal["take"]
    branch: Annotated[int, Field(ge=0, lt=MOST_BRANCHES)]


class Record(_Message):
    """Keep the real episodes that end from now on, or no longer."""

    kind: Literal["record"]
    on: bool


class Clip(_Message):
    """Send what was played since the beginning as an mp4."""

    kind: Literal["clip"]
    fps: Annotated[float, Field(ge=1, le=60)]


Message = Act | Begin | Restart | Undo | Temperature | Overlay | WhatIf | Take | Record | Clip
_MESSAGES = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def parse(text: str) -> Message:
    """Read a message of the page.

    Raises:
        UsageError: It is none.
    """
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = f"no message of this page: {where + ': ' if where else ''}{first['msg']}"
        raise UsageError(problem.encode("ascii", "replace")[:MOST_REASON].decode()) from None


def pack(header: dict[str, Any], *parts: np.ndarray | bytes) -> bytes:
    """Return a message to the page: a header of JSON values, and bytes."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([struct.pack("<I", len(text)), text, *(bytes(part) for part in parts)])


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and bytes of a message of :func:`pack`."""
    end = 4 + struct.unpack_from("<I", data)[0]
    return json.loads(data[4:end]), data[end:]
