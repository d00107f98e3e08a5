import io

import pytest
from rich.console import Console

from spinup.launch.display import live_table, shortened
from spinup.launch.progress import progress

STATUS = {
    "epoch": 2,
    "epochs": 50,
    "steps": 12000,
    "total_steps": 200000,
    "return": 123.44,
    "steps_per_second": 2000.0,
}


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
    table = live_table([("demo_hid64-64_s10", 0.25, progress(STATUS))], width)
    Console(file=out, width=width, color_system=None).print(table)
    (line,) = out.getvalue().splitlines()
    assert " ".join(line.split()) == shown


def test_no_lines_are_an_empty_table():
    assert live_table([], 80).row_count == 0
