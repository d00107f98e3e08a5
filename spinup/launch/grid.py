"""Grids of experiments: ``ExperimentGrid``, the names of its variants, and how they run.

Names and shorthands follow Spinning Up's rules.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spinup import user_config
from spinup.launch import display as grid_display
from spinup.launch import record as grid_record
from spinup.launch import slurm
from spinup.launch.checks import check_jobs, check_ready, check_timeout, count_jobs, has_finished
from spinup.launch.experiment import (
    ExperimentFailed,
    Place,
    make_experiment,
    run_on_these_ranks,
    shared_time,
)
from spinup.launch.processes import Experiment, Outcome, run_all
from spinup.runs.folder import State, check_exp_name, holds_results
from spinup.runs.json_values import convert_json
from spinup.runs.wording import plural, short_path
from spinup.utils.mpi_tools import barrier, num_procs, proc_id

# --- Names ----------------------------------------------------------------------------------------


def valid_str(v: Any) -> str:
    """Converts a value to a part of a folder's name by Spinning Up's rules.

    Args:
        v: the value. Functions and classes become their names; lists and tuples become their items,
            joined by ``-``.

    Returns:
        Lower-case letters, digits, ``-`` and ``_``; all other characters are replaced by ``-``.

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
    """A grid of hyperparameters that runs each combination of values as an experiment.

    Args:
        name: name of the grid, with which every variant's name begins.

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
        """Sets the name with which every variant's name begins.

        Raises:
            ValueError: it can't be the name of a folder.
        """
        self._name = check_exp_name(_name) if _name != "" else ""

    def add(self, key: str, vals: Any, shorthand: str | None = None, in_name: bool = False) -> None:
        """Adds a parameter.

        Args:
            key: name of the parameter; ``"ac_kwargs:hidden_sizes"`` is the entry ``hidden_sizes``
                of the dict ``ac_kwargs``.
            vals: a value, or a list of values.
            shorthand: name of the parameter in variants' names. By default it is made from the key,
                or it is the key if ``DEFAULT_SHORTHAND`` in ``spinup/user_config.py`` is False.
                With ``""``, the names contain only the value.
            in_name: put the parameter into the names even if it has only one value.

        Raises:
            ValueError: the key was added before, or there are no values.
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
        """Returns all combinations as dicts; the last parameter varies fastest.

        Keys with colons become nested dicts: ``base:a`` and ``base:b`` become ``{"base": {"a": …,
        "b": …}}``.

        Raises:
            ValueError: a key has both a value and entries (``base`` and ``base:a``).
        """
        combinations = itertools.product(*self.vals)
        return [_nest(zip(self.keys, values, strict=True)) for values in combinations]

    def variant_name(self, variant: Mapping[str, Any]) -> str:
        """Returns a variant's name: the grid's name followed by parameters.

        Each parameter with several values, or with ``in_name``, adds ``_``, its shorthand and its
        value. A parameter whose values are all booleans adds only its shorthand if it is True. The
        seed adds nothing, so runs that differ only by seed share a name.

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
        """Prints all parameters with shorthands and values, and the number of variants."""
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
        wandb: str | None = None,
    ) -> list[str]:
        """Runs every variant in new processes. A variant that fails doesn't stop the others.

        On the ranks of an MPI world, the variants run on these ranks instead, one after another.

        Args:
            thunk: the function to call, or the name of the parameter whose values are functions.
            num_cpu: number of MPI ranks of each variant, or ``"auto"``.
            data_dir: results folder, see `setup_logger_kwargs`.
            datestamp: add date and time to the folders' names.
            jobs: number of ranks that run at once; a variant with several ranks takes as many.
                ``"auto"`` for the number of usable cores.
            overwrite: replace the results in the folders.
            tensorboard: also log to TensorBoard.
            resume: continue stopped and failed variants, and skip finished ones.
            timeout: seconds after which a variant is asked to save its state and end; it then
                counts as failed.
            slurm: submit the variants to Slurm as an array of jobs, and return at once. A dict of
                options such as ``{"partition": "gpu", "time": "8:00:00", "gpus": 1}``; see
                `spinup.launch.slurm.read_options`. It excludes `jobs` and `timeout`.
            wandb: also log to this project of Weights & Biases.

        Returns:
            The variants' folders.

        Raises:
            ValueError: the grid can't run (two variants share a folder, a folder contains results,
                MPI is missing, ...); nothing has run.
            RuntimeError: a variant failed; raised after all variants have ended.
        """
        plan = self.plan(
            thunk,
            num_cpu=num_cpu,
            data_dir=data_dir,
            datestamp=datestamp,
            jobs=jobs,
            overwrite=overwrite,
            tensorboard=tensorboard,
            resume=resume,
            timeout=timeout,
            slurm=slurm,
            wandb=wandb,
        )
        return self.launch(plan)

    def plan(self, thunk: Callable | str, **options: Any) -> Plan:
        """Checks that the variants can run, without writing anything.

        Args:
            thunk: see `run`.
            **options: the other arguments of `run`.

        Raises:
            ValueError: the variants can't run.
        """
        given = Options(**options)
        jobs = count_jobs(given.jobs)
        check_timeout(given.timeout)
        submission = None if given.slurm is None else _check_slurm(given)
        place = given.place()
        experiments = [self._experiment(v, thunk, given, place) for v in self.variants()]
        notes = check_jobs(jobs, experiments) + check_ready(experiments, submission is None)
        finished = [e for e in experiments if given.resume and has_finished(e)]
        if finished:
            notes.append(f"{len(finished)} of {len(experiments)} have finished already")
        new = [e for e in experiments if given.resume and not holds_results(e.folder)]
        if new:
            which = "it starts" if len(new) == 1 else "they start"
            counts = f"{len(new)} of {len(experiments)}"
            notes.append(f"{counts} have no run to resume: {which} from the beginning")
        barrier()  # all ranks have checked which variants have finished
        return Plan(
            experiments=[e for e in experiments if e not in finished],
            root=place.root,
            jobs=jobs,
            notes=notes,
            folders=[str(e.folder) for e in experiments],
            timeout=given.timeout,
            slurm=submission,
            record=grid_record.path(
                place.root, self._name or "grid", place.now if given.datestamp else None
            ),
        )

    def _experiment(self, variant, thunk, options, place):
        name = self.variant_name(variant)
        if not name:
            raise ValueError("The grid needs a name: ExperimentGrid(name=...), or --exp_name")
        function = variant.pop(thunk, None) if isinstance(thunk, str) else thunk
        kwargs = {"seed": 0, **variant}
        experiment = make_experiment(name, function, kwargs, options.num_cpu, place)
        copies = {"tensorboard": options.tensorboard, "wandb": options.wandb}
        chosen = {name: setting for name, setting in copies.items() if setting}
        experiment.kwargs["logger_kwargs"].update(chosen)
        return experiment

    def launch(self, plan: Plan) -> list[str]:
        """Runs the variants of a plan, and shows their progress and outcomes.

        Returns:
            The variants' folders.

        Raises:
            RuntimeError: a variant failed; raised after all variants have ended.
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


