"""Run a command that ends when the process that started it does.

    python -I -S tether.py PARENT_PID [--hold SIGNALS] COMMAND [ARGS...]

A launcher that is killed with ``kill -9`` can't stop its experiments any more. So each of them is
started through this file: it asks the kernel to kill it on the parent's death and then becomes the
command (``exec`` keeps that wish). The death of ``mpiexec`` ends its ranks. Run by path and
importing nothing, this costs about 15 ms. Only Linux can do it.

With ``--hold TERM,USR1`` the command starts with these signals blocked: until it is ready for them,
or for good, as ``mpiexec``, which would end its ranks at once where a scheduler sends SIGTERM to
all processes and ranks are to save their state first. A PARENT_PID of 0 ties it to nobody.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(parent_pid: int | None = None) -> None:
    """Asks the kernel to kill this process as soon as its parent ends (Linux only).

    The kernel counts the end of the *thread* that started this process as its parent's death.

    Args:
        parent_pid: the parent's process id as the parent itself knew it. If another process is the
            parent by now, the true one died before the kernel was asked, and this process ends.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    # SIGKILL, because a process that hangs, or is busy saving, mustn't stay behind unnoticed.
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
