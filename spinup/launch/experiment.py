"""An experiment: what is called, with what, and where its results go; and running a single one.

Folders follow Spinning Up's rules, so that its users find what they look for.
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
from spinup.runs.wording import short_path
from spinup.utils.logx import colorize
from spinup.utils.mpi_tools import barrier, broadcast, num_procs, proc_id


class ExperimentFailed(RuntimeError):
    """An experiment, or some of a grid's, did not finish."""


# --- Folders --------------------------------------------------------------------------------------


def setup_logger_kwargs(
    exp_name: str,
    seed: int | None = None,
    data_dir: str | os.PathLike | None = None,
    datestamp: bool = False,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Names the folder of a run, as ``logger_kwargs`` for an algorithm.

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
        data_dir: where results go; ``DEFAULT_DATA_DIR`` of ``spinup/user_config.py`` if None.
        datestamp: put date and time into the names; ``FORCE_DATESTAMP`` there does so always.
        overwrite: let the run replace results that the folder holds.
        resume: let the run continue the one whose results the folder holds.

    Returns:
        ``output_dir`` and ``exp_name``, and ``overwrite`` or ``resume`` if that is so.

    Raises:
        ValueError: `exp_name` is not fit for a folder's name.
    """
    return Place(data_dir, datestamp, overwrite, resume).logger_kwargs(exp_name, seed)


@dataclass(frozen=True)
class Place:
    """Where results go, and what becomes of results that are there; see `setup_logger_kwargs`.

    Attributes:
        now: the time that `datestamp` puts into names.
    """

    data_dir: str | os.PathLike | None = None
    datestamp: bool = False
    overwrite: bool = False
    resume: bool = False
    now: time.struct_time = field(default_factory=time.localtime)

    @property
    def root(self) -> str:
        """The folder that results lie below."""
        return os.path.abspath(self.data_dir or user_config.DEFAULT_DATA_DIR)

    def logger_kwargs(self, exp_name: str, seed: int | None) -> dict[str, Any]:
        """Returns what `setup_logger_kwargs` returns."""
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
        """Returns the caller's own ``logger_kwargs`` with what is to become of earlier results."""
        if not dict(logger_kwargs or {}).get("output_dir"):
            raise ValueError("logger_kwargs must name an output_dir, or be left out")
        self._check_resume(has_stamp=False)
        return {**logger_kwargs, **self._modes()}

    def _modes(self):
        modes = {"overwrite": self.overwrite, "resume": self.resume}
        return {name: True for name, is_set in modes.items() if is_set}

    def _check_resume(self, has_stamp):
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite exclude each other: continue, or start again")
        if self.resume and has_stamp:
            raise ValueError(
                "resume finds a run by its folder's name, and datestamp makes a new one each time: "
                "leave datestamp out, or name the folder by logger_kwargs"
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
    """Runs one experiment in a clean process, or on several MPI ranks, and waits for it.

    What it prints appears here, in a notebook too, and is kept in ``log.txt`` in its folder. Called
    on the ranks of an MPI world, it runs the experiment on these ranks instead.

    Args:
        exp_name: name of the experiment; the plotter averages runs that share it.
        thunk: the function to call, such as ``spinup.ppo``.
        seed: its seed.
        num_cpu: number of ranks; ``"auto"`` for as many as there are usable cores.
        data_dir: where results go, see `setup_logger_kwargs`.
        datestamp: put date and time into the folder's name.
        overwrite: replace results that the folder holds.
        resume: continue the run whose results the folder holds; one that has finished isn't run.
        **kwargs: for `thunk`. ``env_name``, and ``env_kwargs`` if there are any, become ``env_fn``;
            so do ``wrappers``, functions or their names ``"module:function"``.

    Returns:
        The folder of the run.

    Raises:
        ValueError: a name, a number of ranks or a folder that can't be used, before anything runs.
        RuntimeError: the experiment failed; why, and where its log is.
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
        # With the separator it isn't also what the names of other folders begin with
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
    """Returns an experiment that has a folder.

    Args:
        exp_name: its name.
        thunk: the function.
        kwargs: its keyword arguments.
        num_cpu: see `count_ranks`.
        place: where its results go, unless ``logger_kwargs`` among `kwargs` says so.

    Raises:
        ValueError: `thunk` can't be called, or a name or a number can't be used.
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
    """Returns the number of ranks that `num_cpu` stands for here.

    Args:
        num_cpu: a number, or ``"auto"`` for as many as there are usable cores.

    Raises:
        ValueError: it is neither, or this process is one of another number of ranks.
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
    """Runs an experiment in this process, one rank of a world that somebody else has started.

    An exception ends the world (see mpi_tools): ranks that wait for this one couldn't go on.
    """
    if proc_id() == 0:
        note_start(experiment.folder)
    barrier()
    execute(experiment.thunk, experiment.kwargs)
    barrier()
