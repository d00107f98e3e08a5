"""An update of networks, captured once and replayed: what it computes without Python's share.

With small networks an update on a CPU spends as much time in Python, in autograd and in allocating
memory as in arithmetic. `capture` records the operations that compute, and from then on repeats
only these, each on the memory where it worked first: what CUDA graphs are to a GPU. `Guards` and
repeated recordings see to it that a replay computes what the update would.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from spinup import fast
from spinup.fast.guards import Guards
from spinup.runs.watchdog import still_alive

# A recording is compared with the captured one at each of the first calls, then at every 97th: a
# prime, so that what happens every 10 or every 50 calls doesn't keep falling between two of them.
_FIRST_CHECKS = 25
_CHECK_EVERY = 97
_LARGEST_CONSTANT = 64  # numbers in a torch.tensor() that an update makes
_MOST_COMBINATIONS = 8  # of flags
_MOST_CHANGES, _WITHIN = 5, 25  # of what the update reads, in so many calls; above, none pays

_local = threading.local()  # its `tape` is that of the recording in progress in a thread


def capture(update: Callable[..., Any], device: torch.device | str = "cpu") -> Captured:
    """Makes an update of networks fast, if it can be captured; it computes the same.

    On a CPU the update is recorded and replayed. It must work on tensors that stay where they are
    (parameters, their gradients, a minibatch from `ReplayBuffer`), by PyTorch's operations and the
    library's. Its arguments are flags, and each combination of them has a capture. If something
    changes that the update reads from Python, it is recorded again. An update that can't be
    captured with certainty runs as written, with one warning that tells why. On a GPU, and where
    ``SPINUP_FAST=0`` switches the fast path off, all updates run as written, without a warning.

    Args:
        update: a function that returns nothing.
        device: where its tensors are.

    Returns:
        A function to call in its place.
    """
    return Captured(update, fast.is_on() and torch.device(device).type == "cpu")


class Captured:
    """An update in the form that `capture` returns.

    Args:
        update: the update.
        is_captured: whether to capture it, or to run it as written.

    Attributes:
        is_captured: False once it runs as written.
        num_replays: calls that were replays.
    """

    def __init__(self, update: Callable[..., Any], is_captured: bool = True):
        self.__wrapped__ = update
        self.is_captured, self.num_replays = is_captured, 0
        self._captures: dict[tuple, _Capture] = {}

    def __call__(self, *flags: Any, **named: Any) -> Any:
        """Does what the update does."""
        still_alive()
        if not self.is_captured or _tape() is not None:  # another update that calls it records it
            return self.__wrapped__(*flags, **named)
        key = (*flags, *map(type, flags), *named.items(), *map(type, named.values()))
        try:
            known = self._captures.get(key)
        except TypeError:  # a flag that can't be hashed
            known = None
        if known is None:
            obstacle = self._refuse((*flags, *named.values()))
            if obstacle is not None:
                self.run_as_written(obstacle, stacklevel=3)
                return self.__wrapped__(*flags, **named)
            known = self._captures[key] = _Capture(self.__wrapped__, flags, named)
        return known(self)

    def check_next(self) -> None:
        """Has the next call, with each flags, compared with what was captured."""
        for known in self._captures.values():
            known.is_checked = False

    def run_as_written(self, obstacle: str, stacklevel: int = 2) -> None:
        """Gives captures up, with a warning."""
        self.is_captured, self._captures = False, {}
        name = getattr(self.__wrapped__, "__qualname__", "The update")
        warnings.warn(
            f"{name} runs as written, which is slower than captured: {obstacle}. "
            'The page "Speed" of the documentation tells what a captured update may do',
            stacklevel=stacklevel + 1,
        )

    def _refuse(self, flags):
        for flag in flags:
            if not isinstance(flag, (bool, int, str, type(None), Enum)):
                return (
                    f"its argument {flag!r:.60} is not a flag (bool, int, str, None). Keep what "
                    "changes in a tensor that is changed in place"
                )
        if len(self._captures) == _MOST_COMBINATIONS:
            return (
                f"its arguments had more than {_MOST_COMBINATIONS} combinations of values. Keep "
                "what changes in a tensor that is changed in place"
            )
        return None


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
    return tape.array(x)


def capturable(function: Callable) -> Callable:
    """Marks a function of which replays need no more than PyTorch's operations and `run` do."""
    function._is_capturable = True  # type: ignore[attr-defined]
    return function


def _tape() -> _Tape | None:
    return getattr(_local, "tape", None)


