"""Kills runs at random moments, resumes them, and compares them with undisturbed runs."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import spinup.cli.main
from spinup.launch.mpiexec import launch_command
from spinup.runs.folder import read_status
from tests.conftest import _clean_environment
from tests.resumable import differences, final_state

PROGRAM = Path(__file__).with_name("resumable.py")
# A few seconds, mostly training
EPOCHS = {"vpg": 60, "trpo": 60, "ppo": 60, "ddpg": 20, "td3": 15, "sac": 12}
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
pytestmark = linux

KILL, TERM, INT, USR1 = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


def start(algorithm, folder, ranks):
    """Starts a run; `ranks` is the number of ranks, and of ranks for each learner."""
    args = [str(PROGRAM), algorithm, str(folder), str(EPOCHS[algorithm])]
    command, env = launch_command(ranks[0], args)
    env = env | {"SPINUP_RANKS_PER_LEARNER": str(ranks[1])}
    log = open(f"{folder}.log", "ab")  # noqa: SIM115 (used by the process)
    return subprocess.Popen(
        command, env=_clean_environment(env), stdout=log, stderr=log, start_new_session=True
    )


def descendants(pid):
    """Returns the descendants of a process, as their command lines by process id."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process has ended
            continue
        parents[int(path.name)] = int(fields[1]), words
    found, new = {}, {pid}
    while new:
        new = {p for p, (parent, _) in parents.items() if parent in new}
        found |= {p: parents[p][1] for p in new}
    return found


def strike(process, ranks, rng):
    """Kills a random process of a run, or asks it to stop; returns a description."""
    target, number = process.pid, rng.choice([KILL, KILL, TERM, INT, USR1])
    name = "it"
    if ranks[0] > 1:
        # Only SIGUSR1 reaches the ranks through mpiexec, which kills them on SIGTERM or SIGINT
        number = rng.choice([KILL, KILL, TERM, USR1])
        below = descendants(process.pid)
        of_python = [p for p, words in below.items() if str(PROGRAM) in words]
        if of_python and rng.random() < 0.6:
            target, name = rng.choice(of_python), "a rank"
        else:
            name = "mpiexec"
    os.kill(target, number)
    return f"{signal.Signals(number).name} to {name}"


def end_all(process):
    below = descendants(process.pid)
    for pid in [process.pid, *below]:
        try:
            os.kill(pid, KILL)
        except ProcessLookupError:
            pass
    process.wait()


def run_to_the_end(algorithm, folder, ranks, timeout=120):
    process = start(algorithm, folder, ranks)
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        end_all(process)
        raise
    assert status == 0, Path(f"{folder}.log").read_text()[-3000:]
    assert read_status(folder)["state"] == "finished"


def no_process_uses(folder):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in path.read_bytes().decode(errors="replace").split("\0"):
                return False
        except OSError:
            pass
    return True


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Function that returns the final state of an undisturbed run, and two times in seconds.

    The times are from its launch to the start of the training and to its end.
    """
    made = {}

    def get(algorithm, ranks):
        if (algorithm, ranks) not in made:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            began = time.monotonic()
            run_to_the_end(algorithm, folder, ranks)
            progress = (folder / "progress.txt").read_text().splitlines()
            training = float(progress[-1].split("\t")[progress[0].split("\t").index("Time")])
            end = time.monotonic() - began
            made[algorithm, ranks] = final_state(folder), end - training, end
        return made[algorithm, ranks]

    return get


def kill_and_resume(algorithm, ranks, kills, rng, folder, undisturbed):
    """Disturbs a run `kills` times; returns the disturbances and the steps where it continued."""
    expected, begin, end = undisturbed(algorithm, ranks)
    done = []
    for _ in range(kills):
        status = read_status(folder)
        left = 1 - (status.get("steps") or 0) / status.get("total_steps", 1)
        process = start(algorithm, folder, ranks)
        time.sleep(rng.uniform(0.8 * begin, begin + left * (end - begin)))
        if process.poll() is None:
            done.append(strike(process, ranks, rng))
        try:
            process.wait(100)
        except subprocess.TimeoutExpired:
            end_all(process)
            raise
        deadline = time.monotonic() + 60
        while not no_process_uses(folder):  # no rank survives
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.05)
    run_to_the_end(algorithm, folder, ranks)
    assert differences(expected, final_state(folder)) == []
    log = Path(f"{folder}.log").read_text()
    steps = [line.split()[3] for line in log.splitlines() if line.startswith("Continuing at step")]
    return done, steps


ONE, TWO, ACTOR_AND_LEARNER = (1, 1), (2, 1), (2, 2)


@pytest.mark.parametrize(
    "algorithm, ranks",
    [
        ("ppo", TWO),
        ("sac", ONE),
        ("td3", TWO),
        ("ppo", ACTOR_AND_LEARNER),
        ("sac", ACTOR_AND_LEARNER),
    ],
)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(algorithm, ranks, tmp_path, undisturbed):
    rng = random.Random(f"{algorithm}{ranks}")
    kill_and_resume(algorithm, ranks, 2, rng, tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills(tmp_path, undisturbed):
    rng, count, number = random.Random(), 0, 0
    cases = [(algorithm, ranks) for algorithm in EPOCHS for ranks in (ONE, TWO, ACTOR_AND_LEARNER)]
    while count < 50:
        algorithm, ranks = cases[number % len(cases)]
        folder = tmp_path / f"run{number}"
        done, steps = kill_and_resume(algorithm, ranks, 3, rng, folder, undisturbed)
        count, number = count + len(done), number + 1
        where = f"{ranks[0]} ranks, {ranks[1]} for each learner"
        print(f"{algorithm} on {where}: {', '.join(done)}; continued at {', '.join(steps)}: same")
    print(f"{count} kills, {number} runs, every one the same to the bit at its end")


# --- Ranks for which the others would wait ---

LEAVES = """
import os, signal, sys, threading, time
import gymnasium as gym
from spinup import ppo
from spinup.utils.mpi_tools import proc_id

