"""How a grid's variants ended, for programs: ``NAME.grid.json`` in the folder of results."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spinup.launch.processes import Experiment, Outcome, Watcher
from spinup.runs.files import write_json
from spinup.runs.folder import State, read_status


def path(root: str, name: str, now: time.struct_time | None = None) -> Path:
    """Returns a grid's file.

    Args:
        root: the folder of results.
        name: of the grid.
        now: when it was started, to be put into the name.
    """
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S-", now) if now else ""
    return Path(root, f"{stamp}{name}.grid.json")


class Record(Watcher):
    """Keeps the file up to date.

    It holds the grid's variants in their order, each with its folder (from the file's), ``state``
    (``waiting``, ``queued``, ``running``, ``finished``, ``interrupted``, ``failed``), ``reason``,
    ``seconds``, ``epoch``, ``steps`` and ``return``, and under Slurm ``job``.

    Args:
        file: the file. What it says of other variants, as of an earlier grid of the name, stays.
        folders: of all variants. Those that aren't about to run are what their folders say.
    """

    def __init__(self, file: Path, folders: Sequence[str]):
        self._file = file
        self._variants: dict[str, dict[str, Any]] = {}
        for folder in folders:
            status = read_status(folder)
            has_finished = status.get("state") == State.FINISHED
            self._set(folder, State.FINISHED if has_finished else State.WAITING, status=status)
        self._write()

    def queued(self, experiments: Sequence[Experiment], jobs: Sequence[str]) -> None:
        """Notes that Slurm has variants, each as a job."""
        for experiment, job in zip(experiments, jobs):
            status = read_status(experiment.folder)
            self._set(str(experiment.folder), State.QUEUED, status=status, job=job)
        self._write()

    def started(self, experiment: Experiment) -> None:
        """Notes that a variant has started."""
        self._set(str(experiment.folder), State.RUNNING, status=read_status(experiment.folder))
        self._write()

    def ended(self, outcome: Outcome) -> None:
        """Notes how a variant has ended."""
        self._set(
            str(outcome.experiment.folder),
            outcome.state,
            reason=outcome.reason or None,
            seconds=round(outcome.seconds, 3),
            status=outcome.status,
        )
        self._write()

    def stopped(self, outcomes: Sequence[Outcome], waiting: int) -> None:
        """Notes how the variants have ended that were under way."""
        for outcome in outcomes:
            self.ended(outcome)

    def _set(self, folder, state, status=None, **more):
        name = os.path.relpath(folder, self._file.parent)
        known = {key: (status or {}).get(key) for key in ("epoch", "steps", "return")}
        self._variants[name] = {"folder": name, "state": state, "reason": None, **known, **more}

    def _write(self):
        # Others may be at work on a grid of the same name
        variants = {variant["folder"]: variant for variant in _read(self._file)} | self._variants
        content = {"updated": time.time(), "variants": list(variants.values())}
        with contextlib.suppress(OSError):  # such as a full disk: the grid goes on
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, content)


def _read(file):
    try:
        variants = json.loads(file.read_text())["variants"]
        return [variant for variant in variants if isinstance(variant["folder"], str)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
