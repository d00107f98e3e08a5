"""Nodes: the same results as plain PyTorch modules, and no use of a node for modified modules."""

import copy
import textwrap

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as fwAD
from gymnasium.spaces import Box, Discrete
from torch import nn

from spinup.fast import nodes
from spinup.fast.nodes import gradients_in_place
from spinup.utils.flat import flatten
from spinup.utils.nets import (
    MLP,
    DeterministicActorCritic,
    MLPActorCritic,
    SingleCriticActorCritic,
    SquashedGaussianActorCritic,
    StackedLinear,
    mlp,
)
from spinup.utils.optim import Adam

OBS = Box(-np.inf, np.inf, (3,), np.float32)
ACT = Box(np.float32([-1, 0]), np.float32([3, 0.5]))


# --- Switched off, networks are plain PyTorch ---


def outputs_and_gradients(actor_critic, action_space, activation):
    torch.manual_seed(0)
    ac = actor_critic(OBS, action_space, hidden_sizes=(16, 8), activation=activation)
    obs = torch.randn(20, 3)
    if isinstance(action_space, Discrete):
        act = torch.arange(20) % 3
    else:
        act = torch.rand(20, 2) * 0.4
    torch.manual_seed(1)  # of the noise
    if isinstance(ac, MLPActorCritic):
        outs = [ac.pi(obs, act)[1], ac.v(obs)]
    elif isinstance(ac, SquashedGaussianActorCritic):
        outs = [*ac.pi(obs), ac.q(obs, act), ac.q.first(obs, act)]
    else:
        outs = [ac.pi(obs), ac.q(obs, act), ac.q(obs, ac.pi(obs))]
        outs += [ac.q.first(obs, act)] if isinstance(ac, DeterministicActorCritic) else []
    loss = sum((x * torch.linspace(-1, 2, x.numel()).view(x.shape)).sum() for x in outs)
    return outs, torch.autograd.grad(loss, list(ac.parameters()))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.ELU])
