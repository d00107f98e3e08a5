"""The command line: ``python -m spinup.run``, also installed as ``spinup``.

The exit status is 0 for success, 1 if a variant failed, 2 if the command is invalid, and 130 after
Ctrl-C. Modules are imported where they are needed, so that ``help`` and errors appear quickly.
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
from spinup.cli.declared import declared
from spinup.cli.flags import (
    RUN_FLAGS,
    SUBSTITUTIONS,
    Parameter,
    UsageError,
    import_own,
    parameters_of,
    read_pairs,
    read_values,
    split_flags,
)
from spinup.cli.hints import hint, nearest
from spinup.launch.cores import usable_cores
from spinup.runs.wording import one_line, plural
from spinup.utils.mpi_tools import num_procs, proc_id
from spinup.version import __version__

UTILITIES = {
    "plot": "spinup.cli.plot",
    "presets": "spinup.cli.presets",
    "status": "spinup.cli.status",
    "test_policy": "spinup.cli.watch",
}
HELP = ("help", "--help", "-h")


def main(argv: Sequence[str] | None = None) -> int:
    """Executes a command line.

    Args:
        argv: the words after the program's name; ``sys.argv[1:]`` if None.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    _find_modules_here()
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except UsageError as error:
        _complain(words, error)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # the status that a shell gives for SIGPIPE


def _open_closed_streams():
    """Replaces output streams that the shell has closed (``>&-``), for which Python has None.

    Otherwise the next opened file would get their file descriptor, and the output of libraries.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open as long as the process)


def _find_modules_here():
    """Adds the current folder to ``sys.path``, as ``python -m`` does, for the command `spinup`."""
    is_safe = getattr(sys.flags, "safe_path", False)  # Python 3.11: -P, PYTHONSAFEPATH
    if not is_safe and not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


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
        meant = nearest(command, [*ALGORITHMS, *UTILITIES, "help"])
        question = f": did you mean {meant}?" if meant else "."
        raise UsageError(f"unknown command {command!r}{question} See: python -m spinup.run help")
    if rest[:1] == ["help"] or "--help" in rest or "-h" in rest:
        return _show_algorithm(name, find_algorithm(name))
    return run_grid_from(command, find_algorithm(name), rest)


def find_algorithm(name: str) -> Callable:
    """Returns the function of an algorithm, or a stand-in that doesn't need PyTorch."""
    module = f"spinup.algos.{name}"
    with contextlib.suppress(ValueError):
        return declared(module, name)
    return getattr(importlib.import_module(module), name)


def _show_usage():
    from spinup.cli.help_pages import usage

    if proc_id() == 0:
        print(usage(), end="")
    return 0


def _show_algorithm(name, algorithm):
    from spinup.cli.help_pages import algorithm_page

    if proc_id() == 0:
        print(algorithm_page(name, algorithm))
    return 0


def _complain(words, error):
    if proc_id() == 0:
        command = f"spinup {words[0]}" if words[1:] else "spinup"
        print(f"{command}: {one_line(error)}", file=sys.stderr)


# --- Grids ----------------------------------------------------------------------------------------


