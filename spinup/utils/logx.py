"""The log of a run: rows of numbers, and saves of the policy."""

from __future__ import annotations

import contextlib
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from spinup.fast import capture, graphs
from spinup.fast.on_device import LARGEST_VALUE, DeviceLog
from spinup.runs.files import as_os_error, may_pass
from spinup.runs.folder import BEST, POLICY, PROGRESS, RunFolder, State, remedy
from spinup.runs.underway import current_run
from spinup.runs.versions import versions
from spinup.runs.wording import colorize, describe_error
from spinup.utils.groups import this_group
from spinup.utils.mpi_tools import barrier, mpi_statistics_scalar, mpi_sum, num_procs, proc_id
from spinup.utils.writers import WRITERS, Progress, Terminal, Writer, say


class Logger:
    """Logs a run. Every rank has a logger, but only rank 0 writes and prints.

    Nothing is written before `begin`. The first row and the first save call it.

    Args:
        output_dir: the run folder; a new temporary folder if None.
        output_fname: name of the tab-separated log, one row per epoch.
        exp_name: name of the experiment; the plotter averages runs that share it.
        overwrite: remove results that the folder holds, instead of raising FileExistsError.
        tensorboard: also write the log for TensorBoard (``pip install ".[tensorboard]"``).
        resume: continue the run in the folder, if there is one.
        verbose: print each row as a table (True) or on one line (False). By default, a direct call
            of an algorithm prints lines; a launched run, and a Logger used alone, print tables.
        **writers: other copies of the log; see `spinup.utils.writers.WRITERS`. ``wandb="PROJECT"``
            writes to Weights & Biases (``pip install ".[wandb]"``).

    Raises:
        FileExistsError: the folder holds results.
        BlockingIOError: another run is writing to the folder.
        ModuleNotFoundError: a copy of the log needs a package that is not installed.
        TypeError: a keyword argument is unknown.
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
        self.row: dict[str, Any] = {}  # the last complete row, by column
        self._unsaved: dict[int | str | None, dict] = {}  # weights that a full disk refused, by itr
        self._failing: set[str] = set()
        self._writers: dict[str, Writer] = {}
        chosen = {"tensorboard": tensorboard, **writers}
        unknown = chosen.keys() - WRITERS.keys()
        if unknown:
            known = ", ".join(WRITERS)
            raise TypeError(
                f"logger_kwargs: {min(unknown)!r} is unknown; available copies of the log: {known}"
            )
        if proc_id() == 0:
            self._writers["the terminal"] = Terminal("table" if self.verbose else "line")
            self._writers[output_fname] = Progress(output_fname)
            self._writers |= {name: WRITERS[name](x) for name, x in chosen.items() if x}
        if run is not None:
            run.loggers.append(self)

    @property
    def output_dir(self) -> Path | None:
        """The run folder on rank 0, None on other ranks."""
        if proc_id() != 0:
            return None
        return self.folder.make_path()

    def log(self, msg: str, color: str = "green", detail: bool = False) -> None:
        """Prints a message, coloured on a terminal.

        Args:
            msg: the message.
            color: its colour.
            detail: whether to print the message only if rows are printed as tables.
        """
        if proc_id() == 0 and (self.verbose or not detail):
            is_terminal = os.isatty(1)
            say(colorize(msg, color, bold=True) if is_terminal else msg)

    def save_config(self, config: dict[str, Any]) -> None:
        """Adds entries to ``config.json``, which holds all that is needed to repeat the run.

        Args:
            config: hyperparameters and other settings. Values that JSON can't hold are described
                in words.

        Raises:
            ValueError: the run to be resumed was started with another value.
        """
        name = {} if self.exp_name is None else {"exp_name": self.exp_name}
        ranks = dict(num_cpu=num_procs(), learners=this_group().learner_of)
        self.folder.add_config({**config, **ranks, "versions": versions(), **name})

    def begin(self) -> None:
        """Claims the run folder for this run; see `RunFolder.begin`.

        Call it after all settings of the run have been checked.
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
        """Continues the log after all rows in its file, if no checkpoint was restored."""
        for writer in self._writers.values():
            if isinstance(writer, Progress):
                header = writer.read(self._path())
                self.log_headers, self.first_row = header, not header

    def setup_pytorch_saver(self, what_to_save: torch.nn.Module) -> None:
        """Sets the module whose weights `save_state` saves."""
        self._model = what_to_save

    def save_state(
        self, state_dict: dict[str, Any] | None = None, itr: int | str | None = None
    ) -> None:
        """Saves the policy's weights to ``pyt_save/model.safetensors``.

        On a full disk, the last save stays, and the next call or `close` tries again to write these
        weights. Numbered saves are dropped if the next call fails, too.

        Args:
            state_dict: ignored; accepted for compatibility with Spinning Up's scripts.
                Environments are rebuilt from ``config.json``.
            itr: number to append to the file name, to keep more than the last save; or ``"best"``
                for ``pyt_save/best.safetensors``.
        """
        assert self._model is not None, "call setup_pytorch_saver first"
        self.begin()
        if proc_id() == 0:
            # Copies: the parameters are views of one vector, and safetensors refuses shared memory
            weights = {k: v.detach().cpu().clone() for k, v in self._model.state_dict().items()}
            self._unsaved[itr] = {k: v.contiguous() for k, v in weights.items()}
            with self._trying("the policy"):
                self._save_weights()
            # Numbered saves would fill the memory
            for other in self._unsaved.keys() - {None, BEST, itr}:
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
            KeyError: the first row has no such column, or the column is already set in this row.
        """
        if self.first_row:
            self.log_headers.append(key)
        elif key not in self.log_headers:
            raise KeyError(f"column {key!r} is not in the first row, which must have all columns")
        if key in self.log_current_row:
            raise KeyError(f"column {key!r} is already set; call dump_tabular() to end the row")
        self.log_current_row[key] = val

    def dump_tabular(self) -> None:
        """Ends the row: prints it, and writes it to the log and its copies."""
        self.begin()
        row, self.log_current_row = self.log_current_row, {}
        self.row = dict(row)
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
        """Lets the run continue if the block can't write.

        A full disk is reported when it begins and when it ends. A copy of the log is switched off
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
        """Warns that `name` can't be written; only once, until `note_room` is called for it."""
        if name not in self._failing:
            self._failing.add(name)
            self.log(
                f"Warning: {name} can't be written to {self.folder.path}: {error.strerror}. The "
                "run continues and will try again; free disk space",
                "yellow",
            )

    def note_room(self, name: str) -> None:
        """Notes that `name` was written, and logs it if this failed before."""
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
        """Ends the log, and sets the state of the run to finished, or to failed with the reason.

        Args:
            error: the exception that ended the run; None if it finished.

        Raises:
            OSError: the run finished, but its log or its policy can't be written.
        """
        if error is None:
            self.begin()
            barrier()  # the run is finished when all ranks are
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
            f"{error.strerror}: {name} can't be written to {self.folder.path}. Free disk space, "
            f"and {remedy(self._path())}",
        )

    def _leave_out(self, name, error):
        self._writers.pop(name, None)
        reason = describe_error(error)
        self.log(f"Warning: {name} failed and is switched off: {reason}", "yellow")

    def _path(self):
        assert self.folder.path is not None
        return self.folder.path


