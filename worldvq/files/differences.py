"""What two records disagree on, field by field: every refusal of a pair that does not fit says it this way."""

from __future__ import annotations

from typing import Any

from worldvq.errors import UsageError

SHOWN = 20
"""Differences that are spelt out; a network of other sizes has hundreds."""
LONGEST = 60


def short(value: Any) -> str:
    """Return a value as text of at most ``LONGEST`` characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        text = f"a large {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 12]}...{text[-9:]}"


def printable(text: str) -> str:
    """Return text from a file as it can be shown in a line: newlines and the commands of a terminal are spelt out."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def differences(
    there: Any, here: Any, names: tuple[str, str] = ("there", "here"), ignore: tuple[str, ...] = (), key: str = ""
) -> list[str]:
    """Compare two records of JSON values key by key.

    Args:
        there: One record.
        here: The other.
        names: What follows each value in a line, as in ``frame_size is [64, 64] there, [32, 32] here``.
        ignore: Keys that may differ.
        key: Path of keys that leads to these two.

    Returns:
        One line for every value that differs, in the order of the keys.
    """
    if isinstance(there, dict) and isinstance(here, dict):
        lines = []
        for name in [name for name in {**there, **here} if name not in ignore]:
            path = f"{key}.{name}" if key else str(name)
            lines += differences(there.get(name), here.get(name), names, ignore, path)
        return lines
    if isinstance(there, tuple | list) and isinstance(here, tuple | list):
        there, here = list(there), list(here)
    if there == here and isinstance(there, bool) == isinstance(here, bool):  # 1 == True
        return []
    one, other = ("nothing" if value is None else short(value) for value in (there, here))
    return [f"{printable(key)} is {one} {names[0]}, {other} {names[1]}"]


def join(lines: list[str]) -> str:
    """Return the lines as one, the first ``SHOWN`` of them spelt out."""
    return "; ".join(lines[:SHOWN]) + (f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")


def require_same(there: Any, here: Any, start: str, way_out: str, names: tuple[str, str] = ("there", "here")) -> None:
    """Raise a UsageError ``start: differences: way_out`` unless two records are the same."""
    if lines := differences(there, here, names):
        raise UsageError(f"{start}: {join(lines)}: {way_out}")
