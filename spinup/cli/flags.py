"""Parsing of ``python -m spinup.run ppo --flag value ...`` into checked values.

Nothing is evaluated as code: values are literals, names of classes in ``torch.nn``, or strings.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spinup.cli.hints import nearest
from spinup.runs.json_values import activation_names, find_activation, import_callable
from spinup.runs.wording import one_line

# Short forms of common flags, in the order in which Spinning Up puts them into variants' names.
SUBSTITUTIONS = {
    "env": "env_name",
    "hid": "ac_kwargs:hidden_sizes",
    "act": "ac_kwargs:activation",
    "cpu": "num_cpu",
    "dt": "datestamp",
}

# Keywords of an algorithm that aren't flags.
NOT_FLAGS = ("env_fn", "logger_kwargs")

# --key, --key[shorthand], --key=value, --key[shorthand]=value
FLAG = re.compile(
    r"--(?P<key>[A-Za-z_][\w:.-]*)(\[(?P<shorthand>[^\]=]*)\])?(=(?P<value>.*))?", re.DOTALL
)
LONE_DASH = re.compile(r"-[A-Za-z_][\w-]*")


class UsageError(ValueError):
    """The command line is invalid. The message is one line for the user."""


@dataclass
class Flag:
    """A flag as it was typed: ``--hid[h] [32] [64,64]``.

    Attributes:
        typed: the name as typed, ``hid``.
        key: the key of the parameter, ``ac_kwargs:hidden_sizes``.
        shorthand: the text in brackets, or None without brackets.
        values: the words that follow.
    """

    typed: str
    key: str
    shorthand: str | None
    values: list[str]


@dataclass
class Parameter:
    """A value that a flag can set.

    Attributes:
        key: the key, ``ac_kwargs:hidden_sizes``.
        kinds: the accepted kinds of value, keys of `KINDS`; empty for any value.
        default: the default.
        meaning: one paragraph that explains the parameter.
    """

    key: str
    kinds: tuple[str, ...]
    default: Any = None
    meaning: str = ""


# Flags of the runner. Each takes one value, except slurm (key=value pairs) and wrapper (several).
RUN_FLAGS = {
    flag.key: flag
    for flag in (
        Parameter("exp_name", ("str",), None, "name of the experiment; by default cmd_ALGORITHM"),
        Parameter(
            "data_dir", ("str",), None, "results folder; by default $SPINUP_DATA_DIR, or data/"
        ),
        Parameter("num_cpu", ("int", "str"), 1, "MPI ranks of each variant; auto for all cores"),
        Parameter(
            "oversubscribe", ("bool",), False, "allow more ranks per variant than usable cores"
        ),
        Parameter("jobs", ("int", "str"), 1, "ranks that run at once; auto for all cores"),
        Parameter(
            "slurm", ("str",), None, "submit to Slurm: time=8:00:00 partition=gpu mem=4G gpus=1 ..."
        ),
        Parameter(
            "wrapper",
            ("str",),
            None,
            "wrappers of the environment, module:function, applied in order",
        ),
        Parameter("timeout", ("float",), None, "seconds after which a variant is ended"),
        Parameter("datestamp", ("bool",), False, "add date and time to the folders' names"),
        Parameter("overwrite", ("bool",), False, "replace the results in the folders"),
        Parameter(
            "resume", ("bool",), False, "continue stopped and failed variants, skip finished ones"
        ),
        Parameter("tensorboard", ("bool",), False, "also log to TensorBoard"),
        Parameter("wandb", ("str",), None, "also log to this project of Weights & Biases"),
    )
}


# --- Words to flags -------------------------------------------------------------------------------


def split_flags(words: Sequence[str]) -> list[Flag]:
    """Splits a command line into flags with their values.

    Args:
        words: the words after the algorithm's name.

    Returns:
        The flags in Spinning Up's order of parameters in variants' names: flags without brackets,
        then flags with brackets, then the short forms in `SUBSTITUTIONS`.

    Raises:
        UsageError: a word isn't a flag and doesn't follow one, or a flag is given twice.
    """
    flags: dict[str, Flag] = {}
    current = None
    for word in words:
        if not word.startswith("--"):
            current = _add_value(current, word)
            continue
        match = FLAG.fullmatch(word)
        if match is None:
            raise UsageError(f"{word!r} is not a flag: write --name, --name[short] or --name=value")
        key = SUBSTITUTIONS.get(match["key"], match["key"])
        if key in flags:
            raise UsageError(f"--{match['key']} is given twice: put all its values after one flag")
        values = [] if match["value"] is None else [match["value"]]
        current = flags[key] = Flag(match["key"], key, match["shorthand"], values)
    return sorted(flags.values(), key=_place_in_names)


def _add_value(flag, word):
    if LONE_DASH.fullmatch(word) and not _is_number(word):
        raise UsageError(f"{word!r} is not a flag: flags begin with two dashes, -{word}")
    if flag is None:
        raise UsageError(f"{word!r} follows no flag: begin with a flag, as in --env CartPole-v1")
    flag.values.append(word)
    return flag


def _is_number(word):
    try:
        float(word)
    except ValueError:
        return False
    return True


def _place_in_names(flag):
    short = list(SUBSTITUTIONS)
    place = short.index(flag.typed) if flag.typed in short else -1
    return place, flag.shorthand is not None


# --- Parameters of an algorithm -------------------------------------------------------------------


def parameters_of(
    algorithm: Callable, actor_critics: Sequence[Callable] = ()
) -> dict[str, Parameter]:
    """Returns the parameters of an algorithm that flags can set, by key.

    Args:
        algorithm: the algorithm's function. Kinds and defaults are read from its signature,
            meanings from its docstring.
        actor_critics: classes whose parameters ``ac_kwargs`` sets; by default that of the
            algorithm.
    """
    parameters = _parameters(algorithm, prefix="")
    for name in NOT_FLAGS:
        parameters.pop(name, None)
    if "actor_critic" in parameters:
        default = parameters["actor_critic"].default
        meaning = "your own class of networks, module:Class"
        parameters["actor_critic"] = Parameter("actor_critic", ("network",), default, meaning)
        for networks in actor_critics or [default]:
            if not callable(networks):
                continue
            inner = _parameters(networks, prefix="ac_kwargs:")
            parameters |= {
                k: p for k, p in inner.items() if p.default is not inspect.Parameter.empty
            }
    return parameters


def _parameters(function, prefix):
    meanings = read_docstring(function)[1]
    return {
        prefix + name: Parameter(
            prefix + name, _kinds(parameter), parameter.default, meanings.get(name, "")
        )
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _kinds(parameter):
    """Returns the kinds in an annotation such as ``float | str``, or the type of the default."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return (type(parameter.default).__name__,)
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    kinds = [part.strip().split("[")[0].split(".")[-1] for part in text.split("|")]
    return tuple(sorted(kinds, key=lambda kind: kind == "str"))  # last, as any word is a string


