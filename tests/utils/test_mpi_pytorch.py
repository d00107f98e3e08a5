import json
import os

import numpy as np
import pytest
import threadpoolctl
import torch
from torch import nn

from spinup.fast import kernels
from spinup.utils.flat import flatten
from spinup.utils.mpi_pytorch import (
    mpi_avg_grads,
    one_thread_per_rank,
    setup_pytorch_for_mpi,
    sync_params,
)
from spinup.utils.nets import mlp


def blas_threads():
    np.ones((2, 2)) @ np.ones((2, 2))
    return {
        lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"
    }


def network(seed):
    torch.manual_seed(seed)
    return mlp([3, 4, 1], nn.Tanh).double()


def batch():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(8, 3)))


# --- Threads ---


@pytest.fixture
def other_threads(monkeypatch):
    """Sets two threads for PyTorch, as in a notebook, and restores one thread afterwards."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)


def is_flushed():
    return (torch.tensor([1e-40]) * 1).item() == 0


def test_a_rank_has_one_thread_and_no_denormals(other_threads):
    with threadpoolctl.threadpool_limits(user_api="blas"):
        setup_pytorch_for_mpi()
        assert torch.get_num_threads() == 1
        assert blas_threads() == {1}
        assert is_flushed()


def test_more_threads_on_request(other_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with one_thread_per_rank():
        assert torch.get_num_threads() == 3


def test_a_block_puts_the_threads_back(other_threads):
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with one_thread_per_rank():
            assert torch.get_num_threads() == 1
            assert blas_threads() == {1}
            assert is_flushed()
        assert torch.get_num_threads() == 2
        assert blas_threads() == {min(2, os.cpu_count() or 1)}
        assert not is_flushed()
        with pytest.raises(KeyError), one_thread_per_rank():
            raise KeyError
        assert torch.get_num_threads() == 2
        assert not is_flushed()


# --- Parameters and gradients ---


def test_one_rank_keeps_its_own():
    net = network(0)
    net(batch()).sum().backward()
    params = [p.detach().clone() for p in net.parameters()]
    grads = [p.grad.clone() for p in net.parameters()]
    sync_params(net)
    mpi_avg_grads(net)
    mpi_avg_grads(net, weight=1.0)
    for p, param, grad in zip(net.parameters(), params, grads):
        assert torch.equal(p, param) and torch.equal(p.grad, grad)


def test_two_ranks_average_to_the_gradient_of_one(run_on_ranks, tmp_path):
    run_on_ranks(
        2,
        """
        import json
        import torch
        from tests.utils.test_mpi_pytorch import batch, flatten, network
        from spinup.utils.mpi_pytorch import mpi_avg_grads, sync_params
        from spinup.utils.mpi_tools import proc_id

        rank = proc_id()
        seen = {}


        def grads(net):
            return torch.cat([p.grad.flatten() for p in net.parameters()]).tolist()


        def params(net):
            return torch.cat([p.flatten() for p in net.parameters()]).tolist()


        # Different at first; as a module, and as a flat vector.
        module, flat = network(rank), network(rank)
        vector = flatten(flat)
        before = params(module)
        sync_params(module)
        sync_params(vector)
        seen["params"] = [before, params(module), params(flat)]

        for name, share, weight in [
            ("even", [slice(0, 4), slice(4, 8)], None),
            ("uneven", [slice(0, 3), slice(3, 8)], [3 / 8, 5 / 8][rank]),
        ]:
            part = batch()[share[rank]]
            for net in (module, flat):
                for p in net.parameters():
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()
                net(part).square().mean().backward()
            mpi_avg_grads(module, weight)
            mpi_avg_grads(vector, weight)
            seen[name] = [grads(module), grads(flat)]

        # Parameters that aren't contiguous are averaged and synchronised, too.
        turned = torch.nn.Parameter(torch.arange(6.0).view(2, 3).t() * (1 + rank))
        turned.grad = torch.ones(2, 3).t() * rank
        sync_params(turned)
        mpi_avg_grads(turned)
        seen["turned"] = [turned.tolist(), turned.grad.tolist()]

        # A vector of which the gradient is every other number, and a rank that has no part in it.
        strided = torch.nn.Parameter(torch.zeros(3))
        strided.grad = torch.full((6,), 2.0 + rank)[::2]
        mpi_avg_grads(strided, weight=1.0 - rank)
        seen["strided"] = strided.grad.tolist()
        json.dump(seen, open(f"rank{rank}.json", "w"))
        """,
    )
    seen = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    net = network(0)
    expected = flatten(net)
    net(batch()).square().mean().backward()
    for rank, s in enumerate(seen):
        before, *synced = s["params"]
        assert (before == expected.tolist()) == (rank == 0)
        assert synced == [expected.tolist()] * 2
        for name in ("even", "uneven"):
            for grads in s[name]:
                np.testing.assert_allclose(grads, expected.grad, rtol=1e-12)
        assert s["strided"] == [2, 2, 2]
        assert s["turned"] == [[[0, 3], [1, 4], [2, 5]], [[0.5, 0.5]] * 3]


@pytest.mark.cuda
def test_two_ranks_average_on_a_gpu(run_on_ranks):
    run_on_ranks(
        2,
        """
        import torch
        from spinup.utils.mpi_pytorch import mpi_avg_grads, sync_params
        from spinup.utils.mpi_tools import proc_id

        p = torch.nn.Parameter(torch.full((3,), float(proc_id() + 5), device="cuda"))
        p.grad = torch.full((3,), float(proc_id()), device="cuda")
        sync_params(p)
        mpi_avg_grads(p, weight=[0.25, 0.75][proc_id()])
        assert p.tolist() == [5] * 3 and p.grad.tolist() == [0.75] * 3
        """,
    )


def test_buffers_start_as_rank_0s(run_on_ranks):
    run_on_ranks(
        2,
        """
        import torch
        from torch import nn
        from spinup.utils.flat import flatten
        from spinup.utils.mpi_pytorch import sync_params
        from spinup.utils.mpi_tools import proc_id

        rank = proc_id()
        torch.manual_seed(rank)
        net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        net(torch.randn(5, 3))  # its running statistics move
        net.register_buffer("seen", torch.tensor([rank == 0, True]), persistent=False)
        net.register_buffer("mean16", torch.full((2,), 1.5 + rank, dtype=torch.bfloat16))
        if rank:
            net(torch.randn(5, 3))
        vector = flatten(net)
        sync_params(net)
        torch.manual_seed(0)
        expected = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        expected(torch.randn(5, 3))
        for x, y in zip(net[1].buffers(), expected[1].buffers(), strict=True):
            assert torch.equal(x, y)
        assert int(net[1].num_batches_tracked) == 1
        assert net.seen.tolist() == [True, True] and net.mean16.tolist() == [1.5, 1.5]
        assert torch.equal(vector, torch.cat([p.flatten() for p in expected.parameters()]))
        """,
    )


# --- Hosts with and without the compiled functions ---

ON_UNLIKE_HOSTS = """
import os, sys, warnings
from mpi4py import MPI
rank = MPI.COMM_WORLD.Get_rank()
if rank == int(sys.argv[1]):
    os.environ["SPINUP_COMPILED"] = "0"
