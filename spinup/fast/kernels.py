"""The forward and backward passes of MLPs, and Adam, which take most of the training time.

On one thread of an x86-64 CPU, ``_kernels.c`` computes them; the installation builds it if it finds
a C compiler. Otherwise PyTorch computes them. The results are the same up to rounding.

Shapes: a layer of ``n_out`` units maps its input ``(rows, n_in)`` by a weight ``(n_out, n_in)`` and
a bias ``(n_out,)``. In a stack of networks the weight is ``(stack, n_out, n_in)``, the bias
``(stack, 1, n_out)``, and the output ``(stack, rows, n_out)``; all networks have the same input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinup import fast
from spinup.fast import capture

_kernels: Any = fast.compiled_module("_kernels", interface=2)  # as in _kernels.c

# Activations that a layer can have, numbered as in _kernels.c.
ACTIVATIONS: dict[type[nn.Module], int] = {nn.Identity: 0, nn.ReLU: 1, nn.Tanh: 2}
IDENTITY, RELU, TANH = ACTIVATIONS.values()

# Wider layers don't fit into the cache for which _kernels.c is designed: PyTorch is faster.
_WIDEST = 512
_MOST_PARAMS = 64


class TorchMLP:
    """MLPs computed by PyTorch, on any device."""

    @staticmethod
    def forward(
        inputs: Sequence[Tensor],
        params: Sequence[Tensor],
        activations: Sequence[int],
        keep: bool = True,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Evaluates a network, or a stack of them.

        Args:
            inputs: one or several tensors ``(rows, features)``, which are concatenated.
            params: weight and bias of each layer, in turn.
            activations: activation of each layer, a value of `ACTIVATIONS`.
            keep: whether `backward` will be called.

        Returns:
            The output of the last layer, and the tensors that `backward` needs.
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
            saved: the tensors that `forward` returned for this function.
            params, activations: the arguments of `forward`.
            grad: gradient with respect to the output.
            param_grads: tensors with the shapes of `params`, to which the gradients with respect to
                `params` are added; None if those aren't needed.
            columns: slices of the input's features whose gradients are needed.

        Returns:
            The gradients with respect to these slices of the input, each ``(rows, features)``.
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

    @staticmethod
    def outputs(saved: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the network's input and each layer's output, given the tensors from `forward`."""
        return saved


