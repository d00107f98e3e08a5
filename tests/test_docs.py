"""What the documentation says is true: its code runs, its commands parse, its links lead somewhere.

A block of code that can't run here has ``<!-- not run: reason -->`` on the line above it.
"""

from __future__ import annotations

import ast
import csv
import functools
import inspect
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import spinup
from spinup import user_config
from spinup.cli import main as run
from spinup.cli import plot
from spinup.cli import status as run_status
from spinup.cli import watch as test_policy
from spinup.cli.flags import UsageError, read_docstring
from spinup.launch import grid as run_utils
from spinup.launch.entrypoint import execute
from spinup.launch.processes import Outcome
from spinup.utils import devices, logx, mpi_tools

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "data" / "README.md"]
ALGORITHMS = ["ppo", "sac", "td3"]

OFF_POLICY = dict(start_steps=20, update_after=20, update_every=10, batch_size=8, max_ep_len=30)
TINY = {
    "ppo": dict(steps_per_epoch=200, epochs=2, train_pi_iters=2, train_v_iters=2),
    "sac": dict(steps_per_epoch=60, epochs=2, num_test_episodes=1, **OFF_POLICY),
    "td3": dict(steps_per_epoch=60, epochs=2, num_test_episodes=1, **OFF_POLICY),
}


def name_of(page):
    return str(page.relative_to(ROOT))


on_pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


# --- Reading pages --------------------------------------------------------------------------------


@dataclass
class Block:
    language: str
    code: str
    line: int
    not_run: bool


def read_blocks(page):
    """Returns the fenced blocks of a page."""
    blocks, above, current = [], "", None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and current is None:
            current = Block(fence[1], "", number, above.startswith("<!-- not run:"))
        elif fence:
            blocks.append(current)
            current = None
        elif current is not None:
            current.code += line + "\n"
        elif line.strip():
            above = line.strip()
    assert current is None, f"{name_of(page)}: a block is not closed"
    return blocks


def read_prose(page):
    """Returns a page's text without its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def read_table(page, heading):
    """Returns the rows of the first table below a heading, without its header."""
    section = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    table = re.search(r"(^\|.*\n)+", section, re.M)
    assert table, f"{name_of(page)} has no table under {heading!r}"
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in table[0].splitlines()[2:]
    ]


def read_commands(page):
    """Returns the words after ``python -m spinup.run`` of each command on a page."""
    inline = re.findall(r"`(python -m spinup\.run\s[^`]*\s[^`]*)`", read_prose(page))
    lines = [" ".join(command.split()) for command in inline]
    for block in read_blocks(page):
        if block.language != "python" and not block.not_run:
            lines += block.code.replace("\\\n", " ").splitlines()
    commands = []
    for line in lines:
        found = re.match(r"\s*(?:\$ )?(?:\S*python -m spinup\.run|spinup) (.*)", line)
        if found and "..." not in line and "…" not in line:
            words = shlex.split(found[1], comments=True)
            stop = next((i for i, w in enumerate(words) if w in ("|", ">", "&&", "&")), None)
            commands.append(words[:stop])
    return commands


# --- Code -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with small runs in ``data``, under the names that the pages use."""
    root = tmp_path_factory.mktemp("trained")
    runs = [
        ("demo", "ppo", "CartPole-v1", {}),
        ("sac", "sac", "Pendulum-v1", dict(alpha="auto")),
        ("td3", "td3", "Pendulum-v1", {}),
    ]
    for exp_name, algorithm, env, kwargs in runs:
        folder = root / "data" / exp_name / f"{exp_name}_s0"
        logger_kwargs = dict(output_dir=folder, exp_name=exp_name)
        kwargs = TINY[algorithm] | kwargs | dict(logger_kwargs=logger_kwargs)
        getattr(spinup, algorithm)(env, **kwargs)
    shutil.copytree(root / "data" / "demo", root / "data" / "ppo")
    return root


def shrunk(algorithm, name):
    """Makes an algorithm train for a moment only, whatever it is asked for."""

    @functools.wraps(algorithm)
    def train(*args, **kwargs):
        given = inspect.signature(algorithm).bind(*args, **kwargs).arguments
        return algorithm(**(given | TINY[name]))

    return train


