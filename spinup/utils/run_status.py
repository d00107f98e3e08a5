"""What the runs below a folder are up to: ``python -m spinup.run status DIR``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from spinup.utils.command_line import UsageError
from spinup.utils.grid_display import clock, console, count, epochs, score, time_left
from spinup.utils.logx import is_locked, read_status

STYLES = {"finished": "green", "running": "cyan", "interrupted": "yellow"}  # else red


def main(argv: Sequence[str]) -> int:
    """Prints a table of runs.

    Args:
        argv: folders; runs lie in them or below.

    Returns:
        The exit status.

    Raises:
        UsageError: there is no such folder, or no run below one.
    """
    parser = argparse.ArgumentParser(
        prog="python -m spinup.run status",
        description="Lists every run below folders: its state, how far it is, and its last error.",
    )
    parser.add_argument("dir", nargs="*", default=["data"], help="folders; data unless given")
    out, found = console(), find(parser.parse_args(list(argv)).dir)
    table = Table(box=None)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for heading in ("epochs", "steps", "return", "steps/s", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    errors = []
    for path in found:
        status = state_of(path.parent)
        state, name = status["state"], os.path.relpath(path.parent)
        rate = status.get("steps_per_second")
        table.add_row(
            Text(name),
            Text(state, STYLES.get(state, "red")),
            epochs(status),
            count(status.get("steps")),
            score(status.get("return")),
            f"{rate:,.0f}" if rate else "",
            clock(time_left(status)) if state == "running" else "",
        )
        if status.get("error"):
            errors.append(Text(f"{name}: {status['error']}"))
    out.print(table)
    for error in errors:
        out.print(error, soft_wrap=True)
    return 0


def find(folders: Sequence[str]) -> list[Path]:
    """Returns the ``status.json`` of every run in folders or below.

    Raises:
        UsageError: there is no such folder, or no run.
    """
    found: list[Path] = []
    for folder in folders:
        if not os.path.isdir(folder):
            raise UsageError(f"there is no folder {folder!r}")
        found += sorted(Path(folder).rglob("status.json"))
    if not found:
        raise UsageError(f"no run lies below {', '.join(folders)}")
    return found


def state_of(folder: str | os.PathLike) -> dict[str, Any]:
    """Returns a run's status; its state is ``died`` if it couldn't say itself how it ended.

    Args:
        folder: the run's.
    """
    status = read_status(folder)
    status.setdefault("state", "unknown")
    if status["state"] == "running" and is_locked(folder) is False:
        status["state"] = "died"
        status["error"] = "it was killed, and can be continued with --resume"
    return status
