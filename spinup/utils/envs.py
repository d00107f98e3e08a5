"""Environments: make, seed, adapt to the algorithms, and check what they return."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space

from spinup.runs.watchdog import still_alive, watchdog

EnvFn = Callable[[], gym.Env] | str


class AdaptedEnv(gym.Wrapper):
    """An environment as the algorithms see it.

    Actions are arrays of shape ``(act_dim,)``, clipped to the Box and given its shape and dtype,
    or the index of a Discrete action. What the environment returns is checked: NaN or infinity
    ends the run.

    Args:
        env: environment whose observations are a one-dimensional Box.
        seed: of its generator, at the first reset, and of its action space.
    """

    def __init__(self, env: gym.Env, seed: int | None = None):
        super().__init__(env)
        self.name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        self.steps = 0
        self._seed = self._first_seed = seed
        self._obs_shape = env.observation_space.shape
        self._is_watched = watchdog.is_on
        self.action_space.seed(seed)
        # The episode under way: how it began, its actions, and what came of the last
        self._origin: dict[str, Any] | None = None
        self._actions: list[Any] = []
        self._last_obs = np.empty(0)
        self._saved_episode: dict[str, Any] | None = None
        space = self.action_space
        self._is_box = isinstance(space, Box)
        if isinstance(space, Box):
            self._low, self._high = space.low.reshape(-1), space.high.reshape(-1)
            self._shape, self._dtype = space.shape, space.dtype

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; the first one with the seed, unless another is given."""
        seed = kwargs.pop("seed", None)
        if seed is None:  # as a wrapper around this one passes it on
            seed = self._seed
        self._seed = None
        self._origin, self._actions = dict(seed=seed, generator=self._generator_state()), []
        if self._is_watched:
            still_alive(self._where)
        try:
            obs, info = self.env.reset(seed=seed, **kwargs)
        except Exception as error:
            self._explain(error)
            raise
        obs = np.array(obs)  # a copy: some environments go on to change theirs in place
        self._check_shape(obs)
        self._check("observation", obs)
        self._last_obs = obs
        return obs, info

    def step(self, action):
        """Steps the environment; see ``gymnasium.Env.step``."""
        if self._is_box:
            if math.isnan(action.sum()) and np.isnan(action).any():
                self._refuse_nan(action)
            action = np.minimum(np.maximum(action, self._low), self._high)
            action = action.astype(self._dtype, copy=False).reshape(self._shape)
        else:
            if math.isnan(action):
                self._refuse_nan(action)
            action = int(action) + self.action_space.start
        self._actions.append(action)
        if self._is_watched:
            still_alive(self._where)
        try:
            obs, rew, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            self._explain(error)
            raise
        self.steps += 1
        self._last_obs = obs = np.array(obs)
        self._check_shape(obs)
        self._check("observation", obs)
        if not math.isfinite(rew):
            self._check("reward", np.asarray(rew))
        return obs, float(rew), bool(terminated), bool(truncated), info

    def random_action(self) -> np.ndarray:
        """Samples an action uniformly, as an array of shape ``(act_dim,)``."""
        return self.action_space.sample().reshape(-1)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs: generators, and how the episode came to be."""
        return {
            "steps": self.steps,
            "seed": self._seed,
            "generator": self._generator_state(),
            "action_space": self.action_space.np_random.bit_generator.state,
            "episode": {
                "origin": self._origin,
                "actions": np.array(self._actions),
                "obs": self._last_obs,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the episode is `continue_episode`'s to restore."""
        self.steps, self._seed = state["steps"], state["seed"]
        self._set_generator(state["generator"])
        self.action_space.np_random.bit_generator.state = state["action_space"]
        self._saved_episode = state["episode"]

    def continue_episode(self) -> tuple[np.ndarray, float, int]:
        """Starts an episode, or plays the one in which a checkpoint was taken up to there.

        An environment's own state can't be saved, but what made it can: the generator at the
        episode's start, and the actions since. Where that leads elsewhere, because the environment
        isn't deterministic, a warning says so and a new episode starts.

        Returns:
            The observation ``(obs_dim,)``, and the episode's return and length so far.
        """
        saved, self._saved_episode = self._saved_episode, None
        if saved is None or saved["origin"] is None:
            return self.reset()[0], 0.0, 0
        steps, generator, global_state = self.steps, self._generator_state(), _global_state()
        try:
            obs, ep_ret = self._replay(saved)
        except Exception as error:  # noqa: BLE001 (whatever an environment may raise)
            obs, reason = None, f"{type(error).__name__}: {error}"
        else:
            reason = "the observation after it is another"
        self.steps = steps
        self._set_generator(generator)
        _set_global_state(global_state)
        if obs is not None and np.array_equal(obs, saved["obs"], equal_nan=True):
            return obs, ep_ret, len(saved["actions"])
        warnings.warn(
            f"{self.name} can't be brought back into the episode that the checkpoint was taken in "
            f"({reason}): it isn't deterministic, or keeps state between episodes. A new episode "
            "starts, and the run isn't the one without a break",
            stacklevel=2,
        )
        return self.reset()[0], 0.0, 0

    def _replay(self, saved):
        origin = saved["origin"]
        self._set_generator(origin["generator"])
        obs, _ = self.reset(seed=origin["seed"])
        self._origin = origin
        ep_ret = 0.0
        for action in saved["actions"]:
            obs, rew, *_ = self.step(action.reshape(-1) if self._is_box else action)
            ep_ret += rew
        return obs, ep_ret

    def _generator_state(self):
        generator = getattr(self.unwrapped, "np_random", None)
        return None if generator is None else generator.bit_generator.state

    def _set_generator(self, state):
        if state is not None:
            self.unwrapped.np_random.bit_generator.state = state

    def _check(self, quantity, value):
        # One sum is cheaper than a test of each number; it may overflow where none is infinite.
        if not math.isfinite(value.sum()) and not np.isfinite(value).all():
            raise FloatingPointError(
                f"{self.name} returned NaN or infinity in the {quantity} at step {self.steps}: "
                f"{value} ({self._circumstances()})"
            )

    def _check_shape(self, obs):
        if obs.shape != self._obs_shape or obs.dtype.kind not in "fiub":
            raise ValueError(
                f"{self.name} returned an observation of shape {obs.shape} and dtype {obs.dtype} "
                f"at step {self.steps}, which is not of its observation_space, "
                f"{self.observation_space} ({self._circumstances()})"
            )

    def _refuse_nan(self, action):
        raise FloatingPointError(
            f"the policy chose NaN in the action {action} at step {self.steps} of {self.name}: its "
            "parameters are NaN, as after a step of a large learning rate; lower it, or look at "
            "the rewards' scale"
        )

    def _explain(self, error):
        """Adds to an environment's exception, which stays what it is, how to bring it about."""
        note = f"raised by {self._where()}"
        error.__notes__ = [*getattr(error, "__notes__", []), note]  # as add_note of Python 3.11

    def _where(self):
        return f"{self.name} at step {self.steps} ({self._circumstances()})"

    def _circumstances(self):
        """Says by what to bring an error about again."""
        action = f", last action {self._actions[-1]}" if self._actions else ", at a reset"
        return f"seed {self._first_seed}{action}"