import torch
from spinup import sac
from spinup.fast import kernels

before = kernels.compiled()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ac = sac("Pendulum-v1", epochs=1, steps_per_epoch=300, start_steps=50, update_after=50,
             batch_size=10, replay_size=600, num_test_episodes=0, seed=0,
             ac_kwargs=dict(hidden_sizes=(32, 32)), logger_kwargs=dict(output_dir=sys.argv[2]))
lines = [str(w.message) for w in caught if "compiled functions" in str(w.message)]
params = torch.cat([p.detach().flatten() for p in ac.parameters()]).numpy()
gathered = MPI.COMM_WORLD.allgather(params.tobytes())
assert gathered[0] == gathered[1], "the ranks' parameters have drifted apart"
assert kernels.compiled() == before
if rank == 0:
    print(len(lines), *lines)
"""


@pytest.mark.skipif(kernels.compiled() is None, reason="there are no compiled functions here")
@pytest.mark.parametrize("without", [0, 1])
def test_hosts_that_compute_differently_keep_parameters_equal(without, run_on_ranks, tmp_path):
    args = [str(without), str(tmp_path / "run")]
    out = run_on_ranks(2, ON_UNLIKE_HOSTS, args).stdout
    assert "1 1 of 2 ranks have spinup's compiled functions" in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["versions"]["compiled"] is None


def test_hosts_that_compute_alike_are_left_alone(run_on_ranks, tmp_path):
    out = run_on_ranks(2, ON_UNLIKE_HOSTS, ["-1", str(tmp_path / "run")]).stdout
    assert out.splitlines()[-1].strip() == "0"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["versions"]["compiled"] == kernels.compiled()
