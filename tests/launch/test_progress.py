import time

import pytest

from spinup.launch.progress import epochs, progress, time_left

STATUS = {
    "epoch": 2,
    "epochs": 50,
    "steps": 12000,
    "total_steps": 200000,
    "return": 123.44,
    "steps_per_second": 2000.0,
}


def test_epochs_are_those_that_are_over():
    assert epochs(STATUS) == "3/50"
    assert epochs({**STATUS, "epoch": 3}) == "3/50"  # if epochs are numbered from 1
    assert epochs({"epoch": 7, "epochs": None}) == "7"
    assert epochs({}) == ""


def test_time_left():
    assert time_left(STATUS) == 94.0
    assert time_left({**STATUS, "updated": time.time() - 4}) == pytest.approx(90.0, abs=2)
    assert time_left({**STATUS, "updated": time.time() - 400}) == 0.0
    assert time_left({}) is None


def test_progress():
    assert progress(STATUS) == [
        "epoch 3/50",
        "12,000 steps",
        "return 123.4",
        "2,000 steps/s",
        "1:34 left",
    ]
    assert progress({}) == [""] * 5
    assert progress({**STATUS, "return": None})[2] == ""
