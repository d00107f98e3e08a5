"""Makes and seeds environments, adapts them to the algorithms, and checks their results."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import importlib
import inspect
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space, Tuple

from spinup.runs.watchdog import still_alive, watchdog
from spinup.runs.wording import one_line
from spinup.utils.mpi_tools import proc_id

EnvFn = Callable[[], gym.Env] | str

FLOAT32_MAX = float(np.finfo(np.float32).max)


class AdaptedEnv(gym.Wrapper):
    """An environment as the algorithms see it.

    An action is the index of a Discrete action, or an array of shape ``(act_dim,)``, which is
    clipped to the Box and converted to its shape and dtype. Each observation and reward is checked:
    NaN or infinity ends the run. The results of the first reset and the first step are also checked
    against the environment's spaces and Gymnasium's interface.

    Args:
        env: environment whose observation space is a one-dimensional Box.
        seed: seed of the environment's generator at the first reset, and of its action space.

    Attributes:
        given: the environment before its observations were flattened.
        name: the environment's id, or its class name if it has no id.
        steps: number of environment steps so far.
    """

    def __init__(self, env: gym.Env, seed: int | None = None):
        super().__init__(env)
        self.given = env.env if type(env) is gym.wrappers.FlattenObservation else env
        self.name = _name(env)
        self.steps = 0
        self._seed = self._first_seed = seed
        self._obs_shape = env.observation_space.shape
        self._is_watched = watchdog.is_on
        self._reset_env = functools.partial(self._call_first, "reset")
        self._step_env = functools.partial(self._call_first, "step")
        # A copy: a test environment that shares the space must not draw from its generator
        self.action_space.seed(seed)
        self.action_space = copy.deepcopy(self.action_space)
        # The current episode: seed and generator at its start, its actions, its last observation
        self._origin: dict[str, Any] | None = None
        self._actions: list[Any] = []
        self._last_obs = self._weights = np.empty(0)
        self._saved_episode: dict[str, Any] | None = None
        space = self.action_space
        self._is_box = isinstance(space, Box)
        if isinstance(space, Box):
            self._low, self._high = space.low.reshape(-1), space.high.reshape(-1)
            self._shape, self._dtype = space.shape, space.dtype

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode. The first one uses the environment's seed unless another is given."""
        seed = kwargs.pop("seed", None)
        if seed is None:  # not given, or passed on as None by an outer wrapper
            seed = self._seed
        self._seed = None
        self._origin, self._actions = dict(seed=seed, generator=self._generator_state()), []
        if self._is_watched:
            still_alive(self._where)
        try:
            obs, info = self._reset_env(seed=seed, **kwargs)
        except Exception as error:
            self._explain(error)
            raise
        obs = np.array(obs)  # a copy: some environments change theirs in place
        self._check_shape(obs)
        self._weights = _weights_for_check(obs)
        if not math.isfinite(obs.dot(self._weights)):
            self._refuse("observation", obs)
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
            obs, rew, terminated, truncated, info = self._step_env(action)
        except Exception as error:
            self._explain(error)
            raise
        self.steps += 1
        self._last_obs = obs = np.array(obs)
        self._check_shape(obs)
        if not math.isfinite(obs.dot(self._weights)):
            self._refuse("observation", obs)
        if not math.isfinite(rew):
            self._refuse("reward", np.asarray(rew))
        return obs, float(rew), bool(terminated), bool(truncated), info

    def random_action(self) -> np.ndarray:
        """Samples an action uniformly, as an array of shape ``(act_dim,)``."""
        return self.action_space.sample().reshape(-1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of the generators, and the data to replay the current episode."""
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
        """Restores what `state_dict` returned; `continue_episode` replays the episode."""
        self.steps, self._seed = state["steps"], state["seed"]
        self._set_generator(state["generator"])
        self.action_space.np_random.bit_generator.state = state["action_space"]
        self._saved_episode = state["episode"]

    def continue_episode(self) -> tuple[np.ndarray, float, int]:
        """Starts an episode. After `load_state_dict`, replays the saved episode instead.

        The state of an environment can't be saved. Instead, a checkpoint holds the generator's
        state at the start of the episode, and the actions since. If the replay ends with another
        observation because the environment isn't deterministic, a warning is issued and a new
        episode starts.

        Returns:
            The observation ``(obs_dim,)``, and the episode's return and length so far.
        """
        saved, self._saved_episode = self._saved_episode, None
        if saved is None or saved["origin"] is None:
            return self.reset()[0], 0.0, 0
        steps, generator = self.steps, self._generator_state()
        with generators_kept():
            try:
                obs, ep_ret = self._replay(saved)
            except Exception as error:  # noqa: BLE001 (whatever an environment may raise)
                obs, reason = None, f"{type(error).__name__}: {error}"
            else:
                reason = "the replay ends with another observation"
        self.steps = steps
        self._set_generator(generator)
        if obs is not None and np.array_equal(obs, saved["obs"], equal_nan=True):
            return obs, ep_ret, len(saved["actions"])
        warnings.warn(
            f"{self.name} can't replay the checkpoint's episode ({reason}): it isn't "
            "deterministic, or keeps state between episodes. A new episode starts, so that the run "
            "differs from an uninterrupted one",
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

    def _refuse(self, quantity, value):
        """Raises FloatingPointError if a number is NaN or infinite, or too large for float32."""
        where = f"in the {quantity} at step {self.steps}: {value} ({self._circumstances()})"
        if not np.isfinite(value).all():
            raise FloatingPointError(f"{self.name} returned NaN or infinity {where}")
        if quantity == "observation" and np.abs(value).max() > FLOAT32_MAX:
            raise FloatingPointError(
                f"{self.name} returned a number beyond the range of 32-bit floats {where}; scale "
                "it with a wrapper"
            )

    def _check_shape(self, obs):
        if obs.shape != self._obs_shape or obs.dtype.kind not in "fiub":
            raise ValueError(
                f"{self.name} returned an observation of shape {obs.shape} and dtype {obs.dtype} "
                f"at step {self.steps}, which doesn't match its observation_space, "
                f"{self.observation_space} ({self._circumstances()})"
            )

    def _refuse_nan(self, action):
        raise FloatingPointError(
            f"the policy chose NaN in the action {action} at step {self.steps} of {self.name}: its "
            "parameters are NaN, usually because the learning rate is too large; lower it, or "
            "check the scale of the rewards"
        )

    def _call_first(self, method, *args, **kwargs):
        """Calls ``reset`` or ``step`` for the first time, and checks the result.

        The result of each layer is checked, because a wrapper may fail on a wrong result of the
        layer below. A wrapper may also correct it, so that a fault is an error only if an exception
        follows, or if the outermost layer has a fault, too.
        """
        faults = []  # innermost layer first

        def check(layer, result):
            fault = _FAULTS[method](result, getattr(layer, "observation_space", None))
            if fault:
                faults.append((layer, fault))

        try:
            with _observed(self.given, method, check):
                result = getattr(self.env, method)(*args, **kwargs)
        except Exception as error:
            if faults:
                raise self._fault(method, faults) from error
            raise
        if faults and faults[-1][0] is self.given:
            raise self._fault(method, faults)
        setattr(self, f"_{method}_env", getattr(self.env, method))
        return result

    def _fault(self, method, faults):
        what, remedy = fault = faults[-1][1]
        layer = next(layer for layer, same in faults if same == fault)  # outer layers passed it on
        by = f" wrapped in {type(layer).__name__}" if isinstance(layer, gym.Wrapper) else ""
        step = self.steps + (method == "step")
        return ValueError(
            f"{self.name}{by} returned {what} at step {step}{remedy} ({self._circumstances()})"
        )

    def _explain(self, error):
        """Adds a note to an environment's exception that says how to reproduce it."""
        if self._circumstances() in str(error):
            return
        note = f"raised by {self._where()}"
        error.__notes__ = [*getattr(error, "__notes__", []), note]  # as add_note of Python 3.11

    def _where(self):
        return f"{self.name} at step {self.steps} ({self._circumstances()})"

    def _circumstances(self):
        """Returns the seed and the last action, which help to reproduce an error."""
        action = f", last action {self._actions[-1]}" if self._actions else ", at a reset"
        return f"seed {self._first_seed}{action}"


def _weights_for_check(obs):
    """Returns weights for a sum that is finite only if every number is finite in float32.

    One weighted sum is cheaper than a test of each number. The sum may overflow although every
    number is finite; `AdaptedEnv._refuse` then tests each number.
    """
    is_double = obs.dtype.kind == "f" and obs.dtype.itemsize > 4
    weight = float(np.finfo(np.float64).max) / FLOAT32_MAX if is_double else 1.0
    return np.full(obs.shape, weight, obs.dtype if obs.dtype.kind == "f" else np.float64)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Restores the global random generators of Python, NumPy and torch after the block."""
    import torch  # not above: the command line checks environments without it

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if of_gpu is not None:
            torch.cuda.set_rng_state(of_gpu)


def make_env(env_fn: EnvFn, seed: int | None = None) -> AdaptedEnv:
    """Makes an environment for an algorithm.

    Args:
        env_fn: Gymnasium id, or a function that returns a new environment.
        seed: seed of the environment and its action space.

    Returns:
        The environment. Observations that aren't one-dimensional Boxes are flattened.

    Raises:
        ValueError: the environment can't be made, or its spaces can't be handled.
        TypeError: `env_fn` is neither an id nor a function that returns a Gymnasium environment.
    """
    return make_envs(env_fn, seed)[0]


def make_envs(env_fn: EnvFn, *seeds: int | None) -> list[AdaptedEnv]:
    """Makes one environment for each seed; see `make_env`.

    Raises:
        ValueError: see `make_env`; also if `env_fn` returns the same environment twice.
        TypeError: see `make_env`.
    """
    envs = [AdaptedEnv(_adapt(_make(env_fn)), seed) for seed in seeds]
    if len({id(env.unwrapped) for env in envs}) < len(envs):
        raise ValueError(
            f"env_fn returned the same {envs[0].name} twice, so that tests would end episodes of "
            "training: it must make a new environment at each call, as lambda: MyEnv() does"
        )
    if proc_id() == 0:
        for line in _doubts(envs[0]):
            warnings.warn(line, stacklevel=2)
    return envs


def _make(env_fn):
    if isinstance(env_fn, gym.Env) or not (isinstance(env_fn, str) or callable(env_fn)):
        raise TypeError(
            "env_fn must be an environment's id, or a function that returns a new environment "
            f"such as lambda: gym.make('CartPole-v1'), not {env_fn!r}"
        )
    env = _make_by_id(env_fn, {}) if isinstance(env_fn, str) else env_fn()
    if isinstance(env, gym.Env):
        return env
    remedy = "return an instance of a subclass"
    if hasattr(env, "num_envs"):
        remedy = (
            "a rank steps one environment: return a single one, and start several ranks "
            "(--cpu N, num_cpu=N) to step several at once"
        )
    elif any(cls.__module__.partition(".")[0] == "gym" for cls in type(env).__mro__):
        remedy = "convert an environment of the old gym with the package shimmy"
    raise TypeError(f"env_fn returned {_describe(env)}, which is not a gymnasium.Env; {remedy}")


def _adapt(env):
    """Checks an environment, and flattens its observations to a one-dimensional Box."""
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, Space):
            has = f"no {name}" if space is None else f"{space!r} as its {name}"
            raise ValueError(
                f"{_name(env)} has {has}: set it in __init__ to a space of gymnasium.spaces, such "
                "as Box(-1.0, 1.0, (3,))"
            )
    for layer in _layers(env):
        if not _takes_seed(layer.reset):
            raise ValueError(
                f"{type(layer).__name__}.reset takes no seed: define it as "
                "reset(self, *, seed=None, options=None), and call super().reset(seed=seed) in it"
            )
    space = env.observation_space
    if not (isinstance(space, Box) and len(space.shape) == 1):
        if not _has_flat_form(space):
            raise ValueError(f"Observations of {space} can't be flattened to a vector of numbers")
        env = gym.wrappers.FlattenObservation(env)
    for name in ("observation_space", "action_space"):
        if 0 in (getattr(env, name).shape or ()):
            space = getattr(env.unwrapped, name)
            raise ValueError(f"the {name} of {_name(env)} is empty: {space} holds no numbers")
    return env


def _has_flat_form(space):
    try:
        return isinstance(gym.spaces.utils.flatten_space(space), Box)
    except (NotImplementedError, ValueError):  # a custom space, or an empty Dict
        return False


def _takes_seed(reset):
    try:
        parameters = inspect.signature(reset).parameters.values()
    except (TypeError, ValueError):  # it has no readable signature
        return True
    return any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)


def _name(env):
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _layers(env):
    """Yields an environment's wrappers from the outermost, then the environment itself."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _doubts(env):
    """Yields a warning for each property of an environment that is probably unintended."""
    for layer in _layers(env):
        # By name: the class may be Gymnasium's, another library's or the user's
        kinds = {type(value).__name__ for value in getattr(layer, "__dict__", {}).values()}
        if "RunningMeanStd" in kinds and getattr(layer, "update_running_mean", True):
            yield (
                f"{type(layer).__name__} of {env.name} keeps running statistics, which aren't "
                "saved with the policy: test episodes, other ranks and a loaded policy use "
                "different statistics, so that their returns differ from training's. For "
                "observations, use normalize_obs=True (--normalize_obs) instead, whose statistics "
                "belong to the policy; scale rewards by a fixed number with "
                "gymnasium.wrappers.TransformReward"
            )
    for image in _images(env.given.observation_space):
        yield (
            f"{env.name} returns images of shape {image.shape}: they are flattened to "
            f"{math.prod(image.shape):,} unscaled inputs, and the library has no networks for "
            "images. Make them smaller with gymnasium.wrappers.GrayscaleObservation and "
            "ResizeObservation, scale them with DtypeObservation(env, np.float32) and "
            "RescaleObservation(env, 0.0, 1.0), or pass your own convolutional actor_critic"
        )


def _images(space):
    """Returns a space's image spaces: Boxes of bytes from 0 to 255 with several dimensions."""
    if isinstance(space, (Dict, Tuple)):
        parts = space.values() if isinstance(space, Dict) else space
        return [image for part in parts for image in _images(part)]
    is_bytes = isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) > 1
    return [space] if is_bytes and space.high.max() == 255 else []


