import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from spinup.launch import processes as launch
from spinup.launch.processes import Experiment, LogFollower, Run, run_one, stop
from spinup.runs.folder import read_status
from tests.thunks import fake


def experiment(thunk=fake, **kwargs):
    return Experiment("x", thunk, {"logger_kwargs": {"output_dir": "data/x"}, **kwargs})


@pytest.mark.parametrize(
    ("exit_status", "log", "reason"),
    [
        (-9, "working\n", "killed by signal 9 (SIGKILL)"),
        (0, "working\n", "exit status 0 before the run had finished"),
        (1, "Traceback:\n  x\na.b.SomeError: why\nbye\n", "a.b.SomeError: why"),
        (3, "first\nlast\n\n", "exit status 3: last"),
        (3, "", "exit status 3: it printed nothing"),
        (
            9,
            f"go\n\n{'=' * 83}\n=   BAD TERMINATION OF ONE\n=   EXIT CODE: 9\n{'=' * 83}\n"
            "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n"
            "This typically refers to a problem with your application.\n"
            "Please see the FAQ page for debugging suggestions\n",
            "killed by signal 9 (SIGKILL)",
        ),
    ],
)
def test_explains_an_exit(exit_status, log, reason):
    assert launch.explain_exit(exit_status, log) == reason


# --- One run --------------------------------------------------------------------------------------


def test_a_log_is_handed_on_in_whole_lines(here, capsys):
    log = here / "log.txt"
    log.write_bytes(b"first\nhalf a li")
    follower = LogFollower(log)
    follower.relay()
    assert capsys.readouterr().out == "first\n"
    with open(log, "ab") as file:
        file.write("ne \u2026".encode()[:-1])
    follower.relay()
    assert capsys.readouterr().out == ""
    with open(log, "ab") as file:
        file.write("\u2026\nlast".encode()[2:])
    follower.relay()
    follower.close()
    assert capsys.readouterr().out == "half a line \u2026\nlast\n"


def test_an_earlier_success_is_not_taken_for_this_runs(here):
    (here / "data/x").mkdir(parents=True)
    (here / "data/x/status.json").write_text('{"state": "finished"}')
    outcome = run_one(experiment(ending="exit"))
    assert outcome.state == "failed"
    assert "before the run had finished" in outcome.reason


def test_the_grace_of_one_that_will_not_end_is_limited(here):
    def deaf(logger_kwargs):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(logger_kwargs["output_dir"], "ready").touch()
        time.sleep(600)

    run = Run(experiment(deaf))
    wait_until((here / "data/x/ready").exists)
    began = time.monotonic()
    stop([run], grace=0.5)
    assert time.monotonic() - began < 60
    assert run.process.returncode == -signal.SIGKILL
    status = read_status("data/x")
    assert status["state"] == "interrupted"
    assert status["error"] == "killed before it could save its state; start again with --resume"


def test_what_a_run_leaves_behind_is_ended(here):
    def parent(logger_kwargs):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(logger_kwargs["output_dir"], "child").write_text(str(child.pid))

    assert run_one(experiment(parent)).state == "finished"
    child = int((here / "data/x/child").read_text())
    wait_until(lambda: not is_alive(child))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ranks_take_as_many_slots_as_they_are(here):
    waiting = [Experiment("g", fake, {}, num_cpu=n) for n in (1, 2, 3, 9)]
    running = [SimpleNamespace(experiment=waiting[1])]
    assert [launch._fits(experiment, running, 4) for experiment in waiting] == [1, 1, 0, 0]
    assert all(
        launch._fits(experiment, [], 4) for experiment in waiting
    )  # alone, each of them may run


# --- Interruptions --------------------------------------------------------------------------------

LAUNCHER = """
from spinup.launch.grid import ExperimentGrid
from tests.thunks import fake

grid = ExperimentGrid("g")
grid.add("ending", "never")
grid.add("seed", [0, 1, 2])
grid.run(fake, num_cpu={num_cpu}, jobs=2 * {num_cpu}, data_dir={data_dir!r})
"""


def processes_of(folder):
    """Returns the processes whose command line names something below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, ValueError):
            continue
        if str(folder) in words and "experiment.json" in words:
            found.append(int(entry.name))
    return found


def wait_until(condition, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def launcher(here):
    """Starts a process with a grid of runs that never end; returns it when two of them run."""
    started = []

    def start(num_cpu):
        script = here / "grid.py"
        script.write_text(LAUNCHER.format(num_cpu=num_cpu, data_dir=str(here / "data")))
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with open(here / "printed.txt", "w") as printed:
            process = subprocess.Popen(
                [sys.executable, script], env=env, stdout=printed, stderr=subprocess.STDOUT
            )
        started.append(process)
        wait_until(lambda: len(list(here.glob("data/g/*/progress.txt"))) == 2)
        assert len(processes_of(here)) >= 2 * num_cpu
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_ctrl_c_leaves_no_process_behind(launcher, here):
    process = launcher(num_cpu=2)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "Stopping" in (here / "printed.txt").read_text())
    time.sleep(1)
    process.send_signal(signal.SIGINT)  # the runs ignore the first signal
    process.wait(100)
    printed = (here / "printed.txt").read_text()
    assert "Stopping g_s0, g_s1: waiting until the state is saved, for at most 60 s" in printed
    assert "1 variant had not started" in printed
    assert process.returncode != 0
    assert processes_of(here) == []
    for seed in (0, 1):
        status = read_status(here / f"data/g/g_s{seed}")
        assert status["state"] == "interrupted"
        assert "killed before it could save its state" in printed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can do it")
@pytest.mark.parametrize("num_cpu", [1, 2])
def test_a_launcher_that_is_killed_leaves_no_process_behind(launcher, here, num_cpu):
    process = launcher(num_cpu)
    process.kill()
    process.wait()
    wait_until(lambda: processes_of(here) == [])
