from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.testing import assert_close

from spinup import trpo
from spinup.algos.trpo import (
    conjugate_gradient,
    fisher_information,
    policy_loss,
    statistics,
    value_loss,
)
from spinup.fast import kernels, nodes
from spinup.utils.nets import MLPActorCritic
from tests.algos import plain
from tests.algos.envs import Clock, Made
from tests.algos.fixed_data import BOX, train_on_fixed_data, trajectories
from tests.algos.runs import read_progress, train

COLUMNS = (
    "Epoch AverageEpRet StdEpRet MaxEpRet MinEpRet EpLen AverageVVals StdVVals MaxVVals "
    "MinVVals TotalEnvInteracts LossPi LossV DeltaLossPi DeltaLossV Entropy KL BacktrackIters Time"
)
SETTINGS = dict(gamma=0.9, lam=0.8, vf_lr=1e-2, train_v_iters=12, cg_iters=6, backtrack_iters=10)
SETTINGS |= dict(damping_coeff=0.1, backtrack_coeff=0.7)


# --- Losses ---------------------------------------------------------------------------------------


def test_policy_loss_by_hand():
    logp_old, adv = torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([2.0, 1.0, -3.0])
    logp = logp_old + torch.tensor([1.0, 1.5, 0.5]).log()
    logp.requires_grad_()
    loss = policy_loss(logp, logp_old, adv)
    assert loss.item() == pytest.approx(-(2 + 1.5 - 1.5) / 3)
    loss.backward()  # minus the ratio times the advantage, over the batch
    assert logp.grad.tolist() == pytest.approx([-2 / 3, -1.5 / 3, 1.5 / 3])


def test_value_loss_by_hand():
    loss = value_loss(torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 4.0, -1.0]))
    assert loss.item() == pytest.approx(5 / 3)


# --- The Fisher information matrix ----------------------------------------------------------------


def test_fisher_information_by_hand():
    mean, std = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 2.0]])
    for pi in (Normal(mean, std), Independent(Normal(mean, std), 1)):
        assert [x.tolist() for x in statistics(pi)] == [mean.tolist(), std.tolist()]
        # 1 / variance for the mean and 2 / variance for the standard deviation
        assert [x.tolist() for x in fisher_information(pi)] == [[[4, 0.25]], [[8, 0.5]]]
    # Of normalised log-probabilities, these are the probabilities.
    pi = Categorical(logits=torch.tensor([[1.0, 1.0, 1.0 + math.log(2)]]))
    (logits,), (probs,) = statistics(pi), fisher_information(pi)
    assert logits.exp().flatten().tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert probs.flatten().tolist() == pytest.approx([0.25, 0.25, 0.5])


class Own(plain.OnPolicy):
    """A user's policy of ``nn.Sequential`` with a standard deviation of the given kind."""

    def __init__(self, *spaces, std="of the state"):
        super().__init__(*spaces)
        self.pi = OwnGaussian(std)


class OwnGaussian(nn.Module):
    def __init__(self, std):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 9), nn.SiLU(), nn.LayerNorm(9), nn.Linear(9, 4))
        self.std = std

    def forward(self, obs, act=None):
        mean, out = self.net(obs).chunk(2, dim=-1)
        std = torch.full_like(mean, 0.4) if self.std == "fixed" else nn.functional.softplus(out)
        pi = Normal(mean, std)
        return pi, None if act is None else pi.log_prob(act).sum(-1)


def _frozen_log_std(*spaces):
    ac = MLPActorCritic(*spaces, hidden_sizes=(9,))
    ac.pi.log_std.requires_grad_(False)
    return ac


WIDE = dict(hidden_sizes=(16, 12))
POLICIES = {
    "tanh": (MLPActorCritic, WIDE),
    "relu": (MLPActorCritic, WIDE | dict(activation=nn.ReLU)),
    "elu": (MLPActorCritic, WIDE | dict(activation=nn.ELU)),
    "linear": (MLPActorCritic, dict(hidden_sizes=())),
    "plain PyTorch": (plain.OnPolicy, WIDE),
}
GAUSSIAN = POLICIES | {
    "std of the state": (Own, {}),
    "fixed std": (Own, dict(std="fixed")),
    "frozen log_std": (_frozen_log_std, {}),
}


