"""What surrounds every training run, whatever its algorithm."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, ParamSpec, TypeVar

from spinup.fast.nodes import gradients_in_place
from spinup.runs import interrupts
from spinup.runs.watchdog import watchdog
from spinup.utils.logx import Logger
from spinup.utils.mpi_pytorch import one_thread_per_rank, same_kernels
from spinup.utils.mpi_tools import num_procs

P = ParamSpec("P")
T = TypeVar("T")


def training_run(algorithm: Callable[P, T]) -> Callable[P, T]:
    """Decorates an algorithm's function.

    While it runs, each rank computes on one thread (the caller's threads are put back after). When
    it returns, or raises, the run folder's ``status.json`` says so. Whole numbers may come as
    others than int: ``replay_size=1e6``, or a NumPy seed.
    """

    @functools.wraps(algorithm)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        Logger.current = None
        call = inspect.signature(algorithm).bind(*args, **kwargs)
        call.arguments.update({k: _as_int(k, v) for k, v in call.arguments.items()})
        try:
            with interrupts.noted(), one_thread_per_rank(), same_kernels(), gradients_in_place():
                result = algorithm(*call.args, **call.kwargs)
            if Logger.current is not None:
                Logger.current.close()
            return result
        except BaseException as error:
            if Logger.current is not None:
                Logger.current.close(error)
            raise
        finally:
            watchdog.stop()

    return run


# What each hyperparameter must be: whether a whole number, and its least and greatest value.
_VALID: dict[str, tuple[bool, float, float]] = {
    **dict.fromkeys(["seed"], (True, 0, 2**32 - 1)),
    **dict.fromkeys(["epochs", "max_ep_len", "update_every"], (True, 1, math.inf)),
    **dict.fromkeys(["policy_delay", "save_freq"], (True, 1, math.inf)),
    **dict.fromkeys(["train_pi_iters", "train_v_iters"], (True, 0, math.inf)),
    **dict.fromkeys(["start_steps", "update_after", "num_test_episodes"], (True, 0, math.inf)),
    **dict.fromkeys(["gamma", "lam", "polyak"], (False, 0, 1)),
    **dict.fromkeys(["lr", "pi_lr", "vf_lr", "q_lr", "clip_ratio"], (False, 0, math.inf)),
    **dict.fromkeys(["act_noise", "target_noise", "noise_clip"], (False, 0, math.inf)),
    **dict.fromkeys(["target_kl", "checkpoint_every"], (False, 0, math.inf)),
}

# Split over ranks, so that each rank needs one at least.
_SPLIT = ("steps_per_epoch", "batch_size", "replay_size")


def _as_int(name, value):
    """Returns the value of a hyperparameter, an int where it must be a whole number and is one."""
    must_be = name in _SPLIT or _VALID.get(name, (False,))[0]
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return int(value) if must_be and is_number and value % 1 == 0 else value


def check_hyperparameters(config: dict[str, Any], num_ranks: int | None = None) -> None:
    """Refuses hyperparameters that can't be meant, before anything runs.

    Args:
        config: values by name; names that it doesn't know are left alone.
        num_ranks: ranks that will share the work; those that there are now if None.

    Raises:
        ValueError: one is out of its range, naming it, its value and the range.
    """
    num_ranks = num_ranks or num_procs()
    limits = _VALID | dict.fromkeys(_SPLIT, (True, num_ranks, math.inf))
    for name in config.keys() & limits.keys():
        whole, least, greatest = limits[name]
        value = config[name]
        is_number = isinstance(value, int if whole else Real) and not isinstance(value, bool)
        if not (is_number and least <= value <= greatest):
            kind = "a whole number" if whole else "a number"
            bounds = f"of at least {least}" if greatest == math.inf else f"in [{least}, {greatest}]"
            ranks = f" (one a rank, of {num_ranks} ranks)" if name in _SPLIT else ""
            raise ValueError(f"{name} must be {kind} {bounds}{ranks}, not {value!r}")
