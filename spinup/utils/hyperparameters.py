"""The checks of an algorithm's hyperparameters.

They don't import PyTorch unless a value names a class of it, so that commands are checked at once.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

from spinup.runs.json_values import activation_names, find_activation, import_callable
from spinup.utils.mpi_tools import num_procs

# Minimum and maximum of hyperparameters; (0, inf) for all other numbers.
_LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(["gamma", "lam", "polyak"], (0, 1)),
    **dict.fromkeys(["epochs", "max_ep_len", "update_every"], (1, math.inf)),
    **dict.fromkeys(["policy_delay", "save_freq"], (1, math.inf)),
    **dict.fromkeys(["cg_iters", "backtrack_iters"], (1, math.inf)),
    "backtrack_coeff": (0, 1),
    "seed": (0, 2**32 - 1),
}

# Hyperparameters that must not equal their minimum or maximum.
_OPEN = ("delta", "backtrack_coeff")

# Hyperparameters that are split over ranks, and so must be at least the number of ranks.
_SPLIT = ("steps_per_epoch", "batch_size", "minibatch_size", "replay_size")


def check_hyperparameters(
    algorithm: Callable, values: dict[str, Any], num_ranks: int | None = None
) -> dict[str, Any]:
    """Checks and converts the hyperparameters of an algorithm, before anything runs.

    The annotations of the function determine which values must be integers, numbers or booleans.

    Args:
        algorithm: the algorithm's function.
        values: hyperparameters by name. Missing ones have their defaults; unknown names are
            ignored.
        num_ranks: number of ranks that will share the work; the current number if None.

    Returns:
        The hyperparameters in `values`, with whole numbers as int, and with names of networks and
        activations replaced by classes.

    Raises:
        ValueError: a value can't be used; the message names it and the expected values.
    """
    num_ranks = num_ranks or num_procs()
    hints = typing.get_type_hints(algorithm)
    checked = {}
    for name, parameter in inspect.signature(algorithm).parameters.items():
        value = values.get(name, parameter.default)
        if name in hints and value is not inspect.Parameter.empty:
            value = _check(name, value, hints[name], num_ranks)
        if name in values:
            checked[name] = value
    on_epoch = checked.get("on_epoch")
    if isinstance(on_epoch, str):
        checked["on_epoch"] = import_callable(on_epoch)
    elif on_epoch is not None and not callable(on_epoch):
        raise ValueError(
            "on_epoch must be a function of the log's row and the actor-critic, or its name "
            f"'module:function', not {on_epoch!r}"
        )
    if "ac_kwargs" in hints:
        default = inspect.signature(algorithm).parameters["actor_critic"].default
        build = values.get("actor_critic", default)
        build = import_callable(build) if isinstance(build, str) else build
        kwargs = check_ac_kwargs(build, values.get("ac_kwargs"), build is default)
        networks = dict(actor_critic=build, ac_kwargs=kwargs)
        checked |= {k: v for k, v in networks.items() if values.get(k) is not None}
    return checked


def _check(name, value, hint, num_ranks):
    """Returns a value, checked and converted for a parameter with the annotation `hint`."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if is_union else (hint,)
    literals = [option for option in options if typing.get_origin(option) is Literal]
    words = [word for literal in literals for word in typing.get_args(literal)]
    kinds = tuple({bool, type(None)} & {*options})
    if isinstance(value, kinds) or (isinstance(value, str) and value in words):
        return value
    if not {int, float} & {*options}:
        if bool in options:
            raise ValueError(f"{name} must be True or False, not {value!r}")
        if words:
            wanted = " or ".join(f'"{word}"' for word in words)
            raise ValueError(f"{name} must be {wanted}, not {value!r}")
        return value
    is_whole = float not in options
    least, greatest = _LIMITS.get(name, (0, math.inf))
    least = num_ranks if name in _SPLIT else least
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and is_whole and math.isfinite(value) and value == int(value):
        value = int(value)  # such as replay_size=1e6, or a NumPy seed
    is_open = name in _OPEN
    is_inside = is_number and (least < value < greatest if is_open else least <= value <= greatest)
    if is_inside and (isinstance(value, int) or not is_whole):
        return value
    kind = "a whole number" if is_whole else "a number"
    bounds = f"of at least {least}" if greatest == math.inf else f"in [{least}, {greatest}]"
    bounds = f"in ({least}, {greatest})" if is_open else bounds
    ranks = f" (one per rank, with {num_ranks} ranks)" if name in _SPLIT and num_ranks > 1 else ""
    other = "".join(f', or "{word}"' for word in words)
    raise ValueError(f"{name} must be {kind} {bounds}{ranks}{other}, not {value!r}")


