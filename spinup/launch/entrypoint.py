"""Runs one experiment in a new process: ``python -m spinup.launch.entrypoint SPEC``.

SPEC is a file that `spinup.launch.spec` describes.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

from spinup.launch.spec import read_spec
from spinup.launch.tether import die_with_parent
from spinup.runs.folder import State
from spinup.runs.interrupts import Interrupted
from spinup.runs.json_values import import_callable
from spinup.runs.stage import note_end
from spinup.runs.watchdog import watchdog
from spinup.runs.wording import describe_error
from spinup.utils.mpi_tools import num_procs, proc_id


def main(spec_file: str) -> None:
    """Runs the experiment in a spec.

    Args:
        spec_file: path of a JSON spec, or of a private pickle (``.pkl``).

    Raises:
        ValueError: the file isn't a valid spec.
        Interrupted: a signal asked the run to stop, and it saved a checkpoint.
    """
    die_with_parent()  # a rank's parent is mpiexec's proxy
    if hasattr(signal, "pthread_sigmask"):  # see tether.py
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    watchdog.guard()
    execute(*read_spec(spec_file))


def execute(thunk: Callable, kwargs: dict[str, Any]) -> Any:
    """Calls a function, and records in ``status.json`` how the call ended.

    Args:
        thunk: the function.
        kwargs: its keyword arguments, which are converted by `with_env_fn`.

    Returns:
        The result of `thunk`.
    """
    folder = kwargs.get("logger_kwargs", {}).get("output_dir")
    try:
        result = thunk(**with_env_fn(kwargs))
    except Interrupted:  # the run has recorded it itself
        raise
    except BaseException as error:
        if folder is not None:
            rank = f"rank {proc_id()}: " if num_procs() > 1 else ""
            note_end(folder, State.FAILED, rank + describe_error(error))
        raise
    if folder is not None and proc_id() == 0:
        note_end(folder, State.FINISHED, None)
    return result


def with_env_fn(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Converts keyword arguments to those that an algorithm takes.

    ``env_fn`` replaces ``env_name``, ``env_kwargs`` and ``wrappers``. It is the environment's id,
    or, if there are keyword arguments or wrappers, a function that makes the environment. Wrappers
    and ``actor_critic`` may be given by name, as ``"module:function"``.
    """
    kwargs = dict(kwargs)
    if "env_name" not in kwargs:
        return kwargs
    if isinstance(kwargs.get("actor_critic"), str):
        kwargs["actor_critic"] = import_callable(kwargs["actor_critic"])
    env_name, env_kwargs = kwargs.pop("env_name"), kwargs.pop("env_kwargs", None) or {}
    wrappers = [
        import_callable(wrapper) if isinstance(wrapper, str) else wrapper
        for wrapper in kwargs.pop("wrappers", None) or ()
    ]
    kwargs["env_fn"] = env_name
    if wrappers:
        from spinup.utils.wrapping import make_wrapped

        arguments = {"env_kwargs": env_kwargs} if env_kwargs else {}
        kwargs["env_fn"] = functools.partial(make_wrapped, env_name, wrappers, **arguments)
    elif env_kwargs:
        import gymnasium

        kwargs["env_fn"] = functools.partial(gymnasium.make, env_name, **env_kwargs)
    return kwargs


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m spinup.launch.entrypoint SPEC")
    main(sys.argv[1])
