"""Checks the documentation: its code and its commands run, its links work, its tables are right.

A block of code that can't run here has ``<!-- not run: reason -->`` on the line above it.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import inspect
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import spinup
from spinup.algos import ALGORITHMS
from spinup.cli.flags import UsageError, read_docstring
from spinup.cli.main import build_grid, main
from spinup.launch.slurm import read_options

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "data" / "README.md"]

# Keywords for runs of a second. Each algorithm takes those that it has.
TINY = dict(
    steps_per_epoch=200,
    epochs=2,
    train_pi_iters=2,
    train_v_iters=2,
    cg_iters=2,
    start_steps=20,
    update_after=20,
    update_every=20,
    batch_size=8,
    num_test_episodes=1,
    max_ep_len=30,
    alpha="auto",  # adds the column Alpha
)


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
    """A folder with small runs in ``data``, with the names that the pages use."""
    root = tmp_path_factory.mktemp("trained")
    for name, entry in ALGORITHMS.items():
        algorithm = getattr(spinup, name)
        parameters = inspect.signature(algorithm).parameters
        logger_kwargs = dict(output_dir=root / "data" / name / f"{name}_s0", exp_name=name)
        kwargs = {key: value for key, value in TINY.items() if key in parameters}
        algorithm(entry.example, **kwargs, logger_kwargs=logger_kwargs)
    for copy in ("demo", "ranks", "cartpole"):
        shutil.copytree(root / "data" / "ppo", root / "data" / copy)
        (root / "data" / copy / "ppo_s0").rename(root / "data" / copy / f"{copy}_s0")
    return root


# Pages whose code reads runs that commands on the page or on other pages make.
READ_RUNS = ("docs/plotting.md", "docs/saving_and_loading.md")

# Replacements that let a page run in seconds: fewer epochs and seeds.
SHORTER = [(r"\bepochs=\d+", "epochs=2"), (r"\[0, 10, 20\]", "[0]")]


def read_script(page):
    """Returns a page's code as one script, in which each line has its line number on the page."""
    lines = [""] * len(page.read_text(encoding="utf-8").splitlines())
    for block in read_blocks(page):
        if block.language == "python" and not block.not_run:
            code = block.code.splitlines()
            lines[block.line : block.line + len(code)] = code
    return "\n".join(lines)


@pytest.mark.parametrize("page", [page for page in PAGES if read_script(page).strip()], ids=name_of)
def test_python_code_runs(page, trained, tmp_path, run_python):
    """Runs the blocks of a page in order, as a reader would."""
    if name_of(page) in READ_RUNS:
        shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    code = read_script(page)
    for pattern, shorter in SHORTER:
        code = re.sub(pattern, shorter, code)
    script = tmp_path / f"{page.stem}.py"
    script.write_text(code, encoding="utf-8")

    result = run_python([script.name], env=surroundings(tmp_path), timeout=280)

    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


def surroundings(folder):
    """Returns environment variables for a system without display, with its data in a folder."""
    return {
        "MPLBACKEND": "Agg",
        "SDL_VIDEODRIVER": "dummy",
        "SPINUP_DATA_DIR": str(folder / "data"),
    }


def plan(command, words, folder):
    """Returns the plan of the grid that a command line describes, without running it."""
    algorithm = getattr(spinup, command)
    grid, options = build_grid(command, algorithm, words)
    if "slurm" in options:
        read_options(options.pop("slurm"))
    return grid.plan(algorithm, **(options | dict(data_dir=folder)))


@on_pages
def test_commands_are_understood(page, trained, monkeypatch, tmp_path):
    """Plans the commands that train, whatever is installed, and runs all others."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name, value in surroundings(tmp_path).items():
        monkeypatch.setenv(name, value)
    for command, *rest in read_commands(page):
        words = shlex.join([command, *rest])
        if command in ALGORITHMS and "--help" not in rest:
            try:
                assert plan(command, rest, tmp_path / "new").experiments
            except (UsageError, ValueError) as error:
                pytest.fail(f"{name_of(page)}: {words}: {error}")
        elif "--video" not in rest or importlib.util.find_spec("moviepy"):
            assert main([command, *rest]) == 0, words
    plt.close("all")


@pytest.mark.slow
@pytest.mark.timeout(900)
@on_pages
def test_commands_that_train_run(page, tmp_path, run_python):
    for command, *rest in read_commands(page):
        if command not in ALGORITHMS or {"--help", "--slurm"} & set(rest):
            continue
        line = shlex.join(["-m", "spinup.run", command, *rest, "--overwrite"])
        line = re.sub(r" --(epochs \d+|resume)", "", line).replace("--seed 0 10 20", "--seed 0")
        line += " --epochs 1"
        result = run_python(shlex.split(line), env=surroundings(tmp_path), timeout=400)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"


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


# --- Adding an algorithm --------------------------------------------------------------------------

ADDING = ROOT / "docs" / "adding_an_algorithm.md"


def source_lines(name):
    return [line.strip() for line in (ROOT / "spinup" / "algos" / name).read_text().splitlines()]


def test_the_differences_shown_are_those_of_the_files():
    old, new = source_lines("ddpg.py"), source_lines("td3.py") + source_lines("__init__.py")
    shown = [
        line for b in read_blocks(ADDING) if b.language == "diff" for line in b.code.split("\n")
    ]
    assert len(shown) > 20
    for line in filter(None, shown):
        here, there = (old, new) if line[0] == "-" else (new, old)
        assert line[1:].strip() in here, line
        assert line[1:].strip() not in there, line


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_files_have_the_stages_in_their_order(algorithm):
    stages = [row[0].strip("`") for row in read_table(ADDING, "The file")]
    text = (ROOT / "spinup" / "algos" / f"{algorithm}.py").read_text()
    body = text.partition("\n@training_run\n")[2]
    if "ReplayBuffer(" not in body:
        stages.remove("# Targets")
    places = [body.find(f"\n    {stage}") for stage in stages]  # lines of the function's body
    assert -1 not in places, dict(zip(stages, places))
    assert places == sorted(places)