def read_docstring(function: Callable) -> tuple[str, dict[str, str]]:
    """Returns the first line of a Google-style docstring, and the description of each argument."""
    lines = (inspect.getdoc(function) or "").splitlines()
    meanings: dict[str, str] = {}
    name = None
    for line in lines[lines.index("Args:") + 1 :] if "Args:" in lines else []:
        if line and not line.startswith(" "):
            break
        begins = re.match(r" {4}(\w[\w, *]*?)(?: \(.*?\))?: (.*)", line)
        if begins:
            name = begins[1]
            meanings[name] = begins[2]
        elif name:
            meanings[name] += " " + line.strip()
    plain = {key: text.replace("`", "").strip().rstrip(".") for key, text in meanings.items()}
    return (lines or [""])[0], plain


# --- Words to values ------------------------------------------------------------------------------


def read_values(flag: Flag, parameter: Parameter) -> list[Any]:
    """Returns the values after a flag; a flag without values is True.

    Raises:
        UsageError: a value is missing, or has the wrong kind.
    """
    if flag.values:
        return [read_value(flag.typed, text, parameter.kinds) for text in flag.values]
    if parameter.kinds and "bool" not in parameter.kinds:
        kinds = _expected(parameter.kinds)
        raise UsageError(f"--{flag.typed} needs a value" + (f": {kinds}" if kinds else ""))
    return [True]


