"""A small deterministic environment whose returns can be computed by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Space


class Clock(gym.Env):
    """Counts its steps, ignores its actions, and records the actions and the seeds.

    Observations are ``[steps since the start, steps of the episode]``.

    Args:
        length: steps per episode; None for episodes that never end.
        ends: how an episode ends: ``"terminated"``, ``"truncated"`` or ``"terminated, truncated"``.
        action_space: ``Box(-1, 1, (1,))`` if None.
        rew: function from the number of steps since the start to the reward; 1 by default.
        broken_at: number of the step since the start whose observation contains NaN.
        in_place: return the same array every time, changed in place, as some environments do.
    """

    def __init__(
        self,
        length: int | None = None,
        ends: str = "terminated",
        action_space: Space | None = None,
        rew: Callable[[int], float] = lambda t: 1.0,
        broken_at: int | None = None,
        in_place: bool = False,
    ):
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        # A copy, so that environments don't share the random generator of a space.
        self.action_space = copy.deepcopy(action_space) or Box(-1, 1, (1,), np.float32)
        self.length, self.ends, self.rew = length, ends, rew
        self.broken_at, self.in_place = broken_at, in_place
        self.total, self.ep_len = 0, 0
        self.actions: list[np.ndarray] = []
        self.seeds: list[int | None] = []  # one per reset
        self._obs = np.zeros(2, dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.ep_len = 0
        return self._observe(), {}

    def step(self, action):
        self.actions.append(np.array(action))
        self.total += 1
        self.ep_len += 1
        ended = self.ep_len == self.length
        terminated, truncated = (
            ended and kind in self.ends for kind in ("terminated", "truncated")
        )
        return self._observe(), self.rew(self.total), terminated, truncated, {}

    def _observe(self):
        self._obs[:] = self.total, self.ep_len
        if self.total == self.broken_at:
            self._obs[1] = np.nan
        return self._obs if self.in_place else self._obs.copy()


class Made:
    """An ``env_fn`` that keeps its environments: ``made.env`` trains, ``made.test_env`` tests."""

    def __init__(self, **kwargs):
        self.kwargs = kwargs
        self.envs: list[Clock] = []

    def __call__(self) -> Clock:
        self.envs.append(Clock(**self.kwargs))
        return self.envs[-1]

    @property
    def env(self) -> Clock:
        return self.envs[0]

    @property
    def test_env(self) -> Clock:
        return self.envs[1]
