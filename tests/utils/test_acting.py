import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal

from spinup.utils.acting import _module_policy, acting_policy
from spinup.utils.envs import make_env
from spinup.utils.flat import flatten
from spinup.utils.nets import (
    DeterministicActorCritic,
    MLPActorCritic,
    SingleCriticActorCritic,
    SquashedGaussianActorCritic,
)

OBS = Box(-np.inf, np.inf, (4,), np.float32)
ACT = Box(np.float32([-1, 0]), np.float32([3, 0.5]))
DISCRETE = Discrete(5, start=5)

ON_POLICY = dict(discrete=(MLPActorCritic, DISCRETE), gaussian=(MLPActorCritic, ACT))
OFF_POLICY = dict(
    squashed=(SquashedGaussianActorCritic, ACT),
    deterministic=(DeterministicActorCritic, ACT),
    single=(SingleCriticActorCritic, ACT),
)
POLICIES = pytest.mark.parametrize("kind", [*ON_POLICY, *OFF_POLICY])


def make(kind, hidden_sizes=(8, 6), **kwargs):
    torch.manual_seed(0)
    actor_critic, space = (ON_POLICY | OFF_POLICY)[kind]
    ac = actor_critic(OBS, space, hidden_sizes=hidden_sizes, **kwargs)
    with torch.no_grad():  # away from the near-zero outputs of a new network
        for p in ac.pi.parameters():
            p.mul_(2)
    return ac


def modes(ac, obs):
    """Returns deterministic actions, computed by the module's forward pass."""
    with torch.no_grad():
        obs = torch.as_tensor(obs, dtype=torch.float32)
        if isinstance(ac, MLPActorCritic):
            pi = ac.pi.distribution(obs)
            return pi.logits.argmax(-1).numpy() if hasattr(pi, "logits") else pi.mean.numpy()
        out = ac.pi(obs, True) if isinstance(ac, SquashedGaussianActorCritic) else ac.pi(obs)
        return (out[0] if isinstance(out, tuple) else out).numpy()


@POLICIES
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Identity])
@pytest.mark.parametrize("hidden_sizes", [(), (8, 6)])
def test_numpy_acts_as_the_module_does(kind, activation, hidden_sizes):
    ac = make(kind, hidden_sizes, activation=activation)
    policy = acting_policy(ac, np.random.default_rng(0))
    obs = np.random.default_rng(1).normal(size=(50, 4))  # in double precision, as MuJoCo's are
    before = obs.copy()
    acts = np.array([policy(o, True) for o in obs])
    np.testing.assert_allclose(acts, modes(ac, obs), rtol=1e-4, atol=1e-5)
    assert len(np.unique(acts, axis=0)) > 1
    assert np.array_equal(obs, before)


@POLICIES
def test_actions_have_the_shape_that_stepping_takes(kind):
    policy = acting_policy(make(kind), np.random.default_rng(0))
    for deterministic in (True, False):
        act = policy(np.zeros(4, np.float32), deterministic)
        assert np.shape(act) == (() if kind == "discrete" else (2,))
        if kind != "discrete":
            assert act.dtype == np.float32


@POLICIES
def test_acting_leaves_no_trace_in_the_next_action(kind):
    policy = acting_policy(make(kind), np.random.default_rng(0))
    obs = np.float32([1, -1, 0.5, 2])
    first = np.array(policy(obs, True))
    kept = policy(obs, True)
    policy(-obs, True)
    assert np.array_equal(kept, first)
    assert np.array_equal(policy(obs, True), first)


def test_sampled_discrete_actions_have_the_networks_probabilities():
    ac = make("discrete")
    obs = np.float32([1, -1, 0.5, 2])
    policy = acting_policy(ac, np.random.default_rng(0))
    n = 20_000
    chances = np.bincount([policy(obs) for _ in range(n)], minlength=5) / n
    with torch.no_grad():
        expected = ac.pi.distribution(torch.as_tensor(obs)).probs.numpy()
    # Within three standard errors. Actions are counted from 0, wherever the space starts.
    np.testing.assert_allclose(chances, expected, atol=3 * 0.5 / n**0.5)
    assert len(chances) == 5


def with_logits(ac, logits):
    last = ac.pi.logits_net[-2]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor(logits))
    return ac


@pytest.mark.parametrize("logits", [[800.0, 0, -800, 0, 0], [-1e4, -1e4, -1e4, -1e4, 0]])
def test_extreme_logits_give_the_sure_action(logits):
    policy = acting_policy(with_logits(make("discrete"), logits), np.random.default_rng(0))
    assert {int(policy(np.zeros(4))) for _ in range(100)} == {int(np.argmax(logits))}


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_the_ends_of_a_draw_are_actions_of_some_probability(draw):
    class Generator:
        def random(self):
            return draw

    ac = with_logits(make("discrete"), [-1e4, 0.0, 0.0, 0.0, -1e4])
    assert acting_policy(ac, Generator())(np.zeros(4)) == (1 if draw == 0 else 3)


