"""Test episodes of a policy without its noise."""

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
    """Runs episodes with the deterministic policy, split over ranks.

    Stores ``TestEpRet`` and ``TestEpLen`` of each. Training continues as if there had been none:
    the global generators, from which an environment or a policy may draw, are set back.

    Args:
        policy: function of an observation and whether to be deterministic.
        test_env: an environment that training doesn't step.
        num_test_episodes: episodes, of all ranks together.
        max_ep_len: steps after which an episode is cut off.
        logger: where they are stored.
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