@pytest.fixture(params=["compiled", "torch", "off"])
def speed(request, monkeypatch):
    """Runs a test with compiled networks, if available, with PyTorch's nodes, and without nodes."""
    if request.param == "compiled" and kernels._kernels is None:
        pytest.skip("there are no compiled functions here")
    if request.param != "compiled":
        monkeypatch.setattr(kernels, "_kernels", None)
    if request.param == "off":
        monkeypatch.setattr(nodes, "ENABLED", False)


def _exact_product(pi, obs, v):
    """Differentiates the mean KL divergence twice, in double precision."""
    pi = copy.deepcopy(pi).double()
    params = list(pi.parameters())
    for p in params:
        p.requires_grad_(True)
    with torch.no_grad():
        old, _ = pi(obs)
    kl = kl_divergence(old, pi(obs)[0]).sum() / len(obs)
    grads = torch.autograd.grad(kl, params, create_graph=True, materialize_grads=True)
    product = torch.cat([x.flatten() for x in grads]) @ v.double()
    second = torch.autograd.grad(product, params, materialize_grads=True)
    return torch.cat([x.flatten() for x in second])


@pytest.mark.parametrize(
    "name, policy",
    [("trpo", policy) for policy in GAUSSIAN] + [("trpo-discrete", policy) for policy in POLICIES],
)
def test_products_with_the_fisher_matrix_are_exact(name, policy, speed, tmp_path, monkeypatch):
    """Compares the products in an update with second derivatives of the KL divergence."""
    actor_critic, ac_kwargs = GAUSSIAN[policy]
    made, errors = [], []

    def build(*spaces, **kwargs):
        made.append(actor_critic(*spaces, **kwargs))
        with torch.no_grad():
            for p in made[-1].pi.parameters():  # away from the policy at the start
                p.add_(0.3 * torch.randn_like(p))
        return made[-1]

    def compare(product, b, num_iters):
        pi, obs = made[0].pi, torch.as_tensor(trajectories(61)["obs"], dtype=torch.float32).double()
        is_free = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in pi.parameters()])
        for _ in range(5):
            v = torch.randn_like(b) * is_free
            with monkeypatch.context() as patch:
                patch.setattr(nodes, "ENABLED", False)
                exact = _exact_product(pi, obs, v) * is_free
            errors.append(((product(v) - exact).norm() / exact.norm()).item())
        return conjugate_gradient(product, b, num_iters)

    monkeypatch.setattr("spinup.algos.trpo.conjugate_gradient", compare)
    kwargs = dict(epochs=1, damping_coeff=0, actor_critic=build, ac_kwargs=ac_kwargs)
    train_on_fixed_data(name, 61, tmp_path, **kwargs)
    assert len(errors) == 5
    assert max(errors) < 1e-5


# --- Conjugate gradient ---------------------------------------------------------------------------


def _positive_definite(n, condition=100.0):
    rng = np.random.default_rng(n)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return q @ np.diag(np.geomspace(1, condition, n)) @ q.T, rng.normal(size=n)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_conjugate_gradient_solves_the_system(n):
    a, b = _positive_definite(n)
    matrix, products = torch.as_tensor(a), []
    b = torch.as_tensor(b)
    x, image = conjugate_gradient(lambda v: products.append(1) or matrix @ v, b, 2 * n)
    assert_close(image, matrix @ x)
    np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-3, atol=1e-5)
    assert len(products) <= n + 3  # in exact arithmetic, n would do

    single, _ = conjugate_gradient(lambda v: matrix.float() @ v, b.float(), 3 * n)
    np.testing.assert_allclose(single, np.linalg.solve(a, b), rtol=1e-2, atol=1e-3)


