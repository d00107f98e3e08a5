from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch.testing import assert_close

from spinup import sac
from spinup.algos.sac import critic_loss, policy_loss, soft_backup, temperature_loss
from spinup.utils.nets import SquashedGaussianActorCritic
from tests.algos import plain
from tests.algos.envs import Clock
from tests.algos.fixed_data import BOX, Noise, minibatch, train_on_fixed_data
from tests.algos.runs import read_progress, train

COLUMNS = (
    "Epoch AverageEpRet StdEpRet MaxEpRet MinEpRet AverageTestEpRet StdTestEpRet "
    "MaxTestEpRet MinTestEpRet EpLen TestEpLen TotalEnvInteracts AverageQ1Vals StdQ1Vals "
    "MaxQ1Vals MinQ1Vals AverageQ2Vals StdQ2Vals MaxQ2Vals MinQ2Vals AverageLogPi StdLogPi "
    "MaxLogPi MinLogPi LossPi LossQ Time"
)


# --- Losses ---------------------------------------------------------------------------------------


def test_soft_backup_by_hand():
    backup = soft_backup(
        rew=torch.tensor([1.0, 2.0, 3.0]),
        terminated=torch.tensor([0.0, 1.0, 0.0]),
        q_targ=torch.tensor([[4.0, 5.0, 6.0], [6.0, 3.0, 2.0]]),
        logp_a2=torch.tensor([-1.0, 1.0, 2.0]),
        alpha=0.5,
        gamma=0.9,
    )
    # 1 + 0.9 (4 + 0.5), 2, 3 + 0.9 (2 - 1)
    assert backup.tolist() == pytest.approx([5.05, 2, 3.9])


def test_critic_loss_by_hand():
    q = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    assert critic_loss(q, torch.tensor([0.0, 4.0])).item() == pytest.approx(
        (1 + 4) / 2 + (0 + 1) / 2
    )


def test_policy_loss_by_hand():
    q_pi = torch.tensor([[3.0, -1.0], [2.0, 1.0]])
    loss = policy_loss(torch.tensor([1.0, -2.0]), q_pi, alpha=0.5)
    assert loss.item() == pytest.approx(((0.5 - 2) + (-1 + 1)) / 2)


def test_temperature_loss_by_hand():
    log_alpha = torch.tensor([0.5], requires_grad=True)
    logp = torch.tensor([-1.0, 4.0], requires_grad=True)
    loss = temperature_loss(log_alpha, logp, target_entropy=-2.0)
    assert loss.item() == pytest.approx(-0.5 * (1.5 - 2))
    loss.backward()
    assert log_alpha.grad.tolist() == pytest.approx([0.5])
    assert logp.grad is None


# --- The update -----------------------------------------------------------------------------------


def _reference_updates(ac, size, updates, alpha, lr, polyak, gamma=0.99):
    """Does Spinning Up's updates, parameter by parameter; returns targets and logged values."""
    ac_targ = copy.deepcopy(ac)
    q_params = [*ac.q1.parameters(), *ac.q2.parameters()]
    pi_optimizer = torch.optim.Adam(ac.pi.parameters(), lr=lr)
    q_optimizer = torch.optim.Adam(q_params, lr=lr)
    log_alpha = torch.zeros(1, requires_grad=True)
    alpha_optimizer = torch.optim.Adam([log_alpha], lr=lr)
    logged = {"Alpha": [], "LossPi": [], "LossQ": [], "AverageLogPi": []}
    for number in range(updates):
        batch = minibatch(size, number)
        obs, act, next_obs = batch["obs"], batch["act"], batch["next_obs"]
        temperature = log_alpha.exp().item() if alpha == "auto" else alpha

        with torch.no_grad():
            a2, logp_a2 = ac.pi(next_obs)
            q_targ = torch.min(ac_targ.q1(next_obs, a2), ac_targ.q2(next_obs, a2))
            soft_value = q_targ - temperature * logp_a2
            backup = batch["rew"] + gamma * (1 - batch["terminated"]) * soft_value
        q1_error, q2_error = ac.q1(obs, act) - backup, ac.q2(obs, act) - backup
        loss_q = (q1_error**2).mean() + (q2_error**2).mean()
        q_optimizer.zero_grad()
        loss_q.backward()
        q_optimizer.step()

        pi, logp = ac.pi(obs)
        q_pi = torch.min(ac.q1(obs, pi), ac.q2(obs, pi))
        loss_pi = (temperature * logp - q_pi).mean()
        pi_params = list(ac.pi.parameters())
        for p, grad in zip(pi_params, torch.autograd.grad(loss_pi, pi_params), strict=True):
            p.grad = grad
        pi_optimizer.step()

        if alpha == "auto":
            act_dim = act.shape[1]
            log_alpha.grad = -(logp.detach() - act_dim).mean().reshape(1)
            alpha_optimizer.step()

        with torch.no_grad():
            for p, p_targ in zip(ac.parameters(), ac_targ.parameters(), strict=True):
                p_targ.mul_(polyak).add_((1 - polyak) * p)

        values = (temperature, loss_pi.item(), loss_q.item(), logp.mean().item())
        for key, value in zip(logged, values, strict=True):
            logged[key].append(value)
    return ac_targ, {key: np.mean(values) for key, values in logged.items()}


