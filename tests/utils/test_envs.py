import json
import random
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Space,
    Tuple,
)

from spinup.utils.envs import (
    check_action_space,
    describe_env,
    describe_space,
    make_env,
    restore_space,
    seed_everything,
    space_dim,
)
from spinup.utils.logx import describe_error

VECTOR = Box(-np.inf, np.inf, (2,), np.float32)


class Recorder(gym.Env):
    """Keeps the actions it gets, and returns what it is told to."""

    def __init__(self, action_space=None, observation_space=VECTOR, outcomes=()):
        self.action_space = action_space or Box(-1, 1, (1,))
        self.observation_space = observation_space
        self.outcomes = iter(outcomes)
        self.actions, self.seeds = [], []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.actions.append(action)
        obs, rew = next(self.outcomes, (self.observation_space.sample(), 0.0))
        return obs, rew, False, False, {}


def recorder(*args, **kwargs):
    """Returns an environment and its adapted form."""
    env = Recorder(*args, **kwargs)
    return env, make_env(lambda: env, seed=0)


# --- Actions ---


@pytest.mark.parametrize(
    "action, taken",
    [
        ([0.5, 0.25], [0.5, 0.25]),
        ([-9, 9], [-1, 0.5]),
        ([9, -9], [3, 0]),
        ([-1, 0.5], [-1, 0.5]),
        ([np.inf, -9], [3, 0]),
    ],
)
def test_actions_are_clipped_to_bounds_that_differ_and_are_asymmetric(action, taken):
    inner, env = recorder(Box(np.float32([-1, 0]), np.float32([3, 0.5])))
    env.reset()
    action = np.float32(action)
    before = action.copy()
    env.step(action)
    assert inner.actions[0].tolist() == taken
    assert np.array_equal(action, before), "the buffer's action was clipped too"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 3), (6,), (1, 6, 1)])
def test_actions_get_the_shape_and_dtype_of_the_box(shape, dtype):
    inner, env = recorder(Box(-1, 1, shape, dtype))
    env.reset()
    env.step(np.linspace(-2, 2, 6, dtype=np.float32))
    expected = np.clip(np.linspace(-2, 2, 6), -1, 1).reshape(shape)
    np.testing.assert_allclose(inner.actions[0], expected, rtol=1e-6)
    assert inner.actions[0].dtype == dtype
    assert inner.action_space.contains(inner.actions[0])
    assert env.random_action().shape == (6,)


def test_actions_of_an_unbounded_box_pass():
    inner, env = recorder(Box(-np.inf, np.inf, (1,)))
    env.reset()
    env.step(np.float32([1e30]))
    assert inner.actions[0].item() == np.float32(1e30)


@pytest.mark.parametrize("index, taken", [(0, 5), (np.int64(3), 8), (np.array(1), 6)])
def test_discrete_actions_count_from_the_spaces_start(index, taken):
    inner, env = recorder(Discrete(4, start=5))
    env.reset()
    env.step(index)
    assert inner.actions == [taken]
    assert type(inner.actions[0]) in (int, np.int64)
    assert inner.action_space.contains(inner.actions[0])


# --- Observations ---


def test_observations_are_copies():
    class InPlace(Recorder):
        state = np.zeros(2, np.float32)

        def reset(self, *, seed=None, options=None):
            self.state[:] = 0
            return self.state, {}

        def step(self, action):
            self.state += 1
            return self.state, 0.0, False, False, {}

    env = make_env(InPlace)
    obs, _ = env.reset()
    next_obs = env.step(np.zeros(1))[0]
    env.step(np.zeros(1))
    assert (obs.tolist(), next_obs.tolist()) == ([0, 0], [1, 1])


