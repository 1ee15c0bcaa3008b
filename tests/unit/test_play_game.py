"""What a player does in a dream: each is a row that knows nothing of the others, and moments are values."""

import asyncio

import numpy as np
import pytest
import torch
from support.play import make_openings, rows
from support.worlds import SPACES

from worldvq.errors import UsageError
from worldvq.media.videos import probe_video
from worldvq.play import game as module
from worldvq.play.controls import idle_action, sliders
from worldvq.play.game import Game
from worldvq.types import ActionSpace
from worldvq.world.actions import check_actions

ACTIONS = {"discrete": [2, 0, 1, 1, 2], "multi_discrete": [[2, 0], [0, 1], [1, 1]], "box": [[0.5, 3.0], [-1, 0]]}


def play(body, kind="discrete", players=1):
    """Run a coroutine with some games of one world."""
    openings = make_openings(kind)

    async def main(thread):
        games = [Game(thread, SPACES[kind], openings, None) for _ in range(players)]
        for game in games:
            await game.begin()
        return await body(openings, *games)

    with rows() as thread:
        return asyncio.run(main(thread))


def alone(openings, actions, luck=0, start=0, **sampling):
    """Frames of the same dream, stepped alone by the world itself."""
    chosen = openings.starts[start]
    dream = openings.world.start(chosen.frames[None], chosen.actions[None], row_seeds=[luck], **sampling)
    return [dream.step(torch.as_tensor(action)[None])[0].numpy() for action in actions]


@pytest.mark.parametrize("kind", sorted(SPACES))
def test_a_game_shows_what_the_world_dreams(kind):
    async def body(openings, game):
        for action in ACTIONS[kind]:
            await game.act(action)
        return game.now.frame, alone(openings, ACTIONS[kind])[-1]

    shown, dreamt = play(body, kind)
    np.testing.assert_array_equal(shown, dreamt)


def test_players_who_step_together_dream_as_alone():
    plans = [[2, 2, 2, 2], [0, 1, 0, 1], [1, 1, 1, 0]]

    async def body(openings, *games):
        for luck, game in enumerate(games):  # of the same luck, so small a world dreams much the same anywhere
            for start in range(luck):
                await game.begin(start + 1)
        for turn in range(4):
            await asyncio.gather(*(game.act(plan[turn]) for game, plan in zip(games, plans, strict=True)))
        expected = [alone(openings, plan, luck=start, start=start)[-1] for start, plan in enumerate(plans)]
        return [game.now.frame for game in games], expected

    shown, dreamt = play(body, players=3)
    np.testing.assert_array_equal(shown, dreamt)
    assert not np.array_equal(shown[0], shown[1])


def test_undo_brings_back_the_picture_and_what_follows_it():
    async def body(openings, game):
        seen = [game.now.frame]
        for action in ACTIONS["discrete"]:
            await game.act(action)
            seen.append(game.now.frame)
        await game.undo(2)
        np.testing.assert_array_equal(game.now.frame, seen[3])
        assert game.now.steps == 3
        for action, frame in zip(ACTIONS["discrete"][3:], seen[4:], strict=True):
            await game.act(action)
            np.testing.assert_array_equal(game.now.frame, frame)
        await game.undo(1000)
        np.testing.assert_array_equal(game.now.frame, seen[0])
        assert game.undoable == 0

    play(body)


def test_undo_reaches_as_far_as_memory_allows(monkeypatch):
    async def body(openings, game):
        monkeypatch.setattr(module, "UNDO_BYTES", 3 * module.num_bytes(game.now.dream))
        seen = []
        for index in range(8):
            await game.act(index % 3)
            seen.append(game.now.frame)
            assert game.undoable == min(index + 1, 3)
        await game.undo(5)
        assert (game.now.steps, game.undoable) == (5, 0)
        np.testing.assert_array_equal(game.now.frame, seen[4])

    play(body)


def test_beginning_again_is_the_same_place_with_other_luck():
    async def body(openings, game):
        first = game.now.frame
        await game.act(2)
        await game.begin()
        np.testing.assert_array_equal(game.now.frame, first)
        await game.act(2)
        np.testing.assert_array_equal(game.now.frame, alone(openings, [2], luck=1)[-1])
        await game.begin(2)
        await game.act(1)
        np.testing.assert_array_equal(game.now.frame, alone(openings, [1], luck=2, start=2)[-1])
        with pytest.raises(UsageError, match="no start 3, only 0 to 2"):
            await game.begin(3)

    play(body)


