"""The writers of a log."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import spinup
from spinup.cli.main import main
from spinup.runs.folder import read_status
from spinup.utils import writers
from spinup.utils.logx import Logger
from spinup.utils.writers import WRITERS, Writer

PPO = dict(steps_per_epoch=100, ac_kwargs=dict(hidden_sizes=(8,)), train_pi_iters=5, pi_lr=0.1)

FAKE_WANDB = """
import json, pathlib

class Run:
    def __init__(self, **kwargs):
        self.id = kwargs.pop("id") or "id-1"
        self.file = pathlib.Path(kwargs["dir"], "wandb.json")
        kwargs["config"] = {key: kwargs["config"][key] for key in ("algorithm", "epochs")}
        self.write(init=kwargs, id=self.id)
    def write(self, **content):
        with open(self.file, "a") as file:
            file.write(json.dumps(content, default=str) + chr(10))
    def define_metric(self, name, step_metric):
        self.write(metric=name, by=step_metric)
    def log(self, row):
        self.write(row=row)
    def finish(self):
        self.write(finished=True)

def init(**kwargs):
    return Run(**kwargs)
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A fake Weights & Biases module, in this process and in its children."""
    package = tmp_path / "packages"
    package.mkdir()
    (package / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(package)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spinup.user_config.DEFAULT_DATA_DIR", str(tmp_path / "data"))
    yield
    sys.modules.pop("wandb", None)


def wandb_lines(folder):
    return [json.loads(line) for line in (folder / "wandb.json").read_text().splitlines()]


def test_weights_and_biases_gets_each_row_and_a_resumed_run_continues_its_own(wandb, tmp_path):
    folder = tmp_path / "run"
    settings = dict(output_dir=folder, exp_name="x", wandb="my project")
    for epochs, resume in ((2, False), (3, True)):
        kwargs = dict(PPO, epochs=epochs, checkpoint_every=0)
        spinup.ppo("CartPole-v1", **kwargs, logger_kwargs=dict(settings, resume=resume))
    lines = wandb_lines(folder)
    opened = [line for line in lines if "init" in line]
    assert [line["id"] for line in opened] == ["id-1", "id-1"]
    assert opened[0]["init"] == dict(
        project="my project",
        name="run",
        group="x",
        dir=str(folder),
        config=dict(algorithm="spinup.ppo", epochs=2),
        resume="allow",
    )
    assert [line["row"]["Epoch"] for line in lines if "row" in line] == [1, 2, 3]
    assert [line["row"]["TotalEnvInteracts"] for line in lines if "row" in line] == [100, 200, 300]
    assert {"metric": "*", "by": "TotalEnvInteracts"} in lines
    assert sum("finished" in line for line in lines) == 2


def test_the_command_line_logs_to_weights_and_biases(wandb, tmp_path):
    words = "ppo --env CartPole-v1 --steps_per_epoch 100 --epochs 1 --hid [8] --wandb mine"
    assert main(words.split()) == 0
    folder = tmp_path / "data/cmd_ppo/cmd_ppo_s0"
    assert wandb_lines(folder)[0]["init"]["project"] == "mine"
    assert '"wandb": "mine"' in (folder / "config.json").read_text()


def test_what_is_missing_or_meant_otherwise_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "\.\[wandb\]"'):
        Logger(output_dir="run", wandb="mine")
    monkeypatch.setitem(sys.modules, "wandb", type(sys)("wandb"))  # a folder of this name
    with pytest.raises(ModuleNotFoundError, match=r'pip install "\.\[wandb\]"'):
        Logger(output_dir="run", wandb="mine")
    with pytest.raises(ValueError, match="wandb must be the name of a project, not True"):
        Logger(output_dir="run", wandb=True)
    with pytest.raises(
        TypeError, match="'tensorbord' is unknown; available copies of the log: tensorboard"
    ):
        Logger(output_dir="run", tensorbord=True)
    assert not list(tmp_path.iterdir())


def test_a_new_place_is_one_class_and_one_line(tmp_path, monkeypatch):
    class Lines(Writer):
        def open(self, folder, config, exp_name):
            self.file = open(folder / self.setting, "w")  # noqa: SIM115

        def write(self, headers, row):
            self.file.write(",".join(str(row[key]) for key in headers) + "\n")

        def close(self):
            self.file.close()

    monkeypatch.setitem(WRITERS, "lines", Lines)
    kwargs = dict(output_dir=tmp_path, lines="rows.csv")
    spinup.ppo("CartPole-v1", **PPO, epochs=2, logger_kwargs=kwargs)
    assert [row[:2] for row in (tmp_path / "rows.csv").read_text().split()] == ["1,", "2,"]


@pytest.mark.parametrize("method", ["open", "write", "close"])
def test_a_copy_that_fails_is_left_out_and_the_run_goes_on(method, tmp_path, monkeypatch, capsys):
    class Fails(Writer):
        def write(self, headers, row):
            pass

    def fail(*args):
        raise RuntimeError("no network")

    setattr(Fails, method, fail)
    monkeypatch.setitem(WRITERS, "copy", Fails)
    spinup.ppo("CartPole-v1", **PPO, epochs=2, logger_kwargs=dict(output_dir=tmp_path, copy=True))
    warning = "Warning: copy failed and is switched off: RuntimeError: no network"
    assert capsys.readouterr().out.count(warning) == 1
    assert read_status(tmp_path)["state"] == "finished"
    assert len((tmp_path / "progress.txt").read_text().splitlines()) == 3


# --- The terminal ---


def test_an_algorithm_prints_one_line_an_epoch_and_tables_on_demand(tmp_path, capsys):
    for verbose in (None, True):
        kwargs = dict(output_dir=tmp_path / f"{verbose}", verbose=verbose)
        spinup.ppo("CartPole-v1", **PPO, epochs=2, logger_kwargs=kwargs)
        printed = capsys.readouterr().out
        lines = [line for line in printed.splitlines() if line.startswith("epoch ")]
        assert len(lines) == (0 if verbose else 2)
        assert printed.count("| TotalEnvInteracts |") == (2 if verbose else 0)
        assert printed.count("Early stopping at step") == (2 if verbose else 0)
        assert len(printed.splitlines()) > 30 if verbose else len(printed.splitlines()) == 5
        if not verbose:
            columns = lines[1].split()
            assert columns[:-1:2] == ["epoch", "return", "length", "steps", "time"]
            assert (columns[1], columns[columns.index("steps") + 1]) == ("2", "200")


@pytest.mark.parametrize(
    "row, line",
    [
        (dict(Epoch=1, AverageEpRet=0.0952, EpLen=7.5, TotalEnvInteracts=4000, Time=3.2),
         "epoch     1   return  0.0952   length     7.5   steps 4,000   time 3 s"),
        (dict(Epoch=20, AverageEpRet=1.0, AverageTestEpRet=-1234.5678, TestEpLen=1000.0, EpLen=2.0),
         "epoch    20   return   -1235   length    1000"),
        (dict(LossPi=1.0), ""),
    ],
)  # fmt: skip
def test_a_row_in_short(row, line):
    assert writers._line(row) == line


def test_a_command_keeps_tables_in_its_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "ppo --env CartPole-v1 --steps_per_epoch 100 --epochs 2 --hid [8] --data_dir data"
    assert main(words.split()) == 0
    log = (tmp_path / "data/cmd_ppo/cmd_ppo_s0/log.txt").read_text()
    assert log.count("| TotalEnvInteracts |") == 2


CODE = f"""
import spinup
spinup.ppo("CartPole-v1", **{PPO!r}, epochs=2, logger_kwargs=dict(output_dir="run"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "> /dev/full", "| true"])
def test_a_terminal_that_is_closed_or_full_ends_no_run(redirection, tmp_path, monkeypatch):
    if "/dev/full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    from tests.conftest import _clean_environment

    (tmp_path / "run.py").write_text(CODE)
    env = _clean_environment(dict(os.environ))
    subprocess.run(
        f"{sys.executable} run.py {redirection}", shell=True, cwd=tmp_path, env=env, check=False
    )
    assert read_status(tmp_path / "run")["state"] == "finished"
    rows = (tmp_path / "run/progress.txt").read_text().splitlines()
    assert len(rows) == 3 and all(row.count("\t") == rows[0].count("\t") for row in rows)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_the_command_line_without_a_terminal(tmp_path):
    from tests.conftest import _clean_environment

    words = "ppo --env CartPole-v1 --steps_per_epoch 100 --epochs 1 --hid [8] --data_dir data"
    env = _clean_environment(dict(os.environ))
    command = f"{sys.executable} -m spinup.run {words} >&- 2>err"
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, check=False)
    assert (done.returncode, (tmp_path / "err").read_text()) == (0, "")
    assert read_status(tmp_path / "data/cmd_ppo/cmd_ppo_s0")["state"] == "finished"
