"""Run experiments, and grids of them: ``ExperimentGrid`` and ``call_experiment``.

Names, shorthands and folders follow Spinning Up's rules, so that its users find what they look for.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spinup import user_config
from spinup.launch import display as grid_display
from spinup.launch import record as grid_record
from spinup.launch import slurm
from spinup.launch.cores import usable_cores
from spinup.launch.entrypoint import execute, with_env_fn
from spinup.launch.mpiexec import launch_command
from spinup.launch.processes import ENTRYPOINT, Experiment, Outcome, forget_status, run_all, run_one
from spinup.runs.json_values import convert_json
from spinup.utils.logx import (
    check_exp_name,
    check_unchanged,
    colorize,
    holds_results,
    is_locked,
    read_config,
    read_status,
)
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
    now = time.localtime()
    return _logger_kwargs(exp_name, seed, data_dir, datestamp, overwrite, resume, now)


def _logger_kwargs(exp_name, seed, data_dir, datestamp, overwrite, resume, now):
    check_exp_name(exp_name)
    _check_resume(datestamp or user_config.FORCE_DATESTAMP, overwrite, resume)
    day = second = ""
    if datestamp or user_config.FORCE_DATESTAMP:
        day, second = time.strftime("%Y-%m-%d_", now), time.strftime("%Y-%m-%d_%H-%M-%S-", now)
    folder = os.path.join(data_dir or user_config.DEFAULT_DATA_DIR, day + exp_name)
    if seed is not None:
        folder = os.path.join(folder, f"{second}{exp_name}_s{seed}")
    logger_kwargs = {"output_dir": folder, "exp_name": exp_name}
    given = {name: True for name, flag in [("overwrite", overwrite), ("resume", resume)] if flag}
    return {**logger_kwargs, **given}


def _check_resume(datestamp, overwrite, resume):
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other: continue, or start anew")
    if resume and datestamp:
        raise ValueError(
            "resume finds a run by its folder's name, and datestamp makes a new one each time: "
            "leave datestamp out, or name the folder by logger_kwargs"
        )


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
        **kwargs: for `thunk`. ``env_name``, and ``env_kwargs`` if there are any, become ``env_fn``.

    Returns:
        The folder of the run.

    Raises:
        ValueError: a name, a number of ranks or a folder that can't be used, before anything runs.
        RuntimeError: the experiment failed; why, and where its log is.
    """
    kwargs["seed"] = seed
    experiment = _make_experiment(
        exp_name, thunk, kwargs, num_cpu, data_dir, datestamp, overwrite, resume, _now()
    )
    if resume and has_finished(experiment):
        if proc_id() == 0:
            print(f"{experiment.label} has finished already")
        return str(experiment.folder)
    notes = _check_ready([experiment])
    if proc_id() == 0:
        _announce(experiment, notes)
    if num_procs() > 1:
        _run_on_these_ranks(experiment)
    else:
        outcome = run_one(experiment)
        if outcome.state != "finished":
            raise ExperimentFailed(
                f"Experiment {experiment.label} failed: {outcome.reason} "
                f"(log: {grid_display.short_path(experiment.log)})"
            )
    if proc_id() == 0:
        grid_display.print_commands(str(experiment.folder), str(experiment.folder))
    return str(experiment.folder)


def _announce(experiment, notes):
    heading = f"Running experiment {experiment.label} with:"
    print(colorize(heading, "cyan", bold=True) if sys.stdout.isatty() else heading)
    print(json.dumps(convert_json(experiment.kwargs), indent=4, sort_keys=True))
    for note in notes:
        print(f"Note: {note}")
    sys.stdout.flush()


def _now() -> time.struct_time:
    """Returns the time by rank 0's clock, so that all ranks name the same folder."""
    seconds = np.array([time.time()])
    broadcast(seconds)
    return time.localtime(seconds[0])


