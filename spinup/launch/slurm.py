"""Grids on a Slurm cluster: an array of jobs, one for each variant, by submitit.

A job that Slurm warns (the time limit is near, a job of higher priority needs the place) has its
run save a checkpoint, and is queued again; it then goes on from there. So does one whose node has
failed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spinup.launch import tether
from spinup.launch.processes import POLL_SECONDS, Experiment, Run, module_folders
from spinup.runs.folder import State, holds_checkpoint, read_own_status, slurm_job
from spinup.runs.stage import note_queued

# The signal that warns. submitit's own, SIGUSR2, would have mpiexec end its ranks at once; this one
# it hands on to them.
WARNING_SIGNAL = "USR1"

# Requeues after the time limit that a job may have: many, as each takes up where the last ended.
_MOST_TIMEOUTS = 1000

# Options of sbatch that a grid can't do without, or with.
_ITS_OWN = {"array", "output", "error", "signal", "wrap", "nodes", "ntasks", "ntasks-per-node"}
_ITS_OWN |= {"cpus-per-task", "cpus-per-gpu", "open-mode", "requeue", "job-name"}

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


class SubmissionError(RuntimeError):
    """Slurm doesn't take a grid's jobs."""


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Reads options as `read_options` does, and makes sure that they can be used here.

    Raises:
        ValueError: an option can't be used, or submitit or Slurm is missing.
    """
    parameters = read_options(options)
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("slurm needs submitit: in the checkout, pip install '.[slurm]'")
    if shutil.which("sbatch") is None:
        raise ValueError("slurm: there is no sbatch here; submit from a machine of the cluster")
    return parameters


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Reads how jobs are to be submitted, as submitit takes it.

    Args:
        options: ``time`` (a limit: minutes, ``hours:minutes:seconds``, ``days-hours``), ``gpus``
            (of each variant), ``max_jobs`` (at once), ``warning`` (seconds before the time limit at
            which runs are to save, 90 unless given), and any other of sbatch's long options with
            its value: ``partition``, ``mem``, ``account``, ``qos``, ``constraint``, ...

    Returns:
        Parameters for ``submitit.SlurmExecutor``.

    Raises:
        ValueError: an option can't be used.
    """
    parameters: dict[str, Any] = {}
    others: dict[str, Any] = {"requeue": True}
    numbers = {"gpus": "gpus_per_node", "max_jobs": "array_parallelism", "warning": "warning"}
    for key, value in options.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", key) or str(value) == "":
            raise ValueError(f"slurm takes key=value, such as partition=gpu, not {key}={value}")
        if key == "time":
            parameters["time"] = _minutes(value)
        elif key.replace("_", "-") in _ITS_OWN:
            raise ValueError(f"slurm: {key} is set by the grid itself: leave it out")
        elif key in numbers:
            if not re.fullmatch(r"[1-9]\d*", str(value)):
                raise ValueError(f"slurm: {key} must be a positive whole number, not {value!r}")
            parameters[numbers[key]] = int(value)
        else:
            others[key.replace("_", "-")] = value
    if "time" not in parameters:
        raise ValueError(
            "slurm needs a time limit, such as time=8:00:00 (a run may take longer: it then saves "
            "its state and goes on in another job)"
        )
    # Not as submitit's signal_delay_s, whose signal hangs on who has imported submitit first
    others["signal"] = f"{WARNING_SIGNAL}@{parameters.pop('warning', 90)}"
    return {**parameters, "additional_parameters": others}


def _minutes(text):
    """Reads a time limit in Slurm's notation."""
    found = _TIME.fullmatch(str(text))
    if found is None:
        raise ValueError(
            f"slurm: time must be minutes, hours:minutes:seconds or days-hours, not {text!r}"
        )
    first, second, third = (int(found[name] or 0) for name in ("first", "second", "third"))
    if found["days"]:
        minutes = 24 * 60 * int(found["days"]) + 60 * first + second + third / 60
    elif found["third"]:
        minutes = 60 * first + second + third / 60
    else:  # minutes, or minutes:seconds
        minutes = first + second / 60
    if minutes < 1:
        raise ValueError(f"slurm: a time limit must be a minute at least, not {text!r}")
    return int(-(-minutes // 1))


def submit(
    experiments: Sequence[Experiment], name: str, root: str, parameters: Mapping[str, Any]
) -> list[str]:
    """Submits experiments as one array of jobs.

    Args:
        experiments: all on the same number of ranks.
        name: of the grid.
        root: the folder that all results lie below. What jobs are given goes into ``.slurm`` there,
            which only this user can read; it must be the same folder on all nodes.
        parameters: what `check_options` returned.

    Returns:
        The jobs' ids, ``array_task``.

    Raises:
        SubmissionError: Slurm doesn't take them; why.
    """
    import submitit

    folder = Path(root, ".slurm", name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Path(root, ".slurm").chmod(0o700)
        # A warning may come before Python is ready for it, and would end it
        held = [
            sys.executable,
            "-I",
            "-S",
            tether.__file__,
            "0",
            "--hold",
            f"TERM,{WARNING_SIGNAL}",
        ]
        executor = submitit.SlurmExecutor(
            folder=folder,
            max_num_timeout=_MOST_TIMEOUTS,
            python=shlex.join([*held, sys.executable]),
        )
        executor.update_parameters(
            job_name=name,
            cpus_per_task=experiments[0].num_cpu,
            stderr_to_stdout=True,
            setup=setup_lines(),
            **parameters,
        )
        jobs = executor.submit_array([Variant(e) for e in experiments])
    except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "sbatch:" in line), lines[-1] if lines else "")
        raise SubmissionError(f"Slurm took no job: {reason}") from error
    for experiment, job in zip(experiments, jobs):
        note_queued(experiment.folder, job.job_id, experiment.resumes)
    return [job.job_id for job in jobs]


def setup_lines() -> list[str]:
    """Returns what a job's shell does before Python starts.

    Jobs find the modules that this process finds: those of a script's folder, wrappers and networks
    of the current one.
    """
    folders = shlex.quote(os.pathsep.join(module_folders()))
    return [f"export SUBMITIT_PREEMPT_SIGNAL={WARNING_SIGNAL}", f"export PYTHONPATH={folders}"]


class Variant:
    """What a job does: runs an experiment, or goes on with it, in processes of its own.

    Args:
        experiment: the experiment.
    """

    def __init__(self, experiment: Experiment):
        # Jobs start elsewhere
        kwargs = {**experiment.kwargs, "logger_kwargs": dict(experiment.kwargs["logger_kwargs"])}
        kwargs["logger_kwargs"]["output_dir"] = str(experiment.folder.absolute())
        self.experiment = replace(experiment, kwargs=kwargs)

    def __call__(self) -> str:
        """Runs it to its end, or until Slurm warns.

        Returns:
            The folder of the run.

        Raises:
            RuntimeError: it failed, and why; or it was stopped, and the job is not to go on.
        """
        warned: list[int] = []
        requeue: Any = signal.getsignal(getattr(signal, f"SIG{WARNING_SIGNAL}"))  # submitit's
        signals = [getattr(signal, f"SIG{name}") for name in ("TERM", WARNING_SIGNAL)]
        for number in signals:
            signal.signal(number, lambda number, _: warned.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)  # see submit
        experiment = as_restarted(self.experiment) if _restarts() else self.experiment
        if experiment is None:
            return str(self.experiment.folder)
        # All processes of a job get its signals, and mpiexec would end its ranks at SIGTERM
        run = Run(experiment, holds_sigterm=True)
        asked = False
        while (outcome := run.outcome()) is None:
            if warned and not asked:
                asked = True
                run.ask_to_end()
            time.sleep(POLL_SECONDS)
        if outcome.state == State.FINISHED:
            return str(experiment.folder)
        # Stopped by a warning, which a run that is only starting doesn't survive. A job that is
        # being cancelled, or that Slurm requeues by itself, isn't running any more.
        stopped = outcome.status.get("state") in (State.INTERRUPTED, State.STARTING)
        if warned and stopped and job_state() == "RUNNING":
            requeue(signal.SIGUSR1, None)
        raise RuntimeError(f"{experiment.label} failed: {outcome.reason}")

    def checkpoint(self):
        """Returns what the job does when it has been queued again; submitit asks."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def as_restarted(experiment: Experiment) -> Experiment | None:
    """Returns an experiment as its job runs it after a restart, or None if it has finished."""
    status = read_own_status(experiment.folder)
    if not status or status.get("slurm_job") != slurm_job():
        return experiment  # the job hasn't begun it, and an earlier run's results are another's
    if status.get("state") == State.FINISHED:
        return None
    settings = dict(experiment.kwargs["logger_kwargs"])
    settings.pop("overwrite", None)
    settings.pop("resume", None)
    settings["resume" if holds_checkpoint(experiment.folder) else "overwrite"] = True
    return replace(experiment, kwargs={**experiment.kwargs, "logger_kwargs": settings})


def _restarts():
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def job_state() -> str:
    """Returns Slurm's word for the state of the job that this process belongs to."""
    for _ in range(5):  # the controller may be busy
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            states = _squeue("--jobs", os.environ["SLURM_JOB_ID"])
            if states is not None:
                return states.get(slurm_job() or "", "")
        time.sleep(2)
    return ""


def queued_jobs() -> dict[str, str] | None:
    """Returns the states of this user's waiting and running jobs by id; None if unknown."""
    if shutil.which("squeue") is None:
        return None
    try:
        return _squeue("--me")
    except (OSError, subprocess.SubprocessError):
        return None


def _squeue(*which):
    words = ["squeue", "--noheader", "--array", "--format", "%i %T", *which]
    answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode:
        return None
    return dict(line.split() for line in answer.stdout.splitlines() if len(line.split()) == 2)
