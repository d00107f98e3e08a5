import os
import subprocess
import sys
from pathlib import Path

import pytest

import spinup.cli.main
from spinup.launch.experiment import call_experiment
from tests.launch.grids import grid_of
from tests.thunks import fake


def finished_run(folder):
    folder.mkdir(parents=True)
    (folder / "progress.txt").write_text("Epoch\n0\n")


def test_folders_with_results_are_refused_and_unharmed(here):
    finished_run(here / "data" / "x" / "x_s1")
    message = r"^data/x/x_s1 already holds results: give --resume .* another --exp_name, or --dt"
    with pytest.raises(ValueError, match=message):
        grid_of("x", seed=[0, 1, 2]).run(fake)
    with pytest.raises(ValueError, match="already holds results"):
        call_experiment("x", fake, seed=1)
    assert os.listdir("data/x") == ["x_s1"]
    assert os.listdir("data/x/x_s1") == ["progress.txt"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_cpu=0), "num_cpu must be a positive integer or 'auto', not 0"),
        (dict(num_cpu=2.5), "num_cpu must be a positive integer or 'auto', not 2.5"),
        (dict(num_cpu="two"), "num_cpu must be a positive integer or 'auto', not 'two'"),
        (dict(jobs=0), "jobs must be a positive integer or .auto., not 0"),
        (dict(data_dir="file/x"), "Results can't go to file/x/x/x_s0: .*file is not a folder"),
        (dict(thunk="algo"), "There is nothing to run: expected a function, not None"),
    ],
)
def test_what_run_refuses(kwargs, message):
    Path("file").touch()
    with pytest.raises(ValueError, match=message):
        grid_of("x", epochs=1).run(**{"thunk": fake, **kwargs})
    assert not Path("data").exists()


def test_ranks_need_mpi(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="2 ranks need MPI, but mpi4py is not installed"):
        grid_of("x", epochs=1).run(fake, num_cpu=2)


def test_a_folder_in_use_is_refused_before_anything_is_written(here, capsys):
    words = "ppo --env CartPole-v1 --hid [8] --steps_per_epoch 100 --epochs 1".split()
    assert spinup.cli.main.main(words) == 0
    folder = here / "data/cmd_ppo/cmd_ppo_s0"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    holder = subprocess.Popen(
        [sys.executable, "-c", "from spinup.utils.logx import Logger; import time\n"
         f"logger = Logger({str(folder)!r}, resume=True); logger.begin(); time.sleep(600)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        holder.stdout.readline()
        before["status.json"] = (folder / "status.json").read_bytes()
        for flag in ("--overwrite", "--resume"):
            assert spinup.cli.main.main([*words, flag]) == 2
            assert "cmd_ppo_s0 is in use by a run that is under way" in capsys.readouterr().err
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.mark.parametrize(
    "given", [dict(activation="relu"), dict(activation="nn.ReLU", hidden_sizes=[8])]
)
def test_a_run_whose_networks_are_given_by_name_is_resumed_from_python(given, here):
    settings = dict(env_name="CartPole-v1", steps_per_epoch=100, ac_kwargs=given)
    for epochs in (1, 2):
        resume = epochs == 2
        folder = call_experiment("x", spinup.ppo, epochs=epochs, resume=resume, **settings)
    assert "Continuing at step 100 of 200" in Path(folder, "log.txt").read_text()
    with pytest.raises(ValueError, match=r"x_s0 can't be resumed: ac_kwargs is .*Tanh'"):
        settings["ac_kwargs"] = {**given, "activation": "tanh"}
        call_experiment("x", spinup.ppo, epochs=3, resume=True, **settings)


def test_a_run_is_resumed_from_the_command_line(here, capsys):
    words = "ppo --env CartPole-v1 --hid [8] --steps_per_epoch 100 --checkpoint_every 0".split()
    assert spinup.cli.main.main([*words, "--epochs", "2"]) == 0
    assert spinup.cli.main.main([*words, "--epochs", "2"]) == 2
    assert spinup.cli.main.main([*words, "--epochs", "2", "--resume"]) == 0
    assert "1 of 1 have finished already: there is nothing to run" in capsys.readouterr().out
    assert spinup.cli.main.main([*words, "--epochs", "4", "--resume"]) == 0
    folder = here / "data/cmd_ppo/cmd_ppo_s0"
    assert "Continuing at step 200 of 400" in (folder / "log.txt").read_text()
    assert len((folder / "progress.txt").read_text().splitlines()) == 5
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for change, told in [
        ("--epochs 4 --gamma 0.9", "gamma is 0.9, but the run to resume has 0.99"),
        ("--epochs 5 --gamma 0.9", "gamma is 0.9, but the run to resume has 0.99"),
        ("--epochs 4 --cpu 2 --oversubscribe", "num_cpu is 2, but the run to resume has 1"),
        ("--epochs 3", "epochs is 3, but the run to resume has 4: more are allowed"),
    ]:
        assert spinup.cli.main.main([*words, *change.split(), "--resume"]) == 2
        error = capsys.readouterr().err
        assert "cmd_ppo_s0 can't be resumed: " + told in error
        assert error.count("\n") == 1
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
