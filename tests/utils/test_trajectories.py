import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from spinup.utils.trajectories import TrajectoryBuffer, discounted_sums, gae

OBS = Box(-np.inf, np.inf, (2,), np.float32)
ACT = Box(-1, 1, (1,))


def naive_gae(rew, val, last_val, gamma, lam):
    """Computes equation 16 of arXiv:1506.02438 literally, as a sum over all later deltas."""
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
    """A value function that differs between observations."""
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
    """Stores paths of (rewards, terminal); returns their observations, including the last one."""
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
        from tests.utils.test_trajectories import ACT, OBS, PATHS, TrajectoryBuffer, fill, values
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
    for paths in (PATHS[:2], PATHS[2:]):  # as on a rank, each starts with new generators
        size = sum(len(rew) for rew, _ in paths)
        observations = fill(TrajectoryBuffer(OBS, ACT, size, 0.9, 0.8), paths)
        adv.append(expected_advantages(paths, observations, 0.9, 0.8)[0])
    adv = np.concatenate(adv)
    expected = (adv - adv.mean()) / adv.std()
    np.testing.assert_allclose(seen[0] + seen[1], expected, rtol=1e-4, atol=1e-5)


# --- Minibatches ---


def full(size):
    buf = TrajectoryBuffer(OBS, ACT, size, gamma=0.9, lam=0.8)
    fill(buf, [(np.arange(size, dtype=float).tolist(), False)])
    buf.get(values)
    return buf


def test_without_a_size_the_minibatch_is_the_epoch():
    buf = full(7)
    state = np.random.default_rng(0)
    assert list(buf.minibatches(None, state)) == [(7, 7, True)]
    assert buf.part(7) is buf.data
    assert state.random() == np.random.default_rng(0).random()  # nothing was drawn


@pytest.mark.parametrize(
    "size, lengths", [(20, [20]), (10, [10, 10]), (7, [10, 10]), (6, [7, 7, 6]), (1, [1] * 20)]
)
def test_minibatches_divide_the_epoch_anew_at_each_pass(size, lengths):
    buf, rng, orders = full(20), np.random.default_rng(0), []
    for _ in range(3):
        parts = []
        for n, total, is_last in buf.minibatches(size, rng):
            assert n == total and is_last == (len(parts) == len(lengths) - 1)
            parts.append({k: v.clone() for k, v in buf.part(n).items()})
        assert [len(part["ret"]) for part in parts] == lengths
        order = torch.cat([part["ret"] for part in parts]).tolist()
        assert sorted(order) == sorted(buf.data["ret"].tolist())
        rows = [buf.data["ret"].tolist().index(x) for x in order]
        for key, value in buf.data.items():
            assert torch.equal(torch.cat([part[key] for part in parts]), value[rows]), key
        orders.append(order)
    assert len(set(map(tuple, orders))) == (3 if len(lengths) > 1 else 1)


def test_minibatches_stay_in_place():
    buf, rng, places = full(20), np.random.default_rng(0), set()
    for _ in range(3):
        for n, _, _ in buf.minibatches(6, rng):
            places.add((n, buf.part(n)["obs"].data_ptr()))
    assert len(places) == 2  # one for each of the two lengths


def test_ranks_share_each_minibatch(tmp_path, run_on_ranks):
    code = """
        import json
        import numpy as np
        from tests.utils.test_trajectories import full
        from spinup.utils.mpi_tools import proc_id
        parts = list(full([11, 8][proc_id()]).minibatches(6, np.random.default_rng(proc_id())))
        json.dump(parts, open(f"rank{proc_id()}.json", "w"))
    """
    run_on_ranks(2, code)
    seen = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    assert seen[0] == [[4, 7, False], [4, 7, False], [3, 5, True]]
    assert seen[1] == [[3, 7, False], [3, 7, False], [2, 5, True]]


@pytest.mark.cuda
def test_the_data_go_to_the_device_that_is_asked_for():
    buf = TrajectoryBuffer(OBS, ACT, 3, gamma=0.9, lam=0.8)
    fill(buf, [([1.0, 2.0, 3.0], False)])
    assert {v.device.type for v in buf.get(values, "cuda").values()} == {"cuda"}
