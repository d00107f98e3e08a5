import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import nn

from spinup.utils.nets import (
    DeterministicActorCritic,
    SingleCriticActorCritic,
    SquashedGaussianActorCritic,
    mlp,
)

# With the compiled functions and with PyTorch's, if both are available.
pytestmark = pytest.mark.usefixtures("engine")

OBS = Box(-np.inf, np.inf, (3,), np.float32)
# Bounds that differ by dimension and are asymmetric.
ACT = Box(np.float32([-1, 0]), np.float32([3, 0.5]))

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Identity]
OFF_POLICY = [SquashedGaussianActorCritic, DeterministicActorCritic, SingleCriticActorCritic]


def oracle(net, x):
    """Evaluates an MLP layer by layer with autograd, and a stack network by network."""
    if not hasattr(net[0], "in_features"):
        return torch.stack([one(x if x.dim() < 3 else x[i]) for i, one in enumerate(unstack(net))])
    for layer in net:
        x = layer(x)
    return x


def unstack(net):
    """Returns the networks of a stack as functions that share its parameters."""

    def one(i):
        def forward(x):
            for layer in net:
                if hasattr(layer, "weight"):
                    x = x @ layer.weight[i].T + layer.bias[i].flatten()
                else:
                    x = layer(x)
            return x

        return forward

    return [one(i) for i in range(len(net[0].weight))]


def gradients(out, inputs):
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True)


def test_an_mlp_by_hand():
    net = mlp([2, 2, 1], nn.ReLU)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0]]))
        net[0].bias.copy_(torch.tensor([0.5, -3.0]))
        net[2].weight.copy_(torch.tensor([[2.0, 7.0]]))
        net[2].bias.copy_(torch.tensor([0.25]))
    # Hidden units: relu(1 + 4 + 0.5) = 5.5 and relu(-1 + 2 - 3) = 0.
    out = net(torch.tensor([[1.0, 2.0]]))
    assert out.tolist() == [[11.25]]
    out.sum().backward()
    assert net[0].weight.grad.tolist() == [[2, 4], [0, 0]]
    assert net[0].bias.grad.tolist() == [2, 0]
    assert net[2].weight.grad.tolist() == [[5.5, 0]]
    assert net[2].bias.grad.tolist() == [1]


@pytest.mark.parametrize("num_stacked", [None, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("output_activation", [nn.Identity, nn.Tanh])
@pytest.mark.parametrize("hidden", [(), (5,), (4, 6)])
@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_closed_form_equals_autograd(num_stacked, activation, output_activation, hidden, dtype):
    torch.manual_seed(0)
    net = mlp([3, *hidden, 2], activation, output_activation, num_stacked).to(dtype)
    x = torch.randn(7, 3, dtype=dtype, requires_grad=True)
    inputs = [x, *net.parameters()]
    out, expected = net(x), oracle(net, x)
    assert out.shape == ((7, 2) if num_stacked is None else (2, 7, 2))
    torch.testing.assert_close(out, expected)
    for grad, expected_grad in zip(gradients(out, inputs), gradients(expected, inputs)):
        torch.testing.assert_close(grad, expected_grad)
    if dtype is torch.double:
        assert torch.autograd.gradcheck(lambda *args: net(args[0]), inputs)


@pytest.mark.parametrize(
    "shape, num_stacked, out_shape",
    [
        ((3,), None, (2,)),  # one observation
        ((3,), 2, (2, 2)),
        ((1, 3), None, (1, 2)),
        ((1, 3), 2, (2, 1, 2)),
        ((2, 7, 3), 2, (2, 7, 2)),  # each network its own input
        ((4, 7, 3), None, (4, 7, 2)),
    ],
)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU])
def test_shapes_of_input(shape, num_stacked, out_shape, activation):
    torch.manual_seed(0)
    net = mlp([3, 5, 2], activation, num_stacked=num_stacked).double()
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    out, expected = net(x), oracle(net, x)
    assert out.shape == out_shape
    inputs = [x, *net.parameters()]
    torch.testing.assert_close(out, expected)
    for grad, expected_grad in zip(gradients(out, inputs), gradients(expected, inputs)):
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("num_stacked", [None, 2])
@pytest.mark.parametrize(
    "frozen_names",
    [
        ["0.weight", "0.bias"],
        ["2.weight", "2.bias"],
        ["0.weight"],
        ["0.bias"],
        ["0.weight", "0.bias", "2.weight", "2.bias"],
    ],
)
def test_frozen_parameters_get_no_gradient_and_the_others_theirs(frozen_names, num_stacked):
    torch.manual_seed(0)
    net = mlp([3, 5, 2], nn.ReLU, num_stacked=num_stacked).double()
    for name in frozen_names:
        net.get_parameter(name).requires_grad_(False)
    x = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    expected = torch.autograd.grad(
        oracle(net, x).square().sum(), [x, *(p for p in net.parameters() if p.requires_grad)]
    )
    net(x).square().sum().backward()
    seen = [x.grad, *(p.grad for p in net.parameters() if p.requires_grad)]
    for grad, expected_grad in zip(seen, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad)
    assert all(net.get_parameter(name).grad is None for name in frozen_names)


@pytest.mark.parametrize("num_stacked", [None, 2])
def test_an_input_without_gradient_gets_none(num_stacked):
    net = mlp([3, 5, 2], nn.Tanh, num_stacked=num_stacked)
    x = torch.randn(4, 3)
    net(x).sum().backward()
    assert x.grad is None
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_second_derivative_is_refused_not_wrong():
    x = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(mlp([3, 5, 1], nn.Tanh)(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("activation", [nn.ELU, nn.GELU, nn.Softplus])
@pytest.mark.parametrize("num_stacked", [None, 2])
def test_other_activations_go_through_autograd(activation, num_stacked):
    net = mlp([3, 5, 2], activation, num_stacked=num_stacked).double()
    x = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(net(x), oracle(net, x))
    assert torch.autograd.gradcheck(net, x)


def test_an_mlp_does_not_write_over_its_input():
    x = torch.randn(4, 3)
    before = x.clone()
    mlp([3, 5, 2], nn.ReLU)(x)
    mlp([3, 3], nn.Tanh, nn.Tanh)(x)
    assert torch.equal(x, before)


def test_networks_of_a_stack_start_apart_each_like_a_linear_layer():
    torch.manual_seed(0)
    net = mlp([400, 300, 1], nn.ReLU, num_stacked=2)
    weight = net[0].weight
    assert not torch.equal(weight[0], weight[1])
    bound = 1 / math.sqrt(400)  # of nn.Linear: uniform in ± 1 / sqrt(in_features)
    for one in weight:
        assert bound * 0.99 < one.abs().max().item() <= bound
        assert one.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
