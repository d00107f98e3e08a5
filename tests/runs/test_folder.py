"""Run folders: no results are lost, and an invalid status file hides no other run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import gymnasium as gym
import pytest
import torch

import spinup
from spinup.cli.main import main
from spinup.cli.status import state_of
from spinup.launch.experiment import call_experiment
from spinup.launch.processes import Experiment, Run
from spinup.runs import folder as run_folder
from spinup.runs.folder import RunFolder, State, check_exp_name, read_status
from spinup.runs.stage import Stage, note_end
from tests.algos.plain import OnPolicy
from tests.thunks import fake

PPO = dict(steps_per_epoch=100, epochs=1, ac_kwargs=dict(hidden_sizes=(8,)), train_pi_iters=2)


def content(folder):
    """Returns the content of all files in a folder, except for the empty lock file."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spinup.user_config.DEFAULT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run of PPO that the command line started."""
    data = tmp_path_factory.mktemp("made")
    words = "ppo --env CartPole-v1 --exp_name keep --steps_per_epoch 100 --epochs 1 --hid [8]"
    assert main([*words.split(), "--data_dir", str(data)]) == 0
    return data / "keep/keep_s0"


@pytest.fixture
def kept(made, here):
    """A copy of this run's folder."""
    folder = here / "data/keep/keep_s0"
    shutil.copytree(made, folder)
    assert {"log.txt", "experiment.json", "status.json", "config.json"} <= content(folder).keys()
    return folder


# --- Overwriting ----------------------------------------------------------------------------------


class Raises(gym.Wrapper):
    def reset(self, **kwargs):
        raise RuntimeError("no simulator here")


class Unbuilt(OnPolicy):
    def __init__(self, *args, **kwargs):
        raise RuntimeError("no such network")


