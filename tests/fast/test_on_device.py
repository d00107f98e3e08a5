"""Tests of data that stays on a GPU, with the CPU in place of the GPU."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from spinup.fast import graphs
from spinup.fast.on_device import _LOG_ROWS, DeviceLog, DeviceRows
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.logx import EpochLogger
from spinup.utils.optim import Adam

CPU = torch.device("cpu")
BOX = gym.spaces.Box(-1, 1, (2,))


@pytest.fixture
def on_device(monkeypatch):
    """Makes a buffer, a log and an optimizer keep their data on the "GPU"."""
    monkeypatch.setattr(graphs, "are_used_on", lambda device: True)
    monkeypatch.setattr("spinup.utils.optim._is_on_gpu", lambda params: True)


def filled(num_rows, size=10, seed=0):
    buf = ReplayBuffer(BOX, BOX, size, np.random.default_rng(seed))
    for i in range(num_rows):
        store(buf, i)
    return buf


def store(buf, i):
    buf.store(np.full(2, i), np.full(2, -i), float(i), np.full(2, i + 0.5), i % 2 == 0)


# --- Replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [[1], [3, 4], [10], [7, 7, 7], [25], [0, 3, 0, 12, 1, 9, 10, 30]])
def test_the_copy_follows_the_ring(new):
    buf = ReplayBuffer(BOX, BOX, 10, np.random.default_rng(0))
    copy, i = DeviceRows(buf.rows, CPU), 0
    for count in new:
        for _ in range(count):
            store(buf, i)
            i += 1
        copy.update(buf.num_stored, buf.ptr)
        assert copy.size.item() == buf.size == min(i, 10)
        assert torch.equal(copy.rows[: buf.size], torch.from_numpy(buf.rows[: buf.size]))


def test_only_new_rows_are_copied():
    buf = filled(4)
    copy = DeviceRows(buf.rows, CPU)
    copy.update(buf.num_stored, buf.ptr)
    buf.rows[:4] = -1  # isn't new
    store(buf, 4)
    copy.update(buf.num_stored, buf.ptr)
    assert copy.rows[:5, 0].tolist() == [0, 1, 2, 3, 4]


def test_draws_are_uniform_over_what_is_stored(on_device):
    buf = filled(7)
    counts = np.zeros(7)
    for _ in range(100):
        batch = buf.sample_batch(350)
        counts += np.bincount(batch["rew"].int().numpy(), minlength=7)  # fails beyond 7
        assert torch.equal(batch["obs"][:, 0], batch["rew"])
        assert torch.equal(batch["next_obs"][:, 1], batch["rew"] + 0.5)
        assert torch.equal(batch["act"][:, 0], -batch["rew"])
        assert torch.equal(batch["terminated"] == 1, batch["rew"] % 2 == 0)
    chi_square = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_square < 22.5  # the 99.9th percentile with 6 degrees of freedom


def test_draws_see_rows_that_were_stored_since(on_device):
    buf = filled(1)
    assert buf.sample_batch(50)["rew"].unique().tolist() == [0]
    store(buf, 1)
    assert buf.sample_batch(50)["rew"].unique().tolist() == [0, 1]
    for i in range(2, 22):
        store(buf, i)
    assert buf.sample_batch(1000)["rew"].unique().tolist() == list(range(12, 22))


def test_draws_come_from_torchs_generator(on_device):
    buf = filled(10)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(buf.sample_batch(20)["rew"].tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_restored_buffer_is_copied_again(on_device):
    buf, other = filled(8), filled(25, seed=1)
    buf.sample_batch(5), other.sample_batch(5)
    state = buf.state_dict()
    other.load_state_dict(state | dict(rows=state["rows"].copy()))
    assert other.sample_batch(1000)["rew"].unique().tolist() == list(range(8))
    store(other, 8)
    assert other.sample_batch(1000)["rew"].unique().tolist() == list(range(9))


def test_a_buffer_without_room_on_the_device_stays_on_the_cpu(on_device, monkeypatch):
    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    buf = filled(5)
    with monkeypatch.context() as patch:
        patch.setattr(DeviceRows, "__init__", refuse)
        with pytest.warns(
            UserWarning, match=r"The replay buffer \(320 bytes\) does not fit .* cpu"
        ):
            buf.sample_batch(50)
    assert buf.sample_batch(500)["rew"].unique().tolist() == list(range(5))


def test_an_emptied_buffer_has_no_rows_on_the_device(on_device):
    buf, empty = filled(8), filled(0)
    buf.sample_batch(5)
    buf.load_state_dict(empty.state_dict())
    buf._update_device()
    assert buf._on_device.size.item() == 0


def test_another_device_gets_a_copy_of_its_own(on_device):
    buf = filled(8)
    buf.sample_batch(5)
    first = buf._on_device
    assert buf.sample_batch(6)["rew"].device.type == "cpu" and buf._on_device is first
    buf._prepare(5, "meta")
    assert buf._on_device.rows.device.type == "meta"


def test_without_graphs_the_cpu_draws():
    buf, again = filled(10), filled(10)
    torch.manual_seed(1)
    expected = again.rng.integers(10, size=20).tolist()
    assert buf.sample_batch(20)["rew"].tolist() == expected
    assert buf._on_device is None


# --- Log ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [0, 1, _LOG_ROWS - 1, _LOG_ROWS, _LOG_ROWS + 1, 2500])
def test_values_arrive_in_their_order(calls):
    """Also if there is room for few rows, and if an update calls `add` more than once."""
    kept = {"a": [], "b": []}
    values = [dict(a=torch.tensor(float(i)), b=torch.tensor([[i, -i]])) for i in range(calls + 1)]
    log = DeviceLog(values[0], lambda name, array: kept[name].extend(array.tolist()))
    for value in values[:calls]:
        log.add(value)
    log.drain()
    assert kept["a"] == list(range(calls))
    assert kept["b"] == [x for i in range(calls) for x in (i, -i)]
    log.drain()
    assert len(kept["a"]) == calls


@pytest.mark.parametrize("times", [1, 2, 3, 7])
@pytest.mark.parametrize("num_rows", [7, 10, 1024])
def test_a_replay_makes_all_calls_of_an_update_together(times, num_rows):
    """First all that are to be made before, then the rows, then all that are to be made after."""
    kept, number = [], 0
    log = DeviceLog(dict(a=torch.zeros(1)), lambda name, array: kept.extend(array.tolist()))
    log._memory = log._memory[:num_rows].clone()
    for update in range(500):
        for _ in range(times):
            log._make_room()
        for _ in range(times):
            log._memory.index_copy_(0, log._next, torch.tensor([[float(number)]]))
            log._next.add_(1)
            number += 1
        for _ in range(times):
            log._count()
        if update == 250:
            log.drain()
    log.drain()
    assert kept == list(range(number))


def test_more_rows_in_an_update_than_there_is_room_for_are_refused():
    log = DeviceLog(dict(Q=torch.zeros(2**19)), lambda name, array: None)
    log._make_room(), log._make_room()
    with pytest.raises(ValueError, match="stores Q more than 2 times: store one tensor"):
        log._make_room()


def test_large_values_are_not_gathered_on_the_device(on_device):
    logger = EpochLogger()
    logger.store(V=torch.arange(5000.0), Q=torch.arange(4096.0))
    assert [log.names for log in logger._on_device.values()] == [["Q"]]
    assert logger.get_stats("V")[0] == pytest.approx(2499.5)
    assert logger.get_stats("Q")[0] == pytest.approx(2047.5)


def test_a_row_of_the_log_is_the_same(monkeypatch):
    loggers = EpochLogger(), EpochLogger()
    torch.manual_seed(0)
    for epoch in range(2):
        values = [(torch.randn(3), torch.randn(()), np.float32(i)) for i in range(1500)]
        for logger, is_used in zip(loggers, (True, False), strict=True):
            monkeypatch.setattr(graphs, "are_used_on", lambda device, is_used=is_used: is_used)
            for i, (q, loss, number) in enumerate(values):
                logger.store(Q=q, Loss=loss, Number=number)
                if i % 3 == 0:
                    logger.store(Loss=2 * loss)  # another combination of names
            logger.check_finite("Q", "Loss", where="a test")
            assert logger.get_stats("Q")[0] == pytest.approx(np.mean([x[0] for x in values]), 1e-5)
            logger.log_tabular("Q", with_min_and_max=True)
            logger.log_tabular("Loss", average_only=True)
            logger.log_tabular("Number", with_min_and_max=True)
            logger.dump_tabular()
        first, second = (logger.row for logger in loggers)
        assert first == pytest.approx(second, rel=1e-12), epoch


def test_nan_on_the_device_is_found(on_device):
    logger = EpochLogger()
    logger.store(Loss=torch.tensor(1.0))
    logger.store(Loss=torch.tensor(torch.nan))
    with pytest.raises(FloatingPointError, match=r"Loss is NaN or infinite \(1 values\) in here"):
        logger.check_finite("Loss", where="here")


def test_a_checkpoint_has_the_values_of_the_device(on_device):
    logger, other = EpochLogger(), EpochLogger()
    for i in range(5):
        logger.store(Q=torch.tensor([i, 10.0 * i]))
    state = logger.state_dict()
    assert state["samples"]["Q"].tolist() == [0, 0, 1, 10, 2, 20, 3, 30, 4, 40]
    other.load_state_dict(state)
    for x in (logger, other):
        x.store(Q=torch.tensor([7.0, 8.0]))
        assert x.get_stats("Q")[0] == pytest.approx(125 / 12)


# --- Adam -----------------------------------------------------------------------------------------


def test_steps_are_those_of_torch(on_device):
    torch.manual_seed(0)
    params = torch.nn.Parameter(torch.randn(100))
    oracle = torch.nn.Parameter(params.detach().clone())
    params.grad = torch.zeros(100)
    ours, theirs = Adam(params, 1e-2), torch.optim.Adam([oracle], 1e-2, fused=True)
    for i in range(200):
        if i == 100:  # a new learning rate, and a restart from a checkpoint
            ours.lr = theirs.param_groups[0]["lr"] = 1e-3
            state = {
                k: v.clone() if k.startswith("exp") else v for k, v in ours.state_dict().items()
            }
            ours = Adam(params, 5.0)
            ours.load_state_dict(state)
        grad = torch.randn(100) * 10.0 ** (i % 7 - 5)
        params.grad.copy_(grad)
        oracle.grad = grad.clone()
        ours.step()
        theirs.step()
        # The learning rate is a float32, as in torch's steps in a graph
        torch.testing.assert_close(params, oracle, rtol=1e-6, atol=1e-8)
    assert ours.steps == 200
    assert params._version > 0


def test_a_learning_rate_may_be_any_number(on_device):
    params = torch.nn.Parameter(torch.ones(3))
    params.grad = torch.ones(3)
    for lr in (1, np.float64(0.5), 0.25):
        before = params.detach().clone()
        adam = Adam(params, lr)
        adam.step()
        torch.testing.assert_close(before - params, torch.full((3,), float(lr)))
        adam.lr = 1e-3
        adam.step()
        torch.testing.assert_close(before - params, torch.full((3,), float(lr) + 1e-3))


def test_moments_can_be_restored_between_steps(on_device):
    params = torch.nn.Parameter(torch.ones(3))
    params.grad = torch.ones(3)
    adam = Adam(params, 0.1)
    adam.step()
    state = {k: v.clone() if k.startswith("exp") else v for k, v in adam.state_dict().items()}
    before = params.detach().clone()
    adam.step()
    after = params.detach().clone()
    adam.load_state_dict(state)
    params.data.copy_(before)
    adam.step()
    assert torch.equal(params, after)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_gradient_is_skipped_and_reported(bad, on_device):
    params, oracle = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    params.grad, oracle.grad = torch.ones(3), torch.ones(3)
    ours, theirs = Adam(params, 0.1, loss="LossQ in Ant-v5"), torch.optim.Adam([oracle], 0.1)
    for i in range(4):
        params.grad.fill_(1.0 + i)
        ours.step()
        oracle.grad.fill_(1.0 + i)
        theirs.step()
        if i < 2:
            params.grad[1] = bad
            ours.step()
    torch.testing.assert_close(params, oracle)
    with pytest.raises(
        FloatingPointError, match="LossQ in Ant-v5 was NaN or infinite in 2 updates"
    ):
        ours.state_dict()


def test_the_largest_gradient_is_not_bad(on_device):
    params = torch.nn.Parameter(torch.ones(2))
    params.grad = torch.tensor([3.4e38, 1e-3])
    adam = Adam(params, 0.1)
    adam.step()
    assert params[1].item() == pytest.approx(0.9, abs=1e-5)
    assert adam.state_dict()["steps"] == 1


# --- On a GPU -------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_a_gpu_draws_logs_and_steps(monkeypatch):
    monkeypatch.setenv("SPINUP_CUDA_GRAPHS", "1")
    gpu = torch.device("cuda", 0)
    buf = filled(7)
    assert buf.sample_batch(1000, gpu)["rew"].unique().tolist() == list(range(7))
    assert buf._on_device.rows.device == gpu
    logger = EpochLogger()
    for i in range(1100):
        logger.store(Q=torch.tensor([i, 2.0 * i], device=gpu))
    assert logger.get_stats("Q")[0] == pytest.approx(1.5 * 549.5)
    params = torch.nn.Parameter(torch.randn(100, device=gpu))
    oracle = torch.nn.Parameter(params.detach().clone())
    params.grad = torch.zeros(100, device=gpu)
    ours, theirs = Adam(params, 1e-2), torch.optim.Adam([oracle], 1e-2, fused=True)
    for _ in range(50):
        grad = torch.randn(100, device=gpu)
        params.grad.copy_(grad)
        oracle.grad = grad
        ours.step()
        theirs.step()
    torch.testing.assert_close(params, oracle)
