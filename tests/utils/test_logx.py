import contextlib
import errno
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spinup.runs.files import write_json
from spinup.runs.folder import check_exp_name, check_unchanged, holds_results, read_status
from spinup.utils.logx import EpochLogger, Logger, colorize


def table(folder, name="progress.txt"):
    """Returns the header and the rows of a log, as text."""
    return [line.split("\t") for line in Path(folder, name).read_text().splitlines()]


@pytest.fixture
def logger(tmp_path):
    logger = EpochLogger(output_dir=tmp_path)
    yield logger
    logger.close()


# --- Names and colours ---


@pytest.mark.parametrize(
    "name", ["demo", "ppo-bench_hid32-32", "a.b+c=1", "0", "-x", "_", "A" * 99]
)
def test_names_that_are_fit_for_a_folder(name):
    assert check_exp_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "../../x",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "a\0",
        "~",
        "$HOME",
        "__import__('os').system('touch PWNED')",
        "naïve",
        None,
        3,
    ],
)
def test_names_that_are_not_are_refused(name):
    with pytest.raises(ValueError, match=r"exp_name .* can't be the name of a folder: use letters"):
        check_exp_name(name)


def test_colorize_as_spinning_up_does():
    assert colorize("text", "green") == "\x1b[32mtext\x1b[0m"
    assert colorize("text", "red", bold=True) == "\x1b[31;1mtext\x1b[0m"
    assert colorize("text", "red", bold=True, highlight=True) == "\x1b[41;1mtext\x1b[0m"


# --- The log ---


def test_columns_are_in_the_order_of_the_first_row(logger, tmp_path):
    for epoch in (1, 2):
        logger.store(EpRet=10.0 * epoch, EpLen=3, Loss=[1.0, 2.0])
        logger.store(EpRet=30.0 * epoch, EpLen=5)
        if epoch == 1:
            logger.log_tabular("Epoch", epoch)
            logger.log_tabular("EpRet", with_min_and_max=True)
            logger.log_tabular("EpLen", average_only=True)
            logger.log_tabular("Loss")
            logger.log_tabular("Time", 0.5)
        else:  # in any order after that
            logger.log_tabular("Loss")
            logger.log_tabular("EpLen", average_only=True)
            logger.log_tabular("EpRet", with_min_and_max=True)
            logger.log_tabular("Time", 1.5)
            logger.log_tabular("Epoch", epoch)
        logger.dump_tabular()
    assert table(tmp_path) == [
        "Epoch AverageEpRet StdEpRet MaxEpRet MinEpRet EpLen AverageLoss StdLoss Time".split(),
        "1 20.0 10.0 30.0 10.0 4.0 1.5 0.5 0.5".split(),
        "2 40.0 20.0 60.0 20.0 4.0 1.5 0.5 1.5".split(),
    ]


def test_a_row_is_in_the_file_at_once_and_printed(logger, tmp_path, capsys):
    logger.log_tabular("TotalEnvInteracts", 4000)
    logger.log_tabular("LossPi", -0.123456)
    logger.dump_tabular()
    assert len(table(tmp_path)) == 2
    assert capsys.readouterr().out.splitlines() == [
        f"Logging to {tmp_path}",
        "---------------------------------------",
        "| TotalEnvInteracts |           4e+03 |",
        "|            LossPi |          -0.123 |",
        "---------------------------------------",
    ]


def test_what_was_not_stored_is_nan_and_the_run_goes_on(logger, tmp_path):
    for value in (None, 2.0):
        if value is not None:
            logger.store(EpRet=value, Loss=value)
        logger.log_tabular("EpRet", with_min_and_max=True)
        logger.log_tabular("Loss", average_only=True)
        logger.dump_tabular()
    assert table(tmp_path)[1:] == [["nan"] * 5, ["2.0", "0.0", "2.0", "2.0", "2.0"]]
    assert read_status(tmp_path)["return"] == 2


def test_what_was_logged_is_forgotten_and_the_rest_is_kept(logger):
    logger.store(EpRet=1.0, EpLen=7.0)
    logger.log_tabular("EpRet")
    assert logger.get_stats("EpLen") == (7, 0)
    assert all(math.isnan(x) for x in logger.get_stats("EpRet"))


