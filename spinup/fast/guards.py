"""Guards: the Python values that a captured update reads, compared at each call.

A replay doesn't run the update's Python code. All values that this code reads must therefore be the
same as at the recording: numbers and flags by value, tensors and modules by identity and address.
`Guards` finds these values by walking the code of the update and of all functions that it can reach
through closures, globals, attributes and containers, and compares them within microseconds. Code
that depends on values that can't be compared (a random number, the time, an iterator) is refused by
name.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import importlib.util
import re
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from operator import attrgetter, getitem, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

# Modules whose functions depend only on their arguments, or on tensors, which a recording sees
_TRUSTED = {"torch", "numpy", "math", "cmath", "operator", "functools", "itertools", "collections"}
_TRUSTED |= {"contextlib", "copy", "dataclasses", "enum", "typing", "types", "abc", "numbers"}
_TRUSTED |= {"_operator", "_functools", "_collections", "_collections_abc", "builtins"}
# Functions of this library that return the same at each call
_TRUSTED_FUNCTIONS = {
    f"spinup.utils.mpi_tools.{name}" for name in ("num_procs", "proc_id", "rank_share")
} | {"spinup.runs.watchdog.still_alive"}
# Parts of trusted modules that read more than their arguments, or bypass PyTorch's dispatcher
_DISTRUSTED = (
    *("numpy.random", "torch.utils.data", "torch._dynamo", "torch.compiler"),
    "torch.utils.checkpoint",  # sets the state of the random generator
)
_DISTRUSTED_BUILTINS = {print, input, open, eval, exec, compile, __import__, globals, locals, id}
_DISTRUSTED_NAMES = {"manual_seed", "set_rng_state", "get_rng_state", "set_state", "get_state"}
_DISTRUSTED_NAMES |= {"fork_rng", "initial_seed", "set_default_dtype", "set_num_threads"}
_DISTRUSTED_NAMES |= {"data_ptr", "untyped_storage", "set_flush_denormal", "from_dlpack"}
# Names (the last is an instruction) by which code can read attributes that it doesn't name
_REFLECTION = {"getattr", "setattr", "hasattr", "delattr", "vars", "attrgetter", "methodcaller"}
_REFLECTION |= {"__dict__", "__getattribute__", "asdict", "astuple", "replace", "MATCH_CLASS"}

_ATOMS: tuple[type, ...] = (
    *(int, float, complex, bool, str, bytes, type(None), type(...), type(NotImplemented)),
    *(range, slice, np.generic, np.dtype, enum.Enum, torch.dtype, torch.device, torch.Size),
    *(torch.layout, torch.memory_format, torch.Generator),
)
_BUILTINS: tuple[type, ...] = (
    *(types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType),
    *(types.MethodWrapperType, types.ClassMethodDescriptorType, np.ufunc),
)
_ARRAY_FORM = {"shape", "dtype", "ndim", "size", "strides", "itemsize", "nbytes"}
_MODULE_PARTS = (
    *("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"),
    *("_backward_hooks", "_backward_pre_hooks"),
)
_MODULE_VARS = vars(nn.Module()).keys()
# Special methods that no operation of an update calls
_NOT_CALLED = {"__init__", "__new__", "__repr__", "__str__", "__del__", "__init_subclass__"}
_NOT_CALLED |= {"__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__class_getitem__"}

_LARGEST_ARRAY = 64  # elements; all of them are compared at each call
_MOST_READS = 3000
_HEAP_TYPE = 1 << 9
_MISSING, _UNKNOWN = object(), object()  # _UNKNOWN: exists only in a call

_content = attrgetter("cell_contents")
_form = attrgetter("shape", "requires_grad")
_grad = attrgetter("grad")
_pointer = Tensor.data_ptr


class Guards:
    """The Python values that an update reads, as they are when the guards are made.

    Args:
        update: the update.
        skip: code of functions that every replay calls, and that therefore need no guards.
        device_type: the type of the device of its tensors; besides that, they may be on the CPU.

    Attributes:
        obstacle: why the values can't be compared with certainty, or None.
    """

    def __init__(
        self, update: Callable[..., Any], skip: set[types.CodeType], device_type: str = "cpu"
    ):
        self.obstacle: str | None = None
        walk = _Walk(skip, device_type)
        try:
            walk.run(update)
            self._tensors = [x for x, _ in walk.tensors.values()]
            sized = list(walk.sized.values())
            self._empty = [x for x, _ in sized if not x]  # most are hooks of modules
            self._empty_labels = [label for x, label in sized if not x]
            self._filled = [x for x, _ in sized if x]
            self._sets = [x for x, _ in walk.sets.values()]
            self._arrays = [x for x, _ in walk.arrays.values()]
            self._named = [[label for x, label in sized if x]]
            self._named += [
                [label for _, label in kind.values()]
                for kind in (walk.tensors, walk.tensors, walk.arrays, walk.sets)
            ]
            self._reads = [
                _Reads(_content, [(cell,) for cell, _ in walk.cells.values()], walk.cells),
                _Reads(getitem, [place for place, _ in walk.items.values()], walk.items),
                _Reads(getattr, [place for place, _ in walk.slots.values()], walk.slots),
                _Reads(_grad, [(x,) for x in self._tensors], walk.tensors),
            ]
            self._states = self._read_states()
        except _Uncertain as error:
            self.obstacle = str(error)
        except Exception as error:  # noqa: BLE001 (a user's object may raise anything)
            self.obstacle = f"its code can't be analysed ({type(error).__name__}: {error})"

    def hold(self) -> bool:
        """Returns True if no value has changed."""
        try:
            return (
                all(reads.hold() for reads in self._reads)
                and not any(self._empty)
                and self._read_states() == self._states
            )
        except (LookupError, ValueError, AttributeError, RuntimeError):
            return False

    def change(self) -> str | None:
        """Returns the name of a value that has changed, or None if all are equal."""
        for reads in self._reads:
            label = reads.change()
            if label is not None:
                return label
        for x, label in zip(self._empty, self._empty_labels, strict=True):
            if x:
                return label
        now = self._read_states()
        for before, after, labels in zip(self._states, now, self._named):
            for x, y, label in zip(before, after, labels, strict=True):
                if x != y:
                    return label
        return None if now == self._states else "a global setting of PyTorch"

    def _read_states(self):
        return (
            list(map(len, self._filled)),
            list(map(_pointer, self._tensors)),
            list(map(_form, self._tensors)),
            list(map(_array_state, self._arrays)),
            list(map(frozenset, self._sets)),
            _settings(),
        )


class _Reads:
    """Values that one function reads. They must be the same objects at each call."""

    def __init__(self, read, places, labeled):
        self.read, self.places = read, places
        self.columns = list(zip(*places))
        self.labels = [label for _, label in labeled.values()]
        self.values = [read(*place) for place in places]

    def hold(self):
        return all(map(is_, map(self.read, *self.columns), self.values)) if self.columns else True

    def change(self):
        """Returns the name of the first value that has changed. Equal numbers aren't a change."""
        for i, (place, before) in enumerate(zip(self.places, self.values)):
            try:
                now = self.read(*place)
            except (LookupError, ValueError, AttributeError):
                return self.labels[i]
            if now is not before:
                if type(now) is not type(before) or not _is_equal(now, before):
                    return self.labels[i]
                self.values[i] = now
        return None


