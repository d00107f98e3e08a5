"""Rules that every algorithm keeps on one rank; `test_ranks.py` tests several ranks."""

from __future__ import annotations

import copy
import json
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from torch.testing import assert_close

from spinup.runs.underway import current_run
from spinup.utils.acting import ActingPolicy, acting_policy
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.envs import AdaptedEnv
from spinup.utils.logx import Logger
from spinup.utils.trajectories import TrajectoryBuffer
from tests.algos import plain
from tests.algos.envs import Clock, Made
from tests.algos.runs import (
    ALGORITHMS,
    OFF_POLICY,
    ON_POLICY,
    read_progress,
    saved_model,
    timeless_progress,
    train,
)

all_algorithms = pytest.mark.parametrize("algorithm", ALGORITHMS)
on_policy = pytest.mark.parametrize("algorithm", ON_POLICY)
off_policy = pytest.mark.parametrize("algorithm", OFF_POLICY)


def _status(folder):
    return json.loads((folder / "status.json").read_text())


# --- Seeds ----------------------------------------------------------------------------------------


@all_algorithms
def test_same_seed_same_progress(tmp_path, algorithm):
    def progress(name, seed):
        kwargs = dict(seed=seed, steps_per_epoch=100, max_ep_len=30)
        train(algorithm, "Pendulum-v1", tmp_path / name, **kwargs)
        return timeless_progress(tmp_path / name)

    first = progress("first", seed=5)
    assert progress("again", seed=5) == first
    assert progress("other", seed=6) != first


@all_algorithms
def test_seeds_environment_and_action_space_once(tmp_path, algorithm):
    made = Made(length=6, action_space=Box(-1, 1, (3,)))
    train(algorithm, made, tmp_path, seed=7)
    # The test environment has a different seed.
    for env, seed in zip(made.envs, (7, 5007)):
        assert env.seeds[0] == seed
        assert len(env.seeds) > 1 and set(env.seeds[1:]) == {None}
    if algorithm in OFF_POLICY:
        space = Box(-1, 1, (3,), seed=7)
        expected = [space.sample() for _ in range(5)]
        assert np.array_equal(made.env.actions[:5], expected)


# --- Episodes and interactions --------------------------------------------------------------------


@all_algorithms
@pytest.mark.parametrize("steps_per_epoch", [7, 20])
def test_interactions_are_exact(tmp_path, algorithm, steps_per_epoch):
    made = Made(length=6)
    train(algorithm, made, tmp_path, steps_per_epoch=steps_per_epoch, epochs=3)
    expected = [steps_per_epoch, 2 * steps_per_epoch, 3 * steps_per_epoch]
    progress = read_progress(tmp_path)
    assert progress["TotalEnvInteracts"].tolist() == expected
    assert progress["Epoch"].tolist() == [1, 2, 3]
    assert made.env.total == 3 * steps_per_epoch


@all_algorithms
def test_an_epoch_without_a_finished_episode_logs_nan_and_goes_on(tmp_path, algorithm):
    train(algorithm, Made(length=35), tmp_path, max_ep_len=1000, epochs=3)
    progress = read_progress(tmp_path)
    # Only one episode ends, in the second epoch.
    for name in ("AverageEpRet", "StdEpRet", "MaxEpRet", "MinEpRet", "EpLen"):
        assert np.isnan(progress[name]).tolist() == [True, False, True], name
    assert progress["AverageEpRet"][1] == progress["EpLen"][1] == 35


@all_algorithms
def test_episodes_are_cut_off_at_their_greatest_length(tmp_path, algorithm):
    made = Made(length=None)
    train(algorithm, made, tmp_path, max_ep_len=4)
    assert read_progress(tmp_path)["EpLen"].tolist() == [4, 4]
    assert made.env.total == 40 and len(made.env.seeds) == 1 + 10


