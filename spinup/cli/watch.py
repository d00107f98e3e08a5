"""Watches a trained policy: runs episodes, prints their returns, and records videos.

``python -m spinup.run test_policy data/demo/demo_s0 -n 5``
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from spinup.cli.parser import Parser
from spinup.cli.policies import (
    LoadedPolicy,
    RunEnv,
    cannot_render,
    has_display,
    load_env,
    load_policy,
    load_policy_and_env,
)
from spinup.runs.folder import BEST
from spinup.runs.wording import one_line
from spinup.utils.envs import AdaptedEnv, make_env

__all__ = ["load_policy_and_env", "main", "record_frames", "run_policy"]


def run_policy(
    env: gym.Env | None,
    get_action: Callable[[np.ndarray], Any],
    max_ep_len: int | None = None,
    num_episodes: int = 100,
    render: bool = True,
) -> tuple[list[float], list[int]]:
    """Runs episodes, and prints the return and length of each and statistics of all.

    Ctrl-C stops the episodes; the statistics so far are printed.

    Args:
        env: the environment, from `load_policy_and_env` or any other. For a policy from
            `load_policy_and_env`, it is wrapped to flatten observations and clip actions, as in
            training.
        get_action: function that maps an observation to an action.
        max_ep_len: environment steps after which an episode is cut off; 0 for no limit. By default
            the limit in training.
        num_episodes: number of episodes.
        render: show the episodes in a window if there is a display.

    Returns:
        The returns and the lengths of the episodes.

    Raises:
        ValueError: `env` is None, an argument is out of range, or the environment can't render.
    """
    if env is None:
        raise ValueError(
            "There is no environment to run the policy in: pass env_fn=... to load_policy_and_env, "
            "or make the environment yourself and pass it to run_policy"
        )
    if num_episodes < 1:
        raise ValueError(f"num_episodes must be at least 1, not {num_episodes}")
    window = _open_window(env) if render else None
    stage = _adapted(window or env, get_action)
    limit = _limit(get_action, max_ep_len)
    returns: list[float] = []
    lengths: list[int] = []
    try:
        for episode in range(num_episodes):
            rewards = [rew for _, rew in _episode(stage, get_action, limit)]
            returns.append(float(sum(rewards)))
            lengths.append(len(rewards))
            print(
                f"Episode {episode} \t EpRet {returns[-1]:.3f} \t EpLen {lengths[-1]}", flush=True
            )
    except KeyboardInterrupt:
        print(f"\nInterrupted in episode {len(returns)}", flush=True)
    finally:
        if window is not None:
            window.close()
    _print_statistics(returns, lengths)
    return returns, lengths


def record_frames(
    env: gym.Env,
    get_action: Callable[[np.ndarray], Any],
    max_ep_len: int | None = None,
    every: int = 1,
) -> np.ndarray:
    """Runs one episode and returns its frames, for example for a notebook.

    Args:
        env: the environment, from `load_policy_and_env`, or any other with ``render_mode``
            ``"rgb_array"``.
        get_action: function that maps an observation to an action.
        max_ep_len: as for `run_policy`.
        every: environment steps between frames.

    Returns:
        An array of frames ``(frames, height, width, 3)`` of dtype uint8; the first frame shows the
        start of the episode.

    Raises:
        ValueError: the environment can't render.
    """
    stage = env
    if isinstance(env, RunEnv) and env.render_mode != "rgb_array":
        stage = env.rendered("rgb_array")
    if stage.render_mode != "rgb_array":
        raise ValueError(
            f"The environment has render_mode {stage.render_mode!r}: make it with 'rgb_array'"
        )
    frames = []
    try:
        limit, adapted = _limit(get_action, max_ep_len), _adapted(stage, get_action)
        for step, _ in _episode(adapted, get_action, limit, with_start=True):
            if step % every == 0:
                with _explaining_rendering(stage):
                    frames.append(np.asarray(stage.render(), dtype=np.uint8))
    finally:
        if stage is not env:
            stage.close()
    return np.stack(frames)


def _episode(
    env: gym.Env, get_action: Callable, limit: int, with_start: bool = False
) -> Iterator[tuple[int, float]]:
    """Runs one episode; yields the number (from 1) and reward of each step.

    With `with_start`, it first yields 0 and 0.0 after the reset.
    """
    with _explaining_rendering(env) if env.render_mode else contextlib.nullcontext():
        obs, _ = env.reset()
    if with_start:
        yield 0, 0.0
    step, ended = 0, False
    while not ended and step != (limit or None):
        obs, rew, terminated, truncated, _ = env.step(get_action(obs))
        step, ended = step + 1, terminated or truncated
        yield step, float(rew)


def _limit(get_action, max_ep_len):
    limit = getattr(get_action, "max_ep_len", None) if max_ep_len is None else max_ep_len
    if limit is not None and limit < 0:
        raise ValueError(f"max_ep_len must be at least 0 (no limit), not {limit}")
    return limit or 0


def _adapted(env, get_action):
    """Returns the environment, adapted as in training if the policy is a `LoadedPolicy`."""
    inner = env
    while isinstance(inner, gym.Wrapper) and not isinstance(inner, AdaptedEnv):
        inner = inner.env
    is_as_trained = isinstance(inner, AdaptedEnv) or not isinstance(get_action, LoadedPolicy)
    return env if is_as_trained else make_env(lambda: env)


def _print_statistics(returns, lengths):
    if not returns:
        print("No episode ended.")
        return
    rows = {
        "Episodes": len(returns),
        "AverageEpRet": np.mean(returns),
        "StdEpRet": np.std(returns),
        "MaxEpRet": np.max(returns),
        "MinEpRet": np.min(returns),
        "EpLen": np.mean(lengths),
    }
    line = "-" * 37
    table = [f"| {name:>15} | {value:>15.6g} |" for name, value in rows.items()]
    print("\n".join([line, *table, line]), flush=True)


# --- Rendering ------------------------------------------------------------------------------------


def _open_window(env):
    """Returns the environment with a window, or None after printing the reason."""
    if env.render_mode == "human":
        return None  # it already has a window
    if not isinstance(env, RunEnv):
        print("Not rendering: make the environment with render_mode='human' for a window.")
    elif not has_display():
        print("Not rendering: there is no display. To record videos: test_policy ... --video DIR")
    elif not env.metadata.get("render_modes"):
        print("Not rendering: this environment doesn't support it.")
    else:
        return env.rendered("human")
    return None


@contextlib.contextmanager
def _explaining_rendering(env):
    try:
        yield
    except FloatingPointError:
        raise
    except Exception as error:
        raise cannot_render(error) from error


def _recorded(env, video_folder, name):
    """Wraps an environment so that every episode is recorded as a video."""
    if importlib.util.find_spec("moviepy") is None:
        raise ModuleNotFoundError("--video needs MoviePy: in the checkout, pip install '.[video]'")
    return gym.wrappers.RecordVideo(
        env, video_folder, episode_trigger=lambda episode: True, name_prefix=name
    )


# --- Command line ---------------------------------------------------------------------------------


# fmt: off
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command `test_policy`, and returns the exit status."""
    parser = Parser("test_policy", "Runs a trained policy.")
    add = parser.add_argument
    add("fpath", metavar="DIR", help="the run folder, such as data/demo/demo_s0")
    add("--episodes", "-n", type=int, default=100, metavar="N",
        help="episodes to run (%(default)s)")
    add("--len", "-l", type=int, metavar="LEN",
        help="steps after which an episode is cut off, 0 for no limit (as in training)")
    add("--norender", "-nr", action="store_true", help="open no window")
    add("--itr", "-i", type=_iteration, default="last", metavar="ITR",
        help="number of the save to load, or best (the last one)")
    add("--best", dest="itr", action="store_const", const=BEST,
        help="load the policy with the highest return, in tests or, if there are none, in training")
    add("--deterministic", "-d", action="store_true", help="use the mode of the policy")
    add("--video", metavar="DIR", help="record each episode as an MP4 in this folder")
    add("--seed", type=int, metavar="S", help="seed of environment and policy (none)")
    args = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(Overwriting existing|zero frames to save)")
            returns = _watch(args)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        parser.error(one_line(error))
    return 0 if len(returns) == args.episodes else 130  # after Ctrl-C
# fmt: on


def _iteration(word):
    if word in ("last", "-1"):
        return "last"
    if word == BEST:
        return BEST
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number, 'last' or 'best', not {word!r}")
    return int(word)


def _watch(args):
    get_action = load_policy(args.fpath, args.itr, args.deterministic, seed=args.seed)
    env: gym.Env = load_env(args.fpath, None, "rgb_array" if args.video else None, args.seed)
    if args.video:
        name = re.sub(r"[^\w.+=-]", "_", Path(args.fpath).resolve().name)
        env = _recorded(env, args.video, name)
    try:
        render = not (args.norender or args.video)
        returns, _ = run_policy(env, get_action, args.len, args.episodes, render)
    finally:
        env.close()
    if args.video:
        print(f"Videos: {os.path.join(args.video, name)}-episode-*.mp4")
    return returns


if __name__ == "__main__":
    sys.exit(main())