class Leaves(gym.Wrapper):
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 1500 and proc_id() == {rank}:
            {how}
        return self.env.step(action)

ppo(lambda: Leaves(gym.make("CartPole-v1")), epochs=100, ac_kwargs=dict(hidden_sizes=(8,)),
    logger_kwargs=dict(output_dir={folder!r}))
print("THE END", flush=True)
"""


@pytest.mark.parametrize(
    "how, told",
    [
        ("sys.exit(0)", "Timeout (0:00:10)!"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "Timeout (0:00:10)!"),
        ("time.sleep(1000)", "Timeout (0:00:10)!"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "(signal 9)"),
        ("os._exit(3)", ""),
        ("raise ValueError('by test')", "Rank 1 of 2 failed:"),
        ("threading.Thread(target=lambda: 1 / 0).start(); time.sleep(1000)", "Rank 1 of 2 failed:"),
    ],
    ids=lambda x: x if "(" in x else "",
)
def test_a_rank_that_leaves_takes_the_others_with_it(how, told, tmp_path, run_on_ranks):
    code = LEAVES.format(how=how, folder=str(tmp_path / "run"), rank=1)
    env = {"SPINUP_HANG_SECONDS": "10"}
    result = run_on_ranks(2, code, env=env, check=False)
    assert result.returncode != 0
    assert "THE END" not in result.stdout
    assert told in result.stdout + result.stderr
    if told.startswith("Timeout"):
        assert "most recent call first" in result.stderr
    assert read_status(tmp_path / "run").get("state") != "finished"
    deadline = time.monotonic() + 60
    while not no_process_uses(tmp_path / "on_ranks_0.py"):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.1)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "how, told",
    [
        ("time.sleep(1000)", "Timeout (0:00:10)!"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "(signal 9)"),
        ("raise ValueError('by test')", "of 2 failed:"),
    ],
    ids=["hangs", "is killed", "raises"],
)
def test_learner_and_actor_end_together(how, told, rank, tmp_path, run_on_ranks):
    code = LEAVES.format(how=how, folder=str(tmp_path / "run"), rank=rank)
    env = {"SPINUP_HANG_SECONDS": "10", "SPINUP_RANKS_PER_LEARNER": "2"}
    result = run_on_ranks(2, code, env=env, check=False)
    assert result.returncode != 0
    assert "THE END" not in result.stdout
    assert told in result.stdout + result.stderr
    deadline = time.monotonic() + 60
    while not no_process_uses(tmp_path / "on_ranks_0.py"):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.1)


HANGS = """
import time
import gymnasium as gym

class Hangs(gym.Wrapper):
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == {at}:
            time.sleep(1000)
        return self.env.step(action)

gym.register("Hangs-v0", lambda: Hangs(gym.make("CartPole-v1").unwrapped))
"""


@pytest.mark.parametrize("ranks, at", [(1, 1), (2, 200)])
def test_an_environment_that_hangs(ranks, at, tmp_path, monkeypatch, capsys):
    (tmp_path / "hangs.py").write_text(HANGS.format(at=at))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SPINUP_HANG_SECONDS", "10")
    line = f"ppo --env hangs:Hangs-v0 --cpu {ranks} --data_dir {tmp_path} --exp_name x --hid [8]"
    assert spinup.cli.main.main(line.split()) == 1
    printed = capsys.readouterr().out
    who = "The run" if ranks == 1 else r"Rank \d"
    where = rf"{who} hangs in Hangs-v0 at step {at - 1} \(seed \d+, last action"
    error = f"no progress for 0:00:10: {where}"
    assert re.search(error, printed)
    status = read_status(tmp_path / "x/x_s0")
    assert status["state"] == "failed"
    assert re.match(error, status["error"])
    log = (tmp_path / "x/x_s0/log.txt").read_text()
    assert "hangs.py" in log[log.index("most recent call first") :]


def test_an_exit_status_of_zero_is_not_success(tmp_path, run_on_ranks):
    code = LEAVES.format(how="os._exit(0)", folder=str(tmp_path / "run"), rank=1)
    result = run_on_ranks(2, code, env={"SPINUP_HANG_SECONDS": "10"}, check=False)
    assert "THE END" not in result.stdout
    assert read_status(tmp_path / "run").get("state") != "finished"
