"""Experiments as processes: starts them, follows them, stops them, and determines how they ended.

Each experiment runs in its own session, so that Ctrl-C reaches only the launcher, which then ends
all experiments in an orderly way. It is also tethered to the launcher, so that it can't outlive it.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spinup.launch import tether
from spinup.launch.mpiexec import launch_command
from spinup.launch.spec import write_spec
from spinup.runs.folder import LOG, State, holds_results, remedy
from spinup.runs.stage import Stage
from spinup.runs.watchdog import UNKNOWN_PLACE

# Arguments of the Python executable, before the spec to run.
ENTRYPOINT = ("-m", "spinup.launch.entrypoint")

# Seconds between asking runs to save their state and killing them.
GRACE_SECONDS = 60.0
POLL_SECONDS = 0.05

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has only the latter

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ERROR_LINE = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b.*")
MPIEXEC_BANNER = re.compile(r"^(=+$|=   |YOUR APPLICATION|This typically|Please see the FAQ)")
HANGS = re.compile(r"(Rank \d+|The run) hangs in ")
STUCK = re.compile(r"Timeout \((\d+:\d\d:\d\d)\S*\)!")
MPIEXEC_SIGNAL = re.compile(r"EXIT STRING: .*\(signal (\d+)\)")


@dataclass
class Experiment:
    """A call of a function, and the folder of its results.

    Attributes:
        name: name of the experiment, which all its seeds share.
        thunk: the function.
        kwargs: its keyword arguments, including ``logger_kwargs`` with ``output_dir``.
        num_cpu: number of MPI ranks.
    """

    name: str
    thunk: Callable
    kwargs: dict[str, Any]
    num_cpu: int = 1

    @property
    def folder(self) -> Path:
        return Path(self.kwargs["logger_kwargs"]["output_dir"])

    @property
    def label(self) -> str:
        """The name of its folder, which also contains the seed."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """The file with its printed output, after it has begun."""
        return self.folder / LOG

    @property
    def resumes(self) -> bool:
        """True if it continues the run in its folder."""
        return bool(self.kwargs.get("logger_kwargs", {}).get("resume"))


@dataclass
class Outcome:
    """How an experiment ended.

    Attributes:
        experiment: the experiment.
        state: finished, interrupted, or failed.
        reason: the error in one line; empty if it finished.
        seconds: wall-clock time.
        status: last status.
        log: the file with its printed output.
    """

    experiment: Experiment
    state: State
    reason: str = ""
    seconds: float = 0.0
    status: dict = field(default_factory=dict)
    log: Path = None  # type: ignore[assignment]

    def __post_init__(self):
        self.log = self.log or self.experiment.log


class Run:
    """An experiment that has been started.

    Args:
        experiment: the experiment. Its folder is made if it doesn't exist.
        holds_sigterm: block SIGTERM for ``mpiexec``; only its ranks react to it.
        gpus: the GPUs that it may use, by their names in CUDA_VISIBLE_DEVICES; all GPUs if empty.

    Raises:
        OSError: the folder can't be made, or the process can't be started.
    """

    def __init__(
        self, experiment: Experiment, holds_sigterm: bool = False, gpus: Sequence[str] = ()
    ):
        self.experiment = experiment
        self.gpus = gpus
        self.began = time.monotonic()
        self._late: str | None = None
        self._private = None
        self._stage = Stage(experiment.folder, experiment.resumes)
        self.log = self._stage.log
        try:
            self._private, spec = write_spec(
                experiment.thunk, experiment.kwargs, experiment.num_cpu, self._stage.path
            )
            with open(self.log, "ab") as log:
                self.log_begins = log.tell()
                env = self._stage.environment
                self.process = _spawn(experiment.num_cpu, spec, log, holds_sigterm, gpus, env)
        except BaseException:
            self._forget_private()
            self._stage.close(has_finished=False)
            raise

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def status(self) -> dict:
        """Returns the status of the run, as `read_status` does."""
        return self._stage.status()

    def outcome(self) -> Outcome | None:
        """Returns the outcome, or None while the experiment runs."""
        exit_status = self.process.poll()
        if exit_status is None:
            return None
        self._end_group(KILL)  # remaining processes, such as environments' workers
        self._forget_private()
        outcome = outcome_of(self.experiment, self._stage, exit_status, self.seconds)
        if self._late and outcome.state != State.FINISHED:
            said = outcome.state
            saved = said == State.INTERRUPTED
            outcome.reason = f"{self._late}: {outcome.reason}" if saved else self._late
            outcome.state = State.FAILED
            self._stage.amend_status(said, outcome.reason)
        outcome.log = self._stage.close(outcome.state == State.FINISHED)
        return outcome

    def ask_to_end(self) -> None:
        """Asks the run to save its state and end."""
        # mpiexec kills its ranks at once on SIGTERM, but passes SIGUSR1 on to them
        several = self.experiment.num_cpu > 1 and hasattr(signal, "SIGUSR1")
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGUSR1 if several else signal.SIGTERM)

    def end_for_time(self, timeout: float) -> None:
        """Asks a run that has exceeded `timeout` seconds to end; kills it after a grace time."""
        if self._late is None:
            self._late = f"it ran for longer than the timeout of {timeout:g} s"
            self.ask_to_end()
        elif self.seconds > timeout + GRACE_SECONDS:
            self._end_group(KILL)

    def kill(self) -> None:
        """Kills the run, and records that it was interrupted."""
        self._end_group(KILL)
        self.process.wait()
        self._forget_private()
        state = self.status().get("state")
        if state is None or not state.has_ended:
            self._stage.amend_status(State.INTERRUPTED, self._why_killed())

    def _why_killed(self):
        folder = self.experiment.folder
        if self._stage.is_open and holds_results(folder) and not self.experiment.resumes:
            return "killed before it began; the results in its folder are unchanged"
        return f"killed before it could save its state; {remedy(folder)}"

    def _end_group(self, number):
        if not hasattr(os, "killpg"):  # Windows has no process groups, and spinup no ranks there
            self.process.kill()
            return
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):  # the latter for a dead group on macOS
            pass

    def _forget_private(self):
        if self._private is not None:
            self._private.unlink(missing_ok=True)


def _spawn(num_cpu, spec, log, holds_sigterm, gpus, more_env):
    """Starts the process, or `mpiexec` with its ranks, that runs the experiment in a spec."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about too few cores: the plan has shown it
        argv, env = launch_command(num_cpu, [*ENTRYPOINT, str(spec)])
    env["PYTHONPATH"] = os.pathsep.join(module_folders())
    env["PYTHONUNBUFFERED"] = "1"
    env.update(more_env)
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if sys.platform.startswith("linux"):
        hold = ["--hold", "TERM"] if holds_sigterm else []
        argv = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *hold, *argv]
    return subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


