"""Experience: trajectories for on-policy algorithms, replay for off-policy ones."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete, Space
from torch import Tensor

from spinup.fast import capture
from spinup.runs.watchdog import still_alive
from spinup.utils.mpi_tools import mpi_statistics_scalar, num_procs
from spinup.utils.nets import space_dim


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
    """Estimates advantages of one trajectory by GAE(lambda), and its returns-to-go.

    Args:
        rew: rewards, ``(T,)``.
        val: values of the states that the actions were taken in, ``(T,)``.
        last_val: value of the state after the last action; 0 where that is terminal.
        gamma: discount factor.
        lam: the estimator's lambda; 1 gives the discounted return minus the value.

    Returns:
        Advantages and returns-to-go, each ``(T,)``; the returns count `last_val` in.

    Source: eq. 16 of arXiv:1506.02438.
    """
    vals = np.append(val, last_val).astype(np.float64)
    deltas = rew + gamma * vals[1:] - vals[:-1]
    returns = discounted_sums(np.append(rew, last_val), gamma)[:-1]
    return discounted_sums(deltas, gamma * lam), returns


class TrajectoryBuffer:
    """The steps that this rank takes in an epoch, and the advantages of its actions.

    Args:
        observation_space, action_space: the environment's.
        size: steps of this rank in an epoch.
        gamma: discount factor.
        lam: lambda of GAE.
    """

    def __init__(
        self, observation_space: Space, action_space: Space, size: int, gamma: float, lam: float
    ):
        self.obs = np.zeros((size, space_dim(observation_space)), dtype=np.float32)
        if isinstance(action_space, Discrete):
            self.act = np.zeros(size, dtype=np.int64)
        else:
            self.act = np.zeros((size, space_dim(action_space)), dtype=np.float32)
        self.rew = np.zeros(size, dtype=np.float64)
        self.size, self.gamma, self.lam = size, gamma, lam
        self.ptr = 0
        # A path's end, and the observation whose value continues it: None after a terminal state.
        self.path_ends: list[tuple[int, np.ndarray | None]] = []
        self.data: dict[str, Tensor] = {}  # of the epoch that was handed over last

    def store(self, obs: np.ndarray, act: np.ndarray, rew: float) -> None:
        """Appends a step."""
        i = self.ptr
        self.obs[i], self.act[i], self.rew[i] = obs, act, rew
        self.ptr = i + 1

    def finish_path(self, last_obs: np.ndarray | None) -> None:
        """Ends a trajectory.

        Args:
            last_obs: the observation after its last step, or None if that is terminal.
        """
        self.path_ends.append((self.ptr, last_obs))

    def get(
        self, value: Callable[[Tensor], Tensor], device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Returns the epoch's data, in the same memory each time, and empties the buffer.

        Args:
            value: the value function, of observations ``(batch, obs_dim)``.
            device: where the data shall be.

        Returns:
            ``obs``, ``act``, ``ret``, ``val`` and ``adv`` (normalised over all ranks to mean 0 and
            deviation 1), of length ``size``.
        """
        still_alive()
        assert self.ptr == self.size, "the buffer is handed over when it is full"
        obs = _to_tensor(self.obs, device)
        tails = [np.float32(last_obs) for _, last_obs in self.path_ends if last_obs is not None]
        with torch.no_grad():
            val = value(obs).cpu().numpy()
            tail_vals = value(_to_tensor(tails, device)).cpu().tolist() if tails else []
        adv, ret = np.zeros(self.size), np.zeros(self.size)
        start = 0
        for end, last_obs in self.path_ends:
            last_val = 0.0 if last_obs is None else tail_vals.pop(0)
            path = slice(start, end)
            adv[path], ret[path] = gae(self.rew[path], val[path], last_val, self.gamma, self.lam)
            start = end
        mean, std = mpi_statistics_scalar(adv)
        adv = (adv - mean) / (std + 1e-8)  # equal advantages become zeros, not NaN
        self.ptr, self.path_ends = 0, []
        data = dict(act=self.act, ret=ret, val=val, adv=adv)
        new = {"obs": obs} | {k: _to_tensor(v, device) for k, v in data.items()}
        for key, tensor in new.items():
            self.data.setdefault(key, tensor).copy_(tensor)
        return self.data