def _make_experiment(exp_name, thunk, kwargs, num_cpu, data_dir, datestamp, overwrite, resume, now):
    if not callable(thunk):
        raise ValueError(f"There is nothing to run: expected a function, not {thunk!r}")
    if "logger_kwargs" not in kwargs:
        seed = kwargs.get("seed")
        folders = _logger_kwargs(exp_name, seed, data_dir, datestamp, overwrite, resume, now)
        kwargs["logger_kwargs"] = folders
    elif not dict(kwargs["logger_kwargs"] or {}).get("output_dir"):
        raise ValueError("logger_kwargs must name an output_dir, or be left out")
    else:
        _check_resume(False, overwrite, resume)
        given = {"overwrite": True} if overwrite else {"resume": True} if resume else {}
        kwargs["logger_kwargs"] = {**kwargs["logger_kwargs"], **given}
    return Experiment(exp_name, thunk, kwargs, count_ranks(num_cpu))


def has_finished(experiment: Experiment) -> bool:
    """Says whether an experiment's folder holds its finished run, with as many epochs as asked."""
    if read_status(experiment.folder).get("state") != "finished":
        return False
    try:
        return experiment.kwargs.get("epochs", 0) <= read_config(experiment.folder).get("epochs", 0)
    except TypeError:
        return False


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


def _run_on_these_ranks(experiment):
    """Runs an experiment in this process, one rank of a world that somebody else has started.

    An exception ends the world (see mpi_tools): ranks that wait for this one couldn't go on.
    """
    if proc_id() == 0:
        experiment.folder.mkdir(parents=True, exist_ok=True)
        forget_status(experiment.folder, experiment.resumes)
    barrier()
    execute(experiment.thunk, experiment.kwargs)
    barrier()


# --- Checks before anything runs ------------------------------------------------------------------


def _check_ready(experiments: Sequence[Experiment], here: bool = True) -> list[str]:
    """Makes sure that experiments can start, and returns remarks about them.

    Raises:
        ValueError: two share a folder, or one's folder holds results, or MPI is missing.
    """
    by_folder: dict[str, Experiment] = {}
    for experiment in experiments:
        folder = os.path.abspath(experiment.folder)
        if folder in by_folder:
            raise ValueError(_describe_clash(by_folder[folder], experiment))
        by_folder[folder] = experiment
    full = [e.folder for e in experiments if _is_taken(e)]
    if full:
        names = ", ".join(grid_display.short_path(folder) for folder in full[:3])
        more = f" and {len(full) - 3} more" if len(full) > 3 else ""
        raise ValueError(
            f"{names}{more} already hold{'s' if len(full) == 1 else ''} results: give --resume "
            "(resume=True) to continue, --overwrite (overwrite=True) to replace them, another "
            "--exp_name, or --dt (datestamp=True)"
        )
    for experiment in experiments:
        _check_folder_can_be_made(experiment.folder)
        if is_locked(experiment.folder):
            folder = grid_display.short_path(experiment.folder)
            raise ValueError(f"{folder} is in use by a run that is under way")
        if experiment.resumes:
            _check_resumes(experiment)
    barrier()  # no rank may start to write while another still looks
    if num_procs() > 1 or not here:
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for ranks in sorted({e.num_cpu for e in experiments}):
            launch_command(ranks, ENTRYPOINT)
    return [str(warning.message) for warning in caught]