# --- Keyword arguments of networks ----------------------------------------------------------------


def check_ac_kwargs(
    actor_critic: Callable, ac_kwargs: dict[str, Any] | None, is_ours: bool
) -> dict[str, Any]:
    """Checks the keyword arguments of an actor-critic.

    Args:
        actor_critic: class or function, called with ``(observation_space, action_space,
            **ac_kwargs)``.
        ac_kwargs: its keyword arguments.
        is_ours: whether `actor_critic` is the library's. If so, values are checked as well as
            names; otherwise only names are checked.

    Returns:
        The arguments, with the name of an activation replaced by its class.

    Raises:
        ValueError: an argument is unknown, missing or can't be used.
    """
    if ac_kwargs is None:
        ac_kwargs = {}
    if not isinstance(ac_kwargs, dict):
        raise ValueError(
            f"ac_kwargs must be a dict such as {{'hidden_sizes': (64, 64)}}, not {ac_kwargs!r}"
        )
    if not callable(actor_critic):
        raise ValueError(f"actor_critic must be a class or a function, not {actor_critic!r}")
    _check_arguments(actor_critic, ac_kwargs)
    if not is_ours:
        return ac_kwargs
    checks = {"hidden_sizes": _check_sizes, "activation": _check_activation}
    return {key: checks[key](value) if key in checks else value for key, value in ac_kwargs.items()}


def _check_arguments(actor_critic, ac_kwargs):
    """Raises ValueError if a keyword argument is unknown or missing."""
    try:
        signature = inspect.signature(actor_critic)
    except (TypeError, ValueError):  # it has no readable signature
        return
    try:
        signature.bind("observation_space", "action_space", **ac_kwargs)
    except TypeError as error:
        takes = [*signature.parameters][2:]
        wrong = next((key for key in ac_kwargs if key not in takes), "")
        near = difflib.get_close_matches(wrong, takes, 1)
        hint = f"; did you mean {near[0]}?" if near else f" (it takes {', '.join(takes) or 'none'})"
        name = getattr(actor_critic, "__name__", repr(actor_critic))
        raise ValueError(
            f"{name} can't be built with ac_kwargs {ac_kwargs}: {error}{hint}"
        ) from None


def _check_sizes(sizes):
    """Returns the sizes of hidden layers as a list or tuple of int."""
    as_list = list(sizes) if isinstance(sizes, (list, tuple, np.ndarray)) else [None]
    if all(isinstance(n, Integral) and not isinstance(n, bool) and n > 0 for n in as_list):
        return (
            type(sizes)(map(int, as_list))
            if isinstance(sizes, tuple)
            else [int(n) for n in as_list]
        )
    raise ValueError(
        "hidden_sizes (of ac_kwargs) must be a list of whole numbers of at least 1, such as "
        f"(64, 64), not {sizes!r}"
    )


def _check_activation(activation):
    """Returns the class of an activation, or the function that makes one."""
    from torch import nn

    found = find_activation(activation) if isinstance(activation, str) else activation
    if isinstance(found, nn.Module):
        raise ValueError(
            f"activation (of ac_kwargs) must be a class, not {found!r}, an instance of it: give "
            f"nn.{type(found).__name__}, or with arguments functools.partial(nn."
            f"{type(found).__name__}, ...)"
        )
    try:
        if isinstance(found(), nn.Module):
            return found
    except Exception:  # noqa: BLE001 (Linear and the like need arguments; None can't be called)
        pass
    near = difflib.get_close_matches(str(activation).lower(), activation_names(), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        "activation (of ac_kwargs) must be an activation of torch.nn such as nn.Tanh, or its name, "
        f"not {activation!r}{hint}"
    )
