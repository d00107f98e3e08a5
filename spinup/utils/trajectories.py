"""The trajectory buffer of the on-policy algorithms, and the advantages of actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from gymnasium.spaces import Discrete, Space
from torch import Tensor

from spinup.runs.watchdog import still_alive
from spinup.utils.envs import space_dim
from spinup.utils.groups import this_group
from spinup.utils.mpi_tools import mpi_statistics_scalar, mpi_sum
from spinup.utils.normalization import ObsNormalizer


def discounted_sums(x: np.ndarray, discount: float) -> np.ndarray:
    """Returns ``y[t] = x[t] + discount * y[t + 1]`` for a vector `x`."""
    y, running = [], 0.0
    for value in reversed(x.tolist()):
        running = value + discount * running
        y.append(running)
    return np.array(y[::-1], dtype=np.float64)


def gae(
    rew: np.ndarray, val: np.ndarray, last_val: float, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the advantages of one trajectory by GAE(lambda), and its returns-to-go.

    Args:
        rew: rewards, ``(T,)``.
        val: values of the states in which the actions were taken, ``(T,)``.
        last_val: value of the state after the last action; 0 if that state is terminal.
        gamma: discount factor.
        lam: lambda of GAE; 1 gives the discounted return minus the value.

    Returns:
        Advantages and discounted returns-to-go, each ``(T,)``. The returns include `last_val`.

    Source: eq. 16 of arXiv:1506.02438.
    """
    vals = np.append(val, last_val).astype(np.float64)
    deltas = rew + gamma * vals[1:] - vals[:-1]
    returns = discounted_sums(np.append(rew, last_val), gamma)[:-1]
    return discounted_sums(deltas, gamma * lam), returns