def module_folders() -> list[str]:
    """Lists the folders where this process finds modules, so that an experiment finds the same.

    They include the folder of the script and the current folder, but not Python's own folders,
    which mustn't be passed to another version of Python.
    """
    paths = sysconfig.get_paths()
    of_python = Path(paths["stdlib"]).parent, Path(paths["purelib"]), Path(paths["platlib"])
    folders = [Path(os.path.abspath(entry)) for entry in sys.path]
    return [str(f) for f in folders if not any(f.is_relative_to(own) for own in of_python)]


# --- Outcomes -------------------------------------------------------------------------------------


def outcome_of(experiment: Experiment, stage: Stage, exit_status: int, seconds: float) -> Outcome:
    """Returns the outcome of an experiment whose processes have ended.

    The experiment has finished if its exit status is 0 and the state in ``status.json`` is
    ``finished``. The exit status isn't enough: it is also 0 if a rank calls ``os._exit(0)``.

    Args:
        experiment: the experiment.
        stage: the stage with the launcher's files.
        exit_status: exit status of its process; negative for a signal, as in ``subprocess``.
        seconds: wall-clock time.

    Returns:
        The outcome. A failure that the run didn't record is recorded in ``status.json``.
    """
    status = stage.status()
    state = status.get("state")
    if exit_status == 0 and state == State.FINISHED:
        return Outcome(experiment, state, "", seconds, status)
    reason = status.get("error") or explain_exit(exit_status, _log_tail(stage.log))
    if state not in (State.FAILED, State.INTERRUPTED):
        state = State.FAILED
        stage.amend_status(state, reason)
    return Outcome(experiment, state, reason, seconds, status)


def explain_exit(exit_status: int, log: str) -> str:
    """Returns in one line why an experiment ended that recorded no reason itself.

    Args:
        exit_status: exit status of its process; negative for a signal.
        log: the end of its printed output.
    """
    by_mpiexec = MPIEXEC_SIGNAL.search(log)
    number = int(by_mpiexec[1]) if by_mpiexec else -exit_status
    lines = [line.strip() for line in log.splitlines() if not MPIEXEC_BANNER.match(line)]
    errors = [line for line in lines if ERROR_LINE.fullmatch(line)]
    stuck = next((found for line in lines if (found := STUCK.fullmatch(line))), None)
    if exit_status != 0 and stuck:
        places = [line for line in lines if HANGS.match(line)]
        # Put ranks that wait for others last
        places.sort(key=lambda line: line.endswith(UNKNOWN_PLACE))
        where = places[0] if places else "a rank hangs"
        return f"no progress for {stuck[1]}: {where}, or a rank has ended early (stacks in the log)"
    if exit_status != 0 and errors:
        return errors[-1]
    if number > 0:
        return f"killed by signal {number} ({_signal_name(number)})"
    if exit_status == 0:
        return "exit status 0 before the run had finished"
    last = next((line for line in reversed(lines) if line), "it printed nothing")
    return f"exit status {exit_status}: {last}"


def _signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _log_tail(log, size=20_000):
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return ANSI.sub("", file.read().decode(errors="replace"))
    except OSError:
        return ""


# --- Running --------------------------------------------------------------------------------------


