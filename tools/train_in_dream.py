"""PPO in a dream, judged in the real environment: ``python tools/train_in_dream.py --world W --data D --out DIR``.

Trains stable-baselines3's PPO for ``--steps`` steps inside the dream of a world, and nowhere else. Then it plays
``--episodes`` real episodes of the environment that D was recorded from, and a random policy plays them too, from
the same seeds. The agent sees real frames through the tokenizer, as it has never seen others. Plays the environment of
D: only for a dataset that you trust. Writes agent.zip, result.json, and agent.mp4: a real episode, and what the agent
sees of it. Where agent.zip is there, it only plays.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from rich.progress import track
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor
from worldvq_envs.adapters import make_stream
from worldvq_envs.sb3 import SB3VecEnv
from worldvq_envs.stream import FrameStream

from worldvq import EpisodeStore, WorldModel
from worldvq.evaluation.metrics import mean_over_rows
from worldvq.media.videos import write_video
from worldvq.recording.players import random_action

SEEDS = 10**6
"""Where the seeds of the real episodes begin."""


def train(world: WorldModel, arguments: argparse.Namespace) -> PPO:
    """Train an agent in the dream."""
    env = gymnasium.make_vec(
        "worldvq/Dream-v0",
        num_envs=arguments.envs,
        vectorization_mode="vector_entry_point",
        autoreset_mode="SameStep",
        world=world,
        data=str(arguments.data),
        horizon=arguments.horizon,
    )
    settings: dict[str, Any] = {"n_steps": 64, "batch_size": 256, "n_epochs": 4, "gamma": 0.97, "ent_coef": 0.01}
    agent = PPO("CnnPolicy", VecMonitor(SB3VecEnv(env)), seed=arguments.seed, device="auto", verbose=1, **settings)
    agent.learn(arguments.steps)
    return agent


class Eyes:
    """What the agent sees of a real frame: what the tokenizer keeps of it."""

    def __init__(self, world: WorldModel):
        self.world = world

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Return an (H, W, 3) uint8 frame through the tokenizer."""
        return self.world.render(self.world.tokenize(frame[None, None]))[0, 0].numpy()


def play(stream: FrameStream, seed: int, choose: Any) -> tuple[float, int]:
    """Play one real episode; returns the sum of its rewards, and its steps."""
    frame, total, steps, over = stream.reset(seed), 0.0, 0, False
    while not over:
        frame, reward, terminated, truncated = stream.step(choose(frame))
        total, steps, over = total + reward, steps + 1, terminated or truncated
    return total, steps


def act(eyes: Eyes, agent: PPO, frame: np.ndarray) -> np.ndarray:
    """Return what the agent does, drawn from torch's generator."""
    action, _ = agent.predict(eyes(frame), deterministic=False)
    return np.asarray(action)


def film(world: WorldModel, stream: FrameStream, agent: PPO, path: Path) -> None:
    """Play the first of the real episodes again, and write it as a video: real frames, and what the agent sees."""
    eyes, shown = Eyes(world), []
    torch.manual_seed(SEEDS)

    def watched(frame: np.ndarray) -> np.ndarray:
        shown.append(np.concatenate([frame, eyes(frame)], axis=1))
        return act(eyes, agent, frame)

    play(stream, SEEDS, watched)
    write_video(path, shown, fps=9, scale=4)


def judge(world: WorldModel, stream: FrameStream, agent: PPO, episodes: int) -> dict[str, Any]:
    """Return the returns of the agent and of random actions in the same episodes, and what can be said of them."""
    eyes, found = Eyes(world), {"agent": [], "random": []}
    for number in track(range(episodes), "real episodes"):
        seed = SEEDS + number
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)

        found["agent"].append(play(stream, seed, lambda frame: act(eyes, agent, frame)))
        found["random"].append(play(stream, seed, lambda frame, rng=rng: random_action(stream.action_space, rng)))
    result: dict[str, Any] = {}
    for name, pairs in found.items():
        returns, lengths = np.array(pairs).T
        result[name] = {"returns": returns.tolist(), **mean_over_rows(returns), "steps": float(lengths.mean())}
    agent_paid, random_paid = (np.array(result[name]["returns"]) for name in ("agent", "random"))
    result["difference"] = mean_over_rows(agent_paid - random_paid)
    result["over_twice_random"] = mean_over_rows(agent_paid - 2 * random_paid)
    return result


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="dataset of the world's environment")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100_000, help="in the dream")
    parser.add_argument("--envs", type=int, default=32, help="dreams side by side")
    parser.add_argument("--horizon", type=int, default=50, help="steps after which a dream begins again")
    parser.add_argument("--episodes", type=int, default=50, help="real ones")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    world = WorldModel.load(arguments.world)
    stream = make_stream(EpisodeStore.read_meta(arguments.data).env)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "agent.zip"
    if not path.is_file():
        begun = time.monotonic()
        train(world, arguments).save(path)
        print(f"{arguments.steps:,} steps in the dream, {time.monotonic() - begun:.0f} s")
    agent = PPO.load(path)
    result = judge(world, stream, agent, arguments.episodes)
    film(world, stream, agent, arguments.out / "agent.mp4")
    stream.close()
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1))
    for name in ("agent", "random", "difference", "over_twice_random"):
        value = result[name]
        print(f"{name.replace('_', ' ')}: {value['mean']:.2f} [{value['ci95'][0]:.2f}, {value['ci95'][1]:.2f}]")


if __name__ == "__main__":
    main()
