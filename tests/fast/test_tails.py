"""Kernels, nodes and the acting policy in their tails, compared with double precision or PyTorch.

The tails are zero, denormal, huge, infinite and NaN inputs, and inputs that saturate a function. An
error there is small, but Adam turns even the smallest derivative into full steps.
"""

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from spinup.fast import kernels, nodes
from spinup.fast.kernels import CompiledMLP, TorchMLP
from spinup.utils import nets
from spinup.utils.acting import acting_policy
from spinup.utils.optim import Adam

IDENTITY, RELU, TANH = kernels.ACTIVATIONS.values()
NAN, INF = math.nan, math.inf
ODD = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e38, -1e38, 3e38, INF, -INF, NAN, 1.0]


def floats(bits):
    return torch.from_numpy(np.asarray(bits, np.uint32).view(np.float32))


def grid():
    """Returns floats of all magnitudes, denormals too, densest where tanh's formula changes."""
    infinity = 0x7F800000
    parts = [np.arange(0, infinity, 4099), np.arange(0, 2000), np.arange(infinity - 2000, infinity)]
    for low, high in ((0.6249, 0.6251), (8.0, 8.01), (8.6, 8.7), (9.0, 9.03), (9.99, 10.01)):
        low, high = np.float32([low, high]).view(np.uint32)
        parts.append(np.arange(low, high))
    x = floats(np.concatenate(parts))
    return torch.cat([x, -x])


def in_ulp(x, exact):
    """Returns the errors of floats, in units in the last place of the exact values."""
    exact = exact.numpy()
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(x.double().numpy() - exact) / spacing


def evaluate(mlp_class, x, activations):
    """Returns outputs and input gradients of layers with one unit, weight 1 and bias 0."""
    params = [torch.ones(1, 1), torch.zeros(1)] * len(activations)
    out, saved = mlp_class.forward([x[:, None]], params, activations)
    grads = [torch.zeros_like(p) for p in params]
    (grad,) = mlp_class.backward(
        saved, params, activations, torch.ones_like(out), grads, [slice(0, 1)]
    )
    return out[:, 0], grad[:, 0]


# --- Activations ---


@pytest.mark.parametrize("activations", [(TANH,), (TANH, IDENTITY)], ids=["output", "hidden"])
def test_tanh_is_exact_to_two_units_of_the_last_place(mlp_class, activations):
    x = grid()
    y, _ = evaluate(mlp_class, x, activations)
    assert in_ulp(y, x.double().tanh()).max() <= 2
    assert (y[x.abs() >= 9.02].abs() == 1).all()
    assert (y.abs() <= 1).all()
    assert (y * x >= 0).all()


@pytest.mark.parametrize("activations", [(TANH,), (TANH, IDENTITY)], ids=["output", "hidden"])
def test_the_derivative_of_tanh_is_that_of_its_output(mlp_class, activations):
    x = grid()
    y, grad = evaluate(mlp_class, x, activations)
    exact = 1 - y.double() ** 2
    if mlp_class is TorchMLP:  # it rounds the square, to half a unit of 1
        assert ((grad - exact).abs() <= 2**-24 + 2**-24 * exact).all()
    else:
        assert in_ulp(grad, exact)[exact > 0].max() <= 1
    assert (grad[y.abs() == 1] == 0).all()
    assert (grad[x.abs() >= 9.02] == 0).all()


@pytest.mark.parametrize("activation", [IDENTITY, RELU, TANH])
@pytest.mark.parametrize("hidden", [False, True])
def test_activations_of_odd_numbers_are_pytorchs(mlp_class, activation, hidden):
    x = torch.tensor(ODD)
    ours = evaluate(mlp_class, x, (activation, IDENTITY) if hidden else (activation,))
    leaf = x.clone().requires_grad_()
    out = {IDENTITY: lambda x: x * 1, RELU: torch.relu, TANH: torch.tanh}[activation](leaf)
    out.sum().backward()
    torch.testing.assert_close(ours[0], out.detach(), rtol=3e-7, atol=0, equal_nan=True)
    torch.testing.assert_close(ours[1], leaf.grad, rtol=0, atol=1e-7, equal_nan=True)


# --- Products ---


