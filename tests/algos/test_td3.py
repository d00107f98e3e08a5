from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch.testing import assert_close

from spinup import td3
from spinup.algos.td3 import clipped_double_backup, critic_loss, policy_loss
from tests.algos import plain
from tests.algos.envs import Clock, Made
from tests.algos.fixed_data import BOX, Noise, minibatch, train_on_fixed_data
from tests.algos.runs import read_progress, train

COLUMNS = (
    "Epoch AverageEpRet StdEpRet MaxEpRet MinEpRet AverageTestEpRet StdTestEpRet "
    "MaxTestEpRet MinTestEpRet EpLen TestEpLen TotalEnvInteracts AverageQ1Vals StdQ1Vals "
    "MaxQ1Vals MinQ1Vals AverageQ2Vals StdQ2Vals MaxQ2Vals MinQ2Vals LossPi LossQ Time"
)


# --- Losses ---------------------------------------------------------------------------------------


def test_backup_by_hand():
    backup = clipped_double_backup(
        rew=torch.tensor([1.0, 2.0, 3.0]),
        terminated=torch.tensor([0.0, 1.0, 0.0]),
        q_targ=torch.tensor([[4.0, 5.0, 6.0], [6.0, 3.0, 2.0]]),
        gamma=0.9,
    )
    assert backup.tolist() == pytest.approx([4.6, 2, 4.8])


def test_critic_loss_by_hand():
    q = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    assert critic_loss(q, torch.tensor([0.0, 4.0])).item() == pytest.approx(
        (1 + 4) / 2 + (0 + 1) / 2
    )


def test_policy_loss_by_hand():
    assert policy_loss(torch.tensor([3.0, -1.0, 4.0])).item() == pytest.approx(-2)


# --- The update -----------------------------------------------------------------------------------


def _reference_updates(
    ac, size, updates, pi_lr, q_lr, polyak, target_noise, noise_clip, policy_delay, gamma=0.99
):
    """Does Spinning Up's updates, parameter by parameter; returns targets and mean losses."""
    low, high = torch.as_tensor(BOX.low), torch.as_tensor(BOX.high)
    ac_targ = copy.deepcopy(ac)
    q_params = [*ac.q1.parameters(), *ac.q2.parameters()]
    pi_optimizer = torch.optim.Adam(ac.pi.parameters(), lr=pi_lr)
    q_optimizer = torch.optim.Adam(q_params, lr=q_lr)
    losses_pi, losses_q = [], []
    for number in range(1, updates + 1):
        batch = minibatch(size, number - 1)
        obs, act, next_obs = batch["obs"], batch["act"], batch["next_obs"]

        with torch.no_grad():
            epsilon = torch.clamp(torch.randn_like(act) * target_noise, -noise_clip, noise_clip)
            a2 = ac_targ.pi(next_obs) + epsilon * (high - low) / 2
            a2 = torch.max(torch.min(a2, high), low)
            q_targ = torch.min(ac_targ.q1(next_obs, a2), ac_targ.q2(next_obs, a2))
            backup = batch["rew"] + gamma * (1 - batch["terminated"]) * q_targ
        q1_error, q2_error = ac.q1(obs, act) - backup, ac.q2(obs, act) - backup
        loss_q = (q1_error**2).mean() + (q2_error**2).mean()
        q_optimizer.zero_grad()
        loss_q.backward()
        q_optimizer.step()
        losses_q.append(loss_q.item())
        if number % policy_delay:
            continue

        loss_pi = -ac.q1(obs, ac.pi(obs)).mean()
        pi_params = list(ac.pi.parameters())
        for p, grad in zip(pi_params, torch.autograd.grad(loss_pi, pi_params), strict=True):
            p.grad = grad
        pi_optimizer.step()
        losses_pi.append(loss_pi.item())

        with torch.no_grad():
            for p, p_targ in zip(ac.parameters(), ac_targ.parameters(), strict=True):
                p_targ.mul_(polyak).add_((1 - polyak) * p)
    return ac_targ, dict(LossPi=np.mean(losses_pi), LossQ=np.mean(losses_q))


