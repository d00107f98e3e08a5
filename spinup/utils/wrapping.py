"""Environments with the wrappers that the command line names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym

Wrapper = Callable[[gym.Env], gym.Env]


def make_wrapped(
    env_id: str, wrappers: Sequence[Wrapper], env_kwargs: Mapping[str, Any] | None = None
) -> gym.Env:
    """Makes an environment and wraps it.

    Args:
        env_id: id of the environment.
        wrappers: functions of an environment, or subclasses of ``gymnasium.Wrapper``, innermost
            first.
        env_kwargs: keyword arguments of the environment.

    Returns:
        The wrapped environment.

    Raises:
        TypeError: a wrapper doesn't return an environment.
    """
    return wrap(gym.make(env_id, **(env_kwargs or {})), wrappers)


def wrap(env: gym.Env, wrappers: Sequence[Wrapper]) -> gym.Env:
    """Applies wrappers to an environment; see `make_wrapped`."""
    for wrapper in wrappers:
        env = wrapper(env)
        if not isinstance(env, gym.Env):
            name = getattr(wrapper, "__qualname__", repr(wrapper))
            raise TypeError(
                f"the wrapper {name} returned {env!r}, which is not a gymnasium.Env: it must "
                "return the wrapped environment"
            )
    return env
