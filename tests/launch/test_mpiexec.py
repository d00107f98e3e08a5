import os
import sys
import warnings
from types import SimpleNamespace

import pytest

from spinup.launch import mpiexec
from spinup.launch.mpiexec import launch_command
from spinup.utils.mpi_tools import mpi_fork
from tests.reports import REPORT, reports

# --- mpi_fork ---


@pytest.mark.parametrize(
    "words, seen",
    [
        (["script.py", "a", "b c", "-x"], dict(argv=["a", "b c", "-x"])),
        (["-m", "pkg.mod", "--flag", "-m"], dict(argv=["--flag", "-m"], package="pkg")),
        (["-c", REPORT, "a", "-c"], dict(argv=["a", "-c"])),
        (
            ["-u", "-W", "ignore", "-X", "dev", "script.py"],
            dict(warnoptions=["default", "ignore"], dev_mode=True),
        ),
        (["-Bm", "pkg.mod", "a"], dict(argv=["a"], no_bytecode=True, package="pkg")),
    ],
    ids=["script", "module", "code", "options", "joined options"],
)
def test_fork_starts_again_what_was_started(words, seen, run_python, tmp_path, light):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "other.py").write_text("imported = True\n")
    (tmp_path / "pkg" / "mod.py").write_text("from .other import imported\n" + REPORT)
    (tmp_path / "script.py").write_text(REPORT)
    result = run_python(words, env=light)
    assert result.returncode == 0, result.stderr
    ranks = reports(tmp_path)
    assert len(ranks) == 2
    expected = dict(size=2, name="__main__", threads="1") | seen
    for rank in ranks:
        assert {key: rank[key] for key in expected} == expected


def test_fork_is_refused_where_there_is_no_script(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda path, argv, env: started.append(argv))
    monkeypatch.setattr(sys, "orig_argv", ["python", "script.py"])
    mpi_fork(2)
    assert started[0][-1] == "script.py"
    with monkeypatch.context() as notebook:
        notebook.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
        with pytest.raises(RuntimeError, match=r"notebook.*call_experiment\(\.\.\., num_cpu=n\)"):
            mpi_fork(2)
    with monkeypatch.context() as prompt:
        prompt.setattr(sys, "ps1", ">>> ", raising=False)
        with pytest.raises(RuntimeError, match="interactive session, use call_experiment"):
            mpi_fork(2)
    monkeypatch.setattr(sys, "orig_argv", ["python"])
    with pytest.raises(RuntimeError, match="a script from a pipe can't be rerun"):
        mpi_fork(2)
    assert len(started) == 1


def test_a_rank_starts_ranks_of_its_own(run_on_ranks, tmp_path, light):
    (tmp_path / "inner.py").write_text(REPORT)
    run_on_ranks(
        2,
        """
        import subprocess
        from spinup.launch.mpiexec import launch_command
        from spinup.utils.mpi_tools import barrier, num_procs, proc_id

        assert num_procs() == 2
        if proc_id() == 0:
            command, env = launch_command(2, ["inner.py"])
            subprocess.run(command, env=env, check=True)
        barrier()
        """,
        env=light,
    )
    assert [rank["size"] for rank in reports(tmp_path)] == [2, 2]


# --- The command ---


def test_no_mpiexec_is_an_error(monkeypatch):
    launch_command(2, ["script.py"])
    monkeypatch.setattr(mpiexec.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match="2 ranks need MPI, but mpiexec is not installed"):
        launch_command(2, ["script.py"])
    assert launch_command(1, ["script.py"])[0] == [sys.executable, "script.py"]


