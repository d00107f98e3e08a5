"""Shortens a recorded update: fewer calls, and the same results to the bit.

PyTorch takes 2 to 30 microseconds for an operation on some hundred numbers, such as those of the
targets and the loss of a minibatch, and an update of SAC has about thirty of them.

- ``_kernels.c`` computes such operations, all that follow one another in a single call.
- A gradient isn't cleared before a backward pass that then writes all of it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# As in _kernels.c: operations, types of numbers, and the most numbers of an operand.
_NEG, _COPY, _MUL, _PLUS, _MINUS, _DIV, _MIN, _EQ, _CLAMP, _ADDCMUL, _SUM = range(11)
_TYPES = {torch.float32: 0, torch.bool: 1, torch.int64: 2}
_MOST_NUMBERS = 1024
_EXACT = 2**24  # float32 has all integers up to this one
_PARAM_GRADS = 8  # index of mlp_backward's argument param_grads

_aten = torch.ops.aten
_CODES = {
    _aten.neg.default: _NEG,
    **dict.fromkeys([_aten.mul.Tensor, _aten.mul.Scalar], _MUL),
    **dict.fromkeys([_aten.add.Tensor, _aten.add.Scalar], _PLUS),
    **dict.fromkeys([_aten.sub.Tensor, _aten.sub.Scalar], _MINUS),
    **dict.fromkeys([_aten.div.Tensor, _aten.div.Scalar], _DIV),
    _aten.eq.Tensor: _EQ,
    _aten.clamp.default: _CLAMP,
    _aten.clamp.Tensor: _CLAMP,
    _aten.addcmul.default: _ADDCMUL,
}
# Reductions over a first dimension of length two, as that of twin critics
_OVER_TWO = {
    _aten.amin.default: (_MIN, torch.float32),
    _aten.sum.dim_IntList: (_PLUS, torch.bool),  # counts, which are exact
}
_NUM_OPERANDS = {_NEG: 1, _COPY: 1, _CLAMP: 3, _ADDCMUL: 3}  # else 2
_FILLED = {
    _aten.zeros.default: 0,
    _aten.zeros_like.default: 0,
    _aten.new_zeros.default: 0,
    _aten.ones_like.default: 1,
}


class Call(NamedTuple):
    """A call of a recording.

    Attributes:
        function, args: the function and its arguments.
        tensors: all tensors that it reads or writes; None if it may use others.
        operations: the numbers that describe it to ``_kernels.c``, if that can compute it.
        numbers: memory to which `operations` refer.
    """

    function: Callable[..., Any]
    args: tuple
    tensors: Sequence[Tensor] | None = None
    operations: list[list[int]] | None = None
    numbers: tuple = ()


def shortened(calls: Sequence[Call]) -> tuple[list[tuple[Callable, tuple]], list[Any]]:
    """Returns functions and their arguments with the effect of `calls`, and what to keep alive."""
    made: list[tuple[Callable, tuple]] = []
    kept: list[Any] = []
    compiled = _compiled()
    for is_small, group in itertools.groupby(
        _without_clearing(calls), lambda call: call.operations is not None
    ):
        if is_small:
            together = list(group)
            table = np.array([row for call in together for row in call.operations], dtype=np.int64)
            made.append((compiled.compute_all, (len(table), table.ctypes.data)))
            kept += [table, together]
        else:
            made += [(call.function, call.args) for call in group]
    return made, kept


# --- Operations on few numbers --------------------------------------------------------------------


def small_operation(
    func: Any, args: tuple, kwargs: dict[str, Any], out: Tensor, tensors: Sequence[Tensor]
) -> Call | None:
    """Returns a call of ``_kernels.c`` that repeats an operation, or None if it can't.

    Args:
        func: overload of an operation in ``torch.ops.aten``.
        args, kwargs: its arguments, unchanged since the call.
        out: its result, to which the call will write.
        tensors: all tensors among them.
    """
    compiled = _compiled()
    if compiled is None or not 0 < out.numel() <= _MOST_NUMBERS:
        return None
    if not (out.is_cpu and out.is_contiguous() and out.dtype in _TYPES):
        return None
    numbers: list[np.ndarray] = []
    trial = torch.empty_like(out)
    operations = []
    for code, operands, shape in _decomposed(func, args, kwargs, trial):
        row = _described(code, trial, operands, shape, numbers)
        if row is None or not _computes_in_float32(code, trial, operands):
            return None
        operations.append(row)
    if not operations:
        return None
    _run(operations)
    if not same_bits(trial, out):
        return None
    if operations[0][0] in (_MIN, _CLAMP) and not _takes_the_same_zeros(func, args):
        return None
    places = {trial.data_ptr(): out.data_ptr()}
    operations = [[places.get(x, x) for x in row] for row in operations]
    return Call(compiled.compute_all, (), tensors, operations, tuple(numbers))


def _run(operations):
    table = np.array(operations, dtype=np.int64)
    _compiled().compute_all(len(table), table.ctypes.data)


def _computes_in_float32(code, result, operands):
    """Returns False for operations on integers or flags that float32 may not compute exactly."""
    types = {x.dtype for x in operands if isinstance(x, Tensor)}
    if code == _COPY and not types:
        return True  # of 0 or 1
    if code == _EQ:
        return types == {torch.float32}
    if code == _ADDCMUL and not _fuses_addcmul():
        return False
    if result.dtype is torch.int64:
        return code == _PLUS and types == {torch.bool}
    return result.dtype is torch.float32


def _described(code, result, operands, shape, numbers):
    """Returns the numbers that describe an operation, or None; appends memory to `numbers`."""
    operands = list(operands)
    for i, x in enumerate(operands):
        if isinstance(x, float) or (isinstance(x, int) and abs(x) <= _EXACT):
            with np.errstate(over="ignore"):
                numbers.append(np.array([x], dtype=np.float32))
            operands[i] = torch.from_numpy(numbers[-1])[0]
        elif not (isinstance(x, Tensor) and x.is_cpu and x.dtype in _TYPES):
            return None
    layout = _layout(operands, shape)
    if layout is None:
        return None
    rows, cols, strides = layout
    where = [result.data_ptr(), 0, 0, _TYPES[result.dtype]]
    for x, steps in zip(operands, strides, strict=True):
        where += [x.data_ptr(), *steps, _TYPES[x.dtype]]
    return [code, rows, cols, *where, *[0] * (16 - len(where))]


def _decomposed(func, args, kwargs, out):
    """Returns a list of operations as code, operands and shape; an empty one if there are none."""
    if func in _FILLED:
        return [(_COPY, [_FILLED[func]], out.shape)]
    if kwargs:
        return []
    if func is _aten.zero_.default:
        return [(_COPY, [0], out.shape)]
    if func in _CODES and len(args) == _NUM_OPERANDS.get(_CODES[func], 2):
        return [(_CODES[func], args, out.shape)]
    if func is _aten.rsub.Scalar and len(args) == 2:
        return [(_MINUS, [args[1], args[0]], out.shape)]
    if func is _aten.pow.Tensor_Scalar and args[1] in (1, 2):
        return [(_COPY, args[:1], out.shape) if args[1] == 1 else (_MUL, args[:1] * 2, out.shape)]
    if func in _OVER_TWO and len(args) > 1 and args[1] in (0, [0], (0,)):
        x, (code, dtype) = args[0], _OVER_TWO[func]
        if x.dim() > 0 and len(x) == 2 and x.dtype is dtype:
            return [(code, [x[0], x[1]], out.shape)]
    if func in (_aten.sum.default, _aten.mean.default):
        x = args[0]
        if x.dtype is torch.float32 and x.is_contiguous() and _sums_in_order(x.numel()):
            mean = [(_DIV, [out, x.numel()], out.shape)] if func is _aten.mean.default else []
            return [(_SUM, [x], x.shape), *mean]
    return []


@functools.cache
def _sums_in_order(n):
    """Returns True if ``_kernels.c`` adds n numbers in PyTorch's order, which it doesn't document.

    Another order gives another sum of one of 64 sets of random numbers, with near certainty.
    """
    if not 0 < n <= _MOST_NUMBERS:
        return False
    rng, result = np.random.default_rng(0), torch.empty((), dtype=torch.float32)
    sets = rng.standard_normal((64, n)) * 10.0 ** rng.uniform(-3, 3, (64, n))
    for x in torch.from_numpy(sets.astype(np.float32)):
        _run([_described(_SUM, result, [x], x.shape, [])])
        if not same_bits(result, x.sum()):
            return False
    return True


def _takes_the_same_zeros(func, args):
    """Returns True if ``_kernels.c`` chooses between 0 and -0 as PyTorch does.

    PyTorch's choice depends on the layout of the numbers, and isn't documented.
    """
    rng = np.random.default_rng(0)
    for _ in range(8):
        copies = []
        for x in args:
            if isinstance(x, Tensor):
                if 0 in x.stride() and x.numel() > 1:
                    return False
                signs = rng.choice(np.array([0.0, -0.0], dtype=np.float32), tuple(x.shape))
                copies.append(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype))
                copies[-1].copy_(torch.from_numpy(np.asarray(signs)))
            else:
                copies.append(x)
        expected = func(*copies)
        result = torch.empty_like(expected)
        _run(
            [
                _described(code, result, operands, shape, [])
                for code, operands, shape in _decomposed(func, copies, {}, result)
            ]
        )
        if not same_bits(result, expected):
            return False
    return True


@functools.cache
def _fuses_addcmul():
    """Returns True if PyTorch's ``addcmul`` rounds once, as a fused multiply-add does."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32))
    result = torch.empty(64, dtype=torch.float32)
    _run([_described(_ADDCMUL, result, list(x), result.shape, [])])
    return torch.equal(result, torch.addcmul(*x))


