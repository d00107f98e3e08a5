"""Fixtures for new processes, ranks, one thread and both engines, and the `cuda` mark."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from spinup.fast import kernels
from spinup.launch.mpiexec import launch_command

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure():
    """Lets SIGINT reach the tests' processes, also if a shell runs the tests in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "run_on_ranks" in item.fixturenames:
            item.add_marker("mpi")
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="PyTorch sees no CUDA device here"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Sets one thread, as on a rank, so that results don't depend on the number of cores."""
    torch.set_num_threads(1)


@pytest.fixture(params=["compiled", "torch"])
def engine(request, monkeypatch):
    """Runs a test twice: with compiled networks and Adam, if available, and with PyTorch's."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "_kernels", None)
    elif kernels._kernels is None:
        pytest.skip("there are no compiled functions here")
    return request.param


@pytest.fixture
def run_python(tmp_path):
    """Function that runs Python in a new process, in the test's folder: see `_run`."""

    def run(args: Sequence[str], timeout: float = 120, **kwargs):
        command, env = launch_command(1, args)
        return _run(command, _clean_environment(env), timeout, **(dict(cwd=tmp_path) | kwargs))

    return run


@pytest.fixture
def run_on_ranks(tmp_path):
    """Function that runs Python on several ranks under a real mpiexec, in the test's folder.

    Call it as ``run_on_ranks(n, script, args)``. The script is a path, or code as a string, which
    may be indented; `args` are its arguments. Returns a ``subprocess.CompletedProcess`` with
    ``returncode``, ``stdout`` and ``stderr`` as text. With ``check=True``, the default, a nonzero
    exit status fails the test, which then shows both streams.
    """

    def run(
        n, script, args: Sequence[str] = (), timeout: float = 120, check: bool = True, **kwargs
    ):
        if not isinstance(script, Path):
            code = textwrap.dedent(script)
            script = tmp_path / f"on_ranks_{len(list(tmp_path.glob('on_ranks_*')))}.py"
            script.write_text(code)
        command, env = launch_command(n, [str(script), *args])
        kwargs = dict(cwd=tmp_path) | kwargs
        result = _run(command, _clean_environment(env), timeout, **kwargs)
        if check:
            assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result

    return run


@pytest.fixture
def light(tmp_path):
    """Environment variables with which `import spinup` doesn't import PyTorch, for a fast start."""
    package = tmp_path / "light" / "spinup"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__ = [{str(ROOT / 'spinup')!r}]\n")
    return {"PYTHONPATH": str(package.parent)}


def _clean_environment(env):
    """Returns an environment with this checkout on the path and unbuffered output."""
    path = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    return env | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def _run(command, base_env, timeout, env=None, **kwargs):
    """Runs a command in its own process group; a time-out kills the whole group.

    `env` is added to `base_env`; other keyword arguments are passed to ``subprocess.Popen``.
    """
    streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(
        command, env=base_env | (env or {}), text=True, start_new_session=True, **(streams | kwargs)
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        pytest.fail(f"{command} ran past {timeout} s:\n{stdout}\n{stderr}")
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
