"""A trained stable-baselines3 agent as the recording policy."""

import gymnasium
import numpy as np
import pytest
from support.toy_env import ID, SIZE

from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError
from worldvq.recording.config import RecordConfig
from worldvq.recording.record import episode_seed
from worldvq.stages.record import record

stable_baselines3 = pytest.importorskip("stable_baselines3")


@pytest.mark.filterwarnings("ignore")  # the library's own: it expects larger images
@pytest.mark.parametrize(("kind", "action"), [("PPO", "multi_discrete"), ("SAC", "box")])
def test_an_agent_acts_on_the_raw_observations_and_the_seed_decides(tmp_path, kind, action):
    kwargs = {"action": action, "observation": "vector"}
    zipped = tmp_path / "agent.zip"
    env = gymnasium.make(ID, **kwargs)
    algorithm = getattr(stable_baselines3, kind)
    algorithm("MlpPolicy", env, seed=0, device="cpu").save(zipped)

    config = RecordConfig(frames=None, episodes=3, workers=1, policy=str(zipped), seed=7)
    with record(EnvConfig(id=ID, size=SIZE, kwargs=kwargs), config, tmp_path / "data", progress=False) as store:
        episodes = [store.read(number) for number in range(3)]

    agent = algorithm.load(zipped, device="cpu")
    for number, episode in enumerate(episodes):
        observation, _ = env.reset(seed=episode_seed(7, number))
        agent.set_random_seed(episode_seed(7, number, 1))
        for stored in episode.actions:
            taken, _ = agent.predict(observation)
            np.testing.assert_array_equal(stored, np.reshape(taken, stored.shape))
            observation, *_ = env.step(taken)
    assert not np.array_equal(episodes[0].actions, episodes[1].actions)


def stacked(env):
    """Four observations at once, as agents are trained on."""
    return gymnasium.wrappers.FrameStackObservation(env, 4)


@pytest.mark.filterwarnings("ignore")
def test_an_agent_of_stacked_observations_plays_with_its_wrapper_and_says_so_without(tmp_path):
    kwargs = {"observation": "vector"}
    zipped = tmp_path / "agent.zip"
    stable_baselines3.DQN("MlpPolicy", stacked(gymnasium.make(ID, **kwargs)), device="cpu").save(zipped)
    config = RecordConfig(frames=None, episodes=1, workers=1, policy=str(zipped))
    env = EnvConfig(id=ID, size=SIZE, kwargs=kwargs)
    with pytest.raises(UsageError, match=r"trained on observations Box.*record with the wrappers .*env\.wrappers"):
        record(env, config, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()
    env = env.model_copy(update={"wrappers": [f"{__name__}:stacked"]})
    with record(env, config, tmp_path / "data", progress=False) as store:
        assert store.numbers() == [0]


def test_a_zip_that_is_no_agent_is_refused(tmp_path):
    path = tmp_path / "agent.zip"
    path.write_bytes(b"no zip")
    config = RecordConfig(frames=None, episodes=1, workers=1, policy=str(path))
    with pytest.raises(UsageError, match=r"agent\.zip is no agent"):
        record(EnvConfig(id=ID, size=SIZE), config, tmp_path / "data", progress=False)
