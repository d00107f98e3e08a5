import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.distributions import Normal

from spinup.utils.nets import (
    DeterministicActorCritic,
    MLPActorCritic,
    MLPCritic,
    MLPGaussianActor,
    SingleCriticActorCritic,
    SquashedGaussianActorCritic,
)
from tests.utils.test_mlp import gradients

# With the compiled functions and with PyTorch's, if both are available.
pytestmark = pytest.mark.usefixtures("engine")

OBS = Box(-np.inf, np.inf, (3,), np.float32)
# Bounds that differ by dimension and are asymmetric.
ACT = Box(np.float32([-1, 0]), np.float32([3, 0.5]))

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Identity]
OFF_POLICY = [SquashedGaussianActorCritic, DeterministicActorCritic, SingleCriticActorCritic]


def test_gaussian_log_probabilities_are_torchs():
    torch.manual_seed(0)
    actor = MLPGaussianActor(3, 2, (4,), nn.Tanh)
    assert actor.log_std.tolist() == [-0.5, -0.5]
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([-1.5, 0.7]))
    obs, act = torch.randn(6, 3), torch.randn(6, 2)
    pi, logp = actor(obs, act)
    expected = Normal(actor.mu_net(obs), actor.log_std.exp()).log_prob(act).sum(-1)
    assert logp.shape == (6,)
    torch.testing.assert_close(logp, expected)
    torch.testing.assert_close(pi.log_prob(act), expected)
    params = list(actor.parameters())
    for grad, expected_grad in zip(gradients(logp, params), gradients(expected, params)):
        torch.testing.assert_close(grad, expected_grad)
    assert actor(obs)[1] is None


def test_gaussian_density_by_hand():
    actor = MLPGaussianActor(1, 2, (), nn.Tanh)
    with torch.no_grad():
        actor.mu_net[0].weight.zero_()
        actor.mu_net[0].bias.copy_(torch.tensor([1.0, 0.0]))
        actor.log_std.copy_(torch.tensor([0.0, math.log(2)]))
    logp = actor(torch.zeros(1, 1), torch.tensor([[3.0, 2.0]]))[1]
    # -(2^2 / 2) - (1^2 / 2) - log 2 - log(2 pi)
    assert logp.item() == pytest.approx(-2.5 - math.log(2) - math.log(2 * math.pi))


def test_categorical_log_probabilities_are_a_log_softmax():
    torch.manual_seed(0)
    ac = MLPActorCritic(OBS, Discrete(4, start=5), hidden_sizes=(6,))
    obs, act = torch.randn(5, 3), torch.tensor([0, 3, 1, 2, 3])
    pi, logp = ac.pi(obs, act)
    expected = ac.pi.logits_net(obs).log_softmax(-1)[range(5), act]
    assert logp.shape == (5,)
    torch.testing.assert_close(logp, expected)
    assert pi.probs.shape == (5, 4)


@pytest.mark.parametrize("space, act_shape", [(ACT, (2,)), (Discrete(4), ())])
def test_on_policy_step_as_spinning_ups(space, act_shape):
    torch.manual_seed(0)
    ac = MLPActorCritic(OBS, space)
    hidden = [layer.out_features for layer in ac.v.v_net if hasattr(layer, "out_features")]
    assert hidden == [64, 64, 1]
    for obs, batch in [(torch.randn(3), ()), (torch.randn(8, 3), (8,))]:
        act, val, logp = ac.step(obs)
        assert (act.shape, val.shape, logp.shape) == (batch + act_shape, batch, batch)
        with torch.no_grad():
            np.testing.assert_allclose(val, ac.v(obs).numpy())
            expected = ac.pi(obs, torch.as_tensor(act))[1]
        np.testing.assert_allclose(logp, expected.numpy(), rtol=1e-5)
        assert ac.act(obs).shape == batch + act_shape


def test_values_have_no_last_dimension():
    assert MLPCritic(3, (4,), nn.Tanh)(torch.randn(5, 3)).shape == (5,)
    assert MLPCritic(3, (4,), nn.Tanh)(torch.randn(3)).shape == ()