def read_pairs(flag: Flag) -> dict[str, str]:
    """Returns the ``key=value`` pairs after a flag as a dict, which may be empty.

    Raises:
        UsageError: a word isn't a pair, or a key is given twice.
    """
    pairs: dict[str, str] = {}
    for word in flag.values:
        key, equals, value = word.partition("=")
        if not (equals and key and value) or key in pairs:
            raise UsageError(f"--{flag.typed} takes key=value, each key once, not {word!r}")
        pairs[key] = value
    return pairs


def read_value(name: str, text: str, kinds: Sequence[str]) -> Any:
    """Converts a word to a value.

    Args:
        name: name of the flag, for messages.
        text: the word.
        kinds: the accepted kinds of value; empty for any value.

    Raises:
        UsageError: the word has none of these kinds.
    """
    literal = read_literal(text)
    if not kinds:
        return _read_anything(text, literal)
    for kind in kinds:
        accepted, value = KINDS[kind][1](text, literal) if kind in KINDS else (True, literal)
        if accepted:
            return value
    hint = ""
    if text[:1] in ("[", "(", "{") and text[-1] not in "])}":
        hint = "; write it without spaces, or in quotes"
    elif "type" in kinds:
        meant = nearest(text.rpartition(".")[2], activation_names())
        hint = f"; did you mean {meant}?" if meant else ""
    raise UsageError(f"--{name} expects {_expected(kinds)}, not {text!r}{hint}")


def read_literal(text: str) -> Any:
    """Converts a text to the value of a Python literal; returns the text if it isn't a literal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SyntaxWarnings about text that isn't code
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return text


def _read_anything(text, literal):
    if text in ("true", "false"):
        return text == "true"
    found = find_activation(text) if text.startswith(("torch.nn.", "nn.")) else None
    return literal if found is None else found


def _as_int(text, literal):
    if isinstance(literal, float) and math.isfinite(literal) and literal == int(literal):
        return True, int(literal)
    return type(literal) is int, literal


def _as_float(text, literal):
    return type(literal) in (int, float), literal


def _as_bool(text, literal):
    if text.lower() in ("true", "false"):
        return True, text.lower() == "true"
    return False, None


def _as_str(text, literal):
    return True, literal if isinstance(literal, str) else text


def _as_none(text, literal):
    return literal is None, None


def _as_dict(text, literal):
    return isinstance(literal, dict), literal


def _as_sizes(text, literal):
    is_list = isinstance(literal, (list, tuple))
    return is_list and all(type(n) is int and n > 0 for n in literal), literal


def _as_class(text, literal):
    found = find_activation(text)
    return found is not None, found


def _as_network(text, literal):
    from torch import nn

    found = import_own("actor_critic", text)
    return inspect.isclass(found) and issubclass(found, nn.Module), text


def import_own(flag: str, name: str) -> Any:
    """Imports a user's function or class by its name ``module:function``.

    Raises:
        UsageError: it can't be imported; the message has the reason.
    """
    try:
        return import_callable(name)
    except Exception as error:  # the user's module may raise anything
        raise UsageError(f"--{flag} {name}: {one_line(error)}") from error


# Kinds of value: a description for messages, and the function that converts a word.
KINDS: dict[str, tuple[str, Callable[[str, Any], tuple[bool, Any]]]] = {
    "int": ("a whole number", _as_int),
    "float": ("a number", _as_float),
    "bool": ("true or false", _as_bool),
    "str": ("", _as_str),
    "dict": ("a dict such as \"{'key': 1}\"", _as_dict),
    "Sequence": ("a list of whole numbers such as [64,64]", _as_sizes),
    "type": ("an activation of torch.nn such as tanh", _as_class),
    "network": ("a subclass of torch.nn.Module, module:Class", _as_network),
    "None": ("", _as_none),
}


def _expected(kinds):
    return " or ".join(KINDS[kind][0] for kind in kinds if kind in KINDS and KINDS[kind][0])