@pytest.mark.parametrize(
    "space, observation, flat",
    [
        (Discrete(4), 2, [0, 0, 1, 0]),
        (Discrete(3, start=5), 6, [0, 1, 0]),
        (Box(0, 9, (2, 2), np.int64), np.array([[1, 2], [3, 4]]), [1, 2, 3, 4]),
        (Box(0, 9, (), np.float32), np.float32(7), [7]),
        (
            Dict(b=Discrete(2), a=Box(0, 1, (2,), np.float32)),
            dict(b=1, a=np.float32([0.25, 0.5])),
            [0, 1, 0.25, 0.5],
        ),
        (Tuple([Discrete(2), Discrete(2)]), (0, 1), [1, 0, 0, 1]),
        (MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (MultiBinary(3), np.int8([1, 0, 1]), [1, 0, 1]),
    ],
)
def test_other_observations_are_flattened(space, observation, flat):
    _, env = recorder(observation_space=space, outcomes=[(observation, 1.5)])
    first, _ = env.reset()
    obs, rew, terminated, truncated, info = env.step(np.zeros(1))
    assert obs.tolist() == flat
    assert first.shape == obs.shape == env.observation_space.shape
    assert isinstance(env.observation_space, Box)
    assert (rew, terminated, truncated, info) == (1.5, False, False, {})
    with_wrapper = any(type(w) is gym.wrappers.FlattenObservation for w in wrappers(env))
    assert with_wrapper == (space.shape is None or len(space.shape) != 1 or type(space) is not Box)


def wrappers(env):
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def test_a_vector_is_left_as_it_is():
    _, env = recorder(outcomes=[(np.float32([1, 2]), 0)])
    env.reset()
    assert env.step(np.zeros(1))[0].tolist() == [1, 2]
    assert len(list(wrappers(env))) == 1


class Unheard(Space):
    """A space that Gymnasium knows nothing about."""


@pytest.mark.parametrize(
    "space",
    [
        Sequence(Discrete(2)),
        Graph(Box(0, 1, (1,)), None),
        Dict(a=Sequence(Discrete(2))),
        Unheard((1,), np.float32),
    ],
    ids=["Sequence", "Graph", "Dict of Sequence", "unknown"],
)
def test_observations_that_have_no_vector_are_refused(space):
    with pytest.raises(ValueError, match=r"Observations of .* can't be flattened to a vector"):
        make_env(lambda: Recorder(observation_space=space))


def test_what_is_no_environment_is_refused():
    with pytest.raises(TypeError, match=r"env_fn returned a builtins.list.*shimmy"):
        make_env(list)


def test_an_id_and_a_function_make_the_same_environment():
    by_id, by_function = make_env("CartPole-v1", 3), make_env(lambda: gym.make("CartPole-v1"), 3)
    assert by_id.name == by_function.name == "CartPole-v1"
    assert np.array_equal(by_id.reset()[0], by_function.reset()[0])
    assert make_env(Recorder).name == "Recorder"


# --- Spaces of actions ---


FLOATS, UNBOUNDED = Box(-1, 1, (2,)), Box(-1, np.inf, (2,))


@pytest.mark.parametrize(
    "space, discrete, bounded",
    [
        (FLOATS, False, True),
        (FLOATS, True, False),
        (Box(-1, 1, (2,), np.float64), False, True),
        (UNBOUNDED, True, False),
        (Discrete(3, start=5), True, False),
    ],
)
def test_spaces_that_can_be_handled_pass(space, discrete, bounded):
    check_action_space(space, "algo", discrete, bounded)


@pytest.mark.parametrize(
    "space, discrete, bounded, message",
    [
        (Discrete(3), False, True, r"sac needs continuous actions .* not Discrete\(3\); use ppo"),
        (UNBOUNDED, False, True, r"Box of finite bounds, not Box\(-1.0, inf.*TransformAction"),
        (Box(0, 9, (2,), np.int64), True, False, r"floating-point numbers or Discrete, not Box"),
        (Box(0, 9, (2,), np.int64), False, True, r"floating-point numbers, not Box"),
        (MultiDiscrete([2, 2]), True, False, r"sac handles .*, not MultiDiscrete\(\[2 2\]\)"),
        (MultiBinary(2), True, False, r"not MultiBinary\(2\), and no other algorithm here does"),
        (Tuple([FLOATS, FLOATS]), False, True, r"not Tuple\(.*; wrap the environment"),
        (Dict(a=FLOATS), True, False, r"not Dict\("),
    ],
)
def test_other_spaces_are_refused_by_name(space, discrete, bounded, message):
    with pytest.raises(ValueError, match=message):
        check_action_space(space, "sac", discrete, bounded)


# --- NaN and infinity ---


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_numbers_stop_the_run_with_environment_step_and_quantity(bad):
    good = np.float32([1, 2])
    outcomes = [(good, 0.0), (good, 1.0), (np.float32([1, bad]), 0.0)]
    _, env = recorder(outcomes=outcomes)
    env.reset()
    env.step(np.zeros(1))
    env.step(np.zeros(1))
    message = r"Recorder returned NaN or infinity in the observation at step 3: \[ *1. *-?(nan|inf)"
    with pytest.raises(FloatingPointError, match=message):
        env.step(np.zeros(1))

    _, env = recorder(outcomes=[(good, 0.0), (good, bad)])
    env.reset()
    env.step(np.zeros(1))
    with pytest.raises(
        FloatingPointError, match=r"NaN or infinity in the reward at step 2: -?(nan|inf)"
    ):
        env.step(np.zeros(1))


def test_a_bad_action_is_not_blamed_on_the_environment():
    _, env = recorder()
    env.reset()
    with pytest.raises(FloatingPointError, match=r"policy chose NaN .* at step 0 of Recorder"):
        env.step(np.array([np.nan]))


@pytest.mark.parametrize("env_fn", [None, 3, Recorder()])
def test_an_environment_instead_of_a_function_is_refused(env_fn):
    with pytest.raises(TypeError, match="env_fn must be an environment's id, or a function"):
        make_env(env_fn)


def test_both_infinities_do_not_hide_each_other():
    _, env = recorder(outcomes=[(np.float32([np.inf, -np.inf]), 0.0)])
    env.reset()
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match="observation"):
        env.step(np.zeros(1))


