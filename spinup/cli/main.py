"""The command line: ``python -m spinup.run``, also installed as ``spinup``.

Exit status: 0 if all went well, 1 if a variant failed, 2 if the command can't be meant so, 130
after Ctrl-C. Modules are imported where they are needed, so that ``help`` and mistakes are quick.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from spinup.algos import ALGORITHMS
from spinup.cli.flags import (
    RUN_FLAGS,
    SUBSTITUTIONS,
    Parameter,
    UsageError,
    check_env_id,
    nearest,
    parameters_of,
    read_pairs,
    read_values,
    split_flags,
)
from spinup.utils.mpi_tools import num_procs, proc_id
from spinup.version import __version__

UTILITIES = {
    "plot": "spinup.cli.plot",
    "status": "spinup.cli.status",
    "test_policy": "spinup.cli.watch",
}
HELP = ("help", "--help", "-h")


def main(argv: Sequence[str] | None = None) -> int:
    """Does what a command line says.

    Args:
        argv: its words after the program's name; ``sys.argv[1:]`` if None.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except UsageError as error:
        _complain(words, error)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says of SIGPIPE


def _dispatch(words):
    command, *rest = words or ["help"]
    if command in HELP:
        return _show_usage()
    if command in ("--version", "-V", "version"):
        print(f"spinup {__version__}")
        return 0
    if command in UTILITIES:
        return importlib.import_module(UTILITIES[command]).main(rest) or 0
    name = command.removesuffix("_pytorch")
    if name not in ALGORITHMS:
        known = [*ALGORITHMS, *UTILITIES, "help"]
        raise UsageError(
            f"unknown command {command!r}: did you mean {nearest(command, known)}? "
            "See: python -m spinup.run help"
        )
    algorithm = getattr(importlib.import_module(f"spinup.algos.{name}"), name)
    if rest[:1] == ["help"] or "--help" in rest or "-h" in rest:
        return _show_algorithm(name, algorithm)
    return run_grid_from(command, algorithm, rest)


def _show_usage():
    from spinup.cli.help_pages import usage

    if proc_id() == 0:
        print(usage(f"{name:<19} {known.title}" for name, known in ALGORITHMS.items()), end="")
    return 0


def _show_algorithm(name, algorithm):
    from spinup.cli.help_pages import algorithm_page

    if proc_id() == 0:
        print(algorithm_page(name, algorithm))
    return 0


def _complain(words, error):
    if proc_id() == 0:
        line = " ".join(str(error).split())
        print(f"spinup {words[0]}: {line}" if words[1:] else f"spinup: {line}", file=sys.stderr)


# --- Grids ----------------------------------------------------------------------------------------


def run_grid_from(command: str, algorithm: Callable, words: Sequence[str]) -> int:
    """Runs the grid that a command line describes.

    Args:
        command: the algorithm's name as typed.
        algorithm: its function.
        words: what follows.

    Returns:
        The exit status.

    Raises:
        UsageError: the grid can't run; nothing has been written.
    """
    from spinup.launch.grid import ExperimentFailed
    from spinup.launch.slurm import SubmissionError

    grid, options = build_grid(command, algorithm, words)
    try:
        plan = grid.plan(algorithm, **options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with _ended_by_signals():
        try:
            grid.launch(plan)
        except ExperimentFailed:  # the closing table has told
            return 1
        except SubmissionError as error:
            raise UsageError(str(error)) from error
    return 0


def build_grid(command: str, algorithm: Callable, words: Sequence[str]):
    """Returns the grid that a command line describes, and the arguments for its `plan`.

    Raises:
        UsageError: a flag or a value can't be meant so.
    """
    from spinup.launch.grid import ExperimentGrid

    parameters = parameters_of(algorithm)
    parameters["env_name"] = Parameter("env_name", ("str",))
    options: dict[str, Any] = {"exp_name": f"cmd_{command}"}
    chosen = []
    for flag in split_flags(words):
        if flag.key == "slurm":
            options[flag.key] = read_pairs(flag)
        elif flag.key in RUN_FLAGS:
            options[flag.key] = _one_value(flag)
        else:
            values = read_values(flag, _find(flag, parameters, command))
            chosen.append((flag.key, values, flag.shorthand))
    try:
        grid = ExperimentGrid(options.pop("exp_name"))
        for key, values, shorthand in chosen:
            grid.add(key, values, shorthand)
        _check_variants(algorithm, grid.variants(), options.get("num_cpu", 1))
    except ValueError as error:
        raise UsageError(str(error)) from error
    _check_options(options)
    return grid, options


def _find(flag, parameters, command):
    """Returns the parameter that a flag sets."""
    if flag.key.startswith("env_kwargs:"):
        return Parameter(flag.key, ())
    if flag.key not in parameters:
        close = nearest(flag.typed, [*parameters, *RUN_FLAGS, *SUBSTITUTIONS])
        raise UsageError(
            f"unknown flag --{flag.typed}: did you mean --{close}? "
            f"See: python -m spinup.run {command} --help"
        )
    return parameters[flag.key]


def _one_value(flag):
    values = read_values(flag, RUN_FLAGS[flag.key])
    if len(values) > 1:
        given = " ".join(flag.values)
        raise UsageError(f"--{flag.typed} takes one value, not {len(values)}: {given}")
    return values[0]


def _check_variants(algorithm, variants, num_cpu):
    from spinup.launch.grid import count_ranks
    from spinup.utils.devices import choose_device
    from spinup.utils.training import check_hyperparameters

    ranks = count_ranks(num_cpu)

    if "env_name" not in variants[0]:
        raise UsageError("no environment is given: add one, such as --env CartPole-v1")
    for env_name in {variant["env_name"] for variant in variants}:
        check_env_id(env_name)
    for device in {variant.get("device", "cpu") for variant in variants}:
        choose_device(device)
    for variant in variants:
        check_hyperparameters(algorithm, variant, ranks)


def _check_options(options):
    if "data_dir" in options:
        options["data_dir"] = os.path.expanduser(options["data_dir"])
    if options.get("tensorboard") and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs TensorBoard: pip install 'spinup[tensorboard]'")


@contextlib.contextmanager
def _ended_by_signals():
    """Has requests to end, a scheduler's warning, and a closed terminal do what Ctrl-C does."""
    if num_procs() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGTERM", "SIGHUP", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    # What is ignored stays so: nohup has the terminal's closing ignored.
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