def run_grid_from(command: str, algorithm: Callable, words: Sequence[str]) -> int:
    """Runs the grid that a command line describes.

    Args:
        command: the algorithm's name as typed.
        algorithm: the algorithm's function.
        words: the words after the name.

    Returns:
        The exit status.

    Raises:
        UsageError: the grid can't run; nothing has been written.
    """
    from spinup.launch.experiment import ExperimentFailed
    from spinup.launch.slurm import SubmissionError

    grid, options, may_oversubscribe = _read_grid(command, algorithm, words)
    try:
        notes = _check_here(grid.variants(), options, algorithm.__name__, may_oversubscribe)
        plan = grid.plan(algorithm, **options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    plan.notes += notes
    with _ended_by_signals():
        try:
            grid.launch(plan)
        except ExperimentFailed:  # the closing table has shown it
            return 1
        except SubmissionError as error:
            raise UsageError(str(error)) from error
    return 0


def build_grid(command: str, algorithm: Callable, words: Sequence[str]):
    """Returns the grid that a command line describes, and the arguments for its `plan`.

    It doesn't check environments, devices and packages.

    Raises:
        UsageError: a flag or a value can't be used.
    """
    return _read_grid(command, algorithm, words)[:2]


def _read_grid(command, algorithm, words):
    """Returns the grid, the arguments for its `plan`, and whether ranks may outnumber cores."""
    from spinup.launch.grid import ExperimentGrid

    flags = split_flags(words)
    networks = [name for flag in flags if flag.key == "actor_critic" for name in flag.values]
    parameters = parameters_of(algorithm, [import_own("actor_critic", name) for name in networks])
    parameters["env_name"] = Parameter("env_name", ("str",))
    options: dict[str, Any] = {"exp_name": f"cmd_{command}"}
    chosen = []
    for flag in flags:
        if flag.key == "slurm":
            options[flag.key] = read_pairs(flag)
        elif flag.key == "wrapper":  # several wrappers are one value, not a grid
            chosen.append(("wrappers", [read_values(flag, RUN_FLAGS[flag.key])], None))
        elif flag.key in RUN_FLAGS:
            options[flag.key] = _one_value(flag)
        else:
            values = read_values(flag, _find(flag, parameters, command))
            chosen.append((flag.key, values, flag.shorthand))
    may_oversubscribe = options.pop("oversubscribe", False)
    if "data_dir" in options:
        options["data_dir"] = os.path.expanduser(options["data_dir"])
    try:
        grid = ExperimentGrid(options.pop("exp_name"))
        for key, values, shorthand in chosen:
            grid.add(key, values, shorthand)
        _check_values(algorithm, grid.variants(), options.get("num_cpu", 1))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return grid, options, may_oversubscribe


def _find(flag, parameters, command):
    """Returns the parameter that a flag sets."""
    if flag.key.startswith("env_kwargs:"):
        return Parameter(flag.key, ())
    if flag.key not in parameters:
        short = [name for name, key in SUBSTITUTIONS.items() if key in {*parameters, *RUN_FLAGS}]
        meant = hint(flag.typed, parameters, [*RUN_FLAGS, *short])
        answer = f": {meant}" if meant else ""
        stop = "" if meant.endswith("?") else "."
        raise UsageError(
            f"unknown flag --{flag.typed}{answer}{stop} See: python -m spinup.run {command} --help"
        )
    return parameters[flag.key]


def _one_value(flag):
    values = read_values(flag, RUN_FLAGS[flag.key])
    if len(values) > 1:
        given = " ".join(flag.values)
        raise UsageError(f"--{flag.typed} takes one value, not {len(values)}: {given}")
    return values[0]


def _check_values(algorithm, variants, num_cpu):
    from spinup.launch.experiment import count_ranks
    from spinup.utils.hyperparameters import check_hyperparameters

    ranks = count_ranks(num_cpu)
    if "env_name" not in variants[0]:
        raise UsageError("no environment is given: add one, such as --env CartPole-v1")
    for variant in variants:
        check_hyperparameters(algorithm, variant, ranks)


def _check_here(variants, options, algorithm, may_oversubscribe):
    """Checks that this machine has what the variants need, and returns notes about it."""
    is_for_slurm = "slurm" in options
    if not (is_for_slurm or may_oversubscribe):
        _check_cores(options.get("num_cpu", 1))
    for name, title in (("tensorboard", "TensorBoard"), ("wandb", "Weights & Biases")):
        if options.get(name) and importlib.util.find_spec(name) is None:
            raise UsageError(f'--{name} needs {title}: in the checkout, pip install ".[{name}]"')
    for device in dict.fromkeys(str(variant.get("device", "cpu")) for variant in variants):
        if device != "cpu" and not (is_for_slurm and device.startswith("cuda")):
            # Not for Slurm, because the cluster's nodes may have one. It imports PyTorch
            from spinup.utils.devices import find_device

            find_device(device)
    keys = ("env_name", "env_kwargs", "wrappers")
    environments = {repr(called): called for v in variants if (called := [v.get(k) for k in keys])}
    notes = [n for called in environments.values() for n in _check_environment(algorithm, *called)]
    return list(dict.fromkeys(notes))


def _check_cores(num_cpu):
    cores = usable_cores()
    if num_procs() == 1 and isinstance(num_cpu, int) and num_cpu > cores:
        raise UsageError(
            f"--cpu {num_cpu} asks for more ranks than the {plural(cores, 'usable core')} of this "
            "machine: they would share cores and be slower. Give --cpu auto for all cores, or "
            "--oversubscribe to start them anyway"
        )


def _check_environment(algorithm, env_id, env_kwargs, wrappers):
    from spinup.utils.envs import check_action_space, check_env, make_env
    from spinup.utils.wrapping import make_wrapped

    if not wrappers:
        return check_env(env_id, env_kwargs, algorithm, ALGORITHMS)
    notes = check_env(env_id, env_kwargs)
    functions = [import_own("wrapper", name) for name in wrappers]
    try:
        env = make_env(lambda: make_wrapped(env_id, functions, env_kwargs or {}))
    except Exception as error:  # the user's function may raise anything
        names = " ".join(wrappers)
        raise UsageError(f"--env {env_id} --wrapper {names}: {one_line(error)}") from error
    with contextlib.closing(env):
        check_action_space(env.action_space, algorithm, ALGORITHMS)
    return notes


@contextlib.contextmanager
def _ended_by_signals():
    """Makes SIGTERM, SIGHUP and SIGUSR1 act like Ctrl-C."""
    if num_procs() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGTERM", "SIGHUP", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    # Ignored signals stay ignored: nohup ignores SIGHUP, the signal of a closed terminal.
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