def test_what_if_forks_and_one_branch_can_be_taken():
    async def body(openings, game):
        await game.act(1)
        here = game.now.frame
        branches = [moments async for moments in game.what_if([0, 2], 3)]
        for row, action in enumerate((0, 2)):
            expected = alone(openings, [1, action, action, action])[1:]
            np.testing.assert_array_equal([moments[row].frame for moments in branches], expected)
        np.testing.assert_array_equal(game.now.frame, here)
        await game.take(1)
        np.testing.assert_array_equal(game.now.frame, branches[-1][1].frame)
        assert game.now.steps == 4
        assert game.now.total == pytest.approx(branches[-1][1].total)
        await game.act(0)
        np.testing.assert_array_equal(game.now.frame, alone(openings, [1, 2, 2, 2, 0])[-1])
        await game.undo(4)
        np.testing.assert_array_equal(game.now.frame, here)
        with pytest.raises(UsageError, match="no such branch"):
            await game.take(0)

    play(body)


def test_temperature_is_a_players_own():
    async def body(openings, cold, warm):
        cold.set_temperature(0.0)
        for action in (1, 2, 0):
            await asyncio.gather(cold.act(action), warm.act(action))
        np.testing.assert_array_equal(cold.now.frame, alone(openings, [1, 2, 0], temperature=0.0)[-1])
        np.testing.assert_array_equal(warm.now.frame, alone(openings, [1, 2, 0])[-1])
        await cold.undo(1)  # to a moment at another temperature than is set afterwards
        cold.set_temperature(1.0)
        await cold.act(0)
        cold.overlay = True
        await cold.act(0)
        assert cold.now.entropy.shape == openings.world.tokenizer.grid and (cold.now.entropy > 0).all()

    play(body, players=2)


@pytest.mark.parametrize(
    ("kind", "action", "words"),
    [
        ("discrete", 3, "outside discrete"),
        ("discrete", -1, "outside"),
        ("discrete", 0.5, "outside"),
        ("discrete", [1], "one number"),
        ("multi_discrete", [1], "2 numbers"),
        ("multi_discrete", [1, 2], "outside"),
        ("box", [2.0, 0.0], "outside box"),
        ("box", 1.0, "2 numbers"),
    ],
)
def test_an_action_that_is_none_changes_nothing(kind, action, words):
    async def body(openings, game):
        before = game.now
        with pytest.raises(UsageError, match=words):
            await game.act(action)
        with pytest.raises(UsageError, match=words):
            async for _ in game.what_if([action], 1):
                pass
        assert game.now is before
        await game.act(ACTIONS[kind][0])

    play(body, kind)


def test_a_clip_holds_every_frame_since_the_beginning(tmp_path):
    async def body(openings, game):
        for action in ACTIONS["discrete"]:
            await game.act(action)
        return await game.clip(15)

    path = tmp_path / "clip.mp4"
    path.write_bytes(play(body))
    count, height, width = probe_video(path)
    assert count == 6 and height % 16 == 0 and height >= module.CLIP_HEIGHT and width * 16 == height * 24


def test_what_fails_on_the_thread_is_told_to_who_asked_alone():
    async def body(openings, game, other):
        def broken(*_):
            raise OSError("the physics exploded")

        with pytest.raises(OSError, match="exploded"):
            await game._rows.call(broken)
        gone = asyncio.create_task(other.act(1))  # a browser that is closed in the middle of a frame
        await asyncio.sleep(0)
        gone.cancel()
        await game.act(1)
        np.testing.assert_array_equal(game.now.frame, alone(openings, [1])[-1])

    play(body, players=2)


INF = float("inf")
IDLE = [
    (ActionSpace("discrete", (3,), names=("left", "NOOP", "right")), 1),
    (ActionSpace("discrete", (2,), names=("left", "right")), None),
    (ActionSpace("discrete", (2,)), None),
    (ActionSpace("multi_discrete", (2, 5)), [0, 0]),
    (ActionSpace("box", low=(-1.0, 0.5, -INF), high=(1.0, 2.0, INF)), [0.0, 0.5, 0.0]),
]


@pytest.mark.parametrize(("space", "idle"), IDLE)
def test_who_presses_nothing_does_nothing_where_that_can_be_done(space, idle):
    assert idle_action(space) == idle
    if idle is not None:
        check_actions(np.array(idle), space, "idle")


def test_sliders_have_ends_and_hold_what_is_idle():
    space = ActionSpace("box", low=(-1.0, -INF, 3.0, -INF), high=(1.0, INF, INF, -5.0))
    assert sliders(space) == [[-1, 1], [-1, 1], [3, 4], [-6, -5]]
    ends = np.array(sliders(space))
    check_actions(ends.T, space, "sliders")
    assert ((ends[:, 0] <= idle_action(space)) & (idle_action(space) <= ends[:, 1])).all()
