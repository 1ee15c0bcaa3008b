"""Dreams that are stepped as one batch for a while dream what they would have alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.worlds import SPACES, make_actions, make_frames, make_world

from worldvq.errors import UsageError
from worldvq.world.dream import Dream


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(sorted(SPACES)),
    contexts=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    turns=st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=3, max_size=12),
)
def test_whoever_steps_together_dreams_as_alone(kind, contexts, turns):
    world = make_world(kind)
    torch.manual_seed(1)
    starts = [(make_frames(1, n), make_actions(kind, 1, n - 1)) for n in contexts]
    alone, guests = ([world.start(*start, row_seeds=[7 + i]) for i, start in enumerate(starts)] for _ in range(2))
    for turn in turns:  # who steps; the others stay as they are
        here = sorted(turn & set(range(len(contexts)))) or [0]
        actions = make_actions(kind, len(here), 1)[:, 0]
        before = [guests[i].tokens.clone() for i in here]
        joined = Dream.join([guests[i] for i in here])
        step = joined.step_tokens(actions)
        for row, i in enumerate(here):
            assert torch.equal(guests[i].tokens, before[row])  # what was joined has not moved
            guests[i] = joined.fork([row])
            own = alone[i].step_tokens(actions[row : row + 1])
            assert torch.equal(step.tokens[row], own.tokens[0])
            torch.testing.assert_close(step.rewards[row], own.rewards[0], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(guests[i].entropy(), alone[i].entropy(), rtol=1e-3, atol=1e-3)


def test_dreams_that_have_nothing_in_common_are_not_joined():
    world, other = make_world(), make_world()
    frames, actions = make_frames(1, 2), make_actions("discrete", 1, 1)
    dream = world.start(frames, actions)
    for stranger in (
        other.start(frames, actions),
        world.start(frames, actions, seed=1),
        world.start(frames, actions, temperature=0.5),
    ):
        with pytest.raises(UsageError, match="one world, one seed"):
            Dream.join([dream, stranger])


def test_entropy_is_that_of_the_distribution_each_token_was_drawn_from():
    """Against the teacher-forced pass over the whole clip."""
    world = make_world()
    frames, actions = make_frames(2, 3), make_actions("discrete", 2, 6)
    dream = world.start(frames, actions[:, :2], temperature=0.7)
    tokens = [*world.tokenize(frames).unbind(1)]
    for index in range(2, 5):
        tokens.append(dream.step_tokens(actions[:, index]).tokens)
        with torch.no_grad():
            logits = world.dynamics(torch.stack(tokens, 1), actions[:, : index + 2]).logits[:, -1].double()
        chances = torch.softmax(logits, -1).numpy()
        np.testing.assert_allclose(dream.entropy(), -(chances * np.log(chances)).sum(-1), rtol=1e-3, atol=1e-3)