def _layout(tensors, shape):
    """Returns rows, columns and each tensor's strides in bytes, or None for more dimensions."""
    strides = [[s * x.element_size() for s in x.expand(shape).stride()] for x in tensors]
    dims: list[tuple[int, tuple[int, ...]]] = []
    for size, *steps in zip(shape, *strides, strict=True):
        if size == 1:
            continue
        if dims and all(a == b * size for a, b in zip(dims[-1][1], steps, strict=True)):
            dims[-1] = dims[-1][0] * size, tuple(steps)
        else:
            dims.append((size, tuple(steps)))
    if len(dims) > 2:
        return None
    none = (1, (0,) * len(tensors))
    (rows, row), (cols, col) = [none] * (2 - len(dims)) + dims
    return rows, cols, list(zip(row, col, strict=True))


# --- Gradients that aren't cleared ----------------------------------------------------------------


def _without_clearing(calls):
    """Omits each ``zero_`` of a gradient that a network's backward pass then writes as a whole."""
    calls, compiled = list(calls), _compiled()
    for i, call in enumerate(calls):
        is_clearing = getattr(call.function, "func", None) is _aten.zero_.default
        if not (is_clearing and call.args[0].is_contiguous()):
            continue
        place = _place(call.args[0])
        for j in range(i + 1, len(calls)):
            after = calls[j]
            if after.tensors is not None and not any(_meets(x, place) for x in after.tensors):
                continue
            is_backward = compiled is not None and after.function is compiled.mlp_backward
            if is_backward and _writes(after, place):
                calls[j] = after._replace(args=(*after.args[:-1], True))
                calls[i] = None
            break
    return [call for call in calls if call is not None]


def _writes(call, place):
    """Returns True if a backward pass adds to each number of a place once, and doesn't read it."""
    addresses = call.args[_PARAM_GRADS]
    sums = [x for x in call.tensors if x.data_ptr() in addresses]
    others = [x for x in call.tensors if x.data_ptr() not in addresses]
    start = place[0]
    for x in sums:
        if x.data_ptr() != start:
            return False
        start += x.numel() * x.element_size()
    return start == place[1] and not any(_meets(x, place) for x in others)


def _place(x):
    """Returns a tensor's first address, and that after its last."""
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size() if x.numel() else 0


def _meets(x, place):
    start, stop = _place(x)
    return start < place[1] and place[0] < stop


def is_compiled(function: Callable[..., Any]) -> bool:
    """Returns True for a function of ``_kernels.c``, which uses only the memory of its tensors."""
    compiled = _compiled()
    return compiled is not None and getattr(function, "__self__", None) is compiled


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Returns True if two tensors of the same shape and dtype have the same bits, in any layout."""
    return torch.equal(_bytes(x), _bytes(y))


def _bytes(x):
    flat = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
    return flat.copy_(x.reshape(-1)).view(torch.uint8)


def _compiled():
    from spinup.fast import kernels  # which imports this module

    return kernels._kernels
