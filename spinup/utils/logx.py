"""The log of a run: rows of numbers, written to several places, and the policies it saves."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from spinup.fast import capture
from spinup.runs.files import as_os_error, may_pass
from spinup.runs.folder import POLICY, PROGRESS, RunFolder, State, remedy
from spinup.runs.underway import current_run
from spinup.runs.versions import versions
from spinup.runs.wording import describe_error
from spinup.utils.mpi_tools import barrier, mpi_statistics_scalar, mpi_sum, num_procs, proc_id
from spinup.utils.writers import WRITERS, Progress, Terminal, Writer, say

_COLORS = dict(
    gray=30, red=31, green=32, yellow=33, blue=34, magenta=35, cyan=36, white=37, crimson=38
)


def colorize(string: str, color: str, bold: bool = False, highlight: bool = False) -> str:
    """Wraps a string in the terminal's codes for a colour."""
    code = str(_COLORS[color] + 10 * highlight) + (";1" if bold else "")
    return f"\x1b[{code}m{string}\x1b[0m"


class Logger:
    """Logs a run. Every rank has one; rank 0's writes and prints.

    Nothing is written before `begin`, which the first row and the first save imply.

    Args:
        output_dir: the run's folder. A new one among the system's temporary files if None.
        output_fname: name of the tab-separated log, one row per epoch.
        exp_name: name of the experiment; the plotter averages runs that share it.
        overwrite: remove the results that the folder holds, instead of refusing it.
        tensorboard: also write the log for TensorBoard (``pip install ".[tensorboard]"``).
        resume: continue the run whose results the folder holds, if it holds any.
        verbose: print each row as a table (True) or in one line (False). By default an algorithm
            that is called directly prints lines; what a launcher started, and a Logger that is used
            alone, print tables.
        **writers: other copies of the log, see `spinup.utils.writers.WRITERS`: ``wandb="PROJECT"``
            for Weights & Biases (``pip install ".[wandb]"``).

    Raises:
        FileExistsError: the folder holds results.
        BlockingIOError: another run is writing to it.
        ModuleNotFoundError: a copy needs a package that is not installed.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike | None = None,
        output_fname: str = PROGRESS,
        exp_name: str | None = None,
        overwrite: bool = False,
        tensorboard: bool = False,
        resume: bool = False,
        verbose: bool | None = None,
        **writers: Any,
    ):
        self.exp_name = exp_name
        self.log_headers: list[str] = []
        self.log_current_row: dict[str, Any] = {}
        self.first_row = True
        self.folder = RunFolder(output_dir, overwrite, resume)
        run = current_run()
        self.verbose = verbose
        self._is_launched = self.folder.is_launched
        if verbose is None:
            self.verbose = run is None or self._is_launched
        self._model: torch.nn.Module | None = None
        self._is_restored = False
        self._unsaved: dict[int | None, dict] = {}  # weights that a full disk hasn't taken, by itr
        self._failing: set[str] = set()
        self._writers: dict[str, Writer] = {}
        chosen = {"tensorboard": tensorboard, **writers}
        unknown = chosen.keys() - WRITERS.keys()
        if unknown:
            known = ", ".join(WRITERS)
            raise TypeError(
                f"logger_kwargs: {min(unknown)!r} is unknown; copies of the log: {known}"
            )
        if proc_id() == 0:
            self._writers["the terminal"] = Terminal("table" if self.verbose else "line")
            self._writers[output_fname] = Progress(output_fname)
            self._writers |= {name: WRITERS[name](x) for name, x in chosen.items() if x}
        if run is not None:
            run.loggers.append(self)

    @property
    def output_dir(self) -> Path | None:
        """The run's folder on rank 0, None on others."""
        if proc_id() != 0:
            return None
        return self.folder.make_path()

    def log(self, msg: str, color: str = "green", detail: bool = False) -> None:
        """Prints a message, coloured on a terminal.

        Args:
            msg: the message.
            color: its colour.
            detail: whether it belongs to the table of a row, and is left out where lines are
                printed.
        """
        if proc_id() == 0 and (self.verbose or not detail):
            is_terminal = os.isatty(1)
            say(colorize(msg, color, bold=True) if is_terminal else msg)

    def save_config(self, config: dict[str, Any]) -> None:
        """Adds to ``config.json``: all that is needed to run the experiment again.

        Args:
            config: hyperparameters and other facts; values that JSON can't hold are described in
                words.

        Raises:
            ValueError: the run is to be resumed, and began with another value.
        """
        name = {} if self.exp_name is None else {"exp_name": self.exp_name}
        self.folder.add_config({**config, "num_cpu": num_procs(), "versions": versions(), **name})

    def begin(self) -> None:
        """Claims the run's folder, from where on it is this run's; see `RunFolder.begin`.

        Call it when everything that can be wrong with the run's settings has been tried.
        """
        if self.folder.has_begun:
            return
        self.folder.begin()
        if self.folder.resumes and not self._is_restored:
            self._continue_file()
        for name, writer in list(self._writers.items()):
            with self._trying(name):
                writer.open(self._path(), self.folder.config, self.exp_name)
        self.log(f"Logging to {self.folder.path}")

    def _continue_file(self):
        """Goes on with the rows of the file, where no checkpoint says which of them count."""
        for writer in self._writers.values():
            if isinstance(writer, Progress):
                header = writer.read(self._path())
                self.log_headers, self.first_row = header, not header

    def setup_pytorch_saver(self, what_to_save: torch.nn.Module) -> None:
        """Names the module whose weights `save_state` saves."""
        self._model = what_to_save

    def save_state(self, state_dict: dict[str, Any] | None = None, itr: int | None = None) -> None:
        """Saves the policy's weights to ``pyt_save/model.safetensors``.

        On a full disk the last save stays, and the next call, or at last `close`, tries again to
        write these weights. Numbered ones are given up when the call after them fails, too.

        Args:
            state_dict: accepted for the sake of Spinning Up's scripts; environments are rebuilt
                from ``config.json``, not saved.
            itr: number to append to the file's name, to keep more than the last.
        """
        assert self._model is not None, "call setup_pytorch_saver first"
        self.begin()
        if proc_id() == 0:
            # Copies: the parameters are views of one vector, and safetensors refuses shared memory
            weights = {k: v.detach().cpu().clone() for k, v in self._model.state_dict().items()}
            self._unsaved[itr] = {k: v.contiguous() for k, v in weights.items()}
            with self._trying("the policy"):
                self._save_weights()
            for other in self._unsaved.keys() - {None, itr}:  # not all, which would fill the memory
                del self._unsaved[other]
                name = _weights_name(other)
                self.log(f"Warning: {name} is not saved, as the disk is full", "yellow")

    def _save_weights(self):
        folder = self._path() / POLICY
        folder.mkdir(exist_ok=True)
        for itr, weights in list(self._unsaved.items()):
            path = folder / _weights_name(itr)
            temporary = path.with_suffix(".tmp")
            try:
                with as_os_error():
                    save_file(weights, temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            del self._unsaved[itr]

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
        """Ends the row: prints it, and writes it to the log and its copies."""
        self.begin()
        row, self.log_current_row = self.log_current_row, {}
        self.folder.note_row(row)
        for name, writer in list(self._writers.items()):
            with self._trying(name):
                writer.write(self.log_headers, row)
        if proc_id() == 0:
            with self._trying("the status"):
                self.folder.write_status(State.RUNNING)
        self.first_row = False

    @contextlib.contextmanager
    def _trying(self, name: str) -> Iterator[None]:
        """Writes something without which the run can continue for a while.

        A full disk is warned of when it begins and when it ends. A copy of the log is left out
        after any error.
        """
        try:
            yield
        except Exception as error:
            if name in WRITERS:
                self._leave_out(name, error)
            elif isinstance(error, OSError) and may_pass(error) and self.folder.has_begun:
                self.note_full_disk(name, error)
            else:
                raise
        else:
            self.note_room(name)

    def note_full_disk(self, name: str, error: OSError) -> None:
        """Warns that something can't be written, once until `note_room` says that it can."""
        if name not in self._failing:
            self._failing.add(name)
            self.log(
                f"Warning: {name} can't be written to {self.folder.path}: {error.strerror}. The "
                "run continues with what was written before, and tries again; make room",
                "yellow",
            )

    def note_room(self, name: str) -> None:
        """Notes that something could be written, and says so if it couldn't be before."""
        if name in self._failing:
            self._failing.discard(name)
            self.log(f"There is room for {name} again")

    def state_dict(self) -> dict[str, Any]:
        """Returns the log so far, for a checkpoint."""
        return dict(
            headers=self.log_headers,
            first_row=self.first_row,
            writers={name: writer.state_dict() for name, writer in self._writers.items()},
            **self.folder.state_dict(),
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the log as it was at a checkpoint; call it before `begin`."""
        self._is_restored = True
        self.log_headers, self.first_row = state["headers"], state["first_row"]
        self.folder.load_state_dict(state)
        for name, writer in self._writers.items():
            writer.load_state_dict(state["writers"].get(name, {}))

    def close(self, error: BaseException | None = None) -> None:
        """Ends the log: the run's state becomes finished, or failed and why.

        Args:
            error: the exception that ended the run.

        Raises:
            OSError: the run has finished, but its log or its policy can't be written.
        """
        if error is None:
            self.begin()
            barrier()  # finished means that every rank is
        while self._writers:
            name, writer = self._writers.popitem()
            if not self.folder.has_begun:
                continue
            try:
                writer.close()
            except Exception as failure:
                if name in WRITERS:
                    self._leave_out(name, failure)
                elif error is None:
                    raise self._explained(name, failure) from failure
        if error is None and self._unsaved:
            try:
                self._save_weights()
            except OSError as failure:
                raise self._explained("the policy", failure) from failure
        self.folder.close(error)
        if error is None and not self._is_launched:
            self.log(f"Results are in {self.folder.path}")

    def _explained(self, name, error):
        if not isinstance(error, OSError):
            return error
        return OSError(
            error.errno,
            f"{error.strerror}: {name} can't be written to {self.folder.path}. Make room, and "
            f"{remedy(self._path())}",
        )

    def _leave_out(self, name, error):
        self._writers.pop(name, None)
        reason = describe_error(error)
        self.log(f"Warning: {name} fails, and gets no more of the log: {reason}", "yellow")

    def _path(self):
        assert self.folder.path is not None
        return self.folder.path


def _weights_name(itr):
    return f"model{'' if itr is None else itr}.safetensors"


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
