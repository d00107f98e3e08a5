"""An MLP forwards and backwards, and Adam: what most of the time of training goes to.

On one thread of an x86-64 CPU ``_kernels.c`` does it, which the installation builds where it finds
a C compiler; everywhere else PyTorch does. The numbers are the same up to rounding.

Shapes: a layer of ``n_out`` units maps its input ``(rows, n_in)`` by a weight ``(n_out, n_in)`` and
a bias ``(n_out,)``. In a stack of networks the weight is ``(stack, n_out, n_in)``, the bias
``(stack, 1, n_out)``, and the output ``(stack, rows, n_out)``; all see the same input.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinup.fast import capture

_kernels: Any = None
if "0" not in (os.environ.get("SPINUP_FAST"), os.environ.get("SPINUP_COMPILED")):
    with contextlib.suppress(ImportError):
        from spinup.fast import _kernels  # type: ignore[attr-defined, no-redef]

# Activations that a layer can have, numbered as in _kernels.c.
ACTIVATIONS: dict[type[nn.Module], int] = {nn.Identity: 0, nn.ReLU: 1, nn.Tanh: 2}
IDENTITY, RELU, TANH = ACTIVATIONS.values()

# Wider layers outgrow the cache that _kernels.c counts on: PyTorch is faster from there on.
_WIDEST = 512
_MOST_PARAMS = 64


class TorchMLP:
    """MLPs by PyTorch's functions, on any device."""

    @staticmethod
    def forward(
        inputs: Sequence[Tensor],
        params: Sequence[Tensor],
        activations: Sequence[int],
        keep: bool = True,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Evaluates a network, or a stack of them.

        Args:
            inputs: one or several ``(rows, features)``, which are concatenated.
            params: weights and biases by turns.
            activations: of each layer.
            keep: whether `backward` will follow.

        Returns:
            The last layer's output, and what `backward` needs.
        """
        h = [torch.cat(list(inputs), dim=-1) if len(inputs) > 1 else inputs[0]]
        for i, activation in enumerate(activations):
            h.append(_layer(h[i], params[2 * i], params[2 * i + 1], activation))
        return h[-1], tuple(h)

    @staticmethod
    def backward(
        saved: Sequence[Tensor],
        params: Sequence[Tensor],
        activations: Sequence[int],
        grad: Tensor,
        param_grads: Sequence[Tensor] | None,
        columns: Sequence[slice],
    ) -> list[Tensor]:
        """Computes the gradients of a network.

        Args:
            saved: what `forward` returned for it, besides its output.
            params, activations: as they were.
            grad: gradient by the output.
            param_grads: tensors shaped as `params`, to which their gradients are added.
            columns: parts of the input whose gradients are asked for.

        Returns:
            The gradients of those parts, each ``(rows, features)``.
        """
        grad = _activation_backward(grad, saved[-1], activations[-1])
        for i in reversed(range(len(activations))):
            if param_grads is not None:
                _add_param_grads(grad, saved[i], *param_grads[2 * i : 2 * i + 2])
            if i > 0:
                grad = _activation_backward(grad @ params[2 * i], saved[i], activations[i - 1])
        grads = [_product(grad, params[0][..., part]) for part in columns]
        seen_by_all = grad.dim() > saved[0].dim()
        return [g.sum(0) for g in grads] if seen_by_all else grads


class CompiledMLP:
    """The same by ``_kernels.c``: see `mlp_engine` for what it can do."""

    @staticmethod
    def forward(
        inputs: Sequence[Tensor],
        params: Sequence[Tensor],
        activations: Sequence[int],
        keep: bool = True,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        stack, rows, sizes = _shape(params, len(inputs[0]))
        result = params[0].new_empty(*params[0].shape[:-2], rows, sizes[-1])
        outputs = params[0].new_empty(rows * (sizes[0] + stack * sum(sizes[1:-1])) if keep else 0)
        # Of each input its address, the step to its next row, and its features
        where = [x for i in inputs for x in (i.data_ptr(), i.stride(0), i.shape[1])]
        capture.run(
            _kernels.mlp_forward,
            *(stack, rows, sizes, activations, _addresses(params)),
            *(outputs.data_ptr() if keep else 0, result.data_ptr(), tuple(where)),
            tensors=(*inputs, *params, outputs, result),
        )
        return result, (outputs, result)

    @staticmethod
    def backward(
        saved: Sequence[Tensor],
        params: Sequence[Tensor],
        activations: Sequence[int],
        grad: Tensor,
        param_grads: Sequence[Tensor] | None,
        columns: Sequence[slice],
    ) -> list[Tensor]:
        grad = grad.contiguous()
        stack, rows, sizes = _shape(params, grad.shape[-2])
        grads = [grad.new_zeros(rows, part.stop - part.start) for part in columns]
        where = [
            x for part, g in zip(columns, grads) for x in (part.start, g.shape[1], g.data_ptr())
        ]
        capture.run(
            _kernels.mlp_backward,
            *(stack, rows, sizes, activations, _addresses(params), *_addresses(saved)),
            *(grad.data_ptr(), _addresses(param_grads or ()), tuple(where)),
            tensors=(*params, *saved, grad, *(param_grads or ()), *grads),
        )
        return grads


def compiled() -> str | None:
    """Returns the vectors that the compiled functions use, or None where there are no such."""
    return _kernels and ("avx512" if _kernels.has_avx512() else "avx2")


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Makes PyTorch do everything in a block."""
    global _kernels
    before, _kernels = _kernels, None
    try:
        yield
    finally:
        _kernels = before


def can_run_on(*tensors: Tensor) -> bool:
    """Returns True if ``_kernels.c`` can take tensors: contiguous, float32, CPU, one thread."""
    return (
        _kernels is not None
        and torch.get_num_threads() == 1
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and all(type(x) in (Tensor, nn.Parameter) for x in tensors)
        and all(x.dtype is torch.float32 and x.is_cpu and x.is_contiguous() for x in tensors)
    )


def mlp_engine(
    inputs: Sequence[Tensor], params: Sequence[Tensor]
) -> type[TorchMLP] | type[CompiledMLP]:
    """Returns the fastest of `TorchMLP` and `CompiledMLP` that can evaluate a network.

    Mismatched shapes go to `TorchMLP`, which raises.
    """
    fits = (
        can_run_on(*params)
        and len(params) <= _MOST_PARAMS
        and all(
            x.dtype is torch.float32 and x.is_cpu and x.dim() == 2 and x.stride(1) == 1
            for x in inputs
        )
    )
    return CompiledMLP if fits and _match(inputs, params) else TorchMLP


def _match(inputs, params):
    """Returns True if inputs and layers have the shapes of a network, and none is too wide."""
    stack, n_in = params[0].shape[:-2], sum(x.shape[1] for x in inputs)
    if len({len(x) for x in inputs}) > 1 or len(stack) > 1:
        return False
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        n_out = weight.shape[-2]
        if weight.shape != (*stack, n_out, n_in) or max(n_in, n_out) > _WIDEST:
            return False
        if bias.shape != ((*stack, 1, n_out) if stack else (n_out,)):
            return False
        n_in = n_out
    return True


def squashed_gaussian(
    out: Tensor, eps: Tensor, mid: Tensor, half_range: Tensor, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes `nets.squashed_gaussian` and the map to the Box, where `can_run_on` returns True.

    Args:
        out: ``mu`` and ``log(std)``, ``(rows, 2 * act_dim)``.
        eps: standard normal noise, ``(rows, act_dim)``.
        mid, half_range: of the Box of actions, ``(act_dim,)``.
        bounds: of ``log(std)``.

    Returns:
        Actions ``(rows, act_dim)``, log-densities ``(rows,)``, and for `squashed_gaussian_grad`
        the squashed actions and the noise, ``(rows, act_dim)``.
    """
    rows, dim = eps.shape
    act, squashed, noise = out.new_empty(3, rows, dim).unbind()
    logp = out.new_empty(rows)
    tensors = (out, eps, mid, half_range, act, logp, squashed, noise)
    addresses = _addresses(tensors)
    capture.run(_kernels.squashed_gaussian, rows, dim, *addresses, *bounds, tensors=tensors)
    return act, logp, squashed, noise


def squashed_gaussian_grad(
    out: Tensor,
    half_range: Tensor,
    squashed: Tensor,
    noise: Tensor,
    act_grad: Tensor,
    logp_grad: Tensor,
    bounds: tuple[float, float],
) -> Tensor:
    """Returns the gradient by `out` from those by what `squashed_gaussian` returned."""
    grad = torch.empty_like(out)
    act_grad, logp_grad = act_grad.contiguous(), logp_grad.contiguous()
    tensors = (out, half_range, squashed, noise, act_grad, logp_grad, grad)
    args = *noise.shape, *_addresses(tensors), *bounds
    capture.run(_kernels.squashed_gaussian_grad, *args, tensors=tensors)
    return grad


def adam_step(
    params: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> bool:
    """Takes the `step`-th step of Adam, counted from 1, where `can_run_on` returns True.

    Returns:
        Whether it did: not if the gradient isn't finite; then nothing has changed.
    """
    addresses = _addresses((params, grad, exp_avg, exp_avg_sq))
    return _kernels.adam(params.numel(), *addresses, step, lr, *betas, eps)


def _shape(params, rows):
    """Returns the networks in a stack, the rows, and the features of the input and each layer."""
    weights = params[::2]
    stack = len(weights[0]) if weights[0].dim() == 3 else 1
    return stack, rows, (weights[0].shape[-1], *[weight.shape[-2] for weight in weights])


def _addresses(tensors):
    return tuple([x.data_ptr() for x in tensors])


def _layer(x, weight, bias, activation):
    """Returns ``f(x @ weight.T + bias)``, as ``nn.Linear`` and `nets.StackedLinear` do."""
    if weight.dim() == 3:
        x = x.expand(len(weight), -1, -1) if x.dim() == 2 else x
        y = torch.baddbmm(bias, x, weight.transpose(1, 2))
    else:
        y = torch.addmm(bias, x, weight.t()) if x.dim() == 2 else F.linear(x, weight, bias)
    if activation == RELU:
        return y.relu_()
    return _tanh_(y) if activation == TANH else y


def _activation_backward(grad, y, activation):
    """Returns the gradient by an activation's input from that by its output, which is `y`."""
    if activation == RELU:
        return torch.ops.aten.threshold_backward(grad, y, 0)
    return torch.ops.aten.tanh_backward(grad, y) if activation == TANH else grad


def _add_param_grads(grad, x, weight_grad, bias_grad):
    if weight_grad.dim() == 2:
        grad, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        weight_grad.addmm_(grad.t(), x)
        bias_grad.add_(grad.sum(0))
    else:
        weight_grad.add_(_product(grad.transpose(1, 2), x))
        bias_grad.add_(grad.sum(1, keepdim=True))


def _product(a, b):
    """Computes ``a @ b``, transposed where the result is then wide: up to three times as fast."""
    if b.shape[-1] < a.shape[-2]:
        return (b.transpose(-2, -1) @ a.transpose(-2, -1)).transpose(-2, -1)
    return a @ b


def _tanh_(x):
    """Overwrites `x` with its tanh; on a CPU by NumPy's, seven times as fast as PyTorch's."""
    if x.device.type != "cpu":
        return x.tanh_()
    capture.run(_numpy_tanh_, capture.array(x), tensors=(x,))
    return x


# From here on tanh is 1 in float32. NumPy's falls short of it by 6e-8 up to 10.
_TANH_IS_ONE = 9.011


def _numpy_tanh_(array):
    saturated = None
    if array.size and not max(array.max(), -array.min()) < _TANH_IS_ONE:  # NaN included
        saturated = np.abs(array) >= _TANH_IS_ONE
    np.tanh(array, out=array)
    if saturated is not None:
        np.copysign(1, array, out=array, where=saturated)