def test_a_bad_first_observation_stops_the_run():
    class Bad(Recorder):
        def reset(self, **kwargs):
            return np.float32([np.nan, 0]), {}

    with pytest.raises(
        FloatingPointError, match=r"Bad returned NaN .* in the observation at step 0"
    ):
        make_env(Bad).reset()


@pytest.mark.parametrize(
    "obs", [np.array([1.7e308, 1.7e308]), np.zeros(2, np.float64), np.array([255, 3], np.uint8)]
)
def test_large_but_finite_numbers_pass(obs):
    _, env = recorder(observation_space=Box(0, 1, (2,), obs.dtype), outcomes=[(obs, 1e300)])
    env.reset()
    with np.errstate(over="ignore"):
        assert np.array_equal(env.step(np.zeros(1))[0], obs)


def test_steps_are_counted_over_episodes():
    _, env = recorder()
    for _ in range(3):
        env.reset()
        env.step(np.zeros(1))
    assert env.steps == 3


# --- Seeds ---


def test_the_first_reset_has_the_seed_and_later_ones_go_on():
    inner = Recorder()
    env = make_env(lambda: inner, seed=7)
    for _ in range(3):
        env.reset()
    env.reset(seed=9)
    assert inner.seeds == [7, None, None, 9]


def rollout(seed):
    env = make_env("Pendulum-v1", seed)
    seen = [env.reset()[0]]
    acts = [env.random_action() for _ in range(5)]
    seen += [env.step(act)[0] for act in acts] + [env.reset()[0]]
    return np.array(seen), np.array(acts)


def test_a_seed_fixes_environment_and_action_space():
    (obs, acts), (same_obs, same_acts), (other_obs, other_acts) = map(rollout, (3, 3, 10003))
    assert np.array_equal(obs, same_obs)
    assert np.array_equal(acts, same_acts)
    assert not np.array_equal(obs, other_obs)
    assert not np.array_equal(acts, other_acts)


def test_seed_everything():
    def draws(seed):
        rng = seed_everything(seed)
        return rng.random(), torch.rand(1).item(), np.random.rand(), random.random()

    first, other = draws(3), draws(4)
    assert draws(3) == first
    assert all(a != b for a, b in zip(first, other))
    seed_everything(2**32 - 1 + 30_000)  # the greatest seed, on rank 3


# --- Descriptions ---


