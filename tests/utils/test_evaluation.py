import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from spinup.utils import mpi_tools
from spinup.utils.envs import make_env, seed_everything
from spinup.utils.evaluation import evaluate_policy, run_test_episodes
from spinup.utils.nets import DeterministicActorCritic, MLPActorCritic
from spinup.utils.normalization import NormalizedActorCritic


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


# --- evaluate_policy ---


class Mean(MLPActorCritic):
    """An actor-critic whose method `act` only samples."""

    def act(self, obs):
        return super().act(obs)


class Told(gym.Env):
    """An environment that records its actions; its episodes have five steps."""

    observation_space, action_space = Box(-np.inf, np.inf, (3,)), Box(-1, 1, (2,))
    acts: list = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 5
        return self.np_random.standard_normal(3).astype(np.float32), {}

    def step(self, action):
        self.acts.append(np.array(action))
        self.left -= 1
        obs = self.np_random.standard_normal(3).astype(np.float32)
        return obs, float(obs[0]), self.left == 0, False, {}


def networks(kind, is_normalized=False):
    torch.manual_seed(0)
    ac = kind(Told.observation_space, Told.action_space, (8,))
    return NormalizedActorCritic(ac, Told.observation_space) if is_normalized else ac


def test_a_policy_is_evaluated_in_whole_episodes():
    zeros = networks(DeterministicActorCritic)
    returns, lengths = evaluate_policy(zeros, LongCountdown, 4)
    assert returns.tolist() == [1, 4, 9, 16] and lengths.tolist() == [1, 2, 3, 4]
    returns, lengths = evaluate_policy(zeros, LongCountdown, 4, max_ep_len=2)
    assert returns.tolist() == [1, 4, 6, 8] and lengths.tolist() == [1, 2, 2, 2]


class LongCountdown(Countdown):
    """As `Countdown`, with the spaces of `Told`."""

    observation_space, action_space = Told.observation_space, Told.action_space

    def reset(self, **kwargs):
        return np.resize(super().reset(**kwargs)[0], 3), {}

    def step(self, action):
        obs, *rest = super().step(action)
        return np.resize(obs, 3), *rest


@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("kind", [MLPActorCritic, Mean, DeterministicActorCritic])
def test_its_actions_are_deterministic(kind, is_normalized, monkeypatch):
    ac, seen = networks(kind, is_normalized), []
    for _ in range(2):
        monkeypatch.setattr(Told, "acts", [])
        returns, _ = evaluate_policy(ac, Told, 3, seed=7)
        seen.append(np.array(Told.acts))
    assert len(returns) == 3 and np.array_equal(*seen)
    env = Told()
    obs, _ = make_env(lambda: env, 7).reset()
    x = torch.as_tensor(obs)[None]
    x = ac.normalizer(x) if is_normalized else x
    with torch.no_grad():
        mean = ac.pi(x) if kind is DeterministicActorCritic else ac.pi(x)[0].mean
    np.testing.assert_allclose(seen[0][0], mean[0].clamp(-1, 1), atol=1e-6)


def test_it_leaves_the_global_generators_alone():
    ac = networks(MLPActorCritic)
    seed_everything(5)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    seed_everything(5)
    evaluate_policy(ac, Told, 2)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_no_episodes_are_refused():
    with pytest.raises(ValueError, match="episodes must be at least 1, not 0"):
        evaluate_policy(networks(MLPActorCritic), Told, 0)
