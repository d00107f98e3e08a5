"""Single experiments: `call_experiment`, and the names of run folders.

Folders follow Spinning Up's naming rules.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spinup import user_config
from spinup.launch import display
from spinup.launch.checks import check_ready, has_finished
from spinup.launch.cores import usable_cores
from spinup.launch.entrypoint import execute
from spinup.launch.processes import Experiment, run_one
from spinup.runs.folder import State, check_exp_name
from spinup.runs.json_values import convert_json
from spinup.runs.stage import note_start
from spinup.runs.wording import colorize, short_path
from spinup.utils.mpi_tools import barrier, broadcast, num_procs, proc_id


class ExperimentFailed(RuntimeError):
    """One or more experiments did not finish."""


# --- Folders --------------------------------------------------------------------------------------


def setup_logger_kwargs(
    exp_name: str,
    seed: int | None = None,
    data_dir: str | os.PathLike | None = None,
    datestamp: bool = False,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Returns ``logger_kwargs`` for an algorithm, with a folder that follows the naming rules.

    ============================  =================================================================
    seed, datestamp               folder, below ``data_dir``
    ============================  =================================================================
    none, False                   ``exp_name``
    given, False                  ``exp_name/exp_name_s[seed]``
    none, True                    ``YYYY-MM-DD_exp_name``
    given, True                   ``YYYY-MM-DD_exp_name/YYYY-MM-DD_HH-MM-SS-exp_name_s[seed]``
    ============================  =================================================================

    Args:
        exp_name: name of the experiment: letters, digits and ``_ - + . =``.
        seed: seed of the run.
        data_dir: results folder; None for ``DEFAULT_DATA_DIR`` in ``spinup/user_config.py``.
        datestamp: add date and time to the names, as ``FORCE_DATESTAMP`` there always does.
        overwrite: replace the results in the folder.
        resume: continue the run in the folder.

    Returns:
        ``output_dir``, ``exp_name``, and ``overwrite`` or ``resume`` if it is True.

    Raises:
        ValueError: `exp_name` can't be the name of a folder, or the options exclude each other.
    """
    return Place(data_dir, datestamp, overwrite, resume).logger_kwargs(exp_name, seed)


@dataclass(frozen=True)
class Place:
    """The folders of results, and how earlier results are treated; see `setup_logger_kwargs`.

    Attributes:
        now: the time for `datestamp`.
    """

    data_dir: str | os.PathLike | None = None
    datestamp: bool = False
    overwrite: bool = False
    resume: bool = False
    now: time.struct_time = field(default_factory=time.localtime)

    @property
    def root(self) -> str:
        """The results folder."""
        return os.path.abspath(self.data_dir or user_config.DEFAULT_DATA_DIR)

    def logger_kwargs(self, exp_name: str, seed: int | None) -> dict[str, Any]:
        """Returns ``logger_kwargs`` as `setup_logger_kwargs` does."""
        check_exp_name(exp_name)
        has_stamp = self.datestamp or user_config.FORCE_DATESTAMP
        self._check_resume(has_stamp)
        day = time.strftime("%Y-%m-%d_", self.now) if has_stamp else ""
        second = time.strftime("%Y-%m-%d_%H-%M-%S-", self.now) if has_stamp else ""
        folder = os.path.join(self.data_dir or user_config.DEFAULT_DATA_DIR, day + exp_name)
        if seed is not None:
            folder = os.path.join(folder, f"{second}{exp_name}_s{seed}")
        return {"output_dir": folder, "exp_name": exp_name, **self._modes()}

    def completed(self, logger_kwargs: Any) -> dict[str, Any]:
        """Returns the caller's ``logger_kwargs`` with ``overwrite`` or ``resume`` added."""
        if not dict(logger_kwargs or {}).get("output_dir"):
            raise ValueError("logger_kwargs must name an output_dir, or be left out")
        self._check_resume(has_stamp=False)
        return {**logger_kwargs, **self._modes()}

    def _modes(self):
        modes = {"overwrite": self.overwrite, "resume": self.resume}
        return {name: True for name, is_set in modes.items() if is_set}

    def _check_resume(self, has_stamp):
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite exclude each other: give one of them")
        if self.resume and has_stamp:
            raise ValueError(
                "resume finds a run by its folder's name, but datestamp makes a new one each time: "
                "leave datestamp out, or give the folder in logger_kwargs"
            )


def shared_time() -> time.struct_time:
    """Returns the time by rank 0's clock, so that all ranks name the same folder."""
    seconds = np.array([time.time()])
    broadcast(seconds)
    return time.localtime(seconds[0])


# --- One experiment -------------------------------------------------------------------------------


