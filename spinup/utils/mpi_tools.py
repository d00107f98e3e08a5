"""Ranks, and reductions over them.

A process that no MPI launcher started is rank 0 of 1 and never loads MPI, so that everything works
without mpi4py on one process. This is the only file that imports ``mpi4py.MPI``.
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

# What launchers tell their processes: MPICH and Slurm's pmi2, PMIx, Open MPI.
_LAUNCHER_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")

_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")

# Set to the number of ranks that a launch asked for; each rank checks that it got them.
ASKED = "SPINUP_NUM_CPU"


# --- Ranks ----------------------------------------------------------------------------------------


@functools.cache
def _world():
    """Returns the communicator of all ranks, or None in a process on its own."""
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
    """Refuses to be one of several processes of srun that don't know of each other.

    Raises:
        RuntimeError: srun has started several without an interface that MPI can use.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" and ASKED not in os.environ:
        raise RuntimeError(
            f"srun started {tasks} processes (SLURM_STEP_NUM_TASKS), but each takes itself for the "
            "only one: use srun --mpi=pmi2, or, for separate runs on purpose, set "
            f"{ASKED}=1"
        )


def _end_all_ranks(kind, error, trace):
    """Ends every rank after an exception in this one: the others would wait for it for ever."""
    lines = traceback.format_exception(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.write("".join([f"Rank {proc_id()} of {num_procs()} failed:\n", *lines]))
    sys.stderr.flush()
    time.sleep(0.2)  # mpiexec hands on what ranks print, but not once it is told to abort
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
    """Returns the number of ranks on this host. All ranks call it together."""
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
    """Returns once every rank has called it."""
    world = _world()
    if world is not None:
        still_alive()
        world.Barrier()


def msg(m: object, string: str = "") -> None:
    """Prints `m`, saying which rank it comes from."""
    print(f"Message from {proc_id()}: {string} \t {m}", flush=True)


def rank_share(total: int) -> int:
    """Returns this rank's part of `total` items: the shares differ by one at most and add up."""
    return total // num_procs() + (proc_id() < total % num_procs())


# --- Reductions -----------------------------------------------------------------------------------


def allreduce(send, receive, op=None) -> None:
    """Reduces arrays over ranks into `receive`, by sum unless an ``mpi4py.MPI.Op`` is given.

    Args:
        send: array of this rank, or ``MPI.IN_PLACE``.
        receive: array that gets the result on every rank, and holds the input when in place.
        op: the reduction.
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
        weight: this rank's weight, where ranks hold shares of unequal size. The weights of all
            ranks add up to one. Equal weights by default.
    """
    return mpi_sum(np.asarray(x) * (1 / num_procs() if weight is None else weight))


def mpi_statistics_scalar(x, with_min_and_max: bool = False) -> tuple[float, ...]:
    """Computes the statistics of all samples that all ranks hold.

    Args:
        x: samples of this rank, one-dimensional; may be empty.
        with_min_and_max: also compute the extremes.

    Returns:
        Mean and standard deviation (of the population), then minimum and maximum if asked for. All
        are NaN where no rank holds a sample.
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
    """Starts the running script again on `n` ranks, in place of this process.

    In a rank, and for ``n <= 1``, it returns at once, so that a script calls it and goes on::

        mpi_fork(4)
        ppo(...)  # runs on every rank

    Args:
        n: number of ranks.
        bind_to_core: bind each rank to a core.

    Raises:
        ValueError: the script already runs on another number of ranks, or MPI is not installed.
        RuntimeError: there is no script to start again (a notebook or an interactive session).
    """
    if n > 1 and num_procs() == 1:
        from spinup.launch.mpiexec import restart_on_ranks  # a door: it looks up when it is used

        restart_on_ranks(n, bind_to_core)
    elif n > 1 and num_procs() != n:
        raise ValueError(
            f"{n} ranks were asked for inside an MPI world of {num_procs()}; "
            f"ask for {num_procs()}, or start with: mpiexec -n {n}"
        )
