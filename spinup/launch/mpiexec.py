"""Starting ranks: the ``mpiexec`` command, and restarting the running script on several ranks."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Sequence

from spinup.launch.cores import usable_cores
from spinup.utils.mpi_tools import ASKED

# Variables of an outer launcher. An inner launcher that inherits them would take itself for a rank.
_INHERITED_PREFIXES = ("PMI_", "PMIX_", "HYDI_", "HYDRA_", "MPI_LOCAL", "OMPI_COMM_", "PRTE_")


def restart_on_ranks(n: int, bind_to_core: bool = False) -> None:
    """Replaces this process by `n` ranks that run the same script.

    Raises:
        ValueError: MPI is not installed.
        RuntimeError: there is no script (in a notebook or an interactive session).
    """
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
        args: arguments of the Python executable, such as ``["-m", "package.module", "argument"]``.
        bind_to_core: bind each rank to a core.

    Returns:
        The words of the command, and its environment variables.

    Raises:
        ValueError: `n` is not a positive integer, or MPI is not installed.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"The number of ranks must be a positive integer, not {n!r}")
    env = {k: v for k, v in os.environ.items() if not k.startswith((*_INHERITED_PREFIXES, ASKED))}
    if n == 1:
        return [sys.executable, *args], {**env, ASKED: "1"}
    mpiexec = _find_mpiexec(n)
    if n > usable_cores():
        warnings.warn(
            f"{n} ranks on {usable_cores()} usable core(s): they will share cores and be slower "
            f"than {usable_cores()}",
            stacklevel=3,
        )
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env.update({ASKED: str(n), **dict.fromkeys(threads, "1")})
    # `python -m mpi4py` ends all ranks when one of them fails.
    python = [sys.executable, *_with_mpi4py(args)]
    if _is_hydra(mpiexec):
        # Without "fork", Hydra inside a Slurm job would start the ranks with srun, and hang.
        options = ["-launcher", "fork", *(["-bind-to", "core"] if bind_to_core else [])]
    else:
        options = ["--oversubscribe", *(["--bind-to", "core"] if bind_to_core else [])]
    return [mpiexec, *options, "-n", str(n), *python], env


def _find_mpiexec(n):
    """Returns the path of mpiexec, preferably the one installed beside this Python."""
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
    """Returns True if `mpiexec` is MPICH's Hydra."""
    version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False)
    return "HYDRA" in version.stdout.upper()


def _script_arguments():
    """Returns the arguments of the Python executable that started the running script."""
    ipython = sys.modules.get("IPython")
    if hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None):
        raise RuntimeError(
            "mpi_fork restarts the running script, but there is none here: in a notebook or an "
            "interactive session, use call_experiment(..., num_cpu=n) from spinup.utils.run_utils"
        )
    return sys.orig_argv[1:]


def _with_mpi4py(args):
    """Inserts ``-m mpi4py`` between the interpreter's options and the script or module."""
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
        raise RuntimeError("mpi_fork needs a script in a file: a script from a pipe can't be rerun")
    return [*args[:i], "-m", "mpi4py", *args[i:]]
