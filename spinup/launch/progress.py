"""The progress of a run, from its status."""

from __future__ import annotations

import time

from spinup.runs.wording import clock, short_return, with_commas


def epochs(status: dict) -> str:
    """Returns the completed epochs as ``"3/50"``, or the part of it that the status contains."""
    epoch, total = status.get("epoch"), status.get("epochs")
    if epoch is None:
        return ""
    steps, total_steps = status.get("steps"), status.get("total_steps")
    if not (total and total_steps and steps is not None):
        return str(epoch)
    # Computed from the steps, because some algorithms number their epochs from 0, others from 1.
    return f"{steps * total // total_steps}/{total}"


def time_left(status: dict) -> float | None:
    """Returns the remaining seconds of a run at its average speed, or None if unknown."""
    steps, total, speed = (status.get(k) for k in ("steps", "total_steps", "steps_per_second"))
    if not (steps and total and speed):
        return None
    # The status was written at the end of the last epoch.
    age = max(0.0, time.time() - status.get("updated", time.time()))
    return max(0.0, (total - steps) / speed - age)


def progress(status: dict) -> list[str]:
    """Returns phrases about the progress; a phrase is empty if the status lacks the value."""
    phrases = [
        ("epoch {}", epochs(status)),
        ("{} steps", with_commas(status.get("steps"))),
        ("return {}", short_return(status.get("return"))),
        ("{} steps/s", with_commas(status.get("steps_per_second"))),
        ("{} left", clock(time_left(status))),
    ]
    return [phrase.format(value) if value else "" for phrase, value in phrases]