def resting(rows, seed=0):
    """Returns layers whose hidden units are zero for most inputs, and inputs."""
    torch.manual_seed(seed)
    params = [torch.randn(96, 40) / 6, torch.full((96,), -1.5)]
    params += [torch.randn(130, 96) / 9, torch.full((130,), -1.5)]
    params += [torch.randn(7, 130), torch.ones(7)]
    return params, torch.randn(rows, 40)


def run(mlp_class, params, x, grad, of_params=True):
    result, saved = mlp_class.forward([x], params, (RELU, RELU, IDENTITY))
    grads = [torch.zeros_like(p) for p in params] if of_params else None
    inputs = mlp_class.backward(saved, params, (RELU, RELU, IDENTITY), grad, grads, [slice(0, 40)])
    return [result, *inputs, *(grads or [])]


def assert_as_seen(ours, theirs):
    """Compares finite results up to rounding; others must not be finite on either side."""
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("layer", [0, 2, 4])
@pytest.mark.parametrize("rows", [20, 700])
def test_zeros_do_not_hide_weights_that_are_not_finite(mlp_class, bad, layer, rows):
    params, x = resting(rows)
    hidden = TorchMLP.forward([x], params, (RELU, RELU, IDENTITY))[1][1]
    assert (hidden == 0).float().mean() > 0.7
    params[layer][3, 5] = bad
    params[layer][-1, -1] = bad
    grad = torch.randn(rows, 7)
    assert_as_seen(run(mlp_class, params, x, grad), run(TorchMLP, params, x, grad))


def test_a_weight_of_a_unit_that_always_rests_is_seen(mlp_class):
    params, x = resting(50)
    params[1][5] = -1e9
    params[2][3, 5] = NAN
    result, _ = mlp_class.forward([x], params, (RELU, RELU, IDENTITY))
    assert result.isnan().all()


@pytest.mark.parametrize("bad", [NAN, INF, 1e30, -1e30, 1e-40])
def test_odd_inputs_and_gradients_are_pytorchs(mlp_class, bad):
    params, x = resting(40)
    grad = torch.randn(40, 7)
    x[3, 4] = bad
    assert_as_seen(run(mlp_class, params, x, grad), run(TorchMLP, params, x, grad))
    params, x = resting(40)
    grad[5, 2] = bad
    ours, theirs = (run(e, params, x, grad * 1e-3) for e in (mlp_class, TorchMLP))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


@pytest.mark.parametrize("stack", [None, 2])
@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e38])
def test_few_outputs_of_odd_numbers(mlp_class, bad, stack):
    torch.manual_seed(0)
    shape = [stack] if stack else []
    params = [torch.randn(*shape, 1, 33), torch.zeros(*shape, 1, 1) if stack else torch.zeros(1)]
    x = torch.randn(9, 33)
    x[4, 32] = bad
    ours, theirs = (e.forward([x], params, (IDENTITY,))[0] for e in (mlp_class, TorchMLP))
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert ours.isfinite().all(-1).sum() == (9 if bad == 1e38 else 8) * (stack or 1)


def test_rows_without_a_gradient_have_none_whatever_the_weights(mlp_class):
    """This differs from PyTorch, where zero times an infinite weight is NaN."""
    params, x = resting(30)
    params[1].zero_()
    params[3].zero_()
    grad = torch.randn(30, 7)
    grad[4:9] = 0
    grad[7, 3] = NAN
    _, inputs = run(mlp_class, params, x, grad, of_params=False)
    assert inputs[7].isnan().any()
    assert not inputs[[4, 5, 6, 8]].any()
    if mlp_class is CompiledMLP:
        params[4][0, :] = INF
        _, inputs = run(mlp_class, params, x, grad, of_params=False)
        assert not inputs[[4, 5, 6, 8]].any()
        assert not inputs[[0, 1]].isfinite().all()


# --- The squashed Gaussian ---

US = [0.0, -0.0, 1e-30, 0.3, -1.0, 5.0, 8.9, -9.1, 30.0, -30.0, 1e4, 1e30, -1e30]
LOG_STDS = [-1e30, -20.001, -20.0, -19.99, -3.0, 0.0, 1.99, 2.0, 2.001, 1e30]
EPS = [0.0, -0.0, 1e-3, 6.0, -6.0]


