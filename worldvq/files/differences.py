"""What two records disagree on, field by field: every refusal of a pair that does not fit says it this way.

For instance ``frame_size: the dataset has 16x16, the world expects 24x24``.
"""

from __future__ import annotations

from typing import Any

from worldvq.errors import UsageError

SHOWN = 20
"""Differences that are spelt out; a network of other sizes has hundreds."""
LONGEST = 60

Who = tuple[str, str]
"""The two sides, each with its verb: ``("the dataset has", "the world expects")``."""


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


def differences(first: Any, second: Any, who: Who, ignore: tuple[str, ...] = (), key: str = "") -> list[str]:
    """Compare two records of JSON values key by key.

    Args:
        first: One record.
        second: The other.
        who: Has them.
        ignore: Keys that may differ, wherever they stand.
        key: Path of keys that leads to these two.

    Returns:
        One line for every value that differs, in the order of the keys.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        lines = []
        for name in [name for name in {**first, **second} if name not in ignore]:
            path = f"{key}.{name}" if key else str(name)
            lines += differences(first.get(name), second.get(name), who, ignore, path)
        return lines
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        first, second = list(first), list(second)
    if first == second and isinstance(first, bool) == isinstance(second, bool):  # 1 == True
        return []
    return [difference(key, _shown(key, first), _shown(key, second), who)]


def difference(key: str, first: str, second: str, who: Who) -> str:
    """Return the line of one value that differs."""
    return f"{printable(key)}: {who[0]} {first}, {who[1]} {second}"


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "nothing"
    if key.endswith(("size", "grid")) and isinstance(value, list) and len(value) == 2:
        return "x".join(short(side) for side in value)
    return short(value)


def join(lines: list[str]) -> str:
    """Return the lines as one, the first ``SHOWN`` of them spelt out."""
    return "; ".join(lines[:SHOWN]) + (f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")


def require_same(first: Any, second: Any, who: Who, problem: str, way_out: str, ignore: tuple[str, ...] = ()) -> None:
    """Raise a UsageError ``problem: differences: way_out`` unless two records are the same; see :func:`differences`."""
    if lines := differences(first, second, who, ignore):
        raise UsageError(f"{problem}: {join(lines)}: {way_out}")
