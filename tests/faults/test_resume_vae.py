"""The VAE of tools/compare_vae.py, killed and started again: the same weights and the same table as if not."""

from support.episodes import make_episode, write
from support.training import assert_same_run, compare_vae, finish, start
from support.worlds import HEIGHT, WIDTH, make_world

STEPS = 7


def test_a_killed_run_continues_to_the_same_bits_and_table(tmp_path):
    world = make_world()
    world.save(tmp_path / "world")
    episodes = [make_episode(seed, size=(HEIGHT, WIDTH)) for seed in range(4)]
    write(tmp_path / "data", world.action_space, episodes)

    def run(folder, kill_at=None):
        return finish(start(1, folder.with_suffix(".x"), compare_vae, str(tmp_path), str(folder), STEPS, kill_at))

    def table(folder):
        log = folder.with_suffix(".0.log").read_text()
        return log[log.index("| bits per dimension") :]

    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(whole) == [0], (tmp_path / "whole.0.log").read_text()
    assert run(out, 13) == [-9]  # between two checkpoints; held-out batches count too
    assert run(out) == [0], (tmp_path / "out.0.log").read_text()
    assert_same_run(out, whole, STEPS, resumed_at=4)
    assert table(out) == table(whole) and "VAE, 24 Gaussian numbers" in table(out)
