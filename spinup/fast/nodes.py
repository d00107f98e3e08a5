"""Networks as single nodes of the autograd graph, with their backward passes in closed form.

A node computes the same as a module of `spinup.utils.mlp` or `spinup.utils.nets`, which document
the formulas, with a fraction of autograd's overhead. The environment variable ``SPINUP_FAST=0``
switches the nodes off.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from spinup import fast
from spinup.fast.kernels import (
    ACTIVATIONS,
    can_run_on,
    forward_derivative,
    mlp_engine,
    squashed_gaussian_grad,
)
from spinup.fast.kernels import squashed_gaussian as compiled_squashed_gaussian

ENABLED = fast.is_on()

# --- Multi-layer perceptrons ----------------------------------------------------------------------


def are_plain(modules: Sequence[nn.Module], linear: tuple[type[nn.Module], ...]) -> bool:
    """Returns True if linear layers and activations alternate, and all are unmodified.

    Subclasses, which may override the forward pass, modules with hooks, which may read or change
    values, and parametrizations (weight_norm, spectral_norm), which compute the weight, are never
    plain.

    Args:
        modules: the modules of an ``nn.Sequential``.
        linear: classes of layers with a ``weight`` and a ``bias``.
    """
    kinds = linear, ACTIVATIONS
    for i, module in enumerate(modules):
        if type(module) not in kinds[i % 2] or is_changed(module):
            return False
        if i % 2 == 0:
            params = module._parameters
            if len(params) != 2 or params.get("weight") is None or params.get("bias") is None:
                return False
    return len(modules) % 2 == 0 and not any(getattr(torch_module, name) for name in _GLOBAL_HOOKS)


def is_changed(module: nn.Module) -> bool:
    """Returns True if a module has hooks, or an instance attribute ``forward``."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


_GLOBAL_HOOKS = [
    f"_global_{kind}_hooks" for kind in ("forward", "forward_pre", "backward", "backward_pre")
]


def mlp(inputs: Sequence[Tensor], modules: Sequence[nn.Module], first: bool = False) -> Tensor:
    """Evaluates an MLP as one node of the autograd graph.

    Args:
        inputs: one or several tensors ``(rows, features)``, which are concatenated.
        modules: layers and activations, for which `are_plain` returns True.
        first: evaluate only the first network of a stack.
    """
    owners: list[Any] = [p for m in modules[::2] for p in (m.weight, m.bias)]
    params = owners
    if first:
        params = [p[0] if i % 2 == 0 else p[0, 0] for i, p in enumerate(owners)]
    activations = tuple([ACTIVATIONS[type(m)] for m in modules[1::2]])
    engine = mlp_engine(inputs, params)
    if torch.is_grad_enabled():
        return _MLP.apply(engine, activations, owners, len(inputs), *inputs, *params)
    return engine.forward(inputs, params, activations, keep=False)[0]


class _MLP(torch.autograd.Function):
    """An MLP as one node of the autograd graph."""

    @staticmethod
    def forward(ctx, engine, activations, owners, num_inputs, *tensors):
        inputs, params = tensors[:num_inputs], tensors[num_inputs:]
        result, saved = engine.forward(inputs, params, activations)
        ctx.engine, ctx.activations, ctx.params = engine, activations, params
        ctx.owners, ctx.versions = owners, _versions(owners)
        ctx.widths = [x.shape[-1] for x in inputs]
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        return result

    @staticmethod
    @torch.no_grad()  # a derivative of the derivative would be wrong
    def jvp(ctx, engine, activations, owners, num_inputs, *tangents):
        outputs = ctx.engine.outputs(ctx.saved_tensors, ctx.params)
        inputs, params = tangents[: len(ctx.widths)], tangents[len(ctx.widths) :]
        parts = zip(ctx.widths, inputs, strict=True)
        d = None
        if any(x is not None for x in inputs):
            rows = len(outputs[0])
            zeros = [outputs[0].new_zeros(rows, n) if x is None else x for n, x in parts]
            d = torch.cat(zeros, dim=-1)
        return forward_derivative(outputs, ctx.params, ctx.activations, d, params)

    @staticmethod
    def backward(ctx, grad):
        _refuse_second_derivatives()
        if ctx.versions != _versions(ctx.owners):
            raise RuntimeError(
                "the network's parameters changed between its forward and its backward pass: call "
                "backward() before the optimizer's step, or evaluate the network again after it"
            )
        num_inputs = len(ctx.widths)
        needs_input = ctx.needs_input_grad[4 : 4 + num_inputs]
        needs_param = ctx.needs_input_grad[4 + num_inputs :]
        in_place = _adds_in_place and all(needs_param) and all(map(_takes_sums, ctx.params))
        param_grads = None
        if any(needs_param):
            param_grads = [p.grad if in_place else torch.zeros_like(p) for p in ctx.params]
        ends = list(itertools.accumulate(ctx.widths, initial=0))
        columns = [slice(*ends[i : i + 2]) for i in range(num_inputs) if needs_input[i]]
        grads = iter(
            ctx.engine.backward(
                ctx.saved_tensors, ctx.params, ctx.activations, grad, param_grads, columns
            )
        )
        input_grads = [next(grads) if needed else None for needed in needs_input]
        if in_place or param_grads is None:
            return None, None, None, None, *input_grads, *[None] * len(ctx.params)
        return None, None, None, None, *input_grads, *param_grads


