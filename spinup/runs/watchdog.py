"""The watchdog of a process: where nothing moves any more it says so, and ends the process."""

from __future__ import annotations

import datetime
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

# Where a rank hangs that isn't stepping its environment: it may be waiting for a rank that is.
UNKNOWN_PLACE = "an update or an exchange with other ranks"


class Watchdog:
    """Ends a process that makes no progress, and says where it hangs.

    It does nothing until `guard` is called: only a process that a run has to itself, or that is one
    of several ranks, may be ended.

    Args:
        seconds: without progress, after which it ends the process; 0 for never.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._name = ""  # of the process; empty while it isn't guarded
        self._is_rank = False
        self._armed_at = 0.0  # when `still_alive` was called last; 0 while nothing is under way
        self._doing: Callable[[], str] | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_on(self) -> bool:
        """Whether the process is ended when it hangs."""
        return self.seconds > 0 and self._name != ""

    @property
    def is_armed(self) -> bool:
        """Whether it waits for the next `still_alive`."""
        return self._armed_at > 0

    def guard(self, rank: int | None = None) -> None:
        """Makes it watch this process from the next `still_alive` on.

        Args:
            rank: of this process among several; None if a run has the process to itself.
        """
        if rank is not None:
            self._name, self._is_rank = f"Rank {rank}", True
        elif not self._is_rank:
            self._name = "The run"

    def still_alive(self, doing: Callable[[], str] | None = None) -> None:
        """Notes that the process makes progress.

        Args:
            doing: returns what is about to be done, in words; None for an update, or an exchange
                with other ranks.
        """
        if not self._name or not self.seconds > 0:
            return
        self._doing = doing
        now = time.monotonic()
        if now - self._armed_at > min(1.0, self.seconds / 10):  # arming takes some microseconds
            self._armed_at = now
            if self._is_rank:
                faulthandler.dump_traceback_later(self.seconds, exit=True)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Stops the watch until the next `still_alive`."""
        if self._armed_at:
            faulthandler.cancel_dump_traceback_later()
            self._armed_at = 0.0

    def _watch(self):
        """Says shortly before the end what faulthandler can't know, and ends a lone process.

        It counts its own beats, so that the time in which a lone process is stopped, as by Ctrl-Z
        or a scheduler, isn't taken for a hang. Ranks are ended by faulthandler, by the clock: it
        works even where a rank hangs in C code that holds Python's lock.
        """
        beat = min(1.0, self.seconds / 40)
        beats, armed_at, told = 0, self._armed_at, False
        while True:
            time.sleep(beat)
            beats, latest = beats + 1, self._armed_at
            if not latest:  # stopped
                return
            if latest != armed_at:
                beats, armed_at, told = 0, latest, False
            waited = time.monotonic() - armed_at if self._is_rank else beats * beat
            if waited > 0.85 * self.seconds and not told:
                told = True
                where = self._doing() if self._doing else UNKNOWN_PLACE
                sys.stderr.write(f"{self._name} hangs in {where}\n")
                sys.stderr.flush()
            if waited > self.seconds and not self._is_rank:
                sys.stderr.write(f"Timeout ({datetime.timedelta(seconds=round(self.seconds))})!\n")
                faulthandler.dump_traceback(sys.stderr)
                os._exit(1)


# A process has one, as it has one faulthandler. A run's entry point makes it guard a process that a
# run has to itself, and mpi_tools one of several ranks.
watchdog = Watchdog(float(os.environ.get("SPINUP_HANG_SECONDS") or 600))
still_alive = watchdog.still_alive
