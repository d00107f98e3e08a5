from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from torch.testing import assert_close

from spinup import vpg
from spinup.algos.vpg import policy_loss, value_loss
from tests.algos import plain
from tests.algos.envs import Clock
from tests.algos.fixed_data import BOX, train_on_fixed_data, trajectories
from tests.algos.runs import read_progress, train

COLUMNS = (
    "Epoch AverageEpRet StdEpRet MaxEpRet MinEpRet EpLen AverageVVals StdVVals MaxVVals "
    "MinVVals TotalEnvInteracts LossPi LossV DeltaLossPi DeltaLossV Entropy KL Time"
)
SETTINGS = dict(gamma=0.9, lam=0.8, pi_lr=5e-2, vf_lr=1e-2, train_v_iters=12)


# --- Losses ---------------------------------------------------------------------------------------


def test_policy_loss_by_hand():
    logp = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    loss = policy_loss(logp, torch.tensor([2.0, -1.0, 0.5]))
    assert loss.item() == pytest.approx(-(-2 + 2 - 0.25) / 3)
    loss.backward()
    assert logp.grad.tolist() == pytest.approx([-2 / 3, 1 / 3, -0.5 / 3])


def test_value_loss_by_hand():
    loss = value_loss(torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 4.0, -1.0]))
    assert loss.item() == pytest.approx(5 / 3)


# --- The update -----------------------------------------------------------------------------------


def _reference_updates(ac, data, epochs, gamma, lam, pi_lr, vf_lr, train_v_iters):
    """Does Spinning Up's updates on the same data, and returns the last one's logged values."""
    pi_optimizer = torch.optim.Adam(ac.pi.parameters(), lr=pi_lr)
    vf_optimizer = torch.optim.Adam(ac.v.parameters(), lr=vf_lr)
    for _ in range(epochs):
        obs, act, adv, ret, val = plain.estimates(ac, data, gamma, lam)

        def losses(obs=obs, act=act, adv=adv, ret=ret):
            pi, logp = ac.pi(obs, act)
            entropy = pi.entropy().sum(-1) if act.dim() > 1 else pi.entropy()
            return -(logp * adv).mean(), ((ac.v(obs) - ret) ** 2).mean(), logp, entropy.mean()

        loss_pi_old, loss_v_old, logp_old, entropy = (x.detach() for x in losses())
        pi_optimizer.zero_grad()
        losses()[0].backward()
        pi_optimizer.step()
        for _ in range(train_v_iters):
            vf_optimizer.zero_grad()
            losses()[1].backward()
            vf_optimizer.step()
        loss_pi, loss_v, logp, _ = (x.detach() for x in losses())
    return dict(
        AverageVVals=val.mean(),
        LossPi=loss_pi_old,
        LossV=loss_v_old,
        DeltaLossPi=loss_pi - loss_pi_old,
        DeltaLossV=loss_v - loss_v_old,
        Entropy=entropy,
        KL=(logp_old - logp).mean(),
    )


@pytest.mark.parametrize("name", ["vpg", "vpg-discrete"])
def test_update_is_the_textbooks_and_logs_its_end(engine, tmp_path, name):
    ac = train_on_fixed_data(name, 61, tmp_path, epochs=4, **SETTINGS)

    env = Clock(action_space=Discrete(3) if name == "vpg-discrete" else BOX)
    expected = plain.initial("vpg", env)
    data = trajectories(61, discrete=name == "vpg-discrete")
    logged = _reference_updates(expected, data, epochs=4, **SETTINGS)
    close = dict(atol=1e-5, rtol=1e-5)
    assert_close(plain.as_plain("vpg", ac).state_dict(), expected.state_dict(), **close)
    progress = read_progress(tmp_path)
    for key, value in logged.items():
        assert progress[key][-1] == pytest.approx(value.item(), abs=1e-5), key
    # They are measured after the step, unlike Spinning Up's.
    assert abs(progress["KL"][-1]) > 1e-3 and progress["DeltaLossPi"][-1] < -1e-3


@pytest.mark.parametrize("name", ["vpg", "vpg-discrete"])
def test_a_plain_pytorch_actor_critic_trains_the_same(engine, tmp_path, name):
    own = train_on_fixed_data(name, 61, tmp_path / "own", actor_critic=plain.OnPolicy)
    ac = train_on_fixed_data(name, 61, tmp_path / "library")
    assert isinstance(own, plain.OnPolicy)
    expected = plain.as_plain("vpg", ac).state_dict()
    assert_close(own.state_dict(), expected, atol=1e-5, rtol=1e-5)


def test_without_iterations_the_value_function_stays(engine, tmp_path):
    env = Clock(length=5)
    start = plain.initial("vpg", env).state_dict()
    ac = train("vpg", lambda: env, tmp_path, train_v_iters=0)
    for key, value in plain.as_plain("vpg", ac).state_dict().items():
        assert torch.equal(value, start[key]) == key.startswith("v."), key
    progress = read_progress(tmp_path)
    assert progress["DeltaLossV"].tolist() == [0, 0]
    assert np.isfinite(progress["LossV"]).all() and (progress["KL"] != 0).all()


def test_equal_advantages_train_no_policy(tmp_path):
    # Episodes have one step, equal rewards and value zero, so the advantages' deviation is zero.
    env = Clock(length=1)
    start = plain.initial("vpg", env).pi.state_dict()
    ac = train("vpg", lambda: env, tmp_path, actor_critic=plain.known_value(0.0), epochs=1)
    assert_close(ac.pi.state_dict(), start, atol=0, rtol=0)
    progress = read_progress(tmp_path)
    for key in ("LossPi", "DeltaLossPi", "KL"):
        assert progress[key].tolist() == [0], key


def test_a_learning_rate_beyond_reason_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"DeltaLossPi is NaN .* epoch 1 .* nothing of th"):
        train("vpg", Clock, tmp_path, pi_lr=1e38)
    assert not (tmp_path / "pyt_save").exists()


# --- Logs -----------------------------------------------------------------------------------------


def test_columns_are_spinning_ups(tmp_path):
    train("vpg", Clock, tmp_path)
    assert " ".join(read_progress(tmp_path)) == COLUMNS


# --- Learning -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_solves_cartpole(tmp_path, seed):
    vpg("CartPole-v1", seed=seed, pi_lr=1e-2, logger_kwargs=dict(output_dir=tmp_path))
    assert np.nanmax(read_progress(tmp_path)["AverageEpRet"]) >= 475