class LogFollower:
    """Prints new complete lines of a log file to ``sys.stdout``, for example a notebook's cell."""

    def __init__(self, log: Path, begins: int = 0):
        self._file = open(log, "rb")  # noqa: SIM115 (closed by `close`)
        self._file.seek(begins)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def relay(self) -> None:
        """Prints the lines that were completed since the last call."""
        text = self._rest + self._decoder.decode(self._file.read())
        complete, newline, self._rest = text.rpartition("\n")
        if newline:
            sys.stdout.write(complete + newline)
            sys.stdout.flush()

    def close(self) -> None:
        """Prints the rest, and closes the file."""
        self.relay()
        if self._rest:
            print(self._rest, flush=True)
        self._file.close()


def run_one(experiment: Experiment) -> Outcome:
    """Runs an experiment to its end, and also prints its log to ``sys.stdout``."""
    run = Run(experiment)
    follower = LogFollower(run.log, run.log_begins)
    try:
        while (outcome := run.outcome()) is None:
            follower.relay()
            time.sleep(POLL_SECONDS)
        return outcome
    except BaseException:
        stop([run])
        run.outcome()
        raise
    finally:
        follower.close()


class Watcher:
    """Callbacks of `run_all`. This base class ignores all events."""

    def started(self, experiment: Experiment) -> None:
        """Called when an experiment has started."""

    def refresh(self, running: Sequence[Run], waiting: int) -> None:
        """Called regularly, with the running experiments and the number of waiting ones."""

    def ended(self, outcome: Outcome) -> None:
        """Called when an experiment has ended."""

    def stopping(self, running: Sequence[Run]) -> None:
        """Called when the running experiments were asked to save their state and end."""

    def stopped(self, outcomes: Sequence[Outcome], waiting: int) -> None:
        """Called when the interrupted experiments have ended; `waiting` had not started."""


def run_all(
    experiments: Iterable[Experiment],
    jobs: int,
    watchers: Sequence[Watcher] = (),
    timeout: float | None = None,
) -> list[Outcome]:
    """Runs experiments, several at once if possible. Failures don't stop the others.

    Args:
        experiments: the experiments, in the order in which they start.
        jobs: number of ranks that may run at once; an experiment with more ranks runs alone.
        watchers: objects whose callbacks show or record the progress.
        timeout: seconds after which an experiment is asked to end, and counts as failed.

    Returns:
        The outcomes, in the order of `experiments`.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after every process has ended.
    """
    experiments = list(experiments)
    waiting, running = deque(experiments), []  # type: deque[Experiment], list[Run]
    outcomes: dict[int, Outcome] = {}
    try:
        while waiting or running:
            while waiting and _fits(waiting[0], running, jobs):
                _start(waiting.popleft(), running, outcomes, watchers)
            for run in list(running):
                if timeout is not None and run.seconds > timeout:
                    run.end_for_time(timeout)
                outcome = run.outcome()
                if outcome is not None:
                    running.remove(run)
                    outcomes[id(run.experiment)] = outcome
                    _tell(watchers, "ended", outcome)
            _tell(watchers, "refresh", running, len(waiting))
            time.sleep(POLL_SECONDS)
    except BaseException:
        _tell(watchers, "stopping", running)
        stop(running)
        ends = [outcome for run in running if (outcome := run.outcome())]
        _tell(watchers, "stopped", ends, len(waiting))
        raise
    return [outcomes[id(experiment)] for experiment in experiments]


def _fits(experiment, running, jobs):
    busy = sum(run.experiment.num_cpu for run in running)
    return not running or busy + experiment.num_cpu <= jobs


def _free_gpus(experiment, running):
    """Returns at most one GPU per rank, those that the fewest running experiments use."""
    device = str(experiment.kwargs.get("device", "cpu"))
    gpus = visible_gpus() if device in ("cuda", "auto") else []
    if len(gpus) < 2:
        return ()
    uses = Counter(gpu for run in running for gpu in run.gpus)
    return tuple(
        sorted(sorted(gpus, key=lambda gpu: uses[gpu])[: experiment.num_cpu], key=gpus.index)
    )


def visible_gpus() -> list[str]:
    """Lists the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]


def _tell(watchers, event, *facts):
    for watcher in watchers:
        getattr(watcher, event)(*facts)


def _start(experiment, running, outcomes, watchers):
    try:
        running.append(Run(experiment, gpus=_free_gpus(experiment, running)))
    except Exception as error:  # noqa: BLE001 (pickling an argument may raise anything)
        outcome = Outcome(experiment, State.FAILED, f"it could not be started: {error}")
        outcomes[id(experiment)] = outcome
        _tell(watchers, "ended", outcome)
    else:
        _tell(watchers, "started", experiment)


def stop(runs: Sequence[Run], grace: float = GRACE_SECONDS) -> None:
    """Asks runs to end, waits for them, and then kills them with all their ranks.

    A second Ctrl-C ends the wait.

    Args:
        runs: the runs.
        grace: seconds to wait.
    """
    for run in runs:
        run.ask_to_end()
    deadline = time.monotonic() + grace
    try:
        while any(run.process.poll() is None for run in runs) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        for run in runs:
            run.kill()
