"""Captures an update of networks once, and replays it without Python's overhead.

With small networks, an update on a CPU spends as much time in Python, in autograd and in allocating
memory as in arithmetic. `capture` records the operations of the update, and then repeats only
these, each on the memory that it used at the recording, as CUDA graphs do on a GPU. `Guards` and
repeated recordings ensure that a replay computes the same as the update.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from spinup import fast
from spinup.fast.fusing import Call, is_compiled, same_bits, shortened, small_operation
from spinup.fast.guards import Guards
from spinup.runs.watchdog import still_alive

# Each of the first calls is recorded and compared with the capture, and later every 97th call. As
# 97 is a prime, comparisons don't keep missing an event that occurs every 10 or every 50 calls.
_FIRST_CHECKS = 25
_CHECK_EVERY = 97
_LARGEST_CONSTANT = 64  # numbers in a torch.tensor(...) of an update
_MOST_COMBINATIONS = 8  # of flags
# A capture doesn't pay if values that the update reads change so often within so many calls.
_MOST_CHANGES, _WITHIN = 5, 25

_local = threading.local()  # its attribute `tape` is the recording in progress in this thread


def capture(update: Callable[..., Any], device: torch.device | str = "cpu") -> Captured:
    """Speeds up an update of networks, without changing its results.

    On a CPU the update is recorded and replayed. It must use operations of PyTorch and of this
    library, on tensors that stay in place (parameters, their gradients, a minibatch from
    `ReplayBuffer`). Its arguments are flags; each combination of their values has its own capture.
    If a Python value that the update reads has changed, the update is recorded again. An update
    that can't be captured with certainty runs as written, with one warning that gives the reason.
    With ``SPINUP_FAST=0`` all updates run as written, without a warning; so do those on a GPU,
    unless ``SPINUP_CUDA_GRAPHS=1`` captures them as CUDA graphs (see `spinup.fast.graphs`).

    Args:
        update: a function that returns nothing.
        device: device of its tensors.

    Returns:
        A function to call instead.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return Captured(update, fast.is_on())
    from spinup.fast.graphs import GraphCapture, are_on

    return Captured(update, are_on(), functools.partial(GraphCapture, device=device))


class Captured:
    """An update, as `capture` returns it.

    Args:
        update: the update.
        is_captured: whether to capture the update, or to run it as written.
        make: makes the capture for given flags.

    Attributes:
        is_captured: False once the update runs as written.
        num_replays: number of calls that were replays.
    """

    def __init__(
        self,
        update: Callable[..., Any],
        is_captured: bool = True,
        make: Callable[..., Capture] | None = None,
    ):
        self.__wrapped__ = update
        self.is_captured, self.num_replays = is_captured, 0
        self._make = make or Capture
        self._captures: dict[tuple, Capture] = {}

    def __call__(self, *flags: Any, **named: Any) -> Any:
        """Runs the update or its replay."""
        still_alive()
        if not self.is_captured or _tape() is not None:  # or an outer update is recording it
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
            known = self._captures[key] = self._make(self.__wrapped__, flags, named)
        return known(self)

    def check_next(self) -> None:
        """Makes the next call with each combination of flags compare itself with its capture."""
        for known in self._captures.values():
            known.is_checked = False

    def run_as_written(self, obstacle: str, stacklevel: int = 2) -> None:
        """Drops all captures with a warning; from now on the update runs as written."""
        self.is_captured, self._captures = False, {}
        name = getattr(self.__wrapped__, "__qualname__", "The update")
        warnings.warn(
            f"{name} runs as written, which is slower than captured: {obstacle}. "
            'See the page "Speed" of the documentation for what a captured update may do',
            stacklevel=stacklevel + 1,
        )

    def _refuse(self, flags):
        for flag in flags:
            if not isinstance(flag, (bool, int, str, type(None), Enum)):
                return (
                    f"its argument {flag!r:.60} is not a flag (bool, int, str, None). Store "
                    "changing values in a tensor, and update it in place"
                )
        if len(self._captures) == _MOST_COMBINATIONS:
            return (
                f"its arguments had more than {_MOST_COMBINATIONS} combinations of values. Store "
                "changing values in a tensor, and update it in place"
            )
        return None


