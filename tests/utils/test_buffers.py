import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from spinup.utils import buffers
from spinup.utils.buffers import (
    ReplayBuffer,
    TrajectoryBuffer,
    discounted_sums,
    free_memory,
    gae,
)

OBS = Box(-np.inf, np.inf, (2,), np.float32)
ACT = Box(-1, 1, (1,))


def naive_gae(rew, val, last_val, gamma, lam):
    """Equation 16 of arXiv:1506.02438 as it stands: a sum over all later deltas."""
    val = [*val, last_val]
    n = len(rew)
    delta = [rew[t] + gamma * val[t + 1] - val[t] for t in range(n)]
    return [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]


def naive_returns(rew, last_val, gamma):
    n = len(rew)
    return [
        sum(gamma**k * rew[t + k] for k in range(n - t)) + gamma ** (n - t) * last_val
        for t in range(n)
    ]


def values(obs):
    """A value function that tells observations apart."""
    return 10 * obs[:, 0] + obs[:, 1]


# --- Advantages ---


def test_discounted_sums_by_hand():
    assert discounted_sums(np.array([1.0, 2.0, 4.0]), 0.5).tolist() == [3, 4, 4]
    assert discounted_sums(np.array([7.0]), 0.5).tolist() == [7]
    assert discounted_sums(np.zeros(0), 0.5).tolist() == []


def test_gae_by_hand():
    # Deltas: 1 + 0.5 * 4 - 2 = 1; 2 + 0.5 * 8 - 4 = 2.
    adv, ret = gae(np.array([1.0, 2.0]), np.array([2.0, 4.0]), 8.0, gamma=0.5, lam=0.5)
    assert adv.tolist() == [1.5, 2]
    assert ret.tolist() == [4, 6]


@pytest.mark.parametrize("gamma, lam", [(0.99, 0.97), (1, 1), (0, 0.5), (0.9, 0), (0.5, 1)])
@pytest.mark.parametrize("last_val", [0.0, -3.5])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_gae_is_the_sum_of_the_paper(gamma, lam, last_val, n):
    rng = np.random.default_rng(0)
    rew, val = rng.normal(size=n), rng.normal(size=n)
    adv, ret = gae(rew, val, last_val, gamma, lam)
    np.testing.assert_allclose(adv, naive_gae(rew, val, last_val, gamma, lam))
    np.testing.assert_allclose(ret, naive_returns(rew, last_val, gamma))
    if lam == 1:
        np.testing.assert_allclose(adv, ret - val)


# --- Trajectories ---


def fill(buf, paths):
    """Stores paths of (rewards, terminal); returns each one's observations, the last beyond it."""
    seen = []
    for rewards, terminal in paths:
        obs = np.random.default_rng(len(seen)).normal(size=(len(rewards) + 1, 2))
        for o, rew in zip(obs, rewards):
            buf.store(o, [rew / 10], rew)
        buf.finish_path(None if terminal else obs[-1])
        seen.append(np.float32(obs))
    return seen


PATHS = [([1.0, -2.0, 3.0], True), ([0.5, 4.0], False), ([2.0], True), ([-1.0, 1.0], False)]


def expected_advantages(paths, observations, gamma, lam):
    adv, ret = [], []
    for (rew, terminal), obs in zip(paths, observations):
        val = values(torch.tensor(obs)).tolist()
        last_val = 0.0 if terminal else val[-1]
        adv += naive_gae(rew, val[:-1], last_val, gamma, lam)
        ret += naive_returns(rew, last_val, gamma)
    return np.array(adv), np.array(ret)


def test_only_a_terminal_state_cuts_the_bootstrap():
    buf = TrajectoryBuffer(OBS, ACT, 8, gamma=0.9, lam=0.8)
    observations = fill(buf, PATHS)
    data = buf.get(values)
    adv, ret = expected_advantages(PATHS, observations, 0.9, 0.8)
    np.testing.assert_allclose(data["ret"], ret, rtol=1e-5)
    np.testing.assert_allclose(data["adv"], (adv - adv.mean()) / adv.std(), rtol=1e-4, atol=1e-5)
    obs = np.concatenate([o[:-1] for o in observations])
    np.testing.assert_array_equal(data["obs"], obs)
    np.testing.assert_allclose(data["val"], values(torch.tensor(obs)))
    np.testing.assert_allclose(data["act"][:, 0], np.concatenate([r for r, _ in PATHS]) / 10)
    assert {k: (v.shape, v.dtype) for k, v in data.items()} == {
        "obs": ((8, 2), torch.float32),
        "act": ((8, 1), torch.float32),
        "ret": ((8,), torch.float32),
        "val": ((8,), torch.float32),
        "adv": ((8,), torch.float32),
    }


