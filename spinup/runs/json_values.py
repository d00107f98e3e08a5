"""Conversion of configurations to JSON: readable for people, or exact for another process.

`convert_json` describes any object for people and never fails. `encode` and `decode` are exact
inverses for the few types that the spec of an experiment may contain, and refuse other types. None
of them uses pickles or evaluates text.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np

# Keys of encoded values; the keys of a user's dict can't start with two underscores.
TUPLE = "__tuple__"
TORCH_NN = "__torch.nn__"

# Addresses are removed: they would make equal configurations differ.
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def convert_json(obj: Any) -> Any:
    """Describes any object by values that ``json`` can write, for people to read.

    It never raises.

    Args:
        obj: a configuration: nested dicts, lists, functions, classes, arrays, spaces, ...

    Returns:
        The same structure. Dicts get string keys; lists, tuples and sets become lists; NumPy
        scalars and arrays become numbers and lists; functions and classes become
        ``"module:qualname"``; all other objects, such as paths, dtypes, devices and spaces, become
        their text. NaN and infinity, which JSON doesn't have, become ``"nan"``, ``"inf"`` and
        ``"-inf"``. A container within itself becomes ``"<cycle>"``.
    """
    return _describe(obj, within=())


def _describe(obj: Any, within: tuple) -> Any:
    if obj is None or isinstance(obj, (bool, str)):
        return str(obj) if isinstance(obj, str) else obj
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else str(float(obj))
    if isinstance(obj, (np.generic, np.ndarray)):
        return _describe_array(obj, within)
    if isinstance(obj, (dict, list, tuple, set, frozenset)):
        return _describe_container(obj, within)
    if isinstance(obj, PurePath):
        return str(obj)
    return _describe_object(obj)


def _describe_array(obj: Any, within: tuple) -> Any:
    values = obj.tolist()  # some scalars, such as long doubles, are returned unchanged
    return _text(obj) if isinstance(values, np.generic) else _describe(values, within)


def _describe_container(obj: Any, within: tuple) -> Any:
    if id(obj) in within or len(within) > 100:
        return "<cycle>"
    within += (id(obj),)
    if isinstance(obj, dict):
        return {_describe_key(key): _describe(value, within) for key, value in obj.items()}
    items = sorted(obj, key=_text) if isinstance(obj, (set, frozenset)) else obj
    return [_describe(item, within) for item in items]


def _describe_key(key: Any) -> str:
    described = _describe(key, ())
    return described if isinstance(described, str) else str(described)


def _describe_object(obj: Any) -> Any:
    try:
        name = qualified_name(obj)
    except Exception:  # noqa: BLE001 (any __getattr__ may raise)
        name = None
    if name is not None:
        return name
    function = getattr(obj, "func", None) if type(obj).__name__ == "partial" else None
    if function is not None:
        partial = {"args": obj.args, "kwargs": obj.keywords}
        return {"partial": _describe_object(function), **_describe(partial, ())}
    return _text(obj)


def _text(obj: Any) -> str:
    try:
        return ADDRESS.sub("", str(obj))
    except Exception:  # noqa: BLE001 (any __str__ may raise)
        return f"<{type(obj).__module__}:{type(obj).__qualname__}>"


def qualified_name(obj: Any) -> str | None:
    """Returns the name ``"module:qualname"`` of a function, class or built-in, else None."""
    if not (inspect.isclass(obj) or inspect.isroutine(obj)):
        return None
    module = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    return f"{module}:{qualname}" if module and qualname else qualname


def importable_name(obj: Any) -> str | None:
    """Returns the name by which another process can import an object.

    Args:
        obj: any object, usually a function.

    Returns:
        ``"module:qualname"``; None if this name doesn't refer to the same object (lambdas, nested
        functions, everything in ``__main__``).
    """
    name = qualified_name(obj)
    if name is None or ":" not in name or name.startswith("__main__:"):
        return None
    if getattr(obj, "__is_stand_in__", False):  # see spinup.cli.declared
        return name
    module, qualname = name.split(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return name if found is obj else None


def import_callable(name: str) -> Callable:
    """Imports the function or class with the name ``"module:qualname"``.

    Raises:
        ValueError: the name doesn't have this form, can't be imported, or can't be called.
    """
    module, colon, qualname = name.partition(":")
    if not (module and colon and qualname):
        raise ValueError(f"{name!r} is not the name of a function: write it as 'module:function'.")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Cannot import {name!r}: {error}.") from error
    if not callable(found):
        raise ValueError(f"{name!r} cannot be called; it is a {type(found).__name__}.")
    return found


def encode(obj: Any) -> Any:
    """Encodes a value for a JSON spec so that `decode` returns an equal value of the same type.

    Args:
        obj: None, bool, int, float, str, a class of ``torch.nn``, or lists, tuples and dicts (with
            string keys) of these.

    Returns:
        A value that ``json`` can write.

    Raises:
        TypeError: the value has another type.
    """
    if obj is None or type(obj) in (bool, int, float, str):
        return obj
    if type(obj) is list:
        return [encode(item) for item in obj]
    if type(obj) is tuple:
        return {TUPLE: [encode(item) for item in obj]}
    if type(obj) is dict and all(type(key) is str and key[:2] != "__" for key in obj):
        return {key: encode(value) for key, value in obj.items()}
    name = torch_nn_name(obj)
    if name is not None:
        return {TORCH_NN: name}
    raise TypeError(f"A {type(obj).__name__} cannot be written in a JSON spec.")


def decode(obj: Any) -> Any:
    """Returns the value that `encode` was given.

    Raises:
        ValueError: the value names a class that isn't in ``torch.nn``.
    """
    if isinstance(obj, list):
        return [decode(item) for item in obj]
    if not isinstance(obj, dict):
        return obj
    if set(obj) == {TUPLE}:
        return tuple(decode(item) for item in obj[TUPLE])
    if set(obj) == {TORCH_NN}:
        return torch_nn_class(obj[TORCH_NN])
    return {key: decode(value) for key, value in obj.items()}


def torch_nn_name(obj: Any) -> str | None:
    """Returns the name of a class in ``torch.nn``, such as ``"Tanh"``; None for other objects."""
    nn = sys.modules.get("torch.nn")  # if it isn't imported, obj isn't one of its classes
    if nn is None or not inspect.isclass(obj):
        return None
    name = str(obj.__name__)
    return name if getattr(nn, name, None) is obj else None


def torch_nn_class(name: str) -> type:
    """Returns the class in ``torch.nn`` with this exact name.

    Raises:
        ValueError: there is no module class with this name.
    """
    from torch import nn

    found = getattr(nn, str(name), None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ValueError(f"{name!r} is not the name of a class in torch.nn, such as 'Tanh'.")
    return found


def find_activation(text: str) -> type | None:
    """Returns the class of torch.nn for ``tanh``, ``nn.Tanh`` or ``torch.nn.Tanh``.

    Returns:
        The class; None if torch.nn has no such class, or if the class needs arguments.
    """
    from torch import nn

    prefix, _, name = text.rpartition(".")
    same = [known for known in dir(nn) if known.lower() == name.lower()]
    if prefix not in ("", "nn", "torch.nn") or not same:
        return None
    try:
        found = torch_nn_class(name if name in same else same[0])
        found()  # Linear and the like need arguments: networks can't use them as activations
    except (ValueError, TypeError):
        return None
    return found


def activation_names() -> list[str]:
    """Returns the names of the activations of torch.nn, in lower case."""
    from torch.nn.modules import activation

    return [name.lower() for name in activation.__all__ if find_activation(name)]