@pytest.mark.parametrize(
    "stored",
    [
        [1.0, 2, np.float32(6)],
        [np.array([1.0, 2.0]), np.array(6)],
        [[1.0], [[2.0], [6.0]]],
        [torch.tensor([1.0, 2.0]), torch.tensor(6.0)],
        [torch.tensor([[1], [2]]), torch.tensor(6)],
        [torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([6.0], dtype=torch.bfloat16)],
        [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(6.0)],
        [torch.tensor([1.0, 2.0]), 6.0],
        [6.0, torch.tensor([1.0, 2.0], requires_grad=True)],
    ],
    ids=["numbers", "arrays", "lists", "tensors", "int", "bfloat16", "grad", "mixed", "mixed too"],
)
def test_values_of_any_kind_are_stored(stored, logger):
    for value in stored:
        logger.store(X=value)
    assert logger.get_stats("X") == pytest.approx((3, math.sqrt(14 / 3)))


def test_what_is_stored_is_a_copy(logger):
    x = torch.ones(3, requires_grad=True)
    logger.store(X=(x * 2).sum())
    values = torch.arange(100.0)
    logger.store(X=values)
    values.zero_()
    assert logger.get_stats("X")[0] == pytest.approx((6 + 4950) / 101)


@pytest.mark.cuda
def test_tensors_on_a_gpu_are_stored(logger):
    logger.store(X=torch.tensor([1.0, 3.0], device="cuda"))
    logger.store(X=torch.tensor(5.0, device="cuda"))
    assert logger.get_stats("X")[0] == 3


def test_a_column_that_the_first_row_lacks_is_an_error(logger):
    logger.log_tabular("Epoch", 1)
    logger.dump_tabular()
    with pytest.raises(KeyError, match="column 'Extra' is not in the first row"):
        logger.log_tabular("Extra", 1)
    logger.log_tabular("Epoch", 2)


def test_a_column_set_twice_is_an_error(logger):
    logger.log_tabular("Epoch", 1)
    with pytest.raises(KeyError, match=r"column 'Epoch' is already set; call dump_tabular\(\)"):
        logger.log_tabular("Epoch", 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_loss_stops_the_run_naming_it(bad, logger):
    logger.store(LossPi=torch.tensor(1.0), LossV=2.0)
    logger.check_finite("LossPi", "LossV", "LossQ", where="Env-v0, epoch 1")
    logger.store(LossV=bad)
    logger.check_finite("LossPi", where="Env-v0, epoch 1")
    message = r"LossV is NaN or infinite \(1 values\) in Env-v0, epoch 1"
    with pytest.raises(FloatingPointError, match=message):
        logger.check_finite("LossPi", "LossV", where="Env-v0, epoch 1")


# --- The folder ---


def results(folder):
    """Makes a folder with all files of a run, and some files of the user."""
    (folder / "pyt_save").mkdir(parents=True)
    (folder / "pyt_save" / "model.safetensors").write_text("weights")
    (folder / "checkpoint").mkdir()
    for name in ("progress.txt", "config.json", "status.json", "notes.md", "log.txt"):
        (folder / name).write_text("old")
    (folder / "plots").mkdir()
    return folder


def test_a_folder_with_results_is_refused_and_left_alone(tmp_path):
    folder = results(tmp_path / "run")
    before = sorted(folder.rglob("*"))
    message = r"run holds the results of a run; .*--resume.*--overwrite \(from Python, resume=True"
    with pytest.raises(FileExistsError, match=message):
        Logger(output_dir=folder)
    assert sorted(folder.rglob("*")) == before
    assert (folder / "progress.txt").read_text() == "old"
    assert (folder / "status.json").read_text() == "old"


def test_overwrite_removes_what_a_run_writes_and_nothing_else(tmp_path):
    folder = results(tmp_path / "run")
    Logger(output_dir=folder, overwrite=True).close()
    assert {path.name for path in folder.iterdir()} == {
        "progress.txt",
        "status.json",
        "notes.md",
        "plots",
        ".lock",
    }
    assert (folder / "progress.txt").read_text() == ""
    assert (folder / "notes.md").read_text() == "old"


def test_overwrite_removes_a_link_and_not_where_it_leads(tmp_path):
    elsewhere = results(tmp_path / "elsewhere")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "pyt_save").symlink_to(elsewhere / "pyt_save")
    Logger(output_dir=folder, overwrite=True).close()
    assert not (folder / "pyt_save").exists()
    assert (elsewhere / "pyt_save" / "model.safetensors").read_text() == "weights"