@pytest.mark.parametrize(
    "actor_critic, action_space",
    [
        (MLPActorCritic, ACT),
        (MLPActorCritic, Discrete(3)),
        (SquashedGaussianActorCritic, ACT),
        (DeterministicActorCritic, ACT),
        (SingleCriticActorCritic, ACT),
    ],
)
def test_nodes_change_nothing_but_rounding(
    actor_critic, action_space, activation, engine, monkeypatch
):
    fast = outputs_and_gradients(actor_critic, action_space, activation)
    monkeypatch.setattr(nodes, "ENABLED", False)
    plain = outputs_and_gradients(actor_critic, action_space, activation)
    for ours, theirs in zip([*fast[0], *fast[1]], [*plain[0], *plain[1]], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_variable_switches_the_nodes_off(run_python):
    code = """
        import torch
        from spinup.utils.nets import SquashedGaussianActorCritic
        from gymnasium.spaces import Box
        ac = SquashedGaussianActorCritic(Box(-1, 1, (3,)), Box(-1, 1, (2,)), (4,))
        seen = {type(ac.q(torch.zeros(5, 3), torch.zeros(5, 2)).grad_fn).__name__}
        edges = [ac.pi(torch.zeros(5, 3))[0].grad_fn]
        while edges:
            node = edges.pop()
            seen.add(type(node).__name__)
            edges += [n for n, _ in node.next_functions if n]
        print(sorted(n for n in seen if n.startswith("_")))
    """
    code = textwrap.dedent(code)
    assert "_MLP" in run_python(["-c", code]).stdout
    assert run_python(["-c", code], env={"SPINUP_FAST": "0"}).stdout.strip() == "[]"


def test_second_derivatives_are_plain_pytorchs(monkeypatch):
    monkeypatch.setattr(nodes, "ENABLED", False)
    net = mlp([3, 5, 1], nn.Tanh).double()
    x = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(net, x)


# --- Modified MLPs don't become nodes ---


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def evaluate(net):
    """Returns the output of an MLP with 3 input features, and the gradient of its input."""
    torch.manual_seed(5)
    x = torch.randn(6, 3, requires_grad=True)
    out = net(x)
    return out, torch.autograd.grad(out.square().sum(), x)[0]


def assert_as_sequential(net):
    assert not net.is_plain
    torch.testing.assert_close(evaluate(net), evaluate(nn.Sequential(*net)))


def test_a_subclass_of_linear_keeps_its_forward():
    torch.manual_seed(0)
    net = MLP(Doubled(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Identity())
    assert_as_sequential(net)
    plain = MLP(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Identity())
    plain.load_state_dict(net.state_dict())
    assert plain.is_plain
    assert not torch.allclose(net(torch.ones(1, 3)), plain(torch.ones(1, 3)))


def test_a_forward_set_on_a_layer_is_called():
    net = mlp([3, 4, 2], nn.ReLU)
    net[0].forward = lambda x: 2 * torch.nn.functional.linear(x, net[0].weight)
    assert_as_sequential(net)


@pytest.mark.parametrize(
    "change",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        torch.nn.utils.parametrizations.orthogonal,
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrizations_are_seen(change):
    torch.manual_seed(0)
    net = mlp([3, 4, 2], nn.ReLU)
    change(net[0])
    net.eval()  # keeps spectral_norm's estimate constant
    assert_as_sequential(net)


def test_a_layer_without_bias():
    torch.manual_seed(0)
    net = MLP(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2), nn.Identity())
    assert_as_sequential(net)


@pytest.mark.parametrize("layers", [3, 4])
def test_modules_in_another_order(layers):
    torch.manual_seed(0)
    net = MLP(*[nn.Linear(3, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 3)][:layers])
    assert_as_sequential(net)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("num_stacked", [None, 2])
def test_hooks_on_layers_and_activations_are_called(index, num_stacked):
    net, calls = mlp([3, 4, 2], nn.ReLU, num_stacked=num_stacked), []
    plain = net(torch.ones(1, 3))
    handle = net[index].register_forward_hook(lambda *args: calls.append("forward") or 3 * args[2])
    assert not torch.allclose(net(torch.ones(1, 3)), plain)
    if num_stacked:
        assert not torch.allclose(net.first(torch.ones(1, 3)), plain[0])
    handle.remove()
    net[index].register_forward_pre_hook(lambda *args: calls.append("pre"))
    net[index].register_full_backward_pre_hook(lambda *args: calls.append("backward pre"))
    net[index].register_full_backward_hook(lambda *args: calls.append("backward"))
    net(torch.ones(1, 3, requires_grad=True)).sum().backward()
    assert set(calls) == {"forward", "pre", "backward pre", "backward"}


def test_hooks_of_all_modules_are_called():
    net, seen = mlp([3, 4, 2], nn.ReLU), []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        net(torch.ones(1, 3))
    finally:
        hook.remove()
    assert seen == [nn.Linear, nn.ReLU, nn.Linear, nn.Identity, MLP]
    assert net.is_plain


def test_a_hook_on_the_network_is_called_once_each_way():
    net, calls = mlp([3, 4, 2], nn.ReLU, num_stacked=2), []
    net.register_forward_hook(lambda *args: calls.append(1))
    net(torch.ones(2, 3))
    net(torch.ones(3))  # one observation
    net.first(torch.ones(2, 3))
    assert len(calls) == 3


def test_a_hook_on_a_parameter_sees_its_gradient():
    net = mlp([3, 4, 2], nn.ReLU)
    flatten(net)
    net[0].weight.register_hook(lambda grad: torch.full_like(grad, 7.0))
    with gradients_in_place():
        net(torch.ones(2, 3)).sum().backward()
    assert (net[0].weight.grad == 7).all()
    assert (net[2].bias.grad == 2).all()


# --- Parameters that change between a forward and a backward pass ---


def adam_step(net, vector):
    vector.grad.fill_(1.0)
    Adam(vector, 0.1).step()


CHANGES = dict(
    parameter=lambda net, vector: net[0].bias.add_(1),
    vector=lambda net, vector: vector.add_(1),
    polyak=lambda net, vector: vector.lerp_(torch.zeros_like(vector), 0.1),
    step=adam_step,
)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("first", [False, True])
def test_parameters_that_changed_before_the_backward_pass(change, first, engine):
    net = mlp([3, 4, 1], nn.ReLU, num_stacked=2)
    vector = flatten(net)
    out = net.first(torch.ones(2, 3)) if first else net(torch.ones(2, 3))
    with torch.no_grad():
        CHANGES[change](net, vector)
    with pytest.raises(RuntimeError, match="parameters changed between its forward and its back"):
        out.sum().backward()
    out = net(torch.ones(2, 3))  # a new evaluation is right again
    out.sum().backward()


def test_a_copy_of_a_flat_network_is_on_its_own():
    net = mlp([3, 4, 1], nn.ReLU)
    vector = flatten(net)
    copied = copy.deepcopy(net)
    out = copied(torch.ones(2, 3))
    with torch.no_grad():
        vector.add_(1)
    out.sum().backward()
    assert not vector.grad.any()


def test_stacked_layers_are_linear_layers():
    torch.manual_seed(0)
    stack, x = StackedLinear(3, 4, 2), torch.randn(5, 4)
    for i, out in enumerate(stack(x)):
        expected = torch.nn.functional.linear(x, stack.weight[i], stack.bias[i, 0])
        torch.testing.assert_close(out, expected)


# --- Gradients in place ---


@pytest.mark.parametrize("num_stacked", [None, 2])
def test_gradients_in_place_are_autograds(num_stacked):
    torch.manual_seed(0)
    net = mlp([4, 8, 8, 1], nn.ReLU, num_stacked=num_stacked)
    x = torch.randn(5, 4, requires_grad=True)
    net(x).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    expected_x = x.grad.clone()
    x.grad = None
    with gradients_in_place():  # added to the gradients above
        net(x).square().sum().backward()
    for p, grad in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, 2 * grad)
    torch.testing.assert_close(x.grad, expected_x)


def test_gradients_that_are_not_allocated_are_autograds_to_make():
    net = mlp([3, 4, 1], nn.Tanh)
    with gradients_in_place():
        net(torch.ones(2, 3)).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    # Outside the block, torch.autograd.grad returns gradients although p.grad is allocated.
    grads = torch.autograd.grad(net(torch.ones(2, 3)).sum(), list(net.parameters()))
    for p, grad in zip(net.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_a_frozen_network_gets_no_gradient_in_place():
    net = mlp([3, 4, 1], nn.ReLU)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
        p.requires_grad_(False)
    x = torch.ones(2, 3, requires_grad=True)
    with gradients_in_place():
        net(x).sum().backward()
    assert x.grad is not None
    assert all((p.grad == 0).all() for p in net.parameters())


# --- Derivatives in forward mode ---


def derivative_in_forward_mode(net, inputs, input_tangents, tangents):
    """Returns the output and its derivative; a tangent of None isn't given."""

    def dual(x, tangent):
        return x if tangent is None else fwAD.make_dual(x, tangent)

    with fwAD.dual_level():
        params = {k: dual(p, tangents[i]) for i, (k, p) in enumerate(net.named_parameters())}
        duals = tuple(map(dual, inputs, input_tangents))
        return fwAD.unpack_dual(torch.func.functional_call(net, params, duals))


# Which of two inputs, and of the weights and biases of three layers, have a tangent
DIRECTIONS = {
    "all": ([1, 1], [1, 1, 1, 1, 1, 1]),
    "parameters": ([0, 0], [1, 1, 1, 1, 1, 1]),
    "inputs": ([1, 1], [0, 0, 0, 0, 0, 0]),
    "second input": ([0, 1], [0, 0, 0, 0, 0, 0]),
    "last layer": ([0, 0], [0, 0, 0, 0, 1, 1]),
    "a bias": ([0, 0], [0, 1, 0, 0, 0, 0]),
    "a weight and an input": ([1, 0], [0, 0, 1, 0, 0, 0]),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("num_stacked", [None, 2])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Identity])
def test_forward_derivatives_are_plain_pytorchs(
    direction, num_stacked, activation, engine, monkeypatch
):
    torch.manual_seed(0)
    net = mlp([5, 16, 9, 2], activation, nn.Tanh, num_stacked=num_stacked)
    inputs = torch.randn(7, 3), torch.randn(7, 2)
    given, of_params = DIRECTIONS[direction]
    input_tangents = [
        torch.randn_like(x) if is_given else None for x, is_given in zip(inputs, given)
    ]
    tangents = [
        torch.randn_like(p) if is_given else None
        for p, is_given in zip(net.parameters(), of_params)
    ]
    ours = derivative_in_forward_mode(net, inputs, input_tangents, tangents)
    assert type(net(*inputs).grad_fn).__name__.startswith("_MLP")
    monkeypatch.setattr(nodes, "ENABLED", False)
    theirs = derivative_in_forward_mode(net, inputs, input_tangents, tangents)
    torch.testing.assert_close(ours.primal, theirs.primal, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.tangent, theirs.tangent, rtol=1e-5, atol=1e-5)
    assert not ours.tangent.requires_grad  # a second derivative would be wrong
    assert ours.tangent.abs().max() > 0


def test_forward_derivatives_of_the_first_of_a_stack(engine):
    torch.manual_seed(0)
    net = mlp([3, 6, 1], nn.Tanh, num_stacked=2)
    x, tangent = torch.randn(4, 3), torch.randn(4, 3)
    with fwAD.dual_level():
        dual = fwAD.make_dual(x, tangent)
        first, both = (fwAD.unpack_dual(out).tangent for out in (net.first(dual), net(dual)))
    torch.testing.assert_close(first, both[0])


def test_forward_and_backward_derivatives_agree(engine):
    """The product of a Jacobian with two vectors is the same from either side."""
    torch.manual_seed(0)
    net = mlp([3, 16, 2], nn.Tanh)
    params = list(net.parameters())
    x, weight = torch.randn(50, 3), torch.randn(50, 2)
    tangents = [torch.randn_like(p) for p in params]
    out, derivative = derivative_in_forward_mode(net, (x,), [None], tangents)
    (out * weight).sum().backward()
    backwards = sum((p.grad * t).sum() for p, t in zip(params, tangents))
    torch.testing.assert_close((derivative * weight).sum(), backwards, rtol=1e-4, atol=1e-4)
