"""Tests grids on a real Slurm cluster on this machine: `make test-slurm`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from spinup.runs.folder import read_status
from tests.algos.runs import timeless_progress
from tests.conftest import _clean_environment
from tests.slurm_cluster import MISSING, Cluster

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.timeout(600),
]

PPO = "ppo --env CartPole-v1 --hid [32]"


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture
def spinup_run(cluster, tmp_path):
    """Runs `python -m spinup.run` on the cluster's machine; returns its exit status and output."""

    def run(line, status=0):
        command = [sys.executable, "-m", "spinup.run", *line.split(), "--data_dir", str(tmp_path)]
        env = _clean_environment(cluster.env) | {"COLUMNS": "200"}
        result = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout + result.stderr

    return run


def state(folder):
    return read_status(folder).get("state")


def test_a_grid_of_four_of_which_one_is_preempted(cluster, spinup_run, tmp_path):
    grid = f"{PPO} --exp_name four --seed 0 1 2 3 --cpu 2 --epochs 25"
    printed = spinup_run(f"{grid} --slurm partition=low time=20")
    job = re.search(r"Submitted 4 variants as job (\d+)", printed)[1]
    folders = [tmp_path / f"four/four_s{seed}" for seed in range(4)]
    jobs = {f: read_status(f)["slurm_job"] for f in folders}
    assert list(jobs.values()) == [f"{job}_{task}" for task in range(4)]
    assert (tmp_path / ".slurm").stat().st_mode & 0o077 == 0

    # Two variants with two ranks each run on four CPUs; one of them is preempted during its run
    cluster.wait_for(lambda: all((read_status(f).get("epoch") or 0) >= 3 for f in folders[:2]), 120)
    assert [state(f) for f in folders[2:]] == ["queued", "queued"]
    urgent = ["sbatch", "-p", "high", "-c", "2", "-o", "/dev/null", "--wrap", "sleep 5"]
    assert "Submitted" in cluster.ask(*urgent)
    cut = cluster.wait_for(
        lambda: [f for f in folders[:2] if state(f) == "interrupted"], seconds=60
    )[0]
    step = int(re.search(r"saved at step (\d+)", read_status(cut)["error"])[1])
    assert 0 < step < 25 * 4000
    cluster.wait_for(lambda: jobs[cut] in cluster.ask("squeue", "--array", "--states=PD"))
    args = [str(cut), str(folders[3])]
    status = spinup_run_status(cluster, *args)
    assert re.search(rf"{cut.name} +queued +{step // 4000}/25 ", status)
    # Slurm makes requeued jobs wait for two minutes
    time.sleep(5)
    cluster.ask("scontrol", "update", f"jobid={jobs[cut]}", "starttime=now")

    cluster.wait_for(lambda: all(state(f) == "finished" for f in folders), 240)
    log = (cut / "log.txt").read_text()
    assert log.count(f"Continuing at step {step} of 100000") == 1
    assert all("Continuing" not in (f / "log.txt").read_text() for f in folders if f != cut)
    assert cluster.wait_for(lambda: job not in cluster.ask("squeue"))

    # The result is that of an uninterrupted run
    seed = cut.name[-1]
    alone = f"{PPO} --exp_name alone --seed {seed} --cpu 2 --epochs 25"
    spinup_run(alone)
    assert timeless_progress(tmp_path / f"alone/alone_s{seed}") == timeless_progress(cut)


