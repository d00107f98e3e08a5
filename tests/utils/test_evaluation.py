import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from spinup.utils import mpi_tools
from spinup.utils.envs import make_env, seed_everything
from spinup.utils.evaluation import run_test_episodes


class Countdown(gym.Env):
    """An environment whose episode k has k steps, rewards of k, and is truncated if k is even."""

    observation_space = Box(0, 99, (1,))
    action_space = Box(-1, 1, (1,))
    episode = 0

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        self.left = self.episode
        return np.float32([self.left]), {}

    def step(self, action):
        self.left -= 1
        ended = self.left == 0
        by_time = self.episode % 2 == 0
        return np.float32([self.left]), self.episode, ended and not by_time, ended and by_time, {}


class Stored:
    """A logger that keeps the values stored."""

    def __init__(self):
        self.rows = []

    def store(self, **row):
        self.rows.append(row)


def evaluate(episodes, max_ep_len, policy=lambda obs, deterministic: np.zeros(1)):
    logger = Stored()
    run_test_episodes(policy, make_env(Countdown), episodes, max_ep_len, logger)
    return [(row["TestEpRet"], row["TestEpLen"]) for row in logger.rows]


def test_episodes_end_at_termination_and_at_truncation():
    assert evaluate(3, 10) == [(1, 1), (4, 2), (9, 3)]


def test_episodes_end_at_max_ep_len():
    assert evaluate(4, 2) == [(1, 1), (4, 2), (6, 2), (8, 2)]


def test_no_episodes_store_nothing():
    assert evaluate(0, 10) == []


def test_the_policy_is_deterministic_and_sees_each_observation():
    seen = []

    def policy(obs, deterministic):
        seen.append((obs.item(), deterministic))
        return np.zeros(1)

    evaluate(2, 10, policy)
    assert seen == [(1, True), (2, True), (1, True)]


@pytest.mark.parametrize("rank, episodes", [(0, 3), (1, 2)])
def test_episodes_are_split_over_ranks(rank, episodes, monkeypatch):
    monkeypatch.setattr(mpi_tools, "num_procs", lambda: 2)
    monkeypatch.setattr(mpi_tools, "proc_id", lambda: rank)
    assert len(evaluate(5, 10)) == episodes


def test_episodes_leave_no_trace_in_the_global_generators():
    drawn = []

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def policy(obs, deterministic):
        drawn.append(draw())
        return np.zeros(1)

    seed_everything(3)
    expected = [draw() for _ in range(3)]
    seed_everything(3)
    first = draw()
    evaluate(2, 10, policy)
    assert [first, draw(), draw()] == expected
    assert len({*drawn}) == 3  # two episodes of 1 and 2 steps, with different draws


def test_the_generators_are_set_back_after_an_error():
    def policy(obs, deterministic):
        np.random.rand()
        raise KeyError("by test")

    seed_everything(3)
    expected = np.random.rand()
    seed_everything(3)
    with pytest.raises(KeyError):
        evaluate(1, 10, policy)
    assert np.random.rand() == expected
