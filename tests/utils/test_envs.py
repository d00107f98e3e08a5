import json
import random
import re
import warnings

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
    Text,
    Tuple,
)

from spinup.algos import ALGORITHMS, Algorithm
from spinup.runs.wording import describe_error
from spinup.utils.envs import (
    check_action_space,
    check_env,
    describe_env,
    describe_space,
    generators_kept,
    make_env,
    make_envs,
    restore_space,
    seed_everything,
    space_dim,
)

VECTOR = Box(-np.inf, np.inf, (2,), np.float32)


class Recorder(gym.Env):
    """Records its actions, and returns given observations and rewards."""

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
    """A space that Gymnasium doesn't know."""


@pytest.mark.parametrize(
    "space",
    [
        Sequence(Discrete(2)),
        Graph(Box(0, 1, (1,)), None),
        Dict(a=Sequence(Discrete(2))),
        Unheard((1,), np.float32),
        Dict(),
    ],
    ids=["Sequence", "Graph", "Dict of Sequence", "unknown", "empty"],
)
def test_observations_that_have_no_vector_are_refused(space):
    with pytest.raises(ValueError, match=r"Observations of .* can't be flattened to a vector"):
        make_env(lambda: Recorder(observation_space=space))


class OldGym:
    __module__ = "gym.core"


@pytest.mark.parametrize(
    "env_fn, message",
    [
        (list, r"env_fn returned a list of 0, which is not a gymnasium.Env; return an instance of"),
        (lambda: None, r"env_fn returned None, which is not a gymnasium.Env; return an instance"),
        (lambda: Recorder, r"env_fn returned an object of abc.ABCMeta|builtins.type, .* instance"),
        (type("Older", (OldGym,), {}), r"an object of .*Older, .*; .* with the package shimmy"),
        (
            lambda: gym.make_vec("Pendulum-v1", num_envs=2, vectorization_mode="sync"),
            r"object of gymnasium.*SyncVectorEnv, .*; a rank steps one .*\(--cpu N, num_cpu=N\)",
        ),
    ],
)
def test_what_is_no_environment_is_refused(env_fn, message):
    with pytest.raises(TypeError, match=message):
        make_env(env_fn)


# --- Several environments ---


def test_each_call_makes_an_environment_for_each_seed():
    first, second = make_envs("Pendulum-v1", 3, 4)
    assert first.unwrapped is not second.unwrapped
    assert np.array_equal(first.reset()[0], make_env("Pendulum-v1", 3).reset()[0])
    assert np.array_equal(second.reset()[0], make_env("Pendulum-v1", 4).reset()[0])


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: gym.wrappers.TimeLimit(env, 5)])
def test_one_instance_for_training_and_tests_is_refused(wrap):
    one = Recorder()
    make_env(lambda: wrap(one))  # it may be used once
    with pytest.raises(ValueError, match=r"env_fn returned the same Recorder twice, .* a new env"):
        make_envs(lambda: wrap(one), 0, 5000)


def test_environments_that_share_a_space_draw_their_own_actions():
    space = Box(-1, 1, (3,))  # shared, like an attribute of a class
    first, second = make_envs(lambda: Recorder(space), 3, 4)
    expected = Box(-1, 1, (3,), seed=3)
    for _ in range(3):
        second.random_action()
        assert np.array_equal(first.random_action(), expected.sample())


# --- Warnings at the start ---


class Scaled(gym.ObservationWrapper):
    """A wrapper with another library's running statistics."""

    class RunningMeanStd:
        pass

    def __init__(self, env, update_running_mean=True):
        super().__init__(env)
        self.update_running_mean, self.rms = update_running_mean, self.RunningMeanStd()

    def observation(self, obs):
        return obs


def seen_warnings(env_fn, *seeds):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_envs(env_fn, *seeds)
    return [str(w.message) for w in caught if "WARN: " not in str(w.message)]  # Gymnasium's


@pytest.mark.parametrize(
    "wrap, name",
    [
        (gym.wrappers.NormalizeObservation, "NormalizeObservation"),
        (gym.wrappers.NormalizeReward, "NormalizeReward"),
        (lambda env: gym.wrappers.TimeLimit(Scaled(env), 9), "Scaled"),
    ],
)
def test_running_statistics_are_warned_of_once(wrap, name):
    (line,) = seen_warnings(lambda: wrap(Recorder()), 0, 5000)
    assert line.startswith(f"{name} of Recorder keeps running statistics, which aren't saved")
    assert "use normalize_obs=True (--normalize_obs) instead" in line
    assert "gymnasium.wrappers.TransformReward" in line and hasattr(gym.wrappers, "TransformReward")