def _global_state():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_global_state(state):
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def make_env(env_fn: EnvFn, seed: int | None = None) -> AdaptedEnv:
    """Makes an environment for an algorithm.

    Args:
        env_fn: Gymnasium id, or function that returns a new environment.
        seed: of the environment and its action space.

    Returns:
        The environment; observations that aren't one-dimensional Boxes are flattened.

    Raises:
        ValueError: its spaces can't be handled.
        TypeError: `env_fn` is neither, or returns no Gymnasium environment.
    """
    if isinstance(env_fn, gym.Env) or not (isinstance(env_fn, str) or callable(env_fn)):
        raise TypeError(
            f"env_fn must be an environment's id, or a function that returns a new environment, "
            f"not {env_fn!r}; such as lambda: gym.make('CartPole-v1')"
        )
    env = gym.make(env_fn) if isinstance(env_fn, str) else env_fn()
    if not isinstance(env, gym.Env):
        raise TypeError(
            f"env_fn returned a {type(env).__module__}.{type(env).__name__}, which is not a "
            "gymnasium.Env; an environment of the old gym works through the package shimmy"
        )
    if not (isinstance(env.observation_space, Box) and len(env.observation_space.shape) == 1):
        space = env.observation_space
        if not _has_flat_form(space):
            raise ValueError(f"Observations of {space} can't be flattened to a vector of numbers")
        env = gym.wrappers.FlattenObservation(env)
    return AdaptedEnv(env, seed)


