"""The replay buffer of the off-policy algorithms."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Space
from torch import Tensor

from spinup.fast import capture, graphs
from spinup.fast.on_device import DeviceRows
from spinup.utils.envs import space_dim
from spinup.utils.groups import this_group
from spinup.utils.mpi_tools import mpi_op, mpi_sum, num_procs, proc_id, sum_on_host
from spinup.utils.normalization import ObsNormalizer


class ReplayBuffer:
    """A ring buffer of this rank's most recent transitions.

    All ranks must create their buffers together. In a group of ranks, only the learner's buffer
    holds transitions, those of the whole group (see `spinup.utils.groups`).

    Args:
        observation_space, action_space: the environment's spaces; `action_space` is a Box.
        size: maximum number of transitions; 0 on an actor.
        rng: generator that draws minibatches. With CUDA graphs, torch's on the GPU draws them.
        normalizer: normaliser of the observations in minibatches, if any.

    Raises:
        ValueError: the buffer doesn't fit into the free memory.
    """

    order = ("obs", "next_obs", "act", "rew", "terminated")  # of the fields in a row

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        size: int,
        rng: np.random.Generator,
        normalizer: ObsNormalizer | None = None,
    ):
        obs_dim, act_dim = space_dim(observation_space), space_dim(action_space)
        _check_memory(size, 4 * size * (2 * obs_dim + act_dim + 2))
        # One row per transition: drawing a minibatch takes one gather instead of five.
        self.rows = np.empty((size, 2 * obs_dim + act_dim + 2), dtype=np.float32)
        # First column of each field, except `obs`
        self.columns = np.cumsum([obs_dim, obs_dim, act_dim, 1]).tolist()
        self.size, self.max_size, self.ptr, self.num_stored = 0, size, 0, 0
        self.rng, self.normalizer = rng, normalizer
        self._new: list[np.ndarray] = []  # observations since the last `gather`
        self.group = this_group()
        # In a group: this rank's rows since the last `gather`, and the number of rows before
        self._pending: list[np.ndarray] = []
        self._num_gathered = 0
        self._on_device: DeviceRows | None = None
        self._is_for: tuple = ()  # the size of the minibatch, and the device of its copy

    def store(
        self, obs: np.ndarray, act: np.ndarray, rew: float, next_obs: np.ndarray, terminated: bool
    ) -> None:
        """Appends a transition. A full buffer overwrites its oldest one."""
        is_alone = self.group.size == 1
        row = self.rows[self.ptr] if is_alone else np.empty(self.rows.shape[1], np.float32)
        next_obs_at, act_at, rew_at, terminated_at = self.columns
        row[:next_obs_at], row[next_obs_at:act_at], row[act_at:rew_at] = obs, next_obs, act
        row[rew_at], row[terminated_at] = rew, terminated
        if not is_alone:
            self._pending.append(row)
            return
        self.ptr = (self.ptr + 1) % self.max_size
        self.size = min(self.size + 1, self.max_size)
        self.num_stored += 1
        if self.normalizer is not None:
            self._new.append(row[:next_obs_at].copy())

    def gather(self) -> None:
        """Passes new transitions to this group's learner, and new observations to the normaliser.

        All ranks must call it together, before the updates of a cycle.
        """
        if self.group.size > 1:
            self._append(self._gather_rows())
        if self.normalizer is not None and self.group.learns:
            with self.group.only_learners():
                self.normalizer.update(np.array(self._new))
            self._new = []

    def _gather_rows(self):
        """Returns the new rows of this group on its learner, in the order of their steps."""
        first, count, width = self._num_gathered, len(self._pending), self.rows.shape[1]
        # Ranks take turns, and rank 0 is the last of each round
        steps = np.arange(first, first + count) * num_procs() + (proc_id() or num_procs())
        rows = self.group.gather(np.reshape(self._pending, (-1, width)).astype(np.float32))
        order = np.argsort(self.group.gather(steps))
        self._pending, self._num_gathered = [], first + count
        return rows[order]

    def _append(self, rows):
        """Appends rows, of which a full buffer keeps the last ones."""
        if self.normalizer is not None:
            self._new.extend(rows[:, : self.columns[0]])
        self.size = min(self.size + len(rows), self.max_size)
        places = np.arange(self.ptr, self.ptr + len(rows))[-self.max_size :]
        if len(places):
            self.rows[places % self.max_size] = rows[-self.max_size :]
            self.ptr = int(places[-1] + 1) % self.max_size
            self.num_stored += len(rows)

    def sample_batch(
        self, batch_size: int, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Draws transitions uniformly, with replacement.

        Returns:
            ``obs`` and ``next_obs`` ``(batch, obs_dim)``, normalised if there is a normaliser;
            ``act`` ``(batch, act_dim)``; ``rew`` and ``terminated`` (1 or 0) ``(batch,)``. The next
            minibatch of the same size overwrites them: clone tensors to keep them.
        """
        if (batch_size, device) != self._is_for:
            self._prepare(batch_size, device)
        if self._on_device is not None:
            capture.run(self._update_device, when="before")
            self._on_device.draw(self._copy)
        else:
            capture.run(self._draw, capture.array(self._minibatch))
            if self._copy is not self._minibatch:
                capture.run(self._copy.copy_, self._minibatch)  # after the last one was used
        batch = dict(self._parts)
        if self.normalizer is not None:
            batch["obs"] = self.normalizer(batch["obs"])
            batch["next_obs"] = self.normalizer(batch["next_obs"])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the transitions and the position of the next one."""
        state = dict(rows=self.rows[: self.size], size=self.size, ptr=self.ptr)
        if self.group.size > 1:
            state |= dict(pending=np.array(self._pending), num_gathered=self._num_gathered)
        return state if self.normalizer is None else state | dict(new=np.array(self._new))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.size, self.ptr = state["size"], state["ptr"]
        self.rows[: self.size] = state["rows"]
        self.num_stored = self.size
        if self._on_device is not None:
            self._on_device.num_copied = -1
        self._new = list(state.get("new", []))
        self._pending = list(state.get("pending", []))
        self._num_gathered = state.get("num_gathered", 0)

    @capture.capturable
    def _prepare(self, batch_size, device):
        """Allocates minibatches."""
        self.group.check_learns()
        self._is_for = batch_size, device
        self._minibatch = torch.empty(batch_size, self.rows.shape[1])
        self._copy = self._minibatch.to(device)  # itself on a CPU
        self._parts = self._split(self._copy)
        place = self._copy.device
        if self._on_device is not None and self._on_device.rows.device != place:
            self._on_device = None
        if self._on_device is None and graphs.are_used_on(place):
            self._on_device = DeviceRows.make(self.rows, place)

    @capture.capturable
    def _update_device(self):
        self._on_device.update(self.num_stored, self.ptr)

    @capture.capturable
    def _draw(self, out):
        idx = self.rng.integers(self.size, size=len(out))
        # The indices are valid; with the default mode="raise", NumPy would buffer `out`
        self.rows.take(idx, axis=0, out=out, mode="clip")

    def _split(self, rows):
        parts = torch.tensor_split(rows, self.columns, dim=1)
        batch = dict(zip(self.order, parts, strict=True))
        return {k: v.squeeze(1) if k in ("rew", "terminated") else v for k, v in batch.items()}


def _check_memory(size, needed):
    """Raises ValueError on all ranks if a host's buffers need more memory than is free there."""
    here, free, ranks = sum_on_host(needed), free_memory(), sum_on_host(1)
    total = mpi_sum(size)
    if not mpi_op(here > free, "MAX"):
        return
    where = f" for the {ranks} ranks of this host" if ranks > 1 else ""
    takes = f"takes {here:,} bytes{where}, but only {free:,.0f} are free here"
    if here <= free:
        takes = "doesn't fit into the free memory of another host"
    raise ValueError(f"replay_size={total:.0f} {takes}: lower replay_size (--replay_size)")


def free_memory(meminfo: str = "/proc/meminfo", cgroup: str = "/sys/fs/cgroup") -> float:
    """Returns the free memory in bytes, or infinity if it is unknown.

    Args:
        meminfo: Linux's file with the memory of the machine.
        cgroup: Linux's folder with the limits of this process's control group.
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