class _Capture:
    """An update with given flags: run as written once, then recorded, compared and replayed."""

    def __init__(self, update, flags, named):
        self.update = functools.partial(update, *flags, **named)
        self.calls = 0
        self.changes: deque[int] = deque(maxlen=_MOST_CHANGES)  # calls where it was recorded again
        self.forget()

    def forget(self):
        """Drops what was recorded."""
        self.tape: _Tape | None = None
        self.guards: Guards | None = None
        self.is_checked = False  # since a check was asked for
        self.was_checked = False  # at all
        # A second recording, without the lookout: comparisons with it cost half as much. It counts
        # once the next call has been compared with `tape`, as the call that it recorded was not.
        self.light: _Tape | None = None
        self.light_counts = False

    def __call__(self, owner):  # which isn't kept: a cycle would keep the update's buffer
        self.calls += 1
        if self.calls == 1:  # may allocate what stays
            return self.update()
        if self.tape is not None and not self.guards.hold():
            self.follow_change(self.guards.change(), owner)
            if not owner.is_captured:
                return self.update()
        is_due = self.calls <= _FIRST_CHECKS or self.calls % _CHECK_EVERY == 0
        if self.tape is None or is_due or not self.is_checked:
            return self.record(owner)
        owner.num_replays += 1
        with torch.no_grad():
            for function, args in self.tape.calls:
                function(*args)

    def follow_change(self, changed, owner):
        """Drops what was recorded if a value has changed that the update reads."""
        if changed is None:
            return
        self.forget()
        self.changes.append(self.calls)
        if len(self.changes) == _MOST_CHANGES and self.calls - self.changes[0] < _WITHIN:
            owner.run_as_written(
                f"{changed} changes so often that recordings cost more than they save. Keep it in "
                "a tensor that is changed in place",
                stacklevel=4,
            )

    def record(self, owner):
        """Runs the update, and records it or compares it with what was recorded."""
        self.is_checked = False  # until it has been, if this call should fail
        is_light = self.was_checked and self.calls >= _FIRST_CHECKS - 1
        is_light &= self.light is None or self.light_counts
        tape = _Tape(builds=self.tape is None, looks=not is_light)
        with tape:
            result = self.update()
        obstacle = tape.obstacle
        if result is not None:
            obstacle = "it returns a value. Store it in a tensor that stays where it is"
        if obstacle is None and self.tape is None:
            guards = Guards(owner.__wrapped__, tape.functions)
            obstacle = guards.obstacle
            if obstacle is None:
                self.tape, self.guards = tape, guards
        elif obstacle is None:
            changed = None if self.guards.hold() else self.guards.change()
            if changed is not None:
                obstacle = f"it changes {changed}. Keep it in a tensor that is changed in place"
            elif is_light and self.light is None:
                self.light = tape
                return result
            else:
                obstacle = tape.difference(self.light if is_light else self.tape)
            self.is_checked = self.was_checked = obstacle is None
            self.light_counts = self.light is not None
        if obstacle is not None:
            self.forget()
            owner.run_as_written(obstacle, stacklevel=4)
        return result