# --- The first reset and step ---------------------------------------------------------------------


@contextlib.contextmanager
def _observed(env, method, see):
    """Calls ``see(layer, result)`` after each layer's call of a method in the block."""

    def call(layer, original, *args, **kwargs):
        result = original(*args, **kwargs)
        see(layer, result)
        return result

    replaced = []
    for layer in _layers(env):
        own = getattr(layer, "__dict__", None)  # a class with __slots__ may have none
        if own is not None:
            watched = functools.partial(call, layer, getattr(layer, method))
            replaced.append((own, own.get(method), watched))
            own[method] = watched
    try:
        yield
    finally:
        for own, before, watched in replaced:
            if own.get(method) is watched:
                del own[method]
                own.update({} if before is None else {method: before})


def _fault_of_reset(result, space):
    """Returns a fault in the result of a reset and its remedy, or None if it has no fault.

    Args:
        result: the value that ``reset`` returned.
        space: the observation space.
    """
    is_pair = isinstance(result, (tuple, list)) and len(result) == 2
    if not (is_pair and isinstance(result[1], Mapping)):
        return _describe(result), (
            ", not (observation, info): return obs, {}; the package shimmy converts environments "
            "of the old gym"
        )
    return _fault_of_obs(result[0], space)


def _fault_of_step(result, space):
    """Returns a fault in the result of a step and its remedy; see `_fault_of_reset`."""
    if not (isinstance(result, (tuple, list)) and len(result) == 5):
        return _describe(result), (
            ", not (observation, reward, terminated, truncated, info): set terminated at an end "
            "of the task, and truncated at a time limit; the package shimmy converts environments "
            "of the old gym"
        )
    obs, rew, terminated, truncated, _ = result
    if not _is_scalar(rew, "fiub"):
        return f"{_describe(rew)} as the reward", ", not a number: return float(reward)"
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        if not _is_scalar(value, "b"):
            return f"{_describe(value)} as {name}", ", not True or False: return bool(...)"
    return _fault_of_obs(obs, space)


