"""A run before it begins: what its launcher says of it, apart from what its folder holds."""

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

    It is a folder within the run's, so that the run can move the files into place. Two launchers
    have one each, and a run that never begins leaves what its folder held as it was.

    Args:
        folder: the run's, made if need be.
        resumes: whether it continues a run, whose log then goes on.
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
        """The variable by which the run finds it."""
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
        """Returns the run's last word, as `read_status` does."""
        return read_status_file(self.place / STATUS)[0]

    def amend_status(self, state: State, error: str) -> None:
        """Changes what the run's status says of its end; that the disk is full is no error."""
        with contextlib.suppress(OSError):  # the caller says what happened all the same
            _amend(self.place, state, error)

    def close(self, has_finished: bool) -> Path:
        """Ends it when the run has ended.

        Args:
            has_finished: whether the run is known to have done its work.

        Returns:
            The run's log.
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
    """Says that a run waits in Slurm's queue, unless its job runs already."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if read_status(folder).get("slurm_job") != job:
        status = _starting(folder, State.QUEUED, resumes)
        write_json(folder / QUEUED, {**status, "slurm_job": job})


def note_start(folder: StrPath) -> None:
    """Says that a run starts in a folder, if that takes nothing from the results it holds."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not holds_results(folder):
        write_json(Path(folder, STATUS), _starting(folder, State.STARTING, False))


def note_end(folder: StrPath, state: State, error: str | None) -> None:
    """Says how the run of this process ended, unless its Logger or another rank has.

    Args:
        folder: the run's.
        state: how it ended.
        error: why, in one line.
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
    """Returns the first status of a run; one that continues another is as far as that is."""
    status = read_own_status(folder) if resumes else {}
    known = {key: status[key] for key in NUMBERS if key in status and key != "seconds"}
    job = {"slurm_job": slurm_job()} if slurm_job() else {}
    return {"state": state, "error": None, **known, **job, "updated": time.time()}
