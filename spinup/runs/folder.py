"""The run folder: the names of its files, its states, its lock, and when what may be written.

This is the only file that spells a file's name or a state. A run claims its folder by
`RunFolder.begin`, once its environment and its networks are known to work. Nothing that the folder
holds is removed or written over before that; a launcher keeps its files in a `Stage` until then.
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

CONFIG = "config.json"  # all that is needed to run it again
PROGRESS = "progress.txt"  # the log, a row per epoch
STATUS = "status.json"  # its state, and how far it is
POLICY = "pyt_save"  # weights
CHECKPOINT = "checkpoint"  # the whole state of the training
TENSORBOARD = "tensorboard"
WANDB = "wandb"
LOG = "log.txt"  # what it printed, where a launcher started it
FAILED_LOG = "log.failed.txt"  # the same of a run that failed before it began
SPEC = "experiment.json"  # the call that a launcher made
LOCK = ".lock"
QUEUED = ".queued.json"  # the status of a run that waits in Slurm's queue
STAGE = ".starting-"  # begins the name of a Stage's folder

# What a run writes; `overwrite` removes these and nothing else.
RESULTS = (CONFIG, PROGRESS, STATUS, POLICY, CHECKPOINT, TENSORBOARD, WANDB, LOG, FAILED_LOG, SPEC)

# Names the Stage of the launcher that started this process.
STAGE_VARIABLE = "SPINUP_STAGE"


class State(str, enum.Enum):
    """What a run is doing, or how it ended."""

    QUEUED = "queued"  # waits in Slurm's queue
    WAITING = "waiting"  # waits for other variants of its grid (in the grid's record only)
    STARTING = "starting"  # launched; it hasn't claimed its folder yet
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # stopped by a signal, its state saved
    FAILED = "failed"
    DIED = "died"  # killed without a word (never in a file: readers find out)
    UNKNOWN = "unknown"  # its status can't be read (never in a file either)

    __str__ = str.__str__

    @property
    def has_ended(self) -> bool:
        """Whether the run itself has said how it ended."""
        return self in (State.FINISHED, State.INTERRUPTED, State.FAILED)


# --- What is in a folder --------------------------------------------------------------------------


def check_exp_name(name: str) -> str:
    """Returns an experiment's name, which becomes a folder's, if it is fit for that.

    Raises:
        ValueError: it has other characters than letters, digits and ``_ - + . =``, starts with a
            dot, or is too long.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_+=-][A-Za-z0-9_+=.-]*", name):
        raise ValueError(
            f"exp_name {name!r} is not fit for a folder's name: use letters, digits and _ - + . = "
            "(and no dot in front)"
        )
    if len(name) > 200:  # file systems allow 255, and a date, a seed and an ending are added
        raise ValueError(
            f"exp_name {name[:20] + '...'!r} has {len(name)} characters, and a folder's name can "
            "have 200 here: shorten it, or give shorthands for what a grid adds (--hid[h])"
        )
    return name


def holds_results(folder: StrPath) -> bool:
    """Returns True if a folder holds the results of a run: its log, or what it saved."""
    progress = Path(folder, PROGRESS)
    has_rows = progress.is_file() and progress.stat().st_size > 0
    return has_rows or any(Path(folder, name).exists() for name in (POLICY, CHECKPOINT))


def holds_checkpoint(folder: StrPath) -> bool:
    """Returns True if a folder holds a checkpoint, sound or not."""
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
    """Lists the folders at or below `top` that hold a run, or one that starts or waits."""
    names = (STATUS, QUEUED, f"{STAGE}*/{STATUS}")
    files = {path for name in names for path in Path(top).rglob(name)}
    parents = {path.parent for path in files}
    return sorted({p.parent if p.name.startswith(STAGE) else p for p in parents})


