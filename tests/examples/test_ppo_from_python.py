"""The example that is a Spinning Up script but for ``gymnasium``."""

import csv
import json

import pytest

TINY = ("--epochs", "2", "--steps", "200")


def read_progress(folder):
    with open(folder / "progress.txt") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_it_trains_and_leaves_a_run_folder(run_python, tmp_path):
    result = run_python(
        ["-m", "spinup.examples.ppo_from_python", *TINY, "--output_dir", "run"], cwd=tmp_path
    )

    assert result.returncode == 0, result.stderr
    assert [row["TotalEnvInteracts"] for row in read_progress(tmp_path / "run")] == ["200", "400"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["exp_name"] == "ppo_from_python"
    assert config["ac_kwargs"] == {
        "hidden_sizes": [64, 64],
        "activation": "torch.nn.modules.activation:ReLU",
    }
    assert (tmp_path / "run" / "pyt_save" / "model.safetensors").is_file()


@pytest.mark.mpi
def test_it_starts_itself_again_on_two_ranks(run_python, tmp_path):
    result = run_python(
        ["-m", "spinup.examples.ppo_from_python", *TINY, "--output_dir", "run", "--cpu", "2"],
        cwd=tmp_path,
    )

    assert result.returncode == 0, result.stderr
    assert len(read_progress(tmp_path / "run")) == 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["num_cpu"] == 2


def test_a_folder_that_holds_results_is_refused(run_python, tmp_path):
    args = ["-m", "spinup.examples.ppo_from_python", *TINY, "--output_dir", "run"]
    (tmp_path / "run" / "pyt_save").mkdir(parents=True)

    result = run_python(args, cwd=tmp_path)

    assert result.returncode != 0
    assert "holds the results of a run" in result.stderr