def _has_flat_form(space):
    try:
        return isinstance(gym.spaces.utils.flatten_space(space), Box)
    except NotImplementedError:  # a space of the environment's own
        return False


def space_dim(space: Space) -> int:
    """Returns the number of features of a Box, or of choices of a Discrete space."""
    if isinstance(space, Discrete):
        return int(space.n)
    assert isinstance(space, Box), space
    return math.prod(space.shape)


def box_bounds(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Returns a Box's lower and upper bounds, each as a float32 array ``(act_dim,)``."""
    assert isinstance(space, Box), space
    return space.low.reshape(-1).astype(np.float32), space.high.reshape(-1).astype(np.float32)


def check_action_space(space: Space, algorithm: str, discrete: bool, bounded: bool) -> None:
    """Refuses an action space that an algorithm can't handle.

    Args:
        space: the environment's action space.
        algorithm: its name.
        discrete: whether it handles Discrete actions.
        bounded: whether it needs finite bounds.

    Raises:
        ValueError: naming the space, and who can handle it.
    """
    if isinstance(space, Discrete) and not discrete:
        raise ValueError(f"{algorithm} needs continuous actions (a Box), not {space}; use ppo")
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
        low, high = box_bounds(space)
        with np.errstate(over="ignore", invalid="ignore"):
            is_bounded = np.isfinite(high - low).all()
        if bounded and not is_bounded:
            raise ValueError(
                f"{algorithm} needs a Box of finite bounds, not {space}; use ppo, or bound the "
                "actions with gymnasium.wrappers.TransformAction"
            )
        return
    if not isinstance(space, Discrete):
        handled = "Box of floating-point numbers" + (" or Discrete" if discrete else "")
        raise ValueError(
            f"{algorithm} handles actions of a {handled}, not {space}, and no other algorithm here "
            "does; wrap the environment to one of these"
        )


def seed_everything(seed: int) -> np.random.Generator:
    """Seeds torch, NumPy and Python; returns a generator for the policy's and buffer's draws."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    return np.random.default_rng(seed)


def describe_env(env: gym.Env) -> dict[str, Any]:
    """Returns what is needed to make an environment again, for ``config.json``.

    Returns:
        ``env`` (id, kwargs, time limit, and wrappers beyond the id's; None where there is no id),
        ``observation_space`` and ``action_space``.
    """
    spec = env.spec
    spaces = {
        "observation_space": describe_space(env.observation_space),
        "action_space": describe_space(env.action_space),
    }
    if spec is None:
        return {"env": None, **spaces}
    made = {"id": spec.id, "kwargs": dict(spec.kwargs), "wrappers": _own_wrappers(env)}
    return {"env": made | {"max_episode_steps": spec.max_episode_steps}, **spaces}


def _own_wrappers(env):
    """Names the wrappers that the function which made the environment added to gym.make's."""
    known = {AdaptedEnv, gym.wrappers.FlattenObservation, gym.wrappers.TimeLimit}
    known |= {gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker}
    names = []
    while isinstance(env, gym.Wrapper):
        if type(env) not in known:
            names.append(type(env).__name__)
        env = env.env
    return names


def describe_space(space: Space) -> dict[str, Any]:
    """Returns a one-dimensional Box or a Discrete space as JSON."""
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    assert isinstance(space, Box), space
    return {
        "type": "Box",
        "shape": list(space.shape),
        "dtype": str(space.dtype),
        "low": _bound(space.low),
        "high": _bound(space.high),
    }


def _bound(bound):
    """Returns a Box's bounds as one number where all are equal."""
    return bound.flat[0].item() if (bound == bound.flat[0]).all() else bound.tolist()


def restore_space(description: dict[str, Any]) -> Space:
    """Returns the space that `describe_space` described.

    Raises:
        ValueError: it describes none.
    """
    try:
        if description["type"] == "Discrete":
            return Discrete(description["n"], start=description["start"])
        shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
        low, high = (np.full(shape, np.array(description[k], dtype)) for k in ("low", "high"))
        return Box(low, high, shape, dtype.type)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{description!r} describes no Box or Discrete space ({error})") from None
