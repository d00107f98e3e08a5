"""Signals that ask a run to stop: it saves its state first.

Ctrl-C (SIGINT), SIGTERM and SIGUSR1, a scheduler's warning, only leave a note; the run looks at it
where all ranks meet, saves a checkpoint and ends. A SIGINT after another signal ends it at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]

_requested = 0


class Interrupted(SystemExit):
    """A run was asked to stop, and has saved a checkpoint.

    Where nothing catches it the process ends without a traceback, its exit status 128 and the
    signal's number.

    Attributes:
        signal: the signal's number.
        step: environment steps taken.
    """

    def __init__(self, number: int, step: int):
        super().__init__(128 + number)
        self.signal, self.step = number, step

    def __str__(self) -> str:
        return f"stopped, and saved at step {self.step}: continue with --resume"


def requested() -> int:
    """Returns the number of the signal that has asked the run to stop, or 0."""
    return _requested


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Has signals only leave a note in a block (in the main thread; elsewhere nothing changes)."""
    global _requested
    _requested = 0
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # What is ignored stays so, and what others than Python handle, too
    before = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, _note)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested = 0


def _note(number, frame):
    global _requested
    if number == signal.SIGINT and _requested:
        raise KeyboardInterrupt
    if not _requested:
        # print() might be what the signal has interrupted
        os.write(2, b"\nStopping at the next point where the state can be saved\n")
    _requested = number