def run(
    function: Callable[..., Any],
    *args: Any,
    tensors: Sequence[Tensor] = (),
    when: Literal["in place", "before", "after"] = "in place",
) -> Any:
    """Calls a function, and makes every replay of the update that is being captured call it, too.

    It is meant for operations that PyTorch doesn't see, such as drawing a minibatch, averaging over
    ranks, and calling compiled code.

    Args:
        function: the function.
        *args: its arguments, the same at each replay.
        tensors: tensors whose addresses are among the arguments. The capture keeps them alive. If
            a later call has another address for a tensor that the update didn't create, the update
            can't be captured.
        when: ``before`` or ``after`` if a replay may call the function before or after the rest of
            the update. On a GPU the call then doesn't split the graph.
    """
    tape = _tape()
    return function(*args) if tape is None else tape.run(function, args, tensors, when)


def array(x: Tensor) -> np.ndarray:
    """Returns a tensor's memory as an array, as an argument for a function called by `run`.

    An update that takes values out of PyTorch in another way can't be captured.
    """
    tape = _tape()
    if tape is None:
        return x.numpy()
    return tape.array(x)


def capturable(function: Callable) -> Callable:
    """Marks a function of which a replay needs only the PyTorch operations and calls of `run`."""
    function._is_capturable = True  # type: ignore[attr-defined]
    return function


def _tape() -> Any:
    return getattr(_local, "tape", None)


@contextlib.contextmanager
def recorded_by(tape: Any) -> Iterator[None]:
    """Passes the calls of `run` and `array` to a tape in a block, in this thread."""
    _local.tape = tape
    try:
        yield
    finally:
        _local.tape = None


@contextlib.contextmanager
def arguments_unchecked() -> Iterator[None]:
    """Keeps PyTorch's distributions from reading the values of their arguments, to check them."""
    checks = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checks)


class Capture:
    """An update with given flags: first run as written, then recorded, compared and replayed.

    Args:
        update: the update.
        flags, named: its arguments.
    """

    device_type = "cpu"  # of the update's tensors
    is_built = True  # whether a replay repeats the tape's calls

    def __init__(self, update: Callable[..., Any], flags: tuple, named: dict[str, Any]):
        self.update: Callable[[], Any] = functools.partial(update, *flags, **named)
        self.calls = 0
        self.changes: deque[int] = deque(maxlen=_MOST_CHANGES)  # calls that found a change
        self.forget()

    def forget(self):
        """Drops the recordings."""
        self.tape: Tape | None = None
        self.replayed: list[tuple[Callable, tuple]] = []  # the tape's calls, shortened
        self.kept: list[Any] = []  # keeps the memory of their arguments
        self.guards: Guards | None = None
        self.is_checked = False  # compared since the last `check_next`
        self.was_checked = False  # compared at least once
        # A second recording, without the lookout: comparisons with it cost half as much. It counts
        # after a later call has been compared with `tape`, because its own call wasn't compared.
        self.light: Tape | None = None
        self.light_counts = False

    def __call__(self, owner):  # `owner` isn't stored: a cycle would keep buffers alive
        self.calls += 1
        if self.calls == 1:  # may allocate persistent tensors
            return self.update()
        if self.tape is not None and not self.guards.hold():
            self.follow_change(self.guards.change(), owner)
            if self.tape is None:  # as the first call, this one may allocate
                return self.update()
        is_due = self.calls <= _FIRST_CHECKS or self.calls % _CHECK_EVERY == 0
        if self.tape is None or is_due or not self.is_checked:
            return self.record(owner)
        owner.num_replays += 1
        return self.replay(owner)

    def replay(self, owner):
        """Repeats the recording."""
        with torch.no_grad():
            for function, args in self.replayed:
                function(*args)

    def follow_change(self, changed, owner):
        """Drops the recordings if a value that the update reads has changed."""
        if changed is None:
            return
        self.forget()
        self.changes.append(self.calls)
        if len(self.changes) == _MOST_CHANGES and self.calls - self.changes[0] < _WITHIN:
            owner.run_as_written(
                f"{changed} changes so often that recordings cost more than they save. Store it in "
                "a tensor, and update that in place",
                stacklevel=4,
            )

    def record(self, owner):
        """Runs the update, and records it or compares it with the recording."""
        self.is_checked = False  # stays False if this call fails
        is_light = self.was_checked and self.calls >= _FIRST_CHECKS - 1
        is_light &= self.light is None or self.light_counts
        builds = self.tape is None and self.is_built
        tape = Tape(builds, looks=not is_light, device_type=self.device_type)
        with tape:
            result = self.update()
        obstacle = tape.obstacle
        if result is not None:
            obstacle = "it returns a value. Store it in a tensor that stays in place"
        if obstacle is None and self.tape is None:
            guards = Guards(owner.__wrapped__, tape.functions, self.device_type)
            obstacle = guards.obstacle
            if obstacle is None:
                self.tape, self.guards = tape, guards
                self.replayed, self.kept = shortened(tape.calls)
        elif obstacle is None:
            changed = None if self.guards.hold() else self.guards.change()
            if changed is not None:
                obstacle = f"it changes {changed}. Store it in a tensor, and update that in place"
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


