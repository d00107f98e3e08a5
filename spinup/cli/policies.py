"""Loads the policy and the environment of a run from its folder.

The network is rebuilt from ``config.json`` and the saved weights, the environment from its id and
its arguments. A run folder may come from anyone, so it isn't trusted; see `spinup.runs.loading`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import socket
import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete, Space
from torch import nn

from spinup.runs.folder import CONFIG
from spinup.runs.json_values import qualified_name
from spinup.runs.loading import (
    ANY_NAME,
    find_weights,
    import_module,
    import_network_class,
    load_weights,
    read_run_config,
    restore_ac_kwargs,
)
from spinup.runs.wording import one_line
from spinup.utils.acting import acting_policy
from spinup.utils.envs import EnvFn, make_env, restore_space, seed_everything
from spinup.utils.normalization import NormalizedActorCritic
from spinup.utils.wrapping import make_wrapped, wrap

StrPath = str | os.PathLike

MAKE_WRAPPED = qualified_name(make_wrapped)


class CannotRebuildEnv(ValueError):
    """The environment of a run can't be made again, at least not on this machine."""


# --- Loading --------------------------------------------------------------------------------------


def load_policy_and_env(
    fpath: StrPath,
    itr: int | str = "last",
    deterministic: bool = False,
    actor_critic: Callable[..., nn.Module] | None = None,
    ac_kwargs: dict[str, Any] | None = None,
    env_fn: EnvFn | None = None,
    render_mode: str | None = None,
    seed: int | None = None,
) -> tuple[gym.Env | None, LoadedPolicy]:
    """Loads a trained policy and the environment in which it was trained.

    Args:
        fpath: the run folder.
        itr: number of the save, as given to ``save_state``. ``"last"`` is the save without a
            number, or if there is none, the save with the highest number. ``"best"`` is the policy
            with the highest average return in tests or, if there are none, in training.
        deterministic: use the mode of the policy's distribution instead of samples.
        actor_critic: the class (or function) that builds the networks, if it can't be imported.
        ac_kwargs: its keyword arguments, if they can't be read from the run folder.
        env_fn: environment id, or function that makes the environment, if it can't be made from the
            run folder.
        render_mode: render mode of the environment, ``"human"`` or ``"rgb_array"``.
        seed: seed of the environment and of the policy's samples (also seeds torch and NumPy).

    Returns:
        The environment, which flattens observations and clips actions as in training, and the
        policy, a function that maps an observation to an action. If the environment can't be made
        without `env_fn`, it is None, and a warning gives the reason.

    Raises:
        FileNotFoundError: this is not a run folder, or it contains no policy.
        ValueError: the policy can't be rebuilt from the folder.
    """
    get_action = load_policy(fpath, itr, deterministic, actor_critic, ac_kwargs, seed)
    try:
        return load_env(fpath, env_fn, render_mode, seed), get_action
    except CannotRebuildEnv as error:
        warnings.warn(str(error), stacklevel=2)
        return None, get_action


def load_policy(
    fpath: StrPath,
    itr: int | str = "last",
    deterministic: bool = False,
    actor_critic: Callable[..., nn.Module] | None = None,
    ac_kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
) -> LoadedPolicy:
    """Loads a trained policy without its environment; see `load_policy_and_env`."""
    config = read_run_config(Path(fpath))
    ac = load_actor_critic(fpath, itr, actor_critic, ac_kwargs)
    limit = config.get("max_ep_len")
    max_ep_len = int(limit) if isinstance(limit, (int, float)) and limit >= 1 else None
    return LoadedPolicy(ac, deterministic, max_ep_len, seed)


