"""Optimizer steps that the ranks of one host share, in memory that all of them see.

Otherwise MPI's Allreduce averages the gradient, and every rank takes the same step. Here, the
gradients of all ranks lie in shared memory. Each rank averages and steps its part of the vector
only, and copies the other parts from the ranks that stepped them.

Each rank keeps its own copy of the parameters, so that code which changes them in place, on every
rank, means the same on one rank and on several. ``SPINUP_FAST=0`` switches shared memory off.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spinup import fast
from spinup.fast.kernels import is_finite
from spinup.utils.mpi_tools import Host, barrier, mpi_op, num_procs

_ranks: Any = fast.compiled_module("_ranks", interface=2)  # as in _ranks.c

_LINE = 8  # integers of 8 bytes in a cache line
_ALIGNED = 16  # parts begin at a multiple of this, so that no two ranks write to one cache line
_EXTRA = 4  # vectors beside the gradients
_SPINS = 100

_team: Team | None = None  # in a training run on several ranks


class Team:
    """The ranks of one host, which share memory.

    Args:
        host: the host.
        flags: shared memory for a cache line per rank, filled with zeros.
    """

    def __init__(self, host: Host, flags: np.ndarray):
        self.host, self.rank, self.size = host, host.rank, host.size
        self.vectors: dict[int, SharedVector] = {}  # by the id of their parameters
        self._flags, self._count = flags.reshape(self.size, _LINE), 0
        self._place = flags.ctypes.data, self.rank, self.size

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a compiled function during which the ranks meet once. All ranks must call it."""
        self._count += 1
        return function(*self._place, self._count, *args)

    def meet(self) -> None:
        """Waits until all ranks of this host have called it."""
        if _ranks is not None:
            self.call(_ranks.meet)
            return
        self._count += 1
        self.host.sync()
        self._flags[self.rank, 0] = self._count
        spins = 0
        while self._flags[:, 0].min() < self._count:
            spins += 1
            time.sleep(0 if spins < _SPINS else 50e-6)
        self.host.sync()


