"""A module's parameters, and their gradients, as one vector each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spinup.fast import capture
from spinup.fast.kernels import adam_step, can_run_on


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
    vector.grad = torch.zeros_like(vector)
    offset = 0
    for p in params:
        part = slice(offset, offset + p.numel())
        p.data = vector.data[part].view(p.shape)
        p.grad = vector.grad[part].view(p.shape)
        p.vector = vector.detach()  # type: ignore[attr-defined] # shares vector's version counter
        offset += p.numel()
    # For check_views: the owner, name and memory of each parameter
    vector.views = [  # type: ignore[attr-defined]
        (m._parameters, name, p, p.data_ptr(), p.grad)
        for m in module.modules()
        for name, p in m._parameters.items()
        if p is not None
    ]
    return vector


@capture.capturable
def check_views(vector: nn.Parameter) -> None:
    """Raises RuntimeError if a vector from `flatten` no longer holds its module's parameters."""
    for owner, name, p, place, grad in getattr(vector, "views", ()):
        if p.grad is not grad:
            raise RuntimeError(
                "a gradient is no longer part of its vector's gradient, as after zero_grad(): "
                "clear gradients with vector.grad.zero_() or zero_grad(set_to_none=False)"
            )
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


class Adam:
    """Adam on a vector of parameters, in one pass over the memory.

    Args:
        params: a vector from `flatten`, with its gradient allocated.
        lr: learning rate. It may be set between steps (``optimizer.lr = 1e-4``).
        loss: name of the minimised loss in error messages.

    Source: arXiv:1412.6980. Where the compiled function can't run, for example on a GPU,
    ``torch.optim.Adam(fused=True)`` takes the same steps.
    """

    betas, eps = (0.9, 0.999), 1e-8  # torch's defaults

    def __init__(self, params: nn.Parameter, lr: float, loss: str = "the loss"):
        self.params, self.lr, self.loss = params, lr, loss
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(params), torch.zeros_like(params)
        self.steps = 0
        self._torch = None
        if params.grad is None or not can_run_on(params, params.grad):
            self._torch = torch.optim.Adam([params], lr=lr, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        """Takes a step.

        Raises:
            FloatingPointError: the gradient is NaN or infinite (checked on a CPU only); nothing has
                changed. All ranks raise, because the gradient is the average over ranks.
            RuntimeError: the vector no longer holds the module's parameters or gradients.
        """
        check_views(self.params)  # guards do so at a replay
        capture.run(self._step)

    def state_dict(self) -> dict[str, Any]:
        """Returns both moments, the number of steps taken, and the learning rate."""
        moments = dict(exp_avg=self.exp_avg, exp_avg_sq=self.exp_avg_sq)
        if self._torch is not None and self._torch.state:
            moments = {k: self._torch.state[self.params][k] for k in moments}
        return dict(steps=self.steps, **moments, lr=self.lr)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.steps, self.lr = state["steps"], state["lr"]
        self.exp_avg.copy_(torch.as_tensor(state["exp_avg"]))
        self.exp_avg_sq.copy_(torch.as_tensor(state["exp_avg_sq"]))
        if self._torch is not None:
            self._torch.state.clear()
        if self._torch is not None and self.steps:
            moments = dict(exp_avg=self.exp_avg, exp_avg_sq=self.exp_avg_sq)
            step = torch.tensor(float(self.steps), device=self.params.device)
            self._torch.state[self.params] = {"step": step, **moments}

    def _step(self):
        step = self.steps + 1
        if self._torch is not None:
            # Checking a gradient on a GPU would wait for it; losses are checked once an epoch
            if not self.params.is_cuda and not self.params.grad.isfinite().all():
                self._refuse(step)
            self._torch.param_groups[0]["lr"] = self.lr
            self._torch.step()
        elif not adam_step(
            *(self.params, self.params.grad, self.exp_avg, self.exp_avg_sq),
            *(step, self.lr, self.betas, self.eps),
        ):
            self._refuse(step)
        self.steps = step
        # Neither function increments the counter by which backward passes detect changes
        torch.autograd.graph.increment_version(self.params)

    def _refuse(self, step):
        raise FloatingPointError(
            f"the gradient of {self.loss} is NaN or infinite in update {step}; the parameters are "
            "unchanged. Lower the learning rate, or check the scale of the rewards"
        )
