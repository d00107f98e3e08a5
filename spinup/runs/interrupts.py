"""Signals that ask a run to save its state and stop.

The handler of Ctrl-C (SIGINT), SIGTERM and SIGUSR1 (a scheduler's warning) only records the signal.
The run checks it where all ranks meet, saves a checkpoint and ends. A SIGINT after another signal
ends the run at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class Interrupted(SystemExit):
    """Raised when a run was asked to stop and has saved a checkpoint.

    If it isn't caught, the process ends without a traceback, with exit status 128 plus the signal's
    number.

    Attributes:
        signal: the signal's number.
        step: environment steps taken.
    """

    def __init__(self, number: int, step: int):
        super().__init__(128 + number)
        self.signal, self.step = number, step

    def __str__(self) -> str:
        return f"stopped, and saved at step {self.step}: continue with --resume"


class StopRequest:
    """Records the signal that asks the run to stop.

    Attributes:
        signal: the signal's number; 0 if there was none.
    """

    def __init__(self):
        self.signal = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Makes signals only set `signal` while a block runs.

        This works in the main thread; in other threads nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        # Keep signals that are ignored, or that C code handles (None), as they are
        before = {
            n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)
        }
        try:
            for number in before:
                signal.signal(number, self._note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number, frame):
        if number == signal.SIGINT and self.signal:
            raise KeyboardInterrupt
        if not self.signal:
            # Not print(), which the signal may have interrupted
            with contextlib.suppress(OSError):  # stderr may be closed
                os.write(2, b"\nStopping at the next point where the state can be saved\n")
        self.signal = number


def is_interactive() -> bool:
    """Returns True in a notebook or at a Python prompt, which continue after the run stops."""
    ipython = sys.modules.get("IPython")
    return hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None)
