"""The run folder: the names of its files, its states, its lock, and its status.

Only this module defines the names of files and states. A run claims its folder with
`RunFolder.begin` after its environment and its networks are known to work. Before that, nothing in
the folder is removed or overwritten, and a launcher keeps its own files in a `Stage`.
"""

from __future__ import annotations

import contextlib
import enum
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from spinup.runs import files
from spinup.runs.files import StrPath, open_own, read_object, write_json
from spinup.runs.interrupts import Interrupted
from spinup.runs.json_values import convert_json
from spinup.runs.wording import describe_error
from spinup.utils.mpi_tools import barrier, broadcast, num_procs, proc_id

CONFIG = "config.json"  # everything that is needed to repeat the run
PROGRESS = "progress.txt"  # the log, one row per epoch
STATUS = "status.json"  # state and progress of the run
POLICY = "pyt_save"  # weights
BEST = "best"  # the save of the policy with the highest return
CHECKPOINT = "checkpoint"  # complete state of the training
TENSORBOARD = "tensorboard"
WANDB = "wandb"
LOG = "log.txt"  # printed output, if a launcher started the run
FAILED_LOG = "log.failed.txt"  # printed output of a run that failed before it began
SPEC = "experiment.json"  # the launcher's call
LOCK = ".lock"
QUEUED = ".queued.json"  # status of a run that waits in Slurm's queue
STAGE = ".starting-"  # prefix of the name of a Stage's folder

# Files and folders that a run writes; `overwrite` removes only these.
RESULTS = (CONFIG, PROGRESS, STATUS, POLICY, CHECKPOINT, TENSORBOARD, WANDB, LOG, FAILED_LOG, SPEC)

# Environment variable: the folder of the Stage in which the launcher started this process.
STAGE_VARIABLE = "SPINUP_STAGE"


class State(str, enum.Enum):
    """The state of a run: what it is doing, or how it ended."""

    QUEUED = "queued"  # waits in Slurm's queue
    WAITING = "waiting"  # waits for other variants of its grid (only in the grid's record)
    STARTING = "starting"  # launched, but hasn't claimed its folder yet
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # stopped by a signal
    FAILED = "failed"
    DIED = "died"  # killed before it could write a status (never in a file: readers infer it)
    UNKNOWN = "unknown"  # its status can't be read (never in a file)

    __str__ = str.__str__

    @property
    def has_ended(self) -> bool:
        """True if the run itself recorded how it ended."""
        return self in (State.FINISHED, State.INTERRUPTED, State.FAILED)


# --- Contents of a folder -------------------------------------------------------------------------


def check_exp_name(name: str) -> str:
    """Returns the name of an experiment if it is valid as the name of a folder.

    Raises:
        ValueError: it contains characters other than letters, digits and ``_ - + . =``, starts with
            a dot, or is too long.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_+=-][A-Za-z0-9_+=.-]*", name):
        raise ValueError(
            f"exp_name {name!r} can't be the name of a folder: use letters, digits and _ - + . = "
            "(no dot at the beginning)"
        )
    if len(name) > 200:  # file systems allow 255; a date, a seed and a suffix are added
        raise ValueError(
            f"exp_name {name[:20] + '...'!r} has {len(name)} characters, but at most 200 are "
            "allowed: shorten it, or give shorthands for the grid's parameters (--hid[h])"
        )
    return name


def holds_results(folder: StrPath) -> bool:
    """Returns True if a folder contains results of a run: a log, a policy or checkpoints."""
    progress = Path(folder, PROGRESS)
    has_rows = progress.is_file() and progress.stat().st_size > 0
    return has_rows or any(Path(folder, name).exists() for name in (POLICY, CHECKPOINT))


def holds_checkpoint(folder: StrPath) -> bool:
    """Returns True if a folder contains a checkpoint, even a damaged one."""
    return any(Path(folder, CHECKPOINT).glob("step-*"))


def is_resumable(folder: StrPath) -> bool:
    """Returns True if resuming a run loses nothing.

    Without a checkpoint a run starts from the beginning. That is the same run where the first
    epoch's checkpoint wasn't complete; where there are more results, they would be lost.
    """
    if holds_checkpoint(folder):
        return True
    has_finished = read_own_status(folder).get("state") == State.FINISHED
    return _count_rows(folder) <= (0 if has_finished else 1)


def _count_rows(folder):
    progress = Path(folder, PROGRESS)
    return max(0, progress.read_bytes().count(b"\n") - 1) if progress.is_file() else 0


def remedy(folder: StrPath) -> str:
    """Returns how to run a run again that has ended early: "continue with --resume", say."""
    if holds_checkpoint(folder):
        return "continue with --resume"
    return f"start again with {'--resume' if is_resumable(folder) else '--overwrite'}"


def find_runs(top: StrPath) -> list[Path]:
    """Lists the run folders at or below `top`, including those of queued and starting runs."""
    names = (STATUS, QUEUED, f"{STAGE}*/{STATUS}")
    files = {path for name in names for path in Path(top).rglob(name)}
    parents = {path.parent for path in files}
    return sorted({p.parent if p.name.startswith(STAGE) else p for p in parents})


def slurm_job() -> str | None:
    """Returns the id of this process's Slurm job, ``array_task`` in an array; None without one."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else job


