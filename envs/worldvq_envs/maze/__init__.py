"""``worldvq/Maze-v0``: rules, layout and pictures of a first-person maze."""