@pytest.mark.parametrize("reward", [0.0, 1.0, -1e6])
def test_equal_advantages_become_zeros(reward):
    buf = TrajectoryBuffer(OBS, ACT, 4, gamma=0.0, lam=1.0)
    fill(buf, [([reward] * 4, True)])
    adv = buf.get(lambda obs: torch.zeros(len(obs)))["adv"]
    np.testing.assert_allclose(adv, np.zeros(4), atol=1e-4)


@pytest.mark.parametrize("n", [1, 2])
def test_one_step_normalises_too(n):
    buf = TrajectoryBuffer(OBS, ACT, n, gamma=0.99, lam=0.97)
    fill(buf, [(list(range(n)), False)])
    assert torch.isfinite(buf.get(values)["adv"]).all()


def test_a_buffer_is_empty_after_it_was_read_and_hands_the_next_epoch_over_in_the_same_memory():
    buf = TrajectoryBuffer(OBS, ACT, 3, gamma=0.9, lam=0.8)
    fill(buf, [([1.0, 2.0, 3.0], False)])
    first = buf.get(values)
    places = {k: v.data_ptr() for k, v in first.items()}
    observations = fill(buf, [([9.0], True), ([8.0, 7.0], True)])
    second = buf.get(values)
    _, ret = expected_advantages([([9.0], True), ([8.0, 7.0], True)], observations, 0.9, 0.8)
    np.testing.assert_allclose(second["ret"], ret, rtol=1e-5)
    assert {k: v.data_ptr() for k, v in second.items()} == places


def test_a_buffer_keeps_a_copy_of_what_it_is_given():
    buf = TrajectoryBuffer(OBS, ACT, 2, gamma=1.0, lam=1.0)
    obs = np.zeros(2, np.float32)
    for i in range(2):
        obs[:] = i
        buf.store(obs, [0.0], 0.0)
    buf.finish_path(obs)
    assert buf.get(values)["obs"].tolist() == [[0, 0], [1, 1]]


def test_discrete_actions_are_indices():
    buf = TrajectoryBuffer(OBS, Discrete(3, start=5), 2, gamma=0.9, lam=0.8)
    for act in (2, np.int64(0)):
        buf.store(np.zeros(2), act, 0.0)
    buf.finish_path(None)
    act = buf.get(values)["act"]
    assert act.tolist() == [2, 0]
    assert act.dtype == torch.int64


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_observations_of_any_dtype_reach_the_value_function_as_floats(dtype):
    space = Box(0, 9, (2,), dtype)
    buf = TrajectoryBuffer(space, ACT, 2, gamma=0.5, lam=1.0)
    for i in range(2):
        buf.store(np.full(2, i, dtype), [0.0], 1.0)
    buf.finish_path(np.array([4, 2], dtype))
    seen = []

    def value(obs):
        seen.append(obs.dtype)
        return values(obs)

    # 1 + 0.5 * 1 + 0.25 * 42, and 1 + 0.5 * 42
    assert buf.get(value)["ret"].tolist() == [12, 22]
    assert set(seen) == {torch.float32}


def test_two_ranks_normalise_as_one_does(run_on_ranks, tmp_path):
    run_on_ranks(
        2,
        """
        import json, sys
        import torch
        from tests.utils.test_buffers import ACT, OBS, PATHS, TrajectoryBuffer, fill, values
        from spinup.utils.mpi_tools import proc_id

        # Uneven: five steps and three.
        paths = [PATHS[:2], PATHS[2:]][proc_id()]
        buf = TrajectoryBuffer(OBS, ACT, [5, 3][proc_id()], gamma=0.9, lam=0.8)
        fill(buf, paths)
        json.dump(buf.get(values)["adv"].tolist(), open(f"rank{proc_id()}.json", "w"))
        """,
    )
    seen = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    assert [len(adv) for adv in seen] == [5, 3]
    adv = []
    for paths in (PATHS[:2], PATHS[2:]):  # each rank's generators start anew
        size = sum(len(rew) for rew, _ in paths)
        observations = fill(TrajectoryBuffer(OBS, ACT, size, 0.9, 0.8), paths)
        adv.append(expected_advantages(paths, observations, 0.9, 0.8)[0])
    adv = np.concatenate(adv)
    expected = (adv - adv.mean()) / adv.std()
    np.testing.assert_allclose(seen[0] + seen[1], expected, rtol=1e-4, atol=1e-5)