_FAULTS = {"reset": _fault_of_reset, "step": _fault_of_step}


def _fault_of_obs(obs, space):
    fault = _mismatch(obs, space)
    return fault and (
        f"an observation that {fault}",
        f", which doesn't match its observation_space, {space}",
    )


def _mismatch(obs, space):
    """Returns how an observation differs from its space, or None if it matches.

    The bounds of a Box and the precision of its numbers are ignored, as networks don't need them.
    """
    if isinstance(space, Dict):
        if not isinstance(obs, Mapping):
            return f"is {_describe(obs)}"
        lacks = [key for key in space if key not in obs]
        parts = {key: _mismatch(obs[key], space[key]) for key in space if key not in lacks}
        wrong = [f"has a {key!r} that {fault}" for key, fault in parts.items() if fault]
        return next(iter([f"lacks the key {key!r}" for key in lacks] + wrong), None)
    if isinstance(space, Tuple):
        if not isinstance(obs, (tuple, list)) or len(obs) != len(space):
            return f"is {_describe(obs)}"
        parts = dict(enumerate(map(_mismatch, obs, space)))
        wrong = [f"has a part {i} that {fault}" for i, fault in parts.items() if fault]
        return next(iter(wrong), None)
    if isinstance(space, Box):
        array = _as_array(obs)
        is_of_it = array is not None and array.shape == space.shape and array.dtype.kind in "fiub"
        shown = (
            _describe(obs) if array is None else f"of shape {array.shape} and dtype {array.dtype}"
        )
        return None if is_of_it else f"is {shown}"
    return None if space is None or space.contains(obs) else f"is {_describe(obs)}"