def _is_equal(x, y):
    """Returns True for equal numbers, strings and tuples of them."""
    if isinstance(x, tuple):
        return len(x) == len(y) and all(
            type(a) is type(b) and _is_equal(a, b) for a, b in zip(x, y)
        )
    return isinstance(x, _ATOMS) and not isinstance(x, torch.Generator) and repr(x) == repr(y)


def _array_state(x):
    return x.ctypes.data, x.shape, x.dtype, x.tobytes()


def _settings():
    return (
        getattr(sys.modules.get("spinup.fast.nodes"), "_adds_in_place", None),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )


class _Uncertain(Exception):
    """Says why the values on which code depends can't be known."""


class _Walk:
    """Finds all values that code can read. Each kind is a dict from id to (object, name)."""

    def __init__(self, skip, device_type):
        self.skip, self.devices = skip, {"cpu", device_type}
        self.names: set[str] = set()  # of attributes whose objects aren't known
        self.reflects = False
        self.reset()

    def reset(self):
        self.cells: dict[Any, Any] = {}
        self.items: dict[Any, Any] = {}
        self.slots: dict[Any, Any] = {}
        self.sized: dict[Any, Any] = {}
        self.sets: dict[Any, Any] = {}
        self.arrays: dict[Any, Any] = {}
        self.tensors: dict[Any, Any] = {}
        self.seen: dict[Any, Any] = {}
        self.first_labels: dict[int, str] = {}
        self.kept: list[Any] = []  # keeps objects alive, so that no id is reused

    def run(self, update):
        known = None
        while known != (len(self.names), self.reflects):  # a later name may be of an earlier object
            known = len(self.names), self.reflects
            self.reset()
            self.see(update, getattr(update, "__qualname__", "the update"))

    def is_new(self, *key):
        """Returns True at the first visit of objects, and keeps them alive."""
        self.kept.append(key)
        if len(self.seen) > 10 * _MOST_READS or len(self.items) > _MOST_READS:
            raise _Uncertain("it depends on too many values to compare them at each call")
        key = tuple(map(id, key))
        return key not in self.seen and self.seen.setdefault(key, True)

    # --- Objects ---

    def see(self, x, label):
        """Visits an object that the code may use in any way."""
        if isinstance(x, _ATOMS) or x is _UNKNOWN or not self.is_new(x):
            return
        kind, label = type(x), self.label(x, label)
        if isinstance(x, (type, types.FunctionType, types.BuiltinFunctionType)):
            self.reflects |= x.__name__ in _REFLECTION  # whatever its name in the code
        if hasattr(x, "_torchdynamo_orig_callable") and not isinstance(x, type):
            raise _Uncertain(f"{label} is compiled by torch.compile")
        if isinstance(x, Tensor):
            if x.layout is not torch.strided or x.device.type not in self.devices:
                where = " or ".join(sorted(self.devices))
                raise _Uncertain(f"{label} is a tensor that is not dense or not on the {where}")
            self.tensors[id(x)] = x, label
            self.see_attributes(x, self.names_of(x) & vars(x).keys(), label)
        elif kind in (list, deque) or isinstance(x, tuple):
            self.see_items(x, enumerate(x), label)
        elif kind in (dict, OrderedDict):
            self.see_items(x, x.items(), label)
        elif kind in (set, frozenset) and all(isinstance(y, _ATOMS) for y in x):
            self.sets[id(x)] = x, label
        elif kind is np.ndarray:
            if x.size > _LARGEST_ARRAY or x.dtype.hasobject:
                raise _Uncertain(f"it reads {label}, an array too large to compare at each call")
            self.arrays[id(x)] = x, label
        elif isinstance(x, types.FunctionType):
            self.see_function(x, label)
        elif isinstance(x, types.MethodType):
            self.see_function(x.__func__, label, x.__self__)
        elif isinstance(x, (*_BUILTINS, type(np.sum))):
            self.see_builtin(x, label)
        elif isinstance(x, functools.partial):
            self.see((x.func, x.args, x.keywords), label)
        elif isinstance(x, (staticmethod, classmethod)):
            self.see(x.__func__, label)
        elif isinstance(x, type):
            self.see_class(x, label)
        elif isinstance(x, types.ModuleType):
            self.see_attributes(x, () if _is_trusted(x.__name__) else self.names_of(x), label)
        elif isinstance(x, torch.jit.ScriptModule):
            raise _Uncertain(f"{label} is a TorchScript module")
        elif isinstance(x, nn.Module):
            self.see_module(x, label)
        elif isinstance(x, torch.optim.Optimizer):
            self.see_items(x.param_groups, enumerate(x.param_groups), f"{label}.param_groups")
            for i, state in enumerate(x.state.values()):
                self.see(state, f"{label}.state[{i}]")
            self.sized[id(x.state)] = x.state, f"{label}.state"
        else:
            self.see_instance(x, label)

    def label(self, x, label):
        """Returns the first name of an object, which says more than `self`."""
        if isinstance(x, _ATOMS):
            return label
        self.kept.append(x)
        return self.first_labels.setdefault(id(x), label)

    def see_items(self, x, items, label):
        self.sized[id(x)] = x, label
        for key, value in list(items):
            name = f"{label}[{key!r}]" if isinstance(key, (int, str)) else f"an item of {label}"
            if not isinstance(x, tuple):
                self.items[id(x), key if isinstance(key, (int, str)) else id(key)] = (x, key), name
            self.see(value, name)

    def see_module(self, x, label):
        for part in _MODULE_PARTS:
            self.see(vars(x)[part], f"{label}.{part}")
        self.attribute(x, "training", label)
        if _is_trusted(type(x).__module__):
            names = [k for k in vars(x) if not k.startswith("_")]
            self.see_attributes(x, names, label)
        else:
            self.see_attributes(x, {"forward", *self.names_of(x)} - _MODULE_VARS, label)
            self.see_special_methods(x, label)

    def see_instance(self, x, label):
        base = next(b for b in type(x).__mro__ if not b.__flags__ & _HEAP_TYPE)
        values = [v for k in type(x).__mro__ if k is not object for v in vars(k).values()]
        in_python = not any(isinstance(v, _BUILTINS) for v in values)
        is_known = isinstance(x, (Distribution, types.SimpleNamespace))
        if isinstance(x, Distribution) and _is_trusted(type(x).__module__):
            self.see_attributes(x, list(vars(x)), label)
            return
        if isinstance(x, (torch.no_grad, torch.enable_grad)):
            return
        is_foreign = _root(type(x).__module__) in _TRUSTED | set(sys.stdlib_module_names)
        if not is_known and (base is not object or not in_python or is_foreign):
            raise _Uncertain(f"it uses {label}, a {type(x).__module__}.{type(x).__qualname__}")
        self.see_attributes(x, self.names_of(x), label)
        self.see_special_methods(x, label)

    def see_special_methods(self, x, label):
        for owner in type(x).__mro__:
            if _is_trusted(owner.__module__):
                continue
            for name, function in vars(owner).items():
                is_special = name.startswith("__") and name not in _NOT_CALLED
                if is_special and isinstance(function, types.FunctionType):
                    self.see_function(function, f"{label}.{name}", x)

    def see_class(self, x, label):
        """Visits a class, whose methods may be called on unknown instances."""
        names = self.names_of(x)
        for owner in x.__mro__:
            if _is_trusted(owner.__module__):
                continue
            if _root(owner.__module__) in sys.stdlib_module_names:
                raise _Uncertain(f"it uses {owner.__module__}.{owner.__qualname__}")
            for name, value in list(vars(owner).items()):
                if isinstance(value, property):
                    value = value.fget
                is_method = isinstance(value, (types.FunctionType, staticmethod, classmethod))
                if is_method and (name in names or name.startswith("__")):
                    self.see(value, f"{label}.{name}")
                elif name in names and not isinstance(value, types.MemberDescriptorType):
                    self.see(self.item(vars(owner), name, f"{label}.{name}"), f"{label}.{name}")
                elif name in ("forward", "backward"):
                    self.see(value, f"{label}.{name}")

    def see_builtin(self, x, label):
        owner = getattr(x, "__self__", None)
        if x in _DISTRUSTED_BUILTINS:
            raise _Uncertain(f"it calls {x.__name__}()")
        if owner is not None and not isinstance(owner, (types.ModuleType, type)):
            self.see(owner, label)
            return
        where = x.__module__ if getattr(x, "__module__", None) else None
        if where is None:
            where = (
                getattr(owner or getattr(x, "__objclass__", None), "__module__", None) or "builtins"
            )
        if not _is_trusted(where):
            raise _Uncertain(f"it calls {where}.{x.__name__}()")

    # --- Attributes ---

    def names_of(self, x):
        """Returns the names of attributes that code may read from an object of unknown origin."""
        if not self.reflects:
            return self.names
        kind = x if isinstance(x, type) else type(x)
        names = {*self.names, *getattr(kind, "__match_args__", ())}
        for owner in kind.__mro__:
            if not _is_trusted(owner.__module__):
                names |= {name for name, value in vars(owner).items() if _is_data(name, value)}
        return names if kind is x else {*names, *getattr(x, "__dict__", ())}

    def see_attributes(self, x, names, label):
        for name in sorted(names if isinstance(x, types.ModuleType) else set(names) - _NOT_CALLED):
            value = self.attribute(x, name, label)
            if value is not _UNKNOWN:
                self.see(value, f"{label}.{name}")

    def attribute(self, x, name, label):
        """Guards the place that holds an attribute, and returns its value or `_UNKNOWN`."""
        label = f"{label}.{name}"
        if isinstance(x, types.ModuleType):
            if _is_trusted(x.__name__):
                return getattr(x, name, _UNKNOWN)
            return self.item(vars(x), name, label)
        if isinstance(x, enum.EnumMeta):
            return getattr(x, name, _UNKNOWN)
        if isinstance(x, type):
            owner = next((k for k in x.__mro__ if name in vars(k)), None)
            if owner is None:
                return _UNKNOWN
            if _is_trusted(owner.__module__):  # such as `apply` of a user's torch.autograd.Function
                self.see(x, label.rpartition(".")[0])
                return _UNKNOWN
            return self.item(vars(owner), name, label)
        owner = next((k for k in type(x).__mro__ if name in vars(k)), None)
        on_class = _MISSING if owner is None else vars(owner)[name]
        if isinstance(on_class, (property, functools.cached_property)):
            is_cached = not isinstance(on_class, property)
            for f in (on_class.func,) if is_cached else (on_class.fget, on_class.fset):
                self.see_function(f, label, x)
            if not is_cached or name not in vars(x):
                return _UNKNOWN
        if isinstance(on_class, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            if name == "__dict__":
                self.see_attributes(x, list(vars(x)), label)
                return _UNKNOWN
            self.slots[id(x), name] = (x, name), label
            self.kept.append(x)
            return getattr(x, name, _UNKNOWN)
        homes = [getattr(x, "__dict__", {})]
        if isinstance(x, nn.Module):
            homes += [x._parameters, x._buffers, x._modules]
        for home in homes:
            if name in home:
                return self.item(home, name, label)
        if on_class is _MISSING:
            if hasattr(type(x), "__getattr__"):
                self.see(x, label.rpartition(".")[0])
            return _UNKNOWN
        if isinstance(on_class, types.FunctionType):
            return types.MethodType(on_class, x)
        if isinstance(on_class, classmethod):
            return types.MethodType(on_class.__func__, type(x))
        if isinstance(on_class, staticmethod):
            return on_class.__func__
        if _is_trusted(owner.__module__):
            self.see(x, label.rpartition(".")[0])
            return _UNKNOWN
        if hasattr(type(on_class), "__get__"):
            self.see((on_class, x), label)
            return _UNKNOWN
        self.sized[id(homes[0])] = homes[0], label  # an attribute here would hide it
        self.kept.append(homes[0])
        return self.item(vars(owner), name, label)

    def item(self, holder, key, label):
        if key not in holder:
            return _UNKNOWN
        value = holder[key]
        self.kept.append(holder)
        name = id(holder) if isinstance(holder, dict) else label
        is_librarys = label == key and str(holder.get("__name__", "")).startswith("spinup.utils")
        if not isinstance(value, types.ModuleType) and not (is_librarys and callable(value)):
            self.items[name, key] = (holder, key), label
        return value

    # --- Code ---

    def see_function(self, f, label, bound=_UNKNOWN):
        if not isinstance(f, types.FunctionType):
            self.see(f, label)
            self.see(bound, label.rpartition(".")[0])
            return
        if (
            f"{f.__module__}.{f.__qualname__}" in _TRUSTED_FUNCTIONS
            or f.__code__ in self.skip
            or hasattr(f, "_is_capturable")
        ):
            return
        if not self.is_new(f, bound):
            return
        module = f.__globals__.get("__name__", "")
        cells = dict(zip(f.__code__.co_freevars, f.__closure__ or ()))
        if _is_trusted(module):
            inner = [getattr(x, "cell_contents", None) for x in cells.values()]
            inner = [x for x in inner if callable(x) and not isinstance(x, type)]
            for function in inner:  # such as the function in a decorator
                if isinstance(function, types.FunctionType):
                    self.see_function(function, label, bound)
                else:
                    self.see(function, label)
            if not inner:
                self.see(bound, label.rpartition(".")[0])  # it may read any of its attributes
            return
        if _root(module) in sys.stdlib_module_names or module.startswith(_DISTRUSTED):
            raise _Uncertain(f"it calls {module}.{f.__qualname__}()")
        fast = {}
        if bound is not _UNKNOWN and f.__code__.co_argcount:
            fast[f.__code__.co_varnames[0]] = bound
        if vars(f):
            self.see_attributes(f, self.names_of(f), label)
        for default in (*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()):
            self.see(default, f"a default of {f.__qualname__}")
        self.see_code(f.__code__, cells, f.__globals__, fast)

    def see_code(self, code, cells, variables, fast):
        steps = list(_steps(code))
        if not _REFLECTION.isdisjoint({*code.co_names, *(how for how, _ in steps)}):
            self.reflects = True
            for const in _flat(code.co_consts):  # likely names: attrgetter("options.clip")
                self.names.update(const.split(".") if isinstance(const, str) else ())
        bad = _DISTRUSTED_NAMES & set(code.co_names)
        if bad:
            raise _Uncertain(f"it uses {min(bad)}")
        value, label = _UNKNOWN, ""
        for name in fast.keys() & {name for how, name in steps if "STORE" in how and name in fast}:
            self.see(fast.pop(name), name)  # its name is assigned to another object
        for i, (how, name) in enumerate(steps):
            has_it = isinstance(value, Tensor) and name in vars(value)  # such as `p.lr_mult`
            is_plain = isinstance(value, _PLAIN) and not has_it
            if how in _OF_UNKNOWN or (how in _BY_ATTRIBUTE and value is _UNKNOWN):
                self.names.add(name)
            elif how in ("LOAD_ATTR", "LOAD_METHOD"):
                if type(value) is np.ndarray and name in _ARRAY_FORM:
                    value = _UNKNOWN
                elif is_plain:
                    self.see(value, label)
                    value = _UNKNOWN
                else:
                    value, label = self.attribute(value, name, label), f"{label}.{name}"
                continue
            elif how in ("STORE_ATTR", "DELETE_ATTR") and not is_plain:
                found = self.attribute(value, name, label)
                if found is _UNKNOWN and hasattr(value, "__dict__"):
                    self.sized[id(vars(value))] = vars(value), f"{label}.{name}"
                value = _UNKNOWN
                continue
            if value is not _UNKNOWN:
                self.see(value, label)
                value = _UNKNOWN
            if how == "STORE_GLOBAL" or (how == "STORE_DEREF" and name in cells):
                self.load(how.replace("STORE", "LOAD"), name, cells, variables, {})
            if how == "LOAD_CONST" or not isinstance(name, str):
                continue
            if how in _BY_ATTRIBUTE | _OF_UNKNOWN:
                continue
            if how == "IMPORT_NAME":
                dots = "." * steps[i - 2][1]  # of a relative import
                package = variables.get("__package__") or ""
                name = importlib.util.resolve_name(dots + name, package) if dots else name
            if "LOAD" in how or how == "IMPORT_NAME":
                value = self.load(how, name, cells, variables, fast)
                label = self.label(value, name)
        for const in code.co_consts:
            if isinstance(const, types.CodeType) and const not in self.skip:
                inner = {k: v for k, v in fast.items() if k in const.co_freevars}
                self.see_code(const, cells, variables, inner)

    def load(self, how, name, cells, variables, fast):
        """Returns the value that an instruction loads, `_UNKNOWN` if it exists only in a call."""
        if how == "IMPORT_NAME":
            return sys.modules.get(name, _UNKNOWN)
        if name in fast:
            return fast[name]
        if name in cells:
            cell = cells[name]
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                return _UNKNOWN
            self.cells[id(cell)] = cell, name
            return value
        if how in ("LOAD_GLOBAL", "LOAD_NAME"):
            if name in variables:
                return self.item(variables, name, name)
            return getattr(builtins, name, _UNKNOWN)
        return _UNKNOWN


_BY_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR"}
_OF_UNKNOWN = {"LOAD_SUPER_ATTR", "IMPORT_FROM"}
_PLAIN = (*_ATOMS, Tensor, list, tuple, dict, set, frozenset, deque, np.ndarray)


def _steps(code):
    """Yields names and arguments of instructions; splits an instruction that combines two."""
    for step in dis.get_instructions(code):
        if isinstance(step.argval, tuple) and "_FAST" in step.opname:  # since Python 3.13
            kinds = re.findall("LOAD|STORE", step.opname)
            yield from zip([f"{kind}_FAST" for kind in kinds], step.argval, strict=True)
        elif step.opname not in ("CACHE", "PUSH_NULL", "EXTENDED_ARG"):
            yield step.opname, step.argval


def _flat(constants):
    for x in constants:
        yield from _flat(x) if isinstance(x, tuple) else (x,)


def _is_data(name, value):
    """Returns True for an attribute of a class that is neither a method nor Python's own."""
    is_slot = isinstance(value, types.MemberDescriptorType)
    is_own = name.startswith(("__", "_abc_"))
    return not is_own and (is_slot or not hasattr(type(value), "__get__"))


def _root(module):
    return module.split(".")[0]


def _is_trusted(module):
    if module.startswith("spinup.fast"):
        return True
    return _root(module) in _TRUSTED and not module.startswith(_DISTRUSTED)
