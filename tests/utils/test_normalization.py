"""Normalised observations, compared with the plain mean and deviation of all observations."""

import json
import textwrap

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from numpy.testing import assert_allclose
from torch import nn

import spinup
from spinup.cli.policies import load_policy
from spinup.utils.acting import acting_policy
from spinup.utils.checkpoint import Checkpoint
from spinup.utils.nets import MLPActorCritic, SquashedGaussianActorCritic
from spinup.utils.normalization import NormalizedActorCritic, ObsNormalizer

pytestmark = pytest.mark.filterwarnings("error:.*runs as written")

ALGORITHMS = ["vpg", "trpo", "ppo", "ddpg", "td3", "sac"]
ON_POLICY = ALGORITHMS[:3]


def observations(n, seed=0):
    """Returns observations whose features differ in scale; the third one is constant."""
    x = np.random.default_rng(seed).standard_normal((n, 4))
    return x * [1, 1e-3, 0, 1e4] + [0, 5, 7, 1e6]


# --- Statistics ---


@pytest.mark.parametrize("sizes", [(50,), (1, 49), (7, 0, 20, 1, 22)])
def test_statistics_are_those_of_all_observations(sizes):
    obs, normalizer = observations(50), ObsNormalizer(4)
    for part in np.split(obs, np.cumsum(sizes)[:-1]):
        normalizer.update(part)
    assert normalizer.count == 50
    assert_allclose(normalizer.mean, obs.mean(0), rtol=1e-13)
    assert_allclose((normalizer.deviations / 50).sqrt(), obs.std(0), rtol=1e-9, atol=1e-9)
    expected = (obs - obs.mean(0)) / np.sqrt(obs.var(0) + 1e-8)
    got = normalizer(torch.tensor(obs, dtype=torch.float32))
    # float32 holds the second feature, 5 +- 1e-3, and the fourth to 5e-4 and 1e-5 deviations
    assert_allclose(got, expected, atol=2e-3)
    assert_allclose(got[:, 0], expected[:, 0], atol=1e-5)


def test_results_are_clipped_at_ten_deviations():
    normalizer = ObsNormalizer(1)
    assert normalizer(torch.tensor([[12.0], [-30.0], [2.0]])).flatten().tolist() == [10, -10, 2]
    normalizer.update(np.array([[1.0], [3.0]]))  # mean 2, deviation 1
    got = normalizer(torch.tensor([[3.0], [13.0], [-7.0], [torch.inf], [torch.nan]])).flatten()
    assert_allclose(got, [1, 10, -9, 10, np.nan], rtol=1e-6)


def test_a_feature_that_has_been_constant_is_zero():
    normalizer = ObsNormalizer(2)
    normalizer.update(np.array([[3.0, 1.0]] * 5))
    assert normalizer(torch.tensor([[3.0, 1.0]])).tolist() == [[0, 0]]