def test_conjugate_gradient_by_hand():
    matrix, b = torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])
    # From zeros: alpha = 5 / 20. The second iteration is exact.
    assert conjugate_gradient(matrix.mv, b, 1)[0].tolist() == pytest.approx([0.25, 0.5])
    assert conjugate_gradient(matrix.mv, b, 2)[0].tolist() == pytest.approx([1 / 11, 7 / 11])
    assert conjugate_gradient(matrix.mv, b, 50)[0].tolist() == pytest.approx([1 / 11, 7 / 11])
    assert b.tolist() == [1, 2]


def test_conjugate_gradient_stops_at_its_tolerance():
    a, b = (torch.as_tensor(x) for x in _positive_definite(30))
    squares = []  # of the residual's norm after each number of iterations, relative to that of b
    for num_iters in range(31):
        x, _ = conjugate_gradient(lambda v: a @ v, b, num_iters, tolerance=0.0)
        squares.append((((a @ x - b).norm() / b.norm()) ** 2).item())
    for tolerance in (1e-2, 1e-6):
        x, _ = conjugate_gradient(lambda v: a @ v, b, 30, tolerance)
        enough = next(i for i, square in enumerate(squares) if square <= tolerance)
        assert 0 < enough < 30
        assert torch.equal(x, conjugate_gradient(lambda v: a @ v, b, enough, tolerance=0.0)[0])


def test_conjugate_gradient_of_zeros_is_zeros():
    def product(v):
        raise AssertionError("a product isn't needed")

    x, image = conjugate_gradient(product, torch.zeros(3), 10)
    assert x.tolist() == image.tolist() == [0, 0, 0]


# --- The update -----------------------------------------------------------------------------------


def _reference_updates(
    ac,
    data,
    epochs,
    gamma,
    lam,
    delta,
    vf_lr,
    train_v_iters,
    damping_coeff,
    cg_iters,
    backtrack_iters,
    backtrack_coeff,
    algo="trpo",
):
    """Does Spinning Up's updates, with second derivatives; returns the logged values of each.

    The policy's part is computed in double precision.
    """
    ac.pi.double()
    params = list(ac.pi.parameters())
    vf_optimizer = torch.optim.Adam(ac.v.parameters(), lr=vf_lr)
    logged = []

    def flat_grad(x, **kwargs):
        return torch.cat([g.flatten() for g in torch.autograd.grad(x, params, **kwargs)])

    def sum_of_actions(x):
        return x.sum(-1) if x.dim() > 1 else x

    for _ in range(epochs):
        obs, act, adv, ret, val = plain.estimates(ac, data, gamma, lam)
        obs64, adv = obs.double(), adv.double()
        with torch.no_grad():
            pi_old, logp_old = ac.pi(obs64, act)

        def losses(obs64=obs64, act=act, adv=adv, pi_old=pi_old, logp_old=logp_old):
            pi, logp = ac.pi(obs64, act)
            kl = sum_of_actions(kl_divergence(pi_old, pi)).mean()
            return -(torch.exp(logp - logp_old) * adv).mean(), kl

        def product(v, losses=losses):
            grad = flat_grad(losses()[1], create_graph=True)
            return flat_grad(grad @ v) + damping_coeff * v

        loss_pi_old = losses()[0]
        loss_v_old = ((ac.v(obs) - ret) ** 2).mean()
        g = flat_grad(loss_pi_old)
        x, r, p = torch.zeros_like(g), g.clone(), g.clone()
        for _ in range(cg_iters):
            z = product(p)
            alpha = (r @ r) / (p @ z)
            x, r_old, r = x + alpha * p, r, r - alpha * z
            p = r + (r @ r) / (r_old @ r_old) * p
        step = torch.sqrt(2 * delta / (x @ product(x))) * x

        old = [q.detach().clone() for q in params]
        for j in range(backtrack_iters + 1):
            scale = backtrack_coeff**j if j < backtrack_iters else 0.0
            parts = step.split([q.numel() for q in params])
            with torch.no_grad():
                for q, q_old, part in zip(params, old, parts):
                    q.copy_(q_old - scale * part.view_as(q))
            loss_pi, kl = losses()
            if algo == "npg" or (kl <= delta and loss_pi < loss_pi_old):
                break

        for _ in range(train_v_iters):
            vf_optimizer.zero_grad()
            ((ac.v(obs) - ret) ** 2).mean().backward()
            vf_optimizer.step()
        logged.append(
            dict(
                AverageVVals=val.mean(),
                LossPi=loss_pi_old.item(),
                LossV=loss_v_old.item(),
                DeltaLossPi=(loss_pi - loss_pi_old).item(),
                DeltaLossV=(((ac.v(obs) - ret) ** 2).mean() - loss_v_old).item(),
                Entropy=sum_of_actions(pi_old.entropy()).mean().item(),
                KL=kl.item(),
                BacktrackIters=j,
            )
        )
    ac.pi.float()
    return logged


