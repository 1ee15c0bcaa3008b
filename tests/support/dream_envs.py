"""What tests of the dream environment share: worlds of random weights whose dreams end, and data to begin them from."""

import numpy as np
import torch

from support.worlds import HEIGHT, SPACES, WIDTH, make_actions, make_frames, make_world
from worldvq.config.env import EnvConfig
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.types import Episode

LENGTH, CONTEXT = 9, 3
WORLDS = {kind: make_world(kind) for kind in SPACES}
for world in WORLDS.values():
    with torch.no_grad():  # about one step in eight ends the episode
        world.dynamics.termination.weight.mul_(0.1)
        world.dynamics.termination.bias.fill_(-2.0)


def make_data(path, kind):
    """Six episodes of noise, each longer than a context."""
    meta = DatasetMeta(
        env=EnvConfig(),
        action_space=SPACES[kind].to_json(),
        frame_size=(HEIGHT, WIDTH),
        policy="random",
        heldout_every=2,
    )
    torch.manual_seed(1)
    with EpisodeStore.create(path, meta) as store:
        for number in range(6):
            frames, actions = make_frames(1, LENGTH)[0].numpy(), make_actions(kind, 1, LENGTH - 1)[0].numpy()
            rewards = np.zeros(LENGTH - 1, np.float32)
            store.commit(number, Episode(frames, actions, rewards, terminated=True, truncated=False))
    return path


def start(kind, stores, **changes):
    """What :class:`DreamEnv` is told."""
    return {"world": WORLDS[kind], "data": stores[kind], "context": CONTEXT, "horizon": 12, **changes}
