import json
import os
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest

from spinup.launch.mpiexec import launch_command
from spinup.utils import mpi_tools
from spinup.utils.mpi_tools import (
    allreduce,
    barrier,
    broadcast,
    mpi_avg,
    mpi_fork,
    mpi_op,
    mpi_statistics_scalar,
    mpi_sum,
    msg,
    num_procs,
    proc_id,
    rank_share,
    sum_in_place,
)
from tests.reports import REPORT, reports

# --- One process ---


def test_one_process_is_rank_zero_of_one(capsys):
    assert (proc_id(), num_procs(), rank_share(7)) == (0, 1, 7)
    barrier()
    msg("hello", "said")
    assert capsys.readouterr().out == "Message from 0: said \t hello\n"


def test_reductions_of_one_process_give_back_its_own():
    x, received = np.array([1.0, -2.0]), np.zeros(2)
    allreduce(x, received)
    assert received.tolist() == [1, -2]
    for in_place in (broadcast, sum_in_place):
        in_place(x)
        assert x.tolist() == [1, -2]
    assert mpi_sum(3) == mpi_avg(3) == mpi_op(3, "MAX") == 3.0
    assert mpi_avg(8.0, weight=0.25) == 2
    assert mpi_op([[1, 2]], "MIN").tolist() == [[1, 2]]


def test_a_reduction_of_one_process_is_a_copy():
    x = np.array([1.0, 2.0])
    mpi_sum(x)[0] = 7
    assert x.tolist() == [1, 2]


@pytest.mark.parametrize(
    "samples", [[3.0], [1, 2, 4], np.arange(6.0).reshape(2, 3), [-1e8, 1e8, 1], np.float32([1, 5])]
)
def test_statistics_are_numpys(samples):
    x = np.asarray(samples, dtype=np.float64)
    expected = x.mean(), x.std(), x.min(), x.max()
    assert mpi_statistics_scalar(samples, with_min_and_max=True) == pytest.approx(expected)
    assert mpi_statistics_scalar(samples) == pytest.approx(expected[:2])


def test_statistics_of_nothing_are_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(mpi_statistics_scalar([])).tolist() == [True] * 2
        assert np.isnan(mpi_statistics_scalar([], with_min_and_max=True)).tolist() == [True] * 4


@pytest.mark.parametrize("total, size", [(0, 3), (1, 3), (7, 3), (4000, 7), (6, 3)])
def test_shares_add_up_and_differ_by_one_at_most(total, size, monkeypatch):
    monkeypatch.setattr(mpi_tools, "num_procs", lambda: size)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(mpi_tools, "proc_id", lambda rank=rank: rank)
        shares.append(rank_share(total))
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


def test_importing_spinup_starts_no_mpi_touches_no_cuda_and_writes_no_file(run_python):
    code = """
import os, sys, spinup, torch
assert "mpi4py" not in sys.modules and not torch.cuda.is_initialized()
assert os.listdir() == []
"""
    result = run_python(["-c", code])
    assert result.returncode == 0, result.stderr


# --- Two ranks ---


