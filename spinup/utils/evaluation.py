"""Test episodes with deterministic actions, and the evaluation of a trained policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from spinup.utils.acting import acting_policy
from spinup.utils.envs import EnvFn, generators_kept, make_env, seed_everything
from spinup.utils.logx import EpochLogger
from spinup.utils.mpi_tools import rank_share


def run_test_episodes(
    policy: Callable[[np.ndarray, bool], np.ndarray],
    test_env: gym.Env,
    num_test_episodes: int,
    max_ep_len: int,
    logger: EpochLogger,
) -> None:
    """Runs test episodes with deterministic actions, split over ranks.

    Stores ``TestEpRet`` and ``TestEpLen`` of each episode. The global random generators, which an
    environment or a policy may use, are restored afterwards, so that tests don't change training.

    Args:
        policy: function ``policy(obs, deterministic)``.
        test_env: an environment that training doesn't step.
        num_test_episodes: number of episodes, summed over ranks.
        max_ep_len: environment steps after which an episode is truncated.
        logger: logger that stores the results.
    """
    with generators_kept():
        for _ in range(rank_share(num_test_episodes)):
            ep_ret, ep_len = _run_episode(policy, test_env, max_ep_len)
            logger.store(TestEpRet=ep_ret, TestEpLen=ep_len)


def evaluate_policy(
    ac: Any,
    env_fn: EnvFn,
    episodes: int = 10,
    max_ep_len: int | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Runs episodes with an actor-critic, using deterministic actions if its policy has them.

    The global random generators are restored afterwards.

    Args:
        ac: the actor-critic, from an algorithm or from ``load_actor_critic``.
        env_fn: Gymnasium id, or a function that returns a new environment.
        episodes: number of episodes.
        max_ep_len: environment steps after which an episode is truncated; if None, only the
            environment's own limit applies.
        seed: seed of the environment, and of sampled actions.

    Returns:
        The undiscounted returns, and the lengths in environment steps, each ``(episodes,)``.

    Raises:
        ValueError: `episodes` is less than 1, or the environment can't be made or is invalid.

    Example:
        >>> ac = spinup.ppo("CartPole-v1", epochs=30)
        >>> returns, lengths = evaluate_policy(ac, "CartPole-v1")
        >>> returns.mean()
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, not {episodes}")
    with generators_kept():
        env = make_env(env_fn, seed)
        try:
            policy = acting_policy(ac, seed_everything(seed))
            limit = math.inf if max_ep_len is None else max_ep_len
            results = [_run_episode(policy, env, limit) for _ in range(episodes)]
        finally:
            env.close()
    returns, lengths = zip(*results, strict=True)
    return np.array(returns), np.array(lengths)


def _run_episode(policy, env, max_ep_len):
    obs, _ = env.reset()
    ep_ret, ep_len, ended = 0.0, 0, False
    while not ended and ep_len < max_ep_len:
        obs, rew, terminated, truncated, _ = env.step(policy(obs, True))
        ended = terminated or truncated
        ep_ret += float(rew)
        ep_len += 1
    return ep_ret, ep_len
