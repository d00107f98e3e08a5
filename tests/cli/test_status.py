import json
import subprocess
import sys
import time

import pytest

from spinup.cli.main import main
from spinup.cli.status import find, state_of
from spinup.launch.checks import has_finished
from spinup.launch.processes import Experiment
from spinup.utils.logx import Logger


def make(folder, **status):
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps(status))


def test_every_run_below_a_folder_is_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    done = dict(epoch=3, epochs=3, steps=1200, total_steps=1200, steps_per_second=321.4, error=None)
    done["return"] = 12.34
    make(tmp_path / "data/a/a_s0", state="finished", **done)
    make(tmp_path / "data/a/a_s1", state="failed", error="ValueError: why", epoch=1, epochs=3)
    make(tmp_path / "data/b", state="interrupted", error="Interrupted: SIGTERM; saved at step 7")
    (tmp_path / "data/c").mkdir()
    (tmp_path / "data/c/status.json").write_text("{torn")
    assert main(["status", "data"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == "run state epochs steps return steps/s left"
    assert "data/a/a_s0 finished 3/3 1,200 12.3 321" in rows
    assert any(row.startswith("data/a/a_s1 failed 1") for row in rows)
    assert any(row.startswith("data/b interrupted") for row in rows)
    assert any(row.startswith("data/c unknown") for row in rows)
    assert "data/a/a_s1: ValueError: why" in rows
    assert main(["status"]) == 0  # data by default


def test_who_writes_is_running_and_who_was_killed_has_died(tmp_path):
    code = f"""
import time
from spinup.utils.logx import Logger
Logger(output_dir={str(tmp_path / "run")!r}).begin()
print("ready", flush=True)
time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    while "ready" not in process.stdout.readline():
        assert process.poll() is None
    assert state_of(tmp_path / "run")["state"] == "running"
    process.kill()
    process.wait()
    process.stdout.close()
    status = state_of(tmp_path / "run")
    assert (status["state"], "--resume" in status["error"]) == ("died", True)


def kill_a_launcher(folder):
    """Leaves what a launcher leaves that is killed before its run begins; returns its status."""
    code = f"import os; from spinup.runs.stage import Stage; Stage({str(folder)!r}); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    return next(folder.glob(".starting-*/status.json"))


def test_a_run_whose_launcher_was_killed_before_it_began_has_died(tmp_path):
    kill_a_launcher(tmp_path / "run")
    (folder,) = find([str(tmp_path)])
    status = state_of(folder)
    assert status["state"] == "died"
    assert status["error"] == "it was killed: start again with --resume"


@pytest.mark.parametrize("age", [0, 1e6])
def test_a_launcher_that_was_killed_hides_no_results(age, tmp_path):
    logger = Logger(output_dir=tmp_path / "run")
    logger.log_tabular("Epoch", 3)
    logger.dump_tabular()
    logger.close()
    left = kill_a_launcher(tmp_path / "run")
    left.write_text(json.dumps({"state": "starting", "updated": time.time() + 1 - age}))
    status = state_of(tmp_path / "run")
    assert (status["state"], status["epoch"]) == ("finished", 3)
    kwargs = dict(logger_kwargs=dict(output_dir=tmp_path / "run"))
    assert has_finished(Experiment("run", print, kwargs))  # a grid's --resume skips it


def test_looking_disturbs_no_run(tmp_path):
    logger = Logger(output_dir=tmp_path / "run")
    logger.begin()
    assert state_of(tmp_path / "run")["state"] == "running"
    logger.close()
    assert state_of(tmp_path / "run")["state"] == "finished"
    Logger(output_dir=tmp_path / "run").close()


@pytest.mark.parametrize(
    "folder, message", [("none", "there is no folder 'none'"), (".", "no run")]
)
def test_where_nothing_is(folder, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status", folder]) == 2
    assert message in capsys.readouterr().err