def _as_array(value):
    try:
        return np.asarray(value)
    except Exception:  # noqa: BLE001 (a ragged list, a tensor on a GPU, ...)
        return None


def _is_scalar(value, kinds):
    array = _as_array(value)
    return array is not None and array.shape == () and array.dtype.kind in kinds


def _describe(value):
    """Returns a short description of any value."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, (bool, int, float, str, type(None))):
        return repr(value)
    return f"an object of {type(value).__module__}.{type(value).__qualname__}"


# --- Environments by id ---------------------------------------------------------------------------

# Extras of this package for Gymnasium's environments, as in `pip install ".[box2d]"`. Each has the
# name of the environments' module in gymnasium.envs.
_EXTRAS = ("box2d", "mujoco")


def check_env(
    env_id: Any,
    env_kwargs: Mapping[str, Any] | None = None,
    algorithm: str = "",
    algorithms: Mapping[str, Any] | None = None,
) -> list[str]:
    """Makes an environment and closes it, to find errors before anything runs.

    Args:
        env_id: id of the environment: ``Name-v0``, or ``module:Name-v0`` with the module that
            registers it.
        env_kwargs: keyword arguments of the environment.
        algorithm: name of the algorithm that will use the environment.
        algorithms: the action spaces that each algorithm handles, `spinup.algos.ALGORITHMS`. The
            action space isn't checked if it has no entry for `algorithm`.

    Returns:
        Warnings about the environment, one line each: of a newer version, of images, ...

    Raises:
        ValueError: the environment can't be made or handled; the message is one line with the
            remedy.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = make_env(lambda: _make_by_id(env_id, env_kwargs or {}))
    with contextlib.closing(env):
        if algorithms and algorithm in algorithms:
            check_action_space(env.action_space, algorithm, algorithms)
    # Only warnings about the id and from this file; the run's log shows the others
    sources = (gym.envs.registration.__file__, __file__)
    lines = [" ".join(str(w.message).split()) for w in caught if w.filename in sources]
    return [re.sub(r"\x1b\[\d*m|WARN: ", "", line) for line in lines]