class SharedVector:
    """A vector's gradients on all ranks of this host, and its optimizer's moments.

    Args:
        team: the ranks of this host.
        params: this rank's vector of parameters, with its gradient.
        memory: array of `room` numbers of 4 bytes that these ranks share, filled with zeros.
        bind: function ``bind(params, grad)`` that moves the gradient into given memory.

    Attributes:
        part: the part of the vector for which this rank does the work.
        moments: two vectors for the optimizer, shared. Each rank changes its part only.
        grad: this rank's gradient.
    """

    def __init__(self, team: Team, params: torch.nn.Parameter, memory: np.ndarray, bind: Callable):
        self.team, self.params, self._bind = team, params, bind
        size = len(params)
        vectors, weights = np.split(memory, [len(memory) - team.size * _ALIGNED])
        self._weights = weights.view(np.float64).reshape(team.size, _LINE)  # and a flag beside each
        rows = torch.from_numpy(vectors.reshape(_EXTRA + team.size, -1))
        lines = rows.shape[1] // _ALIGNED
        ends = [min(r * lines // team.size * _ALIGNED, size) for r in range(team.size)] + [size]
        self.part = slice(ends[team.rank], ends[team.rank + 1])
        self.moments = rows[0, :size], rows[1, :size]
        self._fresh = rows[2:_EXTRA, :size]  # in turn, because a rank may be one step ahead
        self._turn = 0
        self._grads = rows[_EXTRA:]
        matrix = self._grads.data_ptr(), rows.stride(0), size, self.part.start, self.part.stop
        self._compiled = *matrix, self._weights.ctypes.data  # arguments of `_ranks.average`
        self.grad = self._grads[team.rank, :size]
        assert params.grad is not None
        self.grad.copy_(params.grad)
        bind(params, self.grad)
        self._bound = params.grad

    @staticmethod
    def room(params: Tensor, ranks: int) -> int:
        """Returns how many numbers a vector needs."""
        row = -(-len(params) // _ALIGNED) * _ALIGNED
        return (_EXTRA + ranks) * row + ranks * _ALIGNED

    def average(self, weight: float) -> None:
        """Overwrites the gradient with its weighted average over all ranks."""
        self._average(weight, everywhere=True)
        self.team.meet()
        if self.team.host.has_others:
            if self.team.rank == 0:
                self.team.host.sum_over_hosts(self.grad.numpy())
            self.team.meet()
            if self.team.rank > 0:
                self.grad.copy_(self._grads[0, : len(self.grad)])
            self.team.meet()

    def average_part(self, weight: float) -> bool:
        """Overwrites this rank's part of the gradient with its weighted average over all ranks.

        Call `exchange` before the gradient is changed again: other ranks read it until then.

        Returns:
            False on all ranks if a gradient isn't finite on any of them, and on one rank if its
            part of the average isn't.
        """
        if self.team.host.has_others:
            self.average(weight)
            return is_finite(self.grad)
        is_good = self._average(weight)
        if not is_good and not self._weights[:, 1].all():  # all ranks refuse the step
            self.team.meet()  # in place of the one in `exchange`
        return is_good

    def _average(self, weight, everywhere=False):
        """Waits for all gradients, and computes this rank's part of their average.

        The average overwrites this part of this rank's gradient or, with `everywhere`, of all
        ranks' gradients. Its sum is in the order of ranks, so that it is the same each time. If a
        gradient isn't finite, nothing changes, unless `everywhere`. Returns what `average_part`
        returns.
        """
        if self.params.grad is not self._bound:
            raise RuntimeError(
                "a gradient is no longer in the memory that ranks share, as after zero_grad(): "
                "clear it with grad.zero_() or zero_grad(set_to_none=False)"
            )
        if _ranks is not None:
            return self.team.call(_ranks.average, *self._compiled, weight, everywhere)
        self._weights[self.team.rank, :2] = weight, is_finite(self.grad)
        self.team.meet()
        is_good = bool(self._weights[:, 1].all())
        if is_good or everywhere:
            parts = self._grads[:, self.part]
            total = sum(float(w) * x for w, x in zip(self._weights[:, 0], parts, strict=True))
            (parts if everywhere else parts[self.team.rank]).copy_(total)
            is_good = is_good and is_finite(total)
        return is_good

    def exchange(self) -> None:
        """Overwrites the parameters outside of `part` with those that other ranks stepped."""
        params, fresh, own = self.params.detach(), self._fresh[self._turn], self.part
        self._turn = 1 - self._turn
        is_usual = params.is_contiguous() and params.is_cpu and params.dtype is torch.float32
        if _ranks is not None and is_usual and params.shape == fresh.shape:
            places = params.data_ptr(), fresh.data_ptr(), len(params), own.start, own.stop
            self.team.call(_ranks.exchange, *places)
            return
        fresh[own].copy_(params[own])
        self.team.meet()
        for others in (slice(own.start), slice(own.stop, None)):
            params[others].copy_(fresh[others])

    def release(self) -> None:
        """Moves the gradient and the moments into memory of their own.

        The ranks must have met since they changed the moments.
        """
        self._bind(self.params, self.grad.clone())
        for moment in self.moments:
            moment.data = moment.clone()


def shared_vector(params: Tensor) -> SharedVector | None:
    """Returns the shared vector of parameters, or None if ranks don't share their steps."""
    return None if _team is None else _team.vectors.get(id(params))


def share(params: torch.nn.Parameter, bind: Callable[[Any, Tensor], None]) -> SharedVector | None:
    """Shares the updates of a vector, in a training run on several ranks.

    All ranks must call it together.

    Args:
        params: the vector, with its gradient, on the CPU.
        bind: function ``bind(params, grad)`` that moves the gradient into given memory.

    Returns:
        The shared vector, or None if the ranks share no memory.
    """
    if _team is None:
        return None
    fits = params.grad is not None and params.is_cpu and params.dtype is torch.float32
    if not mpi_op(fits and params.dim() == 1, "MIN"):  # some ranks may have a GPU
        return None
    barrier()
    if shared_vector(params) is not None:  # of an earlier optimizer
        _team.vectors.pop(id(params)).release()
    memory = _team.host.share(SharedVector.room(params, _team.size), np.float32)
    if memory is None:
        return None
    vector = _team.vectors[id(params)] = SharedVector(_team, params, memory, bind)
    return vector


@contextlib.contextmanager
def ranks_share_memory(allowed: bool = True) -> Iterator[None]:
    """Lets the ranks of a host share memory in a block. All ranks must enter it together.

    Args:
        allowed: False if not all ranks take the steps; they then share nothing.
    """
    global _team
    if num_procs() == 1:
        yield
        return
    host, before = Host(), _team
    is_on = mpi_op(allowed and fast.is_on(), "MIN") and mpi_op(host.size, "MAX") > 1
    flags = host.share(_LINE * host.size, np.int64) if is_on else None
    team = _team = None if flags is None else Team(host, flags)
    try:
        yield
        # After an error, the others may not come here: the memory is freed when the process ends
        barrier()
        for vector in team.vectors.values() if team is not None else ():
            vector.release()
        host.free()
    finally:
        _team = before
