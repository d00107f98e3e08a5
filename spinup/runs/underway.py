"""The training run that is under way: what its parts share without the algorithm passing it on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from spinup.runs.interrupts import StopRequest


class RunUnderWay:
    """A training run, from the call of an algorithm to its return.

    Attributes:
        loggers: the Loggers that it made, to be closed at its end.
        stop: whether a signal has asked it to stop.
    """

    def __init__(self):
        self.loggers: list[Any] = []
        self.stop = StopRequest()

    def close(self, error: BaseException | None = None) -> None:
        """Ends the logs; `error` is the exception that ended the run."""
        for logger in self.loggers:
            logger.close(error)


# A thread has its own: two trainings in two threads don't mix.
_current: ContextVar[RunUnderWay | None] = ContextVar("run under way", default=None)


def current_run() -> RunUnderWay | None:
    """Returns the training run that this code is part of, if it is part of one."""
    return _current.get()


@contextlib.contextmanager
def run_under_way() -> Iterator[RunUnderWay]:
    """Makes a block a training run."""
    run = RunUnderWay()
    token = _current.set(run)
    try:
        yield run
    finally:
        _current.reset(token)
