import contextlib
import math
import re

import numpy as np
import pytest
import torch

from spinup.runs.watchdog import Watchdog
from spinup.utils import training
from spinup.utils.logx import Logger, read_status
from spinup.utils.training import check_hyperparameters, training_run

# --- A run's beginning and end ---


@training_run
def algorithm(output_dir, ending=None):
    """Trains nothing."""
    assert torch.get_num_threads() == 1
    logger = Logger(output_dir=output_dir)
    assert read_status(output_dir)["state"] == "running"
    if ending is not None:
        raise ending
    return logger


def test_a_run_that_returns_has_finished(tmp_path):
    logger = algorithm(tmp_path)
    assert read_status(tmp_path)["state"] == "finished"
    assert read_status(tmp_path)["error"] is None
    assert logger.output_file.closed
    assert Logger.current is None


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
    assert Logger.current is None


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


# --- Hyperparameters ---


GOOD = dict(
    seed=0,
    epochs=1,
    steps_per_epoch=4000,
    replay_size=10**6,
    gamma=1,
    lam=0.0,
    polyak=0.995,
    pi_lr=3e-4,
    lr=0,
    clip_ratio=0.2,
    target_kl=math.inf,  # never stops early
    act_noise=0,
    train_v_iters=0,
    start_steps=0,
    num_test_episodes=0,
    policy_delay=1,
    save_freq=1,
    max_ep_len=1,
    batch_size=1,
)


def test_hyperparameters_that_can_be_meant_pass():
    check_hyperparameters(GOOD)
    check_hyperparameters(dict(GOOD, seed=2**32 - 1, unknown="left alone"))
    check_hyperparameters({})


SEED = r"a whole number in \[0, 4294967295\]"
COUNT, COUNT_OR_NONE = "a whole number of at least 1", "a whole number of at least 0"
FRACTION, POSITIVE = r"a number in \[0, 1\]", "a number of at least 0"
SHARE = r"a whole number of at least 1 \(one a rank, of 1 ranks\)"


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("seed", -1, SEED),
        ("seed", 2**32, SEED),
        ("seed", None, SEED),
        ("epochs", 0, COUNT),
        ("epochs", 1.5, COUNT),
        ("epochs", math.inf, COUNT),
        ("epochs", math.nan, COUNT),
        ("epochs", "50", COUNT),
        ("epochs", True, COUNT),
        ("epochs", [50], COUNT),
        ("steps_per_epoch", 0, SHARE),
        ("batch_size", 0, SHARE),
        ("replay_size", 0, SHARE),
        ("replay_size", 10.5, SHARE),
        ("policy_delay", 0, COUNT),
        ("save_freq", 0, COUNT),
        ("max_ep_len", 0, COUNT),
        ("update_every", 0, COUNT),
        ("train_pi_iters", -1, COUNT_OR_NONE),
        ("train_v_iters", 0.5, COUNT_OR_NONE),
        ("start_steps", -1, COUNT_OR_NONE),
        ("update_after", -1, COUNT_OR_NONE),
        ("num_test_episodes", -1, COUNT_OR_NONE),
        ("gamma", 1.01, FRACTION),
        ("gamma", math.nan, FRACTION),
        ("lam", -0.1, FRACTION),
        ("polyak", 2, FRACTION),
        ("pi_lr", -1e-3, POSITIVE),
        ("vf_lr", math.nan, POSITIVE),
        ("q_lr", None, POSITIVE),
        ("lr", "fast", POSITIVE),
        ("clip_ratio", -0.2, POSITIVE),
        ("target_kl", -1, POSITIVE),
        ("act_noise", -1, POSITIVE),
        ("target_noise", -1, POSITIVE),
        ("noise_clip", -1, POSITIVE),
    ],
)
def test_hyperparameters_that_cannot_be_meant_are_refused(name, value, expected):
    message = f"^{name} must be {expected}, not {re.escape(repr(value))}$"
    with pytest.raises(ValueError, match=message):
        check_hyperparameters(GOOD | {name: value})


@pytest.mark.parametrize("value", [1e6, np.int64(10**6), np.float32(10**6)])
def test_whole_numbers_of_other_types_become_ints(value):
    @training_run
    def checked(replay_size, gamma=0.99):
        check_hyperparameters(dict(replay_size=replay_size, gamma=gamma))
        return replay_size, gamma

    replay_size, gamma = checked(replay_size=value, gamma=1.0)
    assert (replay_size, type(replay_size)) == (10**6, int)
    assert type(gamma) is float
    with pytest.raises(ValueError, match="replay_size must be a whole number"):
        checked(replay_size=value + 0.5)
    with pytest.raises(ValueError, match="replay_size must be a whole number"):
        checked(replay_size=True)


def test_each_rank_needs_a_step_and_a_sample(monkeypatch):
    monkeypatch.setattr(training, "num_procs", lambda: 4)
    check_hyperparameters(dict(steps_per_epoch=4, batch_size=4, replay_size=4, epochs=1))
    for name in ("steps_per_epoch", "batch_size", "replay_size"):
        message = rf"{name} must be .* of at least 4 \(one a rank, of 4 ranks\), not 3"
        with pytest.raises(ValueError, match=message):
            check_hyperparameters({name: 3})
        check_hyperparameters({name: 3}, num_ranks=3)  # of a world that isn't there yet
        with pytest.raises(ValueError, match="of 5 ranks"):
            check_hyperparameters({name: 4}, num_ranks=5)