def test_only_the_first_rank_warns(monkeypatch):
    monkeypatch.setattr("spinup.utils.envs.proc_id", lambda: 1)
    assert seen_warnings(lambda: gym.wrappers.NormalizeReward(Recorder()), 0) == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: gym.wrappers.RescaleObservation(env, -1.0, 1.0),
        lambda env: gym.wrappers.TransformObservation(env, lambda obs: obs / 2, VECTOR),
        lambda env: gym.wrappers.TransformReward(env, lambda rew: rew / 10),
        lambda env: Scaled(env, update_running_mean=False),  # fixed numbers
    ],
)
def test_the_remedies_of_running_statistics_work_without_a_warning(wrap):
    def made():
        return wrap(Recorder(observation_space=Box(-9, 9, (2,))))

    assert seen_warnings(made, 0, 5000) == []
    env = make_env(made)
    env.reset()
    assert env.step(np.zeros(1))[0].shape == (2,)


IMAGE = Box(0, 255, (8, 6, 3), np.uint8)


@pytest.mark.parametrize("space", [IMAGE, Dict(a=Discrete(2), b=Tuple([IMAGE]))])
def test_images_are_warned_of_once(space):
    (line,) = seen_warnings(lambda: Recorder(observation_space=space), 0, 5000)
    assert "Recorder returns images of shape (8, 6, 3): they are flattened to 144 unscaled" in line
    remedies = re.findall(r"\w+Observation", line)
    assert len(remedies) == 4 and all(hasattr(gym.wrappers, remedy) for remedy in remedies)


def test_the_remedies_of_images_work_without_a_warning():
    def made():
        env = gym.wrappers.GrayscaleObservation(Recorder(observation_space=IMAGE))
        return gym.wrappers.RescaleObservation(
            gym.wrappers.DtypeObservation(env, np.float32), 0.0, 1.0
        )

    assert seen_warnings(made, 0, 5000) == []
    obs, _ = make_env(made).reset()
    assert obs.shape == (48,) and 0.5 < obs.max() <= 1


@pytest.mark.parametrize(
    "space",
    [Box(0, 1, (8, 8, 12), np.uint8), Box(0, 255, (128,), np.uint8), Box(0, 255, (8, 8))],
    ids=["a board", "bytes", "floats"],
)
def test_what_is_no_image_is_not_warned_of(space):
    assert seen_warnings(lambda: Recorder(observation_space=space), 0) == []


def test_an_id_and_a_function_make_the_same_environment():
    by_id, by_function = make_env("CartPole-v1", 3), make_env(lambda: gym.make("CartPole-v1"), 3)
    assert by_id.name == by_function.name == "CartPole-v1"
    assert np.array_equal(by_id.reset()[0], by_function.reset()[0])
    assert make_env(Recorder).name == "Recorder"


# --- Spaces of actions ---


ON_POLICY = ["vpg", "trpo", "ppo"]
FLOATS, UNBOUNDED = Box(-1, 1, (2,)), Box(-1, np.inf, (2,))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "space, able",
    [
        (FLOATS, [*ALGORITHMS]),
        (Box(-1, 1, (2,), np.float64), [*ALGORITHMS]),
        (UNBOUNDED, ON_POLICY),
        (Box(-3e38, 3e38, (2,)), ON_POLICY),  # high - low is beyond float32
        (Discrete(3, start=5), ON_POLICY),
    ],
)
def test_a_space_is_handled_by_some(space, able, algorithm):
    if algorithm in able:
        check_action_space(space, algorithm, ALGORITHMS)
    else:
        with pytest.raises(ValueError, match="use vpg, trpo or ppo"):
            check_action_space(space, algorithm, ALGORITHMS)