@pytest.mark.parametrize(
    "words, expected",
    [
        (["s.py", "-m", "a"], ["-m", "mpi4py", "s.py", "-m", "a"]),
        (["-m", "pkg.mod", "a"], ["-m", "mpi4py", "-m", "pkg.mod", "a"]),
        (["-mpkg.mod", "a"], ["-m", "mpi4py", "-m", "pkg.mod", "a"]),
        (["-c", "print()", "a"], ["-m", "mpi4py", "-c", "print()", "a"]),
        (["-Bum", "pkg"], ["-Bu", "-m", "mpi4py", "-m", "pkg"]),
        (["-u", "-OO", "s.py"], ["-u", "-OO", "-m", "mpi4py", "s.py"]),
        (["-W", "ignore", "s.py"], ["-W", "ignore", "-m", "mpi4py", "s.py"]),
        (["-Wignore::m", "s.py"], ["-Wignore::m", "-m", "mpi4py", "s.py"]),
        (["-uX", "dev", "s.py"], ["-uX", "dev", "-m", "mpi4py", "s.py"]),
        (["-Xfaulthandler", "-m", "p"], ["-Xfaulthandler", "-m", "mpi4py", "-m", "p"]),
        (
            ["--check-hash-based-pycs", "always", "s.py"],
            ["--check-hash-based-pycs", "always", "-m", "mpi4py", "s.py"],
        ),
    ],
)
def test_the_runner_that_ends_all_ranks_goes_before_what_is_run(words, expected):
    command, env = launch_command(2, words)
    assert command[command.index(sys.executable) + 1 :] == expected
    assert env["SPINUP_NUM_CPU"] == "2"


@pytest.mark.parametrize("words", [[], ["-"], ["-u"], ["-u", "-"]])
def test_what_has_no_file_cannot_be_launched(words):
    with pytest.raises(RuntimeError, match="needs a script in a file"):
        launch_command(2, words)


@pytest.mark.parametrize("n", [0, -1, 2.0, "2", True, None])
def test_the_number_of_ranks_is_a_positive_integer(n):
    with pytest.raises(ValueError, match=f"must be a positive integer, not {n!r}"):
        launch_command(n, ["script.py"])


def test_mpich_is_told_to_fork_here_and_others_to_share_cores(monkeypatch):
    def options(bind_to_core):
        command = launch_command(2, ["s.py"], bind_to_core)[0]
        return command[1 : command.index(sys.executable)]

    monkeypatch.setattr(mpiexec, "_is_hydra", lambda mpiexec: True)
    assert options(False) == ["-launcher", "fork", "-n", "2"]
    assert options(True) == ["-launcher", "fork", "-bind-to", "core", "-n", "2"]
    monkeypatch.setattr(mpiexec, "_is_hydra", lambda mpiexec: False)
    assert options(False) == ["--oversubscribe", "-n", "2"]
    assert options(True) == ["--oversubscribe", "--bind-to", "core", "-n", "2"]


@pytest.mark.parametrize("n", [1, 2])
def test_what_an_outer_launcher_left_is_stripped(n, monkeypatch):
    left = ["PMI_RANK", "PMI_FD", "PMIX_RANK", "HYDI_CONTROL_FD", "HYDRA_X", "MPI_LOCALRANKID"]
    left += ["MPI_LOCALNRANKS", "OMPI_COMM_WORLD_RANK", "PRTE_X", "SPINUP_NUM_CPU"]
    kept = ["MPI4PY_RC_THREADS", "SLURM_JOB_ID", "SPINUP_OTHER"]
    for name in left + kept:
        monkeypatch.setenv(name, "7")
    env = launch_command(n, ["script.py"])[1]
    assert {name for name in left if env.get(name) == "7"} == set()
    assert {name for name in kept if env.get(name) == "7"} == set(kept)
    assert env["PATH"] == os.environ["PATH"]


def test_more_ranks_than_cores_warn_with_the_number(monkeypatch):
    monkeypatch.setattr(mpiexec, "usable_cores", lambda: 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launch_command(2, ["script.py"])
    with pytest.warns(UserWarning, match=r"3 ranks on 2 usable core\(s\)"):
        launch_command(3, ["script.py"])
