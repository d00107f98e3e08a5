import copy

import pytest
import torch
from torch import nn

from spinup.utils.flat import flatten
from spinup.utils.forward_mode import jvp
from spinup.utils.nets import mlp
from spinup.utils.optim import Adam


def network(seed=0):
    torch.manual_seed(seed)
    return mlp([3, 4, 2], nn.Tanh)


def differences(function, module, vector, step=1e-6):
    """Returns central differences of a function of a module in a direction of its parameters."""
    params = nn.utils.parameters_to_vector(module.parameters()).detach()
    results = []
    for sign in (1, -1):
        moved = copy.deepcopy(module)
        nn.utils.vector_to_parameters(params + sign * step * vector, moved.parameters())
        with torch.no_grad():
            results.append(function(moved))
    return [(a - b) / (2 * step) for a, b in zip(*results)]


def moments(call):
    out = call(torch.linspace(-1, 1, 15, dtype=torch.double).view(5, 3))
    return [out, out.square().sum(0), out[0, 0]]


def own_network():
    return nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.LayerNorm(4), nn.Linear(4, 2))


@pytest.mark.parametrize("make", [network, own_network, lambda: mlp([3, 4, 2], nn.ELU)])
def test_derivatives_in_a_direction_are_those_of_differences(make):
    torch.manual_seed(0)
    net = make().double()
    vector = torch.randn(sum(p.numel() for p in net.parameters()), dtype=torch.double)
    expected = differences(moments, net, vector)
    flatten(net)
    results, derivatives = jvp(moments, net, vector)
    torch.testing.assert_close([x.detach() for x in results], moments(copy.deepcopy(net)))
    torch.testing.assert_close(derivatives, expected, rtol=1e-6, atol=1e-7)
    assert not any(x.requires_grad for x in derivatives)


def test_derivatives_by_hand(engine):
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3.0, -1.0]]))
        net.bias.fill_(0.5)
    flatten(net)
    x = torch.tensor([[1.0, 2.0]])
    (out,), (derivative,) = jvp(lambda call: [call(x) ** 2], net, torch.tensor([1.0, 10, 100]))
    # The output 1.5 changes by 1 + 2 * 10 + 100, its square by 2 * 1.5 times that.
    assert out.item() == 2.25
    assert derivative.item() == 363


def test_the_results_of_jvp_can_be_differentiated_backwards(engine):
    net = network()
    expected = copy.deepcopy(net)
    vector = flatten(net)
    x = torch.randn(5, 3)
    (out,), _ = jvp(lambda call: [call(x)], net, torch.ones_like(vector))
    out.square().sum().backward()
    expected(x).square().sum().backward()
    grads = torch.cat([p.grad.flatten() for p in expected.parameters()])
    torch.testing.assert_close(vector.grad, grads)
    # The module is as before, and its parameters still belong to the vector.
    before = vector.detach().clone()
    Adam(vector, 0.1).step()
    assert not torch.equal(vector, before)
    assert type(net[0].weight) is nn.Parameter


def test_results_that_do_not_depend_on_the_parameters_have_zero_derivatives():
    net, constant = network(), torch.ones(2)
    vector = flatten(net)
    results, derivatives = jvp(
        lambda call: [constant, call(torch.zeros(1, 3)).detach()], net, torch.ones_like(vector)
    )
    assert torch.equal(results[0], constant)
    assert [x.tolist() for x in derivatives] == [[0, 0], [[0, 0]]]


def test_a_parameter_used_twice_has_one_direction():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    net[2].weight = net[0].weight
    x = torch.randn(4, 3, dtype=torch.double)
    vector = torch.randn(9 + 3 + 3, dtype=torch.double)
    expected = differences(lambda call: [call(x)], net, vector)
    assert len(flatten(net)) == len(vector)
    _, derivatives = jvp(lambda call: [call(x)], net, vector)
    torch.testing.assert_close(derivatives, expected, rtol=1e-6, atol=1e-7)