# 25 updates in blocks of 5: with a delay of 5, the last one also updates the policy.
@pytest.mark.parametrize("policy_delay", [1, 2, 5])
def test_update_is_the_textbooks(engine, tmp_path, monkeypatch, policy_delay):
    copies = []  # the targets

    def copy_and_keep(module):
        copies.append(copy.deepcopy(module))
        return copies[-1]

    monkeypatch.setattr("spinup.algos.td3.deepcopy", copy_and_keep)
    settings = dict(pi_lr=3e-3, q_lr=1e-2, polyak=0.8, target_noise=0.4, noise_clip=0.5)
    ac = train_on_fixed_data("td3", 31, tmp_path, policy_delay=policy_delay, **settings)

    monkeypatch.setattr("torch.randn_like", Noise(31))
    expected = plain.initial("td3", Clock(action_space=BOX))
    targ, logged = _reference_updates(expected, 31, 25, policy_delay=policy_delay, **settings)
    close = dict(atol=1e-5, rtol=1e-5)
    q_grads = torch.cat([p.grad.flatten() for p in ac.q.parameters()])
    assert_close(plain.as_plain("td3", ac).state_dict(), expected.state_dict(), **close)
    # The policy step hasn't changed the critics' gradients.
    assert_close(q_grads, plain.critic_gradients(expected), **close)
    ac.pi, ac.q = copies
    assert_close(plain.as_plain("td3", ac).state_dict(), targ.state_dict(), **close)
    progress = read_progress(tmp_path)
    for key, value in logged.items():
        assert progress[key][0] == pytest.approx(value, abs=1e-4), key


def test_a_plain_pytorch_actor_critic_trains_the_same(engine, tmp_path):
    own = train_on_fixed_data("td3", 31, tmp_path / "own", actor_critic=plain.Deterministic)
    ac = train_on_fixed_data("td3", 31, tmp_path / "library")
    assert isinstance(own, plain.Deterministic)
    expected = plain.as_plain("td3", ac).state_dict()
    assert_close(own.state_dict(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("update_every", [1, 3])
def test_delay_counts_updates_over_the_whole_run(tmp_path, monkeypatch, update_every):
    order = []

    def spy(name, function):
        return lambda *args: order.append(name) or function(*args)

    # Without capture, since a replay doesn't call the functions of td3.py
    monkeypatch.setattr("spinup.algos.td3.capture", lambda update, device: update)
    monkeypatch.setattr("spinup.algos.td3.critic_loss", spy("q", critic_loss))
    monkeypatch.setattr("spinup.algos.td3.policy_loss", spy("pi", policy_loss))
    train(
        "td3",
        Clock,
        tmp_path,
        steps_per_epoch=9,
        epochs=1,
        update_after=1,
        update_every=update_every,
    )
    # Nine critic updates in blocks; every second one of the run is followed by a policy update.
    assert order == ["q", "q", "pi"] * 4 + ["q"]


# --- Exploration ----------------------------------------------------------------------------------


class _Middle(torch.nn.Module):
    """Always returns the midpoint of `BOX` as the action."""

    def __init__(self, *spaces):
        super().__init__()
        ac = plain.Deterministic(*spaces)
        self.pi, self.q1, self.q2 = ac.pi, ac.q1, ac.q2

    def act(self, obs):
        return (BOX.low + BOX.high) / 2


def test_noise_is_in_units_of_half_the_range_and_stays_in_bounds(tmp_path):
    made = Made(action_space=BOX)
    kwargs = dict(actor_critic=_Middle, start_steps=0, update_after=3000, epochs=1)
    train("td3", made, tmp_path, steps_per_epoch=2000, act_noise=0.5, **kwargs)
    actions = np.array(made.env.actions)
    scaled = (actions - (BOX.low + BOX.high) / 2) / ((BOX.high - BOX.low) / 2)
    # A Gaussian with deviation 0.5 exceeds the bounds with probability 4.6% and is then clipped.
    at_bounds = np.isclose(abs(scaled), 1, atol=1e-6).mean(axis=0)
    assert abs(scaled).max() <= 1 + 1e-6
    assert at_bounds == pytest.approx([0.046, 0.046], abs=0.02)
    assert np.median(abs(scaled), axis=0) == pytest.approx([0.337, 0.337], abs=0.03)
    assert np.array(made.test_env.actions) == pytest.approx(
        np.tile((BOX.low + BOX.high) / 2, (len(made.test_env.actions), 1))
    )


def test_without_noise_it_explores_with_the_policy_itself(tmp_path):
    made = Made(action_space=Box(-1, 1, (2,)))
    ac = train("td3", made, tmp_path, act_noise=0.0, start_steps=0, update_after=100)
    obs = torch.tensor([[t, min(t % 10, t)] for t in range(40)], dtype=torch.float32)
    assert np.array(made.env.actions) == pytest.approx(ac.act(obs), abs=1e-5)


# --- Logs -----------------------------------------------------------------------------------------


def test_columns_are_spinning_ups(tmp_path):
    train("td3", Clock, tmp_path)
    assert " ".join(read_progress(tmp_path)) == COLUMNS


# --- Learning -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_swings_the_pendulum_up(tmp_path, seed):
    td3(
        "Pendulum-v1",
        seed=seed,
        steps_per_epoch=1000,
        epochs=15,
        start_steps=1000,
        logger_kwargs=dict(output_dir=tmp_path),
    )
    assert read_progress(tmp_path)["AverageTestEpRet"].max() >= -200
