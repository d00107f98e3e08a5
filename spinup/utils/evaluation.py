"""Test episodes with deterministic actions."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np

from spinup.utils.envs import generators_kept
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


def _run_episode(policy, env, max_ep_len):
    obs, _ = env.reset()
    ep_ret, ep_len, ended = 0.0, 0, False
    while not ended and ep_len < max_ep_len:
        obs, rew, terminated, truncated, _ = env.step(policy(obs, True))
        ended = terminated or truncated
        ep_ret += float(rew)
        ep_len += 1
    return ep_ret, ep_len
