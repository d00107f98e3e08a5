"""The compiled functions, compared with PyTorch, in double precision if that is stricter."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import nn

from spinup.fast import kernels
from spinup.fast.kernels import (
    CompiledMLP,
    TorchMLP,
    adam_step,
    can_run_on,
    forward_derivative,
    mlp_engine,
)
from spinup.utils.flat import flatten
from spinup.utils.nets import SquashedGaussianActor, mlp
from spinup.utils.optim import Adam

IDENTITY, RELU, TANH = 0, 1, 2

needs_kernels = pytest.mark.skipif(
    kernels._kernels is None, reason="there are no compiled functions here"
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[False, True], ids=["avx2", "avx512"])
def vectors(request):
    if kernels._kernels is None:
        pytest.skip("there are no compiled functions here")
    if kernels._kernels.use_avx512(request.param) != request.param:
        pytest.skip("this CPU has no AVX-512")
    yield
    kernels._kernels.use_avx512(True)


def network(sizes, stack=None):
    """Returns a random weight and bias for each layer, in turn."""
    torch.manual_seed(0)
    params = []
    for n_in, n_out in zip(sizes, sizes[1:]):
        weight, bias = torch.randn(n_out, n_in) / n_in**0.5, torch.randn(n_out)
        if stack is not None:
            weight = torch.randn(stack, n_out, n_in) / n_in**0.5
            bias = torch.randn(stack, 1, n_out)
        params += [weight, bias]
    return params


def double(tensors):
    return [x.double() for x in tensors]


@pytest.mark.parametrize("stack", [None, 1, 2, 3])
@pytest.mark.parametrize(
    "sizes, activations",
    [
        ([3, 5], [IDENTITY]),
        ([1, 1, 1], [TANH, RELU]),
        ([23, 256, 256, 1], [RELU, RELU, IDENTITY]),
        ([17, 64, 32, 6], [TANH, TANH, IDENTITY]),
        ([16, 33, 31, 48, 15], [RELU, TANH, IDENTITY, TANH]),
        ([40, 7, 100], [IDENTITY, RELU]),
    ],
)
@pytest.mark.parametrize("rows", [1, 6, 14, 15, 100, 1100])
def test_networks_are_pytorchs(sizes, activations, rows, stack, mlp_class):
    params = network(sizes, stack)
    whole = torch.randn(rows, sizes[0] + 3)
    split = sizes[0] // 2
    inputs = [whole[:, :split], whole[:, split : sizes[0]]][split == 0 :]  # views, rows apart
    result, saved = mlp_class.forward(inputs, params, tuple(activations))
    expected, expected_saved = TorchMLP.forward(double(inputs), double(params), activations)
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(mlp_class.forward(inputs, params, tuple(activations), keep=False)[0], result)

    grad = torch.randn_like(result)
    columns = [slice(0, sizes[0]), slice(sizes[0] - 1, sizes[0])]
    param_grads = [torch.ones_like(p) for p in params]  # gradients are added to these
    expected_grads = double(param_grads)
    input_grads = mlp_class.backward(saved, params, tuple(activations), grad, param_grads, columns)
    expected_input_grads = TorchMLP.backward(
        expected_saved, double(params), activations, grad.double(), expected_grads, columns
    )
    for ours, theirs in zip(input_grads + param_grads, expected_input_grads + expected_grads):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=rows**0.5 * 2e-5)
    # Without gradients of parameters, the gradients of the inputs are the same
    alone = mlp_class.backward(saved, params, tuple(activations), grad, None, columns)
    for ours, theirs in zip(alone, input_grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stack", [None, 2])
@pytest.mark.parametrize("num_inputs", [1, 2])
def test_outputs_of_each_layer_are_pytorchs(stack, num_inputs, mlp_class):
    sizes, activations = [4, 33, 7, 2], (RELU, TANH, IDENTITY)
    params, x = network(sizes, stack), torch.randn(20, 4)
    _, saved = mlp_class.forward(x.split(4 // num_inputs, 1), params, activations)
    outputs = mlp_class.outputs(saved, params)
    expected = TorchMLP.forward([x.double()], double(params), activations)[1]
    assert torch.equal(outputs[0], x)
    assert len(outputs) == len(sizes)
    for ours, theirs in zip(outputs, expected):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stack", [None, 2])
@pytest.mark.parametrize("given", ["input", "params", "both", "second weight", "last bias", "none"])
def test_forward_derivatives_are_those_of_differences(given, stack):
    activations, step = (TANH, TANH, IDENTITY), 1e-6
    params = double(network([4, 9, 7, 2], stack))
    x = torch.randn(20, 4, dtype=torch.double)
    tangents = [torch.randn_like(p) for p in params]
    which = {"second weight": [2], "last bias": [5], "input": [], "none": []}.get(given, range(6))
    tangents = [t if i in which else None for i, t in enumerate(tangents)]
    d = torch.randn_like(x) if given in ("input", "both") else None

    def moved(step):
        now = [p if t is None else p + step * t for p, t in zip(params, tangents)]
        return TorchMLP.forward([x if d is None else x + step * d], now, activations)[0]

    outputs = TorchMLP.forward([x], params, activations)[1]
    derivative = forward_derivative(outputs, params, activations, d, tangents)
    expected = (moved(step) - moved(-step)) / (2 * step)
    assert derivative.shape == outputs[-1].shape
    torch.testing.assert_close(derivative, expected, rtol=1e-6, atol=1e-7)
    assert (given == "none") == (not derivative.any())


def test_forward_derivatives_through_relu_by_hand():
    params = [
        torch.tensor([[2.0], [-1.0]]),
        torch.zeros(2),
        torch.tensor([[1.0, 5.0]]),
        torch.ones(1),
    ]
    x = torch.tensor([[3.0], [-2.0]])
    outputs = TorchMLP.forward([x], params, (RELU, IDENTITY))[1]
    assert outputs[-1].tolist() == [[7], [11]]
    # The first unit is alive for 3, the second for -2.
    of_input = forward_derivative(outputs, params, (RELU, IDENTITY), torch.ones(2, 1), [None] * 4)
    assert of_input.tolist() == [[2], [-5]]
    tangents = [torch.tensor([[1.0], [10.0]]), None, None, torch.tensor([0.5])]
    of_params = forward_derivative(outputs, params, (RELU, IDENTITY), None, tangents)
    assert of_params.tolist() == [[3 + 0.5], [-2 * 10 * 5 + 0.5]]


@pytest.mark.parametrize("rows", [14, 100, 600])
@pytest.mark.parametrize("alive", [0.5, 0.2, 0.03, 0.0])
@pytest.mark.parametrize("stack", [None, 2])
@pytest.mark.parametrize("hidden", [(300, 131, 70), (512, 512, 129)])
def test_networks_are_pytorchs_where_most_units_rest(hidden, rows, alive, stack, vectors):
    params, activations = network([23, *hidden, 9], stack), (RELU, RELU, RELU, IDENTITY)
    x, grad = torch.randn(rows, 23), torch.randn(*([stack] if stack else []), rows, 9)
    h = x
    for weight, bias in zip(
        params[:6:2], params[1:6:2]
    ):  # biases that leave the fraction `alive` above zero
        h = h @ weight.transpose(-1, -2)
        values = h.flatten().sort().values
        place = int((1 - alive) * (len(values) - 2))
        bias.copy_(-values[place : place + 2].mean())
        h = (h + bias).relu()
    assert (h > 0).float().mean() <= alive + 0.01
    results = []
    for mlp_class in (CompiledMLP, TorchMLP):
        result, saved = mlp_class.forward([x], params, activations)
        grads = [torch.zeros_like(p) for p in params]
        inputs = mlp_class.backward(saved, params, activations, grad, grads, [slice(0, 23)])
        results.append([result, *inputs, *grads])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=rows**0.5 * 2e-5)


def test_zeros_that_are_left_out_change_no_bit(vectors):
    params, activations = network([20, 256, 192, 3]), (RELU, RELU, IDENTITY)
    params[0][:, 0] = 4  # the first feature decides whether units are alive
    params[2][:, :] += 0.05
    params[3] -= 0.3
    x, grad = torch.randn(700, 20), torch.randn(700, 3)
    x[:, 0] = 1.0  # hardly a zero
    x[:30, 0] = -1.0  # nearly all zeros
    results = []
    for rows in (30, 700):
        result, saved = CompiledMLP.forward([x[:rows]], params, activations)
        (inputs,) = CompiledMLP.backward(
            saved, params, activations, grad[:rows], None, [slice(0, 20)]
        )
        results.append((result[:30], inputs[:30]))
        zeros = (saved[0][rows * 20 :] == 0).float().mean()  # of the hidden layers' outputs
        assert zeros > 0.7 if rows == 30 else zeros < 0.3
    assert all(torch.equal(few, many) for few, many in zip(*results))


def test_rows_without_a_gradient_have_none(vectors):
    params, activations = network([5, 32, 32, 1], stack=2), (RELU, RELU, IDENTITY)
    x = torch.randn(50, 5)
    _, saved = CompiledMLP.forward([x], params, activations)
    grad = torch.randn(2, 50, 1)
    smaller = torch.rand(50) < 0.5
    grad[0, smaller], grad[1, ~smaller] = 0, 0
    grad[:, 7] = 0
    (ours,) = CompiledMLP.backward(saved, params, activations, grad, None, [slice(0, 5)])
    _, saved = TorchMLP.forward([x], params, activations)
    (theirs,) = TorchMLP.backward(saved, params, activations, grad, None, [slice(0, 5)])
    torch.testing.assert_close(ours, theirs)
    assert (ours[7] == 0).all()
    assert (ours[[0, 1, 49]] != 0).any(1).all()


@needs_kernels
def test_both_lengths_of_vectors_give_the_same_bits():
    if not kernels._kernels.use_avx512(True):
        pytest.skip("this CPU has no AVX-512")
    params, activations = network([19, 70, 41, 3], stack=2), (TANH, RELU, IDENTITY)
    x, results = torch.randn(101, 19), []
    for longer in (False, True):
        kernels._kernels.use_avx512(longer)
        result, saved = CompiledMLP.forward([x], params, activations)
        grads = [torch.zeros_like(p) for p in params]
        inputs = CompiledMLP.backward(saved, params, activations, result, grads, [slice(0, 19)])
        results.append([result, *inputs, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_row_does_not_depend_on_the_others(vectors):
    params, activations = network([9, 50, 50, 2]), (TANH, RELU, IDENTITY)
    x = torch.randn(40, 9)
    together, _ = CompiledMLP.forward([x], params, activations)
    alone = [CompiledMLP.forward([x[i : i + 1]], params, activations)[0] for i in range(40)]
    assert torch.equal(together, torch.cat(alone))


def test_tanh_to_the_last_digits(mlp_class):
    x = torch.linspace(-12, 12, 100_001)[:, None]
    y, _ = mlp_class.forward([x], [torch.ones(1, 1), torch.zeros(1)], (TANH,))
    exact = x.double().tanh()
    assert ((y - exact).abs() <= 4e-7 * exact.abs() + 1e-12).all()


@pytest.mark.parametrize("activation", [IDENTITY, RELU, TANH])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad, activation, mlp_class):
    params = network([4, 20, 20, 1])
    x = torch.randn(30, 4)
    x[3, 2] = bad
    ours, _ = mlp_class.forward([x], params, (activation, activation, IDENTITY))
    theirs, _ = TorchMLP.forward([x], params, (activation, activation, IDENTITY))
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    params[2][5, 5] = bad
    ours, saved = mlp_class.forward([torch.ones(30, 4)], params, (RELU, RELU, IDENTITY))
    (grad,) = mlp_class.backward(
        saved, params, (RELU, RELU, IDENTITY), torch.full((30, 1), bad), None, [slice(0, 4)]
    )
    assert not grad.isfinite().all()


@needs_kernels
def test_who_evaluates_what():
    x, params = torch.zeros(2, 3), network([3, 4, 1])
    assert mlp_engine([x], params) is CompiledMLP
    assert mlp_engine([torch.zeros(3, 4)[:2, :3]], params) is CompiledMLP
    assert mlp_engine([x.double()], params) is TorchMLP
    assert mlp_engine([torch.zeros(3, 2).t()], params) is TorchMLP
    assert mlp_engine([torch.zeros(2, 2, 3)], params) is TorchMLP
    assert mlp_engine([x], [params[0].t().contiguous().t(), *params[1:]]) is TorchMLP
    assert mlp_engine([x], network([3, 513, 1])) is TorchMLP
    assert mlp_engine([torch.zeros(2, 4)], params) is TorchMLP  # the wrong width
    assert mlp_engine([torch.zeros(2, 2), torch.zeros(1, 1)], params) is TorchMLP
    assert mlp_engine([x], [*params[:2], torch.zeros(1, 5), params[3]]) is TorchMLP
    assert mlp_engine([x], [*params[:3], torch.zeros(2)]) is TorchMLP
    assert mlp_engine([x], network([3] * 34)) is TorchMLP
    torch.set_num_threads(2)
    assert mlp_engine([x], params) is TorchMLP


@pytest.mark.parametrize("inputs", [(100, 400), (100, 3)])
def test_a_wrong_width_is_pytorchs_error(mlp_class, inputs):
    with pytest.raises(RuntimeError, match=r"shape|size"), torch.no_grad():
        mlp([4, 8, 2], nn.ReLU)(torch.zeros(*inputs))


def test_rows_that_differ_are_pytorchs_error(mlp_class):
    with pytest.raises(RuntimeError, match="size"):
        mlp([5, 8, 2], nn.ReLU, num_stacked=2)(torch.zeros(100, 4), torch.zeros(1, 1))


def test_another_default_dtype_changes_nothing(mlp_class):
    net, x = mlp([4, 8, 2], nn.ReLU), torch.randn(5, 4)
    expected = net(x)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(net(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracing_is_pytorchs(mlp_class):
    net, x = mlp([4, 8, 2], nn.ReLU), torch.randn(5, 4)
    with torch.no_grad():
        traced = torch.jit.trace(net, x)
        torch.testing.assert_close(traced(x + 1), net(x + 1))


@needs_kernels
def test_without_them_pytorch_does_the_work(monkeypatch):
    net, x = mlp([3, 16, 2], nn.ReLU), torch.randn(5, 3)
    compiled = net(x)
    monkeypatch.setattr(kernels, "_kernels", None)
    assert mlp_engine([x], list(net.parameters())) is TorchMLP
    assert not can_run_on(x)
    torch.testing.assert_close(net(x), compiled)


@needs_kernels
def test_they_can_be_switched_off(run_python):
    code = "from spinup.fast import kernels; print(kernels.compiled())"
    assert run_python(["-c", code]).stdout.strip() in ("avx2", "avx512")
    assert run_python(["-c", code], env={"SPINUP_COMPILED": "0"}).stdout.strip() == "None"


@needs_kernels
@pytest.mark.parametrize("name, user", [("_kernels", "kernels"), ("_ranks", "shared")])
def test_functions_compiled_from_other_files_are_not_used(run_python, name, user):
    code = (
        f"from spinup.fast import {name}; {name}.interface = 1\n"
        f"from spinup.fast import {user}; print({user}.{name})"
    )
    done = run_python(["-c", code])
    assert done.stdout.strip() == "None"
    assert "install spinup again" in done.stderr


@needs_kernels
def test_wrong_arguments_are_errors_not_crashes():
    for name in ("mlp_forward", "mlp_backward", "squashed_gaussian", "adam"):
        with pytest.raises(TypeError, match="needed"):
            getattr(kernels._kernels, name)(1, 2)
    with pytest.raises(ValueError, match="don't match"):
        kernels._kernels.mlp_forward(1, 1, (2, 3), (0,), (0,), 0, 0, ())
    with pytest.raises(TypeError):
        kernels._kernels.mlp_forward(1, 1, [2, 3], (0,), (0, 0), 0, 0, ())


# --- The squashed Gaussian ---


def test_squashed_gaussian_is_pytorchs(mlp_class, monkeypatch):
    torch.manual_seed(0)
    space = Box(np.array([-1, -3, 0], np.float32), np.array([2, 0.5, 9], np.float32))
    pi = SquashedGaussianActor(Box(-1, 1, (4,)), space, (16,), nn.ReLU)
    pi.net[-2].bias.data = torch.tensor([0.0, 9, -9, 0.1, 5, -30])  # in the tails, and clamped
    obs, eps = torch.randn(50, 4), torch.randn(50, 3)
    monkeypatch.setattr(torch, "randn_like", lambda like: eps.to(like))
    weight = torch.randn(50, 3)

    def run():
        act, logp = pi(obs)
        grads = torch.autograd.grad((act * weight).sum() + (3 * logp).sum(), pi.parameters())
        return [act, logp, *grads]

    ours = run()
    monkeypatch.setattr(kernels, "_kernels", None)
    pi, obs, eps, weight = pi.double(), obs.double(), eps.double(), weight.double()
    for mine, theirs in zip(ours, run()):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-5, atol=2e-5)


# --- Adam ---


def test_adam_is_pytorchs(vectors):
    torch.manual_seed(0)
    net = nn.Linear(100, 33)
    params = flatten(net)
    theirs = nn.Parameter(params.detach().clone())
    adam, torch_adam = Adam(params, 3e-3), torch.optim.Adam([theirs], lr=3e-3)
    for step in range(50):
        grad = torch.randn_like(params) * 10.0 ** (step % 5 - 3)
        params.grad.copy_(grad)
        theirs.grad = grad
        adam.step()
        torch_adam.step()
    torch.testing.assert_close(params, theirs, rtol=1e-5, atol=1e-6)
    state = torch_adam.state[theirs]
    torch.testing.assert_close(adam.exp_avg, state["exp_avg"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(adam.exp_avg_sq, state["exp_avg_sq"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("step", [1, 2, 7, 100, 1000, 20_000])
def test_adam_divides_as_the_processor_does(vectors, step):
    # The quotient of sqrt(v) and the correction is computed without a division
    sizes = np.random.default_rng(0).uniform(-18, 18, 200_000)
    g = np.concatenate([10.0**sizes, [0, 1e-45, 1e19, 3e38]]).astype(np.float32)
    params = torch.zeros(len(g))
    tensors = params, torch.from_numpy(g), torch.zeros(len(g)), torch.zeros(len(g))
    with np.errstate(all="ignore"):
        adam_step(*tensors, step, 1e-3, (0.9, 0.999), 1e-8)
        m = np.float32(1 - 0.9) * g
        v = np.float32(1 - 0.999) * g * g
        quotient = np.sqrt(v) / np.float32(np.sqrt(1 - 0.999**step))
        rate = np.float32(1e-3 / (1 - 0.9**step))
        expected = -(rate * m / (quotient + np.float32(1e-8)))
    assert np.array_equal(params.numpy(), expected, equal_nan=True)
