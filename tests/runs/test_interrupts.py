"""Signals are recorded, and a notebook continues after a run that was stopped."""

from __future__ import annotations

import importlib.util
import os
import signal
import time

import pytest

from spinup.runs import interrupts
from spinup.runs.folder import read_status
from spinup.runs.underway import current_run, run_under_way
from tests.resumable import train


def test_signals_are_as_before_after_a_run(tmp_path):
    before = [signal.getsignal(number) for number in interrupts._SIGNALS]
    train("ppo", tmp_path, epochs=1)
    assert [signal.getsignal(number) for number in interrupts._SIGNALS] == before


def test_a_second_ctrl_c_ends_at_once():
    stop = interrupts.StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        stop = interrupts.StopRequest()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_is_known_to_its_parts_and_to_no_other_thread():
    import threading

    seen = []
    with run_under_way() as run:
        assert current_run() is run
        thread = threading.Thread(target=lambda: seen.append(current_run()))
        thread.start()
        thread.join()
    assert seen == [None] and current_run() is None


CELLS = """
import os, signal
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_cell('''
import os, signal
import gymnasium as gym
from spinup import ppo

class Stops(gym.Wrapper):
    steps = 0

    def step(self, action):
        Stops.steps += 1
        if Stops.steps == 150:
            os.kill(os.getpid(), signal.{signal})
        return self.env.step(action)

settings = dict(steps_per_epoch=100, epochs=4, ac_kwargs=dict(hidden_sizes=(8,)))
before = signal.getsignal(signal.SIGINT)
''').raise_error()
call = "ac = ppo(lambda: Stops(gym.make('CartPole-v1')), **settings, logger_kwargs=dict("
stopped = shell.run_cell(call + "output_dir='run'))")
print("RAISED", type(stopped.error_in_exec).__name__, stopped.error_in_exec)
shell.run_cell("print('SIGNALS', signal.getsignal(signal.SIGINT) is before)")
resumed = shell.run_cell(call + "output_dir='run', resume=True)); print('GOT', type(ac).__name__)")
print("THEN", resumed.error_in_exec)
"""


@pytest.mark.skipif(importlib.util.find_spec("IPython") is None, reason="needs IPython")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_notebook_that_is_stopped_saves_and_can_go_on(name, tmp_path, run_python):
    env = {"IPYTHONDIR": str(tmp_path / "ipython")}
    result = run_python(["-c", CELLS.replace("{signal}", name)], env=env)
    assert result.returncode == 0, result.stderr
    printed = result.stdout
    assert "Saved at step 200; continue with the same command and --resume, or" in printed
    assert "RAISED KeyboardInterrupt stopped, and saved at step 200: continue with" in printed
    assert "To exit: use" not in printed + result.stderr
    assert "SIGNALS True" in printed
    assert "Continuing at step 200 of 400" in printed
    assert "GOT MLPActorCritic" in printed and "THEN None" in printed
    assert read_status(tmp_path / "run")["state"] == "finished"
