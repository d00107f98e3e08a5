from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from torch.testing import assert_close

from spinup import ppo
from spinup.algos.ppo import policy_loss, value_loss
from spinup.fast.capture import Captured
from spinup.utils.mpi_tools import mpi_avg
from spinup.utils.trajectories import TrajectoryBuffer
from tests.algos import plain
from tests.algos.envs import Clock, Made
from tests.algos.fixed_data import BOX, train_on_fixed_data, trajectories
from tests.algos.runs import read_progress, train

COLUMNS = (
    "Epoch AverageEpRet StdEpRet MaxEpRet MinEpRet EpLen AverageVVals StdVVals MaxVVals "
    "MinVVals TotalEnvInteracts LossPi LossV DeltaLossPi DeltaLossV Entropy KL ClipFrac "
    "StopIter Time"
)


# --- Losses ---------------------------------------------------------------------------------------


def test_policy_loss_by_hand():
    ratio = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5])
    adv = torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0])
    logp_old = torch.tensor([-1.0, -2.0, -1.0, -2.0, -1.0])
    loss, info = policy_loss(logp_old + ratio.log(), logp_old, adv, clip_ratio=0.2)
    # Terms: 2, 1.2 (clipped), 0.5, -1.5, -0.8 (clipped).
    assert loss.item() == pytest.approx(-(2 + 1.2 + 0.5 - 1.5 - 0.8) / 5)
    assert info["ClipFrac"].item() == pytest.approx(4 / 5)
    assert info["KL"].item() == pytest.approx(-(2 * np.log(1.5) + 2 * np.log(0.5)) / 5)


def test_policy_loss_has_no_gradient_where_the_clip_binds():
    logp = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5])).requires_grad_()
    adv = torch.tensor([1.0, -1.0, 1.0, -1.0])
    policy_loss(logp, torch.zeros(4), adv, clip_ratio=0.2)[0].backward()
    # Elsewhere, the gradient with respect to logp is -ratio * adv / batch.
    assert logp.grad.tolist() == pytest.approx([0, 0.375, -0.125, 0])


def test_value_loss_by_hand():
    loss = value_loss(torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 4.0, -1.0]))
    assert loss.item() == pytest.approx(5 / 3)


# --- The update -----------------------------------------------------------------------------------


def _reference_update(ac, data, gamma, lam, clip_ratio, pi_lr, vf_lr, iters, target_kl):
    """Does Spinning Up's update, with GAE by its definition, and returns the logged values."""
    obs, act, adv, ret, val = plain.estimates(ac, data, gamma, lam)
    with torch.no_grad():
        logp_old = ac.pi(obs, act)[1]

    def losses():
        pi, logp = ac.pi(obs, act)
        ratio = torch.exp(logp - logp_old)
        clipped = torch.clamp(ratio, 1 - clip_ratio, 1 + clip_ratio)
        loss_pi = -torch.min(ratio * adv, clipped * adv).mean()
        is_clipped = (ratio > 1 + clip_ratio) | (ratio < 1 - clip_ratio)
        entropy = pi.entropy().sum(-1).mean() if act.dim() > 1 else pi.entropy().mean()
        kl = (logp_old - logp).mean()
        return loss_pi, ((ac.v(obs) - ret) ** 2).mean(), kl, is_clipped.float().mean(), entropy

    pi_optimizer = torch.optim.Adam(ac.pi.parameters(), lr=pi_lr)
    vf_optimizer = torch.optim.Adam(ac.v.parameters(), lr=vf_lr)
    loss_pi_old, loss_v_old, _, _, entropy = (x.item() for x in losses())
    stop_iter = iters
    for i in range(iters):
        loss_pi, _, kl, _, _ = losses()
        if kl.item() > 1.5 * target_kl:
            stop_iter = i
            break
        pi_optimizer.zero_grad()
        loss_pi.backward()
        pi_optimizer.step()
    for _ in range(iters):
        vf_optimizer.zero_grad()
        losses()[1].backward()
        vf_optimizer.step()
    loss_pi, loss_v, kl, clip_frac, _ = (x.item() for x in losses())
    return dict(
        AverageVVals=val.mean(),
        LossPi=loss_pi_old,
        LossV=loss_v_old,
        DeltaLossPi=loss_pi - loss_pi_old,
        DeltaLossV=loss_v - loss_v_old,
        Entropy=entropy,
        KL=kl,
        ClipFrac=clip_frac,
        StopIter=stop_iter,
    )