@pytest.mark.parametrize(
    "space, algorithm, message",
    [
        (
            Discrete(3),
            "sac",
            r"^sac handles actions of a bounded Box of floating-point numbers, not Discrete\(3\); "
            "use vpg, trpo or ppo$",
        ),
        (
            UNBOUNDED,
            "td3",
            r"not Box\(-1.0, inf.*; use vpg, trpo or ppo, or bound the actions .*TransformAction",
        ),
        (
            Box(0, 9, (2,), np.int64),
            "ppo",
            r"Box of floating-point numbers or a Discrete, not Box.*; no other algorithm handles",
        ),
        (Box(0, 9, (2,), np.int64), "sac", r"floating-point numbers, not Box"),
        (MultiDiscrete([2, 2]), "ppo", r"ppo handles .*, not MultiDiscrete\(\[2 2\]\)"),
        (MultiBinary(2), "ppo", r"not MultiBinary\(2\); no other algorithm handles it"),
        (Tuple([FLOATS, FLOATS]), "sac", r"not Tuple\(.*; wrap the environment"),
        (Dict(a=FLOATS), "ppo", r"not Dict\("),
    ],
)
def test_other_spaces_are_refused_by_name(space, algorithm, message):
    with pytest.raises(ValueError, match=message):
        check_action_space(space, algorithm, ALGORITHMS)


def test_an_algorithm_that_joins_the_table_is_named():
    algorithms = ALGORITHMS | {"dqn": Algorithm("Deep Q-Network", ("Discrete",), "")}
    with pytest.raises(ValueError, match=r"not Discrete\(2\); use vpg, trpo, ppo or dqn$"):
        check_action_space(Discrete(2), "td3", algorithms)
    with pytest.raises(
        ValueError, match=r"^dqn handles actions of a Discrete, not Box.*; use vpg, trpo, ppo, "
    ):
        check_action_space(FLOATS, "dqn", algorithms)


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
    "obs",
    [
        np.array([3.4e38, 3.4e38]),
        np.array([3.4e38, 3.4e38], np.float32),  # its sum isn't finite
        np.zeros(2, np.float64),
        np.array([255, 3], np.uint8),
        np.array([2**62, 2**62]),
    ],
)
def test_large_but_finite_numbers_pass(obs):
    _, env = recorder(observation_space=Box(0, 1, (2,), obs.dtype), outcomes=[(obs, 1e300)])
    env.reset()
    with np.errstate(over="ignore"):
        assert np.array_equal(env.step(np.zeros(1))[0], obs)


@pytest.mark.parametrize("number", [1e39, -1e300])
def test_numbers_beyond_single_precision_stop_the_run(number):
    obs = np.array([0, number])
    _, env = recorder(observation_space=Box(0, 1, (2,), np.float64), outcomes=[(obs, 0.0)])
    env.reset()
    message = (
        r"Recorder returned a number beyond the range of 32-bit floats in the observation at "
        r"step 1: \[.*\] \(seed 0, last action \[0.\]\); scale it with a wrapper"
    )
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match=message):
        env.step(np.zeros(1))


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


# --- Environments by id ---


@pytest.fixture
def register():
    """Registers environments for one test."""
    before = dict(gym.registry)
    yield gym.register
    gym.registry.clear()
    gym.registry.update(before)


