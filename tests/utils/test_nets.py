import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from spinup.utils.nets import (
    DeterministicActorCritic,
    MLPQFunction,
    SingleCriticActorCritic,
    SquashedGaussianActorCritic,
)
from tests.utils.test_mlp import gradients, oracle, unstack

# With the compiled functions and with PyTorch's, if both are available.
pytestmark = pytest.mark.usefixtures("engine")

OBS = Box(-np.inf, np.inf, (3,), np.float32)
# Bounds that differ by dimension and are asymmetric.
ACT = Box(np.float32([-1, 0]), np.float32([3, 0.5]))

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Identity]
OFF_POLICY = [SquashedGaussianActorCritic, DeterministicActorCritic, SingleCriticActorCritic]


def with_net_output(ac, mu, log_std):
    """Makes a squashed Gaussian policy's network output `mu` and `log_std` for all observations."""
    last = ac.pi.net[-2]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([*mu, *log_std]))
    return ac


@pytest.mark.parametrize("mu", [(0.3, -0.4), (8.0, -9.0), (40.0, -60.0), (1e4, -1e4)])
@pytest.mark.parametrize("log_std", [(-2.0, 0.5), (-7.0, -4.0)])
def test_squashed_log_probabilities_are_torchs(mu, log_std):
    ac = with_net_output(SquashedGaussianActorCritic(OBS, ACT, (4,)).double(), mu, log_std)
    obs = torch.zeros(64, 3, dtype=torch.double)
    torch.manual_seed(1)
    act, logp = ac.pi(obs)

    torch.manual_seed(1)
    mean, std = torch.tensor(mu).double().expand(64, 2), torch.tensor(log_std).double().exp()
    u = mean + std * torch.randn(64, 2, dtype=torch.double)
    # The cache spares the transform inverting tanh, which is exactly 1 in float64 from 20 on.
    tanh = TanhTransform(cache_size=1)
    squashed = TransformedDistribution(Normal(mean, std), tanh)
    expected = squashed.log_prob(tanh(u)).sum(-1)
    assert torch.isfinite(logp).all()
    torch.testing.assert_close(logp, expected)
    torch.testing.assert_close(act, torch.tensor([1.0, 0.25]) + torch.tensor([2, 0.25]) * u.tanh())


@pytest.mark.parametrize("u", [0.0, 1.5, -3.0, 30.0, -200.0])
def test_squashed_density_at_extremes_by_hand(u):
    space = Box(-1, 1, (1,))
    ac = with_net_output(SquashedGaussianActorCritic(OBS, space, (4,)), [u], [0.5])
    logp = ac.pi(torch.zeros(1, 3), deterministic=True)[1].item()
    # log(1 - tanh(u)^2) = -2 log cosh(u), and cosh(u) is almost exp(|u|) / 2 for large |u|.
    log_cosh = math.log(math.cosh(u)) if abs(u) < 20 else abs(u) - math.log(2)
    assert logp == pytest.approx(-0.5 - 0.5 * math.log(2 * math.pi) + 2 * log_cosh, rel=1e-5)


def test_squashed_density_integrates_to_one():
    ac = with_net_output(SquashedGaussianActorCritic(OBS, Box(-1, 1, (1,)), (4,)), [0.4], [-0.3])
    torch.manual_seed(0)
    act, logp = ac.pi(torch.zeros(200_000, 3))
    # The mean of 1 / density over samples is the length of the support, here limited to ± 0.9.
    within = act[:, 0].abs() < 0.9
    length = (within * (-logp).exp()).mean().item()
    assert length == pytest.approx(1.8, abs=0.02)


