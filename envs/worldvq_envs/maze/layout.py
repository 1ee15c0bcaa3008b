"""Procedural floor plans: a braided maze with a few rooms, its wall styles and what lies in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldvq_envs.maze.textures import NUM_OBJECT_KINDS, NUM_WALL_STYLES

NUM_HEADINGS = 24
"""Headings are multiples of 15 degrees; 0 looks along +x, and they grow to the right (y grows downwards)."""
_NUM_REGIONS = 4
_BRAID = 0.8
"""Share of the dead ends that are opened, which makes loops."""


@dataclass(frozen=True)
class Layout:
    """Where an episode takes place. Lengths are in cells; a position is (x, y), a grid is indexed [y, x].

    Attributes:
        grid: (G, G) uint8, 0 where one can walk, else 1 + the wall style; the border is always wall.
        start: (2,) float64 position.
        heading: In units of 15 degrees.
        object_positions: (K, 2) float64.
        object_kinds: (K,) int64, the colour.
    """

    grid: np.ndarray
    start: np.ndarray
    heading: int
    object_positions: np.ndarray
    object_kinds: np.ndarray


def make_layout(random: np.random.Generator, num_cells: int, num_objects: int) -> Layout:
    """Draw a floor plan of ``num_cells`` x ``num_cells`` cells inside a wall; ``num_cells`` is odd.

    Every open cell can be reached from every other, and there is room for (num_cells + 1)^2 / 4 - 1 objects at least.
    """
    is_open = _carve(random, num_cells)
    _add_rooms(random, is_open)
    _braid(random, is_open)
    grid = np.where(is_open, 0, 1 + _styles(random, len(is_open))).astype(np.uint8)
    cells = np.argwhere(is_open)[:, ::-1]
    chosen = random.choice(len(cells), size=1 + num_objects, replace=False)
    places = cells[chosen] + 0.5
    return Layout(
        grid=grid,
        start=places[0],
        heading=int(random.integers(NUM_HEADINGS)),
        object_positions=places[1:],
        object_kinds=random.integers(NUM_OBJECT_KINDS, size=num_objects),
    )


def _carve(random: np.random.Generator, num_cells: int) -> np.ndarray:
    """Depth-first maze on the cells with odd coordinates; returns (G, G) bool with G = num_cells + 2."""
    is_open = np.zeros((num_cells + 2, num_cells + 2), bool)
    num_nodes = (num_cells + 1) // 2
    x, y = (int(value) for value in 2 * random.integers(num_nodes, size=2) + 1)
    is_open[y, x] = True
    path = [(x, y)]
    while path:
        x, y = path[-1]
        ways = [
            (dx, dy)
            for dx, dy in ((1, 0), (0, 1), (-1, 0), (0, -1))
            if 0 < x + 2 * dx <= num_cells and 0 < y + 2 * dy <= num_cells and not is_open[y + 2 * dy, x + 2 * dx]
        ]
        if not ways:
            path.pop()
            continue
        dx, dy = ways[int(random.integers(len(ways)))]
        is_open[y + dy, x + dx] = is_open[y + 2 * dy, x + 2 * dx] = True
        path.append((x + 2 * dx, y + 2 * dy))
    return is_open


def _add_rooms(random: np.random.Generator, is_open: np.ndarray) -> None:
    """Open squares of 3x3 cells, about one in every 5x5 cells of the maze."""
    num_cells = len(is_open) - 2
    num_nodes = (num_cells + 1) // 2
    if num_nodes < 3:
        return
    for _ in range(max(1, num_cells**2 // 27)):
        x, y = (int(value) for value in 2 * random.integers(num_nodes - 1, size=2) + 1)
        is_open[y : y + 3, x : x + 3] = True


def _braid(random: np.random.Generator, is_open: np.ndarray) -> None:
    """Open one more side of most dead ends."""
    num_cells = len(is_open) - 2
    for y in range(1, num_cells + 1, 2):
        for x in range(1, num_cells + 1, 2):
            closed = [
                (x + dx, y + dy)
                for dx, dy in ((1, 0), (0, 1), (-1, 0), (0, -1))
                if 1 < x + dx + abs(dy) <= num_cells
                and 1 < y + dy + abs(dx) <= num_cells
                and not is_open[y + dy, x + dx]
            ]
            num_ways = int(is_open[y, x - 1]) + is_open[y, x + 1] + is_open[y - 1, x] + is_open[y + 1, x]
            if num_ways == 1 and closed and random.random() < _BRAID:
                cx, cy = closed[int(random.integers(len(closed)))]
                is_open[cy, cx] = True


def _styles(random: np.random.Generator, side: int) -> np.ndarray:
    """(side, side) wall style of each cell: that of the nearest of a few random points, so that places differ."""
    num_regions = min(_NUM_REGIONS, NUM_WALL_STYLES)
    styles = random.permutation(NUM_WALL_STYLES)[:num_regions]
    # One centre a quadrant keeps the regions of similar size.
    quadrants = np.array([(0, 0), (1, 0), (0, 1), (1, 1)])[:num_regions]
    centres = (quadrants + random.uniform(0.2, 0.8, size=(num_regions, 2))) * side / 2
    y, x = np.mgrid[:side, :side]
    distance = (x[..., None] - centres[:, 0]) ** 2 + (y[..., None] - centres[:, 1]) ** 2
    return styles[distance.argmin(-1)]
