"""What scene codes say of where one is: ``python tools/probe_scene.py --scene runs/maze/scene --data runs/maze/data``.

Labels come from the game: every episode of the dataset is played again with its seed and its actions, its frames are
compared with those that were recorded, and the state of the game is read at each. A linear probe (multinomial logistic
regression) on the one-hot codes of a frame learns them on the training episodes and is asked on the held-out ones,
which the scene model has not seen either. Two yardsticks: blind guessing, one in so many labels, and always
saying what is most frequent among the held-out frames.

Labels of the maze: ``texture``, the style of the wall straight ahead; ``distance`` to it, 0 to 4 cells or more;
``wall``, both at once; ``heading`` of 24, ``quarter`` turn of 4 and ``aspect``, the heading within the quarter turn, of
6; ``cell``, of 11x11. Each episode has a layout of its own, so that nothing in a frame tells quarter or cell. Labels of
ViZDoom: ``place``, squares of ``PLACE`` map units that were entered; ``heading``, of 8; ``both``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from worldvq_envs.adapters import make_stream
from worldvq_envs.maze.render import DIRECTIONS
from worldvq_envs.stream import FrameStream

from worldvq.data.episodes import EpisodeStore
from worldvq.types import Episode
from worldvq.world.scenes import Scenes

PLACE = 192
"""Side of a square in map units: MyWayHome's rooms are about as large."""
FARTHEST = 4
"""Cells ahead that are told apart."""
DECAY = 1e-4
"""Weight of the squared weights of the probe."""


def maze_labels(env: Any) -> dict[str, int]:
    """Labels of the frame that a maze shows."""
    scene = env._maze.rules.scene
    grid, position, heading = scene.grid[0], scene.position[0], int(scene.heading[0])
    x, y = np.floor(position).astype(int)
    ahead = position.copy()
    while grid[int(ahead[1]), int(ahead[0])] == 0:
        ahead = ahead + 0.02 * DIRECTIONS[heading]
    texture = int(grid[int(ahead[1]), int(ahead[0])])
    distance = min(int(np.linalg.norm(ahead - position)), FARTHEST)
    return {
        "texture": texture,
        "distance": distance,
        "wall": texture * (FARTHEST + 1) + distance,
        "heading": heading,
        "quarter": heading // 6,
        "aspect": heading % 6,
        "cell": int(y * len(grid) + x),
    }


def doom_labels(env: Any) -> dict[str, int]:
    """Labels of the frame that ViZDoom shows."""
    import vizdoom

    names = ("POSITION_X", "POSITION_Y", "ANGLE")
    x, y, angle = (env.game.get_game_variable(getattr(vizdoom.GameVariable, name)) for name in names)
    place = int(x // PLACE) * 1000 + int(y // PLACE)
    heading = int((angle + 22.5) % 360 // 45)
    return {"place": place, "heading": heading, "both": place * 8 + heading}


def replay(stream: FrameStream, episode: Episode, labels: Callable[[Any], dict[str, int]]) -> list[dict[str, int]]:
    """Play an episode again; labels of each of its frames.

    Raises:
        SystemExit: It shows other frames than were recorded.
    """
    frame, found = stream.reset(episode.seed), []
    for step, recorded in enumerate(episode.frames):
        if not np.array_equal(frame, recorded):
            raise SystemExit(f"played again, the episode of seed {episode.seed} shows another frame {step}")
        found.append(labels(stream.env.unwrapped))
        if step < len(episode.actions):
            frame = stream.step(stream.as_played(episode.actions[step]))[0]
    return found


def collect(scenes: Scenes, store: EpisodeStore, split: Any, stream: FrameStream) -> tuple[Tensor, dict[str, Tensor]]:
    """Codes (N, n) of the frames of a split, and their labels (N,) by name."""
    codes, rows = [], []
    labels = maze_labels if "Maze" in store.meta.env.id else doom_labels
    for number in store.numbers(split):
        episode = store.read(number)
        rows += replay(stream, episode, labels)
        codes.append(scenes.encode(scenes.tokenize(torch.from_numpy(np.array(episode.frames)))))
    return torch.cat(codes), {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def probe(codes: Tensor, labels: Tensor, num_codes: int, num_labels: int) -> Callable[[Tensor], Tensor]:
    """Fit a logistic regression on one-hot codes (N, n) to labels (N,); returns what predicts labels."""
    torch.manual_seed(0)
    offsets = num_codes * torch.arange(codes.shape[1])
    weights = nn.EmbeddingBag(num_codes * codes.shape[1], num_labels, mode="sum")
    nn.init.zeros_(weights.weight)
    bias = nn.Parameter(torch.zeros(num_labels))
    optimizer = torch.optim.LBFGS([weights.weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(weights(codes + offsets) + bias, labels) + DECAY * weights.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return lambda given: (weights(given + offsets) + bias).argmax(-1)


def main() -> None:
    """Print one line a label."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    scenes = Scenes.load(arguments.scene)
    with EpisodeStore.open(arguments.data) as store:
        stream = make_stream(store.meta.env)
        train, heldout = (collect(scenes, store, split, stream) for split in ("train", "heldout"))
        stream.close()
    print(f"{len(train[0])} frames to learn from, {len(heldout[0])} held out, {scenes.num_codes_per_frame} codes each")
    for name, known in train[1].items():
        classes = known.unique()  # a label that occurs in held-out frames alone counts as missed
        predict = probe(
            train[0], torch.searchsorted(classes, known), scenes.model.config.quantizer.num_codes, len(classes)
        )
        asked = heldout[1][name]
        hit = float((classes[predict(heldout[0])] == asked).float().mean())
        blind, most = 1 / len(classes), float(asked.unique(return_counts=True)[1].max() / len(asked))
        print(
            f"{name}: {len(classes)} classes, {hit:.1%} right; {hit / blind:.1f} times blind guessing ({blind:.1%}), "
            f"{hit / most:.1f} times the most frequent one ({most:.1%})"
        )


if __name__ == "__main__":
    main()
