"""How far a run is, from its status."""

from __future__ import annotations

import time

from spinup.runs.wording import clock, short_return, with_commas


def epochs(status: dict) -> str:
    """Returns ``"3/50"``, the epochs that are over, or as much of that as the status tells."""
    epoch, total = status.get("epoch"), status.get("epochs")
    if epoch is None:
        return ""
    steps, total_steps = status.get("steps"), status.get("total_steps")
    if not (total and total_steps and steps is not None):
        return str(epoch)
    # By the steps: some algorithms number their epochs from 0, others from 1.
    return f"{steps * total // total_steps}/{total}"


def time_left(status: dict) -> float | None:
    """Returns the seconds that a run still needs at its speed so far, if it can be told."""
    steps, total, speed = (status.get(k) for k in ("steps", "total_steps", "steps_per_second"))
    if not (steps and total and speed):
        return None
    # The status is as old as the last epoch.
    age = max(0.0, time.time() - status.get("updated", time.time()))
    return max(0.0, (total - steps) / speed - age)


def progress(status: dict) -> list[str]:
    """Returns the phrases that tell how far a run is; empty where its status doesn't."""
    phrases = [
        ("epoch {}", epochs(status)),
        ("{} steps", with_commas(status.get("steps"))),
        ("return {}", short_return(status.get("return"))),
        ("{} steps/s", with_commas(status.get("steps_per_second"))),
        ("{} left", clock(time_left(status))),
    ]
    return [phrase.format(value) if value else "" for phrase, value in phrases]
