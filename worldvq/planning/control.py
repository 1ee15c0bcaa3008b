"""Model-predictive control: plan in a dream, take the first steps of the plan, look again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worldvq.planning.planners import Plan, Planner, propose, random_shooting
from worldvq.planning.rollout import Rollout, forecast_plans, goal_score, reward_score

if TYPE_CHECKING:
    from worldvq.world.dream import Dream
    from worldvq.world.model import WorldModel


class Controller:
    """Acts by dreaming: it is shown frames, and says what to do next.

        controller.begin(frame)
        while playing:
            action = controller.act()
            controller.see(action, environment(action))

    Every ``every`` steps a dream begins from the last frames that were really seen, as many as the world attends to; a
    planner searches it for the plan that is worth most, what is left of the plan before among the candidates. Dreams
    multiply in bf16 where the hardware does.

    Attributes:
        plan: The plan that is followed now; None before the first one.
        taken: Steps of it that were asked for.
    """

    def __init__(
        self,
        world: WorldModel,
        *,
        horizon: int = 8,
        every: int = 2,
        candidates: int = 32,
        planner: Planner = random_shooting,
        rollout: Rollout = forecast_plans,
        goal: np.ndarray | None = None,
    ):
        """Set up.

        Args:
            world: The world that is dreamt in.
            horizon: Steps of a plan.
            every: Steps of it that are taken before the next one is made.
            candidates: Plans that are dreamt for each.
            planner: How plans are searched for.
            rollout: How they are dreamt.
            goal: (H, W, 3) uint8, a frame to come near to; None goes for rewards.
        """
        self.world, self.horizon, self.every, self.candidates = world, horizon, min(every, horizon), candidates
        self.planner, self.rollout, self.goal = planner, rollout, goal

    def begin(self, frame: np.ndarray, seed: int = 0) -> None:
        """Begin an episode with its first frame (H, W, 3) uint8; the same seed plans the same."""
        self._rng, self._seed = np.random.default_rng(seed), seed
        self._frames, self._actions, self.taken = [frame], [], 0
        self.plan: Plan | None = None
        self._dream: Dream | None = None

    def act(self) -> np.ndarray:
        """Return the stored action to take now."""
        if self.plan is None or self.taken == self.every:
            self._make_plan()
        assert self.plan is not None
        action = self.plan.actions[self.taken]
        self.taken += 1
        return action

    def see(self, action: np.ndarray, frame: np.ndarray) -> None:
        """Take in the stored action that was really taken, and the frame (H, W, 3) uint8 that followed."""
        self._actions.append(action)
        self._frames.append(frame)
        most = self.world.dynamics.config.context_frames
        self._frames, self._actions = self._frames[-most:], self._actions[-most + 1 :] if most > 1 else []

    def dreamt(self) -> np.ndarray:
        """Return the frames (every, H, W, 3) uint8 that the newest plan was to show, drawn with the prior."""
        assert self._dream is not None and self.plan is not None
        fork = self._dream.fork([0])
        return np.concatenate([fork.step(action[None]).numpy() for action in self.plan.actions[: self.every]])

    def _make_plan(self) -> None:
        space = self.world.action_space
        between = np.array(self._actions, space.dtype).reshape(1, len(self._frames) - 1, *space.shape)
        self._dream = self.world.start(np.stack(self._frames)[None], between, seed=self._seed, precision="auto")
        if self.goal is None:
            score = reward_score(self._dream, self.rollout)
        else:
            score = goal_score(self._dream, self.goal, self.rollout)
        known = None
        if self.plan is not None:
            rest = propose(space, 1, self.every, self._rng)[0]
            known = np.concatenate([self.plan.actions[self.every :], rest])[None]
        self.plan = self.planner(score, space, self.horizon, self._rng, candidates=self.candidates, known=known)
        self.taken = 0
