"""The help pages of ``python -m spinup.run help`` and ``ppo --help``."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable

from spinup.algos import ALGORITHMS
from spinup.cli.flags import RUN_FLAGS, SUBSTITUTIONS, parameters_of, read_docstring

# Meanings of arguments that the docstrings of the networks don't repeat.
NETWORK_MEANINGS = {
    "ac_kwargs:hidden_sizes": "number of units in each hidden layer",
    "ac_kwargs:activation": "class of torch.nn after each hidden layer: tanh, relu, elu",
}

USAGE = """\
Deep reinforcement learning you can read.

  python -m spinup.run COMMAND [--flag value ...]        (or: spinup COMMAND ...)

Train
{algorithms}

Look at results
  plot DIR...         plot learning curves
  status DIR          list all runs below a folder: state, progress, errors
  test_policy DIR     watch a trained agent

More
  presets [ENV]...    commands that are known to work, by environment
  ALGORITHM --help    an algorithm's hyperparameters, with defaults and meanings
  help, --version

Examples
  python -m spinup.run ppo --env CartPole-v1 --exp_name demo
  python -m spinup.run ppo --env CartPole-v1 --seed 0 10 20 --hid[h] [32,32] [64,64] --jobs 2
  python -m spinup.run plot data/demo --save demo.png

Several values after a flag make a grid: every combination runs. --flag[x] uses x in the variants'
names, --a:b sets entry b of the dict a, and a flag without a value is true. Short forms of flags:
{substitutions}
"""


def usage() -> str:
    """Returns the page of ``help``."""
    return USAGE.format(
        algorithms="\n".join(f"  {name:<19} {entry.title}" for name, entry in ALGORITHMS.items()),
        substitutions="\n".join(f"  --{short:<5} --{key}" for short, key in SUBSTITUTIONS.items()),
    )


def algorithm_page(name: str, algorithm: Callable) -> str:
    """Returns the page of ``ALGORITHM --help``, made from its signature and docstring.

    Args:
        name: name of the algorithm on the command line.
        algorithm: function of the algorithm.
    """
    summary, _ = read_docstring(algorithm)
    parameters = parameters_of(algorithm)
    parameters.pop("ac_kwargs", None)
    networks = [p for p in parameters.values() if p.key.startswith(("actor_critic", "ac_kwargs:"))]
    entry = ALGORITHMS[name]
    actions = f"its action space is a {' or '.join(entry.actions)}"
    environment = [
        ("env", "", f"id of a Gymnasium environment, or module:id; {actions} (env_name)"),
        ("env_kwargs:NAME", "", "keyword argument NAME of the environment"),
    ]
    sections = {
        "Environment": environment,
        "Hyperparameters": _rows(p for p in parameters.values() if p not in networks),
        "Networks": _rows(networks),
        "Running": _rows(RUN_FLAGS.values()),
    }
    return "\n\n".join(
        [
            f"{name}: {summary}",
            f"  python -m spinup.run {name} --env {entry.example} [--flag value ...]",
            *(_section(title, rows) for title, rows in sections.items()),
            "Several values after a flag make a grid: every combination runs.",
        ]
    )


def _rows(parameters):
    """Returns the flag (in its short form, if any), default and meaning of each parameter."""
    short = {long: short for short, long in SUBSTITUTIONS.items()}
    rows = []
    for parameter in parameters:
        key = parameter.key
        meaning = parameter.meaning or NETWORK_MEANINGS.get(key, "")
        meaning += f" ({key})" if key in short else ""
        default = "" if "network" in parameter.kinds else _show(parameter.default)
        rows.append((short.get(key, key), default, meaning))
    return rows


def _show(default):
    if default is None or default is inspect.Parameter.empty:
        return ""
    if inspect.isclass(default):
        return default.__name__.lower()
    if isinstance(default, str) and default.startswith("nn."):  # as a source writes a class
        return default.removeprefix("nn.").lower()
    if isinstance(default, (tuple, list)):
        return "[" + ",".join(map(str, default)) + "]"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _section(title, rows):
    """Formats rows of flag, default and meaning as a section with three columns."""
    width = min(100, shutil.get_terminal_size().columns)
    bold = ("\x1b[1m{}\x1b[0m" if sys.stdout.isatty() else "{}").format
    lines = [bold(title)]
    for key, default, meaning in rows:
        head = f"  --{key:<20} {default:<9} "
        lines += textwrap.wrap(
            meaning, width, initial_indent=head, subsequent_indent=" " * len(head)
        )
    return "\n".join(lines)
