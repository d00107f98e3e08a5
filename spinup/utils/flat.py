"""A module's parameters, and their gradients, as one vector each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def flatten(module: nn.Module) -> nn.Parameter:
    """Moves a module's parameters into one contiguous vector, and their gradients into another.

    The module works as before: each parameter becomes a view of the vector, and each gradient a
    view of the vector's gradient. What touches all parameters is then one operation on the vector:
    an optimizer's step, polyak averaging, an average over ranks, a copy.

    Gradients add up in ``vector.grad``: clear it with ``vector.grad.zero_()`` (setting it to None,
    as ``zero_grad()`` does by default, would detach it from the module). Move the module to its
    device before, not after.

    Args:
        module: a module whose parameters have one dtype and one device.

    Returns:
        The vector, of shape ``(number of parameters,)``, with its gradient allocated and zero.

    Raises:
        ValueError: there are no parameters, or they differ in dtype or device.
    """
    params = list(module.parameters())
    if not params:
        raise ValueError(f"{type(module).__name__} has no parameters to train")
    if len({(p.dtype, p.device) for p in params}) > 1:
        raise ValueError(f"The parameters of {type(module).__name__} differ in dtype or device")
    vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in params]))
    vector.grad = torch.zeros_like(vector)
    offset = 0
    for p in params:
        part = slice(offset, offset + p.numel())
        p.data = vector.data[part].view(p.shape)
        p.grad = vector.grad[part].view(p.shape)
        offset += p.numel()
    return vector


def flatten_each(*modules: nn.Module) -> list[nn.Parameter]:
    """Flattens modules that are trained apart, each into a vector of its own.

    Raises:
        ValueError: two of them share parameters (a common trunk, say).
    """
    params = [p for module in modules for p in module.parameters()]
    if len(set(params)) < len(params):
        raise ValueError(
            "Two networks of the actor-critic share parameters, but each has an optimizer of its "
            "own; give each network parameters of its own"
        )
    return [flatten(module) for module in modules]


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keeps a module's parameters out of the gradients computed in a block."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
