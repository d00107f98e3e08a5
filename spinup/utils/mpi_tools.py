"""Ranks, reductions over them, and their launch.

A process that no MPI launcher started is rank 0 of 1 and never loads MPI, so that everything works
without mpi4py on one process. This is the only file that imports ``mpi4py.MPI``.
"""

from __future__ import annotations

import datetime
import faulthandler
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

# What launchers tell their processes: MPICH and Slurm's pmi2, PMIx, Open MPI.
_LAUNCHER_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")

_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")

# What an outer launcher leaves behind and would make an inner one believe it is a rank already.
_INHERITED_PREFIXES = ("PMI_", "PMIX_", "HYDI_", "HYDRA_", "MPI_LOCAL", "OMPI_COMM_", "PRTE_")

# The number of ranks that `launch_command` asked for; each rank checks that it got them.
_ASKED = "SPINUP_NUM_CPU"


# --- Ranks ----------------------------------------------------------------------------------------


@functools.cache
def _world():
    """Returns the communicator of all ranks, or None in a process on its own."""
    launched = any(name in os.environ for name in _LAUNCHER_VARIABLES)
    asked = int(os.environ.get(_ASKED, "1"))
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
    sys.excepthook = _end_all_ranks
    threading.excepthook = _end_all_ranks_by_thread
    return MPI.COMM_WORLD


def _check_srun():
    """Refuses to be one of several processes of srun that don't know of each other.

    Raises:
        RuntimeError: srun has started several without an interface that MPI can use.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" and _ASKED not in os.environ:
        raise RuntimeError(
            f"srun started {tasks} processes (SLURM_STEP_NUM_TASKS), but each takes itself for the "
            "only one: use srun --mpi=pmi2, or, for separate runs on purpose, set "
            f"{_ASKED}=1"
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


# Seconds without any progress after which a watched process gives up; 0 for never.
_HANG_SECONDS = float(os.environ.get("SPINUP_HANG_SECONDS") or 600)
_armed_at = 0.0  # when the watch was wound up last, 0 while there is none
_has_own_process = False
_doing: Callable[[], str] | None = None

# Where a rank hangs that doesn't step its environment: that waits, maybe, for one that does.
UNKNOWN_PLACE = "an update or an exchange with other ranks"


def watch_own_process() -> None:
    """Has `still_alive` watch this process even if it is the only rank: a run has it to itself."""
    global _has_own_process
    _has_own_process = True


def is_watched() -> bool:
    """Says whether `still_alive` ends this process when it hangs."""
    return _HANG_SECONDS > 0 and (_has_own_process or _world() is not None)


def still_alive(doing: Callable[[], str] | None = None) -> None:
    """Notes that this process makes progress, if it is one of several ranks or a run has it alone.

    A rank that ends early or stands still would have the others wait for it for ever. So one that
    has noted no progress for ``SPINUP_HANG_SECONDS`` (600 unless the environment says otherwise)
    says where it is, prints its stack and ends, and with it all others.

    Args:
        doing: says in words what is about to be done; if None it is an update, or an exchange with
            other ranks.
    """
    global _armed_at, _doing
    if not is_watched():
        return
    _doing = doing
    now = time.monotonic()
    if now - _armed_at > min(1.0, _HANG_SECONDS / 10):  # arming takes some microseconds
        _armed_at = now
        if _world() is not None:
            faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
        if not _watcher or not _watcher[0].is_alive():
            _watcher[:] = [threading.Thread(target=_watch, daemon=True)]
            _watcher[0].start()


_watcher: list[threading.Thread] = []


def _watch():
    """Says shortly before the watch runs out what faulthandler can't know, and ends a lone process.

    It counts its own beats, so that the time in which a lone process is stopped, as by Ctrl-Z or a
    scheduler, isn't taken for a hang. Several ranks are ended by faulthandler, by the clock: it
    works even where a rank hangs in C code that holds Python's lock.
    """
    beat = min(1.0, _HANG_SECONDS / 20)
    beats, armed_at, told = 0, _armed_at, False
    while _armed_at:
        time.sleep(beat)
        beats += 1
        if _armed_at != armed_at:
            beats, armed_at, told = 0, _armed_at, False
        if beats * beat > 0.9 * _HANG_SECONDS and not told:
            told = True
            where = _doing() if _doing else UNKNOWN_PLACE
            rank = f"Rank {proc_id()}" if num_procs() > 1 else "The run"
            sys.stderr.write(f"{rank} hangs in {where}\n")
            sys.stderr.flush()
        if beats * beat > _HANG_SECONDS and _world() is None:
            sys.stderr.write(f"Timeout ({datetime.timedelta(seconds=round(_HANG_SECONDS))})!\n")
            faulthandler.dump_traceback(sys.stderr)
            os._exit(1)


def stop_watching() -> None:
    """Ends the watch that `still_alive` keeps."""
    global _armed_at
    if _armed_at:
        faulthandler.cancel_dump_traceback_later()
        _armed_at = 0.0


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
    if n <= 1:
        return
    if num_procs() > 1:
        if num_procs() != n:
            raise ValueError(
                f"{n} ranks were asked for inside an MPI world of {num_procs()}; "
                f"ask for {num_procs()}, or start with: mpiexec -n {n}"
            )
        return
    argv, env = launch_command(n, _script_arguments(), bind_to_core)
    sys.stdout.flush()
    sys.stderr.flush()
    # Replacing the process leaves no Python parent whose death would orphan the ranks.
    os.execve(argv[0], argv, env)


def launch_command(
    n: int, args: Sequence[str], bind_to_core: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Builds the command that runs ``python *args`` on `n` ranks, one thread each.

    Args:
        n: number of ranks; one rank needs no MPI.
        args: what follows the Python executable, such as ``["-m", "package.module", "argument"]``.
        bind_to_core: bind each rank to a core.

    Returns:
        The command's words, and its environment.

    Raises:
        ValueError: `n` is not a positive integer, or MPI is not installed.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"The number of ranks must be a positive integer, not {n!r}")
    env = {k: v for k, v in os.environ.items() if not k.startswith((*_INHERITED_PREFIXES, _ASKED))}
    if n == 1:
        return [sys.executable, *args], {**env, _ASKED: "1"}
    mpiexec = _find_mpiexec(n)
    if n > usable_cores():
        warnings.warn(
            f"{n} ranks on {usable_cores()} usable core(s): they will take turns and run slower "
            f"than {usable_cores()}",
            stacklevel=3,
        )
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env.update({_ASKED: str(n), **dict.fromkeys(threads, "1")})
    # `python -m mpi4py` ends all ranks when one of them fails.
    python = [sys.executable, *_with_mpi4py(args)]
    if _is_hydra(mpiexec):
        # Inside a Slurm job Hydra would otherwise start the ranks through srun, and hang.
        options = ["-launcher", "fork", *(["-bind-to", "core"] if bind_to_core else [])]
    else:
        options = ["--oversubscribe", *(["--bind-to", "core"] if bind_to_core else [])]
    return [mpiexec, *options, "-n", str(n), *python], env


def usable_cores() -> int:
    """Counts the cores this process may use, by its affinity and its cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _cgroup_cores(cores)))