def _weights_name(itr):
    name = {None: "model", BEST: BEST}.get(itr, f"model{itr}")
    return f"{name}.safetensors"


class EpochLogger(Logger):
    """A logger that gathers values during an epoch and logs their statistics.

    Example::

        logger.store(EpRet=31.0)
        logger.store(EpRet=27.0)
        logger.log_tabular("EpRet", with_min_and_max=True)  # AverageEpRet, StdEpRet, Max…, Min…
        logger.dump_tabular()

    Stored values may be tensors on any device. Tensors on a GPU are read only when their statistics
    are logged, or, with CUDA graphs, once in many calls.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.epoch_dict: dict[str, _Samples] = defaultdict(_Samples)
        self._on_device: dict[tuple, DeviceLog] = {}  # by the names and sizes of the values
        self._highest: float | None = None

    @capture.capturable
    def store(self, **kwargs: Any) -> None:
        """Keeps values: scalars, arrays or tensors of any shape."""
        on_device = {
            k: v.detach()
            for k, v in kwargs.items()
            if isinstance(v, torch.Tensor)
            and graphs.are_used_on(v.device)
            and v.numel() <= LARGEST_VALUE
        }
        if on_device:
            kind = tuple((k, v.numel()) for k, v in on_device.items())
            if kind not in self._on_device:
                self._on_device[kind] = DeviceLog(on_device, self._keep)
            self._on_device[kind].add(on_device)
        for key, val in kwargs.items():
            if key not in on_device:
                self.epoch_dict[key].add(val)

    def _keep(self, key, array):
        self.epoch_dict[key].add(array)

    def _samples(self, key):
        """Returns the values stored under a name."""
        self._drain()
        return self.epoch_dict[key]

    def _drain(self):
        """Moves values from the GPU."""
        for log in self._on_device.values():
            log.drain()

    def log_tabular(
        self,
        key: str,
        val: Any = None,
        with_min_and_max: bool = False,
        average_only: bool = False,
    ) -> None:
        """Logs a value, or statistics over all ranks of the values stored since the last row.

        If no value was stored, the columns are NaN.

        Args:
            key: name of the quantity. Its columns have the prefixes ``Average``, ``Std``, ``Max``
                and ``Min``, or no prefix with `average_only`.
            val: a value to log as it is.
            with_min_and_max: also log the maximum and the minimum.
            average_only: log only the mean.
        """
        if val is not None:
            super().log_tabular(key, val)
            return
        mean, std, *extremes = mpi_statistics_scalar(self._samples(key).values(), with_min_and_max)
        super().log_tabular(key if average_only else "Average" + key, mean)
        if not average_only:
            super().log_tabular("Std" + key, std)
        if with_min_and_max:
            super().log_tabular("Max" + key, extremes[1])
            super().log_tabular("Min" + key, extremes[0])
        self.epoch_dict[key].clear()

    def state_dict(self) -> dict[str, Any]:
        """Returns the log so far, and the values stored since the last row."""
        self._drain()
        samples = {key: np.array(kept.values()) for key, kept in self.epoch_dict.items()}
        return {**super().state_dict(), "samples": samples, "highest": self._highest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self._highest = state.get("highest")
        for key, values in state["samples"].items():
            self.epoch_dict[key].clear()
            self.epoch_dict[key].add(values)

    def get_stats(self, key: str) -> tuple[float, ...]:
        """Returns the mean and standard deviation over all ranks of the stored values."""
        return mpi_statistics_scalar(self._samples(key).values())

    def save_best(self, key: str) -> None:
        """Saves the policy as the best if the mean of the stored values is the highest so far.

        All ranks must call it together, while the policy is the one that earned these values.
        """
        mean, _ = self.get_stats(key)
        if mean > (-math.inf if self._highest is None else self._highest):
            self._highest = float(mean)
            self.save_state(itr=BEST)

    def check_finite(self, *keys: str, where: str) -> None:
        """Raises on all ranks if a value stored since the last row is NaN or infinite.

        Args:
            *keys: quantities to check.
            where: environment and step, for the error message.

        Raises:
            FloatingPointError: a value is NaN or infinite on any rank.
        """
        bad = [int((~np.isfinite(self._samples(key).values())).sum()) for key in keys]
        for key, count in zip(keys, mpi_sum(np.array(bad)), strict=True):
            if count:
                raise FloatingPointError(
                    f"{key} is NaN or infinite ({count:.0f} values) in {where}; nothing of this "
                    "epoch is saved. Lower the learning rate, or check the scale of the rewards"
                )


class _Samples:
    """The values stored under one name.

    Values on the CPU are copied into one growing array. Thousands of small tensors would fragment
    the memory between the allocations of updates, and the process would grow. Tensors on a GPU are
    kept as copies there, and moved together when their values are needed.
    """

    def __init__(self):
        self._array, self._size = np.empty(64), 0
        self._on_gpu: list[torch.Tensor] = []

    def add(self, val):
        """Appends a scalar, or all elements of an array or a tensor."""
        if isinstance(val, torch.Tensor):
            val = val.detach().reshape(-1).contiguous()
            if val.device.type != "cpu":
                capture.run(self._keep, val)
                return
            val = capture.array(val.float() if val.dtype is torch.bfloat16 else val)
        capture.run(self._extend, np.ravel(val))

    def _keep(self, tensor):
        # A copy, because a replay of the update overwrites the tensor
        self._on_gpu.append(tensor.clone())

    def _extend(self, array):
        end = self._size + array.size
        if end > len(self._array):
            self._array = np.resize(self._array, 2 * end)
        self._array[self._size : end] = array
        self._size = end

    def values(self):
        """Returns all values as one array."""
        if self._on_gpu:
            self._extend(torch.cat(self._on_gpu).double().cpu().numpy())
            self._on_gpu.clear()
        return self._array[: self._size]

    def clear(self):
        """Removes all values."""
        self._size = 0
        self._on_gpu.clear()
