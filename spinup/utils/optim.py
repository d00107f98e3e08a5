"""Adam, on the vector of a module's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spinup.fast import capture
from spinup.fast.kernels import adam_step, can_run_on, is_finite
from spinup.fast.shared import share
from spinup.runs.watchdog import still_alive
from spinup.utils.flat import bind_grad, check_views
from spinup.utils.mpi_pytorch import mpi_avg_grads


class Adam:
    """Adam on a vector of parameters, in one pass over the memory.

    In a training run on several ranks, all ranks must create it together. Ranks of one host then
    share its moments, and each takes the step of its part of the vector: see `spinup.fast.shared`.

    Args:
        params: a vector from `flatten`, with its gradient allocated.
        lr: learning rate. It may be set between steps (``optimizer.lr = 1e-4``).
        loss: name of the minimised loss in error messages.

    Source: arXiv:1412.6980. Where the compiled function can't run, for example on a GPU,
    ``torch.optim.Adam(fused=True)`` takes the same steps.
    """

    betas, eps = (0.9, 0.999), 1e-8  # torch's defaults

    def __init__(self, params: nn.Parameter, lr: float, loss: str = "the loss"):
        self.params, self.lr, self.loss, self.steps = params, lr, loss, 0
        self._shared = share(params, bind_grad)
        self._part = slice(None) if self._shared is None else self._shared.part
        moments = (torch.zeros_like(params), torch.zeros_like(params))
        self.exp_avg, self.exp_avg_sq = moments if self._shared is None else self._shared.moments
        self._torch = None
        if params.grad is None or not can_run_on(params, params.grad):
            own = params if self._shared is None else nn.Parameter(params.detach()[self._part])
            self._torch = torch.optim.Adam([own], lr=lr, fused=True)

    @torch.no_grad()
    def step(self, weight: float | None = None) -> None:
        """Takes a step.

        Args:
            weight: this rank's share of the batch, to average the gradient over ranks first, as
                `mpi_avg_grads` does. Unlike that function, it may leave the average incomplete in
                ``params.grad``. None if the gradient is averaged already.

        Raises:
            FloatingPointError: the gradient is NaN or infinite (checked on a CPU only); nothing has
                changed. All ranks raise.
            RuntimeError: the vector no longer holds the module's parameters or gradients.
        """
        if weight is not None and self._shared is None:
            mpi_avg_grads(self.params, weight)
        check_views(self.params)  # guards do so at a replay
        capture.run(self._step, weight)

    def state_dict(self) -> dict[str, Any]:
        """Returns both moments, the number of steps taken, and the learning rate."""
        moments = dict(exp_avg=self.exp_avg, exp_avg_sq=self.exp_avg_sq)
        return dict(steps=self.steps, **moments, lr=self.lr)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.steps, self.lr = state["steps"], state["lr"]
        for name in ("exp_avg", "exp_avg_sq"):
            getattr(self, name)[self._part].copy_(torch.as_tensor(state[name])[self._part])
        if self._torch is not None:
            self._torch.state.clear()

    def _step(self, weight):
        still_alive()
        step, grad, shared = self.steps + 1, self.params.grad, self._shared
        is_good = True
        if shared is not None and weight is not None:
            is_good = shared.average_part(weight)
            grad = grad[self._part]
        # Checking a gradient on a GPU would wait for it; losses are checked once an epoch
        if not grad.is_cuda and not (is_good and is_finite(grad)):
            raise FloatingPointError(
                f"the gradient of {self.loss} is NaN or infinite in update {step}; the parameters "
                "are unchanged. Lower the learning rate, or check the scale of the rewards"
            )
        if self._torch is not None:
            self._step_by_torch()
        else:
            vectors = self.params, self.params.grad, self.exp_avg, self.exp_avg_sq
            adam_step(*vectors, step, self.lr, self.betas, self.eps, self._part)
        if shared is not None:
            shared.exchange()
        self.steps = step
        # Neither function increments the counter by which backward passes detect changes
        torch.autograd.graph.increment_version(self.params)

    def _step_by_torch(self):
        (group,) = self._torch.param_groups
        (own,) = group["params"]
        if not self._torch.state:
            count = torch.tensor(float(self.steps), device=own.device)
            moments = dict(exp_avg=self.exp_avg[self._part], exp_avg_sq=self.exp_avg_sq[self._part])
            self._torch.state[own] = dict(step=count, **moments)
        if own is not self.params:
            own.grad = self.params.grad[self._part]
        group["lr"] = self.lr
        self._torch.step()
