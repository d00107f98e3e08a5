"""Groups of ranks, in which one rank learns and the others only step environments.

Ranks that share a GPU form a group. Its first rank is the learner: it has the networks on the GPU,
and the data of the whole group. The other ranks are actors: they never use the GPU. After each
epoch or cycle, the learner receives the group's new data, updates the networks, and sends the new
policy. Learners of several GPUs average their gradients. On a CPU every rank is a group of its own.

The environment variable ``SPINUP_RANKS_PER_LEARNER`` forces groups of so many ranks of a host, on
any device. It is meant for tests.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spinup.runs.watchdog import still_alive
from spinup.utils.mpi_tools import (
    Host,
    among,
    mpi_op,
    mpi_sum,
    num_local_procs,
    num_procs,
    rank_share,
    split,
)

_SPINS = 100  # tests of a message before a rank sleeps between them


class Group:
    """The group of this rank.

    Args:
        ranks: communicator of the group's ranks, the learner first; None if there is only this one.
        learners: communicator of all learners; None on an actor, or if all ranks learn.
        num_learners, num_learners_here: number of learners in all, and on this host; None if all
            ranks learn.

    Attributes:
        size: number of ranks in the group.
        learns: True on the learner.
        has_actors: True on all ranks if some ranks don't learn.
    """

    def __init__(
        self,
        ranks: Any = None,
        learners: Any = None,
        num_learners: int | None = None,
        num_learners_here: int | None = None,
    ):
        self._ranks, self._learners = ranks, learners
        self._num_learners, self._num_learners_here = num_learners, num_learners_here
        self.size, self.learns = 1, True
        if ranks is not None:
            self.size, self.learns = ranks.Get_size(), ranks.Get_rank() == 0
        self.has_actors = num_learners is not None

    @property
    def num_learners(self) -> int:
        """Number of learners."""
        return num_procs() if self._num_learners is None else self._num_learners

    @property
    def num_learners_here(self) -> int:
        """Number of learners on this host. All ranks must ask for it together."""
        return num_local_procs() if self._num_learners_here is None else self._num_learners_here

    def among_learners(self) -> contextlib.AbstractContextManager:
        """Returns a block in which only learners are ranks. Only learners may enter it."""
        return among(self._learners) if self.has_actors else contextlib.nullcontext()

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Gathers the rows of all ranks of this group on its learner, in the order of ranks.

        Args:
            rows: this rank's array ``(n, ...)``. Ranks may have different `n`, also 0.

        Returns:
            All rows on the learner, none on the others.
        """
        if self.size == 1:
            return rows
        counts = np.zeros(self.size, np.int64)
        self._wait(self._ranks.Igather(np.array([len(rows)]), counts if self.learns else None))
        shape = int(counts.sum()), *rows.shape[1:]
        gathered = np.empty(shape, rows.dtype)
        num_bytes = counts * rows.dtype.itemsize * math.prod(rows.shape[1:])
        into = [_bytes(gathered), num_bytes] if self.learns else None
        self._wait(self._ranks.Igatherv(_bytes(rows), into))
        return gathered

    def sync(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors on this group's actors with those of its learner.

        Raises:
            FloatingPointError, RuntimeError: the learner reported an error.
        """
        if self.size == 1:
            return
        tensors = [x.detach() for x in tensors]
        if self.learns:
            self._send(0, torch.cat([_flat(x) for x in tensors]).cpu().numpy())
            return
        length = np.zeros(1, np.int64)
        self._wait(self._ranks.Ibcast(length))
        memory = np.empty(int(length[0]) or sum(map(_num_bytes, tensors)), np.uint8)
        self._wait(self._ranks.Ibcast(memory))
        if length[0] > 0:
            name, _, message = memory.tobytes().decode().partition(" ")
            if name == FloatingPointError.__name__:
                raise FloatingPointError(message)
            raise RuntimeError(f"The learner of this rank failed: {name}: {message}")
        parts = torch.from_numpy(memory).split([_num_bytes(x) for x in tensors])
        for x, part in zip(tensors, parts, strict=True):
            x.copy_(part.clone().view(x.dtype).view(x.shape))

    def report(self, error: Exception) -> None:
        """Makes the call of `sync` for which this group's actors wait raise an error."""
        if self.size > 1:
            message = np.frombuffer(f"{type(error).__name__} {error}".encode(), np.uint8)
            self._send(len(message), message)

    def free(self) -> None:
        """Frees the communicators. All ranks must call it together."""
        for ranks in filter(None, (self._ranks, self._learners)):
            ranks.Free()

    def _send(self, length, memory):
        """Sends the length of an error's message, or 0, and the message or the tensors."""
        self._wait(self._ranks.Ibcast(np.array([length])))
        self._wait(self._ranks.Ibcast(memory))

    def _wait(self, request):
        """Waits for a message, leaving the core to other ranks after a while."""
        still_alive()
        spins = 0
        while not request.Test():
            spins += 1
            if spins > _SPINS:
                time.sleep(50e-6)


def _bytes(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _flat(x):
    """Returns the memory of a tensor of any type as a vector of bytes."""
    return x.contiguous().reshape(-1).view(torch.uint8)


def _num_bytes(x):
    return x.numel() * x.element_size()


def _form(gpu):
    per_learner = int(os.environ.get("SPINUP_RANKS_PER_LEARNER") or 1)
    if num_procs() == 1 or not mpi_op(gpu != "" or per_learner > 1, "MAX"):
        return Group()
    host = Host()
    if per_learner > 1:
        gpu = str(host.rank // per_learner)
    ranks = host.split(f"GPU {gpu}" if gpu else f"rank {host.rank}")
    learns = ranks.Get_rank() == 0
    learners = split(0 if learns else None)
    group = Group(ranks, learners, int(mpi_sum(learns)), host.sum(learns))
    host.free()
    if mpi_op(group.size, "MAX") == 1:
        group.free()
        return Group()
    return group


_group = Group()


def this_group() -> Group:
    """Returns the group of this rank. Outside of a training run, every rank learns."""
    return _group


@contextlib.contextmanager
def ranks_grouped(gpu: str) -> Iterator[None]:
    """Forms groups in a block. All ranks must enter it together.

    Args:
        gpu: name of the GPU that this rank may use, unique on its host; empty for the CPU.
    """
    global _group
    before, group = _group, _form(gpu)
    _group = group
    try:
        yield
        group.free()  # after an error, other ranks may not come here
    finally:
        _group = before


def learner_share(total: int) -> int:
    """Returns this learner's share of `total` items, which learners share evenly; 0 on an actor."""
    group = this_group()
    if not group.learns:
        return 0
    with group.among_learners():
        return rank_share(total)


def group_share(total: int) -> int:
    """Returns the share of `total` items that the ranks of this group have; 0 on an actor."""
    group = this_group()
    return int(group.gather(np.array([rank_share(total)])).sum())


def on_learners(update: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that runs an update on learners only, and does nothing on actors.

    In the update, only learners are ranks: reductions are over learners. If it raises an error,
    this group's actors raise it in `Group.sync`, with which they wait for the new policy.
    """
    group = this_group()
    if not group.has_actors:
        return update

    @functools.wraps(update)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not group.learns:
            return None
        try:
            with group.among_learners():
                return update(*args, **kwargs)
        except Exception as error:
            group.report(error)
            raise

    return run