def test_statistics_stay_in_place():
    normalizer = ObsNormalizer(4)
    places = [x.data_ptr() for x in normalizer.buffers()]
    normalizer.update(observations(9))
    normalizer.load_state_dict(ObsNormalizer(4).state_dict())
    assert [x.data_ptr() for x in normalizer.buffers()] == places


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_have_the_statistics_of_one(ranks, tmp_path, run_on_ranks):
    obs = observations(100)
    np.save(tmp_path / "obs.npy", obs)
    code = """
        import sys
        import numpy as np
        from spinup.utils.mpi_tools import num_procs, proc_id
        from spinup.utils.normalization import ObsNormalizer
        normalizer, obs = ObsNormalizer(4), np.load("obs.npy")
        for part in (obs[:60], obs[60:61], obs[61:]):
            shares = np.array_split(part, [len(part) // 4, len(part) // 2][: num_procs() - 1])
            normalizer.update(shares[proc_id()])
        np.savez(f"rank{proc_id()}.npz", **{k: v.numpy() for k, v in normalizer.named_buffers()})
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(code))
    run_on_ranks(ranks, tmp_path / "run.py", [], timeout=60)
    results = [np.load(tmp_path / f"rank{r}.npz") for r in range(ranks)]
    assert_allclose(results[0]["mean"], obs.mean(0), rtol=1e-13)
    assert_allclose(results[0]["deviations"], 100 * obs.var(0), rtol=1e-9, atol=1e-9)
    for key, value in results[0].items():
        assert all(value.tobytes() == other[key].tobytes() for other in results), key


# --- In the algorithms ---


class Counted(gym.Env):
    """An environment with observations that differ in scale; it keeps those of all instances."""

    observation_space, action_space = Box(-np.inf, np.inf, (4,)), Box(-1, 1, (2,))
    seen: list = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), float(action[0]), self.steps == 7, False, {}

    def _observe(self):
        obs = (self.np_random.standard_normal(4) * [1, 10, 100, 0.1] + [0, 50, 1, -3]).astype("f4")
        self.seen.append((id(self), obs))
        return obs


@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setattr(Counted, "seen", [])
    return Counted.seen


def train(algorithm, folder, env_fn=Counted, **kwargs):
    short = dict(steps_per_epoch=30, epochs=4, seed=1, checkpoint_every=0, normalize_obs=True)
    if algorithm not in ON_POLICY:
        short |= dict(update_after=12, update_every=9, start_steps=10, batch_size=8)
        short |= dict(num_test_episodes=1)
    settings = dict(ac_kwargs=dict(hidden_sizes=(8,)), logger_kwargs=dict(output_dir=folder))
    return getattr(spinup, algorithm)(env_fn, **{**short, **settings, **kwargs})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_statistics_are_those_of_trainings_observations(algorithm, tmp_path, seen):
    ac = train(algorithm, tmp_path / "run")
    env = seen[0][0]  # of training; tests have another instance
    obs = [x for who, x in seen if who == env]
    # Each episode's last observation has no action. Off-policy, the last cycle ended at step 117.
    obs = np.array([x for i, x in enumerate(obs) if i % 8 != 7])
    steps = 120 if algorithm in ON_POLICY else 117
    assert ac.normalizer.count == steps and len({who for who, _ in seen}) <= 3
    assert_allclose(ac.normalizer.mean, obs[:steps].mean(0), rtol=1e-6)
    assert_allclose(ac.normalizer.scale, 1 / obs[:steps].std(0), rtol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_policy_has_them(algorithm, tmp_path, seen):
    ac = train(algorithm, tmp_path / "run", env_fn="Pendulum-v1")
    loaded = load_policy(tmp_path / "run", deterministic=True)
    for key, value in ac.state_dict().items():
        assert torch.equal(loaded.ac.state_dict()[key], value)
    assert loaded.ac.normalizer.count > 0
    obs = np.array([0.5, -0.2, 3.0], np.float32)
    x = ac.normalizer(torch.as_tensor(obs))
    networks = ac.networks
    expected = (
        networks.act(x, deterministic=True) if algorithm not in ("ddpg", "td3") else networks.act(x)
    )
    assert_allclose(loaded(obs), expected, rtol=1e-5)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["normalize_obs"] is True


class Enough(Exception):
    pass


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_run_has_the_same_statistics_to_the_bit(algorithm, tmp_path, seen, monkeypatch):
    ac, save = train(algorithm, tmp_path / "whole", env_fn="Pendulum-v1"), Checkpoint.save

    def stop(self, t, **counters):
        save(self, t, **counters)
        if t == 60:
            raise Enough

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        with pytest.raises(Enough):
            train(algorithm, tmp_path / "cut", env_fn="Pendulum-v1")
    logger_kwargs = dict(output_dir=tmp_path / "cut", resume=True)
    resumed = train(algorithm, None, env_fn="Pendulum-v1", logger_kwargs=logger_kwargs)
    for key, value in ac.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize("action_space", [Box(-1, 1, (2,)), Discrete(3)], ids=["Box", "Discrete"])
@pytest.mark.parametrize("is_own", [False, True])
def test_the_acting_policy_normalises(action_space, is_own):
    class Own(MLPActorCritic):
        def act(self, obs, deterministic=False):
            return super().act(obs, deterministic)

    space = Box(-np.inf, np.inf, (4,))
    ac = (Own if is_own else MLPActorCritic)(space, action_space, (8,))
    ac = NormalizedActorCritic(ac, space)
    policy = acting_policy(ac, np.random.default_rng(0))
    obs = observations(20).astype(np.float32)
    for n in (5, 20):  # the policy sees later statistics, too
        ac.normalizer.update(obs[:n])
        x = ac.normalizer(torch.as_tensor(obs[n - 1]))
        expected = ac.networks.act(x, deterministic=True)
        assert_allclose(policy(obs[n - 1], True), expected, atol=1e-5)
        assert_allclose(ac.act(torch.as_tensor(obs[n - 1]), deterministic=True), expected)
        assert_allclose(ac.act(torch.as_tensor(obs[n - 1]), True), expected)


def test_without_the_flag_nothing_is_normalised(tmp_path):
    ac = train("sac", tmp_path / "run", env_fn="Pendulum-v1", normalize_obs=False)
    assert type(ac) is SquashedGaussianActorCritic


def test_it_learns_what_it_cannot_without(tmp_path):
    """The observation that matters is a thousandth of the others' size."""

    class Scaled(gym.Env):
        observation_space, action_space = Box(-np.inf, np.inf, (2,)), Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self._observe(), {}

        def step(self, action):
            rew = float((self.obs[0] > 0) == (action == 1))
            return self._observe(), rew, False, False, {}

        def _observe(self):
            self.obs = (self.np_random.standard_normal(2) * [1e-3, 1]).astype(np.float32)
            return self.obs

    def last_return(normalize):
        folder = tmp_path / str(normalize)
        spinup.ppo(
            *(Scaled,),
            **dict(steps_per_epoch=500, epochs=15, max_ep_len=20, normalize_obs=normalize),
            **dict(pi_lr=3e-3, logger_kwargs=dict(output_dir=folder)),
        )
        header, *rows = (folder / "progress.txt").read_text().splitlines()
        return float(rows[-1].split("\t")[header.split("\t").index("AverageEpRet")])

    assert last_return(True) > 16 > 13 > last_return(False)


def test_a_custom_module_meets_the_contract_as_before(tmp_path):
    class Own(nn.Module):
        """Spinning Up's form: q1 and q2, and an `act` without `deterministic`."""

        def __init__(self, observation_space, action_space):
            super().__init__()
            dim, n = observation_space.shape[0], action_space.shape[0]
            self.pi = nn.Sequential(nn.Linear(dim, n), nn.Tanh())
            self.q1, self.q2 = _Critic(dim + n), _Critic(dim + n)

        def act(self, obs):
            with torch.no_grad():
                return self.pi(obs).numpy()

    ac = train("td3", tmp_path / "run", actor_critic=Own, ac_kwargs={})
    assert ac.normalizer.count == 117
    obs = torch.tensor([0.0, 50.0, 1.0, -3.0])
    assert_allclose(ac.act(obs), ac.networks.act(ac.normalizer(obs)))


class _Critic(nn.Linear):
    def __init__(self, dim):
        super().__init__(dim, 1)

    def forward(self, obs, act):
        return super().forward(torch.cat([obs, act], -1)).squeeze(-1)
