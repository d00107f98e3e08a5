"""An update of networks, captured once and replayed: what it computes without Python's share.

With small networks an update on a CPU spends as much time in Python, in autograd and in allocating
memory as in arithmetic. `replayed` runs it some times as it is, writes down the operations that
really compute, and then only repeats these, each on the memory where it worked first: what CUDA
graphs are to a GPU.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from spinup.runs.watchdog import still_alive

# Replays from one check that the update is still what was captured to the next.
_CHECK_EVERY = 1000

_local = threading.local()  # its `tape` is that of the capture under way in a thread


def replayed(update: Callable[..., None]) -> Callable[..., None]:
    """Makes an update of networks on a CPU fast, if it can be captured; it computes the same.

    The update must do its work on tensors that stay where they are (parameters, their gradients,
    a minibatch from `ReplayBuffer`), by PyTorch's operations and the library's. Its arguments are
    flags: a capture is made for each combination. Two captures are compared before the first
    replay, and another one with them every thousand calls: if they differ (a Python number has
    changed, a tensor comes from elsewhere), or if the update looks at a value, it goes on as it is.

    Args:
        update: a function that returns nothing.

    Returns:
        A function to call in its place.
    """
    captured: dict[tuple, _Captured] = {}

    def call(*flags: Any, **named: Any) -> None:
        key = (*flags, *named.items())
        if key not in captured:
            captured[key] = _Captured(lambda: update(*flags, **named))
        captured[key]()

    return call


def run(function: Callable[..., Any], *args: Any, tensors: Sequence[Tensor] = ()) -> Any:
    """Calls a function, and has every replay of the update being captured call it too.

    It is for what PyTorch doesn't see: drawing a minibatch, an average over ranks, compiled code.

    Args:
        function: what to call.
        *args: arguments, the same at each replay.
        tensors: those whose addresses are among the arguments. They are kept as long as the
            capture, which is given up if one that the update didn't make comes from elsewhere.
    """
    tape = _tape()
    return function(*args) if tape is None else tape.run(function, args, tensors)


def array(x: Tensor) -> np.ndarray:
    """Returns a tensor's memory as an array, for a function that `run` is to call.

    Where an update takes values out of PyTorch in another way, its capture is given up.
    """
    tape = _tape()
    if tape is None:
        return x.numpy()
    return tape.aside(x.numpy)


def _tape() -> _Tape | None:
    return getattr(_local, "tape", None)


class _Captured:
    """An update with given flags: run as it is, then recorded twice, then replayed."""

    def __init__(self, update):
        self.update = update
        self.calls = 0
        self.tape = None
        self.is_checked = False  # against a second tape
        self.gave_up = False

    def __call__(self):
        self.calls += 1
        still_alive()
        if self.gave_up or self.calls == 1:  # the first call may allocate what stays
            self.update()
        elif not self.is_checked or self.calls % _CHECK_EVERY == 0:
            self.is_checked = False  # until it has been, if this call should fail
            self.record()
        else:
            with torch.no_grad():
                for function, args in self.tape.calls:
                    function(*args)

    def record(self):
        tape = _Tape()
        with tape:
            self.update()
        reason = tape.obstacle or (self.tape and tape.difference(self.tape))
        if reason:
            self.gave_up, self.tape = True, None
            warnings.warn(
                f"The update runs as it is, which is slower than captured: {reason}", stacklevel=4
            )
        elif self.tape is None:
            self.tape = tape
        else:
            self.is_checked = True


class _Tape(TorchDispatchMode):
    """What an update computes, as functions and their arguments."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Callable, tuple]] = []
        self.kept: list[Any] = []
        self.trace: list[Any] = []  # operations with what must be the same at each call
        self.obstacle = None
        self._lookout = _Lookout(self)
        self._inside = False  # of a function called as a whole
        self._made: dict[int, int] = {}  # storages made on the way, by address

    def __enter__(self):
        _local.tape = self
        # PyTorch's distributions look at their arguments' values, to check them
        self._checks = Distribution._validate_args
        Distribution.set_default_validate_args(False)
        self._lookout.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        _local.tape = None
        Distribution.set_default_validate_args(self._checks)
        super().__exit__(*error)
        return self._lookout.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._inside:
            return out
        outs = [x for x in (out if isinstance(out, (tuple, list)) else [out]) if x is not None]
        self.trace.append((func, *map(self._describe, [*args, *kwargs.items()])))
        if not all(isinstance(x, Tensor) for x in outs):
            self.reads_value()
            return out
        if torch.Tag.dynamic_output_shape in func.tags:
            self.obstacle = f"the shape of what {func} returns depends on values"
        self.kept.append(_detached(outs))
        if func._schema.is_mutable:
            self.calls.append((functools.partial(func, **_detached(kwargs)), _detached(args)))
        elif not _is_alias(outs, args):
            for x in outs:
                self._made[_address(x)] = len(self._made)
            if func.overloadpacket not in _EMPTY:
                self.calls.append(_into(func, args, kwargs, outs))
        return out

    def run(self, function, args, tensors):
        """Calls what is to be called as a whole, and writes it down."""
        if self._inside:  # of one that calls another
            return function(*args)
        self.calls.append((function, args))
        self.kept.append(_detached(tensors))
        self.trace.append((function, *map(self._describe, tensors)))
        return self.aside(function, *args)

    def aside(self, function, *args):
        """Calls a function without a look at what it does."""
        inside, self._inside = self._inside, True
        try:
            return function(*args)
        finally:
            self._inside = inside

    def reads_value(self):
        """Notes that the update does what a replay can't."""
        if not self._inside:
            self.obstacle = "it reads a tensor's value, as .item(), .numpy() and if do"

    def _describe(self, x):
        """Returns what must be the same at each call: numbers, shapes, memory from before."""
        if isinstance(x, (tuple, list)):
            return tuple(map(self._describe, x))
        if not isinstance(x, Tensor):
            return x
        made = self._made.get(_address(x))
        where = ("outside", _address(x)) if made is None else ("made", made)
        return (*where, x.shape, x.stride(), x.storage_offset())

    def difference(self, other):
        """Returns how the recorded operations differ from another tape's, or None."""
        for ours, theirs in zip(self.trace, other.trace):
            if ours != theirs:
                return f"{ours[0]} gets other numbers or other memory than before"
        if len(self.trace) != len(other.trace):
            return "it takes other steps than before"
        return None


