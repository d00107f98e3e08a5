import json
import os
import re
import stat
from pathlib import Path

import pytest
import torch

from spinup import user_config
from spinup.launch.experiment import call_experiment, setup_logger_kwargs
from spinup.runs.folder import read_status
from tests.thunks import fake, note

# --- Folders --------------------------------------------------------------------------------------


def test_folders_without_datestamp():
    assert setup_logger_kwargs("demo", data_dir="d") == {
        "output_dir": os.path.join("d", "demo"),
        "exp_name": "demo",
    }
    assert setup_logger_kwargs("demo", 10, "d", overwrite=True) == {
        "output_dir": os.path.join("d", "demo", "demo_s10"),
        "exp_name": "demo",
        "overwrite": True,
    }
    assert setup_logger_kwargs("demo", 0)["output_dir"] == os.path.abspath("data/demo/demo_s0")


@pytest.mark.parametrize("forced", [False, True])
def test_folders_with_datestamp(monkeypatch, forced):
    monkeypatch.setattr(user_config, "FORCE_DATESTAMP", forced)
    day, second = r"\d{4}-\d\d-\d\d_", r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-"
    alone = setup_logger_kwargs("demo", data_dir="d", datestamp=not forced)
    seeded = setup_logger_kwargs("demo", 3, data_dir="d", datestamp=not forced)
    assert re.fullmatch(f"d/{day}demo", alone["output_dir"])
    assert re.fullmatch(f"d/{day}demo/{second}demo_s3", seeded["output_dir"])


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", ".hidden", "x;y", "$(touch PWNED)"])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(ValueError, match="can't be the name of a folder"):
        setup_logger_kwargs(name)


# --- One experiment -------------------------------------------------------------------------------


def test_call_experiment_relays_and_keeps_the_output(here, capsys):
    kwargs = dict(env_name="CartPole-v1", ac_kwargs={"hidden_sizes": (8,), "act": torch.nn.Tanh})
    folder = Path(call_experiment("demo", fake, seed=3, **kwargs))
    printed = capsys.readouterr().out
    log = (folder / "log.txt").read_text()
    assert folder == here / "data" / "demo" / "demo_s3"
    assert "seed 3 on CartPole-v1\n" in log
    assert log in printed
    assert "python -m spinup.run plot data/demo/demo_s3/\n" in printed
    assert "python -m spinup.run test_policy data/demo/demo_s3" in printed
    assert read_status(folder)["state"] == "finished"
    spec = folder / "experiment.json"
    assert stat.S_IMODE(spec.stat().st_mode) == 0o600
    assert json.loads(spec.read_text()) == {
        "thunk": "tests.thunks:fake",
        "num_cpu": 1,
        "kwargs": {
            "env_name": "CartPole-v1",
            "ac_kwargs": {
                "hidden_sizes": {"__tuple__": [8]},
                "act": {"__torch.nn__": "Tanh"},
            },
            "seed": 3,
            "logger_kwargs": {"output_dir": str(folder), "exp_name": "demo"},
        },
    }


def test_what_has_no_name_travels_privately(here):
    shift = 40

    def thunk(seed, logger_kwargs, env_fn):
        Path(logger_kwargs["output_dir"], "result").write_text(str(env_fn() + shift))
        modes = [oct(p.stat().st_mode)[-3:] for p in here.glob("tmp/spinup-*.pkl")]
        Path(logger_kwargs["output_dir"], "modes").write_text(" ".join(modes))

    folder = Path(call_experiment("demo", thunk, env_fn=lambda: 2))
    assert (folder / "result").read_text() == "42"
    assert (folder / "modes").read_text() == "600"
    assert read_status(folder)["state"] == "finished"
    assert sorted(os.listdir(folder)) == ["log.txt", "modes", "result", "status.json"]
    assert os.listdir(here / "tmp") == []


def test_env_kwargs_make_a_function_and_types_are_kept(here):
    call_experiment("demo", note, num_cpu=2, env_name="CartPole-v1", env_kwargs={"a": 1}, t=(1, 2))
    called = [json.loads((here / f"data/demo/demo_s0/rank{r}.json").read_text()) for r in (0, 1)]
    assert [c["ranks"] for c in called] == [2, 2]
    assert called[0]["types"] == {"t": "tuple", "env_fn": "partial"}
    assert "'CartPole-v1', a=1)" in called[0]["kwargs"]


def test_a_failure_says_what_why_and_where(here, capsys):
    message = (
        r"Experiment demo_s0 failed: ValueError: the reward.* \(log: data/demo/demo_s0/log\.txt\)"
    )
    with pytest.raises(RuntimeError, match=message):
        call_experiment("demo", fake, ending="raise")
    assert "Traceback" in capsys.readouterr().out
    assert read_status("data/demo/demo_s0")["state"] == "failed"


def test_a_failure_on_another_rank_ends_all():
    with pytest.raises(RuntimeError, match="demo_s0 failed: rank 1: ValueError: not here"):
        call_experiment("demo", fake, num_cpu=2, ending="raise on rank 1")


def test_a_failure_in_a_world_ends_it(run_on_ranks, here):
    code = """
        from spinup.launch.experiment import call_experiment
        from tests.thunks import fake

        call_experiment("one", fake, data_dir="data", ending="raise on rank 1")
    """
    result = run_on_ranks(2, code, check=False)
    assert result.returncode != 0
    assert "ValueError: not here" in result.stderr
    assert read_status("data/one/one_s0")["error"] == "rank 1: ValueError: not here"