def test_an_environment_is_tried_before_anything_runs(register, tmp_path, monkeypatch):
    closed = []

    class Own(Recorder):
        def __init__(self, size=2):
            super().__init__(observation_space=Box(-1, 1, (size,)))

        def close(self):
            closed.append(self.observation_space.shape)

    register("Own-v0", Own)
    assert check_env("Own-v0", None, "sac", ALGORITHMS) == []
    assert check_env("Own-v0", {"size": 3}, "ppo", ALGORITHMS) == []
    assert check_env("Own-v0", {"size": 4}, "somebody's", ALGORITHMS) == []
    assert check_env("Own-v0") == []
    assert closed == [(2,), (3,), (4,), (2,)]

    module = (
        "import gymnasium\ngymnasium.register('OfMine-v3', 'gymnasium.envs.toy_text:TaxiEnv')\n"
    )
    (tmp_path / "registers_own.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    assert check_env("registers_own:OfMine-v3", None, "ppo", ALGORITHMS) == []


@pytest.mark.parametrize(
    "env_id, kwargs, message",
    [
        (
            "CartPole-v1",
            {},
            r"sac handles actions of a bounded Box .* not Discrete\(2\); use vpg, trpo or ppo",
        ),
        (
            "CartPole-v1",
            {"gravity": 1},
            r"takes no argument 'gravity' \(env_kwargs\): it takes sutton_barto_reward, render",
        ),
        (
            "CartPole-v1",
            {"max_episode_steps": -3},
            r"can't be made with env_kwargs \{'max_episode_steps': -3\}: ValueError: Expect",
        ),
        ("HalfCheetah-v2", {}, "HalfCheetah-v2 is retired: use HalfCheetah-v5"),
        ("LunarLander-v2", {}, "LunarLander-v2 is retired: use LunarLander-v3"),
        (
            "Hoper-v5",
            {},
            "no environment 'Hoper-v5' is registered with Gymnasium: did you mean Hopper-v5",
        ),
        ("pendulum-v1", {}, r"did you mean Pendulum-v1\? An environment of another package"),
        ("Ant-v9", {}, "did you mean Ant-v5"),
        ("ALE/Pong-v5", {}, "Gymnasium: an environment of another package is written module:Name"),
        ("nothing_here:X-v0", {}, "can't import 'nothing_here' .No module named 'nothing_here'"),
        ("..:X-v0", {}, r"can't import '\.\.'"),
        ("", {}, "'' can't be made: Error: Malformed"),
        (3, {}, "must be an id such as CartPole-v1, not 3"),
    ],
)
def test_an_environment_that_cannot_work_is_refused_in_one_line(env_id, kwargs, message):
    with pytest.raises(ValueError, match=f"^.*{message}.*$"):
        check_env(env_id, kwargs, "sac", ALGORITHMS)


@pytest.mark.parametrize("extra", ["mujoco", "box2d"])
def test_missing_extras_are_named_by_the_checkout(extra, register):
    register("Needs-v0", f"gymnasium.envs.{extra}.not_there:Env")
    with pytest.raises(ValueError, match=rf'^Needs-v0 .*: in .*, run pip install "\.\[{extra}\]"$'):
        check_env("Needs-v0")
    with pytest.raises(ValueError, match="Needs-v0 needs packages that aren't installed"):
        make_env("Needs-v0")


def test_warnings_about_an_environment_are_returned(register):
    (remark,) = check_env("CartPole-v0", None, "ppo", ALGORITHMS)
    assert remark.startswith("The environment CartPole-v0 is out of date")

    register("Seen-v0", lambda: gym.wrappers.NormalizeReward(Recorder(observation_space=IMAGE)))
    with warnings.catch_warnings(record=True) as caught:
        first, second = check_env("Seen-v0")
    assert not caught
    assert "running statistics" in first and "returns images" in second


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
    """Calls a given function at a given step."""

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
    if fault is _raise:  # the environment's exception, with a note
        said = describe_error(raised.value)
        assert re.search(rf"by test.; raised by Faulty at step {step} \(seed 7, {action}\)$", said)


@pytest.mark.parametrize(
    "space, dim", [(VECTOR, 2), (Discrete(4, start=5), 4), (Box(0, 1, (2, 3)), 6)]
)
def test_space_dim(space, dim):
    assert space_dim(space) == dim


# --- Environments that violate Gymnasium's interface ---


def test_an_environment_without_a_space_is_refused():
    class Spaceless(Recorder):
        def __init__(self, **spaces):
            vars(self).update(spaces)

    box = dict(action_space=FLOATS, observation_space=VECTOR)
    make_env(lambda: Spaceless(**box))
    for name in box:
        with pytest.raises(ValueError, match=rf"Spaceless has no {name}: set it in __init__ to"):
            make_env(lambda name=name: Spaceless(**{k: v for k, v in box.items() if k != name}))
        with pytest.raises(ValueError, match=rf"Spaceless has \(3,\) as its {name}: set it in"):
            make_env(lambda name=name: Spaceless(**(box | {name: (3,)})))


@pytest.mark.parametrize(
    "spaces, name",
    [
        (dict(observation_space=Box(-1, 1, (0,))), "observation_space"),
        (dict(observation_space=Box(-1, 1, (2, 0))), "observation_space"),
        (dict(action_space=Box(-1, 1, (0,))), "action_space"),
    ],
)
def test_an_empty_space_is_refused(spaces, name):
    message = rf"the {name} of Recorder is empty: .* holds no numbers"
    with pytest.raises(ValueError, match=message):
        make_env(lambda: Recorder(**spaces))


def test_a_reset_without_seed_is_refused_by_its_class():
    class Unseeded(Recorder):
        def reset(self, options=None):
            return super().reset()

    class Old(gym.Wrapper):
        def reset(self):
            return self.env.reset()

    class Passing(gym.Wrapper):
        def reset(self, **kwargs):
            return self.env.reset(**kwargs)

    make_env(lambda: Passing(Recorder())).reset()
    message = r"{}.reset takes no seed: define it as reset\(self, \*, seed=None, options=None\)"
    with pytest.raises(ValueError, match=message.format("Unseeded")):
        make_env(lambda: gym.wrappers.TimeLimit(Passing(Unseeded()), 9))
    with pytest.raises(ValueError, match=message.format("Old")):
        make_env(lambda: Passing(Old(Recorder())))


OBS = np.zeros(2, np.float32)
MIXED = Dict(a=VECTOR, b=Tuple([Discrete(3, start=1), MultiBinary(2)]))
GOOD_MIXED = dict(a=OBS, b=(3, np.int8([0, 1])))


class Scripted(gym.Env):
    """Returns given values from reset and from step."""

    action_space = Box(-1, 1, (1,))

    def __init__(self, reset, step, observation_space):
        self.outcomes, self.observation_space = (reset, step), observation_space

    def reset(self, seed=None, options=None):
        return self.outcomes[0]

    def step(self, action):
        return self.outcomes[1]


def play(reset=None, step=None, obs=OBS, space=VECTOR, wrap=lambda env: env):
    reset = (obs, {}) if reset is None else reset
    step = (obs, 1.0, False, False, {}) if step is None else step
    env = make_env(lambda: wrap(Scripted(reset, step, space)), 7)
    env.reset()
    for _ in range(2):
        env.step(np.float32([0.25]))


@pytest.mark.parametrize(
    "obs, space",
    [
        (OBS, VECTOR),
        ([0.0, 1], VECTOR),
        (np.array([0, 1]), VECTOR),  # integers
        (np.array([20.0, 1]), Box(-1, 1, (2,))),  # beyond its bounds
        (np.array([True, False]), VECTOR),
        (np.int64(2), Discrete(3)),
        (np.array(2), Discrete(3)),
        (GOOD_MIXED, MIXED),
        (GOOD_MIXED | {"more": 1}, MIXED),
        ("ab", Text(3)),
    ],
)
def test_observations_that_networks_can_read_pass(obs, space):
    play(obs=obs, space=space)


@pytest.mark.parametrize("rew", [1, 1.5, True, np.float32(1), np.array(1.0), torch.tensor(1.0)])
@pytest.mark.parametrize("end", [False, np.bool_(False), np.array(False), torch.tensor(False)])
def test_rewards_and_ends_that_are_a_number_and_a_bool_pass(rew, end):
    play(step=(OBS, rew, end, end, {}))


@pytest.mark.parametrize(
    "obs, space, message",
    [
        (np.zeros(3), VECTOR, r"that is of shape \(3,\) and dtype float64"),
        (np.zeros((1, 2)), VECTOR, r"that is of shape \(1, 2\) and dtype float64"),
        (np.zeros(2, complex), VECTOR, r"that is of shape \(2,\) and dtype complex128"),
        ([1, [2, 3]], VECTOR, r"that is a list of 2"),
        (None, VECTOR, r"that is of shape \(\) and dtype object"),
        (3, Discrete(3), "that is 3"),
        (-1, Discrete(3), "that is -1"),  # NumPy would index from the end
        (0, Discrete(3, start=1), "that is 0"),
        (1.0, Discrete(3), "that is 1.0"),
        (np.int8([0, 2]), MultiBinary(2), r"that is an array of shape \(2,\) and dtype int8"),
        (OBS, MIXED, r"that is an array of shape \(2,\)"),
        ({"a": OBS}, MIXED, "that lacks the key 'b'"),
        (GOOD_MIXED | {"a": 3}, MIXED, r"that has a 'a' that is of shape \(\) and dtype int64"),
        (GOOD_MIXED | {"b": (1,)}, MIXED, "that has a 'b' that is a tuple of 1"),
        (GOOD_MIXED | {"b": (4, OBS)}, MIXED, "that has a 'b' that has a part 0 that is 4"),
    ],
)
@pytest.mark.parametrize("at", ["reset", "step"])
def test_observations_that_are_not_of_their_space_are_told(obs, space, message, at):
    good = GOOD_MIXED if space is MIXED else space.sample()
    outcomes = dict(reset=(good, {}), step=(good, 1.0, False, False, {}))
    outcomes[at] = (obs, *outcomes[at][1:])
    where = "step 0" if at == "reset" else "step 1"
    action = "at a reset" if at == "reset" else r"last action \[0.25\]"
    with pytest.raises(ValueError) as raised:
        play(**outcomes, space=space)
    said = describe_error(raised.value)
    assert re.fullmatch(
        rf"ValueError: Scripted returned an observation {message}.* at {where}, which doesn't "
        rf"match its observation_space, {re.escape(str(space))} \(seed 7, {action}\)",
        said,
    )


@pytest.mark.parametrize(
    "reset, message",
    [
        (
            OBS,
            r"returned an array of shape \(2,\) and dtype float32 at step 0, not \(observation, ",
        ),
        ((OBS, OBS), r"returned a tuple of 2 at step 0, not \(observation, info\): .* shimmy"),
        ((OBS, {}, {}), "returned a tuple of 3 at step 0"),
        ({}, "returned an object of builtins.dict at step 0"),
    ],
)
def test_another_resets_result_is_told(reset, message):
    with pytest.raises(ValueError, match=rf"Scripted {message}.*\(seed 7, at a reset\)$"):
        play(reset=reset)


@pytest.mark.parametrize(
    "step, message",
    [
        ((OBS, 1.0, False, {}), r"a tuple of 4 at step 1, not \(observation, reward, .* truncated"),
        (OBS, r"an array of shape \(2,\)"),
        (
            (OBS, np.ones(1), False, False, {}),
            r"an array of shape \(1,\) .* as the reward at",
        ),
        ((OBS, [1.0], False, False, {}), r"a list of 1 as the reward .* return float\(reward\)"),
        ((OBS, None, False, False, {}), "None as the reward at step 1, not a number"),
        ((OBS, "1", False, False, {}), "'1' as the reward"),
        ((OBS, 1j, False, False, {}), "an object of builtins.complex as the reward"),
        ((OBS, 1.0, "no", False, {}), r"'no' as terminated at step 1, not True or False"),
        ((OBS, 1.0, False, None, {}), r"None as truncated .* return bool\(...\)"),
        ((OBS, 1.0, np.array([False]), False, {}), r"an array .* as terminated"),
        ((OBS, 1.0, 0, False, {}), "0 as terminated"),
    ],
)
@pytest.mark.parametrize(
    "wrap", [lambda env: env, lambda env: gym.wrappers.TimeLimit(env, 9)], ids=["bare", "wrapped"]
)
def test_another_steps_result_is_told(step, message, wrap):
    with pytest.raises(
        ValueError, match=rf"Scripted returned {message}.*\(seed 7, last action \[0.25\]\)$"
    ) as raised:
        play(step=step, wrap=wrap)
    assert not getattr(raised.value, "__notes__", [])


def test_a_wrapper_that_is_to_blame_is_named():
    class Four(gym.Wrapper):
        def step(self, action):
            return self.env.step(action)[:4]

    with pytest.raises(ValueError, match=r"Scripted wrapped in Four returned a tuple of 4"):
        play(wrap=lambda env: gym.wrappers.TimeLimit(Four(env), 9))


def test_a_wrapper_may_put_right_what_it_wraps():
    class New(gym.Wrapper):
        def reset(self, *, seed=None, options=None):
            return self.env.reset(), {}

        def step(self, action):
            obs, rew, done, info = self.env.step(action)
            return obs, float(rew[0]), done, False, info

    play(reset=OBS, step=(OBS, [1.0], False, {}), wrap=New)


def test_an_error_of_the_environments_own_keeps_its_type_at_the_first_calls():
    class Failing(gym.Wrapper):
        def step(self, action):
            self.env.step(action)
            raise KeyError("by test")

    with pytest.raises(KeyError, match="by test") as raised:
        play(wrap=Failing)
    assert "raised by Scripted at step 0 (seed 7, " in describe_error(raised.value)


def test_only_the_first_reset_and_step_are_looked_at():
    inner, env = recorder()
    assert "step" not in vars(inner)
    env.reset()
    env.step(np.zeros(1))
    assert not {"step", "reset"} & vars(inner).keys()
    assert env._step_env == inner.step and env._reset_env == inner.reset


def test_an_environments_own_methods_are_put_back():
    inner = Recorder()
    inner.step = own = lambda action: (OBS, 2.0, False, False, {})
    env = make_env(lambda: inner)
    env.reset()
    assert env.step(np.zeros(1))[1] == 2.0
    assert inner.step is own


def test_generators_are_kept_also_that_of_a_gpu(monkeypatch):
    state = ["before"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda new: state.__setitem__(0, new))
    with pytest.raises(KeyError), generators_kept():
        state[0] = "drawn from"
        raise KeyError
    assert state == ["before"]