@pytest.mark.parametrize("name", ["progress.txt", "pyt_save", "checkpoint"])
def test_a_log_or_a_saved_policy_are_results(name, tmp_path):
    assert not holds_results(tmp_path / "none")
    results(tmp_path / "all")
    assert holds_results(tmp_path / "all")
    (tmp_path / "one").mkdir()
    os.rename(tmp_path / "all" / name, tmp_path / "one" / name)
    assert holds_results(tmp_path / "one")


def test_a_run_that_never_logged_may_be_repeated(tmp_path):
    Logger(output_dir=tmp_path).close(ValueError("at once"))
    assert not holds_results(tmp_path)
    Logger(output_dir=tmp_path).close()


def test_without_a_folder_there_is_a_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = Logger(), Logger()
    assert first.output_dir != second.output_dir
    assert first.output_dir.parent == second.output_dir.parent == tmp_path
    first.close()
    second.close()


def test_folders_are_made_and_the_logs_name_may_be_another(tmp_path):
    logger = Logger(output_dir=str(tmp_path / "a" / "b"), output_fname="log.tsv")
    logger.log_tabular("Epoch", 1)
    logger.dump_tabular()
    logger.close()
    assert table(tmp_path / "a" / "b", "log.tsv") == [["Epoch"], ["1"]]


# --- Status ---


def test_status_says_running_then_finished(tmp_path):
    logger = EpochLogger(output_dir=tmp_path)
    logger.begin()
    assert read_status(tmp_path)["state"] == "running"
    logger.save_config(dict(epochs=50, steps_per_epoch=4000))
    logger.store(EpRet=17.0)
    logger.log_tabular("Epoch", 3)
    logger.log_tabular("EpRet")
    logger.log_tabular("TotalEnvInteracts", 12000)
    time.sleep(0.01)
    logger.dump_tabular()
    status = read_status(tmp_path)
    expected = {"epoch": 3, "epochs": 50, "steps": 12000, "total_steps": 200_000, "return": 17}
    assert status.items() >= ({"state": "running", "error": None} | expected).items()
    assert status["steps_per_second"] == pytest.approx(12000 / status["seconds"], rel=0.2)
    assert abs(status["updated"] - time.time()) < 60
    logger.close()
    assert (
        read_status(tmp_path).items() >= ({"state": "finished", "error": None} | expected).items()
    )
    logger.close()


def test_status_says_failed_and_why(tmp_path):
    logger = Logger(output_dir=tmp_path)
    logger.begin()
    logger.close(FloatingPointError("LossV is NaN\nin two lines"))
    status = read_status(tmp_path)
    assert (status["state"], status["error"]) == (
        "failed",
        "FloatingPointError: LossV is NaN in two lines",
    )


def test_test_returns_count_before_training_returns(tmp_path):
    logger = Logger(output_dir=tmp_path)
    logger.log_tabular("AverageEpRet", 1.0)
    logger.log_tabular("AverageTestEpRet", 2.0)
    logger.dump_tabular()
    logger.close()
    assert read_status(tmp_path)["return"] == 2


def test_a_return_that_is_nan_is_valid_json(tmp_path):
    logger = Logger(output_dir=tmp_path)
    logger.log_tabular("AverageEpRet", math.nan)
    logger.dump_tabular()
    logger.close()
    assert "NaN" not in (tmp_path / "status.json").read_text()
    assert read_status(tmp_path)["return"] is None


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\x00"])
def test_a_status_that_cannot_be_read_is_empty(text, tmp_path):
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path) == {}