def test_sampled_gaussian_actions_have_the_networks_mean_and_deviation():
    ac = make("gaussian")
    with torch.no_grad():
        ac.pi.log_std.copy_(torch.tensor([-1.0, 0.7]))
    obs = np.float32([1, -1, 0.5, 2])
    policy = acting_policy(ac, np.random.default_rng(0))
    n = 20_000
    acts = np.array([policy(obs) for _ in range(n)])
    std = np.exp([-1.0, 0.7])
    np.testing.assert_allclose((acts.mean(0) - modes(ac, obs)) / std, 0, atol=4 / n**0.5)
    np.testing.assert_allclose(acts.std(0) / std, 1, atol=4 / (2 * n) ** 0.5)
    assert abs(np.corrcoef(acts.T)[0, 1]) < 4 / n**0.5


def with_log_std(ac, log_std):
    last = ac.pi.net[-2]
    with torch.no_grad():
        last.weight[2:] = 0
        last.bias[2:] = log_std
    return acting_policy(ac, np.random.default_rng(0))


@pytest.mark.parametrize("log_std", [-0.5, 5.0])  # 5.0 is clamped to 2
def test_sampled_squashed_actions_have_the_modules_distribution(log_std):
    ac = make("squashed")
    policy = with_log_std(ac, log_std)
    obs = np.float32([0.1, -0.1, 0.05, 0.2])
    n = 20_000
    acts = np.array([policy(obs) for _ in range(n)])
    torch.manual_seed(0)
    expected = ac.act(torch.as_tensor(obs).expand(n, -1))
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        bound = ACT.low + part * (ACT.high - ACT.low)
        below, expected_below = (acts < bound).mean(0), (expected < bound).mean(0)
        np.testing.assert_allclose(below, expected_below, atol=4 * 0.5 * (2 / n) ** 0.5)
    assert (acts >= ACT.low).all() and (acts <= ACT.high).all()


def test_hardly_any_deviation_gives_the_mode():
    ac = make("squashed")
    policy = with_log_std(ac, -1000.0)
    obs = np.float32([0.1, -0.1, 0.05, 0.2])
    np.testing.assert_allclose(policy(obs), modes(ac, obs), rtol=1e-5)


@pytest.mark.parametrize("log_std", [-1000.0, -20.0, -10.0])
def test_the_least_deviation_is_the_modules(log_std):
    ac = SquashedGaussianActorCritic(OBS, Box(-1, 1, (2,)), hidden_sizes=())
    last = ac.pi.net[-2]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0, 0, log_std, log_std]))
    policy = acting_policy(ac, np.random.default_rng(0))
    acts = np.array([policy(np.zeros(4, np.float32)) for _ in range(1000)])
    assert acts.std() == pytest.approx(math.exp(max(log_std, -20)), rel=0.1)


@POLICIES
def test_the_same_generator_gives_the_same_actions(kind):
    ac = make(kind)
    obs = np.ones(4, np.float32)
    first, again = (
        [np.array(policy(obs)) for _ in range(20)]
        for policy in (acting_policy(ac, np.random.default_rng(7)) for _ in range(2))
    )
    assert np.array_equal(first, again)
    is_fixed = kind in ("deterministic", "single")
    torch.manual_seed(1)  # no effect: the policy uses its own generator
    other = acting_policy(ac, np.random.default_rng(8))
    assert np.array_equal(first, [other(obs) for _ in range(20)]) == is_fixed


@POLICIES
def test_a_policy_on_the_cpu_follows_training_without_a_copy(kind):
    ac = make(kind)
    vector = flatten(ac.pi)
    policy = acting_policy(ac, np.random.default_rng(0))
    obs = np.random.default_rng(1).normal(size=(50, 4))
    before = np.array([policy(o, True) for o in obs])
    with torch.no_grad():
        vector.add_(torch.randn(len(vector)))
    after = np.array([policy(o, True) for o in obs])
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(after, modes(ac, obs), rtol=1e-4, atol=1e-5)


@POLICIES
@pytest.mark.cuda
def test_a_policy_on_a_gpu_acts_by_its_copy_until_refreshed(kind):
    ac = make(kind).to("cuda")
    vector = flatten(ac.pi)
    policy = acting_policy(ac, np.random.default_rng(0))
    obs = np.random.default_rng(1).normal(size=(50, 4))
    before = np.array([policy(o, True) for o in obs])
    with torch.no_grad():
        vector.add_(torch.randn(len(vector), device="cuda"))
    assert np.array_equal([policy(o, True) for o in obs], before)
    policy.refresh()
    expected = modes(copy.deepcopy(ac).cpu(), obs)
    np.testing.assert_allclose([policy(o, True) for o in obs], expected, rtol=1e-3, atol=1e-4)


