"""A module's parameters, and their gradients, as one vector each."""

from __future__ import annotations

import torch
from torch import nn

from spinup.fast import capture


def flatten(module: nn.Module) -> nn.Parameter:
    """Moves a module's parameters into one contiguous vector, and their gradients into another.

    The module works as before: its parameters become views of the vector, and their gradients views
    of the vector's gradient. A step of an optimizer, polyak averaging, averaging over ranks and
    copying then take one operation each. Clear gradients with ``vector.grad.zero_()``. Move the
    module to its device and dtype before flattening it.

    Args:
        module: a module whose parameters have one dtype and one device.

    Returns:
        The vector, of shape ``(number of parameters,)``, with its gradient allocated and zero.

    Raises:
        ValueError: the module has no parameters, or they differ in dtype or device.
    """
    params = list(module.parameters())
    if not params:
        raise ValueError(f"{type(module).__name__} has no parameters to train")
    if len({(p.dtype, p.device) for p in params}) > 1:
        raise ValueError(f"The parameters of {type(module).__name__} differ in dtype or device")
    vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in params]))
    for p, data in zip(params, _views(vector.data, params), strict=True):
        p.data = data
        p.vector = vector.detach()  # type: ignore[attr-defined] # shares vector's version counter
    # For check_views: the owner, name and memory of each parameter
    vector.views = [  # type: ignore[attr-defined]
        (m._parameters, name, p, p.data_ptr())
        for m in module.modules()
        for name, p in m._parameters.items()
        if p is not None
    ]
    vector.params = params  # type: ignore[attr-defined]
    bind_grad(vector, torch.zeros_like(vector))
    return vector


def bind_grad(vector: nn.Parameter, grad: torch.Tensor) -> None:
    """Makes `grad` the gradient of a vector, and its parts the gradients of the parameters."""
    vector.grad = grad
    params = getattr(vector, "params", [])
    grads = _views(grad, params)
    for p, part in zip(params, grads, strict=True):
        p.grad = part
    vector.grads = grads  # type: ignore[attr-defined] # for check_views


def _views(vector, params):
    """Returns the parts of a vector in the shapes of parameters."""
    parts = vector.split([p.numel() for p in params]) if params else []
    return [part.view(p.shape) for part, p in zip(parts, params, strict=True)]


@capture.capturable
def check_views(vector: nn.Parameter) -> None:
    """Raises RuntimeError if a vector from `flatten` no longer holds its module's parameters."""
    for p, grad in zip(getattr(vector, "params", ()), getattr(vector, "grads", ()), strict=True):
        if p.grad is not grad:
            raise RuntimeError(
                "a gradient is no longer part of its vector's gradient, as after zero_grad(): "
                "clear gradients with vector.grad.zero_() or zero_grad(set_to_none=False)"
            )
    for owner, name, p, place in getattr(vector, "views", ()):
        if owner.get(name) is not p or p.data_ptr() != place:
            raise RuntimeError(
                "a parameter is no longer part of its vector, as after .to(), .double() or "
                "load_state_dict(assign=True): move the module before flatten(), and load with "
                "assign=False"
            )


def flatten_each(*modules: nn.Module) -> list[nn.Parameter]:
    """Flattens modules that are trained separately, each into its own vector.

    Raises:
        ValueError: two modules share parameters (such as a common trunk).
    """
    params = [p for module in modules for p in module.parameters()]
    if len(set(params)) < len(params):
        raise ValueError(
            "Two networks of the actor-critic share parameters, but each has its own optimizer; "
            "give each network its own parameters"
        )
    return [flatten(module) for module in modules]


class frozen:
    """Context manager that freezes a module's parameters. It can be entered repeatedly."""

    def __init__(self, module: nn.Module):
        self._trainable = [p for p in module.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for p in self._trainable:
            p.requires_grad_(False)

    def __exit__(self, *error: object) -> None:
        for p in self._trainable:
            p.requires_grad_(True)