class _Tape(TorchDispatchMode):
    """What an update computes, as functions and their arguments.

    Args:
        builds: whether it is to be replayed; otherwise it is only compared with one that is.
        looks: whether it sees values leave PyTorch in other ways than by the dispatcher.
    """

    def __init__(self, builds: bool = True, looks: bool = True):
        super().__init__()
        self.builds, self.looks = builds, looks
        self.calls: list[tuple[Callable, tuple]] = []
        self.kept: list[Any] = []  # memory of what is computed, which has one owner while it is
        self.held: list[Any] = []  # what the trace has by its address, so that none is used twice
        self.trace: list[Any] = []  # operations with what must be the same at each call
        self.functions: set[Any] = set()  # code of those called as a whole
        self.obstacle: str | None = None
        self._lookout: _Lookout | None = None
        self._inside = self._stopped = False  # inside of a function called as a whole
        self._made: dict[int, int] = {}  # storages made on the way, by address
        self._outside: set[int] = set()  # addresses of those from before
        self._arrays: dict[int, Any] = {}  # descriptions of tensors whose memory is an array's

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # or PyTorch wraps `__torch_dispatch__`, which makes a recording much slower

    def __enter__(self):
        _local.tape = self
        # PyTorch's distributions look at their arguments' values, to check them
        self._checks = Distribution._validate_args
        Distribution.set_default_validate_args(False)
        if self.looks:
            self._lookout = _Lookout(self)
            self._lookout.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        _local.tape = None
        Distribution.set_default_validate_args(self._checks)
        self.stop()
        if self._lookout is not None:
            self._lookout.__exit__(*error)
            self._lookout = None  # it has this tape, which would live until a garbage collection
        if not self.builds:
            self.calls, self.kept = [], []

    def stop(self):
        """Stops recording: what follows in the update is computed as without it."""
        if not self._stopped and _get_current_dispatch_mode() is self:
            self._stopped = True
            super().__exit__(None, None, None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._inside or self.obstacle is not None:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # or the lookout sees each look at a tensor
            described = self._guarded(self._describe_all, func, args, kwargs)
            out = func(*args, **kwargs)
            self.trace.append(described)
            self._guarded(self._note, func, args, kwargs, out)
        return out

    def _guarded(self, note, func, *args):
        """Takes a note of an operation, or that this failed: the update itself goes on."""
        try:
            return note(func, *args)
        except Exception as error:  # noqa: BLE001 (the update itself must go on)
            reason = str(error).strip().partition("\n")[0]
            self.obstacle = self.obstacle or f"{func} can't be recorded ({reason})"

    def _describe_all(self, func, args, kwargs):
        if func is _aten.lift_fresh.default and args[0].numel() <= _LARGEST_CONSTANT:
            return func, args[0].tolist(), args[0].shape, args[0].dtype  # torch.tensor(numbers)
        return (func, *map(self._describe, args), *map(self._describe, kwargs.items()))

    def _note(self, func, args, kwargs, out):
        outs = list(_flat(out))
        if func is _aten.lift_fresh.default and out.numel() <= _LARGEST_CONSTANT:
            self.kept.append(out.detach())
            self._made[_address(out)] = len(self._made)
            self.calls.append((out.detach().copy_, (out.detach().clone(),)))
            return None
        if not all(isinstance(x, Tensor) for x in outs):
            return self.reads_value()
        if torch.Tag.dynamic_output_shape in func.tags and not _is_by_numbers(func, args):
            self.obstacle = f"the shape of what {func} returns depends on values"
            return None
        made = []
        for x in outs:
            storage = x.untyped_storage()
            address = storage.data_ptr()
            self.kept.append(storage)  # not `x`: PyTorch treats a tensor with two owners otherwise
            if (address not in self._made and address not in self._outside) or x.numel() == 0:
                made.append(x)
                self._made[address] = len(self._made)
        is_empty = outs and not any(x.numel() for x in outs)
        if not self.builds or (is_empty and not func._schema.is_mutable):
            return None
        if func._schema.is_mutable:
            if made:  # besides what it changes
                self.calls.append(_copied(func, args, kwargs, outs, made))
            else:
                self.calls.append((functools.partial(func, **_detached(kwargs)), _detached(args)))
        elif made and (len(made) == len(outs)):
            if func.overloadpacket not in _EMPTY:
                self.calls.append(_into(func, args, kwargs, outs))
        elif made:
            self.obstacle = f"{func} returns both a view and a new tensor"
        return None

    def run(self, function, args, tensors):
        """Calls what is to be called as a whole, and writes it down."""
        if self._inside or self.obstacle is not None:  # of one that calls another
            return self.aside(function, *args)
        self.calls.append((function, args))
        self.kept.append(_detached(tensors))
        self.held.append((function, args))
        code = getattr(inspect.unwrap(function), "__code__", function)
        self.functions.add(code)
        described = map(self._describe, tensors or args)
        self.trace.append((code, id(getattr(function, "__self__", None)), *described))
        return self.aside(function, *args)

    def array(self, x):
        """Returns a tensor's memory as an array."""
        array = self.aside(x.numpy)
        self._arrays[array.ctypes.data] = self._describe(x)
        return array

    def aside(self, function, *args):
        """Calls a function without a look at what it does."""
        inside, self._inside = self._inside, True
        try:
            return function(*args)
        finally:
            self._inside = inside

    def reads_value(self):
        """Notes that the update does what a replay can't."""
        if not self._inside and self.obstacle is None:
            self.obstacle = "it reads a tensor's value, as .item(), .numpy() and if do"

    def _describe(self, x):
        """Returns what must be the same at each call: numbers, shapes, memory from before."""
        if isinstance(x, Tensor):
            address = _address(x)
            made = self._made.get(address)
            if made is None and address not in self._outside:
                self._outside.add(address)
                self.held.append(x.untyped_storage())
            where = (address, None) if made is None else (None, made)
            if not self.looks:
                return (*where, x.numel())
            return (*where, x.shape, x.stride(), x.storage_offset(), x.dtype)
        if isinstance(x, (tuple, list)):
            return tuple(map(self._describe, x))
        if isinstance(x, np.ndarray):
            known = self._arrays.get(x.ctypes.data)
            return known or (x.shape, x.dtype, x.tobytes() if x.size <= 64 else x.ctypes.data)
        return x

    def difference(self, other):
        """Returns how the recorded operations differ from another tape's, or None."""
        for ours, theirs in zip(self.trace, other.trace):
            if ours != theirs:
                name = getattr(ours[0], "co_name", ours[0])
                return (
                    f"{name} gets other numbers or other memory than before. Keep what changes in "
                    "a tensor that is changed in place"
                )
        if len(self.trace) != len(other.trace):
            return "it takes other steps than before"
        return None


class _Lookout(TorchFunctionMode):
    """Sees values leave PyTorch, which the dispatcher doesn't."""

    ways = frozenset((Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__))
    differs = frozenset((torch.prod, Tensor.prod))  # in the backward pass

    def __init__(self, tape):
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.ways:
            self.tape.reads_value()
        elif func in self.differs:
            self.tape.obstacle = f"{func.__name__} rounds otherwise while it is recorded"
        if self.tape.obstacle is not None:
            self.tape.stop()
        return func(*args, **(kwargs or {}))


def _address(x):
    return x.untyped_storage().data_ptr()


def _is_by_numbers(func, args):
    """Returns True for an index by whole numbers, whose result's shape depends on no values."""
    indices = list(_flat(args[1])) if func is _aten.index.Tensor else []
    return bool(indices) and all(x.dtype in (torch.int64, torch.int32) for x in indices)


def _flat(x):
    """Yields what is in nested lists and tuples, without None."""
    if isinstance(x, (tuple, list)):
        for y in x:
            yield from _flat(y)
    elif x is not None:
        yield x


def _detached(x):
    """Returns what holds tensors with the same tensors outside of autograd."""
    if isinstance(x, dict):
        return {k: _detached(v) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(map(_detached, x))
    return x.detach() if isinstance(x, Tensor) else x


_aten = torch.ops.aten
_EMPTY = {_aten.empty, _aten.empty_like, _aten.new_empty, _aten.empty_strided}
_EMPTY |= {_aten.new_empty_strided}

# How to make again, in place, what these make. Of randn_like others draw from a user's generator.
_FACTORIES: dict[Any, Callable[[Tensor], Any]] = {
    _aten.zeros.default: Tensor.zero_,
    _aten.zeros_like.default: Tensor.zero_,
    _aten.ones_like.default: functools.partial(Tensor.fill_, value=1),
    _aten.randn_like.default: Tensor.normal_,
}


def _into(func, args, kwargs, outs):
    """Returns a function and arguments that compute an operation's results into their memory."""
    packet = func.overloadpacket
    args, kwargs, outs = _detached(args), _detached(kwargs), _detached(outs)
    if func in _FACTORIES:
        return _FACTORIES[func], (outs[0],)
    if func is _aten.rsub.Scalar and len(args) == 2:  # number - tensor
        swapped = torch.tensor(args[1], dtype=outs[0].dtype), args[0]
        if _computes(torch.sub, swapped, kwargs, outs[0]):
            return functools.partial(torch.sub, **kwargs, out=outs[0]), swapped
    # Losses resize the memory that they are given, to that of the unreduced loss and back
    reduces = any(x.name == "reduction" for x in func._schema.arguments)
    is_safe = torch.Tag.nondeterministic_seeded not in func.tags and not reduces
    if len(outs) == 1 and is_safe:
        # By its name in torch, an operation is called twice as fast as by its overload
        for into in (getattr(torch, packet.__name__, None), getattr(packet, "out", None)):
            if into is not None and _computes(into, args, kwargs, outs[0]):
                return functools.partial(into, **kwargs, out=outs[0]), args
    if torch.Tag.nondeterministic_seeded not in func.tags and "batch_norm" not in packet.__name__:
        with torch.no_grad():  # as a replay does
            again = list(_flat(func(*args, **kwargs)))
        if [(x.shape, x.dtype) for x in again] != [(x.shape, x.dtype) for x in outs]:
            raise RuntimeError("it returns something else outside of autograd")
    return _copied(func, args, kwargs, outs, outs)


def _copied(func, args, kwargs, outs, made):
    """Returns a function and arguments that repeat an operation, and copy what it makes."""
    kwargs = _detached(kwargs)
    targets = [y.detach() if any(y is x for x in made) else None for y in outs]

    def copy(*args):
        for target, result in zip(targets, _flat(func(*args, **kwargs)), strict=True):
            if target is not None:
                target.copy_(result)

    return copy, _detached(args)


def _computes(into, args, kwargs, out):
    """Returns True if an operation's variant gives the same result, bit for bit, in its memory."""
    trial = torch.empty_like(out)
    where = trial.data_ptr()
    always, _ = torch.is_warn_always_enabled(), torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            into(*args, **kwargs, out=trial)
        same_form = trial.shape == out.shape and trial.stride() == out.stride()
        return same_form and trial.data_ptr() == where and torch.equal(_bits(trial), _bits(out))
    except (RuntimeError, TypeError, ValueError, NotImplementedError, Warning):
        return False
    finally:
        torch.set_warn_always(always)


def _bits(x):
    return x.contiguous().reshape(-1).view(torch.uint8)
