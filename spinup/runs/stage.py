"""A launcher's files of a run that hasn't begun, kept apart from the results in its folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from spinup.runs import files
from spinup.runs.files import StrPath, write_json
from spinup.runs.folder import (
    FAILED_LOG,
    LOG,
    NUMBERS,
    QUEUED,
    SPEC,
    STAGE,
    STAGE_VARIABLE,
    STATUS,
    State,
    holds_results,
    is_locked,
    lock,
    read_own_status,
    read_status,
    read_status_file,
    slurm_job,
    stage_of,
    unlock,
)


class Stage:
    """Keeps a launcher's files of a run (its call, its output, its status) until the run begins.

    A stage is a folder within the run folder, so that the run can move the files into place. Each
    launcher has its own stage. If a run never begins, the results in its folder stay unchanged.

    Args:
        folder: the run folder; it is made if it doesn't exist.
        resumes: whether the run continues an earlier one, whose log is then continued too.
    """

    def __init__(self, folder: StrPath, resumes: bool = False):
        self.folder = Path(os.path.abspath(folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix=STAGE, dir=self.folder))
        lock(self.path)
        if resumes and not files.ON_WINDOWS and (self.folder / LOG).is_file():
            shutil.copyfile(self.folder / LOG, self.path / LOG)
        write_json(self.path / STATUS, _starting(self.folder, State.STARTING, resumes))

    @property
    def environment(self) -> dict[str, str]:
        """The environment variable by which the run finds its stage."""
        return {STAGE_VARIABLE: str(self.path)}

    @property
    def is_open(self) -> bool:
        """Whether the run hasn't begun yet; it removes the status here when it does."""
        return (self.path / STATUS).exists()

    @property
    def place(self) -> Path:
        """Where the run's status is: here, or in its folder once it has begun."""
        return self.path if self.is_open else self.folder

    @property
    def log(self) -> Path:
        """What the run prints; on Windows, where it can't be moved, in its folder at once."""
        return (self.folder if files.ON_WINDOWS else self.place) / LOG

    def status(self) -> dict[str, Any]:
        """Returns the status of the run, as `read_status` does."""
        return read_status_file(self.place / STATUS)[0]

    def amend_status(self, state: State, error: str) -> None:
        """Changes the state and the error in the run's status; a full disk is ignored."""
        with contextlib.suppress(OSError):  # the caller reports the error itself
            _amend(self.place, state, error)

    def close(self, has_finished: bool) -> Path:
        """Removes the stage after the run has ended.

        Args:
            has_finished: whether the run finished.

        Returns:
            The path of the run's log.
        """
        log = self.folder / LOG
        if self.is_open:  # the run hasn't begun, or is a function without a Logger
            is_taken = holds_results(self.folder) or is_locked(self.folder)
            if has_finished or not is_taken:
                for name in (SPEC, LOG, STATUS):
                    if (self.path / name).exists():
                        os.replace(self.path / name, self.folder / name)
            elif (self.path / LOG).exists():
                log = self.folder / FAILED_LOG
                os.replace(self.path / LOG, log)
            (self.folder / QUEUED).unlink(missing_ok=True)
        unlock(self.path)  # before it is removed: NFS keeps a folder in which a file is open
        shutil.rmtree(self.path, ignore_errors=True)
        return log


def note_queued(folder: StrPath, job: str, resumes: bool) -> None:
    """Records that a run waits in Slurm's queue, unless its job is already running."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if read_status(folder).get("slurm_job") != job:
        status = _starting(folder, State.QUEUED, resumes)
        write_json(folder / QUEUED, {**status, "slurm_job": job})


def note_start(folder: StrPath) -> None:
    """Records that a run starts in a folder, unless the folder contains results."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not holds_results(folder):
        write_json(Path(folder, STATUS), _starting(folder, State.STARTING, False))


def note_end(folder: StrPath, state: State, error: str | None) -> None:
    """Records how the run in this process ended, unless its Logger or another rank has done so.

    Args:
        folder: the run folder.
        state: how the run ended.
        error: the error in one line.
    """
    place = stage_of(folder) or Path(folder)
    said = read_status_file(place / STATUS)[0].get("state")
    if said is None or not said.has_ended:
        place.mkdir(parents=True, exist_ok=True)
        _amend(place, state, error)


def _amend(place, state, error):
    status = read_status_file(place / STATUS)[0]
    write_json(place / STATUS, {**status, "state": state, "error": error})


def _starting(folder, state, resumes):
    """Returns the first status of a run; a resumed run starts with the earlier progress."""
    status = read_own_status(folder) if resumes else {}
    known = {key: status[key] for key in NUMBERS if key in status and key != "seconds"}
    job = {"slurm_job": slurm_job()} if slurm_job() else {}
    return {"state": state, "error": None, **known, **job, "updated": time.time()}
