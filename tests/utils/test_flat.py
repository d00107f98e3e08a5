import copy
import pickle

import pytest
import torch
from torch import nn

from spinup.utils.flat import flatten, flatten_each, frozen
from spinup.utils.nets import mlp
from spinup.utils.optim import Adam


def network(seed=0):
    torch.manual_seed(seed)
    return mlp([3, 4, 2], nn.Tanh)


def test_the_vector_is_the_parameters_one_after_another():
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        net.bias.copy_(torch.tensor([5.0, 6.0]))
    vector = flatten(net)
    assert vector.tolist() == [1, 2, 3, 4, 5, 6]
    assert vector.grad.tolist() == [0] * 6
    assert isinstance(vector, nn.Parameter)


def test_parameters_and_gradients_are_views_of_the_vectors(engine):
    net = network()
    vector = flatten(net)
    with torch.no_grad():
        vector.copy_(torch.arange(len(vector)))
    assert torch.cat([p.flatten() for p in net.parameters()]).tolist() == list(range(26))
    net(torch.randn(5, 3)).sum().backward()
    assert torch.equal(vector.grad, torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert vector.grad.abs().sum() > 0
    vector.grad.zero_()
    assert all(not p.grad.any() for p in net.parameters())
    with torch.no_grad():
        net[0].bias.fill_(-1)
    assert (vector == -1).sum() == 4


def test_the_module_works_as_before(engine):
    plain = network()
    net = copy.deepcopy(plain)
    vector = flatten(net)
    x = torch.randn(5, 3)
    assert torch.equal(net(x), plain(x))
    assert list(net.state_dict()) == list(plain.state_dict())
    net.load_state_dict({k: v + 1 for k, v in plain.state_dict().items()})
    expected = torch.cat([p.detach().flatten() for p in plain.parameters()]) + 1
    assert torch.equal(vector.data, expected)


def test_gradients_add_up(engine):
    net = network()
    vector = flatten(net)
    x = torch.randn(5, 3)
    net(x).sum().backward()
    once = vector.grad.clone()
    net(x).sum().backward()
    torch.testing.assert_close(vector.grad, 2 * once)


def test_targets_of_a_flat_module_are_apart_from_it_and_move_as_one_vector(engine):
    net = network(0)
    params = flatten(net)
    targ = copy.deepcopy(net)
    targ_params = flatten(targ)
    start, x = params.detach().clone(), torch.randn(5, 3)
    with torch.no_grad():
        params.mul_(-2)
    assert torch.equal(targ_params, start)
    with torch.no_grad():
        targ_params.lerp_(params, 0.25)
    assert torch.equal(params, -2 * start)

    expected = network(0)
    with torch.no_grad():
        for p in expected.parameters():
            p.copy_(0.75 * p + 0.25 * (-2 * p))
    torch.testing.assert_close(targ(x), expected(x))
    targ(x).sum().backward()
    assert targ_params.grad.any()
    assert not params.grad.any()


def test_a_parameter_that_was_frozen_can_be_trained_later(engine):
    net = network()
    net[0].weight.requires_grad_(False)
    vector = flatten(net)
    net[0].weight.requires_grad_(True)
    net(torch.randn(5, 3)).sum().backward()
    assert torch.equal(vector.grad[:12], net[0].weight.grad.flatten())
    assert vector.grad[:12].any()


def test_a_parameter_used_twice_is_in_the_vector_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert len(flatten(net)) == 9 + 3 + 3


def test_nothing_to_flatten_is_an_error():
    with pytest.raises(ValueError, match="Tanh has no parameters to train"):
        flatten(nn.Tanh())


def test_several_dtypes_are_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="parameters of Sequential differ in dtype or device"):
        flatten(net)
    assert flatten(net.double()).dtype == torch.double


def test_networks_trained_apart_share_nothing(engine):
    pi, v = network(0), network(1)
    vectors = flatten_each(pi, v)
    assert [len(vector) for vector in vectors] == [26, 26]
    pi(torch.randn(5, 3)).sum().backward()
    assert vectors[0].grad.any()
    assert not vectors[1].grad.any()

    trunk = nn.Linear(3, 4)
    pi, v = nn.Sequential(trunk, nn.Linear(4, 2)), nn.Sequential(trunk, nn.Linear(4, 1))
    with pytest.raises(ValueError, match="Two networks of the actor-critic share parameters"):
        flatten_each(pi, v)


# --- Views ---


def zero_grad(net):
    net.zero_grad()
    net(torch.randn(5, 3)).sum().backward()


def torch_zero_grad(net):
    torch.optim.Adam(net.parameters()).zero_grad()


REFUSED = {
    "gradient is no longer part": [zero_grad, torch_zero_grad, nn.Module.zero_grad],
    "parameter is no longer part": [
        nn.Module.double,
        lambda net: net.load_state_dict(network(1).state_dict(), assign=True),
    ],
}


@pytest.mark.parametrize(
    "message, change", [(message, change) for message in REFUSED for change in REFUSED[message]]
)
def test_a_step_that_would_not_train_the_module_is_refused(engine, message, change):
    net = network()
    vector = flatten(net)
    adam = Adam(vector, 0.1)
    before = vector.detach().clone()
    vector.grad.fill_(1)
    change(net)
    with pytest.raises(RuntimeError, match=message):
        adam.step()
    assert torch.equal(vector, before)


def test_gradients_that_are_zeroed_in_place_stay_in_the_vector():
    net = network()
    vector = flatten(net)
    adam = Adam(vector, 0.1)
    net(torch.randn(5, 3)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert not vector.grad.any()
    net(torch.randn(5, 3)).sum().backward()
    before = vector.detach().clone()
    adam.step()
    assert not torch.equal(vector, before)
    assert torch.equal(vector, torch.cat([p.flatten() for p in net.parameters()]))


def test_flattened_again_a_module_is_of_the_new_vector():
    net = network()
    flatten(net)
    vector = flatten(net)
    net(torch.randn(5, 3)).sum().backward()
    Adam(vector, 0.1).step()
    assert torch.equal(vector, torch.cat([p.flatten() for p in net.parameters()]))


def test_a_flat_module_can_be_pickled():
    net = network()
    flatten(net)
    loaded = pickle.loads(pickle.dumps(net))
    assert torch.equal(loaded(torch.ones(1, 3)), net(torch.ones(1, 3)))


# --- frozen ---


@pytest.mark.parametrize("num_stacked", [None, 2])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU])
def test_frozen_parameters_get_no_gradient_and_pass_it_on(engine, num_stacked, activation):
    torch.manual_seed(0)
    pi, q = mlp([3, 4, 2], nn.Tanh), mlp([2, 4, 1], activation, num_stacked=num_stacked)
    pi_params, q_params = flatten_each(pi, q)
    x = torch.randn(5, 3)
    q(pi(x)).sum().backward()
    unfrozen = pi_params.grad.clone()
    assert q_params.grad.any()

    pi_params.grad.zero_()
    q_params.grad.zero_()
    with frozen(q):
        q(pi(x)).sum().backward()
    assert not q_params.grad.any()
    torch.testing.assert_close(pi_params.grad, unfrozen)

    q(pi(x)).sum().backward()
    assert q_params.grad.any()


def test_what_was_frozen_before_stays_so_and_errors_thaw():
    net = network()
    net[0].weight.requires_grad_(False)
    with pytest.raises(KeyError), frozen(net):
        assert not any(p.requires_grad for p in net.parameters())
        raise KeyError
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
