from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch.testing import assert_close

from spinup import ddpg
from spinup.algos.ddpg import critic_loss, policy_loss, q_backup
from spinup.utils.nets import SingleCriticActorCritic
from tests.algos import plain
from tests.algos.envs import Clock, Made
from tests.algos.fixed_data import BOX, minibatch, train_on_fixed_data
from tests.algos.runs import read_progress, train

COLUMNS = (
    "Epoch AverageEpRet StdEpRet MaxEpRet MinEpRet AverageTestEpRet StdTestEpRet "
    "MaxTestEpRet MinTestEpRet EpLen TestEpLen TotalEnvInteracts AverageQVals StdQVals "
    "MaxQVals MinQVals LossPi LossQ Time"
)


# --- Losses ---------------------------------------------------------------------------------------


def test_backup_by_hand():
    backup = q_backup(
        rew=torch.tensor([1.0, 2.0, 3.0]),
        terminated=torch.tensor([0.0, 1.0, 0.0]),
        q_targ=torch.tensor([4.0, 5.0, -6.0]),
        gamma=0.9,
    )
    assert backup.tolist() == pytest.approx([4.6, 2, -2.4])


def test_critic_loss_by_hand():
    q, backup = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 4.0, -1.0])
    assert critic_loss(q, backup).item() == pytest.approx((1 + 4 + 0) / 3)


def test_policy_loss_by_hand():
    assert policy_loss(torch.tensor([3.0, -1.0, 4.0])).item() == pytest.approx(-2)


# --- The update -----------------------------------------------------------------------------------


def _reference_updates(ac, size, updates, pi_lr, q_lr, polyak, gamma=0.99):
    """Does Spinning Up's updates, parameter by parameter; returns targets and logged values."""
    ac_targ = copy.deepcopy(ac)
    pi_optimizer = torch.optim.Adam(ac.pi.parameters(), lr=pi_lr)
    q_optimizer = torch.optim.Adam(ac.q.parameters(), lr=q_lr)
    losses_pi, losses_q, values = [], [], []
    for number in range(updates):
        batch = minibatch(size, number)
        obs, act, next_obs = batch["obs"], batch["act"], batch["next_obs"]

        with torch.no_grad():
            q_targ = ac_targ.q(next_obs, ac_targ.pi(next_obs))
            backup = batch["rew"] + gamma * (1 - batch["terminated"]) * q_targ
        q = ac.q(obs, act)
        loss_q = ((q - backup) ** 2).mean()
        q_optimizer.zero_grad()
        loss_q.backward()
        q_optimizer.step()
        losses_q.append(loss_q.item())
        values.append(q.detach().numpy())

        loss_pi = -ac.q(obs, ac.pi(obs)).mean()
        pi_params = list(ac.pi.parameters())
        for p, grad in zip(pi_params, torch.autograd.grad(loss_pi, pi_params), strict=True):
            p.grad = grad
        pi_optimizer.step()
        losses_pi.append(loss_pi.item())

        with torch.no_grad():
            for p, p_targ in zip(ac.parameters(), ac_targ.parameters(), strict=True):
                p_targ.mul_(polyak).add_((1 - polyak) * p)
    logged = dict(LossPi=np.mean(losses_pi), LossQ=np.mean(losses_q))
    logged |= dict(AverageQVals=np.mean(values), StdQVals=np.std(values), MaxQVals=np.max(values))
    return ac_targ, logged


