import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from spinup.utils import buffers
from spinup.utils.buffers import ReplayBuffer, free_memory

OBS = Box(-np.inf, np.inf, (2,), np.float32)
ACT = Box(-1, 1, (1,))


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


@pytest.mark.filterwarnings("ignore:.* ranks on .* core")
def test_memory_is_that_of_the_ranks_of_one_host(run_on_ranks):
    code = """
        import numpy as np
        from gymnasium.spaces import Box
        from spinup.utils import buffers
        from spinup.utils.mpi_tools import num_procs, sum_on_host

        assert (num_procs(), sum_on_host(1)) == (4, {local})
        buffers.free_memory = lambda: {local} * 36e3  # 9 numbers of 4 bytes each
        spaces = Box(-1, 1, (3,)), Box(-1, 1, (1,))
        buffers.ReplayBuffer(*spaces, 1000, np.random.default_rng(0))
        try:
            buffers.ReplayBuffer(*spaces, 1001, np.random.default_rng(0))
        except ValueError as error:
            ranks = "for the {local} ranks of this host"
            assert f"takes {{{local} * 36036:,}} bytes {{ranks}}" in str(error), error
            assert "replay_size=4004 takes" in str(error)
            assert f"only {{{local} * 36000:,}} are" in str(error), error
        else:
            raise AssertionError("not refused")
    """
    run_on_ranks(4, code.format(local=4))
    # MPICH treats the even and the odd ranks as two hosts
    run_on_ranks(4, code.format(local=2), env={"MPIR_CVAR_ODD_EVEN_CLIQUES": "1"})