def _make_by_id(env_id, kwargs):
    """Calls `gymnasium.make`, and raises each of its many errors as a ValueError."""
    if not isinstance(env_id, str):
        raise ValueError(f"the environment must be an id such as CartPole-v1, not {env_id!r}")
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(f"{env_id}: can't import {module!r} ({one_line(error)})") from error
    try:
        return gym.make(name, **kwargs)
    except Exception as error:  # and so may a user's environment
        raise ValueError(_why_not_made(name, kwargs, error)) from error


def _why_not_made(name, kwargs, error):
    """Returns the cause and the remedy of an error of `gymnasium.make` in one line."""
    newest = _newest_version(name)
    spec = gym.registry.get(name) or gym.registry.get(newest)
    extra = next(
        (e for e in _EXTRAS if spec and f"gymnasium.envs.{e}" in str(spec.entry_point)), ""
    )
    argument = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    # Gymnasium's registry still lists environments that were removed and can't be imported.
    if isinstance(error, gym.error.DeprecatedEnv) or (
        type(error) is ImportError and newest != name
    ):
        return f"{name} is retired: use {newest}"
    if isinstance(error, gym.error.UnregisteredEnv):
        meant = f"did you mean {newest}? An" if newest else "an"
        return (
            f"no environment {name!r} is registered with Gymnasium: {meant} environment of another "
            "package is written module:Name-v0"
        )
    if extra and isinstance(error, (ImportError, gym.error.DependencyNotInstalled)):
        return (
            f"{name} needs packages that aren't installed ({one_line(error).partition(',')[0]}): "
            f'in the checkout of spinup, run pip install ".[{extra}]"'
        )
    if isinstance(error, TypeError) and argument and argument[1] in kwargs:
        accepted = _arguments_of(spec)
        known = f": it takes {', '.join(accepted)}" if accepted else ""
        return f"{name} takes no argument {argument[1]!r} (env_kwargs){known}"
    given = f" with env_kwargs {dict(kwargs)}" if kwargs else ""
    return f"{name!r} can't be made{given}: {type(error).__name__}: {one_line(error)}"