class NotANumber(OnPolicy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            next(self.pi.parameters()).fill_(float("nan"))


BROKEN = {
    "first forward pass": (
        (ValueError, FloatingPointError),
        dict(actor_critic=NotANumber, ac_kwargs={}),
    ),
    "environment": ((ValueError, gym.error.Error), dict(env_fn="CartPoel-v1")),
    "function": (ZeroDivisionError, dict(env_fn=lambda: 1 / 0)),
    "spaces": (ValueError, dict(env_fn="Taxi-v3", algorithm="sac")),
    "networks": (RuntimeError, dict(actor_critic=Unbuilt)),
    "ac_kwargs": ((TypeError, ValueError), dict(ac_kwargs=dict(no_such=1))),
    "hyperparameter": (ValueError, dict(gamma=2)),
    "first reset": (RuntimeError, dict(env_fn=lambda: Raises(gym.make("CartPole-v1")))),
    "copy of the log": (TypeError, dict(logger_kwargs=dict(tensorbord=True))),
}


@pytest.mark.parametrize("name", BROKEN)
def test_overwrite_removes_nothing_before_the_new_run_works(name, kept):
    error, change = BROKEN[name]
    before = content(kept)
    settings = dict(PPO, env_fn="CartPole-v1") | change
    algorithm = settings.pop("algorithm", "ppo")
    if algorithm != "ppo":
        del settings["train_pi_iters"]
    logger_kwargs = dict(output_dir=kept, overwrite=True) | settings.pop("logger_kwargs", {})
    with pytest.raises(error):
        getattr(spinup, algorithm)(logger_kwargs=logger_kwargs, **settings)
    assert content(kept) == before
    # The same with a launcher, which also writes the call, the log and the status
    settings |= dict(thunk=getattr(spinup, algorithm), logger_kwargs=logger_kwargs)
    with pytest.raises(RuntimeError, match=r"log: data/keep/keep_s0/log\.failed\.txt"):
        call_experiment("keep", **settings)
    after = content(kept)
    assert "Traceback" in after.pop("log.failed.txt").decode()
    assert after == before
    spinup.ppo("CartPole-v1", **PPO, logger_kwargs=dict(output_dir=kept, overwrite=True))
    assert not {"log.txt", "log.failed.txt", "experiment.json"} & content(kept).keys()


def test_a_refused_run_leaves_no_folder(here, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(here / "temporary"))
    (here / "temporary").mkdir()
    for settings in ({}, dict(logger_kwargs=dict(output_dir="new"))):
        with pytest.raises((ValueError, gym.error.Error), match="CartPoel"):
            spinup.ppo("CartPoel-v1", **PPO, **settings)
    assert [path.name for path in here.iterdir()] == ["temporary"]
    assert not any((here / "temporary").iterdir())


def test_a_run_says_at_its_start_and_end_where_its_results_are(here, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(here))
    spinup.ppo("CartPole-v1", **PPO)
    (folder,) = here.glob("spinup-*")
    printed = capsys.readouterr().out.splitlines()
    assert f"Logging to {folder}" in printed
    assert printed[-1] == f"Results are in {folder}"


def test_a_run_that_fails_before_it_begins_leaves_its_log_in_a_new_folder(here):
    with pytest.raises(RuntimeError, match=r"log: data/x/x_s0/log\.txt"):
        call_experiment("x", spinup.ppo, env_name="CartPoel-v1", data_dir="data")
    assert content(here / "data/x/x_s0").keys() == {"log.txt", "status.json", "experiment.json"}
    status = read_status("data/x/x_s0")
    assert status["state"] == State.FAILED and "CartPoel" in status["error"]


# --- Resuming -------------------------------------------------------------------------------------


def test_another_algorithm_is_not_resumed_and_nothing_is_written(kept, here, capsys):
    before = content(kept)
    words = "--env CartPole-v1 --exp_name keep --steps_per_epoch 100 --hid [8] --resume --epochs"
    for epochs in (1, 2):
        settings = dict(steps_per_epoch=100, epochs=epochs, ac_kwargs=dict(hidden_sizes=[8]))
        with pytest.raises(ValueError, match=r"algorithm is 'spinup\.td3', but the run to"):
            call_experiment("keep", spinup.td3, env_name="CartPole-v1", resume=True, **settings)
        assert main(["ppo", *words.split(), str(epochs), "--gamma", "0.9"]) == 2
        assert "gamma is 0.9, but the run to resume has 0.99" in capsys.readouterr().err
        with pytest.raises(ValueError, match=r"thunk is 'tests\.thunks:fake', but the run to"):
            call_experiment("keep", fake, resume=True, epochs=epochs)
        with pytest.raises(ValueError, match=r"algorithm is 'spinup\.sac', but the run to"):
            spinup.sac("Pendulum-v1", logger_kwargs=dict(output_dir=kept, resume=True), **settings)
        assert content(kept) == before


def test_a_log_goes_on_where_its_run_does(kept):
    before = (kept / "log.txt").read_text()
    words = "ppo --env CartPole-v1 --exp_name keep --steps_per_epoch 100 --epochs 2 --hid [8]"
    assert main([*words.split(), "--resume"]) == 0
    log = (kept / "log.txt").read_text()
    assert log.startswith(before) and "Continuing at step 100 of 200" in log[len(before) :]


# --- Two at once ----------------------------------------------------------------------------------

WAITS = """
import sys, time, pathlib
import spinup, gymnasium as gym

class Waits(gym.Wrapper):
    def step(self, action):
        while pathlib.Path("hold").exists():
            time.sleep(0.01)
        return self.env.step(action)

def make():
    return Waits(gym.make("CartPole-v1"))
"""


def test_two_runs_started_at_once_have_a_log_each(here, monkeypatch):
    """The second run starts after the first has checked the folder, but before it has locked it."""
    (here / "waits.py").write_text(WAITS)
    monkeypatch.syspath_prepend(here)
    import waits

    (here / "hold").touch()
    kwargs = dict(env_fn=waits.make, logger_kwargs=dict(output_dir="x"), **PPO)
    runs = [Run(Experiment("x", spinup.ppo, kwargs)) for _ in range(2)]
    outcomes = [None, None]
    while all(outcome is None for outcome in outcomes):
        outcomes = [run.outcome() for run in runs]
        time.sleep(0.05)
    loser = 0 if outcomes[0] else 1
    assert outcomes[loser].state == State.FAILED
    assert "is in use by a run that is under way" in outcomes[loser].reason
    (here / "hold").unlink()
    while (outcome := runs[1 - loser].outcome()) is None:
        time.sleep(0.05)
    assert outcome.state == State.FINISHED
    log = (here / "x/log.txt").read_text()
    assert "Traceback" not in log and log.count("Logging to") == 1
    assert not list((here / "x").glob(".starting-*"))


def test_a_launcher_that_was_killed_leaves_nothing_for_ever(here):
    code = (
        "import os, signal; from spinup.runs.stage import Stage; "
        "Stage('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list((here / "x").glob(".starting-*"))) == 1
    assert read_status("x")["state"] == State.DIED
    under_way = Stage("x")  # another launcher's, which lives
    assert read_status("x")["state"] == State.STARTING
    spinup.ppo("CartPole-v1", **PPO, logger_kwargs=dict(output_dir="x"))
    assert list((here / "x").glob(".starting-*")) == [under_way.path]
    under_way.close(has_finished=False)
    assert read_status("x")["state"] == State.FINISHED


def test_a_run_has_begun_though_its_launchers_folder_is_there_still(here, monkeypatch):
    """As on NFS, which keeps a folder in which the launcher has a file open."""
    stage = Stage("x")
    (stage.path / "log.txt").write_text("printed")
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    run = RunFolder("x")
    assert stage.is_open and run.is_launched
    monkeypatch.setattr(run_folder.shutil, "rmtree", lambda *args, **kwargs: None)
    run.begin()
    run.note_row({"Epoch": 3, "AverageEpRet": 42.0})
    run.write_status(State.RUNNING)
    assert stage.path.exists() and not stage.is_open and not run.is_launched
    assert (stage.status()["state"], stage.status()["epoch"]) == (State.RUNNING, 3)
    run.close()
    note_end("x", State.FINISHED, None)
    assert (stage.status()["state"], stage.status()["return"]) == (State.FINISHED, 42)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert stage.close(has_finished=True).read_text() == "printed"
    assert read_status("x") == stage.status() and read_status("x")["epoch"] == 3
    assert not stage.path.exists()


@pytest.mark.parametrize("settings", [{}, dict(overwrite=True), dict(resume=True)])
def test_on_windows_no_file_is_moved_or_removed_while_it_is_open(settings, here, monkeypatch):
    monkeypatch.setattr("spinup.runs.files.ON_WINDOWS", True)
    (here / "x").mkdir()
    (here / "x/log.txt").write_text("before\n")
    if settings:
        (here / "x/progress.txt").write_text("Epoch\n1\n")
    stage = Stage("x", settings.get("resume", False))
    monkeypatch.setenv(*stage.environment.popitem())
    assert stage.log == here / "x/log.txt"
    with open(stage.log, "ab", buffering=0) as log:
        log.write(b"printed\n")
        run = RunFolder("x", **settings)
        run.begin()
        assert os.path.samestat(os.fstat(log.fileno()), os.stat("x/log.txt"))
        run.close()
    assert stage.close(has_finished=True) == here / "x/log.txt"
    assert (here / "x/log.txt").read_text() == "before\nprinted\n"
    assert (here / "x/progress.txt").exists() == ("resume" in settings)
    assert not stage.path.exists()


def test_on_windows_a_launched_run_has_its_log(here, monkeypatch):
    monkeypatch.setattr("spinup.runs.files.ON_WINDOWS", True)
    folder = call_experiment("x", fake, seed=3, data_dir="data")
    assert "seed 3 on None" in (here / folder / "log.txt").read_text()
    log = here / "data/y/y_s0/log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("before\n")
    with pytest.raises(RuntimeError, match=r"CartPoel.*log: data/y/y_s0/log\.txt"):
        call_experiment("y", spinup.ppo, env_name="CartPoel-v1", data_dir="data")
    assert log.read_text().startswith("before\n") and "Traceback" in log.read_text()


# --- Status ---------------------------------------------------------------------------------------

ODD = {
    "text": ("ü{", "can't be read"),
    "truncated": ('{"state": "fini', "can't be read"),
    "nothing": ("", "can't be read"),
    "list": ("[1]", "can't be read: ValueError: expected a JSON object, not a list"),
    "deep": ("[" * 100_000, "can't be read"),
    "digits": ('{"steps": ' + "9" * 5000 + "}", "can't be read"),
    "state": ('{"state": null}', "state is null"),
    "no state": ("{}", "state is missing"),
    "word": ('{"state": "ok"}', 'state is "ok"'),
    "return": ('{"state": "finished", "return": "x"}', 'return is "x"'),
    "list in return": ('{"state": "finished", "return": [1]}', r"return is \[1\]"),
    "infinite": ('{"state": "finished", "return": 1e999}', "return is Infinity"),
    "nan": ('{"state": "running", "steps_per_second": NaN}', "steps_per_second is NaN"),
    "huge": ('{"state": "running", "steps": 1' + "0" * 400 + "}", "steps is 1000"),
    "tiny": (
        '{"state": "running", "steps": 1, "total_steps": 1e17, "steps_per_second": 1e-300}',
        "steps_per_second is 1e-300",
    ),
    "negative": ('{"state": "running", "epoch": -1}', "epoch is -1"),
    "true": ('{"state": "running", "epochs": true}', "epochs is true"),
    "updated": ('{"state": "starting", "updated": "now"}', 'updated is "now"'),
    "error": ('{"state": "failed", "error": {"a": 1}}', "error is"),
    "job": ('{"state": "running", "slurm_job": 7}', "slurm_job is 7"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_status_is_a_row_that_says_so_and_hides_no_other(name, here, capsys):
    text, told = ODD[name]
    for folder in ("a", "b", "c"):
        (here / folder).mkdir()
        (here / folder / "status.json").write_text('{"state": "finished", "epoch": 3}')
    (here / "b/status.json").write_text(text)
    assert main(["status", "."]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["a", "finished", "3"] in rows and ["c", "finished", "3"] in rows
    (row,) = [row for row in rows if row[:1] == ["b"]]
    assert row[1] in list(State)
    (line,) = [line for line in printed.splitlines() if line.startswith("b: ")]
    assert re.search(told, line) and "status.json" in line


def test_a_status_does_not_write_to_the_terminal_what_it_should_not(here, capsys):
    (here / "b").mkdir()
    status = {"state": "failed", "error": "\x1b[2Jgone\n\ud800"}
    (here / "b/status.json").write_text(json.dumps(status))
    assert main(["status", "."]) == 0
    assert "b: ?[2Jgone??" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files on Windows")
def test_files_that_are_none_do_no_harm(here, capsys):
    (here / "a").mkdir()
    os.mkfifo(here / "a/status.json")
    (here / "b/status.json").mkdir(parents=True)
    assert main(["status", "."]) == 0
    assert state_of("a")["state"] == state_of("b")["state"] == State.UNKNOWN


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["--exp_name " + "a" * 300, "--exp_name a --cpu 1 --dt"])
def test_a_name_that_is_too_long_is_one_line(words, here, capsys):
    line = f"ppo --env CartPole-v1 --steps_per_epoch 100 --epochs 1 --hid [8] {words}"
    if "--dt" in words:
        assert main(line.split()) == 0
        return
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert "has 300 characters, but at most 200 are allowed: shorten it" in error
    assert error.count("\n") == 1
    assert not list(here.iterdir())


def test_a_name_of_the_greatest_length_works_with_date_and_seed(here):
    name = check_exp_name("a" * 200)
    folder = call_experiment(name, fake, seed=2**31, data_dir="data", datestamp=True)
    assert read_status(folder)["state"] == State.FINISHED


def test_a_path_that_is_too_long_is_refused_by_name():
    with pytest.raises(ValueError, match=r"output_dir has .* bytes: a path can have 4096"):
        RunFolder("/".join(["a" * 200] * 30))


def test_states_are_their_words():
    assert json.dumps({"state": State.RUNNING}) == '{"state": "running"}'
    assert f"{State.FAILED}" == "failed" and {"failed": 1}[State.FAILED] == 1
    assert set(run_folder.RESULTS) >= {"config.json", "progress.txt", "status.json", "log.txt"}
