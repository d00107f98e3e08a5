"""Grids on a Slurm cluster: an array with one job per variant, submitted with submitit.

Slurm warns a job before its time limit or when another job preempts it. The run then saves a
checkpoint, the job is queued again, and the run continues from there. If a node fails, Slurm queues
the job again, and the run continues from its last checkpoint.
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

# The warning signal. mpiexec passes SIGUSR1 on to its ranks, but kills them at once on SIGUSR2, the
# default of submitit.
WARNING_SIGNAL = "USR1"

# Number of times that a job may be requeued after its time limit: many, because each job continues
# where the last one ended.
_MOST_TIMEOUTS = 1000

# Options of sbatch that the grid sets itself, or that it can't use.
_ITS_OWN = {"array", "output", "error", "signal", "wrap", "nodes", "ntasks", "ntasks-per-node"}
_ITS_OWN |= {"cpus-per-task", "cpus-per-gpu", "open-mode", "requeue", "job-name"}

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


class SubmissionError(RuntimeError):
    """Slurm rejected the jobs of a grid."""


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Reads options as `read_options` does, and checks that jobs can be submitted from here.

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
    """Converts options to parameters of submitit.

    Args:
        options: ``time`` (time limit: minutes, ``hours:minutes:seconds``, ``days-hours``), ``gpus``
            (of each variant), ``max_jobs`` (maximum at once), ``warning`` (seconds before the time
            limit at which runs are asked to save; 90 by default), and any other long option of
            sbatch that takes a value: ``partition``, ``mem``, ``account``, ``qos``, ...

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
            "its state and continues in another job)"
        )
    # Not by submitit's signal_delay_s, whose signal is fixed when submitit is first imported
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
        raise ValueError(f"slurm: a time limit must be at least a minute, not {text!r}")
    return int(-(-minutes // 1))


def submit(
    experiments: Sequence[Experiment], name: str, root: str, parameters: Mapping[str, Any]
) -> list[str]:
    """Submits experiments as one array of jobs.

    Args:
        experiments: experiments with the same number of ranks.
        name: name of the grid.
        root: the results folder, which must be the same on all nodes. Its folder ``.slurm``, which
            only this user can read, contains the jobs' input.
        parameters: the result of `check_options`.

    Returns:
        The ids of the jobs, ``array_task``.

    Raises:
        SubmissionError: Slurm rejected the jobs; the message has the reason.
    """
    import submitit

    folder = Path(root, ".slurm", name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Path(root, ".slurm").chmod(0o700)
        # A warning that comes before Python has installed its handlers would kill it
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
        raise SubmissionError(f"Slurm rejected the jobs: {reason}") from error
    for experiment, job in zip(experiments, jobs):
        note_queued(experiment.folder, job.job_id, experiment.resumes)
    return [job.job_id for job in jobs]


def setup_lines() -> list[str]:
    """Returns the shell commands that a job runs before Python starts.

    They let jobs find the same modules as this process, including those in the script's folder and
    in the current folder.
    """
    folders = shlex.quote(os.pathsep.join(module_folders()))
    return [f"export SUBMITIT_PREEMPT_SIGNAL={WARNING_SIGNAL}", f"export PYTHONPATH={folders}"]


class Variant:
    """The function of a job: starts or continues an experiment in new processes.

    Args:
        experiment: the experiment.
    """

    def __init__(self, experiment: Experiment):
        # Jobs start in another folder, so the path must be absolute
        kwargs = {**experiment.kwargs, "logger_kwargs": dict(experiment.kwargs["logger_kwargs"])}
        kwargs["logger_kwargs"]["output_dir"] = str(experiment.folder.absolute())
        self.experiment = replace(experiment, kwargs=kwargs)

    def __call__(self) -> str:
        """Runs the experiment to its end, or until Slurm warns.

        Returns:
            The folder of the run.

        Raises:
            RuntimeError: the experiment failed, or it was stopped and isn't queued again.
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
        # Slurm sends signals to all processes of a job, and mpiexec would kill its ranks on SIGTERM
        run = Run(experiment, holds_sigterm=True)
        asked = False
        while (outcome := run.outcome()) is None:
            if warned and not asked:
                asked = True
                run.ask_to_end()
            time.sleep(POLL_SECONDS)
        if outcome.state == State.FINISHED:
            return str(experiment.folder)
        # Requeue after a warning, which also ends a run that is still starting. A job that is being
        # cancelled, or that Slurm requeues itself, is no longer in the state RUNNING.
        stopped = outcome.status.get("state") in (State.INTERRUPTED, State.STARTING)
        if warned and stopped and job_state() == "RUNNING":
            requeue(signal.SIGUSR1, None)
        raise RuntimeError(f"{experiment.label} failed: {outcome.reason}")

    def checkpoint(self):
        """Returns the submission of the requeued job; submitit calls this."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def as_restarted(experiment: Experiment) -> Experiment | None:
    """Returns the experiment to run after a restart of its job, or None if it has finished."""
    status = read_own_status(experiment.folder)
    if not status or status.get("slurm_job") != slurm_job():
        return experiment  # this job hasn't begun it: any results belong to an earlier run
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
    """Returns Slurm's state of this process's job, such as ``RUNNING``; empty if unknown."""
    for _ in range(5):  # the controller may be busy
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            states = _squeue("--jobs", os.environ["SLURM_JOB_ID"])
            if states is not None:
                return states.get(slurm_job() or "", "")
        time.sleep(2)
    return ""


def queued_jobs() -> dict[str, str] | None:
    """Returns the states of this user's queued and running jobs by id; None if unknown."""
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