def _newest_version(name):
    """Returns the newest version of the registered environment with the nearest name, or None."""
    versions: dict[str, list[str]] = {}
    for env_id in gym.registry:
        versions.setdefault(env_id.lower().rpartition("-v")[0], []).append(env_id)
    near = difflib.get_close_matches(name.lower().partition("-v")[0], versions, 1, cutoff=0.7)
    return max(versions[near[0]], key=lambda k: int(k.rpartition("-v")[2])) if near else None


def _arguments_of(spec):
    """Returns the names of an environment's keyword arguments."""
    entry = spec.entry_point
    make = gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, p in inspect.signature(make).parameters.items() if p.kind in kinds]


# --- Spaces ---------------------------------------------------------------------------------------


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


def check_action_space(space: Space, algorithm: str, algorithms: Mapping[str, Any]) -> None:
    """Checks that an algorithm can handle an action space.

    Args:
        space: the environment's action space.
        algorithm: name of the algorithm.
        algorithms: the action spaces that each algorithm handles, `spinup.algos.ALGORITHMS`.

    Raises:
        ValueError: the algorithm can't; the message names the space and the algorithms that can.
    """
    kinds = _kinds(space)
    able = [name for name, entry in algorithms.items() if kinds & {*entry.actions}]
    if algorithm in able:
        return
    remedy = "no other algorithm handles it; wrap the environment to have such actions"
    if able:
        *others, last = able
        remedy = f"use {', '.join(others)} or {last}" if others else f"use {last}"
    if "Box" in kinds:
        remedy += ", or bound the actions with gymnasium.wrappers.TransformAction"
    handled = " or a ".join(algorithms[algorithm].actions)
    handled = handled.replace("Box", "Box of floating-point numbers")
    raise ValueError(f"{algorithm} handles actions of a {handled}, not {space}; {remedy}")


def _kinds(space):
    """Returns the kinds of action space to which a space belongs, as named in `spinup.algos`."""
    if isinstance(space, Discrete):
        return {"Discrete"}
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        return set()
    low, high = box_bounds(space)
    with np.errstate(over="ignore", invalid="ignore"):
        is_bounded = np.isfinite(high - low).all()
    return {"Box", "bounded Box"} if is_bounded else {"Box"}


def seed_everything(seed: int) -> np.random.Generator:
    """Seeds torch, NumPy and Python; returns a generator for the policy and the buffer."""
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    return np.random.default_rng(seed)


def describe_env(env: gym.Env) -> dict[str, Any]:
    """Describes an environment in ``config.json``, so that it can be made again.

    Returns:
        ``env`` (id, kwargs, time limit, and wrappers that `gymnasium.make` didn't add; None for an
        environment without an id), ``observation_space`` and ``action_space``.
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
    """Returns the names of the wrappers that neither `gymnasium.make` nor this library added."""
    known = {AdaptedEnv, gym.wrappers.FlattenObservation, gym.wrappers.TimeLimit}
    known |= {gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker}
    names = []
    while isinstance(env, gym.Wrapper):
        if type(env) not in known:
            names.append(type(env).__name__)
        env = env.env
    return names


def describe_space(space: Space) -> dict[str, Any]:
    """Describes a Box or a Discrete space as JSON."""
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
    """Returns the bounds of a Box as a list, or as one number if all are equal."""
    return bound.flat[0].item() if (bound == bound.flat[0]).all() else bound.tolist()


def restore_space(description: dict[str, Any]) -> Space:
    """Returns the space that `describe_space` described.

    Raises:
        ValueError: `description` describes no Box or Discrete space.
    """
    try:
        if description["type"] == "Discrete":
            return Discrete(description["n"], start=description["start"])
        shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
        low, high = (np.full(shape, np.array(description[k], dtype)) for k in ("low", "high"))
        return Box(low, high, shape, dtype.type)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{description!r} describes no Box or Discrete space ({error})") from None
