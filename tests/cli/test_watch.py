"""Watching policies: returns as in a naive loop, rendering, videos, the command line."""

from __future__ import annotations

import importlib.util
import os
import re
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from spinup.cli import policies
from spinup.cli.watch import load_policy_and_env, main, record_frames, run_policy
from tests.algos.runs import train

needs_pygame = pytest.mark.skipif(
    not importlib.util.find_spec("pygame"), reason="pygame draws these environments"
)
needs_moviepy = pytest.mark.skipif(
    not importlib.util.find_spec("moviepy"), reason="MoviePy writes videos"
)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    """The folder of a PPO run; its episodes were cut off after 30 steps."""
    folder = tmp_path_factory.mktemp("runs") / "cartpole_s0"
    train("ppo", "CartPole-v1", folder, max_ep_len=30)
    return folder


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """The folder of a SAC run; its episodes were cut off after 10 steps."""
    folder = tmp_path_factory.mktemp("runs") / "pendulum_s0"
    train("sac", "Pendulum-v1", folder)
    return folder


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


class Ramp(gym.Env):
    """Returns the rewards 1, 2, 3, …; episodes never end, and a step may raise an error."""

    def __init__(self, fails_at=None, error=KeyboardInterrupt):
        self.observation_space, self.action_space = Box(-1, 1, (1,)), Box(-1, 1, (1,))
        self.steps, self.resets, self.actions = 0, 0, []
        self.fails_at, self.error = fails_at, error

    def reset(self, *, seed=None, options=None):
        self.reward, self.resets = 0, self.resets + 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.actions.append(action)
        self.steps += 1
        self.reward += 1
        if self.steps == self.fails_at:
            raise self.error
        return np.zeros(1, np.float32), self.reward, False, False, {}


def still(obs):
    return np.zeros(1, np.float32)


# --- run_policy -----------------------------------------------------------------------------------


def test_returns_and_lengths_are_those_of_a_naive_loop(cartpole):
    env, get_action = load_policy_and_env(cartpole, deterministic=True, seed=5)
    returns, lengths = run_policy(env, get_action, num_episodes=4, render=False)

    env = gym.make("CartPole-v1")
    expected = []
    for episode in range(4):
        obs, _ = env.reset(seed=5 if episode == 0 else None)
        ret, terminated = 0, False
        while not terminated and ret < 30:
            obs, rew, terminated, _, _ = env.step(int(get_action(obs)))
            ret += rew
        expected.append(ret)
    assert returns == lengths == expected


