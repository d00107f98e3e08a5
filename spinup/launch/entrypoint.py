"""Run one experiment in a clean process: ``python -m spinup.launch.entrypoint SPEC``.

SPEC is a JSON file that names an importable function and gives its keyword arguments, or, where the
function or an argument has no such form, a file pickled by the launching process for this process
alone. Pickles are only read where nobody else can have written them, never from a run folder.
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
        if folder is not None:
            rank = f"rank {proc_id()}: " if num_procs() > 1 else ""
            note_end(folder, State.FAILED, rank + describe_error(error))
        raise
    if folder is not None and proc_id() == 0:
        note_end(folder, State.FINISHED, None)
    return result


def with_env_fn(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns `kwargs` as an algorithm takes them.

    ``env_fn`` comes in place of ``env_name``, ``env_kwargs`` and ``wrappers``: the environment's
    id, which a run can store by name, or a function that makes the environment if it has arguments
    or wrappers. Wrappers and an ``actor_critic`` may be names, ``"module:function"``.
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
