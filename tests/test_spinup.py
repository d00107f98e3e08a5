"""Tests the names in the package `spinup`, and its promises about imports and pickles."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spinup
from spinup.algos import ALGORITHMS, Algorithm


def test_every_public_name_is_there_and_is_what_it_says():
    from spinup.utils.logx import EpochLogger

    for name in ALGORITHMS:
        function = getattr(importlib.import_module(f"spinup.algos.{name}"), name)
        assert getattr(spinup, name) is getattr(spinup, f"{name}_pytorch") is function
        assert {name, f"{name}_pytorch"} <= set(spinup.__all__)
    assert spinup.EpochLogger is EpochLogger
    assert all(getattr(spinup, name) is not None for name in spinup.__all__)
    assert set(spinup.__all__) <= set(dir(spinup))


def test_a_line_in_the_table_makes_an_algorithm_public(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "toy", Algorithm("A toy", ("Box",), "Pendulum-v1"))
    monkeypatch.setitem(sys.modules, "spinup.algos.toy", type(sys)("toy"))
    sys.modules["spinup.algos.toy"].toy = train = object()
    assert spinup.toy is spinup.toy_pytorch is train
    assert {"toy", "toy_pytorch"} <= set(dir(spinup))


def test_editors_see_every_algorithm():
    """Editors read the imports and ``__all__`` in the source, where the table doesn't reach."""
    tools = {"EpochLogger", "Logger", "evaluate_policy"}
    algorithms = {name + end for name in ALGORITHMS for end in ("", "_pytorch")}
    assert set(spinup.__all__) - {"__version__"} == algorithms | tools
    source = Path(spinup.__file__).read_text(encoding="utf-8")
    for name in ALGORITHMS:
        imported = rf"^    from spinup\.algos\.{name} import {name}( as {name}_pytorch)?$"
        assert re.findall(imported, source, re.M) == ["", f" as {name}_pytorch"], name


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="module 'spinup' has no attribute 'dqn'"):
        spinup.dqn  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'dqn'"):
        from spinup import dqn  # noqa: F401


def test_importing_starts_no_mpi_and_writes_nothing(tmp_path):
    code = (
        "import sys, torch, spinup\n"
        "from spinup import ddpg, ppo, sac, td3, trpo, vpg\n"
        "assert 'mpi4py.MPI' not in sys.modules\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_evaluated_and_no_pickle_is_read():
    package = Path(spinup.__file__).parent
    found = {}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("eval", "exec", "torch.load", "np.load", "numpy.load") or (
                "pickle" in called and called.endswith(("load", "loads"))
            ):
                found[path.name] = called
    # The exception is the launcher's private file (mode 0600) outside run folders: functions that
    # can't be imported, such as those of a notebook, reach their process in no other way.
    assert found == {"spec.py": "pickle.load"}