def test_two_ranks_reduce_as_numpy_does_on_all_samples(run_on_ranks, tmp_path, light):
    samples = {
        "uneven": [[1.0, 2.0, 4.0, -8.0], [100.0]],
        "one empty": [[], [3.0, 5.0]],
        "the other empty": [[2.0], []],
        "both empty": [[], []],
        "even": [[1.0, 2.0], [3.0, 4.0]],
    }
    run_on_ranks(
        2,
        """
        import json, sys
        import numpy as np
        from mpi4py import MPI
        from spinup.utils.mpi_tools import *
        from spinup.utils.mpi_tools import barrier, rank_share, sum_in_place

        rank = proc_id()
        statistics = {
            name: mpi_statistics_scalar(x[rank], True) + mpi_statistics_scalar(x[rank])
            for name, x in json.loads(sys.argv[1]).items()
        }
        maximum, doubled = np.zeros(2), np.array([1.0, rank])
        allreduce(np.array([rank, -rank], float), maximum, op=MPI.MAX)
        allreduce(MPI.IN_PLACE, doubled)
        roots = [np.full(2, rank), np.full(2, rank)]
        broadcast(roots[0])
        broadcast(roots[1], root=1)
        summed = np.float32([1, rank])
        sum_in_place(summed)
        barrier()
        seen = dict(
            ranks=[rank, num_procs()],
            statistics=statistics,
            maximum=maximum.tolist(),
            doubled=doubled.tolist(),
            roots=[x.tolist() for x in roots],
            summed=summed.tolist(),
            sum=[mpi_sum(rank + 1), mpi_sum([[rank], [1]]).tolist()],
            strided=mpi_sum((np.arange(6.0) * (rank + 1))[::2]).tolist(),
            avg=[mpi_avg(rank), mpi_avg(4 * rank, weight=[0.75, 0.25][rank])],
            op=[mpi_op(rank, "MIN"), mpi_op(rank, "MAX"), mpi_op(rank, MPI.MAX)],
            shares=[rank_share(7), rank_share(1), rank_share(4)],
        )
        json.dump(seen, open(f"rank{rank}.json", "w"))
        """,
        args=[json.dumps(samples)],
        env=light,
    )
    seen = reports(tmp_path)
    assert [s.pop("ranks") for s in seen] == [[0, 2], [1, 2]]
    assert [s.pop("shares") for s in seen] == [[4, 1, 2], [3, 0, 2]]
    for name, (first, second) in samples.items():
        x = np.array(first + second)
        expected = [x.mean(), x.std(), x.min(), x.max()] if len(x) else [np.nan] * 4
        for s in seen:
            statistics = s["statistics"][name]
            np.testing.assert_allclose(statistics, expected + expected[:2], rtol=1e-12)
    for s in seen:
        del s["statistics"]
        assert s == dict(
            maximum=[1, 0],
            doubled=[2, 1],
            roots=[[0, 0], [1, 1]],
            summed=[2, 1],
            sum=[3, [[1], [2]]],
            strided=[0, 6, 12],
            avg=[0.5, 1],
            op=[0, 1, 1],
        )


# --- mpi_fork ---


@pytest.mark.parametrize("n", [1, 0])
def test_fork_returns_where_one_rank_is_enough(n, monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *args: pytest.fail("started again"))
    assert mpi_fork(n) is None


def test_fork_under_an_outer_mpiexec_goes_on_with_its_ranks(run_on_ranks, tmp_path, light):
    result = run_on_ranks(
        2,
        REPORT
        + """
try:
    mpi_fork(3)
except ValueError as error:
    print(error)
""",
        # With a user's mpiexec, SPINUP_NUM_CPU doesn't give the number of ranks.
        env=light | {"SPINUP_NUM_CPU": "1"},
    )
    assert [rank["size"] for rank in reports(tmp_path)] == [2, 2]
    assert "3 ranks were asked for inside an MPI world of 2" in result.stdout
    assert "mpiexec -n 3" in result.stdout


@pytest.mark.parametrize(
    "failure, message",
    [
        ("raise ValueError('of rank one')", "ValueError: of rank one"),
        ("sys.exit('ended early')", "ended early"),
        ("os.kill(os.getpid(), 9)", ""),
    ],
)
def test_a_rank_that_fails_ends_all(failure, message, run_python, tmp_path, light):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom spinup.utils.mpi_tools import *\nmpi_fork(2)\n"
        f"if proc_id() == 1:\n    {failure}\nmpi_sum(1)\nprint('went on')\n"
    )
    result = run_python([str(script)], env=light)
    assert result.returncode != 0
    assert message in result.stderr
    assert "went on" not in result.stdout
    if failure.startswith("raise"):
        assert "Rank 1 of 2 failed:" in result.stderr


