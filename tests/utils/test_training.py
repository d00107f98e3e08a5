import contextlib

import pytest
import torch

from spinup.runs.folder import read_status
from spinup.runs.underway import current_run
from spinup.runs.watchdog import Watchdog
from spinup.utils import training
from spinup.utils.logx import Logger
from spinup.utils.training import training_run

# --- A run's beginning and end ---


@training_run
def algorithm(output_dir, ending=None):
    """Trains nothing."""
    assert torch.get_num_threads() == 1
    logger = Logger(output_dir=output_dir)
    logger.begin()
    assert read_status(output_dir)["state"] == "running"
    if ending is not None:
        raise ending
    return logger


def test_a_run_that_returns_has_finished(tmp_path):
    algorithm(tmp_path)
    assert read_status(tmp_path)["state"] == "finished"
    assert read_status(tmp_path)["error"] is None
    assert current_run() is None


@pytest.mark.parametrize(
    "ending, reason",
    [
        (FloatingPointError("NaN in X\nand more"), "FloatingPointError: NaN in X and more"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_a_run_that_raises_has_failed_and_says_why(ending, reason, tmp_path):
    with pytest.raises(type(ending)) as caught:
        algorithm(tmp_path, ending)
    assert caught.value is ending
    assert read_status(tmp_path)["state"] == "failed"
    assert read_status(tmp_path)["error"] == reason
    assert current_run() is None


def test_a_run_refused_before_its_logger_leaves_the_last_ones_status(tmp_path):
    algorithm(tmp_path)

    @training_run
    def refused():
        raise ValueError("no such hyperparameter")

    with pytest.raises(ValueError, match="no such"):
        refused()
    assert read_status(tmp_path)["state"] == "finished"


def test_the_caller_has_its_threads_and_its_denormals_back(tmp_path):
    denormal = torch.tensor([1e-40])
    torch.set_num_threads(2)
    try:
        algorithm(tmp_path / "a")
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError):
            algorithm(tmp_path / "b", ValueError())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert (denormal * 1).item() > 0


@pytest.mark.parametrize("ending", [None, ValueError()])
def test_a_run_is_watched_to_its_end(ending, tmp_path, monkeypatch):
    watchdog = Watchdog(1000.0)
    watchdog.guard()
    monkeypatch.setattr(training, "watchdog", watchdog)

    @training_run
    def watched():
        watchdog.still_alive()
        assert watchdog.is_armed
        if ending is not None:
            raise ending

    with pytest.raises(ValueError) if ending else contextlib.nullcontext():
        watched()
    assert not watchdog.is_armed


def test_the_algorithm_keeps_its_name_and_documentation():
    assert (algorithm.__name__, algorithm.__doc__) == ("algorithm", "Trains nothing.")