def assigned(ac):
    state = {k: v + 0.25 for k, v in ac.state_dict().items()}
    ac.load_state_dict(state, assign=True)


MOVES = dict(
    assign=assigned,
    double=lambda ac: ac.double(),
    to=lambda ac: ac.to(torch.float64),
    data=lambda ac: [setattr(p, "data", p.data + 0.25) for p in ac.pi.parameters()],
)


@POLICIES
@pytest.mark.parametrize("move", MOVES)
def test_a_policy_follows_tensors_that_have_moved(kind, move):
    ac = make(kind)
    policy = acting_policy(ac, np.random.default_rng(0))
    MOVES[move](ac)
    with torch.no_grad():
        for p in ac.pi.parameters():
            p.add_(0.125)
    policy.refresh()
    obs = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    expected = modes(copy.deepcopy(ac).float(), obs)
    np.testing.assert_allclose([policy(o, True) for o in obs], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("bad", [[0, math.nan, 0, 0, 0], [math.inf, 0, 0, 0, 0], [-math.inf] * 5])
def test_logits_without_a_distribution_give_no_action(bad, deterministic):
    class Env(gym.Env):
        observation_space, action_space = OBS, DISCRETE

        def reset(self, *, seed=None, options=None):
            return np.zeros(4, np.float32), {}

        def step(self, action):
            return np.zeros(4, np.float32), 0.0, False, False, {}

    policy = acting_policy(with_logits(make("discrete"), bad), np.random.default_rng(0))
    env = make_env(Env)
    obs, _ = env.reset()
    env.step(0)
    with pytest.raises(FloatingPointError, match=r"policy chose NaN .* at step 1 of Env"):
        env.step(policy(obs, deterministic))


@pytest.mark.parametrize("logits", [[-math.inf, 0, 0, -math.inf, 0], [0.0] * 5, [3.4e38] * 5])
def test_actions_of_equal_logits_are_as_likely_and_those_of_minus_infinity_are_never_taken(logits):
    policy = acting_policy(with_logits(make("discrete"), logits), np.random.default_rng(0))
    n, possible = 5000, np.isfinite(logits)
    counts = np.bincount([int(policy(np.zeros(4))) for _ in range(n)], minlength=5)
    assert not counts[~possible].any()
    expected = n / possible.sum()
    np.testing.assert_allclose(counts[possible], expected, atol=4 * expected**0.5)


@pytest.mark.parametrize("kind", ["gaussian", "squashed", "deterministic"])
def test_a_nan_in_the_weights_is_a_nan_in_the_action(kind):
    ac = make(kind)
    policy = acting_policy(ac, np.random.default_rng(0))
    with torch.no_grad():
        ac.pi.get_parameter(next(k for k, _ in ac.pi.named_parameters() if "weight" in k))[0] = (
            math.nan
        )
    assert np.isnan(policy(np.ones(4))).all()
    assert np.isnan(policy(np.ones(4), True)).all()


@pytest.mark.parametrize("place", ["pi", "pi.pi_net", "pi.pi_net.0", "pi.pi_net.1"])
def test_a_network_with_a_hook_acts_itself(place):
    ac = make("deterministic")
    plain = acting_policy(ac, np.random.default_rng(0))(np.ones(4))
    ac.get_submodule(place).register_forward_hook(lambda module, inputs, output: 2 * output)
    acted = acting_policy(ac, np.random.default_rng(0))(np.ones(4))
    np.testing.assert_allclose(acted, modes(ac, np.ones(4)), rtol=1e-6)
    assert not np.allclose(acted, plain)


def test_a_policy_with_a_layer_without_bias_acts_itself():
    ac = make("deterministic")
    ac.pi.pi_net[0] = nn.Linear(4, 8, bias=False)
    acted = acting_policy(ac, np.random.default_rng(0))(np.ones(4))
    np.testing.assert_allclose(acted, modes(ac, np.ones(4)), rtol=1e-6)


# --- A user's module ---


@POLICIES
def test_another_activation_acts_through_the_module(kind):
    ac = make(kind, activation=nn.ELU)
    policy = acting_policy(ac, np.random.default_rng(0))
    obs = np.random.default_rng(1).normal(size=(5, 4))
    torch.manual_seed(3)
    acts = [policy(o) for o in obs]
    torch.manual_seed(3)
    expected = [ac.act(torch.as_tensor(o, dtype=torch.float32)) for o in obs]
    np.testing.assert_allclose(acts, expected)
    if kind in OFF_POLICY:
        np.testing.assert_allclose([policy(o, True) for o in obs], modes(ac, obs), rtol=1e-5)


class OwnPolicy(nn.Module):
    """Returns the sum of its inputs and its bias; subclasses show how they were called."""

    def __init__(self):
        super().__init__()
        self.pi = nn.Linear(4, 1)
        nn.init.ones_(self.pi.weight)
        nn.init.zeros_(self.pi.bias)


class WithMode(OwnPolicy):
    def act(self, obs, deterministic=False):
        assert not torch.is_grad_enabled()
        return self.pi(obs).detach().numpy() + (100 if deterministic else 0)


class WithoutMode(OwnPolicy):
    def act(self, obs):
        assert obs.dtype == torch.float32
        return self.pi(obs).detach().numpy()


def test_a_users_module_is_asked_to_be_deterministic_if_it_can():
    obs = np.arange(4)  # integers, like a flattened Discrete observation
    policy = acting_policy(WithMode(), np.random.default_rng(0))
    assert (policy(obs).item(), policy(obs, True).item()) == (6, 106)
    policy = acting_policy(WithoutMode(), np.random.default_rng(0))
    assert (policy(obs).item(), policy(obs, True).item()) == (6, 6)


@pytest.mark.parametrize(
    "distribution, expected",
    [
        (lambda out: Independent(Normal(out, 1.0), 1), 6.0),
        (lambda out: Normal(out, 1.0), 6.0),
        (lambda out: Categorical(logits=torch.cat([out, out + 1], -1)), 1),
        (lambda out: Bernoulli(logits=out), 7),  # its mode is a float: the sample stays
    ],
)
def test_the_mode_of_a_users_distribution_stands_in_for_a_missing_flag(distribution, expected):
    class OnPolicy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.v = OwnPolicy().pi, nn.Linear(4, 1)
            self.pi = lambda obs: (distribution(self.net(obs)), None)

        def act(self, obs):
            return np.array(7)

    policy = acting_policy(OnPolicy(), np.random.default_rng(0))
    assert policy(np.arange(4)) == 7
    np.testing.assert_allclose(policy(np.arange(4), True).item(), expected, rtol=1e-6)


def test_a_users_policy_beside_a_built_in_name_is_not_mistaken():
    class Doubled(type(make("deterministic").pi)):
        def forward(self, obs):
            return 2 * super().forward(obs)

    ac = make("deterministic")
    plain = modes(ac, np.ones(4))
    ac.pi.__class__ = Doubled
    policy = acting_policy(ac, np.random.default_rng(0))
    np.testing.assert_allclose(policy(np.ones(4), True), 2 * plain, rtol=1e-5)


def test_a_users_module_on_the_cpu_follows_training():
    ac = WithMode()
    policy = _module_policy(ac)
    with torch.no_grad():
        ac.pi.bias.fill_(5)
    assert policy(np.zeros(4)).item() == 5
    policy.refresh()
    assert policy(np.zeros(4)).item() == 5


class Elsewhere(WithMode):
    """Pretends that its parameters are on another device, such as a GPU."""

    def parameters(self, recurse=True):
        return iter([nn.Parameter(torch.empty(1, device="meta"))])


def test_a_users_module_elsewhere_acts_by_its_copy_until_refreshed():
    ac = Elsewhere()
    policy = _module_policy(ac)
    with torch.no_grad():
        ac.pi.bias.fill_(5)
    assert policy(np.zeros(4)).item() == 0
    policy.refresh()
    assert policy(np.zeros(4)).item() == 5


@pytest.mark.cuda
def test_a_users_module_on_a_gpu_acts_by_its_copy_until_refreshed():
    ac = WithMode().to("cuda")
    policy = acting_policy(ac, np.random.default_rng(0))
    with torch.no_grad():
        ac.pi.bias.fill_(5)
    assert policy(np.zeros(4)).item() == 0
    policy.refresh()
    assert policy(np.zeros(4)).item() == 5


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))])
def test_the_mode_of_networks_that_numpy_does_not_mirror(space):
    ac = MLPActorCritic(Box(-1, 1, (4,)), space, activation=nn.ELU)
    policy, obs = acting_policy(ac, np.random.default_rng(0)), np.ones(4, np.float32)
    expected = ac.pi.distribution(torch.as_tensor(obs)).mode
    assert all(np.array_equal(policy(obs, True), expected.detach()) for _ in range(5))


def test_an_act_of_ones_own_is_called_though_the_policy_is_the_librarys():
    class Half(DeterministicActorCritic):
        def act(self, obs):
            return super().act(obs) / 2

    torch.manual_seed(0)
    ac, obs = Half(Box(-1, 1, (4,)), Box(-1, 1, (2,))), np.ones(4, np.float32)
    policy = acting_policy(ac, np.random.default_rng(0))
    np.testing.assert_allclose(policy(obs), ac.pi(torch.as_tensor(obs)).detach() / 2, rtol=1e-6)