def load_actor_critic(
    fpath: StrPath,
    itr: int | str = "last",
    actor_critic: Callable[..., nn.Module] | None = None,
    ac_kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """Loads the trained networks, on the CPU; see `load_policy_and_env`."""
    folder = Path(fpath)
    config = read_run_config(folder)
    weights = find_weights(folder, itr)
    spaces = _restore_spaces(config, folder)
    build = actor_critic or import_network_class(config["actor_critic"], folder)
    kwargs = restore_ac_kwargs(config["ac_kwargs"] or {}) if ac_kwargs is None else ac_kwargs
    name = getattr(build, "__name__", repr(build))
    try:
        ac = build(*spaces, **kwargs)
    except Exception as error:
        raise ValueError(
            f"{name} can't be built with ac_kwargs {kwargs}: {one_line(error)}; if these are not "
            "the run's, pass ac_kwargs=..."
        ) from error
    if not isinstance(ac, nn.Module):
        raise ValueError(f"{name} returned a {type(ac).__name__}, which is not a torch.nn.Module")
    if config.get("normalize_obs") is True:
        ac = NormalizedActorCritic(ac, spaces[0])
    load_weights(ac, weights)
    return ac.eval()


def load_env(
    fpath: StrPath,
    env_fn: EnvFn | None = None,
    render_mode: str | None = None,
    seed: int | None = None,
) -> RunEnv:
    """Makes the environment of a run again, without its policy; see `load_policy_and_env`.

    Raises:
        CannotRebuildEnv: (a ValueError) the environment can't be made without `env_fn`.
    """
    folder = Path(fpath)
    remake = functools.partial(_make_run_env, read_run_config(folder), folder, env_fn, seed)
    return RunEnv(remake(render_mode), remake)


class LoadedPolicy:
    """A trained policy as a function of one observation.

    Args:
        ac: the networks.
        deterministic: use the mode of the policy's distribution instead of samples.
        max_ep_len: environment steps after which episodes were cut off in training.
        seed: seed of the samples; custom networks sample from torch's global generator.
    """

    def __init__(
        self,
        ac: nn.Module,
        deterministic: bool = False,
        max_ep_len: int | None = None,
        seed: int | None = None,
    ):
        self.ac, self.deterministic, self.max_ep_len = ac, deterministic, max_ep_len
        rng = np.random.default_rng() if seed is None else seed_everything(seed)
        self._act = acting_policy(ac, rng)

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Returns an action: an array ``(act_dim,)``, or the index of a Discrete action."""
        obs = np.asarray(obs)
        return self._act(obs, self.deterministic)


class RunEnv(gym.Wrapper):
    """The environment of a run, which can be made again with another render mode.

    Args:
        env: the environment.
        remake: makes the environment again with a given render mode.
    """

    def __init__(self, env: gym.Env, remake: Callable[[str | None], gym.Env]):
        super().__init__(env)
        self._remake = remake

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Starts an episode; the first one uses the environment's seed unless `seed` is given."""
        given = {} if seed is None else {"seed": seed}
        return self.env.reset(options=options, **given)

    def rendered(self, render_mode: str) -> RunEnv:
        """Returns a new environment of the same run with this render mode."""
        return RunEnv(self._remake(render_mode), self._remake)


def _restore_spaces(config, folder):
    try:
        return [restore_space(config[key]) for key in ("observation_space", "action_space")]
    except (ValueError, MemoryError) as error:
        where = f"{str(folder / CONFIG)!r} can't be read"
        raise ValueError(f"{where}: {one_line(error)}") from error


# --- The environment ------------------------------------------------------------------------------


def _make_run_env(config, folder, env_fn, seed, render_mode):
    if render_mode is not None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if render_mode not in (None, "human"):
        _render_without_display()
    kwargs = {} if render_mode is None else {"render_mode": render_mode}
    if env_fn is None:
        env_fn = functools.partial(_make_from_config, config, folder, kwargs)
    elif isinstance(env_fn, str):
        env_fn = functools.partial(gym.make, env_fn, **kwargs)
    env = make_env(env_fn, seed)
    if render_mode not in (None, env.render_mode):
        raise ValueError(
            f"env_fn made an environment with render_mode {env.render_mode!r}: pass render_mode="
            f"{render_mode!r} to gymnasium.make in it"
        )
    spaces = (env.observation_space, env.action_space)
    for space, trained in zip(spaces, _restore_spaces(config, folder)):
        if _size(space) != _size(trained):
            raise ValueError(f"{env.name} has {space}, but the policy was trained on {trained}")
    return env


def _size(space: Space):
    return int(space.n) if isinstance(space, Discrete) else space.shape


def _make_from_config(config, folder, render_kwargs):
    """Makes the environment from its id, arguments, time limit and wrappers in config.json."""
    remedy = (
        "pass env_fn=..., a function that makes it, from Python, or make it there yourself and "
        "call run_policy(env, get_action)"
    )
    env = config["env"]
    if env is None:
        raise CannotRebuildEnv(
            f"The environment of {str(folder)!r} was made by a function and has no id, so it can't "
            f"be made again: {remedy}"
        )
    try:
        env_id, wrappers, kwargs = env["id"], env["wrappers"], dict(env["kwargs"])
        limit = -1 if env["max_episode_steps"] is None else int(env["max_episode_steps"])
        module, is_plain = _made_by_id(config.get("env_fn"), env_id)
        named = _named_wrappers(config.get("env_fn"))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"config.json of {str(folder)!r} describes no environment") from error
    if wrappers and not is_plain:
        raise CannotRebuildEnv(
            f"The environment of {str(folder)!r}, {env_id}, was made by a function that wrapped it "
            f"in {', '.join(map(str, wrappers))}: {remedy}"
        )
    kwargs.pop("render_mode", None)
    try:
        if module and env_id not in gym.registry:
            import_module(module, folder)
        if ":" in env_id:
            raise ImportError(f"{env_id!r} is not the id of an environment")
        functions = [_import_wrapper(name, folder) for name in named]
        made = gym.make(env_id, max_episode_steps=limit, **kwargs, **render_kwargs)
        return wrap(made, functions)
    except Exception as error:  # an environment's constructor may raise anything
        if render_kwargs and not isinstance(error, gym.error.Error):
            raise cannot_render(error) from error
        raise CannotRebuildEnv(
            f"The environment {env_id!r} can't be made here ({one_line(error)}): {remedy}"
        ) from error


