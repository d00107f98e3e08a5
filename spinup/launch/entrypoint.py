"""Run one experiment in a clean process: ``python -m spinup.launch.entrypoint SPEC``.

SPEC is a JSON file that names an importable function and gives its keyword arguments, or, where the
function or an argument has no such form, a file pickled by the launching process for this process
alone. Pickles are only read where nobody else can have written them, never from a run folder.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spinup.launch.tether import die_with_parent
from spinup.runs.interrupts import Interrupted
from spinup.runs.json_values import decode, import_callable
from spinup.runs.watchdog import watchdog
from spinup.utils.logx import describe_error, read_status, write_json
from spinup.utils.mpi_tools import num_procs, proc_id

PICKLE_SUFFIX = ".pkl"


def main(spec_file: str) -> None:
    """Runs the experiment that `spec_file` describes.

    Args:
        spec_file: a JSON spec, or a private pickle (``.pkl``).

    Raises:
        ValueError: the spec isn't one.
        Interrupted: a signal asked the run to stop, and it saved a checkpoint.
    """
    die_with_parent()  # a rank's parent is mpiexec's proxy
    if hasattr(signal, "pthread_sigmask"):  # see tether.py
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    watchdog.guard()
    execute(*read_spec(spec_file))


def read_spec(spec_file: str) -> tuple[Callable, dict[str, Any]]:
    """Returns the function that a spec names, and its keyword arguments."""
    if spec_file.endswith(PICKLE_SUFFIX):
        return _read_private_pickle(spec_file)
    try:
        spec = json.loads(Path(spec_file).read_text())
        thunk, kwargs = spec["thunk"], decode(spec["kwargs"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{spec_file} is not the spec of an experiment: {error!r}") from error
    return import_callable(thunk), kwargs


def _read_private_pickle(path):
    """Unpickles what the launching process wrote, after a check that only this user could."""
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        others_can_write = about.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        if others_can_write or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
            raise ValueError(f"{path} is not private to this user (mode 0600): it is not read")
        return pickle.load(file)  # noqa: S301 (written for this process by its own launcher)


def execute(thunk: Callable, kwargs: dict[str, Any]) -> Any:
    """Calls `thunk` and sees to it that ``status.json`` tells how that ended.

    Args:
        thunk: the function.
        kwargs: its keyword arguments. ``env_name``, and ``env_kwargs`` if there are any, become
            the ``env_fn`` that an algorithm takes.

    Returns:
        What `thunk` returns.
    """
    folder = kwargs.get("logger_kwargs", {}).get("output_dir")
    try:
        result = thunk(**with_env_fn(kwargs))
    except Interrupted:  # the run has said so itself
        raise
    except BaseException as error:
        _close_status(folder, "failed", describe_error(error))
        raise
    _close_status(folder, "finished", None)
    return result


def with_env_fn(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns `kwargs` with ``env_fn`` in place of ``env_name`` and ``env_kwargs``.

    ``env_fn`` is the environment's id, which a run can store by name, or a function that makes the
    environment where it takes arguments of its own.
    """
    kwargs = dict(kwargs)
    if "env_name" not in kwargs:
        return kwargs
    env_name, env_kwargs = kwargs.pop("env_name"), kwargs.pop("env_kwargs", None)
    kwargs["env_fn"] = env_name
    if env_kwargs:
        import gymnasium

        kwargs["env_fn"] = functools.partial(gymnasium.make, env_name, **env_kwargs)
    return kwargs


def _close_status(folder, state, error):
    """Writes how the run ended, unless its Logger has, or another rank has failed before."""
    if folder is None:
        return
    status = read_status(folder)
    if status.get("state") in (state, "failed", "interrupted") or (
        state == "finished" and proc_id() != 0
    ):
        return
    if error is not None and num_procs() > 1:
        error = f"rank {proc_id()}: {error}"
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / "status.json", {**status, "state": state, "error": error})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m spinup.launch.entrypoint SPEC")
    main(sys.argv[1])