@pytest.mark.parametrize("target_kl, stops_early", [(1e-3, True), (1.0, False)])
@pytest.mark.parametrize("name", ["ppo", "ppo-discrete"])
def test_update_is_the_textbooks_and_logs_its_end(engine, tmp_path, name, target_kl, stops_early):
    settings = dict(gamma=0.9, lam=0.8, clip_ratio=0.1, pi_lr=1e-2, vf_lr=1e-2, target_kl=target_kl)
    iters = dict(train_pi_iters=12, train_v_iters=12)
    ac = train_on_fixed_data(name, 61, tmp_path, epochs=1, **iters, **settings)

    env = Clock(action_space=Discrete(3) if name == "ppo-discrete" else BOX)
    expected = plain.initial("ppo", env)
    data = trajectories(61, discrete=name == "ppo-discrete")
    logged = _reference_update(expected, data, iters=12, **settings)
    assert (logged["StopIter"] < 12) == stops_early
    assert_close(
        plain.as_plain("ppo", ac).state_dict(), expected.state_dict(), atol=1e-5, rtol=1e-5
    )
    progress = read_progress(tmp_path)
    for key, value in logged.items():
        assert progress[key][0] == pytest.approx(value, abs=1e-5), key


@pytest.mark.parametrize("name", ["ppo", "ppo-discrete"])
def test_a_plain_pytorch_actor_critic_trains_the_same(engine, tmp_path, name):
    own = train_on_fixed_data(name, 61, tmp_path / "own", actor_critic=plain.OnPolicy)
    ac = train_on_fixed_data(name, 61, tmp_path / "library")
    assert isinstance(own, plain.OnPolicy)
    expected = plain.as_plain("ppo", ac).state_dict()
    assert_close(own.state_dict(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["ppo", "ppo-discrete"])
def test_minibatches_entropy_bonus_and_schedule_are_the_textbooks(
    engine, tmp_path, name, monkeypatch
):
    """Compares with plain steps on the minibatches that the run drew."""
    batches, part = [], TrajectoryBuffer.part

    def keep(self, num_steps):
        batches.append({k: v.clone() for k, v in part(self, num_steps).items()})
        return part(self, num_steps)

    monkeypatch.setattr(TrajectoryBuffer, "part", keep)
    monkeypatch.setattr("spinup.algos.ppo.capture", lambda update, _: Captured(update, False))
    settings = dict(minibatch_size=20, ent_coef=0.05, lr_schedule="linear", target_kl=np.inf)
    ac = train_on_fixed_data(
        *(name, 61, tmp_path),
        **dict(epochs=4, train_pi_iters=3, train_v_iters=2, pi_lr=1e-2, vf_lr=2e-2, **settings),
    )
    expected = plain.initial("ppo", Clock(action_space=Discrete(3) if "-" in name else BOX))
    pi_optimizer = torch.optim.Adam(expected.pi.parameters())
    vf_optimizer = torch.optim.Adam(expected.v.parameters())
    # In each epoch: three passes of three minibatches for the policy, then two for the values
    assert [len(x["adv"]) for x in batches] == [21, 20, 20] * 20
    for i, batch in enumerate(batches):
        epoch, step = divmod(i, 15)
        left = 1 - epoch / 4
        if step < 9:
            pi, logp = expected.pi(batch["obs"], batch["act"])
            ratio = torch.exp(logp - batch["logp_old"])
            objective = torch.min(ratio * batch["adv"], ratio.clamp(0.8, 1.2) * batch["adv"])
            entropy = pi.entropy() if "-" in name else pi.entropy().sum(-1)
            loss, optimizer, lr = -objective.mean() - 0.05 * entropy.mean(), pi_optimizer, 1e-2
        else:
            loss = ((expected.v(batch["obs"]) - batch["ret"]) ** 2).mean()
            optimizer, lr = vf_optimizer, 2e-2
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr * left
        optimizer.step()
    got = plain.as_plain("ppo", ac).state_dict()
    assert_close(got, expected.state_dict(), atol=1e-5, rtol=1e-4)


def test_with_minibatches_the_kl_of_a_whole_pass_stops_the_policys_steps(tmp_path, monkeypatch):
    settings = dict(minibatch_size=10, epochs=1, pi_lr=1e-3, train_pi_iters=30)
    divergences = []

    def keep(x, weight):
        divergences.extend([x] if isinstance(x, float) else [])
        return mpi_avg(x, weight)

    with monkeypatch.context() as patch:
        patch.setattr("spinup.algos.ppo.mpi_avg", keep)
        train_on_fixed_data("ppo", 61, tmp_path / "all", target_kl=np.inf, **settings)
    assert len(divergences) == 30  # one for each pass, not for each of its six minibatches
    assert read_progress(tmp_path / "all")["StopIter"] == 30
    limit = divergences[0] / 1.5
    assert limit > 0
    for factor, stops in ((0.99, True), (1.01, False)):
        folder = tmp_path / str(factor)
        train_on_fixed_data("ppo", 61, folder, target_kl=factor * limit, **settings)
        assert (read_progress(folder)["StopIter"][0] == 0) == stops
        # The steps on a pass's other minibatches have been taken by then
        assert read_progress(folder)["DeltaLossPi"][0] != 0


def test_no_iterations_train_nothing(engine, tmp_path):
    env = Clock(length=5)
    start = plain.initial("ppo", env).state_dict()

    ac = train("ppo", lambda: env, tmp_path / "neither", train_pi_iters=0, train_v_iters=0)
    assert_close(plain.as_plain("ppo", ac).state_dict(), start, atol=0, rtol=0)
    progress = read_progress(tmp_path / "neither")
    for key in ("KL", "DeltaLossPi", "DeltaLossV", "ClipFrac", "StopIter"):
        assert progress[key].tolist() == [0, 0], key
    assert np.isfinite(progress["LossV"]).all()

    for iters, still in [("train_v_iters", "v."), ("train_pi_iters", "pi.")]:
        ac = train("ppo", lambda: env, tmp_path / iters, **{iters: 0})
        for key, value in plain.as_plain("ppo", ac).state_dict().items():
            assert torch.equal(value, start[key]) == key.startswith(still), key


def test_equal_advantages_are_no_nan(tmp_path):
    # Episodes have one step, equal rewards and value zero, so the advantages' deviation is zero.
    ac = train("ppo", lambda: Clock(length=1), tmp_path, actor_critic=plain.known_value(0.0))
    assert all(p.isfinite().all() for p in ac.parameters())
    assert read_progress(tmp_path)["LossPi"].tolist() == [0, 0]


# --- Logs -----------------------------------------------------------------------------------------


def test_columns_are_spinning_ups(tmp_path):
    train("ppo", Clock, tmp_path)
    assert " ".join(read_progress(tmp_path)) == COLUMNS


def test_returns_and_lengths_are_those_of_finished_episodes(tmp_path):
    # Reward t at step t. Episodes of 8 steps return 36 and 100; the third is unfinished.
    train("ppo", Made(length=8, rew=float), tmp_path, epochs=1)
    progress = read_progress(tmp_path)
    names = ("AverageEpRet", "StdEpRet", "MaxEpRet", "MinEpRet", "EpLen")
    assert [progress[name][0] for name in names] == [68, 32, 100, 36, 8]


# --- Learning -------------------------------------------------------------------------------------


def _best_return(folder):
    return np.nanmax(read_progress(folder)["AverageEpRet"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_solves_cartpole(tmp_path, seed):
    ppo("CartPole-v1", seed=seed, logger_kwargs=dict(output_dir=tmp_path))
    assert _best_return(tmp_path) >= 475


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_solves_cartpole_on_two_ranks(tmp_path, run_on_ranks, seed):
    code = f"""
        from spinup import ppo
        ppo("CartPole-v1", seed={seed}, logger_kwargs=dict(output_dir={str(tmp_path / "run")!r}))
    """
    run_on_ranks(2, code, timeout=800)
    assert _best_return(tmp_path / "run") >= 475