@pytest.mark.parametrize(
    "space",
    [
        Discrete(3),
        Discrete(3, start=5),
        Box(-1, 1, (2,)),
        Box(np.float32([-1, 0]), np.float32([3, 0.1])),
        Box(0, 255, (4,), np.uint8),
        Box(-np.inf, np.inf, (2,), np.float64),
        Box(np.float32([-1, -np.inf]), np.float32([np.inf, 0.1])),
        gym.make("CartPole-v1").observation_space,
    ],
    ids=str,
)
def test_a_space_comes_back_from_json(space):
    from spinup.runs.json_values import convert_json

    text = json.dumps(convert_json(describe_space(space)), allow_nan=False)
    assert restore_space(json.loads(text)) == space


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"type": "Tuple"},
        {"type": "Discrete", "n": 0, "start": 0},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": [1, 2, 3], "high": 4},
        {"type": "Box", "shape": [2], "dtype": "no such", "low": 0, "high": 4},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": "x", "high": 4},
    ],
)
def test_what_describes_no_space_is_an_error(description):
    with pytest.raises(ValueError, match="describes no Box or Discrete space"):
        restore_space(description)


def test_an_environment_is_described_by_what_makes_it_again():
    made = gym.wrappers.TransformReward(
        gym.make("CartPole-v1", sutton_barto_reward=True, max_episode_steps=77), lambda rew: 2 * rew
    )
    described = describe_env(make_env(lambda: made))
    assert described["env"] == {
        "id": "CartPole-v1",
        "kwargs": {"sutton_barto_reward": True},
        "wrappers": ["TransformReward"],
        "max_episode_steps": 77,
    }
    assert described["action_space"] == {"type": "Discrete", "n": 2, "start": 0}
    assert restore_space(described["observation_space"]) == made.observation_space


def test_an_environment_without_an_id_is_described_by_its_spaces():
    described = describe_env(make_env(lambda: Recorder(observation_space=Discrete(3))))
    assert described["env"] is None
    assert described["observation_space"]["shape"] == [3]


def test_a_wrapper_around_it_keeps_the_first_seed():
    inner = make_env("CartPole-v1", seed=3)
    obs, _ = gym.Wrapper(inner).reset()
    expected, _ = gym.make("CartPole-v1").reset(seed=3)
    assert np.array_equal(obs, expected)


# --- Faults ---


class Faulty(gym.Env):
    """Does what it is told at one of its steps."""

    observation_space, action_space = Box(-9, 9, (2,)), Box(-1, 1, (1,))

    def __init__(self, at, fault):
        self.at, self.fault, self.count = at, fault, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.fault() if self.at == "reset" else np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        obs = self.fault() if self.count == self.at else np.zeros(2, np.float32)
        return obs, 0.0, False, False, {}


def _raise():
    raise KeyError("by test")


@pytest.mark.parametrize(
    "fault, kind, message",
    [
        (_raise, KeyError, "by test"),
        (
            lambda: np.zeros(3),
            ValueError,
            r"shape \(3,\) and dtype float64 at step {after}, ",
        ),
        (
            lambda: np.array("ab"),
            ValueError,
            r"shape \(\) and dtype <U2 at step {after}, ",
        ),
        (lambda: [0, np.nan], FloatingPointError, r"NaN .* at step {after}: .*\(seed 7, {action}"),
    ],
)
@pytest.mark.parametrize("at", ["reset", 1, 500])
def test_what_an_environment_does_wrong_is_told_with_the_circumstances(fault, kind, message, at):
    env = make_env(lambda: Faulty(at, fault), 7)
    step = 0 if at == "reset" else at - 1
    after = 0 if at == "reset" else at
    action = "at a reset" if at == "reset" else r"last action \[0.25\]"
    with pytest.raises(kind, match=message.format(step=step, after=after, action=action)) as raised:
        env.reset()
        for _ in range(1000):
            env.step(np.array([0.25], np.float32))
    if fault is _raise:  # the exception is the environment's own, with a note
        said = describe_error(raised.value)
        assert re.search(rf"by test.; raised by Faulty at step {step} \(seed 7, {action}\)$", said)


@pytest.mark.parametrize(
    "space, dim", [(VECTOR, 2), (Discrete(4, start=5), 4), (Box(0, 1, (2, 3)), 6)]
)
def test_space_dim(space, dim):
    assert space_dim(space) == dim