# --- Status ---------------------------------------------------------------------------------------


def read_status(folder: StrPath) -> dict[str, Any]:
    """Returns the newest status of a run: its own, or that of a newer start.

    A start whose launcher was killed doesn't count, unless there is nothing else: then it died.

    Returns:
        The valid values; values of a wrong type are left out. ``state`` is a `State`. Empty if
        there is no status yet, or if it can't be read.
    """
    return examine_status(folder)[0]


def examine_status(folder: StrPath) -> tuple[dict[str, Any], str]:
    """Returns `read_status`, and what is wrong with the file in one line, or an empty string."""
    known = [Path(folder, STATUS), Path(folder, QUEUED)]
    dead: list[Path] = []
    for path in Path(folder).glob(f"{STAGE}*/{STATUS}"):
        is_dead = is_locked(path.parent) is False  # its launcher was killed before the run began
        (dead if is_dead else known).append(path)
    if dead and not any(path.exists() for path in known):
        return {**_newest(dead)[0], "state": State.DIED}, ""
    return _newest(known)


def _newest(paths):
    found = [read_status_file(path) for path in paths]
    return max(found, key=lambda read: read[0].get("updated", -math.inf))


def read_own_status(folder: StrPath) -> dict[str, Any]:
    """Returns the status of the last run that claimed the folder, as `read_status` does."""
    return read_status_file(Path(folder, STATUS))[0]


NUMBERS = ("epoch", "epochs", "steps", "total_steps", "return", "seconds", "steps_per_second")