def test_update_is_the_textbooks(engine, tmp_path, monkeypatch):
    copies = []  # the targets

    def copy_and_keep(module):
        copies.append(copy.deepcopy(module))
        return copies[-1]

    monkeypatch.setattr("spinup.algos.ddpg.deepcopy", copy_and_keep)
    settings = dict(pi_lr=3e-3, q_lr=1e-2, polyak=0.8)
    ac = train_on_fixed_data("ddpg", 31, tmp_path, **settings)

    expected = plain.initial("ddpg", Clock(action_space=BOX))
    targ, logged = _reference_updates(expected, 31, 25, **settings)
    close = dict(atol=1e-5, rtol=1e-5)
    q_grads = [p.grad.clone() for p in ac.q.parameters()]
    assert_close(plain.as_plain("ddpg", ac).state_dict(), expected.state_dict(), **close)
    # The policy step hasn't changed the critic's gradient.
    assert_close(q_grads, [p.grad for p in expected.q.parameters()], **close)
    ac.pi, ac.q = copies
    assert_close(plain.as_plain("ddpg", ac).state_dict(), targ.state_dict(), **close)
    progress = read_progress(tmp_path)
    for key, value in logged.items():
        assert progress[key][0] == pytest.approx(value, abs=1e-4), key


def test_a_plain_pytorch_actor_critic_trains_the_same(engine, tmp_path):
    own = train_on_fixed_data("ddpg", 31, tmp_path / "own", actor_critic=plain.Single)
    ac = train_on_fixed_data("ddpg", 31, tmp_path / "library")
    assert isinstance(own, plain.Single) and isinstance(ac, SingleCriticActorCritic)
    expected = plain.as_plain("ddpg", ac).state_dict()
    assert_close(own.state_dict(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("twin", [plain.Deterministic, plain.Deterministic.original])
def test_twin_critics_are_refused(tmp_path, twin):
    made = Made()
    with pytest.raises(ValueError, match=r"has no q: see|q\(obs, act\) must be .* shape \(5,\) .*"):
        train("ddpg", made, tmp_path, actor_critic=twin)
    assert made.env.total == 0 and not (tmp_path / "pyt_save").exists()


# --- Exploration ----------------------------------------------------------------------------------


class _Middle(plain.Single):
    """Always returns the midpoint of `BOX` as the action."""

    def act(self, obs):
        return (BOX.low + BOX.high) / 2


def test_noise_is_in_units_of_half_the_range_and_stays_in_bounds(tmp_path):
    made = Made(action_space=BOX)
    kwargs = dict(actor_critic=_Middle, start_steps=0, update_after=3000, epochs=1)
    train("ddpg", made, tmp_path, steps_per_epoch=2000, act_noise=0.5, **kwargs)
    actions = np.array(made.env.actions)
    scaled = (actions - (BOX.low + BOX.high) / 2) / ((BOX.high - BOX.low) / 2)
    # A Gaussian with deviation 0.5 exceeds the bounds with probability 4.6% and is then clipped.
    at_bounds = np.isclose(abs(scaled), 1, atol=1e-6).mean(axis=0)
    assert abs(scaled).max() <= 1 + 1e-6
    assert at_bounds == pytest.approx([0.046, 0.046], abs=0.02)
    assert np.median(abs(scaled), axis=0) == pytest.approx([0.337, 0.337], abs=0.03)
    middle = (BOX.low + BOX.high) / 2
    assert np.array(made.test_env.actions) == pytest.approx(
        np.tile(middle, (len(made.test_env.actions), 1))
    )


def test_without_noise_it_explores_with_the_policy_itself(tmp_path):
    made = Made(action_space=Box(-1, 1, (2,)))
    ac = train("ddpg", made, tmp_path, act_noise=0.0, start_steps=0, update_after=100)
    obs = torch.tensor([[t, min(t % 10, t)] for t in range(40)], dtype=torch.float32)
    assert np.array(made.env.actions) == pytest.approx(ac.act(obs), abs=1e-5)


# --- Logs -----------------------------------------------------------------------------------------


def test_columns_are_spinning_ups(tmp_path):
    train("ddpg", Clock, tmp_path)
    assert " ".join(read_progress(tmp_path)) == COLUMNS


# --- Learning -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_swings_the_pendulum_up(tmp_path, seed):
    ddpg(
        "Pendulum-v1",
        seed=seed,
        steps_per_epoch=1000,
        epochs=15,
        start_steps=1000,
        logger_kwargs=dict(output_dir=tmp_path),
    )
    assert read_progress(tmp_path)["AverageTestEpRet"].max() >= -200
