"""The states of all runs below a folder: ``python -m spinup.run status DIR``."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from spinup.cli.flags import UsageError
from spinup.launch.display import console
from spinup.launch.progress import epochs, time_left
from spinup.launch.slurm import queued_jobs
from spinup.runs.folder import (
    State,
    examine_status,
    find_runs,
    is_locked,
    remedy,
)
from spinup.runs.wording import clock, short_return, with_commas

STYLES = {  # else red
    State.FINISHED: "green",
    State.INTERRUPTED: "yellow",
    State.QUEUED: "blue",
    State.RUNNING: "cyan",
    State.STARTING: "cyan",
}

# Seconds after which a run that hasn't begun counts as died.
STARTING_SECONDS = 300


def main(argv: Sequence[str]) -> int:
    """Prints a table of runs.

    Args:
        argv: folders that contain runs, at any depth.

    Returns:
        The exit status.

    Raises:
        UsageError: a folder doesn't exist, or there is no run.
    """
    parser = argparse.ArgumentParser(
        prog="python -m spinup.run status",
        description="Lists every run below folders: its state, progress, and last error.",
    )
    parser.add_argument("dir", nargs="*", default=["data"], help="folders; by default data")
    out, found = console(), find(parser.parse_args(list(argv)).dir)
    table = Table(box=None)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for heading in ("epochs", "steps", "return", "steps/s", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    errors, jobs = [], queued_jobs()
    for folder in found:
        status = state_of(folder, jobs)
        state, name = status["state"], _printable(os.path.relpath(folder))
        rate = status.get("steps_per_second")
        table.add_row(
            Text(name),
            Text(state, STYLES.get(state, "red")),
            epochs(status),
            with_commas(status.get("steps")),
            short_return(status.get("return")),
            f"{rate:,.0f}" if rate else "",
            clock(time_left(status)) if state == State.RUNNING else "",
        )
        if status.get("error"):
            errors.append(Text(f"{name}: {_printable(status['error'])}"))
    out.print(table)
    for error in errors:
        out.print(error, soft_wrap=True)
    return 0


def find(folders: Sequence[str]) -> list[Path]:
    """Returns the folders of all runs at or below folders.

    Raises:
        UsageError: a folder doesn't exist, or there is no run.
    """
    found: list[Path] = []
    for folder in folders:
        if not os.path.isdir(folder):
            raise UsageError(f"there is no folder {folder!r}")
        found += find_runs(folder)
    if not found:
        raise UsageError(f"there is no run below {', '.join(folders)}")
    return found


def state_of(folder: str | os.PathLike, jobs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns a run's status; the state is ``died`` if it ended without recording an end.

    Args:
        folder: the run folder.
        jobs: states of this user's Slurm jobs by id; None without Slurm. The state of a run whose
            job waits in the queue is ``queued``.
    """
    status, odd = examine_status(folder)
    state = status.setdefault("state", State.UNKNOWN)
    if odd:
        status["error"] = "; ".join(filter(None, [odd, status.get("error")]))
    job = status.get("slurm_job")
    if job is not None and jobs is not None:
        if jobs.get(job) in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"):
            if state != State.FINISHED:
                status.update(state=State.QUEUED, error=None)
            return status
        was_alive = state in (State.QUEUED, State.STARTING, State.RUNNING)
        died = was_alive and job not in jobs and is_locked(folder) is not True
    else:
        late = time.time() - status.get("updated", 0) > STARTING_SECONDS
        waits = state == State.RUNNING or (state == State.STARTING and late)
        died = waits and job is None and is_locked(folder) is False
    if died or state == State.DIED:
        status.update(state=State.DIED, error=f"it was killed: {remedy(folder)}")
    return status


def _printable(text):
    """Replaces characters that can't be printed, or that would move a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)
