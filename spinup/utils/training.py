"""The set-up and clean-up of every training run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch import nn

from spinup.fast.nodes import gradients_in_place
from spinup.fast.shared import ranks_share_memory
from spinup.runs.interrupts import Interrupted, is_interactive
from spinup.runs.underway import run_under_way
from spinup.runs.watchdog import watchdog
from spinup.utils.devices import current_device_kept, gpu_name
from spinup.utils.envs import generators_kept
from spinup.utils.groups import ranks_grouped, this_group
from spinup.utils.hyperparameters import check_hyperparameters
from spinup.utils.mpi_pytorch import one_thread_per_rank, same_kernels
from spinup.utils.mpi_tools import mpi_op

P = ParamSpec("P")
T = TypeVar("T")


def training_run(algorithm: Callable[P, T]) -> Callable[P, T]:
    """Decorates an algorithm's function.

    The hyperparameters are checked before the function starts. While it runs, each rank computes on
    one thread; the caller's number of threads is restored afterwards. When it returns or raises,
    the outcome is written to the run folder's ``status.json``. In a notebook, a stopped run raises
    KeyboardInterrupt.
    """

    @functools.wraps(algorithm)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        signature = inspect.signature(algorithm)
        call = signature.bind(*args, **kwargs)
        call.arguments.update(check_hyperparameters(algorithm, call.arguments))
        device = call.arguments.get("device", _default(signature, "device"))
        with run_under_way() as under_way:
            try:
                with (
                    under_way.stop.listening(),
                    one_thread_per_rank(),
                    current_device_kept(),
                    same_kernels(),
                    ranks_grouped(gpu_name(device)),
                    ranks_share_memory(not this_group().has_actors),
                    gradients_in_place(),
                ):
                    result = algorithm(*call.args, **call.kwargs)
                under_way.close()
                return result
            except BaseException as error:
                under_way.close(error)
                if isinstance(error, Interrupted) and is_interactive():
                    # After SystemExit, a notebook would continue with the next cell
                    raise KeyboardInterrupt(str(error)) from None
                raise
            finally:
                watchdog.stop()

    return run


def _default(signature, name):
    """Returns the default of a parameter, or "cpu" if there is no such parameter."""
    return signature.parameters[name].default if name in signature.parameters else "cpu"


def asks_to_stop(
    on_epoch: Callable[[dict[str, Any], nn.Module], Any] | None, row: dict[str, Any], ac: nn.Module
) -> bool:
    """Calls a user's function at the end of an epoch, on every rank.

    Before, actors fetch the networks of their learner. The global random generators are restored
    afterwards, so that the function doesn't change training.

    Args:
        on_epoch: the function, called with `row` and `ac`.
        row: the epoch's row of the log.
        ac: the actor-critic.

    Returns:
        True on all ranks if the function returned a true value on any rank.
    """
    this_group().fetch(ac.state_dict().values())
    if on_epoch is None:
        return False
    with generators_kept():
        stops = bool(on_epoch(dict(row), ac))
    return bool(mpi_op(float(stops), "MAX"))