def slurm_job() -> str | None:
    """Returns the id of the Slurm job that this process belongs to, ``array_task`` in an array."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else job


# --- Status ---------------------------------------------------------------------------------------


def read_status(folder: StrPath) -> dict[str, Any]:
    """Returns the last word about a run: its own, or of its start if that is newer.

    A start whose launcher was killed doesn't count, unless there is nothing else: then it died.

    Returns:
        Values of the types that they should have, others are left out; ``state`` is a `State`.
        Empty where there is no status yet, or none that can be read.
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
    """Returns the word of the run that began in a folder last, as `read_status` does."""
    return read_status_file(Path(folder, STATUS))[0]


NUMBERS = ("epoch", "epochs", "steps", "total_steps", "return", "seconds", "steps_per_second")


def read_status_file(path):
    if not path.is_file():
        return {}, ""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"it holds no object, but a {type(content).__name__}")
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
    return status, f"{path.name} is odd: {', '.join(odd)}" if odd else ""


def _checked(key, value):
    """Returns whether a value can be what a status has under this key, and the value."""
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

# The files by whose locks this process keeps others out of folders. The system keeps such a lock
# for the whole process, and drops it when the process closes any handle of the file.
_locks: dict[Path, IO] = {}


def lock(folder: StrPath) -> None:
    """Keeps other processes' runs out of a folder until `unlock`, or this process's end.

    Raises:
        BlockingIOError: another process has locked it.
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
            # The process's own, not inherited by its children: it goes when the process goes
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):
            if attempt < 9:  # it may be somebody's look, see is_locked
                time.sleep(0.02)
                continue
            file.close()
            raise _in_use(folder) from None
        except OSError:  # a file system without locks
            break
    _locks[folder] = file


def unlock(folder: StrPath) -> None:
    """Lets others into a folder that this process has locked."""
    file = _locks.pop(Path(os.path.abspath(folder)), None)
    if file is not None:
        file.close()


def is_locked(folder: StrPath) -> bool | None:
    """Returns whether a run is writing to a folder; None where that can't be told."""
    return Path(os.path.abspath(folder)) in _locks or _is_locked_by_others(folder)


def _is_locked_by_others(folder):
    if Path(os.path.abspath(folder)) in _locks:
        return False  # and a look at the file would drop the lock
    try:
        import fcntl

        file = open(Path(folder, LOCK), "r+")  # noqa: SIM115 (closed below)
    except (ImportError, OSError):
        return None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may look at once
        except (BlockingIOError, PermissionError):
            return True
        except OSError:  # a file system without locks
            return None
    return False


def _in_use(folder):
    return BlockingIOError(f"{folder} is in use by a run that is under way")


# --- Configuration --------------------------------------------------------------------------------

# What may differ when a run is resumed.
MAY_CHANGE = {"epochs", "versions", "logger_kwargs", "device", "checkpoint_every", "save_freq"}


def read_config(folder: StrPath) -> dict[str, Any]:
    """Returns a run's ``config.json``, or an empty dict where there is none that can be read."""
    return read_object(Path(folder, CONFIG))


def read_spec(folder: StrPath) -> dict[str, Any]:
    """Returns the call that a launcher made, or an empty dict where there is none."""
    return read_object(Path(folder, SPEC))


def fixed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a configuration that can't change when a run is resumed."""
    return {key: value for key, value in config.items() if key not in MAY_CHANGE}


