"""`worldvq record` and `worldvq data merge`: datasets that name code, shards, and a second recorder."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import programs
from support.command_line import COMMAND, check_error, run, spawn, spawn_light, succeed
from support.fault_tools import hashes, wait_until
from support.toy_env import ID

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.files.lock import Lock
from worldvq.types import ActionSpace

MAZE = ["record", "worldvq/Maze-v0", "--workers", "1", "--policy", "random", "env.max_steps=12"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


# ------------------------------------------------------------------------------------------------ trust


@pytest.mark.parametrize(
    ("env_id", "policy"), [("evil:Evil-v0", "held 8"), ("worldvq/Maze-v0", "evil:act"), ("Evil-v0", "agent.zip")]
)
def test_a_dataset_that_names_code_does_not_run_it(tmp_path, monkeypatch, env_id, policy):
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(
        f"open({str(canary)!r}, 'w').close()\ndef act(space, seed): return lambda frame: 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    meta = DatasetMeta(
        env=EnvConfig(id=env_id),
        action_space=ActionSpace("discrete", (7,)).to_json(),
        frame_size=(64, 64),
        policy=policy,
    )
    EpisodeStore.create(tmp_path / "d", meta).close()
    before = hashes(tmp_path / "d")
    for command in (["data", "info"], ["data", "verify"], ["data", "merge"]):
        assert run(*command, tmp_path / "d").returncode == 0
    result = run("record", "--out", tmp_path / "d", "--episodes", 1)
    check_error(result, 2, [f"'{env_id}'", f"'{policy.split()[0]}'", "--trust", "runs code"])
    assert not canary.exists() and "evil" not in sys.modules and hashes(tmp_path / "d") == before


def test_a_trusted_dataset_goes_on_as_it_was_recorded(tmp_path):
    options = ["--size", "32x48", "--policy", "held", "--seed", 3, "record.hold=5", "record.heldout_every=4"]
    succeed(*MAZE, "--out", tmp_path / "whole", "--episodes", 4, *options)
    succeed(*MAZE, "--out", tmp_path / "part", "--episodes", 2, *options)
    result = succeed("record", "--out", tmp_path / "part", "--episodes", 4, "--trust")
    assert "'worldvq/Maze-v0'" in result and "'held'" in result
    assert hashes(tmp_path / "part") == hashes(tmp_path / "whole")


def test_without_an_environment_there_must_be_a_dataset(tmp_path):
    check_error(run("record", "--out", tmp_path / "d", "--trust"), 2, ["no such dataset", "worldvq record ENV"])
    assert not (tmp_path / "d").exists()


# ------------------------------------------------------------------------------------------------ shards


def test_shards_by_option_and_by_launcher_merge_to_the_whole(tmp_path, monkeypatch):
    succeed(*MAZE, "--out", tmp_path / "whole", "--episodes", 5)
    out = tmp_path / "shards"
    result = succeed(*MAZE, "--out", out, "--episodes", 5, "--shard", "1/2")
    assert "shard 1/2" in result and f"worldvq data merge {out}" in result
    check_error(run("data", "info", out), 2, ["not merged", f"worldvq data merge {out}"])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "shard 0/2 of" in succeed(*MAZE, "--out", out, "--episodes", 5)
    assert "2 shards merged, 5 episodes" in succeed("data", "merge", out)
    assert hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.parametrize(("option", "words"), [("2/2", "2/2"), ("x", "'x'")])
def test_a_shard_that_is_none_is_refused(tmp_path, option, words):
    check_error(run(*MAZE, "--out", tmp_path / "d", "--shard", option), 2, [words, "0/4"])
    check_error(run(*MAZE, "--out", tmp_path / "d", "--shard", "0/2", "--ray", 2), 2, ["--ray", "--shard"])
    assert not (tmp_path / "d").exists()


def test_merging_what_is_no_store_is_refused(tmp_path):
    check_error(run("data", "merge", tmp_path / "none"), 2, ["none"])
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------------------------------------ one writer


@pytest.mark.parametrize("command", [MAZE, [*MAZE, "--shard", "0/2"], ["data", "merge"]])
def test_a_second_writer_is_told_before_anything_heavy_is_imported(tmp_path, command):
    lock = Lock(tmp_path)
    done = spawn_light(*command, *(["--out"] if command[0] == "record" else []), tmp_path)
    check_error(done, 1, [f"{tmp_path}: process ", " is writing to it"])
    lock.release()


def test_a_recorder_that_is_terminated_ends_cleanly_and_goes_on(tmp_path):
    out = tmp_path / "d"
    command = [*COMMAND, *MAZE, "--out", str(out), "--episodes", "100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=programs.environment())
    try:
        assert wait_until((out / "index.jsonl").exists)
        process.terminate()
        error = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 143
    assert error.strip() == "worldvq: stopped by SIGTERM; run the same command again to continue"
    recorded = len(EpisodeStore.open(out))
    assert recorded >= 1 and {path.name for path in (out / "episodes").iterdir()} == {
        f"{number:06d}.safetensors" for number in range(recorded)
    }
    succeed(*MAZE, "--out", out, "--episodes", recorded + 1)
    assert EpisodeStore.open(out).verify() == []


# ------------------------------------------------------------------------------------------------ what is played

OWN = """
import gymnasium, numpy
class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), numpy.uint8)
    action_space = gymnasium.spaces.Discrete(2)
    def frame(self):
        return numpy.random.default_rng(self.steps).integers(0, 256, (16, 16, 3), numpy.uint8)
    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.frame(), {}
    def step(self, action):
        self.steps += 1
        return self.frame(), 0.0, self.steps == 40, False, {}
