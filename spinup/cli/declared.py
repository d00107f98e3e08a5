"""Algorithms as their source declares them, without importing them.

Importing an algorithm imports PyTorch, which takes longer than everything else that the command
line does before it starts a run.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from spinup.runs.json_values import import_callable

# Names in annotations whose meaning the checks of values need. Others stand for any value.
_NAMES = {"Any": Any, "Literal": Literal, "Callable": Callable}


def declared(module: str, name: str) -> Callable:
    """Returns a stand-in for a function, which imports the function when it is called.

    The stand-in has the name, signature, annotations and docstring of the function. A default that
    is a class of networks is a stand-in, too.

    Args:
        module: name of the function's module.
        name: name of the function.

    Raises:
        ValueError: the source declares no such function in a form that can be read. Import it.
    """
    try:
        return _stand_in(*_find(module, name))
    except Exception as error:  # a source may be written in any way
        raise ValueError(f"the source of {module} doesn't declare {name}: {error}") from error


def _find(module, name):
    """Returns the module that defines a function or class, and the definition."""
    for x in _parse(module).body:
        if getattr(x, "name", None) == name:
            return module, x
        is_import = isinstance(x, ast.ImportFrom) and x.level == 0
        if is_import and name in {alias.name for alias in x.names}:
            return _find(x.module, name)
    raise ValueError(f"the source of {module} doesn't define {name}")


def _stand_in(module, found):
    def call(*args, **kwargs):
        return import_callable(f"{module}:{found.name}")(*args, **kwargs)

    if isinstance(found, ast.ClassDef):
        _, *parameters = _parameters(module, _constructor(module, found).args)  # without self
    else:
        parameters = _parameters(module, found.args)
    call.__module__, call.__name__, call.__qualname__ = module, found.name, found.name
    call.__doc__ = ast.get_docstring(found)
    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {p.name: _meaning(p.annotation) for p in parameters}
    call.__is_stand_in__ = True
    return call


def _constructor(module, found):
    """Returns the definition of a class's ``__init__``, which may be that of its first base."""
    for x in found.body:
        if getattr(x, "name", None) == "__init__":
            return x
    base, definition = _find(module, ast.unparse(found.bases[0]))
    return _constructor(base, definition)


def _parameters(module, args):
    if args.posonlyargs or args.vararg or args.kwarg:
        raise ValueError(f"a function of {module} takes arguments without names")
    empty = [None] * (len(args.args) - len(args.defaults))
    pairs = [*zip(args.args, [*empty, *args.defaults]), *zip(args.kwonlyargs, args.kw_defaults)]
    return [
        inspect.Parameter(
            arg.arg,
            inspect.Parameter.POSITIONAL_OR_KEYWORD
            if arg in args.args
            else inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if value is None else _default(module, value),
            annotation=ast.unparse(arg.annotation) if arg.annotation else inspect.Parameter.empty,
        )
        for arg, value in pairs
    ]


def _default(module, value):
    """Returns a default: a value, a class of networks, or the name of another class."""
    if isinstance(value, ast.Name):
        return _stand_in(*_find(module, value.id))
    makers = {"int": int, "float": float, "tuple": tuple}
    if isinstance(value, ast.Call) and not value.keywords:  # such as int(1e6)
        return makers[ast.unparse(value.func)](*map(ast.literal_eval, value.args))
    if isinstance(value, ast.Attribute) and ast.unparse(value.value) == "nn":  # such as nn.ReLU
        return ast.unparse(value)
    return ast.literal_eval(value)


def _parse(module):
    spec = importlib.util.find_spec(module)
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _meaning(annotation):
    """Evaluates an annotation as far as the checks of values need it."""
    try:
        hints = {"x": annotation}
        holder = type("Holder", (), {"__annotations__": hints})
        return typing.get_type_hints(holder, dict(_NAMES), {})["x"]
    except (NameError, TypeError, AttributeError):
        return Any