# --- Replay ---


def replay(size, n, seed=0):
    buf = ReplayBuffer(OBS, Box(-1, 1, (3,)), size, np.random.default_rng(seed))
    for i in range(n):
        buf.store([i, 0.5], [i + 0.1, i + 0.2, i + 0.3], -i, [i + 1, 1.5], i % 2 == 0)
    return buf


def test_a_transition_stays_together():
    batch = replay(10, 7).sample_batch(200)
    i = batch["obs"][:, 0]
    assert set(i.tolist()) == set(range(7))
    ones = torch.ones(200)
    expected = dict(
        obs=torch.stack([i, 0.5 * ones], 1),
        next_obs=torch.stack([i + 1, 1.5 * ones], 1),
        act=torch.stack([i + 0.1, i + 0.2, i + 0.3], 1),
        rew=-i,
        terminated=(i % 2 == 0).float(),
    )
    assert batch.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(batch[key], value)


@pytest.mark.parametrize("n, kept", [(3, {0, 1, 2}), (4, {0, 1, 2, 3}), (6, {2, 3, 4, 5})])
def test_a_full_ring_keeps_the_last(n, kept):
    buf = replay(4, n)
    assert buf.size == min(n, 4)
    assert set(buf.sample_batch(200)["obs"][:, 0].tolist()) == kept


def test_minibatches_are_uniform_and_come_from_the_generator():
    counts = np.bincount(replay(5, 5).sample_batch(20_000)["obs"][:, 0].long(), minlength=5)
    np.testing.assert_allclose(counts / 20_000, 0.2, atol=0.012)
    same, again, other = (replay(5, 5, seed).sample_batch(50)["rew"].tolist() for seed in (1, 1, 2))
    assert same == again != other


def test_a_minibatch_is_not_overwritten_by_what_comes_after():
    buf = replay(2, 2)
    batch = buf.sample_batch(4)
    before = batch["obs"].clone()
    for _ in range(2):
        buf.store([99, 99], [9, 9, 9], 9, [99, 99], False)
    assert torch.equal(batch["obs"], before)


@pytest.mark.cuda
def test_batches_go_to_the_device_that_is_asked_for():
    assert {v.device.type for v in replay(4, 4).sample_batch(2, "cuda").values()} == {"cuda"}
    buf = TrajectoryBuffer(OBS, ACT, 3, gamma=0.9, lam=0.8)
    fill(buf, [([1.0, 2.0, 3.0], False)])
    assert {v.device.type for v in buf.get(values, "cuda").values()} == {"cuda"}


def test_a_replay_buffer_that_can_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(buffers, "free_memory", lambda: 1e6)
    spaces = Box(-1, 1, (3,)), Box(-1, 1, (1,))
    ReplayBuffer(*spaces, 27_777, np.random.default_rng(0))  # 9 numbers of 4 bytes each
    with pytest.raises(
        ValueError, match=r"replay_size=27778 takes 1,000,008 bytes, but only 1,000,000 are free"
    ):
        ReplayBuffer(*spaces, 27_778, np.random.default_rng(0))


def test_the_replay_buffers_of_all_ranks_have_to_fit(run_on_ranks, tmp_path):
    run_on_ranks(
        2,
        """
        import numpy as np
        import pytest
        from spinup.utils import buffers
        from tests.utils.test_buffers import ACT, OBS

        buffers.free_memory = lambda: 1e6
        buffers.ReplayBuffer(OBS, ACT, 17_857, np.random.default_rng(0))  # 7 numbers of 4 bytes
        with pytest.raises(ValueError, match="replay_size=35716 takes 1,000,048 bytes"):
            buffers.ReplayBuffer(OBS, ACT, 17_858, np.random.default_rng(0))
        """,
    )


@pytest.mark.parametrize(
    "limits, free",
    [
        ({}, 2048e3),
        ({"memory.max": "max", "memory.current": "5"}, 2048e3),
        ({"memory.max": "900", "memory.current": "300"}, 600),
        ({"memory/memory.limit_in_bytes": "70", "memory/memory.usage_in_bytes": "50"}, 20),
    ],
)
def test_free_memory(limits, free, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    2000 kB\n")
    (tmp_path / "memory").mkdir()
    for name, text in limits.items():
        (tmp_path / name).write_text(text)
    assert free_memory(str(tmp_path / "meminfo"), str(tmp_path)) == free
    assert free_memory(str(tmp_path / "none"), str(tmp_path / "none")) == float("inf")