class TrajectoryBuffer:
    """The environment steps of this rank in an epoch, and the advantages of the actions.

    All ranks must create their buffers together.

    Args:
        observation_space, action_space: the environment's spaces.
        size: number of steps of this rank in an epoch.
        gamma: discount factor.
        lam: lambda of GAE.
        normalizer: normaliser of the observations, if any.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        size: int,
        gamma: float,
        lam: float,
        normalizer: ObsNormalizer | None = None,
    ):
        self.obs = np.zeros((size, space_dim(observation_space)), dtype=np.float32)
        if isinstance(action_space, Discrete):
            self.act = np.zeros(size, dtype=np.int64)
        else:
            self.act = np.zeros((size, space_dim(action_space)), dtype=np.float32)
        self.rew = np.zeros(size, dtype=np.float64)
        self.gamma, self.lam = gamma, lam
        self.group = this_group()
        # Number of steps that `get` returns: those of this learner's group; 0 on an actor
        self.size = int(self.group.gather(np.array([size])).sum())
        self.total = int(mpi_sum(size))  # over ranks
        self.normalizer = normalizer
        self.ptr = 0
        # The end of each path, and the observation to bootstrap from, None after a terminal state
        self.path_ends: list[tuple[int, np.ndarray | None]] = []
        self._gathered: tuple | None = None  # the epoch's steps and paths, for `get`
        self.data: dict[str, Tensor] = {}  # of the last full epoch
        self._parts: dict[int, dict[str, Tensor]] = {}  # minibatches, by their number of steps

    def store(self, obs: np.ndarray, act: np.ndarray, rew: float) -> None:
        """Appends a step."""
        i = self.ptr
        self.obs[i], self.act[i], self.rew[i] = obs, act, rew
        self.ptr = i + 1

    def finish_path(self, last_obs: np.ndarray | None) -> None:
        """Ends a trajectory.

        Args:
            last_obs: the observation after the last step, or None if that state is terminal.
        """
        self.path_ends.append((self.ptr, last_obs))

    def gather(self) -> None:
        """Empties the buffer, and passes the epoch's steps to this group's learner.

        The ranks of a group must call it together, before the learner calls `get`.
        """
        still_alive()
        assert self.ptr == len(self.rew), "the buffer isn't full"
        obs, act, rew, path_ends = self.obs, self.act, self.rew, self.path_ends
        if self.group.size > 1:
            ends = np.zeros(len(rew), np.int8)  # 1: the end of a path; 2: with a last observation
            for end, last_obs in path_ends:
                ends[end - 1] = 1 if last_obs is None else 2
            tails = [np.float32(last_obs) for _, last_obs in path_ends if last_obs is not None]
            obs, act, rew, ends = (self.group.gather(x) for x in (obs, act, rew, ends))
            last = iter(self.group.gather(np.reshape(tails, (-1, obs.shape[1])).astype(np.float32)))
            at = ends.nonzero()[0].tolist()
            path_ends = [(i + 1, next(last) if ends[i] == 2 else None) for i in at]
        self._gathered = obs, act, rew, path_ends
        self.ptr, self.path_ends = 0, []

    def get(
        self, value: Callable[[Tensor], Tensor], device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Returns the epoch's data, in the same tensors at each call.

        It calls `gather` if nobody has. Observations are normalised by the statistics with which
        the actions were chosen. They are then added to the statistics, for the next epoch.

        Args:
            value: the value function, which maps observations ``(batch, obs_dim)`` to ``(batch,)``.
            device: device of the returned tensors.

        Returns:
            ``obs``, ``act``, ``ret``, ``val`` and ``adv`` (normalised over all ranks to mean 0 and
            standard deviation 1), each of length ``size``.
        """
        self.group.check_learns()
        if self._gathered is None:
            self.gather()
        assert self._gathered is not None
        (raw_obs, act, rew, path_ends), self._gathered = self._gathered, None
        obs = self._normalized(_to_tensor(raw_obs, device))
        tails = [np.float32(last_obs) for _, last_obs in path_ends if last_obs is not None]
        with torch.no_grad():
            val = value(obs).cpu().numpy()
            tail_vals = []
            if tails:
                tail_vals = value(self._normalized(_to_tensor(tails, device))).cpu().tolist()
        if self.normalizer is not None:
            self.normalizer.update(raw_obs)
        adv, ret = np.zeros(self.size), np.zeros(self.size)
        start = 0
        for end, last_obs in path_ends:
            last_val = 0.0 if last_obs is None else tail_vals.pop(0)
            path = slice(start, end)
            adv[path], ret[path] = gae(rew[path], val[path], last_val, self.gamma, self.lam)
            start = end
        mean, std = mpi_statistics_scalar(adv)
        adv = (adv - mean) / (std + 1e-8)  # equal advantages become zeros, not NaN
        data = dict(act=act, ret=ret, val=val, adv=adv)
        new = {"obs": obs} | {k: _to_tensor(v, device) for k, v in data.items()}
        return self.add(**new)

    def add(self, **quantities: Tensor) -> dict[str, Tensor]:
        """Adds tensors of length ``size`` to the epoch's data, and returns the data."""
        for key, tensor in quantities.items():
            self.data.setdefault(key, tensor).copy_(tensor)
        return self.data

    def minibatches(
        self, size: int | None, rng: np.random.Generator
    ) -> Iterator[tuple[int, int, bool]]:
        """Splits the epoch's data into shuffled minibatches, which `part` returns one by one.

        All ranks take the same number of minibatches, and each rank has a share of every minibatch.

        Args:
            size: number of steps in a minibatch, summed over ranks; at least the number of ranks.
                The data are split evenly, so a minibatch may have more steps than `size`. If None,
                all data are one minibatch.
            rng: generator that shuffles the steps.

        Yields:
            For each minibatch: the number of this rank's steps, the number summed over ranks, and
            True for the last one.
        """
        num_parts = 1 if size is None else self.total // size
        if num_parts <= 1:
            yield self.size, self.total, True
            return
        order = torch.from_numpy(rng.permutation(self.size)).to(self.data["obs"].device)
        parts = order.tensor_split(num_parts)
        totals = mpi_sum(np.array([len(rows) for rows in parts]))
        for i, rows in enumerate(parts):
            part = self._parts.setdefault(len(rows), {})
            for key, x in self.data.items():
                if key not in part:
                    part[key] = x.new_empty(len(rows), *x.shape[1:])
                torch.index_select(x, 0, rows, out=part[key])
            yield len(rows), int(totals[i]), i == num_parts - 1

    def part(self, num_steps: int) -> dict[str, Tensor]:
        """Returns this rank's steps of the current minibatch, in the same tensors each time."""
        return self.data if num_steps == self.size else self._parts[num_steps]

    def _normalized(self, obs):
        return obs if self.normalizer is None else self.normalizer(obs)


def _to_tensor(x, device):
    x = torch.from_numpy(np.array(x))
    return x.to(device, torch.float32 if x.is_floating_point() else x.dtype)