@dataclass(frozen=True)
class Options:
    """Options of a grid: the arguments of `ExperimentGrid.run`, where they are documented."""

    num_cpu: int | str = 1
    data_dir: str | os.PathLike | None = None
    datestamp: bool = False
    jobs: int | str = 1
    overwrite: bool = False
    tensorboard: bool = False
    resume: bool = False
    timeout: float | None = None
    slurm: Mapping[str, Any] | None = None
    wandb: str | None = None

    def place(self) -> Place:
        """Returns the place of the results, which is the same on all ranks."""
        return Place(self.data_dir, self.datestamp, self.overwrite, self.resume, shared_time())


@dataclass
class Plan:
    """A grid that is ready to run.

    Attributes:
        experiments: the variants to run.
        root: the results folder.
        jobs: number of ranks that run at once.
        notes: notes for the user.
        folders: folders of all variants, including those that have already finished.
        timeout: seconds after which a variant is ended.
        slurm: options for Slurm; None if the grid runs here.
        record: the file that records how the variants ended.
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
        inner[last] = dict(value) if isinstance(value, dict) else value  # others add entries
    return nested


def _look_up(variant, key):
    for part in key.split(":"):
        variant = variant[part]
    return variant


def _short_value(value):
    text = convert_json(value)
    return text if isinstance(text, str) else json.dumps(text)


def _check_slurm(options):
    if options.timeout is not None:
        raise ValueError("timeout can't be combined with slurm: give slurm time=... instead")
    if options.jobs != 1:
        raise ValueError(
            "jobs can't be combined with slurm: give slurm max_jobs=... to limit how many run at "
            "once"
        )
    if num_procs() > 1:
        raise ValueError("a grid can't be submitted to Slurm from within MPI ranks")
    return slurm.check_options(options.slurm)


def _run_in_this_world(plan):
    """Runs the variants one after another on the ranks of this MPI world."""
    for number, experiment in enumerate(plan.experiments, 1):
        if proc_id() == 0:
            print(f"{experiment.label} ({number} of {len(plan.experiments)})", flush=True)
        run_on_these_ranks(experiment)
    if proc_id() == 0:
        _print_commands(plan, plan.experiments[-1])


def _submit(plan, name):
    """Submits the variants to Slurm, and prints how to follow them."""
    jobs = slurm.submit(plan.experiments, name or "grid", plan.root, plan.slurm)
    record = grid_record.Record(plan.record, plan.folders)
    record.queued(plan.experiments, jobs)
    folder = os.path.join(plan.root, _common_top(plan) or "")
    grid_display.print_submitted(jobs[0].partition("_")[0], len(jobs), folder)


def _run_in_processes(plan):
    """Runs each variant in new processes, and prints the closing table."""
    record = grid_record.Record(plan.record, plan.folders)
    with grid_display.make_display(len(plan.experiments)) as display:
        outcomes = run_all(plan.experiments, plan.jobs, [display, record], plan.timeout)
    grid_display.print_outcomes(outcomes, plan.root)
    finished = [outcome for outcome in outcomes if outcome.state == State.FINISHED]
    if finished:
        _print_commands(plan, max(finished, key=_last_return).experiment)
    if len(finished) < len(outcomes):
        raise ExperimentFailed(_describe_failures(outcomes))


def _last_return(outcome: Outcome) -> float:
    value = outcome.status.get("return")
    return -np.inf if value is None else value


def _print_commands(plan, best):
    common = _common_top(plan)
    if common is None:  # a variant gives its own folder in logger_kwargs
        grid_display.print_commands(f"{best.folder}{os.sep}", str(best.folder))
    else:
        grid_display.print_commands(os.path.join(plan.root, common), str(best.folder))


def _common_top(plan):
    """Returns the common beginning of the variants' folders; None if one is outside the root.

    If all variants are in the same folder, the result ends with a separator, which excludes folders
    whose names begin with this one.
    """
    tops = {os.path.relpath(folder, plan.root).split(os.sep)[0] for folder in plan.folders}
    if os.pardir in tops:
        return None
    if len(tops) == 1:
        return tops.pop() + os.sep
    common = os.path.commonprefix(sorted(tops))  # noqa: RUF071 (compares characters on purpose)
    return common if common in tops else common.rpartition("_")[0] or common


def _describe_failures(outcomes):
    failed = [outcome for outcome in outcomes if outcome.state != State.FINISHED]
    first, others = failed[0], len(failed) - 1
    text = (
        f"{len(failed)} of {plural(len(outcomes), 'experiment')} failed: "
        f"{first.experiment.label}: {first.reason} "
        f"(log: {short_path(first.log)})"
    )
    return text + (f", and {others} more" if others else "")
