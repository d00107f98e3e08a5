"""Runs a command that ends when the process that started it ends.

    python -I -S tether.py PARENT_PID [--hold SIGNALS] COMMAND [ARGS...]

A launcher that is killed with ``kill -9`` can't stop its experiments. So this script starts each
experiment: it asks the kernel to kill it when its parent dies, and then executes the command
(``exec`` keeps this setting). When ``mpiexec`` dies, its ranks end. The script is run by path and
imports almost nothing, so it takes about 15 ms. It works only on Linux.

With ``--hold TERM,USR1``, the command starts with these signals blocked, and may unblock them when
it is ready. ``mpiexec`` never does: a scheduler sends SIGTERM to all processes, and ``mpiexec``
would then kill its ranks before they save their state. A PARENT_PID of 0 means no parent.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(parent_pid: int | None = None) -> None:
    """Asks the kernel to kill this process as soon as its parent ends (Linux only).

    For the kernel, the parent dies when the *thread* that started this process ends.

    Args:
        parent_pid: the process id of the parent. If this process already has another parent, the
            original one died before the kernel was asked, and this process ends.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    # SIGKILL, because a process that hangs, or that saves its state, mustn't be left behind.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_pid is not None and os.getppid() != parent_pid:
        sys.exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if parent:
        die_with_parent(parent)
    if command[0] == "--hold":
        held = [getattr(signal, f"SIG{name}") for name in command[1].split(",")]
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        command = command[2:]
    os.execvp(command[0], command)
