"""Ranks, and reductions over them.

A process that wasn't started by an MPI launcher is rank 0 of 1 and never loads MPI, so that it
doesn't need mpi4py. This is the only file that imports ``mpi4py.MPI``.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
import traceback

import numpy as np

from spinup.runs.watchdog import still_alive, watchdog

# Variables with the rank, as set by MPICH and Slurm's pmi2, PMIx, and Open MPI.
_LAUNCHER_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")

_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")

# Variable with the number of ranks that were asked for, which each rank checks.
ASKED = "SPINUP_NUM_CPU"


# --- Ranks ----------------------------------------------------------------------------------------


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
    world = _world()
    return 0 if world is None else world.Get_rank()


def num_procs() -> int:
    """Returns the number of ranks."""
    world = _world()
    return 1 if world is None else world.Get_size()


@functools.cache
def num_local_procs() -> int:
    """Returns the number of ranks on this host. All ranks must call it together."""
    world = _world()
    if world is None:
        return 1
    from mpi4py import MPI

    still_alive()
    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        return host.Get_size()
    finally:
        host.Free()


def barrier() -> None:
    """Waits until all ranks have called it."""
    world = _world()
    if world is not None:
        still_alive()
        world.Barrier()


def msg(m: object, string: str = "") -> None:
    """Prints `m` with the number of this rank."""
    print(f"Message from {proc_id()}: {string} \t {m}", flush=True)


def rank_share(total: int) -> int:
    """Returns this rank's share of `total` items. The shares of two ranks differ by at most one."""
    return total // num_procs() + (proc_id() < total % num_procs())


# --- Reductions -----------------------------------------------------------------------------------


def allreduce(send, receive, op=None) -> None:
    """Reduces arrays over ranks into `receive`, by sum unless an ``mpi4py.MPI.Op`` is given.

    Args:
        send: array of this rank, or ``MPI.IN_PLACE``.
        receive: array for the result on every rank. With ``MPI.IN_PLACE`` it also holds the input.
        op: the reduction; sum if None.
    """
    world = _world()
    if world is None:
        if isinstance(send, (np.ndarray, list, tuple)):  # else MPI.IN_PLACE
            receive[...] = send
        return
    still_alive()
    if op is None:
        world.Allreduce(send, receive)
    else:
        world.Allreduce(send, receive, op=op)


def broadcast(x: np.ndarray, root: int = 0) -> None:
    """Overwrites the array `x` on every rank with the one of rank `root`."""
    world = _world()
    if world is not None:
        still_alive()
        world.Bcast(x, root=root)


def sum_in_place(x: np.ndarray) -> None:
    """Overwrites the contiguous array `x` with its sum over ranks."""
    world = _world()
    if world is not None:
        from mpi4py import MPI

        still_alive()
        world.Allreduce(MPI.IN_PLACE, x)


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
