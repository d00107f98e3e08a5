import copy

import numpy as np
import pytest
import torch
from torch import nn

from spinup.fast import kernels
from spinup.utils.flat import flatten
from spinup.utils.nets import mlp
from spinup.utils.optim import Adam


def network(seed=0):
    torch.manual_seed(seed)
    return mlp([3, 4, 2], nn.Tanh)


def textbook_adam(params, grads, lr, betas=(0.9, 0.999), eps=1e-8):
    """Runs algorithm 1 of arXiv:1412.6980 in double precision; returns parameters and moments."""
    m = v = np.zeros(len(params))
    params = np.float64(params)
    for t, grad in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * grad
        v = betas[1] * v + (1 - betas[1]) * grad**2
        params = params - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return params, m, v


def gradients(size, steps):
    """Returns gradients whose scale varies between steps and between parameters."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-4, 2, size)
    return [scale * rng.normal(size=size) * 10.0 ** (step % 3 - 1) for step in range(steps)]


def take_steps(adam, grads):
    for grad in grads:
        adam.params.grad.copy_(torch.as_tensor(grad))
        adam.step()


@pytest.mark.parametrize("steps", [1, 2, 60])
@pytest.mark.parametrize("lr", [1e-3, 0.05])
def test_adam_takes_the_papers_steps(engine, steps, lr):
    params = flatten(network())
    start, grads = params.detach().numpy().copy(), gradients(len(params), steps)
    adam = Adam(params, lr)
    take_steps(adam, grads)

    expected, exp_avg, exp_avg_sq = textbook_adam(start, grads, lr)
    moved = params.detach().numpy() - start
    np.testing.assert_allclose(moved, expected - start, rtol=1e-3, atol=1e-6)
    state = adam.state_dict()
    assert state["steps"] == steps
    np.testing.assert_allclose(state["exp_avg"], exp_avg, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state["exp_avg_sq"], exp_avg_sq, rtol=1e-4, atol=1e-9)


def test_adam_starts_with_a_step_of_the_learning_rate(engine):
    params = nn.Parameter(torch.zeros(4))
    params.grad = torch.tensor([2.0, -1e-3, 5e3, 0.0])
    Adam(params, 0.1).step()
    assert params.tolist() == pytest.approx([-0.1, 0.1, -0.1, 0], rel=1e-4)


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("loads_into", ["compiled", "torch"])
def test_adam_goes_on_from_its_state(engine, loads_into, taken, monkeypatch):
    """Both engines continue from the state of either one."""
    params = flatten(network())
    grads, adam = gradients(len(params), 12), Adam(params, 0.05)
    take_steps(adam, grads[:taken])
    state = {k: copy.deepcopy(v) for k, v in adam.state_dict().items()}
    saved = params.detach().clone()
    restored = nn.Parameter(saved.clone())
    restored.grad = torch.zeros_like(restored)
    take_steps(adam, grads[taken:])

    if loads_into == "torch":
        monkeypatch.setattr(kernels, "_kernels", None)
    elif engine == "torch":
        monkeypatch.undo()
    other = Adam(restored, 0.05)
    take_steps(other, [-grad for grad in grads[5:7]])  # must leave no trace
    with torch.no_grad():
        restored.copy_(saved)
    other.load_state_dict(state)
    take_steps(other, grads[taken:])
    np.testing.assert_allclose(restored.detach(), params.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 17, -1])
def test_adam_takes_no_step_along_a_gradient_that_is_not_finite(engine, place, bad):
    params = flatten(nn.Linear(10, 5))
    adam = Adam(params, 0.1, "LossQ in Env-v0")
    params.grad.fill_(1e38)
    adam.step()
    names = ("exp_avg", "exp_avg_sq")
    before = [x.clone() for x in (params, *[adam.state_dict()[name] for name in names])]
    params.grad[place] = bad
    with pytest.raises(FloatingPointError, match=r"gradient of LossQ in Env-v0 is NaN .* update 2"):
        adam.step()
    after = [params, *[adam.state_dict()[name] for name in names]]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert adam.state_dict()["steps"] == 1


def test_a_learning_rate_that_is_set_counts_and_is_restored(engine):
    params = flatten(nn.Linear(3, 2))
    adam = Adam(params, 0.1)
    params.grad.fill_(1)
    steps = []
    for lr in (0.1, 0.01, 0.0):
        adam.lr, before = lr, params.detach().clone()
        adam.step()
        steps.append((before - params).mean().item())
    assert steps == pytest.approx([0.1, 0.01, 0.0], rel=1e-4)

    adam.lr = 0.025
    resumed = Adam(params, 0.1)
    resumed.load_state_dict(adam.state_dict())
    before = params.detach().clone()
    resumed.step()
    assert (before - params).mean().item() == pytest.approx(0.025, rel=1e-4)
    assert resumed.lr == 0.025