def test_what_is_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    returns, lengths = run_policy(Ramp(), still, max_ep_len=3, num_episodes=2, render=False)
    assert (returns, lengths) == ([6.0, 6.0], [3, 3])
    assert capsys.readouterr().out == (
        "Episode 0 \t EpRet 6.000 \t EpLen 3\n"
        "Episode 1 \t EpRet 6.000 \t EpLen 3\n"
        "-------------------------------------\n"
        "|        Episodes |               2 |\n"
        "|    AverageEpRet |               6 |\n"
        "|        StdEpRet |               0 |\n"
        "|        MaxEpRet |               6 |\n"
        "|        MinEpRet |               6 |\n"
        "|           EpLen |               3 |\n"
        "-------------------------------------\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("max_ep_len", "length"), [(None, 10), (4, 4), (300, 200), (0, 200)])
def test_episodes_are_cut_off_as_in_training_unless_told_otherwise(pendulum, max_ep_len, length):
    env, get_action = load_policy_and_env(pendulum)
    _, lengths = run_policy(env, get_action, max_ep_len, num_episodes=1, render=False)
    assert lengths == [length]


def test_ctrl_c_ends_with_the_statistics_so_far(capsys):
    returns, lengths = run_policy(Ramp(fails_at=8), still, 3, num_episodes=9, render=False)
    assert (returns, lengths) == ([6.0, 6.0], [3, 3])
    out = capsys.readouterr().out
    assert "Interrupted in episode 2" in out
    assert "|        Episodes |               2 |" in out
    assert run_policy(Ramp(fails_at=2), still, 3, render=False) == ([], [])
    assert "No episode ended." in capsys.readouterr().out


def test_an_environment_made_elsewhere_is_stepped_as_in_training(pendulum):
    env = gym.wrappers.TransformObservation(
        Ramp(), lambda obs: np.zeros((1, 3)), Box(-1, 1, (1, 3))
    )
    _, get_action = load_policy_and_env(pendulum, env_fn="Pendulum-v1")
    assert abs(get_action(np.zeros(3))).item() <= 2
    run_policy(env, lambda obs: [5.0], 1, 1, render=False)
    assert env.unwrapped.actions == [[5.0]]  # a user's own function isn't clipped
    run_policy(env, get_action, 50, 1, render=False)
    actions = np.concatenate(env.unwrapped.actions[1:])
    assert len(actions) == 50
    assert abs(actions).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (None, still),
            r"no environment to run the policy in: pass env_fn=\.\.\. to load_policy_and",
        ),
        ((Ramp(), still, 5, 0), "num_episodes must be at least 1, not 0"),
        ((Ramp(), still, -1), "max_ep_len must be at least 0 .no limit., not -1"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_policy(*arguments, render=False)


# --- Rendering ------------------------------------------------------------------------------------


def test_without_a_display_it_runs_unrendered_and_says_so(cartpole, capsys):
    env, get_action = load_policy_and_env(cartpole)
    assert len(run_policy(env, get_action, num_episodes=1)[0]) == 1
    assert (
        "there is no display. To record videos: test_policy ... --video" in capsys.readouterr().out
    )
    run_policy(Ramp(), still, 3, 1)
    assert "make the environment with render_mode='human'" in capsys.readouterr().out


@needs_pygame
def test_with_a_display_it_opens_a_window_and_closes_it(cartpole, monkeypatch, capsys):
    windows = []

    def rendered(env, render_mode):
        assert render_mode == "human"
        windows.append(open_window(env, render_mode))
        return windows[-1]

    open_window = policies.RunEnv.rendered
    monkeypatch.setattr(policies.RunEnv, "rendered", rendered)
    monkeypatch.setattr("spinup.cli.watch.has_display", lambda: True)
    env, get_action = load_policy_and_env(cartpole, seed=1)
    with_window = run_policy(env, get_action, num_episodes=1)
    assert "Not rendering" not in capsys.readouterr().out
    assert not windows[0].unwrapped.isopen
    env, get_action = load_policy_and_env(cartpole, seed=1)
    assert run_policy(env, get_action, num_episodes=1, render=False) == with_window
    assert len(windows) == 1


def test_rendering_that_fails_says_what_it_needs(cartpole, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)  # as if it weren't installed
    env, get_action = load_policy_and_env(cartpole)
    with pytest.raises(
        ValueError, match=r"can't render .DependencyNotInstalled: .*pip install '.\[video\]'"
    ):
        record_frames(env, get_action)


@needs_pygame
def test_frames_show_the_episode(cartpole):
    env, get_action = load_policy_and_env(cartpole, deterministic=True, seed=5)
    frames = record_frames(env, get_action, max_ep_len=6)
    assert frames.shape == (7, 400, 600, 3)
    assert frames.dtype == np.uint8
    expected = gym.make("CartPole-v1", render_mode="rgb_array")
    obs, _ = expected.reset(seed=5)
    for frame in frames:
        np.testing.assert_array_equal(frame, expected.render())
        obs, *_ = expected.step(int(get_action(obs)))
    assert len(record_frames(env, get_action, max_ep_len=6, every=3)) == 3
    assert env.render_mode is None


def test_frames_need_an_environment_that_draws_them():
    with pytest.raises(ValueError, match="has render_mode None: make it with 'rgb_array'"):
        record_frames(Ramp(), still)


# --- The command ----------------------------------------------------------------------------------


def test_the_command(cartpole, run_python):
    words = ["-m", "spinup.run", "test_policy", str(cartpole), "-nr", "-n", "3", "-l", "5", "-d"]
    result = run_python([*words, "--seed", "1"])
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^Episode \d \t EpRet 5.000 \t EpLen 5$", result.stdout, re.M) != []
    assert "|        Episodes |               3 |" in result.stdout
    assert result.stderr == ""


def test_the_command_repeats_itself_with_a_seed(pendulum, capsys):
    def out(*words):
        assert main([str(pendulum), "-nr", "-n", "2", *words]) == 0
        return capsys.readouterr().out

    assert out("--seed", "1") == out("--seed", "1") != out("--seed", "2")
    assert out("--seed", "1", "-d") == out("--seed", "1", "-d") != out("--seed", "1")
    assert out("--seed", "1", "-i", "-1", "-l", "10") == out("--seed", "1", "--itr", "last")


def test_the_command_interrupted(cartpole, monkeypatch, capsys):
    monkeypatch.setattr("spinup.cli.watch.load_env", lambda *_: gym.wrappers.TimeLimit(Ramp(4), 3))
    monkeypatch.setattr("spinup.cli.watch.load_policy", lambda *_, **__: still)
    assert main([str(cartpole), "-nr"]) == 130
    assert "|        Episodes |               1 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: DIR"),
        (["RUN", "--fast"], "unrecognized arguments: --fast"),
        (["RUN", "-n", "many"], "argument --episodes/-n: invalid int value: 'many'"),
        (["RUN", "-n", "0"], "num_episodes must be at least 1, not 0"),
        (["RUN", "-l", "-3"], "max_ep_len must be at least 0 (no limit), not -3"),
        (["RUN", "-i", "1e3"], "argument --itr/-i: expected a number, 'last' or 'best', not '1e3'"),
        (["RUN", "-i", "../../x"], "argument --itr/-i: expected a number, 'last' or 'best'"),
        (["RUN", "-i", "7"], "holds no save 7: it has last"),
        (["RUN_s"], "There is no folder"),
        (["RUN/.."], "is not a run folder: it has no config.json; did you mean"),
        (["RUN/config.json"], "There is no folder"),
        (["RUN", "--video", "RUN/config.json"], "File exists"),
    ],
)
def test_an_invalid_command_is_refused(cartpole, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main([word.replace("RUN", str(cartpole)) for word in words])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert err.startswith("spinup test_policy: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Episode" not in out


def test_an_environment_of_a_function_needs_python(tmp_path, capsys):
    train("ppo", Ramp, tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert re.search(r"has no id, .*: pass env_fn=.*, from Python", capsys.readouterr().err)


# --- Videos ---------------------------------------------------------------------------------------


@needs_pygame
@needs_moviepy
def test_a_video_of_every_episode(cartpole, tmp_path, capsys, monkeypatch):
    import imageio_ffmpeg

    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time it replaces the files
        assert main([str(cartpole), "-n", "2", "-l", "8", "--seed", "3", "--video", "videos"]) == 0
    assert (
        f"Videos: {os.path.join('videos', 'cartpole_s0')}-episode-*.mp4" in capsys.readouterr().out
    )
    videos = sorted(tmp_path.rglob("*"))
    assert [path.name for path in videos] == [
        "videos", "cartpole_s0-episode-0.mp4", "cartpole_s0-episode-1.mp4",
    ]  # fmt: skip
    for path in videos[1:]:
        frames, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
        assert frames == 9


def test_videos_need_moviepy(cartpole, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy", None)  # as if it weren't installed
    with pytest.raises(SystemExit, match="2"):
        main([str(cartpole), "--video", str(tmp_path / "videos")])
    expected = (
        "spinup test_policy: --video needs MoviePy: in the checkout, pip install '.[video]'\n"
    )
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "videos").exists()
