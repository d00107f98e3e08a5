"""Tests that need no Slurm; the others are in tests/test_slurm.py."""

from __future__ import annotations

import pickle
import shlex
import subprocess
import sys

import pytest

from spinup.cli.status import state_of
from spinup.launch import slurm
from spinup.launch.processes import Experiment
from spinup.utils import mpi_tools
from tests.thunks import fake


@pytest.mark.parametrize(
    "text, minutes",
    [("90", 90), (5, 5), ("8:00:00", 480), ("90:30", 91), ("1-12", 2160), ("2-01:30:00", 2970)],
)
def test_time_limits(text, minutes):
    assert slurm.read_options({"time": text})["time"] == minutes


def test_options_go_to_submitit_or_to_sbatch():
    given = dict(time=10, gpus="2", max_jobs=4, warning=300, mem="4G", mail_type="END")
    assert slurm.read_options(given) == {
        "time": 10,
        "gpus_per_node": 2,
        "array_parallelism": 4,
        "additional_parameters": {
            "requeue": True,
            "mem": "4G",
            "mail-type": "END",
            "signal": "USR1@300",
        },
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "slurm needs a time limit"),
        ({"time": "0"}, "a time limit must be at least a minute, not '0'"),
        ({"time": "1:2:3:4"}, "time must be minutes, hours:minutes:seconds or days-hours"),
        ({"time": 5, "gpus": 0}, "gpus must be a positive whole number, not 0"),
        ({"time": 5, "ntasks_per_node": 2}, "ntasks_per_node is set by the grid itself"),
        ({"time": 5, "Mem": "4G"}, "slurm takes key=value, such as partition=gpu, not Mem=4G"),
        ({"time": 5, "x\n#SBATCH": 1}, "slurm takes key=value"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        slurm.read_options(options)


def test_a_missing_slurm_is_named(monkeypatch, tmp_path):
    pytest.importorskip("submitit", reason="the extra slurm isn't installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no sbatch here"):
        slurm.check_options({"time": 5})
    (tmp_path / "sbatch").touch(mode=0o755)
    assert slurm.check_options({"time": 5})["time"] == 5


def test_a_missing_submitit_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"slurm needs submitit: in the checkout, pip install '\.\[slurm\]'"
    ):
        slurm.check_options({"time": 5})


def test_jobs_find_the_modules_of_the_current_folder(tmp_path, monkeypatch):
    folder = tmp_path / "with a space"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")
    (folder / "mine_of_slurm.py").write_text("print('found')")
    lines = [*slurm.setup_lines(), f"cd / && {shlex.quote(sys.executable)} -m mine_of_slurm"]
    words = ["sh", "-c", "\n".join(lines)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("found\n", "")


def test_a_job_with_own_wrappers_and_networks_is_pickled():
    kwargs = dict(
        env_name="CartPole-v1",
        wrappers=["tests.utils.test_wrapping:Double"],
        actor_critic="spinup.utils.nets:MLPActorCritic",
        logger_kwargs=dict(output_dir="x"),
    )
    variant = pickle.loads(pickle.dumps(slurm.Variant(Experiment("x", fake, kwargs))))
    assert variant.experiment.kwargs["wrappers"] == kwargs["wrappers"]


def test_a_restarted_job_continues_or_starts_from_the_beginning(tmp_path):
    settings = dict(output_dir=str(tmp_path), overwrite=True, exp_name="x")
    experiment = Experiment("x", fake, dict(seed=1, logger_kwargs=settings))
    started = slurm.as_restarted(experiment)
    assert started.kwargs["logger_kwargs"] == settings
    (tmp_path / "checkpoint/step-4000").mkdir(parents=True)
    (tmp_path / "status.json").write_text('{"state": "interrupted"}')
    resumed = slurm.as_restarted(experiment)
    assert resumed.kwargs["logger_kwargs"] == dict(
        output_dir=str(tmp_path), resume=True, exp_name="x"
    )
    assert experiment.kwargs["logger_kwargs"] == settings
    (tmp_path / "status.json").write_text('{"state": "finished"}')
    assert slurm.as_restarted(experiment) is None


@pytest.mark.parametrize(
    "state, jobs, expected",
    [
        ("running", {"7_0": "RUNNING"}, "running"),
        ("interrupted", {"7_0": "PENDING"}, "queued"),
        ("finished", {"7_0": "PENDING"}, "finished"),
        ("queued", {}, "died"),
        ("running", {}, "died"),
        ("interrupted", {}, "interrupted"),
        ("queued", None, "queued"),
    ],
)
def test_states(state, jobs, expected, tmp_path):
    (tmp_path / "status.json").write_text(f'{{"state": "{state}", "slurm_job": "7_0"}}')
    assert state_of(tmp_path, jobs)["state"] == expected


def test_a_queue_that_does_not_answer_is_not_an_empty_one(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 7_0 RUNNING\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm.queued_jobs() == {"7_0": "RUNNING"}
    squeue.write_text("#!/bin/sh\necho slurm_load_jobs error: Unable to contact >&2\nexit 1\n")
    assert slurm.queued_jobs() is None


def test_processes_of_srun_that_know_nothing_of_each_other(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.delenv("SPINUP_NUM_CPU", raising=False)
    with pytest.raises(RuntimeError, match=r"srun started 2 processes .* use srun --mpi=pmi2"):
        mpi_tools._check_srun()
    monkeypatch.setenv("SPINUP_NUM_CPU", "1")
    mpi_tools._check_srun()