def _versions(params):
    """Returns the version counters of parameters, which count in-place changes.

    A change of a flat vector (see `flatten`) also changes its parameters, but is counted only by
    the vector's own counter, which is therefore included.
    """
    return [(p._version, getattr(p, "vector", p)._version) for p in params]


def _takes_sums(p):
    """Returns True if a gradient may be added to ``p.grad`` in place, without autograd."""
    return (
        p.is_leaf
        and p.grad is not None
        and p.grad.is_contiguous()
        and not p._backward_hooks
        and not getattr(p, "_post_accumulate_grad_hooks", None)
    )


_adds_in_place = False


@contextlib.contextmanager
def gradients_in_place() -> Iterator[None]:
    """Makes closed-form backward passes add to allocated gradients in place, without autograd.

    The sums are the same, but take one pass over the memory instead of three. In the block, use
    ``backward()``: ``torch.autograd.grad`` doesn't return the gradients of these parameters.
    """
    global _adds_in_place
    before, _adds_in_place = _adds_in_place, True
    try:
        yield
    finally:
        _adds_in_place = before


def _refuse_second_derivatives():
    """Raises RuntimeError in a backward pass with ``create_graph=True``, which would be wrong."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "The library's networks have first derivatives only; for second derivatives (such as a "
            "gradient penalty) build the network from nn.Sequential, or set SPINUP_FAST=0"
        )


# --- The squashed Gaussian ------------------------------------------------------------------------

Formula = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def squashed_gaussian(
    formula: Formula,
    bounds: tuple[float, float],
    out: Tensor,
    eps: Tensor,
    mid: Tensor,
    half_range: Tensor,
) -> tuple[Tensor, Tensor]:
    """Samples actions ``mid + half_range * tanh(u)`` and their log-densities as one node.

    Args:
        formula: the function `nets.squashed_gaussian`, for the forward pass.
        bounds: bounds of ``log(std)``.
        out: ``mu`` and ``log(std)``, concatenated, ``(..., 2 * act_dim)``.
        eps: standard normal noise, ``(..., act_dim)``.
        mid, half_range: centre and half the range of the Box of actions, ``(act_dim,)``.

    Returns:
        Actions ``(..., act_dim)`` and log-densities ``(...)``.
    """
    fits = out.dim() == 2 and out.shape[1] == 2 * len(mid)
    if fits and can_run_on(out, eps, mid, half_range):
        return _CompiledSquashedGaussian.apply(bounds, out, eps, mid, half_range)
    squashed, logp = _SquashedGaussian.apply(formula, bounds, out, eps)
    return torch.addcmul(mid, half_range, squashed), logp


class _SquashedGaussian(torch.autograd.Function):
    """``tanh(u)`` and its log-density, with ``u = mu + noise``, ``noise = std * eps``.

    The Gaussian's exponent doesn't depend on the parameters. The derivative of
    ``log(1 - tanh(u)^2)`` with respect to ``u`` is ``-2 tanh(u)``.
    """

    @staticmethod
    def forward(ctx, formula, bounds, out, eps):
        squashed, logp, noise = formula(out, eps)
        log_std = out.chunk(2, dim=-1)[1]
        inside = (log_std >= bounds[0]) & (log_std <= bounds[1])
        ctx.save_for_backward(squashed, noise, inside)
        return squashed, logp

    @staticmethod
    def backward(ctx, grad_squashed, grad_logp):
        _refuse_second_derivatives()
        squashed, noise, inside = ctx.saved_tensors
        grad_logp = grad_logp.unsqueeze(-1)
        grad_mu = grad_squashed * (1 - squashed.square()) + 2 * grad_logp * squashed
        grad_log_std = (grad_mu * noise - grad_logp) * inside
        return None, None, torch.cat([grad_mu, grad_log_std], dim=-1), None


class _CompiledSquashedGaussian(torch.autograd.Function):
    """`_SquashedGaussian` and the map to the Box, computed by ``_kernels.c``."""

    @staticmethod
    def forward(ctx, bounds, out, eps, mid, half_range):
        act, logp, squashed, noise = compiled_squashed_gaussian(out, eps, mid, half_range, bounds)
        ctx.bounds = bounds
        ctx.save_for_backward(out, half_range, squashed, noise)
        return act, logp

    @staticmethod
    def backward(ctx, act_grad, logp_grad):
        _refuse_second_derivatives()
        grad = squashed_gaussian_grad(*ctx.saved_tensors, act_grad, logp_grad, ctx.bounds)
        return None, grad, None, None, None
