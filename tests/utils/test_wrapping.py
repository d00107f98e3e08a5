import pickle
import re

import gymnasium as gym
import pytest

from spinup.launch.entrypoint import with_env_fn
from spinup.runs.json_values import convert_json
from spinup.utils.wrapping import make_wrapped, wrap


class Double(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


class Longer(gym.RewardWrapper):
    def reward(self, reward):
        return reward + 1


def nothing(env):
    return None


def first_reward(env):
    env.reset(seed=0)
    return env.step(env.action_space.sample())[1]


def test_wrappers_are_applied_one_after_another():
    assert first_reward(make_wrapped("CartPole-v1", [Double, Longer])) == 3
    assert first_reward(make_wrapped("CartPole-v1", [Longer, Double])) == 4
    env = make_wrapped("Pendulum-v1", [Double], {"g": 9.0})
    assert env.unwrapped.g == 9.0
    assert wrap(env, []) is env


def test_a_wrapper_that_returns_no_environment_is_named():
    message = "the wrapper nothing returned None, which is not a gymnasium.Env"
    with pytest.raises(TypeError, match=re.escape(message)):
        make_wrapped("CartPole-v1", [Double, nothing])


@pytest.mark.parametrize("by_name", [False, True])
def test_a_run_gets_a_function_that_travels_and_has_names(by_name):
    names = [f"{__name__}:Double", f"{__name__}:Longer"]
    wrappers = names if by_name else [Double, Longer]
    kwargs = {"env_name": "CartPole-v1", "wrappers": wrappers, "env_kwargs": {}}
    env_fn = pickle.loads(pickle.dumps(with_env_fn(kwargs)["env_fn"]))
    assert first_reward(env_fn()) == 3
    assert convert_json(env_fn) == {
        "partial": "spinup.utils.wrapping:make_wrapped",
        "args": ["CartPole-v1", names],
        "kwargs": {},
    }