@pytest.mark.parametrize("log_std, clamped", [(-50.0, -20.0), (9.0, 2.0), (1.0, 1.0)])
def test_log_std_is_clamped(log_std, clamped):
    ac = with_net_output(SquashedGaussianActorCritic(OBS, Box(-1, 1, (1,)), (4,)), [0], [log_std])
    logp = ac.pi(torch.zeros(1, 3), deterministic=True)[1].item()
    assert logp == pytest.approx(-clamped - 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("spread", [0.5, 5.0])  # the second reaches both ends of the clamp
@pytest.mark.parametrize("of_act, of_logp", [(1, 0), (0, 1), (1, 1)])
def test_gradients_through_samples_are_autograds(of_act, of_logp, spread):
    torch.manual_seed(0)
    ac = SquashedGaussianActorCritic(OBS, ACT, (8,)).double()
    with torch.no_grad():
        ac.pi.net[-2].weight.mul_(4 * spread)
    obs = spread * torch.randn(32, 3, dtype=torch.double)
    params = list(ac.pi.parameters())
    mu, log_std = ac.pi.net(obs).chunk(2, -1)
    clamped = log_std.clamp(-20, 2)
    assert (log_std > 2).any() == (log_std < -20).any() == (spread > 1)

    torch.manual_seed(1)
    act, logp = ac.pi(obs, with_logprob=of_logp > 0)
    assert (logp is None) == (not of_logp)
    objective = of_act * (act * act).sum() + (logp.square().sum() if of_logp else 0)

    torch.manual_seed(1)
    u = mu + clamped.exp() * torch.randn_like(mu)
    tanh = TanhTransform(cache_size=1)
    squashed = tanh(u)
    expected_act = torch.tensor([1.0, 0.25]) + torch.tensor([2, 0.25]) * squashed
    expected_logp = TransformedDistribution(Normal(mu, clamped.exp()), tanh).log_prob(squashed)
    expected = of_act * expected_act.square().sum()
    expected = expected + of_logp * expected_logp.sum(-1).square().sum()
    torch.testing.assert_close(objective, expected)
    for grad, expected_grad in zip(
        torch.autograd.grad(objective, params), torch.autograd.grad(expected, params), strict=True
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mu", [60.0, -1e6])
@pytest.mark.parametrize("log_std", [-300.0, 300.0])
def test_gradients_at_extremes_are_finite(mu, log_std):
    ac = with_net_output(SquashedGaussianActorCritic(OBS, ACT, (4,)), [mu, -mu], [log_std] * 2)
    act, logp = ac.pi(torch.ones(5, 3))
    (act.sum() + logp.sum()).backward()
    assert torch.isfinite(act).all() and torch.isfinite(logp).all()
    assert all(torch.isfinite(p.grad).all() for p in ac.pi.parameters())


@pytest.mark.parametrize("actor_critic", OFF_POLICY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_fill_the_box(actor_critic, dtype):
    torch.manual_seed(0)
    low, high = np.array([-1, 0], dtype), np.array([3, 0.5], dtype)
    ac = actor_critic(OBS, Box(low, high, dtype=dtype), hidden_sizes=(16,))
    obs = 1e4 * torch.randn(200, 3)
    act = ac.act(obs)
    assert act.shape == (200, 2)
    assert act.dtype == np.float32
    np.testing.assert_allclose(act.min(0), low, atol=1e-5)
    np.testing.assert_allclose(act.max(0), high, atol=1e-5)
    # The critics and the replay buffer use float32, whatever the dtype of the Box.
    critics = () if actor_critic is SingleCriticActorCritic else (2,)
    assert ac.q(obs, torch.as_tensor(act)).shape == (*critics, 200)
    assert ac.act(obs[0]).shape == (2,)


def test_the_deterministic_action_is_the_middle_of_the_samples():
    torch.manual_seed(0)
    ac = with_net_output(SquashedGaussianActorCritic(OBS, ACT, (4,)), [0.5, -1], [-1, -0.5])
    obs = torch.zeros(20_000, 3)
    expected = [1 + 2 * math.tanh(0.5), 0.25 + 0.25 * math.tanh(-1)]
    np.testing.assert_allclose(ac.act(obs[:2], deterministic=True), [expected, expected], rtol=1e-5)
    np.testing.assert_allclose(np.median(ac.act(obs), axis=0), expected, atol=0.02)


def test_twin_critics_are_two_networks():
    torch.manual_seed(0)
    ac = SquashedGaussianActorCritic(OBS, ACT, (6, 5))
    obs, act = torch.randn(7, 3), torch.randn(7, 2, requires_grad=True)
    q = ac.q(obs, act)
    for i, one in enumerate(unstack(ac.q.q_net)):
        expected = one(torch.cat([obs, act], -1)).squeeze(-1)
        torch.testing.assert_close(q[i], expected)
        torch.testing.assert_close([ac.q1, ac.q2][i](obs, act), expected)
    torch.testing.assert_close(ac.q.first(obs, act), q[0])
    for grad, expected in zip(
        gradients(ac.q.first(obs, act), [act]), gradients(ac.q(obs, act)[0], [act])
    ):
        torch.testing.assert_close(grad, expected)


def test_a_critic_by_hand():
    q = MLPQFunction(2, 1, (2,), nn.ReLU)
    with torch.no_grad():
        q.q_net[0].weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.0]]))
        q.q_net[0].bias.copy_(torch.tensor([0.5, 0.0]))
        q.q_net[2].weight.copy_(torch.tensor([[3.0, 5.0]]))
        q.q_net[2].bias.copy_(torch.tensor([-1.0]))
    # Hidden units: relu(1 + 2 * 0.25 + 0.5) = 2 and relu(-4) = 0; then relu(-3 + 0.5) and relu(2).
    obs, act = torch.tensor([[1.0, 4.0], [-3.0, -2.0]]), torch.tensor([[0.25], [0.0]])
    assert q(obs, act).tolist() == [5, 9]
    assert q(obs[0], act[0]).shape == ()


def test_a_single_critic_is_an_ordinary_network():
    torch.manual_seed(0)
    ac = SingleCriticActorCritic(OBS, ACT, (6, 5))
    assert [layer.weight.shape for layer in ac.q.q_net[::2]] == [(6, 5), (5, 6), (1, 5)]
    obs, act = torch.randn(7, 3), torch.randn(7, 2, requires_grad=True)
    inputs = [act, *ac.q.parameters()]
    q, expected = ac.q(obs, act), oracle(ac.q.q_net, torch.cat([obs, act], -1)).squeeze(-1)
    torch.testing.assert_close(q, expected)
    for grad, expected_grad in zip(gradients(q, inputs), gradients(expected, inputs)):
        torch.testing.assert_close(grad, expected_grad)
    # Its policy is TD3's, whatever the critic.
    torch.manual_seed(0)
    td3 = DeterministicActorCritic(OBS, ACT, (6, 5))
    assert np.array_equal(ac.act(obs), td3.act(obs))
    assert not hasattr(ac, "q1")


def test_off_policy_networks_are_256_by_256_with_relu():
    ac = DeterministicActorCritic(OBS, ACT)
    assert [type(layer) for layer in ac.pi.pi_net[1::2]] == [nn.ReLU, nn.ReLU, nn.Tanh]
    assert [layer.weight.shape for layer in ac.pi.pi_net[::2]] == [(256, 3), (256, 256), (2, 256)]
    assert [layer.weight.shape for layer in ac.q.q_net[::2]] == [
        (2, 256, 5),
        (2, 256, 256),
        (2, 1, 256),
    ]
    assert not any("mid" in name or "half_range" in name for name in ac.state_dict())