def _cgroup_cores(default, root="/sys/fs/cgroup", membership="/proc/self/cgroup"):
    """Returns the cores that the tightest quota of this process's cgroups grants."""
    try:
        groups = [line.split(":", 2) for line in Path(membership).read_text().splitlines()]
    except OSError:
        return default
    granted = [default]
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = Path(root) / "cpu" if controllers else Path(root)
        own = base / path.strip("/")
        for group in [own, *own.parents]:
            granted.append(_quota(group, default))
            if group == base:
                break
    return min(granted)


def _quota(group, default):
    """Reads one cgroup's quota in whole cores: ``cpu.max`` in version 2, two files in version 1."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return max(1, int(quota) // int(period)) if int(quota) > 0 else default
    except (OSError, ValueError):  # no such file, or "max": no limit here
        return default


def _find_mpiexec(n):
    """Returns the path of mpiexec: the one installed beside this Python first."""
    import importlib.util

    beside = shutil.which("mpiexec", path=sysconfig.get_path("scripts"))
    mpiexec = beside or shutil.which("mpiexec")
    if importlib.util.find_spec("mpi4py") is None or mpiexec is None:
        missing = "mpiexec" if mpiexec is None else "mpi4py"
        raise ValueError(
            f"{n} ranks need MPI, but {missing} is not installed; "
            "install it with: pip install mpi4py mpich, or use one rank"
        )
    return mpiexec


@functools.cache
def _is_hydra(mpiexec):
    """Says whether `mpiexec` is MPICH's."""
    version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False)
    return "HYDRA" in version.stdout.upper()


def _script_arguments():
    """Returns the words after the Python executable that started the running script."""
    ipython = sys.modules.get("IPython")
    if hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None):
        raise RuntimeError(
            "mpi_fork starts the running script again, and here is none; from a notebook or an "
            "interactive session use call_experiment(..., num_cpu=n) of spinup.launch.grid"
        )
    return sys.orig_argv[1:]


def _with_mpi4py(args):
    """Inserts ``-m mpi4py`` between the interpreter's own options and what it is to run."""
    i = 0
    while i < len(args) and args[i].startswith("-") and args[i] != "-":
        option = args[i]
        if option.startswith("--"):  # --check-hash-based-pycs takes its value in the next word
            i += 2 if option == "--check-hash-based-pycs" else 1
            continue
        # Short options may be joined (-Bm module); one that takes a value ends the word.
        position = next((j for j, c in enumerate(option) if j and c in "mcWX"), None)
        if position is None:
            i += 1
        elif option[position] in "WX":
            i += 1 if option[position + 1 :] else 2
        else:
            flags, target = option[:position], option[position + 1 :]
            flags = [flags] if flags != "-" else []
            target = [target] if target else []
            target = [f"-{option[position]}", *target, *args[i + 1 :]]
            return [*args[:i], *flags, "-m", "mpi4py", *target]
    if i == len(args) or args[i] == "-":
        raise RuntimeError("mpi_fork needs a script in a file: one from a pipe can't be rerun")
    return [*args[:i], "-m", "mpi4py", *args[i:]]