@off_policy
def test_the_buffer_keeps_terminal_states_apart_from_cut_off_episodes(
    tmp_path, algorithm, transitions
):
    terminal_every_5 = [0, 0, 0, 0, 1] * 4
    for name, env, max_ep_len, expected in [
        ("terminal", dict(length=5), 1000, terminal_every_5),  # also on the epoch's last step
        ("at_max_ep_len", dict(length=5), 5, terminal_every_5),
        ("both", dict(length=5, ends="terminated, truncated"), 5, terminal_every_5),
        ("time_limit", dict(length=5, ends="truncated"), 1000, [0] * 20),
        ("max_ep_len", dict(length=None), 5, [0] * 20),
        ("in_place", dict(length=5, in_place=True), 1000, terminal_every_5),
    ]:
        train(algorithm, Made(**env), tmp_path / name, epochs=1, max_ep_len=max_ep_len)
        rows = transitions()
        assert rows["terminated"].tolist() == expected, name
        # The successor of an episode's last step is its final observation, not the next reset's.
        count, step = np.arange(20), np.arange(20) % 5
        assert rows["obs"].tolist() == np.stack([count, step], 1).tolist(), name
        assert rows["next_obs"].tolist() == np.stack([count + 1, step + 1], 1).tolist(), name


@pytest.fixture
def transitions(monkeypatch):
    """Function that returns the contents of the last run's replay buffer."""
    buffers = []

    class Recorder(ReplayBuffer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            buffers.append(self)

    def held():
        parts = np.split(buffers[-1].rows[: buffers[-1].size], buffers[-1].columns, axis=1)
        names = ("obs", "next_obs", "act", "rew", "terminated")
        return {k: v.squeeze(1) if k in names[3:] else v for k, v in zip(names, parts)}

    for algorithm in OFF_POLICY:
        monkeypatch.setattr(f"spinup.algos.{algorithm}.ReplayBuffer", Recorder)
    return held


# --- On-policy trajectories -----------------------------------------------------------------------


@pytest.fixture
def epochs(monkeypatch):
    """The data that the buffer returned at the end of each epoch."""
    recorded = []

    class Recorder(TrajectoryBuffer):
        def get(self, value, device="cpu"):
            data = super().get(value, device)
            recorded.append({k: v.numpy().copy() for k, v in data.items()})
            return data

    for algorithm in ON_POLICY:
        monkeypatch.setattr(f"spinup.algos.{algorithm}.TrajectoryBuffer", Recorder)
    return recorded


TERMINAL = [1.875, 1.75, 1.5, 1]
BOOTSTRAPPED = [4.375, 6.75, 11.5, 21]  # with value 40 for the observation after step 4


@on_policy
def test_only_a_terminal_state_cuts_the_bootstrap(tmp_path, algorithm, epochs):
    kwargs = dict(epochs=1, steps_per_epoch=4, gamma=0.5, lam=1.0, train_v_iters=0)
    kwargs |= dict(actor_critic=plain.known_value(10))
    cases = [
        (dict(length=4), 1000, TERMINAL),
        (dict(length=4), 4, TERMINAL),
        (dict(length=4, ends="terminated, truncated"), 4, TERMINAL),
        (dict(length=4, ends="truncated"), 1000, BOOTSTRAPPED),
        (dict(length=None), 4, BOOTSTRAPPED),
        (dict(length=None), 1000, BOOTSTRAPPED),
        (dict(length=2), 1000, [1.5, 1, 1.5, 1]),
        (dict(length=2), 2, [1.5, 1, 1.5, 1]),
        (dict(length=2, ends="truncated"), 1000, [6.5, 11, 6.5, 11]),
        (dict(length=2, ends="truncated", in_place=True), 1000, [6.5, 11, 6.5, 11]),
        (dict(length=3), 1000, [1.75, 1.5, 1, 6]),
    ]
    for number, (env, max_ep_len, returns) in enumerate(cases):
        train(algorithm, Made(**env), tmp_path / str(number), max_ep_len=max_ep_len, **kwargs)
        assert epochs[-1]["ret"].tolist() == pytest.approx(returns), (env, max_ep_len)
    assert len(epochs) == len(cases)


@on_policy
def test_an_episode_goes_on_after_the_epochs_end(tmp_path, algorithm, epochs):
    kwargs = dict(epochs=2, steps_per_epoch=4, gamma=0.5, lam=1.0, train_v_iters=0)
    train(algorithm, Made(length=6), tmp_path, actor_critic=plain.known_value(10), **kwargs)
    assert epochs[0]["ret"].tolist() == pytest.approx(BOOTSTRAPPED)
    # Steps 5 and 6 of the first episode, then two steps of the next one.
    assert epochs[1]["ret"].tolist() == pytest.approx([1.5, 1, 6.5, 11])
    assert epochs[1]["obs"][:, 1].tolist() == [4, 5, 0, 1]
    progress = read_progress(tmp_path)
    assert progress["EpLen"].tolist() == pytest.approx([np.nan, 6], nan_ok=True)


@on_policy
def test_the_trajectory_buffer_holds_the_observations_acted_on(tmp_path, algorithm, epochs):
    for name, in_place in [("copied", False), ("in place", True)]:
        made = Made(length=3, in_place=in_place)
        train(algorithm, made, tmp_path / name, epochs=1, steps_per_epoch=5)
        assert epochs[-1]["obs"].tolist() == [[0, 0], [1, 1], [2, 2], [3, 0], [4, 1]], name


@on_policy
def test_actions_are_clipped_for_the_environment_alone(tmp_path, algorithm, epochs):
    low, high = np.array([-0.5, 0.1], np.float32), np.array([0.2, 0.6], np.float32)
    made = Made(action_space=Box(low, high))
    train(algorithm, made, tmp_path, epochs=1, steps_per_epoch=200)
    held, taken = epochs[0]["act"], np.array(made.env.actions)
    assert (held < low).any(axis=0).all() and (held > high).any(axis=0).all()
    assert np.array_equal(taken, np.clip(held, low, high))


@on_policy
def test_discrete_actions_count_from_their_start(tmp_path, algorithm, epochs):
    made = Made(action_space=Discrete(3, start=5))
    train(algorithm, made, tmp_path, epochs=1, steps_per_epoch=100)
    assert set(epochs[0]["act"]) == {0, 1, 2}
    assert np.array_equal(np.array(made.env.actions), epochs[0]["act"] + 5)


# --- Off-policy schedule --------------------------------------------------------------------------


@off_policy
@pytest.mark.parametrize(
    "update_after, update_every, expected",
    [
        (7, 5, [10] * 5 + [15] * 5 + [20] * 5),
        (10, 5, [10] * 5 + [15] * 5 + [20] * 5),
        (11, 5, [15] * 5 + [20] * 5),
        (0, 8, [8] * 8 + [16] * 8),
        (18, 1, [18, 19, 20]),
        (21, 1, []),
    ],
)
def test_updates_come_when_and_as_often_as_asked(
    tmp_path, monkeypatch, algorithm, update_after, update_every, expected
):
    made, updates = Made(length=6), []

    class Recorder(ReplayBuffer):
        def _draw(self, out):
            updates.append(made.env.total)
            super()._draw(out)

    monkeypatch.setattr(f"spinup.algos.{algorithm}.ReplayBuffer", Recorder)
    kwargs = dict(update_after=update_after, update_every=update_every)
    train(algorithm, made, tmp_path, epochs=1, **kwargs)
    assert updates == expected


@off_policy
def test_epochs_before_the_first_update_log_nan(tmp_path, algorithm):
    train(algorithm, Clock, tmp_path, epochs=3, update_after=21, update_every=20)
    progress = read_progress(tmp_path)
    vals = ("AverageQVals", "StdQVals") if algorithm == "ddpg" else ("AverageQ1Vals", "StdQ2Vals")
    for name in ("LossPi", "LossQ", *vals):
        assert np.isnan(progress[name]).tolist() == [True, False, False], name


@off_policy
@pytest.mark.parametrize("start_steps", [0, 1, 13, 100])
def test_first_steps_are_random(tmp_path, monkeypatch, algorithm, start_steps):
    taken = []

    def random_action(self):
        taken.append(self.steps)
        return self.action_space.sample()

    monkeypatch.setattr(AdaptedEnv, "random_action", random_action)
    train(algorithm, Clock, tmp_path, start_steps=start_steps)
    assert taken == list(range(min(start_steps, 40)))


@off_policy
def test_test_episodes_are_apart_from_training(tmp_path, algorithm):
    made = Made(length=7)
    train(algorithm, made, tmp_path / "some", num_test_episodes=3, max_ep_len=1000)
    assert made.test_env.total == 2 * 3 * 7 and made.env.total == 40
    progress = read_progress(tmp_path / "some")
    assert progress["TestEpLen"].tolist() == progress["MinTestEpRet"].tolist() == [7, 7]

    train(algorithm, Made(length=None), tmp_path / "cut", max_ep_len=4)
    assert read_progress(tmp_path / "cut")["TestEpLen"].tolist() == [4, 4]

    train(algorithm, Clock, tmp_path / "none", num_test_episodes=0)
    assert np.isnan(read_progress(tmp_path / "none")["AverageTestEpRet"]).all()


@off_policy
@pytest.mark.parametrize("acts_itself", [False, True])
def test_test_episodes_leave_no_trace_in_training(tmp_path, algorithm, acts_itself):
    class Noisy(Clock):
        """Draws from NumPy's global generator; its action space is that of all of them."""

        def __init__(self):
            super().__init__(length=6)
            self.action_space = SHARED

        def _observe(self):
            return super()._observe() + np.float32(np.random.normal())

    class Explorer(plain.ACTOR_CRITICS[algorithm]):
        """Draws from torch's, in tests too."""

        def act(self, obs):
            return super().act(obs) + 0.1 * torch.randn(1).numpy()

    kwargs = dict(actor_critic=Explorer) if acts_itself else {}

    def weights(num_test_episodes):
        folder = tmp_path / str(num_test_episodes)
        kwargs["num_test_episodes"] = num_test_episodes
        return train(algorithm, Noisy, folder, epochs=3, **kwargs).state_dict()

    assert_close(weights(0), weights(3), atol=0, rtol=0)


SHARED = Box(-1, 1, (1,))


# --- Actions --------------------------------------------------------------------------------------

BOX = Box(np.array([-0.5, 2.0], np.float32), np.array([0.25, 30.0], np.float32))


def _acting_at(algorithm, squashed):
    """Returns the library's actor-critic, with a bias that moves actions to a bound of the Box."""

    class AtEnd(plain.ACTOR_CRITICS[algorithm].original):
        def __init__(self, observation_space, action_space):
            super().__init__(observation_space, action_space, hidden_sizes=(8,))
            net = self.pi.net if algorithm == "sac" else self.pi.pi_net
            net[-2].bias.data[: len(squashed)] = 20 * torch.tensor(squashed)

    return AtEnd


@off_policy
@pytest.mark.parametrize(
    "squashed, expected", [([-1.0, 1.0], [-0.5, 30.0]), ([1.0, -1.0], [0.25, 2.0])]
)
def test_the_policy_reaches_both_ends_of_each_dimension(tmp_path, algorithm, squashed, expected):
    made = Made(action_space=BOX, length=5)
    kwargs = dict(actor_critic=_acting_at(algorithm, squashed), update_after=1000, start_steps=0)
    train(algorithm, made, tmp_path, **kwargs)
    tested = np.array(made.test_env.actions)
    assert_close(tested, np.tile(np.float32(expected), (len(tested), 1)))
    assert all(BOX.contains(act) for act in made.env.actions + made.test_env.actions)


@off_policy
def test_actions_stay_in_bounds_in_the_environments_units(tmp_path, algorithm, transitions):
    made = Made(action_space=BOX, length=5)
    train(algorithm, made, tmp_path, steps_per_epoch=100, start_steps=100, replay_size=1000)
    assert all(BOX.contains(act) for act in made.env.actions)
    held = transitions()["act"]
    assert_close(held, np.array(made.env.actions), atol=1e-5, rtol=1e-5)
    random, scale = held[:100], BOX.high - BOX.low
    assert (random.min(axis=0) < BOX.low + 0.1 * scale).all()
    assert (random.max(axis=0) > BOX.high - 0.1 * scale).all()


@all_algorithms
def test_double_precision_actions_work(tmp_path, algorithm):
    space = Box(np.array([-1.0, -2.0]), np.array([1.0, 3.0]), dtype=np.float64)
    made = Made(action_space=space, length=5)
    train(algorithm, made, tmp_path)
    assert made.env.actions[-1].dtype == np.float64
    assert all(space.contains(act) for act in made.env.actions)


@all_algorithms
def test_actions_of_several_axes_work(tmp_path, algorithm):
    made = Made(action_space=Box(-1, 1, (2, 3)), length=5)
    train(algorithm, made, tmp_path)
    assert made.env.actions[-1].shape == (2, 3)


# --- Acting with the learned weights --------------------------------------------------------------


def _acting_on(weights_of, actions):
    """Replaces `acting_policy`: acts with the module ``weights_of(ac)`` and records the actions."""

    def make(ac, rng, group):
        weights = weights_of(ac)
        policy = acting_policy(weights, rng)

        def act(obs, deterministic):
            actions.append(np.array(policy(obs, deterministic)))
            return actions[-1]

        def refresh():
            weights.load_state_dict(ac.state_dict())
            policy.refresh()

        return ActingPolicy(act, refresh)

    return make


def _actions(algorithm, folder, monkeypatch, weights_of=copy.deepcopy, epochs=3, resume=False):
    """Returns the actions of a run's policy, by default with a copy of the weights, as on a GPU."""
    actions: list[np.ndarray] = []
    maker = _acting_on(weights_of, actions)
    monkeypatch.setattr(f"spinup.algos.{algorithm}.acting_policy", maker)
    kwargs = dict(max_ep_len=10, checkpoint_every=0, epochs=epochs)
    logger_kwargs = dict(output_dir=folder, resume=resume)
    train(algorithm, "Pendulum-v1", folder, logger_kwargs=logger_kwargs, **kwargs)
    return np.array(actions)


@all_algorithms
def test_a_policy_with_weights_of_its_own_gets_those_learned(tmp_path, monkeypatch, algorithm):
    same_memory = _actions(algorithm, tmp_path / "same", monkeypatch, weights_of=lambda ac: ac)
    assert np.array_equal(_actions(algorithm, tmp_path / "copy", monkeypatch), same_memory)


@all_algorithms
def test_a_resumed_run_acts_with_the_restored_weights(tmp_path, monkeypatch, algorithm):
    whole = _actions(algorithm, tmp_path / "whole", monkeypatch)
    _actions(algorithm, tmp_path / "parts", monkeypatch, epochs=2)
    resumed = _actions(algorithm, tmp_path / "parts", monkeypatch, resume=True)
    # The steps of the third epoch and of its test episode.
    assert len(resumed) == (20 if algorithm in ON_POLICY else 30)
    assert np.array_equal(resumed, whole[-len(resumed) :])


# --- Saving ---------------------------------------------------------------------------------------


@all_algorithms
def test_the_final_save_holds_the_returned_parameters(tmp_path, algorithm):
    ac = train(algorithm, Clock, tmp_path, epochs=3, save_freq=2)
    assert_close(saved_model(tmp_path), dict(ac.state_dict()), atol=0, rtol=0)


@all_algorithms
@pytest.mark.parametrize("save_freq, expected", [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_saves_come_as_often_as_asked(tmp_path, monkeypatch, algorithm, save_freq, expected):
    saved, rows = [], []

    def save_state(self, itr=None):
        if itr is None:  # not the best policy
            saved.append(len(rows) + 1)

    monkeypatch.setattr(Logger, "save_state", save_state)
    dump = Logger.dump_tabular
    monkeypatch.setattr(Logger, "dump_tabular", lambda self: rows.append(dump(self)))
    train(algorithm, Clock, tmp_path, epochs=5, save_freq=save_freq)
    assert saved == expected


@all_algorithms
def test_a_folder_with_results_is_refused(tmp_path, algorithm):
    train(algorithm, Clock, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FileExistsError, match="overwrite=True") as refused:
        train(algorithm, Clock, tmp_path, seed=4)
    assert str(tmp_path) in str(refused.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before

    train(
        algorithm,
        Clock,
        tmp_path,
        epochs=1,
        logger_kwargs=dict(output_dir=tmp_path, overwrite=True),
    )
    assert len(read_progress(tmp_path)["Epoch"]) == 1
    assert _status(tmp_path)["state"] == "finished"


# --- NaN and infinity -----------------------------------------------------------------------------


def _fails_after_one_good_epoch(folder, algorithm, env, message, good=None, **kwargs):
    """Trains until an error in the second epoch; the first epoch's save must remain."""
    with pytest.raises(FloatingPointError, match=message) as failure:
        train(algorithm, Made(**env), folder / "bad", save_freq=1, **kwargs)
    status = _status(folder / "bad")
    assert status["state"] == "failed" and status["epoch"] == 1
    assert str(failure.value).splitlines()[0] in status["error"]
    ac = train(algorithm, Made(length=6), folder / "good", epochs=1, **kwargs)
    assert_close(saved_model(folder / "bad"), dict(ac.state_dict()), atol=0, rtol=0)
    assert current_run() is None


@all_algorithms
def test_nan_in_an_observation_stops_the_run(tmp_path, algorithm):
    env = dict(length=6, broken_at=33)
    message = "Clock .*NaN or infinity in the observation at step 33"
    _fails_after_one_good_epoch(tmp_path, algorithm, env, message)


@all_algorithms
@pytest.mark.parametrize("rew", [math.nan, math.inf, -math.inf])
def test_nan_in_a_reward_stops_the_run(tmp_path, algorithm, rew):
    env = dict(length=6, rew=lambda t: rew if t == 27 else 1.0)
    message = "Clock .*NaN or infinity in the reward at step 27"
    _fails_after_one_good_epoch(tmp_path, algorithm, env, message)


@all_algorithms
def test_an_infinite_loss_stops_the_run(tmp_path, algorithm):
    # The square of this reward overflows single precision.
    env = dict(length=6, rew=lambda t: 1e25 if t > 20 else 1.0)
    loss = "LossV" if algorithm in ON_POLICY else "LossQ"
    message = loss + r" is NaN or infinite \(.*\) in Clock, epoch 2 \(step 40\)"
    _fails_after_one_good_epoch(tmp_path, algorithm, env, message)


@pytest.mark.parametrize(
    "algorithm, rate, loss",
    [
        ("vpg", "vf_lr", "LossV"),
        ("trpo", "vf_lr", "LossV"),
        ("ppo", "pi_lr", "LossPi"),
        ("ppo", "vf_lr", "LossV"),
        ("sac", "lr", "Loss(Q|Pi)"),
        ("ddpg", "pi_lr", "Loss(Q|Pi)"),
        ("ddpg", "q_lr", "Loss(Q|Pi)"),
        ("td3", "pi_lr", "Loss(Q|Pi)"),
        ("td3", "q_lr", "Loss(Q|Pi)"),
    ],
)
def test_a_learning_rate_beyond_reason_stops_the_run(tmp_path, algorithm, rate, loss):
    message = rf"the gradient of {loss} in Clock is NaN or infinite in update \d; the param"
    with pytest.raises(FloatingPointError, match=message):
        train(algorithm, Made(length=6), tmp_path, **{rate: 1e38})
    assert _status(tmp_path)["state"] == "failed"
    assert not (tmp_path / "pyt_save" / "model.safetensors").exists()


# --- Refusals -------------------------------------------------------------------------------------


def _refuse(folder, algorithm, space, *words):
    made = Made(action_space=space)
    with pytest.raises(ValueError) as refused:
        train(algorithm, made, folder)
    for word in (algorithm, str(space), *words):
        assert word in str(refused.value)
    assert all(env.total == 0 for env in made.envs)
    assert not (folder / "pyt_save").exists()
    # The folder holds no results, so another run can use it.
    train(algorithm, Made(), folder)


@off_policy
@pytest.mark.parametrize(
    "space",
    [
        Discrete(3),
        Box(-np.inf, np.inf, (2,)),
        Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)),
    ],
    ids=["discrete", "unbounded", "half-bounded"],
)
def test_spaces_that_others_could_handle_are_refused(tmp_path, algorithm, space):
    _refuse(tmp_path, algorithm, space, "use vpg, trpo or ppo")
    for other in ON_POLICY:
        train(other, Made(action_space=space), tmp_path / other)


@all_algorithms
@pytest.mark.parametrize(
    "space",
    [
        MultiDiscrete([2, 3]),
        MultiBinary(4),
        Dict(a=Discrete(2)),
        Box(0, 9, (2,), np.int64),
    ],
    ids=lambda space: type(space).__name__,
)
def test_spaces_that_nothing_handles_are_refused(tmp_path, algorithm, space):
    _refuse(tmp_path, algorithm, space, "no other algorithm")


BAD = {
    "vpg": [("pi_lr", -1e-3), ("train_v_iters", -1), ("lam", 1.5)],
    "trpo": [
        ("delta", 0),
        ("delta", -0.01),
        ("delta", math.inf),
        ("vf_lr", -1e-3),
        ("train_v_iters", -1),
        ("damping_coeff", -0.1),
        ("cg_iters", 0),
        ("cg_iters", 2.5),
        ("backtrack_iters", 0),
        ("backtrack_coeff", 0),
        ("backtrack_coeff", 1.0),
        ("backtrack_coeff", math.nan),
        ("algo", "ppo"),
    ],
    "ddpg": [("pi_lr", -1.0), ("q_lr", "fast"), ("act_noise", -0.1), ("polyak", 1.5)],
    "ppo": [
        ("seed", -1),
        ("steps_per_epoch", 0),
        ("steps_per_epoch", 12.5),
        ("steps_per_epoch", "many"),
        ("epochs", 0),
        ("epochs", math.inf),
        ("epochs", True),
        ("gamma", 1.01),
        ("gamma", math.nan),
        ("lam", -0.1),
        ("clip_ratio", -0.2),
        ("pi_lr", -1e-3),
        ("vf_lr", None),
        ("train_pi_iters", -1),
        ("train_v_iters", 0.5),
        ("max_ep_len", 0),
        ("target_kl", -0.01),
        ("save_freq", 0),
    ],
    "sac": [
        ("replay_size", 0),
        ("polyak", 1.5),
        ("lr", -1.0),
        ("batch_size", 0),
        ("start_steps", -1),
        ("update_after", -1),
        ("update_every", 0),
        ("num_test_episodes", -1),
    ],
    "td3": [
        ("pi_lr", -1.0),
        ("q_lr", "fast"),
        ("act_noise", -0.1),
        ("target_noise", -0.1),
        ("noise_clip", math.nan),
        ("policy_delay", 0),
    ],
}


@pytest.mark.parametrize(
    "algorithm, name, value", [(a, *pair) for a, pairs in BAD.items() for pair in pairs]
)
def test_hyperparameters_out_of_range_are_refused(tmp_path, algorithm, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {value!r}$"):
        train(algorithm, Clock, tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()


@all_algorithms
def test_whole_numbers_may_come_as_other_types(tmp_path, algorithm):
    # As in `replay_size=1e6`, or `for seed in np.arange(3)`.
    kwargs = dict(steps_per_epoch=2e1, epochs=np.int64(2), seed=np.int32(3))
    if algorithm in OFF_POLICY:
        kwargs |= dict(replay_size=1e2, batch_size=np.float64(8))
    train(algorithm, Clock, tmp_path / "other", **kwargs)
    train(algorithm, Clock, tmp_path / "int")
    assert timeless_progress(tmp_path / "other") == timeless_progress(tmp_path / "int")


@all_algorithms
def test_an_unknown_device_is_refused(tmp_path, algorithm):
    with pytest.raises(ValueError, match="device 'gpu' is unknown: use cpu, cuda"):
        train(algorithm, Clock, tmp_path / "run", device="gpu")
    assert not (tmp_path / "run").exists()


# --- A custom actor-critic ------------------------------------------------------------------------


def _sharing(algorithm):
    """Returns an actor-critic whose networks have a layer in common."""

    class SharedTrunk(plain.ACTOR_CRITICS[algorithm]):
        def __init__(self, observation_space, action_space):
            super().__init__(observation_space, action_space)
            if algorithm in ON_POLICY:
                self.v.v_net[0] = self.pi.mu_net[0]
            else:
                critic = self.q if algorithm == "ddpg" else self.q1
                critic.q_net[0].bias = self.pi.net[0].bias

    return SharedTrunk


@all_algorithms
def test_a_shared_trunk_is_refused(tmp_path, algorithm):
    with pytest.raises(ValueError, match=r"share parameters.* give each network its own"):
        train(algorithm, Clock, tmp_path, actor_critic=_sharing(algorithm))
    assert not list(tmp_path.iterdir())  # refused before anything is written


@all_algorithms
def test_a_users_actor_critic_acts_itself(tmp_path, algorithm):
    calls = []

    class Recorder(plain.ACTOR_CRITICS[algorithm]):
        def act(self, obs):
            assert obs.shape == (2,) and obs.dtype == torch.float32
            calls.append(False)
            return super().act(obs)

    class RecorderWithMode(plain.ACTOR_CRITICS[algorithm]):
        def act(self, obs, deterministic=False):
            calls.append(deterministic)
            return super().act(obs, deterministic)

    made = Made(length=5)
    own = RecorderWithMode if algorithm == "sac" else Recorder
    ac = train(algorithm, made, tmp_path, actor_critic=own)
    start = plain.initial(algorithm, made.env).state_dict()
    assert isinstance(ac, own)
    assert not any(torch.equal(value, start[key]) for key, value in ac.state_dict().items())
    assert_close(saved_model(tmp_path), dict(ac.state_dict()), atol=0, rtol=0)
    # Two epochs of 20 steps; off-policy, the first 5 are random and each epoch has 5 test steps.
    training, testing = ([20, 20], 0) if algorithm in ON_POLICY else ([15, 20], 5)
    has_mode = algorithm == "sac"
    # The check before training; on-policy, the distribution's mode is the deterministic action
    assert calls.pop(0) is False and (algorithm in ON_POLICY or calls.pop(0) is has_mode)
    assert calls == [mode for n in training for mode in [False] * n + [has_mode] * testing]


@all_algorithms
def test_ac_kwargs_reach_the_actor_critic(tmp_path, algorithm):
    kwargs = dict(hidden_sizes=[5, 3], activation=torch.nn.Softplus)
    ac = train(algorithm, Clock, tmp_path, ac_kwargs=kwargs)
    widths = {p.shape[-1] for p in ac.pi.parameters() if p.dim() == 2}
    assert widths == {2, 5, 3}
    assert sum(isinstance(m, torch.nn.Softplus) for m in ac.pi.modules()) == 2


# --- Observations ---------------------------------------------------------------------------------


@all_algorithms
def test_other_observations_are_flattened(tmp_path, algorithm):
    class Halves(gym.ObservationWrapper):
        def __init__(self):
            super().__init__(Clock(length=5))
            space = Box(-np.inf, np.inf, (1,), np.float64)
            self.observation_space = Dict(count=space, step=Discrete(7))

        def observation(self, obs):
            return dict(count=obs[:1].astype(np.float64), step=int(obs[1]))

    ac = train(algorithm, Halves, tmp_path)
    first_layer = next(p for p in ac.pi.parameters() if p.dim() == 2)
    assert first_layer.shape[1] == 1 + 7
    assert _status(tmp_path)["state"] == "finished"