class CompiledMLP:
    """MLPs computed by ``_kernels.c``, with the interface of `TorchMLP`; see `mlp_engine`."""

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
        # For each input: address, distance between rows, number of features
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
            *(grad.data_ptr(), _addresses(param_grads or ()), tuple(where), False),
            tensors=(*params, *saved, grad, *(param_grads or ()), *grads),
        )
        return grads

    @staticmethod
    def outputs(saved: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        values, result = saved
        stack, rows, sizes = _shape(params, result.shape[-2])
        lengths = [rows * sizes[0], *[stack * rows * n for n in sizes[1:-1]]]
        hidden = [x.view(*params[0].shape[:-2], rows, -1) for x in values.split(lengths)[1:]]
        return [values[: lengths[0]].view(rows, -1), *hidden, result]


def forward_derivative(
    outputs: Sequence[Tensor],
    params: Sequence[Tensor],
    activations: Sequence[int],
    input_tangent: Tensor | None,
    tangents: Sequence[Tensor | None],
) -> Tensor:
    """Computes the derivative of a network's output in a direction of its input and parameters.

    Args:
        outputs: the network's input and each layer's output, from `TorchMLP.outputs`.
        params, activations: the arguments of `TorchMLP.forward`.
        input_tangent: the direction of the input, in its shape; None for zeros.
        tangents: the direction of each of `params`, in its shape; None for zeros.

    Returns:
        The derivative, in the shape of the output.
    """
    d = input_tangent
    for i, activation in enumerate(activations):
        weight, (d_weight, d_bias) = params[2 * i], tangents[2 * i : 2 * i + 2]
        change = None if d_bias is None else d_bias.expand_as(outputs[i + 1])
        for x, w in ((outputs[i], d_weight), (d, weight)):
            if x is not None and w is not None:
                change = _layer(x, w, x.new_zeros(1) if change is None else change, IDENTITY)
        if change is not None:
            d = _activation_backward(change, outputs[i + 1], activation)
    return torch.zeros_like(outputs[-1]) if d is None else d


def compiled() -> str | None:
    """Returns the vector instructions of the compiled functions, or None if they aren't in use."""
    return _kernels and ("avx512" if _kernels.has_avx512() else "avx2")


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Switches the compiled functions off in a block, so that PyTorch computes everything."""
    global _kernels
    before, _kernels = _kernels, None
    try:
        yield
    finally:
        _kernels = before


def can_run_on(*tensors: Tensor) -> bool:
    """Returns True if ``_kernels.c`` can take tensors.

    It needs contiguous float32 tensors on the CPU, and a single thread.
    """
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
    """Returns `CompiledMLP` if it can evaluate a network, otherwise `TorchMLP`.

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
    """Returns True if the shapes of inputs and layers match, and no layer is too wide."""
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
    """Computes `nets.squashed_gaussian` and the map to the Box. Requires `can_run_on`.

    Args:
        out: ``mu`` and ``log(std)``, concatenated, ``(rows, 2 * act_dim)``.
        eps: standard normal noise, ``(rows, act_dim)``.
        mid, half_range: centre and half the range of the Box of actions, ``(act_dim,)``.
        bounds: bounds of ``log(std)``.

    Returns:
        Actions ``(rows, act_dim)`` and log-densities ``(rows,)``. For `squashed_gaussian_grad` also
        the squashed actions and the noise ``std * eps``, each ``(rows, act_dim)``.
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
    """Returns the gradient with respect to `out`, given those of actions and log-densities."""
    grad = torch.empty_like(out)
    act_grad, logp_grad = act_grad.contiguous(), logp_grad.contiguous()
    tensors = (out, half_range, squashed, noise, act_grad, logp_grad, grad)
    args = *noise.shape, *_addresses(tensors), *bounds
    capture.run(_kernels.squashed_gaussian_grad, *args, tensors=tensors)
    return grad


def is_finite(x: Tensor) -> bool:
    """Returns True if no number of a tensor is NaN or infinite."""
    if _kernels is not None and x.dtype is torch.float32 and x.is_cpu and x.is_contiguous():
        return _kernels.is_finite(x.numel(), x.data_ptr())
    return bool(x.isfinite().all())


def adam_step(
    params: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    part: slice = slice(None),
) -> None:
    """Takes step number `step` of Adam, counted from 1. Requires `can_run_on`.

    Args:
        part: the part of the vectors to which the step is limited.
    """
    start, stop, _ = part.indices(params.numel())
    addresses = _addresses((params, grad, exp_avg, exp_avg_sq))
    _kernels.adam(start, stop, *addresses, step, lr, *betas, eps)


def _shape(params, rows):
    """Returns the number of networks and of rows, and the features of the input and each layer."""
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
    """Returns the gradient of an activation's input, given that of its output `y`."""
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
    """Computes ``a @ b``. A tall result is computed transposed, up to three times as fast."""
    if b.shape[-1] < a.shape[-2]:
        return (b.transpose(-2, -1) @ a.transpose(-2, -1)).transpose(-2, -1)
    return a @ b


def _tanh_(x):
    """Overwrites `x` with its tanh. On a CPU it uses NumPy's, seven times as fast as PyTorch's."""
    if x.device.type != "cpu":
        return x.tanh_()
    capture.run(_numpy_tanh_, capture.array(x), tensors=(x,))
    return x


# From this x on, tanh(x) is 1 in float32. NumPy's is 6e-8 too small up to x = 10.
_TANH_IS_ONE = 9.011


def _numpy_tanh_(array):
    saturated = None
    if array.size and not max(array.max(), -array.min()) < _TANH_IS_ONE:  # NaN included
        saturated = np.abs(array) >= _TANH_IS_ONE
    np.tanh(array, out=array)
    if saturated is not None:
        np.copysign(1, array, out=array, where=saturated)