def test_json_that_cannot_be_written_leaves_the_old(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, None]})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


# --- Configuration and weights ---


def test_config_is_all_that_is_needed_to_run_again(tmp_path):
    logger = Logger(output_dir=tmp_path, exp_name="demo")
    logger.save_config(dict(gamma=0.99, ac_kwargs=dict(activation=nn.Tanh, hidden_sizes=(64, 64))))
    logger.save_config(dict(env="CartPole-v1"))
    logger.close()
    config = json.loads((tmp_path / "config.json").read_text())
    versions = config.pop("versions")
    assert config == {
        "gamma": 0.99,
        "ac_kwargs": {"activation": config["ac_kwargs"]["activation"], "hidden_sizes": [64, 64]},
        "env": "CartPole-v1",
        "num_cpu": 1,
        "learners": [0],
        "exp_name": "demo",
    }
    assert config["ac_kwargs"]["activation"].endswith("Tanh")
    assert versions["torch"] == torch.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"spinup", "gymnasium", "numpy"} <= versions.keys()


def test_saved_weights_are_safetensors(logger, tmp_path):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net.append(net[0])  # tensors that share memory are saved, too
    net[0].weight.data = net[0].weight.data.t().contiguous().t()
    logger.setup_pytorch_saver(net)
    logger.save_state({}, None)
    kept = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        net[0].weight.add_(1)
    logger.save_state(itr=7)
    folder = tmp_path / "pyt_save"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model7.safetensors"}
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == kept.keys()
    for key, value in kept.items():
        assert torch.equal(saved[key], value)
    assert torch.equal(load_file(folder / "model7.safetensors")["0.weight"], net[0].weight)