@pytest.mark.parametrize("algo", ["trpo", "npg"])
@pytest.mark.parametrize(
    "name, damping_coeff, delta, backtracks",
    [
        ("trpo", 0.1, 0.01, False),
        ("trpo", 0.1, 0.4, True),
        ("trpo-discrete", 0.1, 0.01, False),
        ("trpo-discrete", 0.01, 0.1, True),
    ],
)
def test_update_is_the_textbooks_and_logs_its_end(
    engine, tmp_path, name, damping_coeff, delta, backtracks, algo
):
    settings = SETTINGS | dict(delta=delta, damping_coeff=damping_coeff, algo=algo, epochs=4)
    ac = train_on_fixed_data(name, 61, tmp_path, **settings)

    env = Clock(action_space=Discrete(3) if name == "trpo-discrete" else BOX)
    expected = plain.initial("trpo", env)
    data = trajectories(61, discrete=name == "trpo-discrete")
    logged = _reference_updates(expected, data, **settings)
    close = dict(atol=2e-5, rtol=2e-5)
    assert_close(plain.as_plain("trpo", ac).state_dict(), expected.state_dict(), **close)
    progress = read_progress(tmp_path)
    for epoch, values in enumerate(logged):
        for key, value in values.items():
            is_close = progress[key][epoch] == pytest.approx(value, rel=1e-4, abs=2e-5)
            assert is_close, (key, epoch)
    assert (max(progress["BacktrackIters"]) > 0) == (backtracks and algo == "trpo")


@pytest.mark.parametrize("name", ["trpo", "trpo-discrete"])
def test_a_plain_pytorch_actor_critic_trains_the_same(engine, tmp_path, name):
    own = train_on_fixed_data(name, 61, tmp_path / "own", actor_critic=plain.OnPolicy)
    ac = train_on_fixed_data(name, 61, tmp_path / "library")
    assert isinstance(own, plain.OnPolicy)
    expected = plain.as_plain("trpo", ac).state_dict()
    assert_close(own.state_dict(), expected, atol=1e-5, rtol=1e-5)
    # The user's Normal has one divergence per action dimension, which are summed.
    logs = [read_progress(tmp_path / run)["KL"] for run in ("own", "library")]
    np.testing.assert_allclose(*logs, rtol=1e-3)
    assert max(logs[0]) > 1e-3