def _check_resumes(experiment):
    """Makes sure that an experiment to resume has the hyperparameters that it began with."""
    before = read_config(experiment.folder)
    name = getattr(experiment.thunk, "__name__", "")
    if not holds_results(experiment.folder) or before.get("algo") != f"spinup.{name}":
        return  # a function that may do anything with its arguments
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(experiment.thunk).parameters.items()
        if parameter.default is not parameter.empty
    }
    config = convert_json({**defaults, **with_env_fn(experiment.kwargs)})
    if not isinstance(before.get("env_fn"), str) or experiment.kwargs.get("env_kwargs"):
        config.pop("env_fn", None)  # a function, which has no words of its own
    try:
        check_unchanged(before, {**config, "num_cpu": experiment.num_cpu})
    except ValueError as error:
        raise ValueError(f"{experiment.label} can't be resumed so: {error}") from None


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
    folder = grid_display.short_path(first.folder)
    if not differing:
        return f"Two variants are the same and would share the folder {folder}: {first.label}"
    one, other = (_excerpt(e.kwargs, differing) for e in (first, second))
    return (
        f"Two variants would share the folder {folder}: {one} and {other}; "
        "give values or shorthands that make their names differ"
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


# --- Names ----------------------------------------------------------------------------------------


def valid_str(v: Any) -> str:
    """Returns a value as part of a folder's name, by Spinning Up's rules.

    Args:
        v: functions and classes go by their names, lists and tuples join their items by ``-``.

    Returns:
        Lower-case letters, digits, ``-`` and ``_``; other characters become ``-``.

    Example:
        >>> valid_str((64, 64)), valid_str(1e-3), valid_str("CartPole-v1")
        ('64-64', '0-001', 'cartpole-v1')
    """
    if hasattr(v, "__name__"):
        v = v.__name__
    if isinstance(v, (tuple, list)):
        return "-".join(valid_str(item) for item in v)
    return re.sub(r"[^a-z0-9_-]", "-", str(v).lower())


def default_shorthand(key: str) -> str:
    """Returns the letters and digits among the first three characters of each part of a key.

    Example:
        >>> default_shorthand("ac_kwargs:hidden_sizes")
        'ac-hid'
    """
    return "-".join(re.sub(r"[^A-Za-z0-9]", "", part[:3]) for part in key.split(":"))


# --- Grids ----------------------------------------------------------------------------------------


class ExperimentGrid:
    """All combinations of hyperparameters' values, each run as an experiment.

    Args:
        name: begins the name of every variant.

    Example::

        eg = ExperimentGrid(name="ppo-cartpole")
        eg.add("env_name", "CartPole-v1", "", in_name=True)
        eg.add("seed", [0, 10, 20])
        eg.add("ac_kwargs:hidden_sizes", [(32,), (64, 64)], "hid")
        eg.run(ppo, num_cpu=2)
    """

    def __init__(self, name: str = ""):
        self.keys: list[str] = []
        self.vals: list[list] = []
        self.shs: list[str | None] = []
        self.in_names: list[bool] = []
        self.name(name)

    def name(self, _name: str) -> None:
        """Sets the name that begins every variant's.

        Raises:
            ValueError: it is not fit for a folder's name.
        """
        self._name = check_exp_name(_name) if _name != "" else ""

    def add(self, key: str, vals: Any, shorthand: str | None = None, in_name: bool = False) -> None:
        """Adds a parameter.

        Args:
            key: its name; ``"ac_kwargs:hidden_sizes"`` is an entry of the dict ``ac_kwargs``.
            vals: its value, or a list of them.
            shorthand: what it is called in variants' names; by default made from the key, unless
                ``DEFAULT_SHORTHAND`` in ``spinup/user_config.py`` is False. ``""`` leaves the value
                alone in the name.
            in_name: put it into the names even if it has one value only.

        Raises:
            ValueError: the key is there already, or has no values.
        """
        if not isinstance(key, str) or not key or not all(key.split(":")):
            raise ValueError(f"{key!r} is not the name of a parameter")
        if shorthand is not None and not isinstance(shorthand, str):
            raise ValueError(f"The shorthand of {key} must be a string, not {shorthand!r}")
        if key in self.keys:
            raise ValueError(f"{key} was added twice: give all its values in one list")
        if isinstance(vals, list) and not vals:
            raise ValueError(f"{key} has no values: a grid over it would be empty")
        if shorthand is None and user_config.DEFAULT_SHORTHAND:
            shorthand = default_shorthand(key)
        self.keys.append(key)
        self.vals.append(vals if isinstance(vals, list) else [vals])
        self.shs.append(shorthand)
        self.in_names.append(in_name)

    def variants(self) -> list[dict[str, Any]]:
        """Returns every combination as a dict, the last parameter varying fastest.

        Keys with colons become nested dicts: ``base:a`` and ``base:b`` make ``{"base": {"a": …,
        "b": …}}``.

        Raises:
            ValueError: a key is given both a value and entries (``base`` and ``base:a``).
        """
        combinations = itertools.product(*self.vals)
        return [_nest(zip(self.keys, values, strict=True)) for values in combinations]

    def variant_name(self, variant: Mapping[str, Any]) -> str:
        """Returns a variant's name: the grid's, then what tells it from the others.

        Parameters of several values, and those added with ``in_name``, contribute ``_``, their
        shorthand and their value; those whose values are all booleans only their shorthand, where
        true. Seeds don't: runs that differ by seed alone share a name.

        Args:
            variant: one of `variants`.
        """
        name = self._name
        for key, vals, shorthand, in_name in zip(
            self.keys, self.vals, self.shs, self.in_names, strict=True
        ):
            if key == "seed" or (len(vals) == 1 and not in_name):
                continue
            label = valid_str(key if shorthand is None else shorthand)
            value = _look_up(variant, key)
            if not all(isinstance(v, bool) for v in vals):
                name += f"_{label}{valid_str(value)}"
            elif value:
                name += f"_{label}"
        return name.lstrip("_")

    def print(self) -> None:
        """Prints the parameters with their shorthands and values, and the number of variants."""
        rows = [
            (key, shorthand or "", "  ".join(_short_value(value) for value in vals))
            for key, vals, shorthand in zip(self.keys, self.vals, self.shs, strict=True)
        ]
        sizes = {key: len(vals) for key, vals in zip(self.keys, self.vals, strict=True)}
        total = int(np.prod(list(sizes.values())))
        grid_display.print_parameters(self._name, rows, total, total // sizes.get("seed", 1))

    def run(
        self,
        thunk: Callable | str,
        num_cpu: int | str = 1,
        data_dir: str | os.PathLike | None = None,
        datestamp: bool = False,
        jobs: int | str = 1,
        overwrite: bool = False,
        tensorboard: bool = False,
        resume: bool = False,
        timeout: float | None = None,
        slurm: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Runs every variant in processes of its own; one that fails doesn't stop the others.

        On the ranks of an MPI world the variants run on these ranks instead, one after another.

        Args:
            thunk: the function to call, or the name of the parameter whose values are functions.
            num_cpu: number of MPI ranks of each variant, or ``"auto"``.
            data_dir: where results go, see `setup_logger_kwargs`.
            datestamp: put date and time into the folders' names.
            jobs: how many ranks run at once: a variant of several takes as many. ``"auto"`` for as
                many as there are usable cores.
            overwrite: replace results that the folders hold.
            tensorboard: also log for TensorBoard.
            resume: continue what was stopped or failed, and skip what has finished.
            timeout: seconds after which a variant that hasn't ended is asked to save its state and
                end, and counts as failed.
            slurm: submit the variants to Slurm as an array of jobs, and return at once: options of
                sbatch, such as ``{"partition": "gpu", "time": "8:00:00", "gpus": 1}``; see
                `spinup.launch.slurm.check_options`. `jobs` and `timeout` are Slurm's affair then.

        Returns:
            The variants' folders.

        Raises:
            ValueError: something can't work, before anything runs: two variants share a folder, a
                folder holds results, MPI is missing, ...
            RuntimeError: a variant failed; raised when all have ended.
        """
        plan = self.plan(
            *(thunk, num_cpu, data_dir, datestamp, jobs, overwrite, tensorboard, resume, timeout),
            slurm=slurm,
        )
        return self.launch(plan)

    def plan(
        self,
        thunk: Callable | str,
        num_cpu: int | str = 1,
        data_dir: str | os.PathLike | None = None,
        datestamp: bool = False,
        jobs: int | str = 1,
        overwrite: bool = False,
        tensorboard: bool = False,
        resume: bool = False,
        timeout: float | None = None,
        slurm: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Makes sure that the variants can run, and writes nothing; takes the arguments of `run`.

        Raises:
            ValueError: they can't.
        """
        slots = _count_jobs(jobs)
        _check_timeout(timeout)
        submission = None if slurm is None else _check_slurm(slurm, jobs, timeout)
        now, experiments = _now(), []
        for variant in self.variants():
            name = self.variant_name(variant)
            if not name:
                raise ValueError("The grid needs a name: ExperimentGrid(name=...), or --exp_name")
            function = variant.pop(thunk, None) if isinstance(thunk, str) else thunk
            variant.setdefault("seed", 0)
            experiment = _make_experiment(
                name, function, variant, num_cpu, data_dir, datestamp, overwrite, resume, now
            )
            if tensorboard:
                experiment.kwargs["logger_kwargs"]["tensorboard"] = True
            experiments.append(experiment)
        notes = _check_jobs(slots, experiments) + _check_ready(experiments, submission is None)
        finished = [e for e in experiments if resume and has_finished(e)]
        if finished:
            notes.append(f"{len(finished)} of {len(experiments)} have finished already")
        new = [e for e in experiments if resume and not holds_results(e.folder)]
        if new:
            which = "it starts" if len(new) == 1 else "they start"
            notes.append(f"{len(new)} of {len(experiments)} have no run to resume: {which} anew")
        root = os.path.abspath(data_dir or user_config.DEFAULT_DATA_DIR)
        barrier()  # all ranks have looked at what has finished
        waiting = [e for e in experiments if e not in finished]
        folders = [str(e.folder) for e in experiments]
        record = grid_record.path(root, self._name or "grid", now if datestamp else None)
        return Plan(waiting, root, slots, notes, folders, timeout, submission, record)

    def launch(self, plan: Plan) -> list[str]:
        """Runs what `plan` returned, shows how it goes, and how it ended.

        Returns:
            The variants' folders.

        Raises:
            RuntimeError: a variant failed; raised when all have ended.
        """
        if proc_id() == 0:
            self.print()
            grid_display.print_plan(
                plan.experiments, plan.root, plan.jobs, plan.notes, plan.slurm is not None
            )
            if plan.experiments:
                grid_display.count_down(user_config.WAIT_BEFORE_LAUNCH)
        if plan.experiments and plan.slurm is not None:
            _submit(plan, self._name)
        elif plan.experiments and num_procs() > 1:
            _run_in_this_world(plan)
        elif plan.experiments:
            _run_in_processes(plan)
        return plan.folders


@dataclass
class Plan:
    """A grid that is ready to run.

    Attributes:
        experiments: its variants.
        root: the folder that theirs lie below.
        jobs: how many ranks run at once.
        notes: remarks for whoever starts it.
        folders: of all variants, also of those of a resumed grid that finished before.
        timeout: seconds after which a variant is ended.
        slurm: how to submit it to Slurm, if that is to run it.
        record: the file that keeps how its variants ended.
    """

    experiments: list[Experiment]
    root: str
    jobs: int
    notes: list[str]
    folders: list[str]
    timeout: float | None = None
    slurm: dict[str, Any] | None = None
    record: Path = Path("grid.json")


def _nest(items):
    nested: dict[str, Any] = {}
    for key, value in items:
        *path, last = key.split(":")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{key} can't be set: {part} is given as {inner!r}")
        if last in inner:
            raise ValueError(f"{key} is given twice")
        inner[last] = dict(value) if isinstance(value, dict) else value  # others may add entries
    return nested


def _look_up(variant, key):
    for part in key.split(":"):
        variant = variant[part]
    return variant


def _short_value(value):
    text = convert_json(value)
    return text if isinstance(text, str) else json.dumps(text)


def _count_jobs(jobs):
    if jobs == "auto":
        return usable_cores() if num_procs() == 1 else 1
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs must be a positive integer or 'auto', not {jobs!r}")
    return jobs


def _check_slurm(options, jobs, timeout):
    if timeout is not None:
        raise ValueError("timeout is Slurm's affair where it runs the grid: give slurm time=...")
    if jobs != 1:
        raise ValueError(
            "jobs is Slurm's affair where it runs the grid: give slurm max_jobs=... to limit how "
            "many run at once"
        )
    if num_procs() > 1:
        raise ValueError("a grid can't be submitted to Slurm from within MPI ranks")
    return slurm.check_options(options)


def _check_timeout(timeout):
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and timeout > 0):
        raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
    if timeout is not None and num_procs() > 1:
        raise ValueError("timeout can't be kept in an MPI world: start without mpiexec")


def _check_jobs(jobs, experiments):
    """Makes sure that variants can run so, and returns remarks about that."""
    if num_procs() > 1:
        if jobs > 1:
            raise ValueError(
                f"jobs is {jobs}, but in an MPI world ({num_procs()} ranks) variants run one after "
                "another: leave jobs out, or start without mpiexec"
            )
        return []
    busy, cores = min(jobs, sum(e.num_cpu for e in experiments)), usable_cores()
    if len(experiments) > 1 and busy > cores:
        return [f"{busy} processes at once will take turns on {cores} usable cores"]
    return []


def _run_in_this_world(plan):
    """Runs the variants one after another on the ranks that this process is one of."""
    for number, experiment in enumerate(plan.experiments, 1):
        if proc_id() == 0:
            print(f"{experiment.label} ({number} of {len(plan.experiments)})", flush=True)
        _run_on_these_ranks(experiment)
    if proc_id() == 0:
        _print_commands(plan, plan.experiments[-1])


def _submit(plan, name):
    """Submits the variants to Slurm, and says how to follow them."""
    jobs = slurm.submit(plan.experiments, name or "grid", plan.root, plan.slurm)
    record = grid_record.Record(plan.record, plan.folders)
    record.queued(plan.experiments, jobs)
    folder = os.path.join(plan.root, _common_top(plan) or "")
    grid_display.print_submitted(jobs[0].partition("_")[0], len(jobs), folder)


def _run_in_processes(plan):
    """Runs the variants, each in processes of its own, and prints the closing table."""
    record = grid_record.Record(plan.record, plan.folders)
    with grid_display.make_display(len(plan.experiments), record) as display:
        outcomes = run_all(plan.experiments, plan.jobs, display, plan.timeout)
    grid_display.print_outcomes(outcomes, plan.root)
    finished = [outcome for outcome in outcomes if outcome.state == "finished"]
    if finished:
        _print_commands(plan, max(finished, key=_last_return).experiment)
    if len(finished) < len(outcomes):
        raise ExperimentFailed(_describe_failures(outcomes))


def _last_return(outcome: Outcome) -> float:
    value = outcome.status.get("return")
    return -np.inf if value is None else value


def _print_commands(plan, best):
    common = _common_top(plan)
    if common is None:  # a variant that names a folder of its own
        grid_display.print_commands(str(best.folder), str(best.folder))
    else:
        grid_display.print_commands(os.path.join(plan.root, common), str(best.folder))


def _common_top(plan):
    """Returns what the names of the variants' folders begin with; None if one lies elsewhere."""
    tops = {os.path.relpath(e.folder, plan.root).split(os.sep)[0] for e in plan.experiments}
    if os.pardir in tops:
        return None
    common = os.path.commonprefix(sorted(tops))  # noqa: RUF071 (letters are meant)
    return common if common in tops else common.rpartition("_")[0] or common


def _describe_failures(outcomes):
    failed = [outcome for outcome in outcomes if outcome.state != "finished"]
    first, others = failed[0], len(failed) - 1
    text = (
        f"{len(failed)} of {grid_display.plural(len(outcomes), 'experiment')} failed: "
        f"{first.experiment.label}: {first.reason} "
        f"(log: {grid_display.short_path(first.experiment.log)})"
    )
    return text + (f", and {others} more" if others else "")