def test_after_a_full_disk_no_number_gets_later_weights(logger, tmp_path, monkeypatch, capsys):
    def full(weights, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    net = nn.Linear(1, 1, bias=False)
    logger.setup_pytorch_saver(net)
    logger.begin()
    with monkeypatch.context() as patch:
        patch.setattr("spinup.utils.logx.save_file", full)
        for value, itr in ((1.0, 1), (2.0, None), (3.0, 3)):
            nn.init.constant_(net.weight, value)
            logger.save_state(itr=itr)
    assert (
        "Warning: model1.safetensors is not saved, as the disk is full" in capsys.readouterr().out
    )
    nn.init.constant_(net.weight, 4.0)  # training continues
    logger.save_state(itr=4)
    files = sorted((tmp_path / "pyt_save").iterdir())
    saved = {path.name: load_file(path)["weight"].item() for path in files}
    assert saved == {"model.safetensors": 2, "model3.safetensors": 3, "model4.safetensors": 4}


@pytest.mark.cuda
def test_weights_on_a_gpu_are_saved_as_on_a_cpu(logger, tmp_path):
    net = nn.Linear(2, 3).to("cuda")
    logger.setup_pytorch_saver(net)
    logger.save_state()
    saved = load_file(tmp_path / "pyt_save" / "model.safetensors")
    assert torch.equal(saved["weight"], net.weight.cpu())


# --- TensorBoard ---


def test_tensorboard_that_is_not_installed_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    Logger(output_dir=tmp_path / "a").close()
    with pytest.raises(ModuleNotFoundError, match=r'pip install "\.\[tensorboard\]"'):
        Logger(output_dir=tmp_path / "b", tensorboard=True)
    assert not holds_results(tmp_path / "b")


def test_tensorboard_gets_each_row_by_its_steps(tmp_path, monkeypatch):
    class Writer:
        def __init__(self, folder):
            self.folder, self.rows, self.closed = folder, [], False
            written.append(self)

        def add_scalar(self, key, value, step):
            self.rows.append((key, value, step))

        def close(self):
            self.closed = True

    written = []
    fake = type(sys)("tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    logger = Logger(output_dir=tmp_path, tensorboard=True)
    logger.log_tabular("EpRet", 3.0)
    logger.log_tabular("TotalEnvInteracts", 4000)
    logger.dump_tabular()
    logger.close()
    (writer,) = written
    assert writer.folder == tmp_path / "tensorboard"
    assert writer.rows == [("EpRet", 3.0, 4000), ("TotalEnvInteracts", 4000, 4000)]
    assert writer.closed


# --- Two ranks ---


def test_two_ranks_keep_one_log(run_on_ranks, tmp_path):
    result = run_on_ranks(
        2,
        """
        import os
        import torch
        from spinup.utils.logx import EpochLogger
        from spinup.utils.mpi_tools import proc_id

        rank = proc_id()
        logger = EpochLogger(output_dir="run")
        logger.save_config(dict(gamma=0.99))
        logger.setup_pytorch_saver(torch.nn.Linear(1, 1))
        for epoch in (1, 2):
            logger.log("one line")
            logger.store(EpRet=torch.tensor([1.0, 2.0, 6.0]) if rank == 0 else 11.0)
            if rank == 1:
                logger.store(Late=4.0)
            logger.log_tabular("Epoch", epoch)
            logger.log_tabular("EpRet", with_min_and_max=True)
            logger.log_tabular("Late", average_only=True)
            logger.log_tabular("Never")
            logger.dump_tabular()
        logger.save_state()
        logger.check_finite("Loss", where="Env-v0")
        logger.store(Loss=float("nan") if rank == 1 else 0.0)
        try:
            logger.check_finite("Loss", where="Env-v0")
        except FloatingPointError as error:
            open(f"caught{rank}", "w").write(str(error))
        assert (logger.output_dir is None) == (rank == 1)
        logger.close()
        """,
    )
    x = np.array([1, 2, 6, 11.0])
    row = [str(v) for v in (x.mean(), x.std(), x.max(), x.min(), 4.0)] + ["nan", "nan"]
    assert table(tmp_path / "run") == [
        "Epoch AverageEpRet StdEpRet MaxEpRet MinEpRet Late AverageNever StdNever".split(),
        ["1", *row],
        ["2", *row],
    ]
    assert result.stdout.count("one line") == 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["num_cpu"] == 2
    assert (tmp_path / "run" / "pyt_save" / "model.safetensors").exists()
    assert read_status(tmp_path / "run")["state"] == "finished"
    for rank in range(2):
        assert (
            "Loss is NaN or infinite (1 values) in Env-v0"
            in (tmp_path / f"caught{rank}").read_text()
        )


def test_a_rank_that_fails_says_so_in_the_status(run_on_ranks, tmp_path):
    result = run_on_ranks(
        2,
        """
        from spinup.utils.logx import EpochLogger
        from spinup.utils.mpi_tools import proc_id
        from spinup.utils.training import training_run


        @training_run
        def algorithm():
            logger = EpochLogger(output_dir="run")
            logger.begin()
            if proc_id() == 1:
                raise ValueError("no more")
            logger.get_stats("EpRet")


        algorithm()
        """,
        check=False,
    )
    assert result.returncode != 0
    assert "Rank 1 of 2 failed:" in result.stderr
    status = read_status(tmp_path / "run")
    assert (status["state"], status["error"]) == ("failed", "rank 1: ValueError: no more")


@pytest.mark.parametrize(
    "before, now, same",
    [({}, None, True), (None, {}, True), (0, None, False), (None, 0.0, False), ([8], (8,), True)],
)
def test_what_counts_as_unchanged(before, now, same):
    with contextlib.nullcontext() if same else pytest.raises(ValueError, match="x is"):
        check_unchanged(dict(x=before), dict(x=now))


def test_a_logger_alone_that_resumes_goes_on_with_the_file(tmp_path):
    for resume, epochs in ((False, (1, 2)), (True, (3,))):
        logger = Logger(output_dir=tmp_path, resume=resume)
        for epoch in epochs:
            logger.log_tabular("Epoch", epoch)
            logger.log_tabular("Loss", 0.5)
            logger.dump_tabular()
        logger.close()
    assert table(tmp_path) == [["Epoch", "Loss"], ["1", "0.5"], ["2", "0.5"], ["3", "0.5"]]