@pytest.mark.parametrize("name", ["trpo", "trpo-discrete"])
def test_a_step_stays_in_the_trust_region_and_improves_or_is_not_taken(tmp_path, name):
    env = Clock(action_space=Discrete(3) if name == "trpo-discrete" else BOX)
    start = plain.initial("trpo", env).pi.state_dict()
    taken = []
    for delta in (1e-4, 0.01, 0.3, 3.0, 100.0):
        for backtrack_iters in (1, 2, 5, 30):
            folder = tmp_path / f"{delta}-{backtrack_iters}"
            kwargs = dict(epochs=1, delta=delta, backtrack_iters=backtrack_iters, damping_coeff=0)
            ac = train_on_fixed_data(name, 61, folder, **kwargs)
            progress = {k: v[0] for k, v in read_progress(folder).items()}
            after = plain.as_plain("trpo", ac).pi.state_dict()
            is_same = [torch.equal(after[key], start[key]) for key in start]
            taken.append(progress["BacktrackIters"] < backtrack_iters)
            if taken[-1]:
                assert 0 < progress["KL"] <= delta and progress["DeltaLossPi"] < 0
                assert not any(is_same)
            else:
                assert progress["BacktrackIters"] == backtrack_iters
                assert progress["KL"] == progress["DeltaLossPi"] == 0 and all(is_same)
    assert set(taken) == {True, False}


def test_npg_takes_the_full_step(tmp_path):
    kwargs = dict(epochs=1, delta=3.0, backtrack_iters=1)
    start = plain.initial("trpo", Clock(action_space=BOX)).pi.state_dict()
    for algo in ("trpo", "npg"):
        ac = train_on_fixed_data("trpo", 61, tmp_path / algo, algo=algo, **kwargs)
        after = plain.as_plain("trpo", ac).pi.state_dict()
        assert torch.equal(after["log_std"], start["log_std"]) == (algo == "trpo")
    progress = read_progress(tmp_path / "npg")
    assert progress["BacktrackIters"].tolist() == [0]
    assert progress["KL"][0] > 3  # for which TRPO refuses this step


def test_equal_advantages_leave_the_policy_as_it_was(engine, tmp_path):
    # Episodes have one step, equal rewards and value zero, so the advantages' deviation is zero.
    env = Clock(length=1)
    for algo in ("trpo", "npg"):
        made = []

        def build(*spaces, made=made):
            made.append(plain.known_value(0.0)(*spaces))
            made.append(copy.deepcopy(made[0].pi.state_dict()))
            return made[0]

        folder = tmp_path / algo
        ac = train("trpo", lambda: env, folder, actor_critic=build, algo=algo, epochs=2)
        assert_close(ac.pi.state_dict(), made[1], atol=0, rtol=0)
        progress = read_progress(folder)
        for key in ("LossPi", "DeltaLossPi", "KL"):
            assert progress[key].tolist() == [0, 0], key
        assert progress["BacktrackIters"].tolist() == ([10, 10] if algo == "trpo" else [0, 0])


def test_without_iterations_the_value_function_stays(engine, tmp_path):
    env = Clock(length=5)
    start = plain.initial("trpo", env).state_dict()
    ac = train("trpo", lambda: env, tmp_path, train_v_iters=0)
    for key, value in plain.as_plain("trpo", ac).state_dict().items():
        assert torch.equal(value, start[key]) == key.startswith("v."), key
    progress = read_progress(tmp_path)
    assert progress["DeltaLossV"].tolist() == [0, 0] and np.isfinite(progress["LossV"]).all()


# --- Other policies -------------------------------------------------------------------------------


class Coin(plain.OnPolicy):
    """A policy over two actions, with a Bernoulli distribution."""

    def __init__(self, *spaces):
        super().__init__(*spaces)
        self.pi = CoinPolicy()

    def act(self, obs, deterministic=False):
        pi, _ = self.pi(obs)
        return np.int64((pi.probs > 0.5 if deterministic else pi.sample()).item())


class CoinPolicy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)

    def forward(self, obs, act=None):
        pi = Bernoulli(logits=self.net(obs).squeeze(-1))
        return pi, None if act is None else pi.log_prob(act.float())


class Correlated(plain.OnPolicy):
    def __init__(self, *spaces):
        super().__init__(*spaces)
        self.pi.forward = self.distribution
        self.mu_net = self.pi.mu_net

    def distribution(self, obs, act=None):
        pi = MultivariateNormal(self.mu_net(obs), torch.eye(2))
        return pi, None if act is None else pi.log_prob(act)

    def act(self, obs):
        return self.pi(obs)[0].sample().numpy()


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class WithoutJvp(plain.OnPolicy):
    """A policy with an operation that has no derivative in forward mode."""

    def __init__(self, *spaces):
        super().__init__(*spaces)
        self.pi.mu_net[0].register_forward_hook(lambda m, args, out: Opaque.apply(out))