class ReplayBuffer:
    """The last transitions of this rank, in a ring.

    Args:
        observation_space, action_space: the environment's; the actions' is a Box.
        size: transitions to keep.
        rng: generator that draws minibatches.

    Raises:
        ValueError: so many don't fit into the memory that is free.
    """

    order = ("obs", "next_obs", "act", "rew", "terminated")  # of the parts of a row

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        size: int,
        rng: np.random.Generator,
    ):
        obs_dim, act_dim = space_dim(observation_space), space_dim(action_space)
        _check_memory(size, 4 * size * (2 * obs_dim + act_dim + 2))
        # One row a transition: a minibatch is one gather of whole rows, not five.
        self.rows = np.empty((size, 2 * obs_dim + act_dim + 2), dtype=np.float32)
        self.columns = np.cumsum([obs_dim, obs_dim, act_dim, 1])
        self.size, self.max_size, self.ptr = 0, size, 0
        self.rng = rng
        self._minibatch = torch.empty(0)

    def store(
        self, obs: np.ndarray, act: np.ndarray, rew: float, next_obs: np.ndarray, terminated: bool
    ) -> None:
        """Appends a transition, over the oldest once the buffer is full."""
        row = self.rows[self.ptr]
        o, o2, a, r = self.columns
        row[:o], row[o:o2], row[o2:a], row[a], row[r] = obs, next_obs, act, rew, terminated
        self.ptr = (self.ptr + 1) % self.max_size
        self.size = min(self.size + 1, self.max_size)

    def sample_batch(
        self, batch_size: int, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Draws transitions uniformly, with replacement.

        Returns:
            ``obs``, ``next_obs`` ``(batch, obs_dim)``, ``act`` ``(batch, act_dim)``, ``rew`` and
            ``terminated`` (1 or 0), ``(batch,)``. On a CPU the next minibatch of that size takes
            their place: clone what is to be kept.
        """
        if len(self._minibatch) != batch_size:
            self._minibatch = torch.empty(batch_size, self.rows.shape[1])
            self._parts = self._split(self._minibatch)
        capture.run(self._draw, capture.array(self._minibatch))
        if torch.device(device).type == "cpu":
            return dict(self._parts)
        return self._split(self._minibatch.to(device))

    def state_dict(self) -> dict[str, Any]:
        """Returns the transitions, and where the next one goes."""
        return dict(rows=self.rows[: self.size], size=self.size, ptr=self.ptr)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.size, self.ptr = state["size"], state["ptr"]
        self.rows[: self.size] = state["rows"]

    def _draw(self, out):
        idx = self.rng.integers(self.size, size=len(out))
        # The indices are valid: clipping them spares a copy of the result, made in case of an error
        np.take(self.rows, idx, axis=0, out=out, mode="clip")

    def _split(self, rows):
        parts = torch.tensor_split(rows, self.columns.tolist(), dim=1)
        batch = dict(zip(self.order, parts, strict=True))
        return {k: v.squeeze(1) if k in ("rew", "terminated") else v for k, v in batch.items()}


def _check_memory(size, needed):
    """Refuses a buffer that can't fit, before training fills it."""
    ranks, free = num_procs(), free_memory()
    if needed * ranks > free:
        raise ValueError(
            f"replay_size={size * ranks} takes {needed * ranks:,} bytes, but only {free:,.0f} are "
            "free here: lower replay_size (--replay_size)"
        )


def free_memory(meminfo: str = "/proc/meminfo", cgroup: str = "/sys/fs/cgroup") -> float:
    """Returns the bytes of memory that can still be used, infinity where that can't be told.

    Args:
        meminfo: what Linux says of the machine.
        cgroup: what it says of the limits of this process's group.
    """
    free = math.inf
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(x for x in Path(meminfo).read_text().splitlines() if "MemAvailable" in x)
        free = float(line.split()[1]) * 1024
    for limit, used in (("memory.max", "memory.current"), _CGROUP_V1):
        with contextlib.suppress(OSError, ValueError):
            left = float(Path(cgroup, limit).read_text()) - float(Path(cgroup, used).read_text())
            free = min(free, left)
    return free


_CGROUP_V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")


def _to_tensor(x, device):
    x = torch.from_numpy(np.array(x))
    return x.to(device, torch.float32 if x.is_floating_point() else x.dtype)