def test_a_rank_that_fails_under_a_plain_mpiexec_ends_all(run_on_ranks, tmp_path, light):
    # Without `python -m mpi4py`, the exception hook ends the other rank.
    command, _ = launch_command(2, ["script.py"])
    mpiexec = command[: command.index(sys.executable)]
    script = tmp_path / "script.py"
    script.write_text(
        "from spinup.utils.mpi_tools import *\n"
        "if proc_id() == 1:\n    raise KeyError('here')\nmpi_sum(1)\n"
    )
    inner = json.dumps([*mpiexec, sys.executable, str(script)])
    result = run_on_ranks(
        1,
        f"import os\ncommand = {inner}\nos.execv(command[0], command)\n",
        check=False,
        env=light,
    )
    assert result.returncode != 0
    assert "Rank 1 of 2 failed:" in result.stderr
    assert "KeyError: 'here'" in result.stderr


@pytest.mark.parametrize("n, world", [(1, 1), (2, 2)])
def test_another_world_than_asked_for_is_an_error(n, world, run_on_ranks, light):
    result = run_on_ranks(
        n,
        "from spinup.utils.mpi_tools import num_procs\nnum_procs()\n",
        check=False,
        env=light | {"SPINUP_NUM_CPU": "3"},
    )
    assert result.returncode != 0
    assert f"3 ranks were asked for, but the MPI world has {world}" in result.stderr
    assert "pip install --force-reinstall mpi4py mpich" in result.stderr


# --- Without MPI ---


@pytest.fixture
def no_mpi4py(tmp_path, light):
    """The environment variables of a Python without mpi4py."""
    blocker = Path(light["PYTHONPATH"], "sitecustomize.py")
    blocker.write_text("import sys\nsys.modules['mpi4py'] = None\n")
    return light


def test_one_process_needs_no_mpi4py(run_python, no_mpi4py):
    code = """
        import numpy as np
        from spinup.utils.mpi_tools import *
        from spinup.launch.mpiexec import launch_command
        from spinup.utils.mpi_tools import barrier, sum_in_place

        mpi_fork(1)
        barrier()
        x = np.ones(2)
        broadcast(x)
        sum_in_place(x)
        allreduce(x, x)
        assert (proc_id(), num_procs(), mpi_sum(2), mpi_avg(2)) == (0, 1, 2, 2)
        assert mpi_statistics_scalar([1, 3], with_min_and_max=True) == (2, 1, 1, 3)
        launch_command(1, ["script.py"])
        for start in (mpi_fork, lambda n: launch_command(n, ["script.py"])):
            try:
                start(2)
            except ValueError as error:
                print(error)
        """
    result = run_python(["-c", textwrap.dedent(code)], env=no_mpi4py)
    assert result.returncode == 0, result.stderr
    message = (
        "2 ranks need MPI, but mpi4py is not installed; install it with: pip install mpi4py mpich, "
        "or use one rank"
    )
    # Once for the running script (here -c), and once for another script.
    assert result.stdout.splitlines() == [message, message]


def test_a_rank_that_cannot_load_mpi4py_says_so(run_python, no_mpi4py):
    code = "from spinup.utils.mpi_tools import num_procs; num_procs()"
    result = run_python(["-c", code], env=no_mpi4py | {"PMI_RANK": "0"})
    assert result.returncode == 1
    assert "started as an MPI rank, but mpi4py does not load" in result.stderr


def test_a_rank_whose_mpi_library_is_missing_says_so(run_python, tmp_path, light):
    package = Path(light["PYTHONPATH"], "mpi4py")
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "MPI.py").write_text("raise RuntimeError('cannot load MPI library')\n")
    code = "from spinup.utils.mpi_tools import num_procs; num_procs()"
    result = run_python(["-c", code], env=light | {"PMI_RANK": "0"})
    assert result.returncode == 1
    assert "mpi4py does not load (cannot load MPI library); install it with" in result.stderr