def call_experiment(
    exp_name: str,
    thunk: Callable,
    seed: int = 0,
    num_cpu: int | str = 1,
    data_dir: str | os.PathLike | None = None,
    datestamp: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    **kwargs: Any,
) -> str:
    """Runs one experiment in a new process, or on several MPI ranks, and waits for its end.

    The output is printed here (also in a notebook), and stored in ``log.txt`` in the run folder. On
    the ranks of an MPI world, the experiment runs on these ranks instead.

    Args:
        exp_name: name of the experiment; the plotter averages runs with the same name.
        thunk: the function to call, such as ``spinup.ppo``.
        seed: seed of the run.
        num_cpu: number of ranks; ``"auto"`` for the number of usable cores.
        data_dir: results folder, see `setup_logger_kwargs`.
        datestamp: add date and time to the folder's name.
        overwrite: replace the results in the folder.
        resume: continue the run in the folder; a finished run isn't run again.
        **kwargs: keyword arguments of `thunk`. ``env_name``, ``env_kwargs`` and ``wrappers``
            (functions, or names ``"module:function"``) are combined into ``env_fn``.

    Returns:
        The folder of the run.

    Raises:
        ValueError: a name, the number of ranks or the folder can't be used; nothing has run.
        RuntimeError: the experiment failed; the message has the reason and the path of the log.
    """
    place = Place(data_dir, datestamp, overwrite, resume, shared_time())
    experiment = make_experiment(exp_name, thunk, {**kwargs, "seed": seed}, num_cpu, place)
    notes = check_ready([experiment])
    if resume and has_finished(experiment):
        if proc_id() == 0:
            print(f"{experiment.label} has finished already")
        return str(experiment.folder)
    if proc_id() == 0:
        _announce(experiment, notes)
    if num_procs() > 1:
        run_on_these_ranks(experiment)
    else:
        outcome = run_one(experiment)
        if outcome.state != State.FINISHED:
            raise ExperimentFailed(
                f"Experiment {experiment.label} failed: {outcome.reason} "
                f"(log: {short_path(outcome.log)})"
            )
    if proc_id() == 0:
        # The separator at the end excludes folders whose names begin with this one
        display.print_commands(f"{experiment.folder}{os.sep}", str(experiment.folder))
    return str(experiment.folder)


def _announce(experiment, notes):
    heading = f"Running experiment {experiment.label} with:"
    print(colorize(heading, "cyan", bold=True) if sys.stdout.isatty() else heading)
    print(json.dumps(convert_json(experiment.kwargs), indent=4, sort_keys=True))
    for note in notes:
        print(f"Note: {note}")
    sys.stdout.flush()


def make_experiment(
    exp_name: str, thunk: Callable, kwargs: dict[str, Any], num_cpu: int | str, place: Place
) -> Experiment:
    """Returns an experiment with a folder.

    Args:
        exp_name: name of the experiment.
        thunk: the function.
        kwargs: its keyword arguments.
        num_cpu: see `count_ranks`.
        place: the results' place, unless `kwargs` contains ``logger_kwargs``.

    Raises:
        ValueError: `thunk` isn't callable, or `exp_name` or `num_cpu` can't be used.
    """
    if not callable(thunk):
        raise ValueError(f"There is nothing to run: expected a function, not {thunk!r}")
    if "logger_kwargs" in kwargs:
        logger_kwargs = place.completed(kwargs["logger_kwargs"])
    else:
        logger_kwargs = place.logger_kwargs(exp_name, kwargs.get("seed"))
    kwargs = {**kwargs, "logger_kwargs": logger_kwargs}
    return Experiment(exp_name, thunk, kwargs, count_ranks(num_cpu))


def count_ranks(num_cpu: int | str) -> int:
    """Returns the number of ranks for an experiment.

    Args:
        num_cpu: a number, or ``"auto"`` for the number of usable cores.

    Raises:
        ValueError: `num_cpu` is neither, or it isn't the number of ranks of this MPI world.
    """
    world = num_procs()
    if world > 1:
        if num_cpu not in (1, "auto", world):
            raise ValueError(
                f"num_cpu is {num_cpu}, but this process belongs to an MPI world of {world} ranks: "
                f"leave num_cpu out, or start {num_cpu} ranks"
            )
        return world
    if num_cpu == "auto":
        return usable_cores()
    if isinstance(num_cpu, bool) or not isinstance(num_cpu, int) or num_cpu < 1:
        raise ValueError(f"num_cpu must be a positive integer or 'auto', not {num_cpu!r}")
    return num_cpu


def run_on_these_ranks(experiment: Experiment) -> None:
    """Runs an experiment in this process, which is one rank of an MPI world.

    An exception ends all ranks (see mpi_tools), because the others would wait for this one.
    """
    if proc_id() == 0:
        note_start(experiment.folder)
    barrier()
    execute(experiment.thunk, experiment.kwargs)
    barrier()
