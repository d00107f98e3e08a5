import textwrap

import pytest

from spinup.runs.watchdog import UNKNOWN_PLACE, Watchdog

SCRIPT = """
import sys, time
from spinup.runs.watchdog import Watchdog

watchdog = Watchdog({seconds})
{code}
print("THE END", flush=True)
"""


@pytest.fixture
def run(run_python, light):
    """Runs code with a watchdog that waits for some seconds."""

    def run(code, seconds=2.0):
        code = SCRIPT.format(code=textwrap.dedent(code), seconds=seconds)
        return run_python(["-c", code], env=light)

    return run


def test_it_is_off_until_it_is_to_guard():
    watchdog = Watchdog(5.0)
    watchdog.still_alive()
    assert not watchdog.is_on
    assert watchdog._thread is None
    watchdog.guard()
    assert watchdog.is_on
    never = Watchdog(0)
    never.guard()
    never.still_alive()
    assert not never.is_on
    assert never._thread is None


@pytest.mark.parametrize(
    "doing, place", [("lambda: 'step 3 of Env-v0'", "step 3 of Env-v0"), ("", UNKNOWN_PLACE)]
)
@pytest.mark.parametrize("guard, name", [("", "The run"), ("rank=3", "Rank 3")])
def test_a_process_that_hangs_says_where_and_ends(doing, place, guard, name, run):
    result = run(f"watchdog.guard({guard}); watchdog.still_alive({doing}); time.sleep(50)")
    assert result.returncode == 1
    assert "THE END" not in result.stdout
    assert f"{name} hangs in {place}\n" in result.stderr
    assert "Timeout (0:00:02" in result.stderr
    assert 'File "<string>"' in result.stderr  # the stack


def test_a_rank_stays_one_though_a_run_has_an_entry_point(run):
    code = "watchdog.guard(rank=1); watchdog.guard(); watchdog.still_alive(); time.sleep(50)"
    assert "Rank 1 hangs in" in run(code).stderr


@pytest.mark.parametrize("guard", ["", "rank=0"])
def test_a_process_that_makes_progress_lives_on(guard, run):
    code = f"watchdog.guard({guard})\nfor _ in range(60): watchdog.still_alive(); time.sleep(0.1)"
    result = run(code, seconds=4.0)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "THE END\n"
    assert "hangs" not in result.stderr


@pytest.mark.parametrize("guard", ["", "rank=0"])
@pytest.mark.parametrize("before", ["", "watchdog.still_alive(); watchdog.stop();"])
def test_a_process_with_nothing_under_way_lives_on(before, guard, run):
    result = run(f"watchdog.guard({guard}); {before} time.sleep(1.5)", seconds=0.5)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "THE END\n"
    assert "hangs" not in result.stderr


def test_after_a_stop_it_watches_again(run):
    code = "watchdog.guard(); watchdog.still_alive(); watchdog.stop(); time.sleep(1)\n"
    result = run(code + "watchdog.still_alive(); time.sleep(50)")
    assert result.returncode == 1
    assert "The run hangs in" in result.stderr


def test_the_time_in_which_a_lone_process_is_stopped_does_not_count(run):
    result = run(
        """
        import os, signal, subprocess
        watchdog.guard()
        watchdog.still_alive()
        wake = f"sleep 3; kill -CONT {os.getpid()}"
        subprocess.Popen(["sh", "-c", wake])
        os.kill(os.getpid(), signal.SIGSTOP)
        watchdog.still_alive()
        """,
        seconds=2.0,
    )
    assert result.returncode == 0, result.stderr
    assert "hangs" not in result.stderr
