"""Directional derivatives by automatic differentiation in forward mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch.func import functional_call


def jvp(
    function: Callable[[Callable[..., Any]], Sequence[Tensor]], module: nn.Module, vector: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Differentiates a function of a module in a direction of the module's parameters.

    This takes one forward pass, in forward-mode differentiation. The returned tensors can also be
    differentiated by ``backward()``.

    Args:
        function: a function ``function(call)`` that returns tensors, where ``call(...)`` evaluates
            the module.
        module: the module to evaluate.
        vector: the direction, in the order of the module's parameters, ``(number of parameters,)``.

    Returns:
        The tensors that `function` returned, and the derivative of each: the product of its
        Jacobian and `vector`.
    """
    with fwAD.dual_level():
        named = list(module.named_parameters())
        parts = vector.split([p.numel() for _, p in named])
        duals = {k: fwAD.make_dual(p, part.view_as(p)) for (k, p), part in zip(named, parts)}
        results = function(lambda *args: functional_call(module, duals, args))
        pairs = [fwAD.unpack_dual(x) for x in results]
    tangents = [torch.zeros_like(x) if t is None else t.detach() for x, t in pairs]
    return [x for x, _ in pairs], tangents
