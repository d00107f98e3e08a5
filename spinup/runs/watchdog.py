"""A watchdog that ends a process that makes no progress."""

from __future__ import annotations

import datetime
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

# Reported for a rank that isn't stepping its environment; it may wait for another rank.
UNKNOWN_PLACE = "an update or an exchange with other ranks"


class Watchdog:
    """Ends a process that makes no progress, and prints where it hangs.

    It does nothing until `guard` is called, because it may only end a process that belongs to a
    single run, or that is one of several ranks.

    Args:
        seconds: seconds without progress after which it ends the process; 0 for never.

    Attributes:
        on_beat: function that is called regularly while the process makes progress.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._name = ""  # of the process; empty while it isn't guarded
        self._is_rank = False
        self._armed_at = 0.0  # time of the last `still_alive`; 0 while it doesn't watch
        self.on_beat: Callable[[], None] | None = None
        self._doing: Callable[[], str] | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_on(self) -> bool:
        """True if it ends the process when the process hangs."""
        return self.seconds > 0 and self._name != ""

    @property
    def is_armed(self) -> bool:
        """True if it waits for the next `still_alive`."""
        return self._armed_at > 0

    def guard(self, rank: int | None = None) -> None:
        """Watches this process from the next `still_alive` on.

        Args:
            rank: the rank of this process; None if the process is the only one of its run.
        """
        if rank is not None:
            self._name, self._is_rank = f"Rank {rank}", True
        elif not self._is_rank:
            self._name = "The run"

    def still_alive(self, doing: Callable[[], str] | None = None) -> None:
        """Records that the process makes progress.

        Args:
            doing: a function that describes the next operation; None for an update, or an exchange
                with other ranks.
        """
        if not self._name or not self.seconds > 0:
            return
        self._doing = doing
        now = time.monotonic()
        if now - self._armed_at > min(1.0, self.seconds / 10):  # arming takes some microseconds
            self._armed_at = now
            if self.on_beat is not None:
                self.on_beat()
            if self._is_rank:
                faulthandler.dump_traceback_later(self.seconds, exit=True)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Stops watching until the next `still_alive`."""
        if self._armed_at:
            faulthandler.cancel_dump_traceback_later()
            self._armed_at = 0.0

    def _watch(self):
        """Prints where the process hangs shortly before the end, and ends a lone process.

        For a lone process it counts its own beats instead of the time, so that a process that is
        suspended, for example by Ctrl-Z or a scheduler, isn't taken for one that hangs. Ranks are
        ended by faulthandler, which uses the clock, and works even if a rank hangs in C code that
        holds the GIL.
        """
        beat = min(1.0, self.seconds / 40)
        beats, armed_at, has_printed = 0, self._armed_at, False
        while True:
            time.sleep(beat)
            beats, latest = beats + 1, self._armed_at
            if not latest:  # stopped
                return
            if latest != armed_at:
                beats, armed_at, has_printed = 0, latest, False
            waited = time.monotonic() - armed_at if self._is_rank else beats * beat
            if waited > 0.85 * self.seconds and not has_printed:
                has_printed = True
                where = self._doing() if self._doing else UNKNOWN_PLACE
                sys.stderr.write(f"{self._name} hangs in {where}\n")
                sys.stderr.flush()
            if waited > self.seconds and not self._is_rank:
                sys.stderr.write(f"Timeout ({datetime.timedelta(seconds=round(self.seconds))})!\n")
                faulthandler.dump_traceback(sys.stderr)
                os._exit(1)


# One per process, as there is one faulthandler. The entry point calls `guard` in the process of a
# single run, and mpi_tools calls it on each of several ranks.
watchdog = Watchdog(float(os.environ.get("SPINUP_HANG_SECONDS") or 600))
still_alive = watchdog.still_alive
