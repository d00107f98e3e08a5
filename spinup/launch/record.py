"""The record of a grid's outcomes for programs: ``NAME.grid.json`` in the results folder."""

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
    """Returns the path of a grid's record.

    Args:
        root: the results folder.
        name: name of the grid.
        now: time of the start, to be added to the file's name.
    """
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S-", now) if now else ""
    return Path(root, f"{stamp}{name}.grid.json")


class Record(Watcher):
    """Writes the record of a grid.

    The record lists the grid's variants in order. Each has ``folder`` (relative to the file's
    folder), ``state`` (``waiting``, ``queued``, ``running``, ``finished``, ``interrupted``,
    ``failed``), ``reason``, ``seconds``, ``epoch``, ``steps`` and ``return``, and on Slurm ``job``.

    Args:
        file: path of the record. Other variants in it, from earlier grids of this name, are kept.
        folders: folders of all variants. Those that have finished before are marked as finished.
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
        """Records that variants were submitted to Slurm, with their jobs."""
        for experiment, job in zip(experiments, jobs):
            status = read_status(experiment.folder)
            self._set(str(experiment.folder), State.QUEUED, status=status, job=job)
        self._write()

    def started(self, experiment: Experiment) -> None:
        """Records that a variant has started."""
        self._set(str(experiment.folder), State.RUNNING, status=read_status(experiment.folder))
        self._write()

    def ended(self, outcome: Outcome) -> None:
        """Records how a variant ended."""
        self._set(
            str(outcome.experiment.folder),
            outcome.state,
            reason=outcome.reason or None,
            seconds=round(outcome.seconds, 3),
            status=outcome.status,
        )
        self._write()

    def stopped(self, outcomes: Sequence[Outcome], waiting: int) -> None:
        """Records how the interrupted variants ended."""
        for outcome in outcomes:
            self.ended(outcome)

    def _set(self, folder, state, status=None, **more):
        name = os.path.relpath(folder, self._file.parent)
        known = {key: (status or {}).get(key) for key in ("epoch", "steps", "return")}
        self._variants[name] = {"folder": name, "state": state, "reason": None, **known, **more}

    def _write(self):
        # Another process may run a grid of the same name
        variants = {variant["folder"]: variant for variant in _read(self._file)} | self._variants
        content = {"updated": time.time(), "variants": list(variants.values())}
        with contextlib.suppress(OSError):  # such as a full disk, which mustn't stop the grid
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, content)


def _read(file):
    try:
        variants = json.loads(file.read_text())["variants"]
        return [variant for variant in variants if isinstance(variant["folder"], str)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