@pytest.mark.parametrize("alpha", [0.3, "auto"])
def test_update_is_the_textbooks(engine, tmp_path, monkeypatch, alpha):
    copies = []  # the targets

    def copy_and_keep(module):
        copies.append(copy.deepcopy(module))
        return copies[-1]

    monkeypatch.setattr("spinup.algos.sac.deepcopy", copy_and_keep)
    settings = dict(alpha=alpha, lr=1e-2, polyak=0.8)
    ac = train_on_fixed_data("sac", 31, tmp_path, **settings)

    monkeypatch.setattr("torch.randn_like", Noise(31))
    expected = plain.initial("sac", Clock(action_space=BOX))
    targ, logged = _reference_updates(expected, 31, updates=25, **settings)
    close = dict(atol=1e-5, rtol=1e-5)
    q_grads = torch.cat([p.grad.flatten() for p in ac.q.parameters()])
    assert_close(plain.as_plain("sac", ac).state_dict(), expected.state_dict(), **close)
    # The policy step hasn't changed the critics' gradients.
    assert_close(q_grads, plain.critic_gradients(expected), **close)
    ac.q = copies[0]
    reached = plain.as_plain("sac", ac)
    assert_close(reached.q1.state_dict(), targ.q1.state_dict(), **close)
    assert_close(reached.q2.state_dict(), targ.q2.state_dict(), **close)
    progress = read_progress(tmp_path)
    for key in progress.keys() & logged.keys():
        assert progress[key][0] == pytest.approx(logged[key], abs=1e-4), key


def test_a_plain_pytorch_actor_critic_trains_the_same(engine, tmp_path):
    own = train_on_fixed_data("sac", 31, tmp_path / "own", actor_critic=plain.Squashed)
    ac = train_on_fixed_data("sac", 31, tmp_path / "library")
    assert isinstance(own, plain.Squashed)
    expected = plain.as_plain("sac", ac).state_dict()
    assert_close(own.state_dict(), expected, atol=1e-5, rtol=1e-5)


# --- Temperature ----------------------------------------------------------------------------------


def _of_entropy(log_std_bias):
    """Returns the library's actor-critic, with the policy's log_std at about `log_std_bias`."""

    class Biased(SquashedGaussianActorCritic):
        def __init__(self, observation_space, action_space):
            super().__init__(observation_space, action_space, hidden_sizes=(8,))
            last = self.pi.net[-2]
            last.weight.data.zero_()
            act_dim = action_space.shape[0]
            last.bias.data.copy_(torch.tensor([0.0] * act_dim + [log_std_bias] * act_dim))

    return Biased


@pytest.mark.parametrize("log_std_bias, sign", [(-8.0, 1), (0.0, -1)])
def test_temperature_moves_the_entropy_to_its_target(tmp_path, log_std_bias, sign):
    # With deviation e^-8 the entropy is far below the target -1; with 1, squashed, it is above.
    kwargs = dict(actor_critic=_of_entropy(log_std_bias), alpha="auto", lr=1e-2)
    train("sac", lambda: Clock(length=5), tmp_path, **kwargs, epochs=3)
    alpha = read_progress(tmp_path)["Alpha"]
    # Adam's first steps have size lr: the first epoch's temperatures are 1, e^±lr, ...
    assert sign * (alpha[0] - 1) > 0
    assert sign * np.diff(alpha).min() > 0 and sign * np.diff(alpha).max() > 0


def test_temperature_is_one_at_first_and_moves_by_its_logarithm(tmp_path):
    kwargs = dict(actor_critic=_of_entropy(-8.0), alpha="auto", lr=1e-2)
    steps = dict(steps_per_epoch=2, epochs=1, update_every=2, update_after=2)
    train("sac", lambda: Clock(length=5), tmp_path, **kwargs, **steps)
    assert read_progress(tmp_path)["Alpha"][0] == pytest.approx((1 + math.exp(0.01)) / 2, abs=1e-5)


@pytest.mark.parametrize("act_dim", [1, 3])
def test_target_entropy_is_minus_the_actions_dimension(tmp_path, monkeypatch, act_dim):
    targets = []

    def spy(log_alpha, logp, target_entropy):
        targets.append(target_entropy)
        return temperature_loss(log_alpha, logp, target_entropy)

    monkeypatch.setattr("spinup.algos.sac.temperature_loss", spy)
    train("sac", lambda: Clock(action_space=Box(-1, 1, (act_dim,))), tmp_path, alpha="auto")
    assert set(targets) == {-act_dim}


@pytest.mark.parametrize("alpha", ["automatic", -0.1, math.nan, None])
def test_bad_temperatures_are_refused(tmp_path, alpha):
    with pytest.raises(ValueError, match='alpha must be a number of at least 0, or "auto"'):
        train("sac", Clock, tmp_path / "run", alpha=alpha)
    assert not (tmp_path / "run").exists()


# --- Logs -----------------------------------------------------------------------------------------


def test_columns_are_spinning_ups(tmp_path):
    train("sac", Clock, tmp_path / "fixed")
    assert " ".join(read_progress(tmp_path / "fixed")) == COLUMNS
    train("sac", Clock, tmp_path / "auto", alpha="auto")
    with_alpha = COLUMNS.replace("LossQ Time", "LossQ Alpha Time")
    assert " ".join(read_progress(tmp_path / "auto")) == with_alpha


# --- Learning -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_swings_the_pendulum_up(tmp_path, seed):
    sac(
        "Pendulum-v1",
        seed=seed,
        steps_per_epoch=1000,
        epochs=15,
        start_steps=1000,
        logger_kwargs=dict(output_dir=tmp_path),
    )
    assert read_progress(tmp_path)["AverageTestEpRet"].max() >= -200