def _made_by_id(env_fn, env_id):
    """Returns the module to import for ``"module:id"``, and whether env_fn was this id.

    If it was the id, all recorded wrappers are those that the id adds.
    """
    if not isinstance(env_id, str):
        raise TypeError(env_id)
    if isinstance(env_fn, dict) and env_fn.get("partial") == "gymnasium.envs.registration:make":
        env_fn = env_fn["kwargs"].get("id", *env_fn["args"][:1])
    if isinstance(env_fn, dict) and env_fn.get("partial") == MAKE_WRAPPED:
        env_fn = env_fn["args"][0]
    module, _, name = str(env_fn).rpartition(":")
    return (module, True) if name == env_id else ("", False)


def _named_wrappers(env_fn):
    """Returns the names of the wrappers that were given on the command line."""
    if not (isinstance(env_fn, dict) and env_fn.get("partial") == MAKE_WRAPPED):
        return []
    names = env_fn["args"][1]
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise TypeError(names)
    return names


def _import_wrapper(name, folder):
    """Imports a wrapper that config.json names: a wrapper class, or a user's function.

    There is no way to check that a function is meant as a wrapper. So it must be defined in the
    user's own module rather than in an installed package.
    """
    if not ANY_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a function")
    module, _, qualname = name.partition(":")
    found: Any = import_module(module, folder)
    for part in qualname.split("."):
        found = getattr(found, part)
    if inspect.isclass(found) and issubclass(found, gym.Wrapper):
        return found
    if not (inspect.isfunction(found) and found.__module__ == module and _is_own(module)):
        raise ValueError(
            f"{name} is neither a subclass of gymnasium.Wrapper nor a function that is defined in "
            "your own module, and nothing else that a run folder names is called"
        )
    return found


def _is_own(module):
    """Returns True if a module isn't part of an installed package."""
    file = getattr(sys.modules[module], "__file__", None)
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    return file is not None and not any(p in Path(file).resolve().parents for p in installed)


# --- Rendering ------------------------------------------------------------------------------------


def has_display() -> bool:
    """Returns True if there is a display for windows."""
    if os.environ.get("SDL_VIDEODRIVER") in ("dummy", "offscreen"):
        return False
    if sys.platform in ("win32", "cygwin", "darwin") or os.environ.get("WAYLAND_DISPLAY"):
        return True
    return _x_server_answers(os.environ.get("DISPLAY", ""))


def _x_server_answers(display):
    """Returns True if an X server answers; without one, MuJoCo would abort the process."""
    match = re.fullmatch(r"(unix|[\w.-]*):(\d+)(\.\d+)?", display)
    if match is None:
        return bool(display)
    host, number = match[1], int(match[2])
    if host not in ("", "unix"):
        addresses: list = [(socket.AF_INET, (host, 6000 + number))]
    else:
        path = f"/tmp/.X11-unix/X{number}"
        addresses = [(socket.AF_UNIX, path), (socket.AF_UNIX, "\0" + path)]
    for family, address in addresses:
        with contextlib.suppress(OSError), socket.socket(family) as connection:
            connection.settimeout(2)
            connection.connect(address)
            return True
    return False


def _render_without_display():
    """Makes frames render without a display, unless the user has set how."""
    if not has_display():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")


def cannot_render(error: BaseException) -> ValueError:
    """Returns the error to raise for an exception in an environment's rendering."""
    return ValueError(
        f"The environment can't render ({type(error).__name__}: {one_line(error)}): switch "
        "rendering off (-nr, render=False), or install the packages for it (in the checkout: pip "
        "install '.[video]'); for MuJoCo without a display, set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
    )
