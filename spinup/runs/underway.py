"""The current training run: objects that its parts share without passing them as arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from spinup.runs.interrupts import StopRequest


class RunUnderWay:
    """A training run, from the call of an algorithm to its return.

    Attributes:
        loggers: the Loggers of the run; they are closed at its end.
        stop: records a signal that asks the run to stop.
    """

    def __init__(self):
        self.loggers: list[Any] = []
        self.stop = StopRequest()

    def close(self, error: BaseException | None = None) -> None:
        """Closes the Loggers; `error` is the exception that ended the run."""
        for logger in self.loggers:
            logger.close(error)


# Each thread has its own value, so that runs in two threads don't interfere.
_current: ContextVar[RunUnderWay | None] = ContextVar("run under way", default=None)


def current_run() -> RunUnderWay | None:
    """Returns the training run that this code belongs to, or None."""
    return _current.get()


@contextlib.contextmanager
def run_under_way() -> Iterator[RunUnderWay]:
    """Makes a block a training run, and yields the run."""
    run = RunUnderWay()
    token = _current.set(run)
    try:
        yield run
    finally:
        _current.reset(token)
