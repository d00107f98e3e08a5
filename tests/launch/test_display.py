import io
import time

import pytest
from rich.console import Console

from spinup.launch.display import (
    clock,
    count,
    epochs,
    facts,
    live_table,
    plural,
    score,
    short_path,
    shortened,
    time_left,
)

STATUS = {
    "epoch": 2,
    "epochs": 50,
    "steps": 12000,
    "total_steps": 200000,
    "return": 123.44,
    "steps_per_second": 2000.0,
}


def test_numbers_in_words():
    assert [clock(s) for s in (0, 59.6, 61, 3725, None)] == ["0:00", "1:00", "1:01", "1:02:05", ""]
    assert (count(12000.0), count(None), score(-1234.56), score(None)) == (
        "12,000",
        "",
        "-1,234.6",
        "",
    )
    assert (plural(1, "rank"), plural(0, "rank")) == ("1 rank", "0 ranks")


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert short_path(tmp_path / "here" / "data") == "data"
    assert short_path(tmp_path / "there") == str(tmp_path / "there")


def test_epochs_are_those_that_are_over():
    assert epochs(STATUS) == "3/50"
    assert epochs({**STATUS, "epoch": 3}) == "3/50"  # where they are numbered from 1
    assert epochs({"epoch": 7, "epochs": None}) == "7"
    assert epochs({}) == ""


def test_time_left():
    assert time_left(STATUS) == 94.0
    assert time_left({**STATUS, "updated": time.time() - 4}) == pytest.approx(90.0, abs=2)
    assert time_left({**STATUS, "updated": time.time() - 400}) == 0.0
    assert time_left({}) is None


def test_facts():
    assert facts(STATUS) == [
        "epoch 3/50",
        "12,000 steps",
        "return 123.4",
        "2,000 steps/s",
        "1:34 left",
    ]
    assert facts({}) == [""] * 5
    assert facts({**STATUS, "return": None})[2] == ""


def test_long_labels_lose_their_middle():
    assert shortened("demo_hid64-64_s10", 11) == "demo_…4_s10"
    assert shortened("demo_s10", 8) == "demo_s10"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (
            107,
            "demo_hid64-64_s10 ━━━━ epoch 3/50 12,000 steps return 123.4 2,000 steps/s 1:34 left",
        ),
        (83, "demo_hid64-64_s10 epoch 3/50 12,000 steps return 123.4 2,000 steps/s 1:34 left"),
        (69, "demo_hid64-64_s10 epoch 3/50 return 123.4 2,000 steps/s 1:34 left"),
        (54, "demo_hid64-64_s10 epoch 3/50 return 123.4 1:34 left"),
        (50, "demo_h…64_s10 epoch 3/50 return 123.4 1:34 left"),
    ],
)
def test_a_narrow_terminal_does_with_less(width, shown):
    out = io.StringIO()
    table = live_table([("demo_hid64-64_s10", 0.25, facts(STATUS))], width)
    Console(file=out, width=width, color_system=None).print(table)
    (line,) = out.getvalue().splitlines()
    assert " ".join(line.split()) == shown


def test_no_lines_are_an_empty_table():
    assert live_table([], 80).row_count == 0
