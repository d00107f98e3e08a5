"""Checks before anything runs: folders, hyperparameters of resumed runs, MPI, cores."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Sequence

from spinup.launch.cores import usable_cores
from spinup.launch.entrypoint import with_env_fn
from spinup.launch.mpiexec import launch_command
from spinup.launch.processes import ENTRYPOINT, Experiment
from spinup.runs.folder import (
    State,
    check_unchanged,
    holds_results,
    is_locked,
    read_config,
    read_spec,
    read_status,
)
from spinup.runs.json_values import convert_json, qualified_name
from spinup.runs.wording import plural, short_path
from spinup.utils.hyperparameters import check_hyperparameters
from spinup.utils.mpi_tools import barrier, num_procs


def check_ready(experiments: Sequence[Experiment], here: bool = True) -> list[str]:
    """Checks that experiments can start, and returns notes about them.

    Args:
        experiments: the experiments.
        here: whether they run on this machine, so that MPI must be installed.

    Raises:
        ValueError: two experiments share a folder, a folder can't be used, a resumed experiment
            has changed, or MPI is missing.
    """
    by_folder: dict[str, Experiment] = {}
    for experiment in experiments:
        folder = os.path.abspath(experiment.folder)
        if folder in by_folder:
            raise ValueError(_describe_clash(by_folder[folder], experiment))
        by_folder[folder] = experiment
    full = [e.folder for e in experiments if _is_taken(e)]
    if full:
        names = ", ".join(short_path(folder) for folder in full[:3])
        more = f" and {len(full) - 3} more" if len(full) > 3 else ""
        raise ValueError(
            f"{names}{more} already hold{'s' if len(full) == 1 else ''} results: give --resume "
            "(resume=True) to continue, --overwrite (overwrite=True) to replace them, another "
            "--exp_name, or --dt (datestamp=True)"
        )
    for experiment in experiments:
        _check_folder_can_be_made(experiment.folder)
        if is_locked(experiment.folder):
            folder = short_path(experiment.folder)
            raise ValueError(f"{folder} is in use by a run that is under way")
        if experiment.resumes:
            _check_resumes(experiment)
    barrier()  # no rank may start to write before all ranks have checked
    if num_procs() > 1 or not here:
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for ranks in sorted({e.num_cpu for e in experiments}):
            launch_command(ranks, ENTRYPOINT)
    return [str(warning.message) for warning in caught]


def _check_resumes(experiment):
    """Checks that an experiment is resumed with the hyperparameters that it began with."""
    if not holds_results(experiment.folder):
        return
    before, thunk = read_config(experiment.folder), experiment.thunk
    try:
        if thunk.__module__.startswith("spinup.algos."):
            config = _config_of(experiment)
            if not isinstance(before.get("env_fn"), str) or experiment.kwargs.get("env_kwargs"):
                config.pop("env_fn", None)  # a function, whose description can't be compared
            check_unchanged(before, {**config, "num_cpu": experiment.num_cpu})
        else:  # any other function, whose arguments may have any meaning
            called = read_spec(experiment.folder).get("thunk")
            check_unchanged({"thunk": called} if called else {}, {"thunk": qualified_name(thunk)})
    except ValueError as error:
        raise ValueError(f"{experiment.label} can't be resumed: {error}") from None


def _config_of(experiment):
    """Returns the hyperparameters as ``config.json`` has them, with those that are left out."""
    thunk = experiment.thunk
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(thunk).parameters.items()
        if parameter.default is not parameter.empty
    }
    values = {**defaults, **with_env_fn(experiment.kwargs)}
    as_run = check_hyperparameters(thunk, values, experiment.num_cpu)
    return convert_json({"algorithm": f"spinup.{thunk.__name__}", **values, **as_run})


def _is_taken(experiment):
    settings = experiment.kwargs["logger_kwargs"]
    may_be = settings.get("overwrite") or settings.get("resume")
    return not may_be and holds_results(experiment.folder)


def _describe_clash(first, second):
    differing = [
        key
        for key in first.kwargs
        if key != "logger_kwargs" and repr(first.kwargs[key]) != repr(second.kwargs.get(key))
    ]
    folder = short_path(first.folder)
    if not differing:
        return f"Two variants are the same and would share the folder {folder}: {first.label}"
    one, other = (_excerpt(e.kwargs, differing) for e in (first, second))
    return (
        f"Two variants would share the folder {folder}: {one} and {other}; "
        "give values or shorthands for which their names differ"
    )


def _excerpt(kwargs, keys):
    return ", ".join(f"{key}={json.dumps(convert_json(kwargs.get(key)))}" for key in keys)


def _check_folder_can_be_made(folder):
    parent = os.path.abspath(folder)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise ValueError(f"Results can't go to {folder}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"Results can't go to {folder}: no permission to write in {parent}")


def has_finished(experiment: Experiment) -> bool:
    """Returns True if the experiment has finished with at least the requested epochs."""
    if read_status(experiment.folder).get("state") != State.FINISHED:
        return False
    try:
        return experiment.kwargs.get("epochs", 0) <= read_config(experiment.folder).get("epochs", 0)
    except TypeError:
        return False


def count_jobs(jobs: int | str) -> int:
    """Returns the number of ranks that may run at once.

    Args:
        jobs: a number, or ``"auto"`` for the number of usable cores.

    Raises:
        ValueError: `jobs` is neither a positive integer nor ``"auto"``.
    """
    if jobs == "auto":
        return usable_cores() if num_procs() == 1 else 1
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs must be a positive integer or 'auto', not {jobs!r}")
    return jobs


def check_timeout(timeout: float | None) -> None:
    """Checks a time limit in seconds.

    Raises:
        ValueError: the limit isn't a positive number, or this is an MPI world.
    """
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and timeout > 0):
        raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
    if timeout is not None and num_procs() > 1:
        raise ValueError("timeout doesn't work in an MPI world: start without mpiexec")


def check_jobs(jobs: int, experiments: Sequence[Experiment]) -> list[str]:
    """Checks the number of ranks that run at once, and returns notes about it.

    Raises:
        ValueError: several jobs are requested in an MPI world.
    """
    if num_procs() > 1:
        if jobs > 1:
            raise ValueError(
                f"jobs is {jobs}, but in an MPI world ({num_procs()} ranks) variants run one after "
                "another: leave jobs out, or start without mpiexec"
            )
        return []
    busy, cores = min(jobs, sum(e.num_cpu for e in experiments)), usable_cores()
    if len(experiments) > 1 and busy > cores:
        return [f"{busy} processes at once will share {plural(cores, 'usable core')}"]
    return []
