"""Groups of ranks, in which one rank learns and the others only step environments.

Ranks that share a GPU form a group. Its first rank is the learner: it has the networks on the GPU,
and the data of the whole group. The other ranks are actors: they never use the GPU. After each
epoch or cycle, the learner receives the group's new data, updates the networks, and sends the new
policy. Learners of several GPUs average their gradients. On a CPU each rank is its own group.

The environment variable ``SPINUP_RANKS_PER_LEARNER`` forces groups of so many ranks of a host, on
any device. It is meant for tests.
"""

from __future__ import annotations

import builtins
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

from spinup.runs.watchdog import still_alive, watchdog
from spinup.utils.mpi_tools import (
    Host,
    mpi_op,
    mpi_sum,
    num_procs,
    only_ranks,
    proc_id,
    rank_share,
    split,
)

_SPINS = 100  # tests of a message before a rank sleeps between them


class Group:
    """The group of this rank.

    Args:
        ranks: communicator of the group's ranks, the learner first; None if there is only this one.
        learners: communicator of all learners; None on an actor, or if all ranks learn.
        learner_of: for each rank, the number of its learner; None if all ranks learn.
        host: the ranks of this host.
        beats: shared counter that the learner increments while it makes progress; None if memory
            can't be shared.

    Attributes:
        size: number of ranks in the group.
        learns: True on the learner.
        has_actors: True on all ranks if some ranks don't learn.
    """

    def __init__(
        self,
        ranks: Any = None,
        learners: Any = None,
        learner_of: list[int] | None = None,
        host: Host | None = None,
        beats: np.ndarray | None = None,
    ):
        self._ranks, self._learners, self._learner_of = ranks, learners, learner_of
        self._host, self._beats = host, beats
        self.size, self.learns = 1, True
        if ranks is not None:
            self.size, self.learns = ranks.Get_size(), ranks.Get_rank() == 0
        self.has_actors = learner_of is not None

    @property
    def learner_of(self) -> list[int]:
        """For each rank, the number of its learner."""
        return list(range(num_procs())) if self._learner_of is None else self._learner_of

    def only_learners(self) -> contextlib.AbstractContextManager:
        """Makes learners the only ranks in a block. Only learners may enter it."""
        return only_ranks(self._learners) if self.has_actors else contextlib.nullcontext()

    def check_learns(self) -> None:
        """Raises RuntimeError on an actor, which has no data to learn from."""
        if not self.learns:
            raise RuntimeError(
                "this rank shares a GPU with others and has no data to learn from: wrap the update "
                "in on_learners, as spinup's algorithms do"
            )

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

    def fetch(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors on this group's actors with those of its learner.

        Raises:
            Exception: the learner has reported this error.
        """
        if self.size == 1:
            return
        tensors = [x.detach() for x in tensors]
        if self.learns:
            try:
                memory = torch.cat([_flat(x) for x in tensors]).cpu().numpy()
            except Exception as error:  # of an earlier operation on the GPU
                self.report(error)
                raise
            self._send(0, memory)
            return
        length = np.zeros(1, np.int64)
        self._wait(self._ranks.Ibcast(length))
        memory = np.empty(int(length[0]) or sum(map(_num_bytes, tensors)), np.uint8)
        self._wait(self._ranks.Ibcast(memory))
        if length[0] > 0:
            time.sleep(1)  # the learner records the error, before this rank ends all
            raise _error(*memory.tobytes().decode().split(" ", maxsplit=1))
        parts = torch.from_numpy(memory).split([_num_bytes(x) for x in tensors])
        for x, part in zip(tensors, parts, strict=True):
            x.copy_(part.clone().view(x.dtype).view(x.shape))

    def report(self, error: Exception) -> None:
        """Makes the call of `fetch` for which this group's actors wait raise an error."""
        if self.size > 1:
            message = np.frombuffer(f"{type(error).__name__} {error}".encode(), np.uint8)
            self._send(len(message), message)

    def beat(self) -> None:
        """Notes that this rank makes progress, for actors that wait for it."""
        if self.learns and self._beats is not None:
            self._beats += 1

    def free(self) -> None:
        """Frees the communicators and the memory. All ranks must call it together."""
        if self._host is not None:
            self._host.free()
        for ranks in filter(None, (self._ranks, self._learners)):
            ranks.Free()

    def _send(self, length, memory):
        """Sends the length of an error's message, or 0, and the message or the tensors."""
        self._wait(self._ranks.Ibcast(np.array([length])))
        self._wait(self._ranks.Ibcast(memory))

    def _wait(self, request):
        """Waits for a message. After a while it sleeps between tests, so that others can compute.

        On an actor, the watchdog counts the learner's progress as its own.
        """
        still_alive()
        spins, beats = 0, None
        while not request.Test():
            spins += 1
            if spins > _SPINS:
                time.sleep(50e-6)
            if not self.learns and (self._beats is None or self._beats[0] != beats):
                beats = None if self._beats is None else self._beats[0]
                still_alive()


def _bytes(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _flat(x):
    """Returns the memory of a tensor of any type as a vector of bytes."""
    return x.contiguous().reshape(-1).view(torch.uint8)


def _num_bytes(x):
    return x.numel() * x.element_size()


def _error(name, message):
    """Returns an error of a learner, as its actors raise it."""
    kind = getattr(builtins, name, None)
    error: Exception = RuntimeError(f"The learner of this rank failed: {name}: {message}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # it takes other arguments
            error = kind(message)
    error.is_recorded = True
    return error


def _form(gpu):
    per_learner = int(os.environ.get("SPINUP_RANKS_PER_LEARNER") or 1)
    if num_procs() == 1 or not mpi_op(gpu != "" or per_learner > 1, "MAX"):
        return Group()
    host = Host()
    if per_learner > 1:
        gpu = str(host.rank // per_learner)
    ranks = host.split(f"GPU {gpu}" if gpu else f"rank {host.rank}")
    learner = np.array([proc_id(), host.rank])
    ranks.Bcast(learner)
    number, place = learner.tolist()
    learner_of = np.zeros(num_procs())
    learner_of[proc_id()] = number
    learner_of = mpi_sum(learner_of).astype(int).tolist()
    learners = split(0 if number == proc_id() else None)
    beats = host.share(host.size, np.int64)
    if beats is not None:
        beats = beats[place : place + 1]
    group = Group(ranks, learners, learner_of, host, beats)
    if learner_of == list(range(num_procs())):
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
    _group, watchdog.on_beat = group, group.beat
    try:
        yield
        group.free()  # after an error, other ranks may not come here
    finally:
        _group, watchdog.on_beat = before, before.beat


def group_share(total: int) -> int:
    """Returns the share of `total` items that the ranks of this group have; 0 on an actor."""
    group = this_group()
    return int(group.gather(np.array([rank_share(total)])).sum())


def on_learners(update: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that runs an update on learners only, and does nothing on actors.

    In the update, only learners are ranks: reductions are over learners. If it raises an error,
    this group's actors raise it in `Group.fetch`, with which they wait for the new policy.
    """
    group = this_group()
    if not group.has_actors:
        return update

    @functools.wraps(update)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not group.learns:
            return None
        try:
            with group.only_learners():
                return update(*args, **kwargs)
        except Exception as error:
            group.report(error)
            raise

    return run
