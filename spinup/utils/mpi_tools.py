"""Ranks, and reductions over them.

A process that wasn't started by an MPI launcher is rank 0 of 1 and never loads MPI, so that it
doesn't need mpi4py. This is the only file that imports ``mpi4py.MPI``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from spinup.runs.watchdog import still_alive, watchdog

# Variables with the rank, as set by MPICH and Slurm's pmi2, PMIx, and Open MPI.
_LAUNCHER_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")

_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")

# Variable with the number of ranks that were asked for, which each rank checks.
ASKED = "SPINUP_NUM_CPU"


# --- Ranks ----------------------------------------------------------------------------------------

_everyone = object()
_active: Any = _everyone  # the communicator of `only_ranks`


@functools.cache
def _world():
    """Returns the communicator of all ranks, or None if there is only one."""
    launched = any(name in os.environ for name in _LAUNCHER_VARIABLES)
    asked = int(os.environ.get(ASKED, "1"))
    started = [os.environ[name] for name in _SIZE_VARIABLES if name in os.environ]
    if not launched and asked == 1 and "mpi4py.MPI" not in sys.modules:
        _check_srun()
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # no mpi4py, or no MPI library that it can load
        raise RuntimeError(
            f"This process was started as an MPI rank, but mpi4py does not load ({error}); "
            "install it with: pip install mpi4py mpich"
        ) from None
    size = MPI.COMM_WORLD.Get_size()
    wanted = asked if asked > 1 else int(started[0]) if started else size
    if wanted != size:
        raise RuntimeError(
            f"{wanted} ranks were asked for, but the MPI world has {size}: mpiexec and the MPI "
            "library that mpi4py loads belong to different installations; install both with: "
            "pip install --force-reinstall mpi4py mpich"
        )
    if size == 1:
        return None
    watchdog.guard(MPI.COMM_WORLD.Get_rank())
    sys.excepthook = _end_all_ranks
    threading.excepthook = _end_all_ranks_by_thread
    return MPI.COMM_WORLD


def _ranks():
    """Returns the communicator of the ranks that compute together, or None if there is only one."""
    return _world() if _active is _everyone else _active


@contextlib.contextmanager
def only_ranks(ranks: Any) -> Iterator[None]:
    """Restricts the ranks, and the reductions over them, to some ranks in a block.

    Args:
        ranks: an ``mpi4py.MPI.Comm`` that contains this rank.
    """
    global _active
    before, _active = _active, ranks if ranks.Get_size() > 1 else None
    try:
        yield
    finally:
        _active = before


def _check_srun():
    """Checks that this isn't one of several srun processes that can't communicate.

    Raises:
        RuntimeError: srun started several processes without an interface for MPI.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" and ASKED not in os.environ:
        raise RuntimeError(
            f"srun started {tasks} processes (SLURM_STEP_NUM_TASKS), but without MPI: use "
            f"srun --mpi=pmi2, or set {ASKED}=1 if you want separate runs"
        )