class Tape(TorchDispatchMode):
    """A recording of an update, as functions and their arguments.

    Args:
        builds: whether the tape will be replayed; otherwise it is only compared with another one.
        looks: whether to detect values that leave PyTorch past the dispatcher.
        device_type: the type of the device of the update's tensors.
    """

    def __init__(self, builds: bool = True, looks: bool = True, device_type: str = "cpu"):
        super().__init__()
        self.builds, self.looks, self.device_type = builds, looks, device_type
        self.calls: list[Call] = []
        self.kept: list[Any] = []  # keeps the memory of all results allocated
        self.held: list[Any] = []  # keeps the addresses in the trace in use
        self.trace: list[Any] = []  # operations, with all that must be the same at each call
        self.functions: set[Any] = set()  # code of the functions called by `run`
        self.obstacle: str | None = None
        self._lookout: _Lookout | None = None
        self._inside = self._stopped = False  # _inside: in a function called by `run`
        self._made: dict[int, int] = {}  # numbers of the storages made by the update, by address
        self._outside: set[int] = set()  # addresses of storages from before the update
        self._arrays: dict[int, Any] = {}  # descriptions of the tensors of arrays, by address

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # or PyTorch wraps `__torch_dispatch__`, which makes a recording much slower

    def __enter__(self):
        _local.tape = self
        self._unchecked = arguments_unchecked()
        self._unchecked.__enter__()
        if self.looks:
            self._lookout = _Lookout(self)
            self._lookout.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        _local.tape = None
        self._unchecked.__exit__(*error)
        self.stop()
        if self._lookout is not None:
            self._lookout.__exit__(*error)
            self._lookout = None  # breaks a cycle, which only the garbage collector would free
        if not self.builds:
            self.calls, self.kept = [], []

    def stop(self):
        """Stops recording; the rest of the update runs as written."""
        if not self._stopped and _get_current_dispatch_mode() is self:
            self._stopped = True
            super().__exit__(None, None, None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._inside or self.obstacle is not None:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # or the lookout would see this code, too
            self.trace.append(self._guarded(self._describe_all, func, args, kwargs))
            out = func(*args, **kwargs)
            self._guarded(self._note if self.looks else self._number, func, args, kwargs, out)
            if self.device_type != "cpu":
                self._refuse_other_devices(func, args, tuple(kwargs.values()), out)
        return out

    def _refuse_other_devices(self, func, *values):
        """Notes an operation elsewhere, which a graph of the device's operations would miss."""
        for x in _flat(values):
            if isinstance(x, Tensor) and x.device.type != self.device_type:
                self.obstacle = self.obstacle or f"{func} uses a tensor on the {x.device.type}"

    def _guarded(self, note, func, *args):
        """Takes a note of an operation. If this fails, the update continues, with an obstacle."""
        try:
            return note(func, *args)
        except Exception as error:  # noqa: BLE001 (the update itself must continue)
            reason = str(error).strip().partition("\n")[0]
            self.obstacle = self.obstacle or f"{func} can't be recorded ({reason})"

    def _describe_all(self, func, args, kwargs):
        if func is _aten.lift_fresh.default and args[0].numel() <= _LARGEST_CONSTANT:
            x = args[0]  # of torch.tensor(numbers); as text, because NaN differs from itself
            return func, repr(x.tolist()), x.shape, x.dtype
        return (func, *map(self._describe, args), *map(self._describe, kwargs.items()))

    def _note(self, func, args, kwargs, out):
        outs = list(_flat(out))
        if func is _aten.lift_fresh.default and out.numel() <= _LARGEST_CONSTANT:
            self.kept.append(out.detach())
            self._made[_address(out)] = len(self._made)
            self.calls.append(Call(out.detach().copy_, (out.detach().clone(),), (out.detach(),)))
            return None
        if func.namespace == "profiler":
            self.obstacle = (
                "it calls torch.profiler.record_function, as the optimizers of torch.optim do. Use "
                "spinup.utils.optim.Adam, or call the optimizer outside the update"
            )
            return None
        if not all(isinstance(x, Tensor) for x in outs):
            return self.reads_value()
        if torch.Tag.dynamic_output_shape in func.tags and not _is_by_numbers(func, args):
            self.obstacle = f"the shape of the result of {func} depends on values"
            return None
        made = self._number(func, args, kwargs, *outs)
        is_empty = outs and not any(x.numel() for x in outs)
        if not self.builds or (is_empty and not func._schema.is_mutable):
            return None
        everything = _flat((args, tuple(kwargs.values()), outs))
        tensors = [x.detach() for x in everything if isinstance(x, Tensor)]
        call = None
        if len(outs) == 1:
            call = small_operation(func, args, kwargs, outs[0], tensors)
        if func._schema.is_mutable:
            if made:  # besides the tensors that it changes
                call = Call(*_copied(func, args, kwargs, outs, made), tensors)
            elif call is None:
                function = functools.partial(func, **_detached(kwargs))
                call = Call(function, _detached(args), tensors)
            self.calls.append(call)
        elif made and (len(made) == len(outs)):
            if func.overloadpacket not in _EMPTY:
                self.calls.append(call or Call(*_into(func, args, kwargs, outs), tensors))
        elif made:
            self.obstacle = f"{func} returns both a view and a new tensor"
        return None

    def _number(self, func, args, kwargs, *outs):
        """Numbers the storages that an operation made. Returns their tensors."""
        made = []
        for x in _flat(outs):
            if not isinstance(x, Tensor):
                continue
            storage = x.untyped_storage()
            address = storage.data_ptr()
            self.kept.append(storage)  # not `x`: PyTorch treats tensors with two owners differently
            if (address not in self._made and address not in self._outside) or x.numel() == 0:
                made.append(x)
                self._made[address] = len(self._made)
        return made

    def run(self, function, args, tensors, when):
        """Calls a function, and records the call; see the function `run`."""
        if self._inside or self.obstacle is not None:  # _inside: a recorded call makes this one
            return self.aside(function, *args)
        if self.builds:
            detached = self.aside(_detached, tuple(tensors))
            self.kept.append(detached)
            self.calls.append(Call(function, args, detached if is_compiled(function) else None))
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
        """Calls a function without recording its operations."""
        inside, self._inside = self._inside, True
        try:
            return function(*args)
        finally:
            self._inside = inside

    def reads_value(self):
        """Notes that the update reads a value, which a replay can't do."""
        if not self._inside and self.obstacle is None:
            self.obstacle = "it reads a tensor's value (by .item(), .numpy(), if or the like)"

    def _describe(self, x):
        """Returns all that must be the same at each call: numbers, shapes, memory from before."""
        if isinstance(x, Tensor):
            address = _address(x)
            made = self._made.get(address)
            if made is None and address not in self._outside:
                self._outside.add(address)
                self.held.append(x.untyped_storage())
            where = (address, None) if made is None else (None, made)
            if not self.looks:
                return (*where, x.shape, x.stride())
            return (*where, x.shape, x.stride(), x.storage_offset(), x.dtype)
        if isinstance(x, (tuple, list)):
            return tuple(map(self._describe, x))
        if isinstance(x, np.ndarray):
            known = self._arrays.get(x.ctypes.data)
            return known or (x.shape, x.dtype, x.tobytes() if x.size <= 64 else x.ctypes.data)
        return "nan" if isinstance(x, float) and x != x else x  # NaN differs from itself

    def difference(self, other):
        """Returns how the recorded operations differ from another tape's, or None."""
        for ours, theirs in zip(self.trace, other.trace):
            if ours != theirs:
                name = getattr(ours[0], "co_name", ours[0])
                return (
                    f"{name} gets other numbers or other memory than before. Store changing values "
                    "in a tensor, and update it in place"
                )
        if len(self.trace) != len(other.trace):
            return "it runs other operations than before"
        return None


class _Lookout(TorchFunctionMode):
    """Detects that values leave PyTorch, which the dispatcher doesn't see."""

    ways = frozenset((Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__))
    differs = frozenset((torch.prod, Tensor.prod))  # in the backward pass

    def __init__(self, tape):
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.ways:
            self.tape.reads_value()
        elif func in self.differs:
            self.tape.obstacle = f"{func.__name__} rounds differently while it is recorded"
        if self.tape.obstacle is not None:
            self.tape.stop()
        return func(*args, **(kwargs or {}))


def _address(x):
    return x.untyped_storage().data_ptr()


def _is_by_numbers(func, args):
    """Returns True for indexing by integers, whose result has a shape independent of values."""
    indices = list(_flat(args[1])) if func is _aten.index.Tensor else []
    return bool(indices) and all(x.dtype in (torch.int64, torch.int32) for x in indices)


def _flat(x):
    """Yields the items of nested lists and tuples, without None."""
    if isinstance(x, (tuple, list)):
        for y in x:
            yield from _flat(y)
    elif x is not None:
        yield x


def _detached(x):
    """Returns nested dicts, lists and tuples with their tensors detached."""
    if isinstance(x, dict):
        return {k: _detached(v) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(map(_detached, x))
    return x.detach() if isinstance(x, Tensor) else x


_aten = torch.ops.aten
_EMPTY = {_aten.empty, _aten.empty_like, _aten.new_empty, _aten.empty_strided}
_EMPTY |= {_aten.new_empty_strided}

# In-place forms of functions that make tensors. Other overloads of randn_like take a generator.
_FACTORIES: dict[Any, Callable[[Tensor], Any]] = {
    _aten.zeros.default: Tensor.zero_,
    _aten.zeros_like.default: Tensor.zero_,
    _aten.ones_like.default: functools.partial(Tensor.fill_, value=1),
    _aten.randn_like.default: Tensor.normal_,
}


def _into(func, args, kwargs, outs):
    """Returns a function and arguments that repeat an operation and write its results to `outs`."""
    packet = func.overloadpacket
    args, kwargs, outs = _detached(args), _detached(kwargs), _detached(outs)
    if func in _FACTORIES:
        return _FACTORIES[func], (outs[0],)
    if func is _aten.rsub.Scalar and len(args) == 2:  # number - tensor
        swapped = torch.tensor(args[1], dtype=outs[0].dtype), args[0]
        if _computes(torch.sub, swapped, kwargs, outs[0]):
            return functools.partial(torch.sub, **kwargs, out=outs[0]), swapped
    # Losses would resize the memory of their result to that of the unreduced loss and back
    reduces = any(x.name == "reduction" for x in func._schema.arguments)
    is_safe = torch.Tag.nondeterministic_seeded not in func.tags and not reduces
    if len(outs) == 1 and is_safe:
        # The call of an operation by its name in torch takes half the time of its overload
        for into in (getattr(torch, packet.__name__, None), getattr(packet, "out", None)):
            if into is not None and _computes(into, args, kwargs, outs[0]):
                return functools.partial(into, **kwargs, out=outs[0]), args
    if torch.Tag.nondeterministic_seeded not in func.tags and "batch_norm" not in packet.__name__:
        with torch.no_grad():  # as a replay does
            again = list(_flat(func(*args, **kwargs)))
        if [(x.shape, x.dtype) for x in again] != [(x.shape, x.dtype) for x in outs]:
            raise RuntimeError("its results differ outside of autograd")
    return _copied(func, args, kwargs, outs, outs)


def _copied(func, args, kwargs, outs, made):
    """Returns a function and arguments that repeat an operation and copy its results to `made`."""
    kwargs = _detached(kwargs)
    targets = [y.detach() if any(y is x for x in made) else None for y in outs]

    def copy(*args):
        for target, result in zip(targets, _flat(func(*args, **kwargs)), strict=True):
            if target is not None:
                target.copy_(result)

    return copy, _detached(args)


def _computes(into, args, kwargs, out):
    """Returns True if `into` writes the same result as `out`, bit for bit, to given memory."""
    trial = torch.empty_like(out)
    where = trial.data_ptr()
    always, _ = torch.is_warn_always_enabled(), torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            into(*args, **kwargs, out=trial)
        same_form = trial.shape == out.shape and trial.stride() == out.stride()
        return same_form and trial.data_ptr() == where and same_bits(trial, out)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, Warning):
        return False
    finally:
        torch.set_warn_always(always)