class Wrapped(gymnasium.Wrapper):
    pass
def one(space, seed):
    return lambda frame: 1
gymnasium.register("Own-v0", Env)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a module of its user's, who is in it."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


@pytest.mark.parametrize("module", ["{}", "./{}.py"])
def test_a_module_in_the_current_folder_is_found_by_the_script(own, module):
    """As the installed script starts, whose path begins with its own folder: environment, wrapper and policy."""
    module = module.format(own)
    script = (sys.executable, "-c", "import sys; sys.path.remove(''); from worldvq.cli.main import main; main()")
    words = [f"{module}:Own-v0", "--policy", f"{module}:one", f"env.wrappers=['{module}:Wrapped']"]
    options = ["--episodes", 3, "--size", 16]
    succeed("record", *words, "--out", "d", *options, how=lambda *arguments: spawn(*arguments, command=script))
    assert {action for n in range(3) for action in EpisodeStore.open("d").read(n).actions} == {1}


def test_the_current_folder_hides_no_package(own):
    before = list(sys.path)
    check_error(run("record", f"{own}:Other-v0", "--out", "d", "--episodes", 1), 2, [f"{own} registers Own-v0"])
    assert sys.path[: len(before)] == before


def test_a_file_is_not_taken_for_another_module(own):
    Path("gymnasium.py").write_text("def one(space, seed): pass")
    result = run("record", "worldvq/Maze-v0", "--policy", "./gymnasium.py:one", "--out", "d", "--episodes", 1)
    check_error(result, 2, ["./gymnasium.py", "another module", "rename"])
    result = run("record", "worldvq/Maze-v0", "--policy", "./none.py:one", "--out", "d", "--episodes", 1)
    check_error(result, 2, ["no such file: ./none.py"])


@pytest.mark.parametrize("debug", [False, True])
def test_debug_shows_where_an_environment_failed(tmp_path, debug):
    settings = ["env.size=[16,24]", "env.kwargs={fail: raise, fail_at: reset}", "record.workers=1"]
    words = ["record", ID, "--out", tmp_path / "d", "--episodes", "1", *settings, *(["--debug"] if debug else [])]
    done = spawn(*words)
    assert done.returncode and "the physics exploded" in done.stderr
    assert ("toy_env.py" in done.stderr and "in go_wrong" in done.stderr) == debug


