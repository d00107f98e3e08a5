"""The run folder and its log: configuration, progress, status and saved policies."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from spinup.fast import capture, kernels
from spinup.runs.interrupts import Interrupted
from spinup.runs.json_values import convert_json
from spinup.utils.mpi_tools import (
    barrier,
    broadcast,
    mpi_statistics_scalar,
    mpi_sum,
    num_procs,
    proc_id,
)

_COLORS = dict(
    gray=30, red=31, green=32, yellow=33, blue=34, magenta=35, cyan=36, white=37, crimson=38
)

# What a run writes into its folder; `overwrite` removes these and nothing else.
_RESULTS = ("progress.txt", "config.json", "status.json", "pyt_save", "checkpoint", "tensorboard")


def colorize(string: str, color: str, bold: bool = False, highlight: bool = False) -> str:
    """Wraps a string in the terminal's codes for a colour."""
    code = str(_COLORS[color] + 10 * highlight) + (";1" if bold else "")
    return f"\x1b[{code}m{string}\x1b[0m"


def check_exp_name(name: str) -> str:
    """Returns an experiment's name, which becomes a folder's, if it is fit for that.

    Raises:
        ValueError: it has other characters than letters, digits and ``_ - + . =``, or starts with
            a dot.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_+=-][A-Za-z0-9_+=.-]*", name):
        raise ValueError(
            f"exp_name {name!r} is not fit for a folder's name: use letters, digits and _ - + . = "
            "(and no dot in front)"
        )
    return name


def holds_results(output_dir: str | os.PathLike) -> bool:
    """Says whether a folder holds the results of a run (its log or a saved policy)."""
    folder = Path(output_dir)
    progress = folder / "progress.txt"
    has_rows = progress.is_file() and progress.stat().st_size > 0
    return has_rows or any((folder / name).exists() for name in ("pyt_save", "checkpoint"))


def holds_checkpoint(output_dir: str | os.PathLike) -> bool:
    """Says whether a folder holds a checkpoint, sound or not."""
    return any(Path(output_dir, "checkpoint").glob("step-*"))


def read_status(output_dir: str | os.PathLike) -> dict[str, Any]:
    """Returns what a run's ``status.json`` says, or an empty dict where there is none yet."""
    try:
        status = json.loads(Path(output_dir, "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def slurm_job() -> str | None:
    """Returns the id of the Slurm job that this process belongs to, ``array_task`` in an array."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else job


def describe_error(error: BaseException) -> str:
    """Returns an exception in one line, ``"ValueError: what it says"``."""
    name, text = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, Interrupted):
        return text
    notes = "".join(f"; {' '.join(note.split())}" for note in getattr(error, "__notes__", []))
    return (f"{name}: {text}" if text else name) + notes


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # ranks may write at once
    try:
        temporary.write_text(json.dumps(content, indent=4) + "\n")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Logger:
    """Writes a run's folder. Every rank has one; rank 0's writes and prints.

    Args:
        output_dir: the folder, made if need be. A new one among the system's temporary files if
            None.
        output_fname: name of the tab-separated log, one row per epoch.
        exp_name: name of the experiment; the plotter averages runs that share it.
        overwrite: remove the results that the folder holds, instead of refusing it.
        resume: continue the run whose results the folder holds, if it holds any.
        tensorboard: also write the log for TensorBoard (``pip install spinup[tensorboard]``).

    Raises:
        FileExistsError: the folder holds results.
        BlockingIOError: another run is writing to it.
    """

    current: Logger | None = None  # the logger of the run under way in this process

    def __init__(
        self,
        output_dir: str | os.PathLike | None = None,
        output_fname: str = "progress.txt",
        exp_name: str | None = None,
        overwrite: bool = False,
        tensorboard: bool = False,
        resume: bool = False,
    ):
        self.exp_name = exp_name
        self.resumes = resume and not overwrite
        self._lock = None
        self._config_before: dict[str, Any] = {}
        self._status_before: dict[str, Any] = {}
        self._refused = False
        self.log_headers: list[str] = []
        self.log_current_row: dict[str, Any] = {}
        self.first_row = True
        self.output_dir: Path | None = None
        self.output_file = None
        self.config: dict[str, Any] = {}
        self.status: dict[str, Any] = {}
        self._model: torch.nn.Module | None = None
        self._board = None
        self._start = time.time()
        self._status_file = Path(output_dir, "status.json") if output_dir else None
        if proc_id() == 0:
            self.output_dir = Path(output_dir or tempfile.mkdtemp(prefix="spinup-"))
            self._status_file = self.output_dir / "status.json"
            if not (overwrite or resume):
                _refuse_results(self.output_dir)
            self._lock = _lock(self.output_dir)
            if overwrite:
                _remove_results(self.output_dir)
            if self.resumes and (self.output_dir / "checkpoint").is_dir():
                self._config_before = read_config(self.output_dir)
                self._status_before = read_status(self.output_dir)
            self._board = _open_tensorboard(self.output_dir) if tensorboard else None
            self._output_path = self.output_dir / output_fname
            # What is there stays until the checkpoint that it belongs to has been read
            self.output_file = _open_own(self._output_path, "a" if self.resumes else "w")
            self._write_status("running")
            self.log(f"Logging to {self._output_path}")
        self.shared_dir = _agreed_folder(self.output_dir or output_dir)
        Logger.current = self

    def log(self, msg: str, color: str = "green") -> None:
        """Prints a message, coloured on a terminal."""
        if proc_id() == 0:
            is_terminal = os.isatty(1)
            print(colorize(msg, color, bold=True) if is_terminal else msg, flush=True)

    def save_config(self, config: dict[str, Any]) -> None:
        """Adds to ``config.json``: all that is needed to run the experiment again.

        Args:
            config: hyperparameters and other facts; what JSON can't hold is described in words.
        """
        self.config.update(convert_json(config))
        self.config["num_cpu"] = num_procs()
        self.check_resumes(self._config_before)
        self.config["versions"] = _versions()
        if self.exp_name is not None:
            self.config["exp_name"] = self.exp_name
        # That of the run to resume stays until all that it holds has been compared
        if self.output_dir is not None and self._config_before.keys() <= self.config.keys():
            write_json(self.output_dir / "config.json", self.config)

    def check_resumes(self, config: dict[str, Any]) -> None:
        """Makes sure that a run to resume is of this configuration.

        Args:
            config: the one that it began with, or a part of that.

        Raises:
            ValueError: it is of another; its folder is as it was.
        """
        try:
            check_unchanged(config, self.config)
        except ValueError as error:
            raise self.refusal(str(error)) from None

    def refusal(self, reason: str) -> ValueError:
        """Returns the error of a run that can't be resumed; its folder stays as it was."""
        self._refused = True
        return ValueError(reason)

    def setup_pytorch_saver(self, what_to_save: torch.nn.Module) -> None:
        """Names the module whose weights `save_state` saves."""
        self._model = what_to_save

    def save_state(self, state_dict: dict[str, Any] | None = None, itr: int | None = None) -> None:
        """Saves the policy's weights to ``pyt_save/model.safetensors``.

        Args:
            state_dict: accepted for the sake of Spinning Up's scripts; environments are rebuilt
                from ``config.json``, not saved.
            itr: number to append to the file's name, to keep more than the last.
        """
        if self.output_dir is None:
            return
        assert self._model is not None, "call setup_pytorch_saver first"
        folder = self.output_dir / "pyt_save"
        folder.mkdir(exist_ok=True)
        path = folder / f"model{'' if itr is None else itr}.safetensors"
        # Copies: the parameters are views of one vector, and safetensors refuses shared memory.
        weights = {k: v.detach().cpu().clone() for k, v in self._model.state_dict().items()}
        temporary = path.with_suffix(".tmp")
        save_file({k: v.contiguous() for k, v in weights.items()}, temporary)
        os.replace(temporary, path)

    def log_tabular(self, key: str, val: Any) -> None:
        """Sets a column of the current row.

        Raises:
            KeyError: the first row has no such column, or this row has it already.
        """
        if self.first_row:
            self.log_headers.append(key)
        elif key not in self.log_headers:
            raise KeyError(f"column {key!r} is not in the first row, whose columns are the file's")
        if key in self.log_current_row:
            raise KeyError(f"column {key!r} is set already; call dump_tabular() to end the row")
        self.log_current_row[key] = val

    def dump_tabular(self) -> None:
        """Ends the row: prints it, and writes it to the log."""
        row, self.log_current_row = self.log_current_row, {}
        if self.output_file is not None:
            self._print_row(row)
            if self.first_row:
                self.output_file.write("\t".join(self.log_headers) + "\n")
            values = [row.get(key, "") for key in self.log_headers]
            try:
                self.output_file.write("\t".join(map(str, values)) + "\n")
                self.output_file.flush()
                self._write_status("running", row)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"{error.strerror}: the log can't be written to {self.output_dir}. Make room, "
                    "and continue with --resume",
                ) from error
            if self._board is not None:
                for key, val in row.items():
                    self._board.add_scalar(key, val, int(row.get("TotalEnvInteracts", 0)))
        self.first_row = False

    def begin(self) -> None:
        """Starts the log anew, when there is no checkpoint to continue."""
        if self.output_file is not None:
            self.output_file.truncate(0)

    def state_dict(self) -> dict[str, Any]:
        """Returns the log so far, for a checkpoint."""
        text = "" if self.output_file is None else self._output_path.read_text()
        return dict(
            progress=text,
            headers=self.log_headers,
            first_row=self.first_row,
            status=self.status,
            seconds=time.time() - self._start,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the log as it was at a checkpoint."""
        self.log_headers, self.first_row = state["headers"], state["first_row"]
        self.status, self._start = state["status"], time.time() - state["seconds"]
        if self.output_file is not None:
            self.output_file.close()
            temporary = self._output_path.with_suffix(".tmp")
            temporary.write_text(state["progress"])
            os.replace(temporary, self._output_path)
            self.output_file = _open_own(self._output_path, "a")

    def close(self, error: BaseException | None = None) -> None:
        """Ends the run's log: its status becomes finished, or failed and why."""
        if Logger.current is self:
            Logger.current = None
        if error is None:
            barrier()  # finished means that every rank is
        if self.output_file is not None:
            with contextlib.suppress(OSError) if error else contextlib.nullcontext():
                self.output_file.close()  # writes what is left, and can't on a full disk
        if self._board is not None:
            self._board.close()
        # A rank that fails says so itself: rank 0 waits for it, and is ended waiting. All are
        # interrupted together.
        interrupted = isinstance(error, Interrupted)
        if self._refused and self._status_before and self._status_file is not None:
            write_json(self._status_file, self._status_before)
            config = Path(self.shared_dir, "config.json")
            if self._config_before:
                write_json(config, self._config_before)
            else:  # it was lost, and this run's is of another
                config.unlink(missing_ok=True)
        elif proc_id() == 0 or not (error is None or interrupted or self._refused):
            state = "interrupted" if interrupted else "failed"
            self._write_status("finished" if error is None else state, error=error)
        if interrupted:
            barrier()  # the first rank to exit ends all, and rank 0 has to write its status before
        if self._lock is not None:
            self._lock.close()

    def _print_row(self, row):
        width = max(15, *map(len, self.log_headers))
        line = "-" * (width + 22)
        rows = [f"| {key:>{width}} | {_short(row.get(key, '')):>15} |" for key in self.log_headers]
        print("\n".join([line, *rows, line]), flush=True)

    def _write_status(self, state, row=None, error=None):
        if self._status_file is None:
            return
        if row:
            performance = row.get("AverageTestEpRet", row.get("AverageEpRet", math.nan))
            steps, seconds = row.get("TotalEnvInteracts"), time.time() - self._start
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
        reason = None
        if error is not None:
            by_one = num_procs() > 1 and not isinstance(error, Interrupted)
            rank = f"rank {proc_id()}: " if by_one else ""
            reason = rank + describe_error(error)
        status = {"state": state, "error": reason, **self.status, "updated": time.time()}
        if slurm_job() is not None:
            status["slurm_job"] = slurm_job()
        try:
            write_json(self._status_file, convert_json(status))
        except OSError:
            if error is None:  # else the error that is being reported matters more
                raise


class EpochLogger(Logger):
    """A logger that gathers values during an epoch and logs their statistics.

    Example::

        logger.store(EpRet=31.0)
        logger.store(EpRet=27.0)
        logger.log_tabular("EpRet", with_min_and_max=True)  # AverageEpRet, StdEpRet, Max…, Min…
        logger.dump_tabular()

    What is stored may be tensors on any device: they are read once, when their statistics are.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.epoch_dict: dict[str, _Samples] = defaultdict(_Samples)

    @capture.capturable
    def store(self, **kwargs: Any) -> None:
        """Keeps values: scalars, arrays or tensors of any shape."""
        for key, val in kwargs.items():
            self.epoch_dict[key].add(val)

    def log_tabular(
        self,
        key: str,
        val: Any = None,
        with_min_and_max: bool = False,
        average_only: bool = False,
    ) -> None:
        """Logs a value, or the statistics over all ranks of what was stored since the last time.

        Args:
            key: the quantity's name. Its columns are ``Average``, ``Std``, ``Max`` and ``Min``
                before the name, or the name alone with `average_only`.
            val: a value to log as it is.
            with_min_and_max: log the extremes too.
            average_only: log the mean alone.

        The columns are NaN where nothing was stored.
        """
        if val is not None:
            super().log_tabular(key, val)
            return
        mean, std, *extremes = mpi_statistics_scalar(
            self.epoch_dict[key].values(), with_min_and_max
        )
        super().log_tabular(key if average_only else "Average" + key, mean)
        if not average_only:
            super().log_tabular("Std" + key, std)
        if with_min_and_max:
            super().log_tabular("Max" + key, extremes[1])
            super().log_tabular("Min" + key, extremes[0])
        self.epoch_dict[key].clear()

    def state_dict(self) -> dict[str, Any]:
        """Returns the log so far, and what has been stored since the last row."""
        samples = {key: np.array(kept.values()) for key, kept in self.epoch_dict.items()}
        return {**super().state_dict(), "samples": samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        for key, values in state["samples"].items():
            self.epoch_dict[key].clear()
            self.epoch_dict[key].add(values)

    def get_stats(self, key: str) -> tuple[float, ...]:
        """Returns mean and standard deviation of what is stored."""
        return mpi_statistics_scalar(self.epoch_dict[key].values())

    def check_finite(self, *keys: str, where: str) -> None:
        """Stops all ranks if a value stored since the last row is NaN or infinite.

        Args:
            *keys: quantities to check.
            where: environment and step, for the message.

        Raises:
            FloatingPointError: one is, on any rank.
        """
        bad = [int((~np.isfinite(self.epoch_dict[key].values())).sum()) for key in keys]
        for key, count in zip(keys, mpi_sum(np.array(bad)), strict=True):
            if count:
                raise FloatingPointError(
                    f"{key} is NaN or infinite ({count:.0f} values) in {where}; nothing of this "
                    "epoch is saved. Lower the learning rate, or look at the rewards' scale"
                )


class _Samples:
    """Numbers gathered under one name.

    Those on the CPU are copied into one growing array: kept as thousands of small tensors, they
    would lie scattered among what an update allocates and frees, and grow the process. Those on a
    GPU are kept as they are, and fetched at once when they are looked at.
    """

    def __init__(self):
        self._array, self._size = np.empty(64), 0
        self._on_gpu: list[torch.Tensor] = []

    def add(self, val):
        """Appends a scalar, or all elements of an array or a tensor."""
        if isinstance(val, torch.Tensor):
            val = val.detach().reshape(-1).contiguous()
            if val.device.type != "cpu":
                self._on_gpu.append(val)
                return
            val = capture.array(val.float() if val.dtype is torch.bfloat16 else val)
        capture.run(self._extend, np.ravel(val))

    def _extend(self, array):
        end = self._size + array.size
        if end > len(self._array):
            self._array = np.resize(self._array, 2 * end)
        self._array[self._size : end] = array
        self._size = end

    def values(self):
        """Returns all of them as one array."""
        if self._on_gpu:
            self._extend(torch.cat(self._on_gpu).double().cpu().numpy())
            self._on_gpu.clear()
        return self._array[: self._size]

    def clear(self):
        """Forgets them."""
        self._size = 0
        self._on_gpu.clear()


def _open_own(path, mode):
    """Opens a file of a run folder for writing; a link in its place is an error, not followed."""
    no_link = getattr(os, "O_NOFOLLOW", 0)
    return open(path, mode, opener=lambda path, flags: os.open(path, flags | no_link, 0o666))


def _lock(folder):
    """Returns the open file whose lock keeps other runs out of a folder, until it is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = _open_own(folder / ".lock", "w")
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
            raise BlockingIOError(f"{folder} is in use by a run that is under way") from None
        except OSError:  # a file system without locks
            break
    return file


def is_locked(folder: str | os.PathLike) -> bool | None:
    """Says whether a run is writing to a folder; None where that can't be told."""
    if Logger.current is not None and Logger.current.shared_dir == Path(os.path.abspath(folder)):
        return True  # by this process, whose look would undo the lock
    try:
        import fcntl

        with open(Path(folder, ".lock"), "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may look at once
    except (BlockingIOError, PermissionError):
        return True
    except (ImportError, OSError):
        return None
    return False


def _agreed_folder(folder):
    """Returns rank 0's folder, on all ranks."""
    name = np.zeros(4096, dtype=np.uint8)
    encoded = os.fsencode(os.path.abspath(folder)) if folder else b""
    name[: len(encoded)] = list(encoded)
    broadcast(name)
    return Path(os.fsdecode(name.tobytes().rstrip(b"\0")))


def read_config(output_dir: str | os.PathLike) -> dict[str, Any]:
    """Returns a run's ``config.json``, or an empty dict where there is none that can be read."""
    try:
        content = json.loads(Path(output_dir, "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# What may differ when a run is resumed.
_MAY_CHANGE = {"epochs", "versions", "logger_kwargs", "device", "checkpoint_every", "save_freq"}


def fixed_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a configuration can't change when a run is resumed."""
    return {key: value for key, value in config.items() if key not in _MAY_CHANGE}


def check_unchanged(before: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuses to resume a run with other hyperparameters than it began with.

    Args:
        before: its configuration, as JSON has it.
        config: the one it is to go on with. What only one of the two has is not compared.

    Raises:
        ValueError: they differ, in what.
    """
    for key in sorted(before.keys() & config.keys() - _MAY_CHANGE):
        # As JSON has it, where tuples are lists; no arguments are None, or an empty dict
        now = json.loads(json.dumps(config[key]))
        if before[key] != now and not all(value in (None, {}) for value in (before[key], now)):
            raise ValueError(
                f"{key} is {config[key]!r}, but the run to resume has {before[key]!r}: give it "
                "that, or start anew with --overwrite"
            )
    if before.get("epochs", 0) > config.get("epochs", math.inf):
        raise ValueError(
            f"epochs is {config['epochs']}, but the run to resume has {before['epochs']}: more are "
            "allowed, fewer aren't"
        )


def _refuse_results(folder):
    if holds_results(folder):
        raise FileExistsError(
            f"{folder} holds the results of a run; continue it with --resume, choose another "
            "folder or exp_name, or replace them with --overwrite (from Python, resume=True "
            "or overwrite=True in logger_kwargs)"
        )


def _remove_results(folder):
    if holds_results(folder):
        for name in _RESULTS:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _open_tensorboard(folder):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ModuleNotFoundError(
            "tensorboard=True needs TensorBoard: pip install 'spinup[tensorboard]'"
        ) from None
    return SummaryWriter(folder / "tensorboard")


def _versions():
    import platform

    import gymnasium

    from spinup.version import __version__

    return {
        "spinup": __version__,
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "compiled": kernels.compiled(),
    }


def _product(config, *keys):
    values = [config.get(key) for key in keys]
    return math.prod(values) if all(isinstance(v, int) for v in values) else None


def _short(val):
    return f"{val:8.3g}" if hasattr(val, "__float__") else str(val)