@pytest.fixture
def small_world(monkeypatch, tmp_path, trained):
    """The present folder is a copy of `trained`; algorithms are shrunk, and run in this process."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(user_config, "DEFAULT_DATA_DIR", str(tmp_path / "data"))
    for name in ALGORITHMS:
        train = shrunk(getattr(spinup, name), name)
        monkeypatch.setattr(spinup, name, train)
        monkeypatch.setattr(spinup, f"{name}_pytorch", train)

    def run_here(experiment):
        execute(experiment.thunk, experiment.kwargs)
        return Outcome(experiment, "finished")

    # A page may make what it reads, and `trained` has made it already.
    monkeypatch.setattr(logx, "holds_results", lambda folder: False)
    monkeypatch.setattr(run_utils, "holds_results", lambda folder: False)
    monkeypatch.setattr(run_utils, "run_one", run_here)
    monkeypatch.setattr(run_utils, "run_all", lambda them, *_: [*map(run_here, them)])
    monkeypatch.setattr(mpi_tools, "mpi_fork", lambda n, bind_to_core=False: None)
    plot.plt.switch_backend("Agg")
    yield
    plot.plt.close("all")


@on_pages
@pytest.mark.timeout(120)
def test_python_code_runs(page, small_world):
    """The blocks of a page, one after another in one namespace, as a reader would run them."""
    namespace = {"__name__": "__main__"}
    for block in read_blocks(page):
        if block.language == "python" and not block.not_run:
            code = "\n" * block.line + block.code  # so that an error names the page's line
            exec(compile(code, name_of(page), "exec"), namespace)  # noqa: S102 (our own pages)


@on_pages
def test_commands_parse(page, monkeypatch, tmp_path):
    monkeypatch.setattr(plot, "make_plots", lambda *args, **kwargs: [])
    monkeypatch.setattr(plot, "_can_show", lambda: True)
    monkeypatch.setattr(run_status, "find", lambda folders: [tmp_path / "status.json"])
    monkeypatch.setattr(test_policy, "_watch", lambda args: [0.0] * args.episodes)
    monkeypatch.setattr(devices, "choose_device", lambda device: device)
    monkeypatch.setattr(run, "_check_options", lambda options: None)  # needs TensorBoard
    for words in read_commands(page):
        command, *rest = words
        if command in run.UTILITIES or {"--help", "help", "--version"} & set(words):
            assert run.main(words) == 0, words
            continue
        try:
            algorithm = getattr(spinup, command)
            grid, options = run.build_grid(command, algorithm, rest)
            plan = grid.plan(algorithm, **(options | dict(data_dir=tmp_path)))
        except (AttributeError, UsageError, ValueError) as error:
            pytest.fail(f"{name_of(page)}: {shlex.join(words)}: {error}")
        assert plan.experiments


@on_pages
def test_make_has_the_targets(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    shell = "".join(b.code for b in read_blocks(page) if b.language != "python")
    asked = set(re.findall(r"^make ([a-z-]+)", shell, re.M))
    asked |= set(re.findall(r"`make ([a-z-]+)`", read_prose(page)))

    assert asked <= targets


# --- Links ----------------------------------------------------------------------------------------


def anchors_of(page):
    """Returns the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", read_prose(page), re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_links_lead_somewhere(page):
    for text, link in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", read_prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        where = f"{name_of(page)}: [{text}]({link})"
        assert target.exists(), where
        assert not anchor or anchor in anchors_of(target), where
        name = re.fullmatch(r"`(\w+)`", text)
        if name and target.suffix == ".py":
            assert re.search(rf"^(def|class) {name[1]}\b", target.read_text(), re.M), where


@on_pages
def test_every_page_is_in_the_index(page):
    index = ROOT / "docs" / "README.md"
    linked = {
        (index.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", index.read_text())
    }

    assert page == index or page in linked


def test_images_are_small():
    sizes = {name_of(path): path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()}

    assert sizes
    assert max(sizes.values()) < 150_000, sizes


# --- Algorithms' pages ----------------------------------------------------------------------------


def page_of(algorithm):
    return ROOT / "docs" / "algorithms" / f"{algorithm}.md"


def read_default(text):
    """Returns the default that a cell shows: a literal, or the name of a class."""
    text = text.strip("`")
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keywords_and_defaults_are_those_of_the_signature(algorithm):
    documented = {
        name.strip("`"): read_default(default)
        for name, default, *_ in read_table(page_of(algorithm), "The function")
    }

    actual = {}
    for name, parameter in inspect.signature(getattr(spinup, algorithm)).parameters.items():
        default = parameter.default
        actual[name] = getattr(default, "__name__", default)
    actual["env_fn"] = "required"
    assert list(documented.items()) == list(actual.items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keywords_are_in_the_docstring(algorithm):
    function = getattr(spinup, algorithm)

    assert list(read_docstring(function)[1]) == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_columns_are_those_of_the_log(algorithm, trained):
    table = read_table(page_of(algorithm), "Logged columns")
    documented = [name for row in table for name in re.findall(r"`(\w+)`", row[0])]

    with open(next(trained.glob(f"data/{algorithm}/*/progress.txt"))) as file:
        assert documented == next(csv.reader(file, delimiter="\t"))