def test_a_config_names_the_environment(own):
    Path("c.yaml").write_text(f"env: {{id: '{own}:Own-v0', size: 16x16, max_steps: 5}}\nrecord: {{episodes: 2}}\n")
    succeed("record", "--config", "c.yaml", "--out", "d")
    store = EpisodeStore.open("d")
    assert store.meta.env.id == f"{own}:Own-v0" and [entry.num_frames for entry in store.entries] == [6, 6]
    succeed("record", "--config", "c.yaml", "--out", "maze", "env.id=worldvq/Maze-v0", "env.max_steps=4")
    assert EpisodeStore.open("maze").meta.env.id == "worldvq/Maze-v0"


def test_a_config_holds_for_another_environment_but_for_what_is_its_own(own):
    own_keys = "id: worldvq/Maze-v0, kwargs: {max_steps: 9}, crop: [1, 1, 1, 1], observation_key: a"
    Path("c.yaml").write_text(f"env: {{{own_keys}, max_steps: 5, frame_skip: 2, size: 16}}\n")
    result = succeed("record", f"{own}:Own-v0", "--config", "c.yaml", "--out", "d", "--episodes", 2)
    assert "c.yaml: env.crop, env.kwargs, env.observation_key left out, of 'worldvq/Maze-v0' alone" in result
    env = EpisodeStore.open("d").meta.env
    assert env == EnvConfig(id=f"{own}:Own-v0", max_steps=5, frame_skip=2, size=(16, 16))
    assert EpisodeStore.open("d").entries[0].num_frames == 6


def test_a_config_without_an_environment_goes_on_with_the_dataset(own):
    succeed("record", f"{own}:Own-v0", "--config", "tiny", "--out", "d", "--episodes", 1, "--size", 16)
    assert EpisodeStore.open("d").meta.env.max_steps == 120  # of a config that names no environment, for any
    succeed("record", "--config", "tiny", "--out", "d", "--episodes", 2, "--trust")
    assert len(EpisodeStore.open("d")) == 2


# ------------------------------------------------------------------------------------------------ what is held out


@pytest.mark.parametrize(("count", "split", "suggested"), [(5, [], 4), (2, [], 2), (3, ["record.heldout_every=1"], 3)])
def test_a_recording_without_held_out_episodes_says_so_and_is_mended_without_playing(tmp_path, count, split, suggested):
    words = [*MAZE, "--out", tmp_path / "d", "--episodes", count]
    result = succeed(*words, *split)
    assert "warning" in result and f"record.heldout_every={suggested}" in result, result
    before = {path: path.read_bytes() for path in (tmp_path / "d").rglob("*.safetensors")}
    assert "warning" not in succeed(*words, f"record.heldout_every={suggested}")
    assert {path: path.read_bytes() for path in (tmp_path / "d").rglob("*.safetensors")} == before
    store = EpisodeStore.open(tmp_path / "d")
    assert store.heldout_every == suggested and store.numbers("heldout") and store.numbers("train")
    assert store.verify() == []
    succeed(*words)  # which says nothing of the split: the dataset keeps its own
    assert EpisodeStore.open(tmp_path / "d").heldout_every == suggested


def test_one_episode_alone_cannot_be_divided(tmp_path):
    result = succeed(*MAZE, "--out", tmp_path / "d", "--episodes", 1)
    assert "nothing is held out" in result and "record more episodes" in result and "heldout_every=" not in result


def test_a_shard_changes_no_split(tmp_path):
    succeed(*MAZE, "--out", tmp_path / "d", "--episodes", 2)
    words = [*MAZE, "--out", tmp_path / "d", "--episodes", 4, "--shard", "0/2", "record.heldout_every=2"]
    check_error(run(*words), 2, ["heldout_every: the dataset has 10, you ask for 2"])