class _Lookout(TorchFunctionMode):
    """Sees values leave PyTorch, which the dispatcher doesn't."""

    ways = (Tensor.tolist, Tensor.numpy, Tensor.__array__)

    def __init__(self, tape):
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.ways:
            self.tape.reads_value()
        return func(*args, **(kwargs or {}))


def _address(x):
    return x.untyped_storage().data_ptr()


def _is_alias(outs, args):
    """Says whether results are views of arguments: these need no computing."""
    mine = {_address(x) for x in args if isinstance(x, Tensor)}
    return any(_address(x) in mine for x in outs if x.numel())


def _detached(x):
    """Returns what holds tensors with the same tensors outside of autograd."""
    if isinstance(x, dict):
        return {k: _detached(v) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(map(_detached, x))
    return x.detach() if isinstance(x, Tensor) else x


_EMPTY = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty}

# How to make anew, in place, what these make.
_FACTORIES: dict[Any, Callable[[Tensor], Any]] = {
    torch.ops.aten.zeros: Tensor.zero_,
    torch.ops.aten.zeros_like: Tensor.zero_,
    torch.ops.aten.ones_like: functools.partial(Tensor.fill_, value=1),
    torch.ops.aten.randn_like: Tensor.normal_,
}


def _into(func, args, kwargs, outs):
    """Returns a function and arguments that compute an operation's results into their memory."""
    packet = func.overloadpacket
    args, kwargs, outs = _detached(args), _detached(kwargs), _detached(outs)
    if packet in _FACTORIES:
        return _FACTORIES[packet], (outs[0],)
    if func is torch.ops.aten.rsub.Scalar and len(args) == 2:  # number - tensor
        swapped = torch.tensor(args[1], dtype=outs[0].dtype), args[0]
        if _computes(torch.sub, swapped, kwargs, outs[0]):
            return functools.partial(torch.sub, **kwargs, out=outs[0]), swapped
    if len(outs) == 1 and torch.Tag.nondeterministic_seeded not in func.tags:
        # By its name in torch, an operation is called twice as fast as by its overload
        name = packet.__name__
        for into in (getattr(torch, name, None), getattr(packet, "out", None)):
            if into is not None and _computes(into, args, kwargs, outs[0]):
                return functools.partial(into, **kwargs, out=outs[0]), args

    def copy(*args):
        made = func(*args, **kwargs)
        made = made if isinstance(made, (tuple, list)) else [made]
        for x, y in zip(outs, [y for y in made if y is not None], strict=True):
            x.copy_(y)

    return copy, args


def _computes(into, args, kwargs, out):
    """Says whether an operation's variant gives the same result, bit for bit."""
    trial = torch.empty_like(out)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            into(*args, **kwargs, out=trial)
    except (RuntimeError, TypeError, NotImplementedError, UserWarning):
        return False
    return trial.shape == out.shape and torch.equal(trial.nan_to_num(), out.nan_to_num())