def spinup_run_status(cluster, *folders):
    env = _clean_environment(cluster.env) | {"COLUMNS": "200"}
    command = [sys.executable, "-m", "spinup.run", "status", *folders]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_near_its_time_limit_a_run_saves_and_goes_on_in_the_next_job(cluster, spinup_run, tmp_path):
    # Slurm's shortest time limit is a minute, and its warning may come half a minute early
    line = f"{PPO} --exp_name long --epochs 100000 --slurm time=1 warning=45"
    spinup_run(line)
    folder = tmp_path / "long/long_s0"
    cluster.wait_for(lambda: state(folder) == "interrupted", 90)
    job = read_status(folder)["slurm_job"]
    cluster.wait_for(lambda: job in cluster.ask("squeue", "--states=PD"))
    time.sleep(5)  # the node is still cleaning up
    cluster.ask("scontrol", "update", f"jobid={job}", "starttime=now")
    cluster.wait_for(lambda: "Continuing at step" in (folder / "log.txt").read_text(), 60)
    cluster.wait_for(lambda: state(folder) == "running")

    # A cancelled job also saves, and isn't queued again
    cluster.ask("scancel", job)
    cluster.wait_for(lambda: state(folder) == "interrupted", 60)
    cluster.wait_for(lambda: job not in cluster.ask("squeue"))
    assert "saved at step" in read_status(folder)["error"]
    assert (folder / "log.txt").read_text().count("Saved at step") == 2


def test_a_job_that_fails_is_not_queued_again_and_resume_submits_what_is_left(
    cluster, spinup_run, tmp_path
):
    line = f"{PPO} --exp_name bad --epochs 1 --seed 0 1"
    spinup_run(f"{line} --env_kwargs:nonsense 1 --slurm time=5")
    folders = [tmp_path / f"bad/bad_s{seed}" for seed in (0, 1)]
    cluster.wait_for(lambda: all(state(f) == "failed" for f in folders), 60)
    assert "nonsense" in read_status(folders[0])["error"]
    cluster.wait_for(lambda: "bad" not in cluster.ask("squeue"))
    spinup_run(f"{line} --slurm time=5 max_jobs=1")
    cluster.wait_for(lambda: all(state(f) == "finished" for f in folders), 60)
    assert "2 of 2 have finished already" in spinup_run(f"{line} --slurm time=5 --resume")


@pytest.mark.parametrize(
    "options, told",
    [
        ("time=5 partition=nosuch", "spinup ppo: Slurm rejected the jobs: sbatch: error: "),
        ("partition", "--slurm takes key=value, each key once, not 'partition'"),
        ("time=soon", "slurm: time must be minutes, hours:minutes:seconds or days-hours"),
        ("partition=low", "slurm needs a time limit, such as time=8:00:00"),
        ("gpus=none", "slurm: gpus must be a positive whole number, not 'none'"),
        ("output=x", "slurm: output is set by the grid itself: leave it out"),
        ("cpus_per_task=8", "slurm: cpus_per_task is set by the grid itself: leave it out"),
        ("--jobs 2", "jobs can't be combined with slurm"),
        ("--timeout 2", "timeout can't be combined with slurm"),
    ],
)
def test_what_can_not_be_submitted(options, told, spinup_run, tmp_path):
    printed = spinup_run(f"{PPO} --exp_name no --slurm {options}", status=2)
    assert told in printed
    assert not (tmp_path / "no").exists()


def test_srun(cluster, tmp_path):
    code = "from spinup.utils.mpi_tools import num_procs; print('of', num_procs())"
    python = [sys.executable, "-m", "mpi4py", "-c", code]
    assert cluster.ask("srun", "--mpi=pmi2", "-n", "2", *python).count("of 2") == 2
    refused = cluster.ask("srun", "-n", "2", *python)
    assert "srun started 2 processes" in refused
    assert "use srun --mpi=pmi2" in refused
    apart = cluster.ask("env", "SPINUP_NUM_CPU=1", "srun", "-n", "2", *python)
    assert apart.count("of 1") == 2


def test_ranks_within_a_step(cluster, tmp_path):
    line = f"{PPO} --exp_name step --cpu 2 --epochs 1 --data_dir {tmp_path}".split()
    command = ["srun", "-n", "1", "-c", "2", sys.executable, "-m", "spinup.run", *line]
    cluster.ask(*command)
    assert state(tmp_path / "step/step_s0") == "finished"
    assert os.path.exists(tmp_path / "step/step_s0/progress.txt")
