"""What pages are made of: one HTML file that loads nothing, plots on a clear ground, and numbers in tables."""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from worldvq.files.atomic import write_atomic

INK = "#7c8390"  # readable on white and on black


def axes_of(title: str) -> tuple[Figure, Any]:
    """Return a figure of one plot, and its axes."""
    figure = Figure(figsize=(5.6, 3.5), dpi=150, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    return figure, axes


def save_plot(path: Path, figure: Figure) -> Path:
    """Write a figure as a small PNG; returns its path."""
    write_atomic(path, plot_bytes(figure))
    return path


def plot_bytes(figure: Figure) -> bytes:
    """Return a figure as a small PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    with Image.open(buffer) as image:  # 64 colours are plenty for a plot and a third of the size
        small = io.BytesIO()
        image.quantize(64, method=Image.Quantize.FASTOCTREE).save(small, "PNG")
    return small.getvalue()


def embed(data: bytes, kind: str) -> str:
    """Return the address of a picture or video that the page itself holds."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def video(path: Path) -> str:
    """Return the element that plays a video, which the page itself holds."""
    address = embed(path.read_bytes(), "video/mp4")
    return f'<video controls autoplay loop muted playsinline src="{address}"></video>'


def cards(shown: Sequence[tuple[str, str]]) -> str:
    """The first numbers of a page, each with what it says."""
    return "".join(f'<div class="card"><b>{value}</b><span>{text}</span></div>' for value, text in shown)


def save_page(
    path: Path, title: str, subtitle: str, shown: Sequence[tuple[str, str]], body: str, **parts: object
) -> Path:
    """Write a page; all HTML but the title.

    Args:
        path: Where to.
        title: Plain text.
        subtitle: Stands below it.
        shown: See :func:`cards`.
        body: Name of the file, beside this one, of what follows.
        parts: What stands there in place of ``$NAME``.

    Returns:
        The path.

    Raises:
        RunError: It cannot be written.
    """
    here = importlib.resources.files("worldvq.evaluation")
    frame, inner = (string.Template((here / name).read_text("utf-8")) for name in ("page.html", body))
    filled = inner.substitute(parts)
    page = frame.substitute(title=html.escape(title), subtitle=subtitle, cards=cards(shown), body=filled)
    write_atomic(path, page.encode())
    return path


def number(value: float | None, digits: int = 2) -> str:
    """A number as text; None, which a report has for NaN, is a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table; each row is a CSS class and its cells. A cell that starts with ``~`` is running text."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = ""
    for name, cells in rows:
        tags = (f'<td class="wide">{cell[1:]}</td>' if cell.startswith("~") else f"<td>{cell}</td>" for cell in cells)
        body += f'<tr class="{name}">{"".join(tags)}</tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
