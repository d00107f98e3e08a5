"""Checks that imports point one way, and that one file defines the run folder's names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from spinup.runs import folder

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "spinup").rglob("*.py"))

# Rooms from top to bottom: a file may import from its own room and from those below.
ROOMS = [["cli"], ["launch"], ["algos"], ["utils"], ["runs", "fast"]]

# Modules at the bottom, which every file may import.
BOTTOM = {"spinup.utils.mpi_tools", "spinup.version", "spinup.user_config", "spinup"}

# Doors keep the old paths of modules: they contain only imports, in at most 15 lines.
DOORS = {"utils/run_utils", "utils/plot", "utils/test_policy", "utils/serialization_utils"}

# Files outside the rooms: entry points and settings.
OUTSIDE = {"__init__", "__main__", "run", "version", "user_config"}


def name_of(path):
    return path.relative_to(ROOT / "spinup").with_suffix("").as_posix()


def imported(tree):
    """Yields the names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(tree):
    known = {"spinup." + name_of(path).replace("/", ".") for path in FILES}
    return {name for name in imported(tree) if name in known}


def rooms_above(path, tree):
    own = name_of(path).split("/")[0]
    level = next(i for i, rooms in enumerate(ROOMS) if own in rooms)
    above = [room for rooms in ROOMS[:level] for room in rooms]
    return sorted(name for name in modules(tree) - BOTTOM if name.split(".")[1] in above)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_import_looks_up(path):
    name, tree = name_of(path), ast.parse(path.read_text())
    if name in OUTSIDE or name.split("/")[0] in ("examples", "exercises"):
        return
    if name in DOORS:
        kinds = {type(node).__name__ for node in tree.body}
        assert kinds <= {"Expr", "Import", "ImportFrom", "Assign"}
        assert len(path.read_text().splitlines()) <= 15
        return
    if name == "utils/mpi_tools":  # its mpi_fork is a door to spinup.launch.mpiexec
        assert modules(tree) <= {"spinup.runs.watchdog", "spinup.launch.mpiexec"}
        return
    assert rooms_above(path, tree) == []


def test_the_test_of_imports_finds_them():
    path = ROOT / "spinup/runs/folder.py"
    for line in (
        "from spinup.utils.envs import make_env",
        "from spinup.cli import watch",
        "import spinup.launch.grid",
        "def f():\n    from spinup.utils import acting",
    ):
        assert rooms_above(path, ast.parse(line))
    assert not rooms_above(path, ast.parse("from spinup.utils.mpi_tools import proc_id"))


# --- Names ---

FILE_NAMES = {*folder.RESULTS, folder.LOCK, folder.QUEUED, folder.STAGE}
STATES = {state.value for state in folder.State} - {"unknown"}  # also a word for other things


def spelled(tree):
    """Yields the strings in code that are names of run folder's files or of states."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    keywords = FILE_NAMES - {folder.TENSORBOARD, folder.WANDB, folder.CHECKPOINT}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = re.split(r"[/\\*]", node.value)
            if id(node) not in docstrings and (node.value in STATES or keywords & {*parts}):
                yield node.value


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_folders_owner_spells_its_names(path):
    if name_of(path) == "runs/folder" or name_of(path).startswith("examples/"):
        return
    assert list(spelled(ast.parse(path.read_text()))) == []


def test_the_test_of_names_finds_them():
    for line in ('x = f / "status.json"', 'x.glob("*/config.json")', 'state == "finished"'):
        assert len(list(spelled(ast.parse(line)))) == 1
    assert list(spelled(ast.parse('"""The status.json file."""'))) == []