def check_unchanged(before: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuses to resume a run with other hyperparameters than it began with.

    Args:
        before: its configuration, as JSON has it.
        config: the one to continue with. Keys that only one of the two has are not compared.

    Raises:
        ValueError: they differ, in what.
    """
    keys = before.keys() & config.keys() - MAY_CHANGE
    for key in sorted(keys, key=lambda key: (key != "algo", key)):  # the rest follows from it
        # As JSON has it, where tuples are lists; no arguments are None, or an empty dict
        now = json.loads(json.dumps(config[key]))
        if before[key] != now and not all(value in (None, {}) for value in (before[key], now)):
            raise ValueError(
                f"{key} is {config[key]!r}, but the run to resume has {before[key]!r}: give it "
                "that, or start a new run in its place with --overwrite"
            )
    if _epochs(before, 0) > _epochs(config, math.inf):
        raise ValueError(
            f"epochs is {config['epochs']}, but the run to resume has {before['epochs']}: more are "
            "allowed, fewer aren't"
        )


def _epochs(config, default):
    epochs = config.get("epochs", default)
    return epochs if isinstance(epochs, (int, float)) else default


# --- The run's own view ---------------------------------------------------------------------------


class RunFolder:
    """The folder of the run that this process trains. Every rank has one; rank 0's writes.

    Args:
        path: the folder, made by `begin` if need be. If None, a new one among the system's
            temporary files.
        overwrite: remove the results that the folder holds, instead of refusing it.
        resume: continue the run whose results the folder holds, if it holds any.

    Attributes:
        path: rank 0's folder, on all ranks; None until a temporary one is made.
        resumes: whether it continues a run.
        has_begun: whether the run has claimed it.
        config: what ``config.json`` holds, or is going to.
        status: how far the run is.

    Raises:
        FileExistsError: the folder holds results.
        BlockingIOError: another run is writing to it.
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
        """Whether a launcher started the run, so that what it prints goes to its log."""
        return stage_of(self.path) is not None

    def add_config(self, config: Mapping[str, Any]) -> None:
        """Adds to ``config.json``, which is written by `begin` and from then on.

        Raises:
            ValueError: the run that is to be resumed has another value.
        """
        self.config.update(convert_json(dict(config)))
        check_unchanged(self._config_before, self.config)
        if self.has_begun and proc_id() == 0:
            write_json(self._file(CONFIG), self.config)

    def make_path(self) -> Path:
        """Returns rank 0's folder, after making a temporary one if none was given."""
        if self.path is None:
            self.path = self._temporary = Path(tempfile.mkdtemp(prefix="spinup-"))
        return self.path

    def lock(self) -> None:
        """Keeps other runs out; nothing else changes."""
        if proc_id() == 0 and self.path is not None:
            lock(self.path)

    def begin(self) -> None:
        """Claims the folder: locks it, removes what is to be replaced, and says that it runs.

        Raises:
            FileExistsError: another run has left results there meanwhile.
            BlockingIOError: another run is writing to it.
            OSError: it can't be written to.
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
        """Puts the launcher's files in place, and this run's status in place of the launcher's."""
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
            if other == stage or is_locked(other) is False:  # that of a launcher that was killed
                shutil.rmtree(other, ignore_errors=True)

    def note_row(self, row: Mapping[str, Any]) -> None:
        """Notes how far the run is, by a row of its log, for `write_status`."""
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
        """Returns how far the run is, for a checkpoint."""
        return dict(status=self.status, seconds=time.time() - self._began)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.status, self._began = state["status"], time.time() - state["seconds"]

    def close(self, error: BaseException | None = None) -> None:
        """Says how the run ended, if it has begun, and lets others in.

        Args:
            error: the exception that ended it.
        """
        # A rank that fails says so itself: rank 0 waits for it, and is ended waiting. All are
        # interrupted together.
        interrupted = isinstance(error, Interrupted)
        if self.has_begun and (proc_id() == 0 or not (error is None or interrupted)):
            ended = State.INTERRUPTED if interrupted else State.FAILED
            # The error that is being reported matters more than that the disk is full
            with contextlib.suppress(OSError) if error else contextlib.nullcontext():
                self.write_status(ended if error else State.FINISHED, error)
        if interrupted:
            barrier()  # the first rank to exit ends all, and rank 0 has to write its status before
        if proc_id() == 0 and self.path is not None:
            unlock(self.path)
        if self._temporary is not None and not self.has_begun:
            with contextlib.suppress(OSError):  # somebody has put something into it
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
