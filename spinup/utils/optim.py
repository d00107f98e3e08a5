"""Adam, on the vector of a module's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spinup.fast import capture
from spinup.fast.kernels import adam_step, can_run_on, is_finite
from spinup.fast.shared import share, shared_vector
from spinup.runs.watchdog import still_alive
from spinup.utils.flat import bind_grad, check_views
from spinup.utils.mpi_pytorch import mpi_avg_grads


class Adam:
    """Adam on a vector of parameters, in one pass over the memory.

    In a training run on several ranks, all ranks must create it, and call `step`, together. Ranks
    of one host then share its moments (change them on one rank only), and each takes the step of
    its part of the vector: see `spinup.fast.shared`.

    Args:
        params: a vector from `flatten`, with its gradient allocated.
        lr: learning rate. It may be set between steps (``optimizer.lr = 1e-4``).
        loss: name of the minimised loss in error messages.

    Source: arXiv:1412.6980. Where the compiled function can't run, PyTorch's fused function takes
    the same steps.
    """

    betas, eps = (0.9, 0.999), 1e-8  # torch's defaults

    def __init__(self, params: nn.Parameter, lr: float, loss: str = "the loss"):
        self.params, self.lr, self.loss, self.steps = params, lr, loss, 0
        shared = share(params, bind_grad)
        moments = (torch.zeros_like(params), torch.zeros_like(params))
        self.exp_avg, self.exp_avg_sq = moments if shared is None else shared.moments
        self._is_compiled = params.grad is not None and can_run_on(params, params.grad)
        self._torch: torch.optim.Adam | None = None
        self._is_for: tuple = ()  # address and part of the parameters that it steps
        # A CUDA graph freezes numbers, so those that change are tensors: the learning rate; the
        # number of steps; 1 if this step's gradient isn't finite; the number of such gradients
        self._is_on_gpu = _is_on_gpu(params)
        numbers = torch.zeros(4, dtype=torch.float32, device=params.device)
        self._lr, self._count, self._is_bad, self._num_bad = numbers.unbind()
        self._one = torch.ones((), dtype=torch.float32, device=params.device)
        self._given: tuple = ()  # values of the first two

    @torch.no_grad()
    def step(self, weight: float | None = None) -> None:
        """Takes a step.

        Args:
            weight: this rank's share of the batch, to average the gradient over ranks first, as
                `mpi_avg_grads` does. Unlike that function, it may leave the average incomplete in
                ``params.grad``. None if the gradient is averaged already.

        Raises:
            FloatingPointError: the gradient is NaN or infinite; nothing has changed. All ranks
                raise. (If only the average overflows, one rank raises: don't go on then.) On a GPU,
                the step is skipped, and the next `state_dict` raises.
            RuntimeError: the vector no longer holds the module's parameters or gradients.
        """
        if weight is not None and shared_vector(self.params) is None:
            mpi_avg_grads(self.params, weight)
        check_views(self.params)  # guards do so at a replay
        if self._is_on_gpu:
            capture.run(self._before_gpu, when="before")
            self._step_on_gpu()
            capture.run(self._after_gpu, when="after")
        else:
            capture.run(self._step, weight)

    def state_dict(self) -> dict[str, Any]:
        """Returns both moments, the number of steps taken, and the learning rate.

        Raises:
            FloatingPointError: on a GPU, a gradient since the start was NaN or infinite.
        """
        num_bad = int(self._num_bad.item()) if self._is_on_gpu else 0
        if num_bad:
            raise FloatingPointError(
                f"the gradient of {self.loss} was NaN or infinite in {num_bad} updates, which were "
                "skipped. Lower the learning rate, or check the scale of the rewards"
            )
        moments = dict(exp_avg=self.exp_avg, exp_avg_sq=self.exp_avg_sq)
        return dict(steps=self.steps, **moments, lr=self.lr)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.steps, self.lr = state["steps"], state["lr"]
        part = self._part()
        for name in ("exp_avg", "exp_avg_sq"):
            getattr(self, name)[part].copy_(torch.as_tensor(state[name])[part])
        self._torch = None

    def _part(self):
        """Returns the part of the vector that this rank steps."""
        shared = shared_vector(self.params)
        return slice(None) if shared is None else shared.part

    @capture.capturable
    def _step(self, weight):
        still_alive()
        step, shared, part = self.steps + 1, shared_vector(self.params), self._part()
        if shared is not None and weight is not None:
            is_good = shared.average_part(weight)
        else:
            is_good = is_finite(self.params.grad)
        if not is_good:
            raise FloatingPointError(
                f"the gradient of {self.loss} is NaN or infinite in update {step}; the parameters "
                "are unchanged. Lower the learning rate, or check the scale of the rewards"
            )
        if self._is_compiled:
            vectors = self.params, self.params.grad, self.exp_avg, self.exp_avg_sq
            adam_step(*vectors, step, self.lr, self.betas, self.eps, part)
        else:
            self._step_by_torch(part)
        if shared is not None:
            shared.exchange()
        self.steps = step
        # Neither function increments the counter by which backward passes detect changes
        torch.autograd.graph.increment_version(self.params)

    @capture.capturable
    def _before_gpu(self):
        still_alive()
        if self._given != (self.lr, self.steps):
            self._lr.fill_(self.lr)
            self._count.fill_(self.steps)

    def _step_on_gpu(self):
        """Steps as ``torch.optim.Adam(capturable=True)``, without its hooks, and never waits."""
        vectors = self.params, self.params.grad, self.exp_avg, self.exp_avg_sq
        b1, b2 = self.betas
        self._count.add_(1)
        # In one pass, as torch.amp's GradScaler does. A gradient that isn't finite is skipped.
        self._is_bad.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_([vectors[1]], self._is_bad, self._one)
        torch._fused_adam_(
            *([x] for x in vectors),
            max_exp_avg_sqs=[],
            state_steps=[self._count],
            lr=self._lr,
            beta1=b1,
            beta2=b2,
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            found_inf=self._is_bad,
        )
        self._count.sub_(self._is_bad)
        self._num_bad.add_(self._is_bad)

    @capture.capturable
    def _after_gpu(self):
        self.steps += 1
        self._given = self.lr, self.steps
        torch.autograd.graph.increment_version(self.params)  # as in `_step`

    def _step_by_torch(self, part):
        is_whole = part == slice(None)
        if self._torch is None or self._is_for != (self.params.data_ptr(), part):
            self._is_for = self.params.data_ptr(), part
            own = self.params if is_whole else nn.Parameter(self.params.detach()[part])
            self._torch = torch.optim.Adam([own], lr=self.lr, fused=True)
            count = torch.tensor(float(self.steps), device=own.device)
            moments = dict(exp_avg=self.exp_avg[part], exp_avg_sq=self.exp_avg_sq[part])
            self._torch.state[own] = dict(step=count, **moments)
        (group,) = self._torch.param_groups
        if not is_whole:
            group["params"][0].grad = self.params.grad[part]
        group["lr"] = self.lr
        self._torch.step()


def _is_on_gpu(params):
    return params.is_cuda and params.dtype is torch.float32