def _end_all_ranks(kind, error, trace):
    """Ends all ranks after an exception in this one, for which the others would wait forever."""
    lines = traceback.format_exception(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.write("".join([f"Rank {proc_id()} of {num_procs()} failed:\n", *lines]))
    sys.stderr.flush()
    time.sleep(0.2)  # mpiexec forwards the output of ranks, but stops at an abort
    _world().Abort(130 if issubclass(kind, KeyboardInterrupt) else 1)


def _end_all_ranks_by_thread(args):
    if not issubclass(args.exc_type, SystemExit):
        _end_all_ranks(args.exc_type, args.exc_value, args.exc_traceback)


def proc_id() -> int:
    """Returns this process's rank."""
    ranks = _ranks()
    return 0 if ranks is None else ranks.Get_rank()


def num_procs() -> int:
    """Returns the number of ranks."""
    ranks = _ranks()
    return 1 if ranks is None else ranks.Get_size()


def sum_on_host(x: float) -> float:
    """Returns the sum of `x` over the ranks of this host. All ranks must call it together."""
    if _world() is None:
        return x
    host = Host()
    try:
        return host.sum(x)
    finally:
        host.free()


def barrier() -> None:
    """Waits until all ranks have called it."""
    ranks = _ranks()
    if ranks is not None:
        still_alive()
        ranks.Barrier()


def msg(m: object, string: str = "") -> None:
    """Prints `m` with the number of this rank."""
    print(f"Message from {proc_id()}: {string} \t {m}", flush=True)


def rank_share(total: int) -> int:
    """Returns this rank's share of `total` items. The shares of two ranks differ by at most one."""
    return total // num_procs() + (proc_id() < total % num_procs())


def split(color: int | None) -> Any:
    """Returns a communicator of the ranks with the same color; None if the color is None.

    All ranks must call it together.
    """
    from mpi4py import MPI

    still_alive()
    ranks = _world().Split(MPI.UNDEFINED if color is None else color)
    return None if color is None else ranks


# --- Hosts ----------------------------------------------------------------------------------------


class Host:
    """The ranks of this host, which can share memory. There must be several ranks in all.

    All ranks must create it together.

    Attributes:
        rank: this rank's number on this host.
        size: number of ranks on this host.
        has_others: whether there are ranks on other hosts.
    """

    def __init__(self):
        from mpi4py import MPI

        still_alive()
        world = _world()
        self._ranks = world.Split_type(MPI.COMM_TYPE_SHARED)
        self.rank, self.size = self._ranks.Get_rank(), self._ranks.Get_size()
        self._firsts = world.Split(0 if self.rank == 0 else MPI.UNDEFINED)
        self.has_others = self.size < num_procs()
        self._windows = []
        if self.rank == 0:  # all ranks of this host have opened it before they took part in Split
            _unlink_mpichs_memory()

    def share(self, size: int, dtype: type) -> np.ndarray | None:
        """Allocates memory that all ranks of this host see. All ranks must call it together.

        Returns:
            An array of `size` zeros, or None on all ranks if the memory can't be had on any host.
        """
        from mpi4py import MPI

        still_alive()
        num_bytes = size * np.dtype(dtype).itemsize
        window: Any = None
        if mpi_op(self.rank > 0 or _has_shared_memory(num_bytes), "MIN"):
            with contextlib.suppress(MPI.Exception):
                own = num_bytes if self.rank == 0 else 0
                window = MPI.Win.Allocate_shared(own, 1, comm=self._ranks)
                window.Lock_all()  # for Sync
                self._windows.append(window)
        if not mpi_op(window is not None, "MIN"):
            return None
        array: np.ndarray = np.frombuffer(window.Shared_query(0)[0], dtype)
        if self.rank == 0:
            array[:] = 0  # also claims the memory now, not when it may have run out
        barrier()
        return array

    def split(self, key: str) -> Any:
        """Returns a communicator of this host's ranks with the same key; these call it together."""
        return self._ranks.Split(zlib.crc32(key.encode()) // 2)  # a color is not negative

    def sum(self, x: float) -> float:
        """Returns the sum of `x` over this host's ranks, which call it together."""
        return self._ranks.allreduce(x)

    def sync(self) -> None:
        """Completes this rank's reads and writes of shared memory before those that follow."""
        for window in self._windows:
            window.Sync()

    def sum_over_hosts(self, x: np.ndarray) -> None:
        """Overwrites the array `x` of each host's first rank with the sum. Only these call it."""
        from mpi4py import MPI

        self._firsts.Allreduce(MPI.IN_PLACE, x)

    def free(self) -> None:
        """Frees the shared memory. All ranks must call it together, and not use it afterwards."""
        for window in self._windows:
            window.Unlock_all()
            window.Free()
        self._ranks.Free()
        if self.rank == 0:
            self._firsts.Free()


def _has_shared_memory(num_bytes):
    """Returns True if the file system of shared memory has room, or doesn't exist."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return True
    return found.f_bavail * found.f_frsize > 2 * num_bytes


def _unlink_mpichs_memory():
    """Removes the names of shared memory that MPICH keeps, but doesn't need any more.

    Ranks that are killed would leave it behind, 2 MB each time.
    """
    with contextlib.suppress(OSError):
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "/mpich_shm_" in line}
        for path in paths:
            os.unlink(path)


# --- Reductions -----------------------------------------------------------------------------------


def allreduce(send, receive, op=None) -> None:
    """Reduces arrays over ranks into `receive`, by sum unless an ``mpi4py.MPI.Op`` is given.

    Args:
        send: array of this rank, or ``MPI.IN_PLACE``.
        receive: array for the result on every rank. With ``MPI.IN_PLACE`` it also holds the input.
        op: the reduction; sum if None.
    """
    ranks = _ranks()
    if ranks is None:
        if isinstance(send, (np.ndarray, list, tuple)):  # else MPI.IN_PLACE
            receive[...] = send
        return
    still_alive()
    if op is None:
        ranks.Allreduce(send, receive)
    else:
        ranks.Allreduce(send, receive, op=op)


def broadcast(x: np.ndarray, root: int = 0) -> None:
    """Overwrites the array `x` on every rank with the one of rank `root`."""
    ranks = _ranks()
    if ranks is not None:
        still_alive()
        ranks.Bcast(x, root=root)


def sum_in_place(x: np.ndarray) -> None:
    """Overwrites the contiguous array `x` with its sum over ranks."""
    ranks = _ranks()
    if ranks is not None:
        from mpi4py import MPI

        still_alive()
        ranks.Allreduce(MPI.IN_PLACE, x)


def mpi_op(x, op=None):
    """Reduces a scalar or an array over ranks.

    Args:
        x: scalar or array, reduced in double precision.
        op: an ``mpi4py.MPI.Op``, or its name (``"SUM"``, ``"MIN"``, ``"MAX"``); sum by default.

    Returns:
        A float for a scalar, else an array of the shape of `x`.
    """
    send = np.asarray(x, dtype=np.float64)
    receive = np.array(send)
    if num_procs() > 1:
        from mpi4py import MPI

        op = getattr(MPI, op) if isinstance(op, str) else op
        allreduce(np.ascontiguousarray(send), receive, op)
    return receive.item() if send.ndim == 0 else receive


def mpi_sum(x):
    """Sums a scalar or an array over ranks."""
    return mpi_op(x, "SUM")


def mpi_avg(x, weight: float | None = None):
    """Averages a scalar or an array over ranks.

    Args:
        x: scalar or array.
        weight: this rank's weight: its share of the whole batch. The weights of all ranks add up
            to one. Equal weights if None.
    """
    return mpi_sum(np.asarray(x) * (1 / num_procs() if weight is None else weight))


def mpi_statistics_scalar(x, with_min_and_max: bool = False) -> tuple[float, ...]:
    """Computes statistics over the samples of all ranks.

    Args:
        x: samples of this rank, of any shape; may be empty.
        with_min_and_max: also compute the minimum and the maximum.

    Returns:
        Mean and population standard deviation, and with `with_min_and_max` also minimum and
        maximum. All are NaN if no rank has a sample.
    """
    x = np.asarray(x, dtype=np.float64).reshape(-1)
    total, count = mpi_sum(np.array([x.sum(), x.size]))
    mean = total / count if count else np.nan
    square = mpi_sum(((x - mean) ** 2).sum())
    std = float(np.sqrt(square / count)) if count else np.nan
    if not with_min_and_max:
        return float(mean), std
    low = mpi_op(x.min(initial=np.inf), "MIN")
    high = mpi_op(x.max(initial=-np.inf), "MAX")
    return (float(mean), std, low, high) if count else (np.nan,) * 4


# --- Launch ---------------------------------------------------------------------------------------


def mpi_fork(n: int, bind_to_core: bool = False) -> None:
    """Restarts the running script on `n` ranks, in place of this process.

    On a rank, and for ``n <= 1``, it returns at once, and the script continues::

        mpi_fork(4)
        ppo(...)  # runs on every rank

    Args:
        n: number of ranks.
        bind_to_core: bind each rank to a core.

    Raises:
        ValueError: the script already runs on another number of ranks, or MPI is not installed.
        RuntimeError: there is no script to restart (in a notebook or an interactive session).
    """
    if n > 1 and num_procs() == 1:
        from spinup.launch.mpiexec import restart_on_ranks  # a door: imported when used

        restart_on_ranks(n, bind_to_core)
    elif n > 1 and num_procs() != n:
        raise ValueError(
            f"{n} ranks were asked for inside an MPI world of {num_procs()}; "
            f"ask for {num_procs()}, or start with: mpiexec -n {n}"
        )
