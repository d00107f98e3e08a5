"""Small deterministic environments, in which every number can be worked out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Space


class Clock(gym.Env):
    """Counts its steps, whatever the actions, and remembers what was done to it.

    Observations are ``[steps since the start, steps of the episode]``.

    Args:
        length: steps of an episode; None for one without end.
        ends: how an episode ends: ``"terminated"``, ``"truncated"`` or ``"terminated, truncated"``.
        action_space: a Box ``[-1, 1]`` of one dimension unless given.
        rew: the reward, a function of the steps since the start; 1 unless given.
        broken_at: the step since the start that returns an observation with NaN in it.
        in_place: return one array, changed in place, as careless environments do.
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
        # A copy, so that two environments don't draw from one generator.
        self.action_space = copy.deepcopy(action_space) or Box(-1, 1, (1,), np.float32)
        self.length, self.ends, self.rew = length, ends, rew
        self.broken_at, self.in_place = broken_at, in_place
        self.total, self.ep_len = 0, 0
        self.actions: list[np.ndarray] = []
        self.seeds: list[int | None] = []  # one a reset
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
    """An ``env_fn`` that keeps what it made: ``made.env`` trains, ``made.test_env`` tests."""

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
