"""The renderer of the maze: rays for the walls, row distances for floor and ceiling, billboards for the objects.

All frames of a batch are made together with NumPy, a few environments at a time so that the work stays in the cache.
Every operation is elementwise and rounds alike whatever the batch size, so one frame is the same in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldvq_envs.maze.layout import NUM_HEADINGS
from worldvq_envs.maze.textures import (
    BLUR_WIDTHS,
    CEILING,
    CEILING_MATERIAL,
    FLOOR,
    FLOOR_MATERIAL,
    HAZE,
    NUM_HAZE,
    NUM_SHADES,
    OBJECT_COLOURS,
    TEXELS,
    blur_level,
    colour_ramps,
    haze_amount,
    patterns,
    wall_colours,
    wall_material,
)

FIELD_OF_VIEW = np.deg2rad(75.0)
"""Horizontal; pixels are square."""
OBJECT_RADIUS = 0.18
_OBJECT_DROP = 0.24
"""How far the centre of an object is below the eye, in cells; the eye is at half the height of a wall."""
_LIGHT = np.array([-0.45, -0.65, 0.61])
"""Direction to the light on objects: right, down, towards the eye."""
_CHUNK_PIXELS = 65536
_FACING = np.deg2rad(360 / NUM_HEADINGS) * np.arange(NUM_HEADINGS)
DIRECTIONS = np.stack([np.cos(_FACING), np.sin(_FACING)], 1).round(15)
"""(headings, 2) unit vectors."""


@dataclass
class Scene:
    """What is to be drawn, for a batch of environments; see :class:`worldvq_envs.maze.layout.Layout` for units.

    Attributes:
        grid: (E, G, G) uint8.
        position: (E, 2) float64.
        heading: (E,) int64.
        object_positions: (E, K, 2) float64.
        object_kinds: (E, K) int64.
        object_present: (E, K) bool.
    """

    grid: np.ndarray
    position: np.ndarray
    heading: np.ndarray
    object_positions: np.ndarray
    object_kinds: np.ndarray
    object_present: np.ndarray

    def __getitem__(self, index: slice | np.ndarray) -> Scene:
        """Return the scene of some environments."""
        return Scene(**{name: value[index] for name, value in vars(self).items()})


@dataclass
class Rays:
    """What the ray through each column hits.

    Attributes:
        depth: (E, W) distance along the viewing axis (not along the ray, which would bend straight walls).
        style: (E, W) wall style.
        side: (E, W) 0 where the face looks along x, 1 along y.
        along: (E, W) place on the face, 0 to 1.
        slant: (E, W) how much wider a pixel is along the face than across the view, at least 1 for a unit ray.
    """

    depth: np.ndarray
    style: np.ndarray
    side: np.ndarray
    along: np.ndarray
    slant: np.ndarray


class Renderer:
    """Draws scenes as (E, height, width, 3) uint8 frames."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.focal = 0.5 * width / float(np.tan(FIELD_OF_VIEW / 2))
        across = (np.arange(width) + 0.5 - width / 2) / self.focal
        forward, right = DIRECTIONS, np.stack([-DIRECTIONS[:, 1], DIRECTIONS[:, 0]], 1)
        # Rays have length 1 along the viewing axis, so that ray parameters are depths.
        self.rays = forward[:, :, None] + across * right[:, :, None]  # (headings, 2, W)
        self.right = right
        # A ray along a line of the grid crosses it very far away.
        self._inverse = 1 / np.where(np.abs(self.rays) < 1e-9, 1e-9, self.rays)
        self._rays32 = self.rays.astype(np.float32)
        down = np.arange(height) + 0.5 - height / 2
        self._down = down.astype(np.float32)[:, None]  # (H, 1)
        distance = 0.5 * self.focal / np.maximum(np.abs(down), 1e-3)
        self._floor_scale = (distance * (TEXELS / 2)).astype(np.float32)[:, None]
        is_floor = down > 0
        # A pixel of the floor is far longer than wide; a compromise between the two keeps near tiles crisp.
        level = blur_level(0.5 * distance**2 / (0.5 * self.focal) * (TEXELS / 2))
        pattern = np.where(is_floor, FLOOR, CEILING) * len(BLUR_WIDTHS) + level
        self._floor_pattern = (pattern * TEXELS * TEXELS).astype(np.int32)[:, None]
        material = np.where(is_floor, FLOOR_MATERIAL, CEILING_MATERIAL)
        self._floor_ramp = self._ramp(material, distance)[:, None]
        self._patterns, self._ramps = patterns(), colour_ramps()

    @staticmethod
    def _ramp(material: np.ndarray, distance: np.ndarray) -> np.ndarray:
        haze = (haze_amount(distance) * (NUM_HAZE - 1) + 0.5).astype(np.int32)
        return ((material * NUM_HAZE + haze) * NUM_SHADES).astype(np.int32)

    def render(self, scene: Scene) -> np.ndarray:
        """Draw every environment of ``scene``."""
        num_envs = len(scene.heading)
        frames = np.empty((num_envs, self.height, self.width, 3), np.uint8)
        depth = np.empty((num_envs, self.width))
        chunk = max(1, _CHUNK_PIXELS // (self.height * self.width))
        for start in range(0, num_envs, chunk):
            part = scene[start : start + chunk]
            out = frames[start : start + chunk]
            rays = self.cast(part)
            self._draw_surfaces(part, rays, out)
            self._smooth_edges(rays, out)
            depth[start : start + chunk] = rays.depth
        self._draw_objects(scene, depth, frames)
        return frames

    def cast(self, scene: Scene) -> Rays:
        """Find the first wall along the ray of each column by its crossings with the lines of the grid."""
        direction = self.rays[scene.heading]  # (E, 2, W)
        side_grid = scene.grid.shape[1]
        offset = (np.arange(len(scene.grid), dtype=np.int32) * side_grid**2)[:, None]
        crossings = [self._first_crossing(axis, direction, scene, offset) for axis in (0, 1)]
        side = (crossings[1][0] < crossings[0][0]).astype(np.int64)
        depth = np.where(side, crossings[1][0], crossings[0][0])
        style = scene.grid.reshape(-1).take(np.where(side, crossings[1][1], crossings[0][1])).astype(np.int64) - 1
        toward = np.where(side, direction[:, 1], direction[:, 0])
        along = depth * np.where(side, direction[:, 0], direction[:, 1])
        along += np.where(side, scene.position[:, :1], scene.position[:, 1:])
        along -= np.floor(along)
        # Seen from the other side a face runs the other way.
        along = np.where((toward < 0) == (side == 0), 1 - along, along)
        return Rays(depth, style, side, along, 1 / np.maximum(np.abs(toward), 1e-9))

    def _first_crossing(
        self, axis: int, direction: np.ndarray, scene: Scene, offset: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (E, W) depth and flat grid index of the first wall that is entered across a line of one axis."""
        side_grid = scene.grid.shape[1]
        strides = (1, side_grid) if axis == 0 else (side_grid, 1)
        lines = np.arange(side_grid - 1)
        inverse = self._inverse[scene.heading, axis]  # (E, W)
        positive = inverse > 0
        here = scene.position[:, axis, None]
        first = np.floor(here) + positive  # the nearest line ahead
        depth = lines * np.abs(inverse)[..., None]  # (E, W, N)
        depth += ((first - here) * inverse)[..., None]
        # Looking a hair before the crossing keeps rays from slipping between two walls that meet at a corner.
        other = depth * (direction[:, 1 - axis] * (1 - 1e-9))[..., None]
        other += scene.position[:, 1 - axis, None, None]
        np.clip(other, 0, side_grid - 1, out=other)
        index = other.astype(np.int32)
        index *= strides[1]
        # Cells past the border are never the first wall, so it does not matter that their indices are wrong.
        entered = (first - ~positive).astype(np.int32) * strides[0] + offset
        index += entered[..., None]
        index += (np.where(positive, strides[0], -strides[0])[..., None] * lines).astype(np.int32)
        hit = np.argmax((scene.grid.reshape(-1) != 0).take(index, mode="clip"), axis=-1)
        chosen = (np.arange(hit.size) * len(lines)).reshape(hit.shape) + hit
        return depth.reshape(-1).take(chosen), index.reshape(-1).take(chosen)

    def _draw_surfaces(self, scene: Scene, rays: Rays, out: np.ndarray) -> None:
        depth = rays.depth.astype(np.float32)
        # Rows of the wall pattern, for all pixels of the column; outside of the wall they are not used.
        scale = depth * np.float32(TEXELS / self.focal)
        row = self._down * scale[:, None, :]  # (E, H, W)
        is_wall = np.abs(row) < TEXELS / 2
        row += TEXELS / 2
        index = row.astype(np.int32)
        index *= TEXELS
        level = blur_level(rays.depth * (TEXELS / self.focal) * np.maximum(1.0, 0.6 * rays.slant))
        column = np.minimum((rays.along * TEXELS).astype(np.int32), TEXELS - 1)
        index += (((rays.style * len(BLUR_WIDTHS) + level) * TEXELS * TEXELS) + column).astype(np.int32)[:, None, :]

        # 64 periods keep the coordinates positive, where a cast rounds down.
        place = (scene.position * (TEXELS / 2) + 64 * TEXELS).astype(np.float32)[:, :, None, None]
        direction = self._rays32[scene.heading]
        ground = self._floor_scale * direction[:, 0, None, :]
        ground += place[:, 0]
        floor_index = ground.astype(np.int32)
        floor_index &= TEXELS - 1
        np.multiply(self._floor_scale, direction[:, 1, None, :], out=ground)
        ground += place[:, 1]
        floor_row = ground.astype(np.int32)
        floor_row &= TEXELS - 1
        floor_row *= TEXELS
        floor_index += floor_row
        floor_index += self._floor_pattern

        ramp = self._ramp(wall_material(rays.style, rays.side), rays.depth)
        np.copyto(floor_index, index, where=is_wall)
        colour = np.where(is_wall, ramp[:, None, :], self._floor_ramp)
        colour += self._patterns.take(floor_index, mode="clip")
        packed = self._ramps.take(colour, mode="clip")
        channels = packed.view(np.uint8).reshape(*packed.shape, 4)
        for channel in range(3):  # seven times faster than copying [..., :3]
            out[..., channel] = channels[..., channel]

    def _smooth_edges(self, rays: Rays, out: np.ndarray) -> None:
        """Blend the pixel that the upper or lower edge of a wall cuts, by how much of it the wall covers."""
        half = 0.5 * self.focal / rays.depth
        for edge, inward in ((self.height / 2 - half, 1), (self.height / 2 + half, -1)):
            row = np.floor(edge).astype(np.int64)
            env, column = np.nonzero((row >= 1) & (row < self.height - 1))
            row = row[env, column]
            covered = edge[env, column] - row
            covered = (1 - covered if inward > 0 else covered)[:, None]
            wall, beyond = out[env, row + inward, column], out[env, row - inward, column]
            out[env, row, column] = (covered * wall + (1 - covered) * beyond + 0.5).astype(np.uint8)

    def _draw_objects(self, scene: Scene, wall_depth: np.ndarray, out: np.ndarray) -> None:
        """Draw balls, far ones first, where they are nearer than the wall of their column."""
        relative = scene.object_positions - scene.position[:, None]
        forward, right = DIRECTIONS[scene.heading][:, None], self.right[scene.heading][:, None]
        depth = relative[..., 0] * forward[..., 0] + relative[..., 1] * forward[..., 1]
        across = relative[..., 0] * right[..., 0] + relative[..., 1] * right[..., 1]
        reach = 0.5 * self.width / self.focal
        shown = scene.object_present & (depth > 0.1) & (depth < wall_depth.max(1)[:, None])
        shown &= np.abs(across) - OBJECT_RADIUS < depth * reach
        order = np.argsort(np.where(shown, -depth, np.inf), axis=1, kind="stable")
        count = shown.sum(1)
        for rank in range(int(count.max(initial=0))):
            env = np.nonzero(count > rank)[0]
            item = order[env, rank]
            colour = OBJECT_COLOURS[scene.object_kinds[env, item]]
            self._draw_balls(env, depth[env, item], across[env, item], colour, wall_depth, out)

    def _draw_balls(
        self,
        env: np.ndarray,
        depth: np.ndarray,
        across: np.ndarray,
        colour: np.ndarray,
        wall_depth: np.ndarray,
        out: np.ndarray,
    ) -> None:
        """Draw one ball in each of the environments ``env``: first find the columns that show it, then their pixels."""
        scale = self.focal / depth
        radius = OBJECT_RADIUS * scale
        centre_x, centre_y = self.width / 2 + across * scale, self.height / 2 + _OBJECT_DROP * scale
        ball, x = _ranges(centre_x - radius - 1, centre_x + radius + 1, self.width)
        seen = depth[ball] < wall_depth[env[ball], x]
        ball, x = ball[seen], x[seen]
        column, y = _ranges((centre_y - radius - 1)[ball], (centre_y + radius + 1)[ball], self.height)
        ball, x = ball[column], x[column]
        normal_x = (x + 0.5 - centre_x[ball]) / radius[ball]
        normal_y = (y + 0.5 - centre_y[ball]) / radius[ball]
        squared = normal_x * normal_x + normal_y * normal_y
        normal_z = np.sqrt(np.maximum(1 - squared, 0))
        light = np.maximum(_LIGHT[0] * normal_x + _LIGHT[1] * normal_y + _LIGHT[2] * normal_z, 0)
        haze = haze_amount(depth)[ball, None]
        shaded = colour[ball] * (0.4 + 0.6 * light)[:, None] * (1 - haze) + haze * HAZE
        cover = np.clip((1 - np.sqrt(squared)) * radius[ball] + 0.5, 0, 1)[:, None]
        behind = out[env[ball], y, x]
        out[env[ball], y, x] = (behind + cover * (shaded - behind) + 0.5).astype(np.uint8)


def _ranges(low: np.ndarray, high: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """List the whole numbers from ``low`` to ``high`` within [0, limit) of every pair, and which pair each is of."""
    first = np.clip(np.floor(low), 0, limit).astype(np.int64)
    counts = np.clip(np.ceil(high), 0, limit).astype(np.int64) - first
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) + (first - np.cumsum(counts) + counts)[owner]


def draw_map(scene: Scene, pixels: int = 16) -> np.ndarray:
    """Draw the plan of each environment from above: walls, objects, and the agent with its heading.

    Returns:
        (E, G * pixels, G * pixels, 3) uint8; x to the right, y downwards.
    """
    table = np.concatenate([np.array([[232, 228, 220]], np.uint8), wall_colours()])
    image = table[scene.grid].repeat(pixels, 1).repeat(pixels, 2)
    y, x = (np.mgrid[: image.shape[1], : image.shape[2]] + 0.5) / pixels
    for env in range(len(image)):
        for place, kind, present in zip(
            scene.object_positions[env], scene.object_kinds[env], scene.object_present[env], strict=True
        ):
            if present:
                image[env][(x - place[0]) ** 2 + (y - place[1]) ** 2 < 0.33**2] = OBJECT_COLOURS[kind]
        forward = DIRECTIONS[scene.heading[env]]
        rel_x, rel_y = x - scene.position[env, 0], y - scene.position[env, 1]
        ahead = rel_x * forward[0] + rel_y * forward[1]
        aside = np.abs(rel_y * forward[0] - rel_x * forward[1])
        # A disc with a beak that shows the heading.
        image[env][(rel_x**2 + rel_y**2 < 0.3**2) | ((ahead > 0) & (aside < (0.65 - ahead) * 0.45))] = (20, 20, 24)
    return image