def squash(mu, log_std, eps, dtype=torch.float32, by_node=True):
    """Returns squashed actions, their log-densities, and the gradients of both.

    Each gradient is with respect to ``mu`` and ``log_std``, ``(n, 2)``.
    """
    out = torch.stack([mu, log_std], -1).to(dtype).requires_grad_()
    eps, one = eps[:, None].to(dtype), torch.ones(1, dtype=dtype)
    if by_node:
        bounds = nets.LOG_STD_MIN, nets.LOG_STD_MAX
        args = nets.squashed_gaussian, bounds, out, eps, 0 * one, one
        act, logp = nodes.squashed_gaussian(*args)
    else:
        act, logp, _ = nets.squashed_gaussian(out, eps)
    act_grad = torch.autograd.grad(act.sum(), out, retain_graph=True)[0]
    logp_grad = torch.autograd.grad(logp.sum(), out)[0]
    return act[:, 0].detach(), logp.detach(), act_grad, logp_grad


def test_the_squashed_gaussian_is_double_precisions_in_its_tails(mlp_class):
    mu, log_std, eps = (
        x.flatten() for x in torch.meshgrid(*map(torch.tensor, (US, LOG_STDS, EPS)), indexing="ij")
    )
    act, logp, act_grad, logp_grad = squash(mu, log_std, eps)
    # u is rounded to single precision: if it is huge, its last digit is greater than the noise
    noise = log_std.clamp(-20, 2).exp() * eps
    u = (mu + noise).double()
    assert in_ulp(act, u.tanh()).max() <= 4
    std_digits = dict(rtol=1e-5, atol=1e-5)
    clamped = log_std.double().clamp(-20, 2)
    exponent = -0.5 * eps.double() ** 2 - clamped - 0.5 * math.log(2 * math.pi)
    squashing = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))
    torch.testing.assert_close(logp.double(), exponent - squashing, **std_digits)
    assert logp.isfinite().all()
    assert all(x.isfinite().all() for x in (act, act_grad, logp_grad))
    # With respect to mu: 1 - tanh(u)^2 for the action, and 2 tanh(u) for the log-density. With
    # respect to log_std, inside the bounds: these times the noise, and for the log-density minus 1
    t, inside = u.tanh(), (log_std >= -20) & (log_std <= 2)
    by_mu = 1 - t**2
    torch.testing.assert_close(act_grad[:, 0].double(), by_mu, rtol=1e-4, atol=3e-7)
    expected = by_mu * noise * inside
    torch.testing.assert_close(act_grad[:, 1].double(), expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(logp_grad[:, 0].double(), 2 * t, **std_digits)
    expected = (2 * t * noise - 1) * inside
    torch.testing.assert_close(logp_grad[:, 1].double(), expected, rtol=1e-4, atol=1e-5)
    assert (act_grad[u.abs() > 9.1] == 0).all()


def test_the_squashed_gaussians_density_is_torchs(mlp_class):
    mu, log_std, eps = (
        x.flatten()
        for x in torch.meshgrid(
            *map(torch.tensor, ([0.0, 0.7, -4.0, 12.0, -17.0], [-20.0, -2.0, 2.0], EPS)),
            indexing="ij",
        )
    )
    _, logp, _, _ = squash(mu, log_std, eps)
    tanh = TanhTransform(cache_size=1)
    normal = Normal(mu.double(), log_std.double().exp())
    # The cache spares the transform inverting tanh
    u = mu.double() + log_std.double().exp() * eps.double()
    expected = TransformedDistribution(normal, tanh).log_prob(tanh(u))
    torch.testing.assert_close(logp.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_is_not_finite_stays_so_in_the_squashed_gaussian(mlp_class, bad, where):
    values = [torch.tensor([0.5, 0.5]) for _ in range(3)]
    values[where][1] = bad
    act, logp, _, _ = squash(*values)
    assert act[0].isfinite() and logp[0].isfinite()
    if where == 1 and not math.isnan(bad):  # log_std is clamped
        assert logp[1].isfinite()
    else:
        assert not logp[1].isfinite()
        assert act[1].isnan() or act[1].abs() == 1


# --- Adam ---

GRADS = [0.0, 1e-45, 1e-38, 1e-30, -1e-20, 1e-10, 1.0, -1e10, 1e19, 1e20, -1e20]
OVERFLOWING = [1e21, -1e30, 3e38]  # their squares are infinite, so their parameters don't move


@pytest.mark.parametrize("steps", [1, 10**6])
def test_adam_takes_the_step_of_double_precision(mlp_class, steps):
    grads = torch.tensor(GRADS + OVERFLOWING)
    params = nn.Parameter(torch.zeros(len(grads)))
    params.grad = grads.clone()
    adam = Adam(params, 0.1)
    moments = dict(exp_avg=grads / 4, exp_avg_sq=(grads / 4).square().clamp(max=1e37))
    if steps > 1:
        adam.load_state_dict(dict(steps=steps - 1, lr=0.1, **moments))
    else:
        moments = dict(exp_avg=torch.zeros_like(grads), exp_avg_sq=torch.zeros_like(grads))
    adam.step()
    g, m, v = (x.double() for x in (grads, moments["exp_avg"], moments["exp_avg_sq"]))
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    scaled = (v / (1 - 0.999**steps)).sqrt() + 1e-8
    expected = -0.1 * m / (1 - 0.9**steps) / scaled
    fine = len(GRADS)
    moved = params.detach().double()
    torch.testing.assert_close(moved[:fine], expected[:fine], rtol=1e-4, atol=1e-12)
    assert not moved[fine:].any()
    state = adam.state_dict()
    torch.testing.assert_close(state["exp_avg"].double()[:fine], m[:fine], rtol=1e-5, atol=1e-44)
    torch.testing.assert_close(state["exp_avg_sq"].double()[:fine], v[:fine], rtol=1e-4, atol=1e-37)
    adam.step()  # and nothing becomes NaN
    assert params.isfinite().all()


def test_adam_and_denormals_that_are_flushed(mlp_class):
    params = nn.Parameter(torch.zeros(3))
    params.grad = torch.tensor([1e-40, 1e-30, 1.0])
    adam = Adam(params, 0.1)
    torch.set_flush_denormal(True)
    try:
        for _ in range(3):
            adam.step()
    finally:
        torch.set_flush_denormal(False)
    assert params.isfinite().all()
    assert params[:2].abs().max() < 1e-15
    assert params[2].item() == pytest.approx(-0.3, rel=1e-4)


# --- The acting policy ---


@pytest.mark.parametrize("u", [0.0, -0.0, 1e-40, 8.9, 9.1, -30.0, 1e30, INF, -INF, NAN])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Identity])
def test_acting_in_the_tails_is_the_modules(u, activation):
    space = Box(np.float32([-3.0]), np.float32([1.0]))
    ac = nets.DeterministicActorCritic(Box(-1, 1, (2,)), space, (1,), activation)
    with torch.no_grad():
        for p in ac.pi.parameters():
            p.zero_()
        ac.pi.pi_net[0].bias.fill_(u)
        ac.pi.pi_net[2].weight.fill_(1)
        expected = ac.pi(torch.zeros(1, 2))[0].numpy()
    act = acting_policy(ac, np.random.default_rng(0))(np.zeros(2))
    np.testing.assert_allclose(act, expected, rtol=1e-6, atol=1e-6)


# --- Derivatives in forward mode ---


@pytest.mark.parametrize("x", [0.0, 1e-45, 1e-30, 9.0, 9.02, 50.0, 1e30, 3e38, INF, NAN])
def test_forward_derivatives_are_autograds_in_the_tails(x, mlp_class):
    """A unit that is saturated in float32 has no derivative; NaN stays NaN."""
    torch.manual_seed(0)
    params = [torch.eye(3), torch.zeros(3), torch.ones(2, 3), torch.zeros(2)]
    tangents = [torch.randn_like(p) for p in params]
    inputs = torch.tensor([[x, -x, 0.5]])
    _, saved = mlp_class.forward([inputs], params, (TANH, IDENTITY))
    outputs = mlp_class.outputs(saved, params)
    got = kernels.forward_derivative(outputs, params, (TANH, IDENTITY), None, tangents)

    def evaluate(*params):
        hidden = torch.tanh(inputs @ params[0].T + params[1])
        return hidden @ params[2].T + params[3]

    _, expected = torch.func.jvp(evaluate, tuple(params), tuple(tangents))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