def read_status_file(path):
    if not path.is_file():
        return {}, ""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, not a {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{path.name} can't be read: {describe_error(error)}"
    status, odd = {}, []
    for key, value in content.items():
        valid, value = _checked(key, value)
        if valid:
            status[key] = value
        else:
            odd.append(f"{key} is {_shortened(value)}")
    if "state" not in content:
        odd.append("state is missing")
    return status, f"{path.name} is invalid: {', '.join(odd)}" if odd else ""


def _checked(key, value):
    """Returns whether a value is valid for this key of a status, and the value."""
    if key == "state":
        known = isinstance(value, str) and value in [state.value for state in State]
        return known, State(value) if known else value
    if key in (*NUMBERS, "updated"):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        least = {"return": -1e18, "steps_per_second": 1e-9}.get(key, 0)
        is_sane = is_number and (value == 0 or least <= value <= 1e18)
        return is_sane or (value is None and key != "updated"), value
    return key not in ("error", "slurm_job") or value is None or isinstance(value, str), value


def _shortened(value):
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# --- Lock -----------------------------------------------------------------------------------------

# The lock files that this process holds, by folder. The system keeps one lock per process and file,
# and releases it when the process closes any handle of the file.
_locks: dict[Path, IO] = {}


def lock(folder: StrPath) -> None:
    """Locks a folder against runs of other processes, until `unlock` or the end of this process.

    Raises:
        BlockingIOError: another process has locked the folder.
    """
    folder = Path(os.path.abspath(folder))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        return
    if folder in _locks:
        return
    file = open_own(folder / LOCK, "w")
    for attempt in range(10):
        try:
            # The lock belongs to this process alone: children don't inherit it, and it ends with it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):
            if attempt < 9:  # another process may be checking the lock for a moment, see is_locked
                time.sleep(0.02)
                continue
            file.close()
            raise _in_use(folder) from None
        except OSError:  # a file system without locks
            break
    _locks[folder] = file


def unlock(folder: StrPath) -> None:
    """Releases this process's lock on a folder."""
    file = _locks.pop(Path(os.path.abspath(folder)), None)
    if file is not None:
        file.close()


def is_locked(folder: StrPath) -> bool | None:
    """Returns True if a run is writing to a folder, False if not, and None if unknown."""
    return Path(os.path.abspath(folder)) in _locks or _is_locked_by_others(folder)


def _is_locked_by_others(folder):
    if Path(os.path.abspath(folder)) in _locks:
        return False  # opening and closing the file would release the lock
    try:
        import fcntl

        file = open(Path(folder, LOCK), "r+")  # noqa: SIM115 (closed below)
    except (ImportError, OSError):
        return None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several processes may check at once
        except (BlockingIOError, PermissionError):
            return True
        except OSError:  # a file system without locks
            return None
    return False


def _in_use(folder):
    return BlockingIOError(f"{folder} is in use by a run that is under way")


# --- Configuration --------------------------------------------------------------------------------

# Keys that may differ when a run is resumed.
MAY_CHANGE = {"epochs", "versions", "logger_kwargs", "device", "checkpoint_every", "save_freq"}
MAY_CHANGE |= {"on_epoch"}

# How to resume with the same value, where it isn't an argument.
_REMEDIES = {"learners": "share GPUs between the same ranks as before, or use the CPU if it did"}


def read_config(folder: StrPath) -> dict[str, Any]:
    """Returns a run's ``config.json``, or an empty dict if it can't be read."""
    return read_object(Path(folder, CONFIG))


def read_spec(folder: StrPath) -> dict[str, Any]:
    """Returns the launcher's call, or an empty dict if there is none."""
    return read_object(Path(folder, SPEC))


def fixed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a configuration that must stay the same when a run is resumed."""
    return {key: value for key, value in config.items() if key not in MAY_CHANGE}


def check_unchanged(before: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Checks that a run is resumed with the hyperparameters that it began with.

    Args:
        before: the configuration of the run, as read from JSON.
        config: the configuration to continue with. Only keys in both are compared.

    Raises:
        ValueError: a hyperparameter differs; the message names it.
    """
    keys = before.keys() & config.keys() - MAY_CHANGE
    for key in sorted(keys, key=lambda key: (key != "algorithm", key)):  # other keys depend on it
        # Through JSON, which has lists for tuples; None and an empty dict both mean no arguments
        now = json.loads(json.dumps(config[key]))
        if before[key] != now and not all(value in (None, {}) for value in (before[key], now)):
            remedy = _REMEDIES.get(key, "use that value")
            raise ValueError(
                f"{key} is {config[key]!r}, but the run to resume has {before[key]!r}: {remedy}, "
                "or replace the run with --overwrite"
            )
    if _epochs(before, 0) > _epochs(config, math.inf):
        raise ValueError(
            f"epochs is {config['epochs']}, but the run to resume has {before['epochs']}: more are "
            "allowed, fewer aren't"
        )


def _epochs(config, default):
    epochs = config.get("epochs", default)
    return epochs if isinstance(epochs, (int, float)) else default


# --- The folder of this process's run -------------------------------------------------------------


class RunFolder:
    """The folder of the run in this process. Every rank has one, but only rank 0 writes.

    Args:
        path: the folder; `begin` makes it if it doesn't exist. None for a new temporary folder.
        overwrite: remove earlier results in the folder instead of refusing it.
        resume: continue the run in the folder, if there is one.

    Attributes:
        path: rank 0's folder, on all ranks; None until a temporary folder is made.
        resumes: whether this run continues an earlier one.
        has_begun: whether the run has claimed the folder.
        config: the content of ``config.json``.
        status: the progress of the run.

    Raises:
        FileExistsError: the folder contains results.
        BlockingIOError: another run is writing to the folder.
    """

    def __init__(self, path: StrPath | None = None, overwrite: bool = False, resume: bool = False):
        self.overwrite, self.resumes = overwrite, resume and not overwrite
        self.has_begun = False
        self.config: dict[str, Any] = {}
        self.status: dict[str, Any] = {}
        self._began = time.time()
        self._temporary: Path | None = None
        self._config_before: dict[str, Any] = {}
        self.path = _path_of_rank_0(path)
        if proc_id() == 0 and path is not None:
            if not (overwrite or resume):
                _refuse_results(path)
            if _is_locked_by_others(path):
                raise _in_use(path)
            if self.resumes and Path(path, CHECKPOINT).is_dir():
                self._config_before = read_config(path)

    @property
    def is_launched(self) -> bool:
        """True if a launcher started the run, so that its printed output goes to a log."""
        return stage_of(self.path) is not None

    def add_config(self, config: Mapping[str, Any]) -> None:
        """Adds entries to ``config.json``, which is first written by `begin`.

        Raises:
            ValueError: the run to resume has another value.
        """
        self.config.update(convert_json(dict(config)))
        check_unchanged(self._config_before, self.config)
        if self.has_begun and proc_id() == 0:
            write_json(self._file(CONFIG), self.config)

    def make_path(self) -> Path:
        """Returns rank 0's folder; makes a temporary one if none was given."""
        if self.path is None:
            self.path = self._temporary = Path(tempfile.mkdtemp(prefix="spinup-"))
        return self.path

    def lock(self) -> None:
        """Locks the folder against other runs, without any other change."""
        if proc_id() == 0 and self.path is not None:
            lock(self.path)

    def begin(self) -> None:
        """Claims the folder: locks it, removes replaced results, and sets the state to running.

        Raises:
            FileExistsError: another run has written results there in the meantime.
            BlockingIOError: another run is writing to the folder.
            OSError: the folder can't be written to.
        """
        if self.has_begun:
            return
        if proc_id() == 0:
            self.make_path()
            self.lock()
            if self.overwrite:
                _remove_results(self.path)
            elif not self.resumes:
                _refuse_results(self.path)
            if self.config:
                write_json(self._file(CONFIG), self.config)
            self._take_over_launch()
        self.path = _path_of_rank_0(self.path)
        self.has_begun = True

    def _take_over_launch(self):
        """Moves the launcher's files into the folder, and replaces the launcher's status."""
        stage = stage_of(self.path)
        if stage:
            (stage / STATUS).unlink()  # says to the launcher, and to `stage_of`, that the run began
        for name in (SPEC, LOG) if stage else ():
            if (stage / name).exists():
                os.replace(stage / name, self._file(name))
        self.write_status(State.RUNNING)
        self._file(QUEUED).unlink(missing_ok=True)
        self._file(FAILED_LOG).unlink(missing_ok=True)
        for other in self.path.glob(f"{STAGE}*"):
            if other == stage or is_locked(other) is False:  # from a launcher that was killed
                shutil.rmtree(other, ignore_errors=True)

    def note_row(self, row: Mapping[str, Any]) -> None:
        """Updates the progress from a row of the log, for `write_status`."""
        performance = row.get("AverageTestEpRet", row.get("AverageEpRet", math.nan))
        steps, seconds = row.get("TotalEnvInteracts"), time.time() - self._began
        self.status.update(
            {
                "epoch": row.get("Epoch"),
                "epochs": self.config.get("epochs"),
                "steps": steps,
                "total_steps": _product(self.config, "epochs", "steps_per_epoch"),
                "return": performance if math.isfinite(performance) else None,
                "seconds": round(seconds, 3),
                "steps_per_second": steps / seconds if steps and seconds > 0 else None,
            }
        )

    def write_status(self, state: State, error: BaseException | None = None) -> None:
        """Writes ``status.json``."""
        reason = None
        if error is not None:
            by_one = num_procs() > 1 and not isinstance(error, Interrupted)
            rank = f"rank {proc_id()}: " if by_one else ""
            reason = rank + describe_error(error)
        status = {"state": state, "error": reason, **self.status, "updated": time.time()}
        if slurm_job() is not None:
            status["slurm_job"] = slurm_job()
        write_json(self._file(STATUS), convert_json(status))

    def state_dict(self) -> dict[str, Any]:
        """Returns the progress of the run, for a checkpoint."""
        return dict(status=self.status, seconds=time.time() - self._began)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.status, self._began = state["status"], time.time() - state["seconds"]

    def close(self, error: BaseException | None = None) -> None:
        """Records how the run ended, if it has begun, and releases the lock.

        Args:
            error: the exception that ended the run, if any.
        """
        # A rank that fails writes the status itself, because rank 0 waits for it and is killed. An
        # interruption reaches all ranks, and rank 0 writes. A learner's error, which its actors
        # raise, too, is recorded by the learner.
        interrupted = isinstance(error, Interrupted)
        is_recorded = error is None or interrupted or getattr(error, "is_recorded", False)
        if self.has_begun and (proc_id() == 0 or not is_recorded):
            ended = State.INTERRUPTED if interrupted else State.FAILED
            # The exception in progress matters more than a full disk
            with contextlib.suppress(OSError) if error else contextlib.nullcontext():
                self.write_status(ended if error else State.FINISHED, error)
        if interrupted:
            barrier()  # the first rank that exits ends all; rank 0 must write its status before
        if proc_id() == 0 and self.path is not None:
            unlock(self.path)
        if self._temporary is not None and not self.has_begun:
            with contextlib.suppress(OSError):  # the user may have put files into it
                self._temporary.rmdir()

    def _file(self, name):
        assert self.path is not None
        return self.path / name


def _path_of_rank_0(path):
    """Returns rank 0's path, on all ranks."""
    encoded = os.fsencode(os.path.abspath(path)) if path is not None else b""
    name = np.zeros(4096, dtype=np.uint8)
    if len(encoded) > len(name):
        raise ValueError(f"output_dir has {len(encoded)} bytes: a path can have {len(name)}")
    name[: len(encoded)] = list(encoded)
    broadcast(name)
    agreed = os.fsdecode(name.tobytes().rstrip(b"\0"))
    return Path(agreed) if agreed else None


def _refuse_results(folder):
    if holds_results(folder):
        raise FileExistsError(
            f"{folder} holds the results of a run; continue it with --resume, choose another "
            "folder or exp_name, or replace them with --overwrite (from Python, resume=True "
            "or overwrite=True in logger_kwargs)"
        )


def _remove_results(folder):
    if holds_results(folder):
        is_open = files.ON_WINDOWS and stage_of(folder) is not None  # the log, by the launcher
        for name in RESULTS:
            if name == LOG and is_open:
                continue
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _product(config, *keys):
    values = [config.get(key) for key in keys]
    return math.prod(values) if all(isinstance(v, int) for v in values) else None


def stage_of(folder):
    """Returns the folder of the Stage in which this process was started for a run in `folder`.

    None once the run has begun, which its Stage's missing status tells. The folder may be there
    still: where the launcher has a file open, NFS keeps that under another name.
    """
    name = os.environ.get(STAGE_VARIABLE)
    if name is None or folder is None or not os.path.isfile(os.path.join(name, STATUS)):
        return None
    return Path(name) if os.path.dirname(name) == os.path.abspath(folder) else None