@pytest.mark.parametrize(
    "actor_critic, space, error, message",
    [
        (Coin, Discrete(2), ValueError, "can't use a policy with a Bernoulli: return a Normal, an"),
        (Correlated, BOX, ValueError, "can't use a policy with a MultivariateNormal: .*use PPO"),
        (WithoutJvp, BOX, NotImplementedError, "must implement the jvp function"),
    ],
)
def test_a_policy_without_a_fisher_matrix_is_refused_before_training(
    tmp_path, actor_critic, space, error, message
):
    made = Made(action_space=space)
    with pytest.raises(error, match=message):
        train("trpo", made, tmp_path, actor_critic=actor_critic)
    assert made.env.total == 0 and not (tmp_path / "pyt_save").exists()
    train("ppo", made, tmp_path / "ppo", actor_critic=actor_critic)


@pytest.mark.parametrize("policy", ["std of the state", "fixed std", "frozen log_std"])
def test_policies_with_another_standard_deviation_train(tmp_path, policy):
    actor_critic, ac_kwargs = GAUSSIAN[policy]
    kwargs = dict(actor_critic=actor_critic, ac_kwargs=ac_kwargs)
    ac = train_on_fixed_data("trpo", 61, tmp_path, **kwargs)
    progress = read_progress(tmp_path)
    assert (progress["KL"] > 1e-3).all() and (progress["KL"] <= 0.01).all()
    assert (progress["DeltaLossPi"] < 0).all()
    if policy == "frozen log_std":
        assert ac.pi.log_std.tolist() == [-0.5, -0.5]


class Direct(nn.Module):
    """A policy whose distribution holds its parameters themselves, not results from them."""

    class Actor(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.mean, self.std = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.ones(n))

        def forward(self, obs, act=None):
            pi = Independent(Normal(self.mean + 0 * obs[:, :1], self.std.expand(len(obs), -1)), 1)
            return pi, None if act is None else pi.log_prob(act)

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.pi = self.Actor(action_space.shape[0])
        self.v = plain.OnPolicy(observation_space, action_space).v

    def act(self, obs):
        with torch.no_grad():
            return self.pi(obs[None])[0].sample()[0].numpy()


def test_the_old_policy_does_not_change_with_the_parameters(tmp_path):
    train_on_fixed_data("trpo", 61, tmp_path, actor_critic=Direct)
    kl = read_progress(tmp_path)["KL"]  # 0 if both policies had the new standard deviation
    assert (kl > 1e-3).all() and (kl <= 0.01).all()


def test_a_step_that_is_not_finite_is_an_error_and_changes_nothing(tmp_path, monkeypatch):
    made = []

    def build(*spaces):
        made.append(MLPActorCritic(*spaces, hidden_sizes=(8,)))
        return made[-1]

    monkeypatch.setattr("spinup.algos.trpo.conjugate_gradient", lambda _, b, __: (b * math.inf, b))
    with pytest.raises(FloatingPointError, match="natural gradient in Clock is NaN or infinite"):
        train_on_fixed_data("trpo", 61, tmp_path, actor_critic=build)
    assert all(p.isfinite().all() for p in made[0].parameters())


# --- Logs -----------------------------------------------------------------------------------------


def test_columns_are_spinning_ups(tmp_path):
    train("trpo", Clock, tmp_path)
    assert " ".join(read_progress(tmp_path)) == COLUMNS


# --- Learning -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_solves_cartpole(tmp_path, seed):
    trpo("CartPole-v1", seed=seed, logger_kwargs=dict(output_dir=tmp_path))
    assert np.nanmax(read_progress(tmp_path)["AverageEpRet"]) >= 475
