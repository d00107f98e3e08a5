"""Tests of updates that ranks share, against one rank, float64 and MPI's Allreduce."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from spinup.launch.mpiexec import launch_command

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ranks need MPI")

# Each script runs on several ranks, with `rank`, `ranks` and functions of this part.
START = """
    import os, sys
    import numpy as np
    import torch
    from torch import nn
    from spinup.fast import kernels, shared
    from spinup.fast.shared import ranks_share_memory, shared_vector
    from spinup.utils.flat import flatten
    from spinup.utils.mpi_pytorch import mpi_avg_grads, sync_params
    from spinup.utils.mpi_tools import barrier, mpi_op, mpi_sum, num_procs, proc_id
    from spinup.utils.optim import Adam

    torch.set_num_threads(1)
    rank, ranks = proc_id(), num_procs()
    if "python" in sys.argv:
        shared._ranks = None
    if "torch" in sys.argv:
        kernels._kernels = None

    def vector(size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        params = nn.Parameter(torch.randn(size, generator=generator))
        params.grad = torch.zeros(size)
        return params

    def gradient(size, r, step=0):
        rng = np.random.default_rng([size, r, step])
        return rng.normal(size=size) * 10.0 ** rng.uniform(-6, 3, size)

    def equal_on_ranks(x):
        x = np.asarray(x.detach(), dtype=np.float64)
        return (mpi_op(x, "MIN") == mpi_op(x, "MAX")).all()
"""

ENGINES = [[], ["python"], ["torch"], ["python", "torch"]]
SIZES = "1, 2, 15, 16, 17, 33, 1000, 70001"


@pytest.fixture
def on_ranks(run_on_ranks):
    """Function that runs a script after `START`, and returns what it printed."""

    def run(n, script, args=(), **kwargs):
        return run_on_ranks(n, START + script, args, **kwargs).stdout

    return run


@pytest.mark.parametrize("engine", ENGINES[:2], ids=str)
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_average_is_that_of_float64_in_full_and_the_same_on_all_ranks(on_ranks, ranks, engine):
    script = f"""
    weights = np.arange(1, ranks + 1) / sum(range(1, ranks + 1))
    with ranks_share_memory():
        for size in ({SIZES}):
            params = vector(size)
            adam = Adam(params, 0.1)
            assert shared_vector(params).grad.data_ptr() == params.grad.data_ptr()
            for step in range(3):
                params.grad.copy_(torch.from_numpy(gradient(size, rank, step)))
                mpi_avg_grads(params, weights[rank])
                expected = sum(w * gradient(size, r, step) for r, w in enumerate(weights))
                scale = sum(w * abs(gradient(size, r, step)) for r, w in enumerate(weights))
                error = abs(params.grad.numpy() - expected) / scale
                assert error.max() < 3e-7, (size, error.max())
                assert equal_on_ranks(params.grad)
    print("good")
    """
    assert on_ranks(ranks, script, engine).count("good") == ranks


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("ranks", [2, 3])
def test_steps_are_those_of_one_rank_to_the_bit(on_ranks, ranks, engine):
    """Given the same gradient, Adam on parts of a vector takes the step of Adam on all of it."""
    script = f"""
    with ranks_share_memory():
        for size in ({SIZES}):
            params, alone = vector(size), vector(size)
            adam = Adam(params, 0.1)
            before, shared._team = shared._team, None
            lonely = Adam(alone, 0.1)
            shared._team = before
            assert shared_vector(params) is not None and shared_vector(alone) is None
            for step in range(5):
                params.grad.copy_(torch.from_numpy(gradient(size, rank, step)))
                mpi_avg_grads(params)
                alone.grad.copy_(params.grad)
                adam.lr = lonely.lr = 0.1 / (step + 1)
                adam.step()
                lonely.step()
                assert torch.equal(params, alone), (size, step)
            barrier()
            ours, theirs = adam.state_dict(), lonely.state_dict()
            assert ours["steps"] == 5
            assert all(torch.equal(ours[k], theirs[k]) for k in ("exp_avg", "exp_avg_sq"))
            barrier()
    print("good")
    """
    assert on_ranks(ranks, script, engine).count("good") == ranks


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_a_step_with_a_weight_averages_first(on_ranks, engine):
    script = f"""
    weights = [0.5, 0.2, 0.3]
    with ranks_share_memory():
        for size in ({SIZES}):
            one, two = vector(size), vector(size)
            by_one, by_two = Adam(one, 0.1), Adam(two, 0.1)
            for step in range(4):
                for params in (one, two):
                    params.grad.copy_(torch.from_numpy(gradient(size, rank, step)))
                by_one.step(weights[rank])
                mpi_avg_grads(two, weights[rank])
                by_two.step()
                assert torch.equal(one, two), (size, step)
                assert equal_on_ranks(one)
    print("good")
    """
    assert on_ranks(3, script, engine).count("good") == 3


@pytest.mark.parametrize("engine", ENGINES[:2], ids=str)
@pytest.mark.parametrize(("ranks", "hosts"), [(4, 2), (3, 2)])
def test_hosts_join(on_ranks, monkeypatch, ranks, hosts, engine):
    monkeypatch.setenv("MPIR_CVAR_NUM_CLIQUES", str(hosts))  # MPICH then acts as on several hosts
    script = f"""
    weights = np.arange(1, ranks + 1) / sum(range(1, ranks + 1))
    with ranks_share_memory():
        assert shared._team.host.has_others and shared._team.size in (1, 2)
        for size in ({SIZES}):
            params = vector(size)
            adam = Adam(params, 0.1)
            for step in range(3):
                params.grad.copy_(torch.from_numpy(gradient(size, rank, step)))
                mpi_avg_grads(params, weights[rank])
                expected = sum(w * gradient(size, r, step) for r, w in enumerate(weights))
                scale = sum(w * abs(gradient(size, r, step)) for r, w in enumerate(weights))
                assert (abs(params.grad.numpy() - expected) / scale).max() < 3e-7
                adam.step()
                params.grad.copy_(torch.from_numpy(gradient(size, rank, step)))
                adam.step(weights[rank])
                assert equal_on_ranks(params)
    print("good")
    """
    assert on_ranks(ranks, script, engine).count("good") == ranks


def test_a_team_of_one_rank_per_host_shares_nothing(on_ranks, monkeypatch):
    monkeypatch.setenv("MPIR_CVAR_NOLOCAL", "1")
    script = """
    with ranks_share_memory():
        assert shared._team is None
        params = vector(10)
        adam = Adam(params, 0.1)
        params.grad.fill_(rank)
        adam.step(0.5)
        assert params.grad.tolist() == [0.5] * 10
        assert equal_on_ranks(params)
    print("good")
    """
    assert on_ranks(2, script).count("good") == 2


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_all_ranks_refuse_a_gradient_that_is_not_finite_on_one(on_ranks, engine):
    script = """
    def with_weight(adam):
        adam.step(0.5)

    def averaged(adam):
        mpi_avg_grads(adam.params)
        adam.step()

    def check(step, place, bad):
        params = vector(100)
        adam = Adam(params, 0.1, "LossQ")
        params.grad.fill_(1.0)
        adam.step(0.5)
        barrier()
        before = params.detach().clone(), adam.exp_avg.clone(), adam.exp_avg_sq.clone()
        barrier()
        if rank == 1:
            params.grad[place] = bad
        try:
            step(adam)
        except FloatingPointError as error:
            assert "gradient of LossQ is NaN or infinite in update 2" in str(error)
        else:
            raise AssertionError("not refused")
        barrier()
        after = params, adam.exp_avg, adam.exp_avg_sq
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        barrier()

    for step in (with_weight, averaged):
        for place in (0, 40, 99):
            for bad in (float("nan"), float("inf"), -float("inf")):
                with ranks_share_memory():
                    check(step, place, bad)
    print("good")
    """
    assert on_ranks(2, script, engine).count("good") == 2


def test_code_that_changes_parameters_on_every_rank_means_the_same_as_on_one(on_ranks):
    """As weight decay does. With parameters in shared memory it would take effect twice."""
    script = """
    with ranks_share_memory():
        params, alone = vector(1000), vector(1000)
        adam = Adam(params, 0.1)
        before, shared._team = shared._team, None
        lonely = Adam(alone, 0.1)
        shared._team = before
        for step in range(5):
            for p, optimizer in ((params, adam), (alone, lonely)):
                p.grad.copy_(torch.from_numpy(gradient(1000, 0, step)))
                mpi_avg_grads(p)
                p.grad.clamp_(-1, 1)
                optimizer.step()
                p.data.mul_(0.9)
        assert torch.equal(params, alone)
    print("good")
    """
    assert on_ranks(2, script).count("good") == 2


@pytest.mark.parametrize("engine", ENGINES[::2], ids=str)
def test_the_state_is_complete_on_every_rank_and_is_restored(on_ranks, engine):
    script = """
    def steps(adam, params, first, last):
        for step in range(first, last):
            params.grad.copy_(torch.from_numpy(gradient(1000, rank, step)))
            adam.step(0.5)

    with ranks_share_memory():
        params, other = vector(1000), vector(1000)
        adam, again = Adam(params, 0.1), Adam(other, 0.3)
        steps(adam, params, 0, 3)
        barrier()
        state = {k: v.clone() if k.startswith("exp") else v for k, v in adam.state_dict().items()}
        assert (state["exp_avg_sq"] > 0).all()
        assert equal_on_ranks(state["exp_avg"])
        saved = params.detach().clone()
        steps(adam, params, 3, 6)
        steps(again, other, 7, 9)  # must leave no trace
        with torch.no_grad():
            other.copy_(saved)
        again.load_state_dict(state)
        steps(again, other, 3, 6)
        assert torch.equal(other, params)
    print("good")
    """
    assert on_ranks(2, script, engine).count("good") == 2


def test_after_the_run_a_network_is_in_memory_of_its_own(on_ranks):
    script = """
    net = nn.Linear(30, 20)
    sync_params(net)
    params = flatten(net)
    with ranks_share_memory():
        adam = Adam(params, 0.1)
        place = params.grad.data_ptr()
        net(torch.full((1, 30), float(rank))).sum().backward()
        assert net.weight.grad.data_ptr() == place
        adam.step(0.5)
    assert shared_vector(params) is None
    assert params.grad.data_ptr() != place
    state = {k: v.clone() for k, v in adam.state_dict().items() if k.startswith("exp")}
    assert equal_on_ranks(state["exp_avg"]) and (state["exp_avg_sq"] > 0).all()
    params.grad.fill_(1.0)
    before = params.detach().clone()
    adam.step()  # on each rank for itself, as without ranks
    assert (params < before).all()
    assert equal_on_ranks(params)
    net.zero_grad(set_to_none=False)
    net(torch.ones(1, 30)).sum().backward()
    assert params.grad.tolist() == [1.0] * 620
    assert equal_on_ranks(params)
    # A second run, which allocates its own memory
    with ranks_share_memory():
        Adam(params, 0.1).step(0.5)
        assert not np.isnan(params.detach().numpy()).any()
    print("good")
    """
    assert on_ranks(2, script).count("good") == 2


def test_without_room_ranks_share_nothing(on_ranks):
    script = """
    from spinup.utils import mpi_tools
    room = mpi_tools._has_shared_memory
    with ranks_share_memory():
        mpi_tools._has_shared_memory = lambda num_bytes: rank > 0 and room(num_bytes)
        params = vector(100)
        adam = Adam(params, 0.1)
        assert shared_vector(params) is None
        params.grad.fill_(rank)
        adam.step(0.5)
        assert params.grad.tolist() == [0.5] * 100
    with ranks_share_memory():
        assert shared._team is None
    print("good")
    """
    assert on_ranks(2, script).count("good") == 2


def test_one_switch_turns_it_off(on_ranks, monkeypatch):
    monkeypatch.setenv("SPINUP_FAST", "0")
    script = """
    with ranks_share_memory():
        params = vector(100)
        Adam(params, 0.1)
        assert shared_vector(params) is None
    print("good")
    """
    assert on_ranks(2, script).count("good") == 2


def test_a_gradient_that_left_the_memory_is_refused(on_ranks):
    script = """
    with ranks_share_memory():
        params = vector(100)
        adam = Adam(params, 0.1)
        params.grad = torch.ones(100)
        for call in (lambda: adam.step(0.5), lambda: mpi_avg_grads(params)):
            try:
                call()
            except RuntimeError as error:
                assert "no longer in the memory that ranks share" in str(error)
            else:
                raise AssertionError("not refused")
    print("good")
    """
    assert on_ranks(2, script).count("good") == 2


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_parameters_that_move_to_other_memory_are_stepped_there(on_ranks, engine):
    """Such as a temperature's logarithm, which a user clips by ``.data = ...``."""
    script = """
    with ranks_share_memory():
        for size in (1, 100):
            params, alone = vector(size), vector(size)
            adam = Adam(params, 0.1)
            before, shared._team = shared._team, None
            lonely = Adam(alone, 0.1)
            for step in range(6):
                for p, optimizer, team in ((params, adam, before), (alone, lonely, None)):
                    shared._team = team
                    p.grad.copy_(torch.from_numpy(gradient(size, 0, step)))
                    optimizer.step()
                    p.data = p.data.clamp(-0.5, 0.5)
                shared._team = before
                assert torch.equal(params, alone), (size, step)
    print("good")
    """
    assert on_ranks(2, script, engine).count("good") == 2


@pytest.mark.parametrize("engine", [[], ["python"]])
def test_ranks_can_go_on_after_a_refused_step(on_ranks, engine):
    """All of them refuse it, also if one rank is late."""
    script = """
    import time
    refused = []
    call, meet, late = shared.Team.call, shared.Team.meet, []

    def slow(function):
        def wrapped(*args):
            result = function(*args)
            if rank == 1 and len(late) < 5:
                late.append(True)
                time.sleep(0.1)
            return result

        return wrapped

    shared.Team.call, shared.Team.meet = slow(call), slow(meet)
    with ranks_share_memory():
        params = vector(100)
        adam = Adam(params, 0.1)
        for step in range(6):
            params.grad.fill_(float("nan") if (rank, step) in ((0, 0), (1, 2)) else 1.0)
            try:
                adam.step(0.5)
            except FloatingPointError:
                refused.append(step)
        assert refused == [0, 2]
        assert equal_on_ranks(params)
        assert adam.steps == 4
    assert len(late) == 5 * rank
    print("good")
    """
    assert on_ranks(2, script, engine).count("good") == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sum_that_overflows_ends_the_ranks(run_on_ranks, engine):
    """Only the rank that steps this part knows, after others have stepped theirs."""
    script = """
    with ranks_share_memory():
        params = vector(100)
        adam = Adam(params, 0.1, "LossQ")
        params.grad[99] = 3e38
        adam.step(1.0)
    print("good")
    """
    result = run_on_ranks(2, START + script, engine, check=False)
    assert result.returncode != 0
    assert "the gradient of LossQ is NaN or infinite in update 1" in result.stderr
    assert "good" not in result.stdout


def test_another_optimizer_takes_over_a_vector(on_ranks):
    script = """
    with ranks_share_memory():
        params, alone = vector(100), vector(100)
        before, shared._team = shared._team, None
        lonely = Adam(alone, 0.1)
        shared._team = before
        first = Adam(params, 0.5)
        params.grad.fill_(1.0)
        second = Adam(params, 0.1)  # keeps the gradient
        assert params.grad.tolist() == [1.0] * 100
        alone.grad.fill_(1.0)
        for optimizer in (second, lonely):
            optimizer.step()
        assert torch.equal(params, alone)
        assert first.state_dict()["exp_avg"].tolist() == [0.0] * 100
    print("good")
    """
    assert on_ranks(2, script).count("good") == 2


def test_a_policy_that_looks_up_its_attributes_is_captured_on_ranks(on_ranks):
    script = """
    import spinup
    from spinup.fast.capture import Captured
    from spinup.utils.nets import SquashedGaussianActor, SquashedGaussianActorCritic

    class Actor(SquashedGaussianActor):
        def forward(self, obs, *args, **kwargs):
            assert getattr(self, "scale", None) is None
            return super().forward(obs, *args, **kwargs)

    class Networks(SquashedGaussianActorCritic):
        actor_class = Actor

    made, init = [], Captured.__init__

    def noted(self, *args, **kwargs):
        made.append(self)
        init(self, *args, **kwargs)

    Captured.__init__ = noted
    settings = dict(steps_per_epoch=200, epochs=1, start_steps=100, update_after=100)
    settings |= dict(ac_kwargs=dict(hidden_sizes=(8,)), num_test_episodes=0)
    spinup.sac("Pendulum-v1", Networks, logger_kwargs=dict(output_dir="run"), **settings)
    assert made[0].num_replays > 50, made[0].num_replays
    print("good")
    """
    assert on_ranks(2, script).count("good") == 2


@pytest.mark.parametrize("engine", ENGINES[:2], ids=str)
def test_more_ranks_than_cores_end(on_ranks, engine):
    script = """
    with ranks_share_memory():
        params = vector(5000)
        adam = Adam(params, 0.1)
        for step in range(300):
            params.grad.fill_(rank)
            adam.step(1 / ranks)
        assert equal_on_ranks(params)
    print("good")
    """
    with pytest.warns(UserWarning, match="share cores") if os.cpu_count() < 8 else _nothing():
        assert on_ranks(8, script, engine, timeout=100).count("good") == 8


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm")
@pytest.mark.parametrize("killed", ["rank 0", "rank 1", "mpiexec"])
def test_nothing_is_left_in_shared_memory(tmp_path, killed):
    """MPICH alone would leave 2 MB each time, until /dev/shm is full."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, pathlib, time\n"
        "from spinup import sac\n"
        "def on_epoch(row, ac):\n"
        "    pathlib.Path(f'pid{os.environ[\"PMI_RANK\"]}').write_text(str(os.getpid()))\n"
        "sac('Pendulum-v1', steps_per_epoch=100, epochs=10**6, start_steps=50, update_after=50,\n"
        "    ac_kwargs=dict(hidden_sizes=(8,)), num_test_episodes=0, on_epoch=on_epoch,\n"
        "    logger_kwargs=dict(output_dir='run', verbose=False))\n"
    )

    def names():
        return {p.name for p in Path("/dev/shm").iterdir() if "mpich" in p.name}

    before = names()
    command, env = launch_command(2, [str(script)])
    run = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=-3, stderr=-3)
    try:
        pids = [tmp_path / "pid0", tmp_path / "pid1"]
        _wait(lambda: all(p.exists() and p.read_text() for p in pids))
        ranks = [int(p.read_text()) for p in pids]
        assert any("mpich_shar" in x for x in Path(f"/proc/{ranks[1]}/maps").read_text().split())
        os.kill(run.pid if killed == "mpiexec" else ranks[int(killed[-1])], signal.SIGKILL)
        _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks))
    finally:
        run.kill()
        run.wait()
    assert names() <= before | {n for n in names() if _is_of_another(n)}


def _is_of_another(name):
    """Returns True if a living process, such as another test's rank, has the memory open."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if f"/dev/shm/{name}\n" in maps.read_text():
                return True
        except OSError:
            continue
    return False


def _wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)
